//! Which fields go on, which end here (RFC 9110 §7.6.1), and which we add.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::protocol::{Protocol, wait};

use super::guard::length_of;
use super::identify::CREDENTIALS;

/// How long a caller is willing to wait in the queue: `10s`, `1m30s`.
pub(crate) const MAX_WAIT: HeaderName = HeaderName::from_static("sluicegate-max-wait");
/// Names a request in logs of both sides.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What became of a create, in terms of money.
pub(crate) const CHARGE: HeaderName = HeaderName::from_static("sluicegate-charge");
/// All attempts of one call carry the same.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that `Prefer: wait` was followed.
pub(crate) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Fields of one connection. Compared by name in one pass: a look-up of each would hash each.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Removes fields of one connection, and those that `Connection` names; but Host and length cannot be named away.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if !headers.keys().any(|name| is_hop_by_hop(name.as_str())) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        // Mostly all there is: `close` is no field's name, `keep-alive` goes anyway.
        .filter(|name| !matches!(*name, b"keep-alive" | b"close"))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .filter(|name| *name != header::HOST && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    remove_where(headers, |name| is_hop_by_hop(name.as_str()));
}

/// Removes the fields whose names are to go.
pub(crate) fn remove_where(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    // Few go, mostly one or none; each removal moves others.
    while let Some(name) = headers.keys().find(|name| goes(name)).cloned() {
        headers.remove(name);
    }
}

/// What kind of request the fields are prepared for.
pub(crate) struct Outbound<'a> {
    /// The upstream's authority.
    pub(crate) host: &'a HeaderValue,
    pub(crate) protocol: &'a Protocol,
    /// The account's key; `None` where the caller's own `Authorization` passes.
    pub(crate) key: Option<(HeaderName, HeaderValue)>,
    /// The answer will be read by us: it must not come compressed.
    pub(crate) plain_answer: bool,
    /// For creates: the key that all attempts carry, unless the caller brought one.
    pub(crate) idempotency_key: Option<HeaderValue>,
}

/// Turns a caller's fields into those of the attempt.
pub(crate) fn prepare(headers: &mut HeaderMap, out: Outbound<'_>) {
    strip_hop_by_hop(headers);
    let own = if out.key.is_none() { headers.remove(header::AUTHORIZATION) } else { None };
    remove_where(headers, |name| {
        CREDENTIALS.contains(name)
            || out.protocol.auths().any(|auth| auth.name() == name)
            || *name == MAX_WAIT
            || *name == header::EXPECT
    });
    if !out.protocol.prefer_wait {
        wait::withdraw(headers);
    }
    out.protocol.dress(headers);
    headers.insert(header::HOST, out.host.clone());
    if let Some(length) = headers.get(header::CONTENT_LENGTH)
        && length.len() > 1
        && length.as_bytes().starts_with(b"0")
        && let Some(length) = length_of(length)
    {
        // Nobody shall take 010 for eight.
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if out.plain_answer {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Some(key) = out.idempotency_key {
        headers.entry(IDEMPOTENCY_KEY).or_insert(key);
    }
    match (out.key, own) {
        (Some((name, value)), _) => drop(headers.insert(name, value)),
        (None, Some(own)) => drop(headers.insert(header::AUTHORIZATION, own)),
        (None, None) => {}
    }
}

/// 16 random bytes in hex: request ids and idempotency keys.
pub(crate) fn random_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = [0; 32];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    HeaderValue::from_bytes(&hex).unwrap_or(HeaderValue::from_static("0"))
}

/// The caller's request id if it is fit to be logged, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    headers.get(REQUEST_ID).filter(fit).cloned().unwrap_or_else(random_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn prepared(pairs: &[(&'static str, &'static str)], key: Option<&'static str>) -> HeaderMap {
        let mut headers = map(pairs);
        let host = HeaderValue::from_static("api.example.test");
        let key = key.map(|key| (HeaderName::from_static("x-api-key"), HeaderValue::from_static(key)));
        let protocol = &crate::protocol::core_today();
        prepare(&mut headers, Outbound { host: &host, protocol, key, plain_answer: true, idempotency_key: None });
        headers
    }

    #[test]
    fn every_credential_of_the_caller_is_replaced_by_the_key() {
        let brought = [
            ("host", "localhost:8787"),
            ("authorization", "Bearer sk-placeholder"),
            ("x-api-key", "a"),
            ("x-api-key", "b"),
            ("x-goog-api-key", "c"),
            ("sluicegate-token", "d"),
            ("accept", "*/*"),
        ];
        let expected = map(&[
            ("host", "api.example.test"),
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            ("x-api-key", "key"),
        ]);
        assert_eq!(prepared(&brought, Some("key")), expected);
    }

    #[test]
    fn a_route_with_the_caller_s_own_authorization_keeps_only_that() {
        let headers = prepared(&[("authorization", "Bearer session"), ("x-api-key", "a")], None);
        assert_eq!(headers["authorization"], "Bearer session");
        assert!(!headers.contains_key("x-api-key"));
    }

    #[test]
    fn fields_of_one_connection_end_here() {
        let mut headers = map(&[
            ("connection", "close, X-Hop, host, content-length, x-api-key"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("host", "h"),
            ("content-length", "3"),
            ("x-end", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "h"), ("content-length", "3"), ("x-end", "1")]));
        // Bytes that are no name hide no name beside them.
        let mut headers = map(&[("x-hop", "1")]);
        headers.insert(header::CONNECTION, HeaderValue::from_bytes(b"\xff, x-hop").expect("a value"));
        strip_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn a_length_goes_on_in_one_form() {
        assert_eq!(prepared(&[("content-length", "010")], None)["content-length"], "10");
        assert_eq!(prepared(&[("content-length", "0")], None)["content-length"], "0");
    }

    #[test]
    fn the_key_cannot_be_named_away() {
        let headers = prepared(&[("connection", "x-api-key, idempotency-key")], Some("key"));
        assert_eq!(headers["x-api-key"], "key");
    }

    #[test]
    fn request_ids_are_kept_only_if_fit() {
        assert_eq!(request_id(&map(&[("x-request-id", "abc-1")])), "abc-1");
        assert_eq!(request_id(&map(&[("x-request-id", "with space")])).len(), 32);
        assert_eq!(request_id(&HeaderMap::new()).len(), 32);
    }
}
