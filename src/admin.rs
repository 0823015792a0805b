//! The operator's port: the dashboard, liveness, readiness, metrics, status, jobs and webhooks. No GET changes state; the one POST replays
//! a webhook.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode, header, request};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::forecast;
use crate::proxy::App;
use crate::proxy::accept::{self, Asked, Terms};
use crate::proxy::guard::Guard;
use crate::proxy::queue::Account;
use crate::proxy::rejection::Rejection;
use crate::reload::Reloader;

use self::answer::{Answer, text};
use self::events::Feed;

pub(crate) use self::status::status;

/// Answers, whole and without an end.
mod answer;

/// The page.
mod dashboard;

/// What the page listens to.
mod events;

/// The last hour.
mod history;

/// What an event tells.
mod snapshot;

/// What is shown of this moment.
mod status;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at a time; more wait in the system's backlog.
const CONNECTIONS: usize = 256;
const TERMS: Terms = Terms { header_timeout: Duration::from_secs(10), http2: false, keep_alive: true };

/// What all paths but one take.
const READING: &str = "GET, HEAD";

/// The most webhooks in one answer.
const WEBHOOKS_SHOWN: u32 = 1_000;

const PATHS: &str = "nothing here: / /livez /readyz /metrics /api/v1/status /api/v1/jobs /api/v1/usage /api/v1/forecast /api/v1/events \
    /api/v1/webhooks\n";

/// One admin port.
pub(crate) struct Admin {
    reloader: Arc<Reloader>,
    guard: Guard,
    /// `None`: only probes and metrics, for whoever asks: no Host check, for probes come by address.
    feed: Option<Arc<Feed>>,
}

/// Serves until aborted.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    if let Some(feed) = &admin.feed {
        connections.spawn(Arc::clone(feed).run());
    }
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = loop {
            tokio::select! {
                accepted = listener.accept() => break accepted,
                Some(_) = connections.join_next() => {}
            }
        };
        let Ok((tcp, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        connections.spawn(async move {
            // The port stays up while the data port drains.
            accept::serve(tcp, TERMS, &CancellationToken::new(), move |asked| {
                let admin = Arc::clone(&admin);
                async move { admin.protected(asked).await }
            })
            .await;
            drop(place);
        });
    }
}

impl Admin {
    /// The port for operators, beside a data port that listens there.
    pub(crate) fn new(reloader: Arc<Reloader>, guard: Guard, listen: Vec<SocketAddr>) -> Self {
        let feed = Some(Arc::new(Feed::new(Arc::clone(&reloader), listen)));
        Self { reloader, guard, feed }
    }

    /// The port for probes.
    pub(crate) fn health_only(reloader: Arc<Reloader>, guard: Guard) -> Self {
        Self { reloader, guard, feed: None }
    }

    async fn protected(&self, asked: Asked) -> Response<Answer> {
        let mut response = match asked {
            Asked::Request(request) => self.answer(request.into_parts().0).await,
            Asked::Refused(refused) => refused_here(&refused.rejection),
        };
        dashboard::protect(response.headers_mut());
        response
    }

    async fn answer(&self, head: request::Parts) -> Response<Answer> {
        let Some(feed) = &self.feed else { return self.health(&head).unwrap_or_else(nothing_here) };
        if let Err(rejection) = self.guard.check(&head) {
            return refused_here(&rejection);
        }
        let (app, path) = (&*self.reloader.latest(), head.uri.path());
        if let Some(id) = replayed(path) {
            return if head.method == Method::POST { replay(app, id).await } else { answer::not_taken("POST") };
        }
        if let Some(answer) = self.health(&head) {
            return answer;
        }
        match path {
            "/api/v1/status" => answer::json(&feed.status()),
            "/api/v1/jobs" => answer::json(&json!({"jobs": app.jobs.views()})),
            "/api/v1/usage" => answer::json(&app.credits.report()),
            "/api/v1/forecast" => match forecast::answer::answer(app, head.uri.query().unwrap_or_default()) {
                Ok(forecast) => answer::json(&forecast),
                Err(reason) => text(StatusCode::BAD_REQUEST, "text/plain", format!("{reason}\n")),
            },
            "/api/v1/events" if head.method == Method::HEAD => text(StatusCode::OK, "text/event-stream", ""),
            "/api/v1/events" => feed.listen().map_or_else(too_many_listen, answer::events),
            "/api/v1/webhooks" => webhooks(app, head.uri.query() == Some("state=dead")).await,
            path => match dashboard::file(path) {
                Some((form, body)) => text(StatusCode::OK, form, body),
                None => nothing_here(),
            },
        }
    }

    /// Probes, metrics, and no method that could change anything.
    fn health(&self, head: &request::Parts) -> Option<Response<Answer>> {
        if head.method != Method::GET && head.method != Method::HEAD {
            return Some(answer::not_taken(READING));
        }
        let app = self.reloader.latest();
        let draining = app.drain.is_cancelled();
        Some(match head.uri.path() {
            "/livez" => text(StatusCode::OK, "text/plain", "alive\n"),
            "/readyz" if draining => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n"),
            "/readyz" => text(StatusCode::OK, "text/plain", format!("ready\n{}", shared_detail(&app))),
            "/metrics" => text(StatusCode::OK, OPEN_METRICS, app.render_metrics()),
            _ => return None,
        })
    }
}

/// What the data port says of methods is not true of this one.
fn refused_here(rejection: &Rejection) -> Response<Answer> {
    match rejection {
        Rejection::MethodRefused(_) => answer::not_taken(READING),
        rejection => answer::refused(rejection),
    }
}

fn nothing_here() -> Response<Answer> {
    text(StatusCode::NOT_FOUND, "text/plain", PATHS)
}

fn too_many_listen() -> Response<Answer> {
    let words = format!("{} listen already, and no more may\n", events::LISTENERS);
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", words);
    answer.headers_mut().insert(header::RETRY_AFTER, 5.into());
    answer
}

/// The newest webhooks, or the newest of those that were given up.
async fn webhooks(app: &App, dead: bool) -> Response<Answer> {
    match app.ledger.webhooks(dead, WEBHOOKS_SHOWN).await {
        Ok(webhooks) => answer::json(&json!({"webhooks": webhooks})),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
    }
}

/// The webhook that `/api/v1/webhooks/{id}/replay` names.
fn replayed(path: &str) -> Option<i64> {
    path.strip_prefix("/api/v1/webhooks/")?.strip_suffix("/replay")?.parse().ok()
}

async fn replay(app: &App, id: i64) -> Response<Answer> {
    match app.webhooks.replay(id).await {
        Ok(true) => text(StatusCode::ACCEPTED, "text/plain", "it is tried again\n"),
        Ok(false) => text(StatusCode::NOT_FOUND, "text/plain", "no undelivered webhook has this number\n"),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
    }
}

/// A line for each account that is shared. It is no reason not to be ready: calls wait here as they would anywhere.
fn shared_detail(app: &App) -> String {
    let line = |(name, queue): (&str, Arc<Account>)| {
        let view = queue.shared_view()?;
        let (state, silent) = (view.state, view.silent_secs);
        let silent = if state == "up" { String::new() } else { format!(", no answer for {silent:.0} s") };
        Some(format!("shared store of {name}: {state}{silent}\n"))
    };
    app.queues().filter_map(line).collect()
}
