//! The way of one request: credential, count, fault, route, rate headers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use tokio::time::{Instant, sleep};

use super::books::Ticket;
use super::epoch::ceil_secs;
use super::fault::Fault;
use super::meter::Verdict;
use super::options::Dialect;
use super::reply::{Reply, error};
use super::server::{Link, Shared};
use super::stats::Seen;
use super::{control, replicate, routes};

/// Why a request gets no answer; hyper then closes the connection (HTTP/1.1) or resets the stream (HTTP/2).
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("a scripted fault")]
    Scripted,
    #[error("the request broke off")]
    Request(#[from] hyper::Error),
}

/// One request that was let in.
pub(super) struct Call {
    pub(super) shared: Arc<Shared>,
    pub(super) ticket: Ticket,
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: Arc<HeaderMap>,
}

/// Answers one request.
pub(super) async fn handle(link: Arc<Link>, request: Request<Incoming>) -> Result<Response<Reply>, Cut> {
    let (parts, body) = request.into_parts();
    let shared = Arc::clone(&link.shared);
    if parts.uri.path().starts_with("/_mock/") {
        return control::answer(&shared, &parts.method, &parts.uri, body).await;
    }
    let delay = shared.peek(super::books::Books::count_delay);
    if !delay.is_zero() {
        sleep(delay).await;
    }
    let headers = Arc::new(parts.headers);
    let replicate = shared.options.dialect == Dialect::Replicate;
    let credential = Credential::of(parts.uri.path(), &headers, replicate);
    let is_poll = parts.method == Method::GET && parts.uri.path().starts_with("/v1/predictions/");
    let seen = Seen {
        at: Instant::now(),
        method: parts.method.clone(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        status: 0,
        key: credential.as_ref().map(|credential| credential.secret.clone()).unwrap_or_default(),
        headers: Arc::clone(&headers),
        job: None,
        counted: shared.options.count_polls || !is_poll,
    };
    let ticket = shared.books(|books| {
        let book = credential.and_then(|credential| books.book_of(&credential.secret, credential.session));
        if let Some(book) = book {
            Some(books.arrive(seen, book))
        } else {
            books.turn_away(seen, 401);
            None
        }
    });
    let Some(ticket) = ticket else {
        return Ok(if replicate {
            replicate::problem(StatusCode::UNAUTHORIZED, "You did not pass a valid authentication token.")
        } else {
            error(StatusCode::UNAUTHORIZED, "invalid or missing API key")
        });
    };
    let call = Call { shared, ticket, method: parts.method, uri: parts.uri, headers };
    let answer = match ticket.verdict {
        Some(verdict) if !verdict.allowed && replicate => Ok(replicate::throttled(verdict.wait)),
        Some(verdict) if !verdict.allowed => Ok(refusal(&verdict)),
        _ => serve(&link, &call, body).await,
    };
    finish(&call, answer).await
}

/// Carries out what was let in, or lets a fault strike.
async fn serve(link: &Arc<Link>, call: &Call, body: Incoming) -> Result<Response<Reply>, Cut> {
    let fault = call.shared.peek(|books| books.script.take(&call.method, call.uri.path()));
    let Some(fault) = fault else {
        return routes::route(call, body).await;
    };
    call.shared.note(|stats| stats.faults += 1);
    let execute = match fault {
        Fault::Status { execute, .. } | Fault::Hang { execute } | Fault::Garbage { execute } => execute,
        Fault::ResetBefore => false,
        Fault::ResetAfter | Fault::HalfBody | Fault::SlowHead { .. } | Fault::OtherBody { .. } | Fault::CloseIdle => {
            true
        }
    };
    let answer = if execute { routes::route(call, body).await? } else { Response::new(Reply::whole(Bytes::new())) };
    match fault {
        Fault::Status { code, headers, .. } => Ok(other_status(code, &headers)),
        Fault::ResetBefore | Fault::ResetAfter => Err(Cut::Scripted),
        Fault::HalfBody => Ok(answer.map(Reply::cut_short)),
        Fault::OtherBody { body } => Ok(answer.map(|_| Reply::whole(body))),
        Fault::Hang { .. } => std::future::pending().await,
        Fault::SlowHead { delay } => {
            sleep(delay).await;
            Ok(answer)
        }
        Fault::Garbage { .. } => {
            link.garble();
            Ok(answer.map(|reply| reply.then_close(Arc::clone(link))))
        }
        Fault::CloseIdle => Ok(answer.map(|reply| reply.then_close(Arc::clone(link)))),
    }
}

/// Adds what every answer carries, and enters it in the books.
async fn finish(call: &Call, answer: Result<Response<Reply>, Cut>) -> Result<Response<Reply>, Cut> {
    let options = &call.shared.options;
    if !options.answer_delay.is_zero() {
        sleep(options.answer_delay).await;
    }
    let mut answer = answer?;
    if let Some(verdict) = call.ticket.verdict.filter(|_| options.rate_headers && options.dialect != Dialect::Replicate)
    {
        let reset = call.shared.epoch.reset_secs(verdict.reset);
        for (name, value) in [("x-ratelimit-remaining", verdict.remaining.into()), ("x-ratelimit-reset", reset)] {
            answer.headers_mut().entry(name).or_insert_with(|| HeaderValue::from(value));
        }
    }
    // HTTP would take the system's clock, which knows nothing of paused time.
    let date = call.shared.epoch.date(Instant::now());
    answer.headers_mut().entry(DATE).or_insert(date);
    call.shared.books(|books| books.answer(call.ticket, answer.status().as_u16()));
    Ok(answer)
}

fn refusal(verdict: &Verdict) -> Response<Reply> {
    let mut answer = error(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(ceil_secs(verdict.wait).max(1)));
    answer
}

fn other_status(code: u16, headers: &std::collections::BTreeMap<String, String>) -> Response<Reply> {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = error(status, "a scripted fault");
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}

/// What a request shows to be let in.
struct Credential {
    secret: String,
    /// A user-session token rather than a key.
    session: bool,
}

impl Credential {
    /// Strict about the place: `/llm` and Replicate know `Authorization` only, reports want a user's token there.
    fn of(path: &str, headers: &HeaderMap, replicate: bool) -> Option<Self> {
        let text = |value: &HeaderValue| value.to_str().ok().map(str::trim).map(str::to_owned);
        let bearer = || {
            let value = text(headers.get(AUTHORIZATION)?)?;
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        };
        let session = path.starts_with("/v1/reports/");
        let secret = if session {
            bearer().filter(|token| !token.starts_with("cdt_"))
        } else if replicate || path.starts_with("/llm/") {
            bearer()
        } else {
            headers.get("x-api-key").and_then(text).or_else(bearer)
        };
        secret.filter(|secret| !secret.is_empty()).map(|secret| Self { secret, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(path: &str, headers: &[(&'static str, &'static str)]) -> Option<String> {
        let headers = headers.iter().map(|&(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value)) //
        });
        Credential::of(path, &headers.collect(), false).map(|credential| credential.secret)
    }

    #[test]
    fn each_part_of_the_api_has_its_credential() {
        let (key, bearer) = (("x-api-key", "cdt_k"), ("authorization", "Bearer cdt_b"));
        assert_eq!(shown("/v1/predictions", &[key]).as_deref(), Some("cdt_k"));
        assert_eq!(shown("/v1/predictions", &[bearer]).as_deref(), Some("cdt_b"));
        assert_eq!(shown("/llm/openai/v1/models", &[bearer]).as_deref(), Some("cdt_b"));
        assert_eq!(shown("/v1/reports/generate", &[("authorization", "Bearer user")]).as_deref(), Some("user"));
        assert_eq!(shown("/llm/anthropic/v1/messages", &[key]), None);
        assert_eq!(shown("/v1/reports/generate", &[bearer]), None);
        assert_eq!(shown("/v1/predictions", &[("authorization", "Basic cdt_b")]), None);
        assert_eq!(shown("/v1/predictions", &[("x-api-key", "")]), None);
    }
}
