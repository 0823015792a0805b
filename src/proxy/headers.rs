//! Which fields go on, which end here (RFC 9110 §7.6.1), and which we add.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::protocol::{Protocol, wait};

use super::guard::length_of;
use super::values::Values;

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

/// Fields that are for us: every one that may carry a caller's credential, whatever the protocol, and two more.
fn is_for_us(name: &str) -> bool {
    matches!(
        name,
        "sluicegate-token"
            | "x-api-key"
            | "authorization"
            | "x-goog-api-key"
            | "proxy-authorization"
            | "sluicegate-max-wait"
            | "expect"
    )
}

/// Turns a caller's fields into those of the attempt. In one pass, where most values that change are put in the place of the old ones: a
/// look-up of each would hash each, and a removal moves others.
pub(crate) fn prepare(headers: &mut HeaderMap, out: Outbound<'_>) {
    let passes = out.key.is_none();
    let (mut hop_by_hop, mut goes, mut prefers) = (false, false, false);
    let (mut hosts, mut keys, mut owns) = (0_u32, 0_u32, 0_u32);
    for (name, value) in headers.iter_mut() {
        match name.as_str() {
            "host" => {
                *value = out.host.clone();
                hosts += 1;
            }
            // Nobody shall take 010 for eight.
            "content-length" if value.len() > 1 && value.as_bytes().starts_with(b"0") => {
                if let Some(length) = length_of(value) {
                    *value = HeaderValue::from(length);
                }
            }
            "authorization" if passes => owns += 1,
            "prefer" => prefers = true,
            text if is_hop_by_hop(text) => hop_by_hop = true,
            text => match &out.key {
                Some((key, secret)) if key == name => {
                    *value = secret.clone();
                    keys += 1;
                }
                _ => goes |= is_for_us(text) || out.protocol.auths().any(|auth| auth.name() == name),
            },
        }
    }
    if hop_by_hop {
        // `Connection` may have named what has just been put in.
        strip_hop_by_hop(headers);
        (hosts, keys) = (0, 0);
    }
    if owns > 1
        && let Some(own) = headers.remove(header::AUTHORIZATION)
    {
        headers.insert(header::AUTHORIZATION, own);
    }
    if goes {
        let key = out.key.as_ref().map_or(&header::AUTHORIZATION, |(key, _)| key);
        remove_where(headers, |name| {
            name != key && (is_for_us(name.as_str()) || out.protocol.auths().any(|auth| auth.name() == name))
        });
    }
    if prefers && !out.protocol.prefer_wait {
        wait::withdraw(headers);
    }
    out.protocol.dress(headers);
    if hosts != 1 {
        headers.insert(header::HOST, out.host.clone());
    }
    if out.plain_answer {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if let Some(key) = out.idempotency_key {
        headers.entry(IDEMPOTENCY_KEY).or_insert(key);
    }
    if let Some((name, value)) = out.key
        && keys != 1
    {
        headers.insert(name, value);
    }
}

/// 16 random bytes in hex: request ids and idempotency keys.
pub(crate) fn random_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = [0; 32];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    Values::new().bytes(&hex).take()
}

/// A look-up that hashes nothing: cheaper than `get` among the few fields that a request has.
pub(crate) fn find<'h>(headers: &'h HeaderMap, wanted: &HeaderName) -> Option<&'h HeaderValue> {
    headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// The caller's request id if it is fit to be logged, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let fit = |id: &&HeaderValue| (1..=128).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    find(headers, &REQUEST_ID).filter(fit).cloned().unwrap_or_else(random_id)
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
    fn what_comes_twice_goes_on_once() {
        let twice = [("authorization", "Bearer one"), ("authorization", "Bearer two"), ("host", "a"), ("host", "b")];
        for key in [None, Some("key")] {
            let headers = prepared(&twice, key);
            assert_eq!(headers.get_all("host").iter().collect::<Vec<_>>(), ["api.example.test"]);
            let own: Vec<_> = headers.get_all("authorization").iter().collect();
            assert_eq!(own, if key.is_some() { vec![] } else { vec!["Bearer one"] });
        }
        let headers =
            prepared(&[("x-api-key", "a"), ("x-api-key", "b"), ("connection", "host, x-api-key")], Some("key"));
        assert_eq!(headers.get_all("x-api-key").iter().collect::<Vec<_>>(), ["key"]);
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
