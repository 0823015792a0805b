//! The upstream's own webhooks, at a port of their own: verified before they are parsed, then they end the job's slot and are relayed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ledger::{self, outbox::Waiting};
use crate::protocol::{End, Family};
use crate::proxy::App;
use crate::proxy::accept::{self, Asked, Terms};
use crate::proxy::jobs::Told;
use crate::reload::Reloader;

use super::fleet::Known;

/// Longest call.
const LONGEST: usize = 1 << 20;
const TOKEN_CHARS: usize = 32;
/// For a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(10);
/// A caller that sits on an idle connection takes a place from others: every call brings its own.
const TERMS: Terms = Terms { header_timeout: PATIENCE, http2: false, keep_alive: false };
/// Connections at a time; the port is open to the world.
const CONNECTIONS: usize = 256;

/// Serves until aborted.
pub(crate) async fn serve(listener: TcpListener, reloader: Arc<Reloader>) {
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
        match accepted {
            Ok((tcp, _)) => {
                let reloader = Arc::clone(&reloader);
                connections.spawn(async move {
                    connection(tcp, reloader).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Serves one connection.
pub(crate) async fn connection(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, reloader: Arc<Reloader>) {
    accept::serve(io, TERMS, &CancellationToken::new(), move |asked| {
        let app = reloader.latest();
        async move {
            match asked {
                Asked::Request(request) => answer(receive(&app, *request).await),
                Asked::Refused(refused) => refused.rejection.response(Family::Native).map(Full::new),
            }
        }
    })
    .await;
}

/// The status, and a word for the caller.
type Verdict = (StatusCode, &'static str);

async fn receive(app: &App, request: Request<Incoming>) -> Verdict {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "only POST");
    }
    let body = match read(body).await {
        Ok(body) => body,
        Err(verdict) => return verdict,
    };
    let hooks = &app.webhooks;
    let genuine = hooks.terms.load().verify(&head.headers, hooks.clock.wall(), &body);
    if !genuine {
        hooks.metrics.rejected.inc();
        tracing::debug!("a call at webhooks.listen has no valid signature");
        return (StatusCode::UNAUTHORIZED, "the signature is not valid");
    }
    // A tunnel may have taken the path of public_url off, or not.
    let token = head.uri.path().rsplit('/').next().unwrap_or_default();
    if token.len() != TOKEN_CHARS || !token.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return (StatusCode::NOT_FOUND, "no such webhook");
    }
    match hooks.ledger.by_token(token.to_owned()).await {
        Ok(Some((row, told))) => app.called(row, told, &body).await,
        Ok(None) => app.called_for_another(token, &body).await,
        Err(error) => {
            tracing::error!(%error, "a webhook of the upstream cannot be looked up");
            (StatusCode::SERVICE_UNAVAILABLE, "try again")
        }
    }
}

async fn read(body: Incoming) -> Result<Bytes, Verdict> {
    let too_large = (StatusCode::PAYLOAD_TOO_LARGE, "too large");
    if body.size_hint().lower() > LONGEST as u64 {
        return Err(too_large);
    }
    match tokio::time::timeout(PATIENCE, Limited::new(body, LONGEST).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large),
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the body broke off")),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "too slow")),
    }
}

impl App {
    /// The same where the create was another replica's, as far as is known here.
    async fn called_for_another(&self, token: &str, body: &Bytes) -> Verdict {
        let again = (StatusCode::SERVICE_UNAVAILABLE, "try again");
        let answer = self.protocol.read(body);
        let named = answer.as_ref().and_then(|answer| answer.id.as_deref());
        let (owed, known) = match self.webhooks.owed_elsewhere(token, named).await {
            Known::Owed(owed, known) => (owed, known),
            Known::Nothing => return (StatusCode::NOT_FOUND, "no such webhook"),
            Known::Unsure => return again,
        };
        let Some(answer) = answer else {
            return (StatusCode::BAD_REQUEST, "not about a job");
        };
        let Some(job) = known.or(answer.id.clone()) else {
            return (StatusCode::BAD_REQUEST, "names no job");
        };
        if answer.id.is_some_and(|id| id != job) {
            tracing::warn!(job, "a webhook of the upstream names another job: nothing is done");
            return (StatusCode::BAD_REQUEST, "names another job");
        }
        let account = self.accounts.iter().position(|account| account.name == owed.account).unwrap_or_default();
        if self.jobs.must_find(&job) {
            self.jobs.find(&job, account).await;
        }
        let owner = self.jobs.owner(&job);
        if owner.is_none() && answer.ended.is_none() {
            return (StatusCode::OK, "taken");
        }
        // Where its create has not been answered yet, its replica will find the end.
        let owner = owner.unwrap_or_else(|| self.jobs.owner_named(account, &owed.client));
        self.jobs.saw_status(&job, owner, as_told(body), Instant::now());
        let verdict = match answer.ended {
            None => (StatusCode::OK, "taken"),
            // Whoever hears of the end first delivers.
            Some(end) => match self.webhooks.owe_also(owed, &job).await {
                Ok(()) => self.ended(&job, Some(end), body).await,
                Err(error) => {
                    tracing::error!(%error, "a webhook of the upstream cannot be kept");
                    again
                }
            },
        };
        self.jobs.told_in_fleet(account).await;
        verdict
    }

    /// What this row owes is owed for this job: its create had none so far.
    pub(super) async fn bind(&self, row: &Waiting, job: &str) -> Result<(), ledger::Error> {
        self.webhooks.wait_for(job, Waiting { job: Some(job.to_owned()), ..row.clone() });
        if self.webhooks.ledger.owed_for(row.id, job.to_owned()).await? {
            row.owed.number.into_iter().for_each(|number| self.jobs.turned_up(number, job));
        } else {
            self.webhooks.wait_no_more(job, row.id);
        }
        Ok(())
    }

    /// The upstream told something about a job that a webhook is owed for.
    async fn called(&self, row: Waiting, told: bool, body: &Bytes) -> Verdict {
        let Some(answer) = self.protocol.read(body) else {
            return (StatusCode::BAD_REQUEST, "not about a job");
        };
        let Some(job) = row.job.clone().or(answer.id.clone()) else {
            return (StatusCode::BAD_REQUEST, "names no job");
        };
        if answer.id.as_ref().is_some_and(|id| *id != job) {
            tracing::warn!(job, "a webhook of the upstream names another job: nothing is done");
            return (StatusCode::BAD_REQUEST, "names another job");
        }
        if told {
            return (StatusCode::OK, "known");
        }
        if row.job.is_none() {
            // The answer to the create has not come yet, or never will.
            if self.bind(&row, &job).await.is_err() {
                return (StatusCode::SERVICE_UNAVAILABLE, "try again");
            }
        }
        if let Some(owner) = self.jobs.owner(&job) {
            self.jobs.saw_status(&job, owner, as_told(body), Instant::now());
        }
        self.ended(&job, answer.ended, body).await
    }

    /// What is owed at this job's end is due, if it has ended.
    async fn ended(&self, job: &str, end: Option<End>, body: &Bytes) -> Verdict {
        if let Some(end) = end {
            // The observer has done it, unless the job table does not know the job.
            self.webhooks.end(job, end, Some(body));
        }
        // What follows from it is on disk before the upstream is told that it need not call again.
        match self.webhooks.ledger.run(|_| Ok(())).await {
            Ok(()) => (StatusCode::OK, "taken"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "try again"),
        }
    }
}

/// The call as an answer to a status request.
fn as_told(body: &Bytes) -> Told {
    let json = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Told::new(StatusCode::OK, &json, body)
}

fn answer((status, word): Verdict) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{word}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}
