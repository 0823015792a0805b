//! Pages of origins that `server.allowed_origins` names may read what they are answered (the Fetch standard's CORS protocol). All others
//! are refused by the guard, and no answer to them says anything of origins.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request};

use super::dispatch::Passed;
use super::known::METHODS;
use super::retry::{Reply, ReplyBody};

/// How long a browser need not ask again, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
/// Pages of the Internet ask for this before they call an address of this machine or network.
const ASKS_PRIVATE: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOWS_PRIVATE: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// The answer to a browser that asks whether a page may send something. It brings no token, so nobody is identified first; that the
/// origin is allowed, the guard has checked.
pub(crate) fn preflight(request: &request::Parts) -> Option<Passed> {
    let asked = &request.headers;
    let asks = request.method == Method::OPTIONS
        && asked.contains_key(header::ORIGIN)
        && asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    if !asks {
        return None;
    }
    let (mut head, ()) = Response::new(()).into_parts();
    head.status = StatusCode::NO_CONTENT;
    head.headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    head.headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    // By name: `*` would leave out Authorization.
    for names in asked.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        head.headers.append(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    if asked.contains_key(ASKS_PRIVATE) {
        head.headers.insert(ALLOWS_PRIVATE, HeaderValue::from_static("true"));
    }
    let reply = Reply { head, body: ReplyBody::Whole(Bytes::new()), attempts: 0, upstream: Duration::ZERO };
    Some(Passed { reply, charge: None, job: None, queued: Duration::ZERO, credits: None, meter: None })
}

/// Lets pages of `origin` read this answer, without cookies.
pub(crate) fn allow(headers: &mut HeaderMap, origin: &HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

/// What the upstream tells browsers is meant for pages that call it, not for those that call us.
pub(crate) fn is_theirs(name: &HeaderName) -> bool {
    name.as_str().starts_with("access-control-")
}
