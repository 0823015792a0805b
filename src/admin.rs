//! The operator's port: liveness, readiness, metrics, status, jobs and webhooks. No GET changes state; the one POST replays a webhook.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::forecast;
use crate::metrics::Levels;
use crate::protocol::Family;
use crate::proxy::App;
use crate::proxy::accept::{self, Asked, Terms};
use crate::proxy::guard::Guard;
use crate::proxy::rejection::Rejection;
use crate::reload::Reloader;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at a time; more wait in the system's backlog.
const CONNECTIONS: usize = 256;
const TERMS: Terms = Terms { header_timeout: Duration::from_secs(10), http2: false, keep_alive: true };

/// The most webhooks in one answer.
const WEBHOOKS_SHOWN: u32 = 1_000;

/// One admin port.
pub(crate) struct Admin {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) guard: Guard,
    /// Only probes and metrics, for whoever asks: no Host check, for probes come by address.
    pub(crate) health_only: bool,
}

/// Serves until aborted.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
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
                async move { admin.answer(asked).await }
            })
            .await;
            drop(place);
        });
    }
}

impl Admin {
    async fn answer(&self, asked: Asked) -> Response<Full<Bytes>> {
        let head = match asked {
            Asked::Request(request) => request.into_parts().0,
            Asked::Refused(refused) => return refused.rejection.response(Family::Native).map(Full::new),
        };
        if !self.health_only
            && let Err(rejection) = self.guard.check(&head)
        {
            return rejection.response(Family::Native).map(Full::new);
        }
        if let Some(id) = replayed(head.uri.path()).filter(|_| head.method == Method::POST && !self.health_only) {
            return replay(&self.reloader.latest(), id).await;
        }
        if head.method != Method::GET && head.method != Method::HEAD {
            return Rejection::MethodRefused("other than GET").response(Family::Native).map(Full::new);
        }
        let app = &*self.reloader.latest();
        match (head.uri.path(), self.health_only) {
            ("/livez", _) => text(StatusCode::OK, "text/plain", "alive\n"),
            ("/readyz", _) if app.drain.is_cancelled() => {
                text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining\n")
            }
            ("/readyz", _) => text(StatusCode::OK, "text/plain", "ready\n"),
            ("/metrics", _) => text(StatusCode::OK, OPEN_METRICS, app.render_metrics()),
            ("/api/v1/status", false) => text(StatusCode::OK, "application/json", status(app).to_string()),
            ("/api/v1/jobs", false) => {
                text(StatusCode::OK, "application/json", json!({"jobs": app.jobs.views()}).to_string())
            }
            ("/api/v1/usage", false) => text(StatusCode::OK, "application/json", app.credits.report().to_string()),
            ("/api/v1/forecast", false) => match forecast::answer::answer(app, head.uri.query().unwrap_or_default()) {
                Ok(forecast) => text(StatusCode::OK, "application/json", forecast.to_string()),
                Err(reason) => text(StatusCode::BAD_REQUEST, "text/plain", format!("{reason}\n")),
            },
            ("/api/v1/webhooks", false) => webhooks(app, head.uri.query() == Some("state=dead")).await,
            _ => text(
                StatusCode::NOT_FOUND,
                "text/plain",
                "nothing here: /livez /readyz /metrics /api/v1/status /api/v1/jobs /api/v1/usage /api/v1/forecast /api/v1/webhooks\n",
            ),
        }
    }
}

/// The newest webhooks, or the newest of those that were given up.
async fn webhooks(app: &App, dead: bool) -> Response<Full<Bytes>> {
    match app.ledger.webhooks(dead, WEBHOOKS_SHOWN).await {
        Ok(webhooks) => text(StatusCode::OK, "application/json", json!({"webhooks": webhooks}).to_string()),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
    }
}

/// The webhook that `/api/v1/webhooks/{id}/replay` names.
fn replayed(path: &str) -> Option<i64> {
    path.strip_prefix("/api/v1/webhooks/")?.strip_suffix("/replay")?.parse().ok()
}

async fn replay(app: &App, id: i64) -> Response<Full<Bytes>> {
    match app.webhooks.replay(id).await {
        Ok(true) => text(StatusCode::ACCEPTED, "text/plain", "it is tried again\n"),
        Ok(false) => text(StatusCode::NOT_FOUND, "text/plain", "no undelivered webhook has this number\n"),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error}\n")),
    }
}

fn text(status: StatusCode, form: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(form));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Limits, jobs and queue of every account.
pub(crate) fn status(app: &App) -> Value {
    let accounts = app.accounts.iter().filter(|account| !account.gone).map(|account| {
        let now = account.queue.snapshot();
        json!({
            "name": account.name,
            "plan": account.plan.name,
            "requests": now.view.map(|view| json!({
                "limit": view.limit,
                "window_secs": view.window.as_secs_f64(),
                "used": now.used,
                "remaining": view.remaining,
                "next_in_secs": view.reset_in.as_secs_f64(),
            })),
            "jobs": { "live": now.live, "limit": now.jobs_limit },
            "waiting": now.waiting,
            "paced": now.paced,
            "drift": now.drift,
            "attempts": now.attempts,
        })
    });
    let clients = app.clients.present().iter().map(|&client| {
        let name = app.clients.name(client);
        let (waiting, live) = app.accounts[app.account_of[client]].queue.client_snapshot(client);
        json!({"name": name, "account": app.accounts[app.account_of[client]].name, "waiting": waiting, "jobs_live": live})
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": !app.drain.is_cancelled(),
        "in_flight": app.metrics.in_flight.get(),
        "connections": app.metrics.connections.get(),
        "jobs_uncertain": app.jobs.uncertain(),
        "upstream": app.breaker.status(),
        "config": app.reloads.snapshot(),
        "accounts": accounts.collect::<Vec<_>>(),
        "clients": clients.collect::<Vec<_>>(),
    })
}

impl App {
    fn render_metrics(&self) -> String {
        let queues: Vec<_> = self.queues().map(|(name, queue)| (name.to_owned(), queue)).collect();
        self.credits.set_gauges();
        let levels = Levels {
            jobs_uncertain: self.jobs.uncertain(),
            remembered: self.jobs.remembered(),
            held_bytes: self.bodies.held_bytes(),
            ready: !self.drain.is_cancelled(),
        };
        self.metrics.render(&queues, levels)
    }
}
