//! Header-only checks before anything else: method, target, size, Host, Origin. They cost no quota and send nothing.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue, Method, Version, header, request};

use crate::config;

use super::rejection::Rejection;

/// Longest request target, in bytes.
pub(crate) const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Longest request head (names and values), in bytes.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// What the data or admin port answers for.
#[derive(Debug)]
pub(crate) struct Guard {
    hosts: Vec<String>,
    any_address: bool,
    origins: Vec<String>,
    max_body_bytes: u64,
}

impl Guard {
    /// For ports listening on `addresses`.
    pub(crate) fn new(server: &config::Server, addresses: &[SocketAddr]) -> Self {
        let mut hosts: Vec<String> = server.allowed_hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        hosts.extend(addresses.iter().map(|address| address.ip().to_string()));
        Self {
            hosts,
            // A name can be rebound to us by DNS, an address cannot.
            any_address: addresses.iter().any(|address| address.ip().is_unspecified()),
            origins: server.allowed_origins.clone(),
            max_body_bytes: server.max_body_bytes,
        }
    }

    /// Refuses what must not be forwarded.
    pub(crate) fn check(&self, request: &request::Parts) -> Result<(), Rejection> {
        if request.method == Method::CONNECT {
            return Err(Rejection::MethodRefused("CONNECT"));
        }
        if request.method == Method::TRACE {
            return Err(Rejection::MethodRefused("TRACE"));
        }
        let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target > MAX_TARGET_BYTES {
            return Err(Rejection::TargetTooLong { limit_bytes: MAX_TARGET_BYTES });
        }
        let fields = Fields::of(&request.headers);
        if fields.bytes > MAX_HEAD_BYTES {
            return Err(Rejection::HeadTooLarge { limit_bytes: MAX_HEAD_BYTES });
        }
        self.check_host(request, &fields)?;
        self.check_origin(&fields)?;
        if fields.bad_coding {
            return Err(Rejection::BadTransferCoding);
        }
        if fields.bad_expectation {
            return Err(Rejection::BadRequest("an expectation other than 100-continue"));
        }
        // HTTP/1 has been checked before; what is for the server as a whole is for us (RFC 9110 §9.3.7).
        if request.uri.path() == "*" && request.method != Method::OPTIONS {
            return Err(Rejection::BadRequest("the target * is for OPTIONS only"));
        }
        match fields.length.and_then(length_of) {
            Some(length) if length > self.max_body_bytes => {
                Err(Rejection::BodyTooLarge { limit_bytes: self.max_body_bytes })
            }
            _ => Ok(()),
        }
    }

    fn check_host(&self, request: &request::Parts, fields: &Fields<'_>) -> Result<(), Rejection> {
        let named = fields.host.map(|host| host.to_str().map_err(|_| Rejection::MisdirectedHost)).transpose()?;
        if fields.hosts > 1 {
            return Err(Rejection::BadRequest("more than one Host field"));
        }
        // HTTP/2 and absolute-form targets carry the authority in the target (RFC 9113 §8.3.1, RFC 9112 §3.2.2).
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        let host = match (authority, named) {
            (Some(authority), Some(named)) if !authority.eq_ignore_ascii_case(named) => {
                return Err(Rejection::MisdirectedHost);
            }
            (Some(host), _) | (None, Some(host)) => host,
            // No browser sends such a thing, so that no page can be behind it.
            (None, None) if request.version == Version::HTTP_10 => return Ok(()),
            (None, None) => return Err(Rejection::BadRequest("no Host field")),
        };
        if self.answers_for(host) { Ok(()) } else { Err(Rejection::MisdirectedHost) }
    }

    fn answers_for(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        if let Ok(address) = name.parse::<IpAddr>()
            && (address.is_loopback() || self.any_address)
        {
            return true;
        }
        self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }

    /// The origin of the page that calls, if it is an allowed one.
    pub(crate) fn allowed_origin<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        if self.origins.is_empty() {
            return None;
        }
        headers.get(header::ORIGIN).filter(|origin| self.allows(origin))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        origin.to_str().is_ok_and(|text| self.origins.iter().any(|known| known.eq_ignore_ascii_case(text)))
    }

    /// A page in a browser may not spend the key, unless its origin was allowed by name.
    fn check_origin(&self, fields: &Fields<'_>) -> Result<(), Rejection> {
        match fields.origin {
            Some(origin) if self.allows(origin) => Ok(()),
            Some(_) => Err(Rejection::ForbiddenOrigin),
            // Browsers that leave Origin out (plain navigation, images) still name the relation.
            None => match fields.fetch_site.map(HeaderValue::as_bytes) {
                Some(b"cross-site" | b"same-site") => Err(Rejection::ForbiddenOrigin),
                _ => Ok(()),
            },
        }
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` → the host; `None` where it is none of these.
fn without_port(host: &str) -> Option<&str> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (name, rest) = rest.split_once(']')?;
        (name, rest.strip_prefix(':').or(rest.is_empty().then_some("")))
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, Some("")),
        }
    };
    let port = port?;
    (!name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

/// The fields that are judged, found in one pass: a look-up of each would hash each. Of those that come more than once, the first.
#[derive(Default)]
struct Fields<'h> {
    /// Names, values and what stands between them.
    bytes: usize,
    host: Option<&'h HeaderValue>,
    hosts: u32,
    origin: Option<&'h HeaderValue>,
    fetch_site: Option<&'h HeaderValue>,
    length: Option<&'h HeaderValue>,
    codings: u32,
    bad_coding: bool,
    bad_expectation: bool,
}

impl<'h> Fields<'h> {
    fn of(headers: &'h HeaderMap) -> Self {
        let mut fields = Self::default();
        for (name, value) in headers {
            let name = name.as_str();
            fields.bytes += name.len() + value.len() + 4;
            match name {
                "host" => {
                    fields.hosts += 1;
                    fields.host.get_or_insert(value);
                }
                "origin" => _ = fields.origin.get_or_insert(value),
                "sec-fetch-site" => _ = fields.fetch_site.get_or_insert(value),
                "content-length" => _ = fields.length.get_or_insert(value),
                "transfer-encoding" => {
                    fields.codings += 1;
                    let chunked = value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
                    fields.bad_coding |= !chunked || fields.codings > 1;
                }
                // RFC 9110 §10.1.1: no other expectation is defined.
                "expect" => fields.bad_expectation |= !value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
        }
        fields
    }
}

/// The declared length; lengths that are no number or disagree have been refused before.
pub(crate) fn length_of(value: &HeaderValue) -> Option<u64> {
    value.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    fn guard() -> Guard {
        let server = config::Server {
            listen: vec![],
            allow_open: false,
            threads: None,
            allowed_hosts: vec!["proxy.internal".into()],
            allowed_origins: vec!["http://localhost:3000".into()],
            max_body_bytes: 100,
            buffer_bytes: 100,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            reload_interval: Duration::ZERO,
            max_connections: std::num::NonZeroUsize::MIN,
        };
        Guard::new(&server, &["192.0.2.7:8787".parse().expect("an address")])
    }

    fn check(build: impl FnOnce(http::request::Builder) -> http::request::Builder) -> Result<(), Rejection> {
        let (parts, ()) = build(Request::builder().uri("/v1/x")).body(()).expect("a request").into_parts();
        guard().check(&parts)
    }

    #[test]
    fn answers_for_loopback_listen_address_and_allowed_names() {
        for host in
            ["localhost", "LOCALHOST:1", "127.0.0.1:8787", "127.9.9.9", "[::1]:8787", "192.0.2.7", "Proxy.Internal:80"]
        {
            assert_eq!(check(|r| r.header("host", host)), Ok(()), "{host}");
        }
        for host in [
            "evil.test",
            "localhost.evil.test",
            "192.0.2.8",
            "",
            "[::1",
            "localhost:x",
            "127.0.0.1.evil.test",
            "a@localhost",
        ] {
            assert_eq!(check(|r| r.header("host", host)), Err(Rejection::MisdirectedHost), "{host}");
        }
        assert!(matches!(check(|r| r), Err(Rejection::BadRequest(_))));
        assert_eq!(check(|r| r.version(Version::HTTP_10)), Ok(()));
        assert_eq!(check(|r| r.version(Version::HTTP_10).header("host", "evil.test")), Err(Rejection::MisdirectedHost));
        assert!(matches!(
            check(|r| r.header("host", "localhost").header("host", "localhost")),
            Err(Rejection::BadRequest(_))
        ));
    }

    #[test]
    fn an_absolute_target_must_agree_with_host() {
        assert_eq!(check(|r| r.uri("http://localhost:1/x").header("host", "localhost:1")), Ok(()));
        assert_eq!(
            check(|r| r.uri("http://localhost:1/x").header("host", "localhost:2")),
            Err(Rejection::MisdirectedHost)
        );
        assert_eq!(check(|r| r.uri("http://evil.test/x")), Err(Rejection::MisdirectedHost));
    }

    #[test]
    fn pages_in_browsers_are_refused_unless_allowed() {
        let host = |r: http::request::Builder| r.header("host", "localhost");
        assert_eq!(check(|r| host(r).header("origin", "http://localhost:3000")), Ok(()));
        for origin in ["http://evil.test", "null", "http://localhost:3001"] {
            assert_eq!(check(|r| host(r).header("origin", origin)), Err(Rejection::ForbiddenOrigin), "{origin}");
        }
        assert_eq!(check(|r| host(r).header("sec-fetch-site", "cross-site")), Err(Rejection::ForbiddenOrigin));
        assert_eq!(check(|r| host(r).header("sec-fetch-site", "none")), Ok(()));
    }

    #[test]
    fn methods_sizes_and_codings_are_bounded() {
        let host = |r: http::request::Builder| r.header("host", "localhost");
        assert_eq!(check(|r| host(r).method("TRACE")), Err(Rejection::MethodRefused("TRACE")));
        assert_eq!(
            check(|r| host(r).header("content-length", "101")),
            Err(Rejection::BodyTooLarge { limit_bytes: 100 })
        );
        let long = format!("/{}", "x".repeat(MAX_TARGET_BYTES));
        assert!(matches!(check(|r| host(r).uri(long)), Err(Rejection::TargetTooLong { .. })));
        assert!(matches!(
            check(|r| host(r).header("x", "y".repeat(MAX_HEAD_BYTES))),
            Err(Rejection::HeadTooLarge { .. })
        ));
        assert_eq!(check(|r| host(r).header("transfer-encoding", "gzip, chunked")), Err(Rejection::BadTransferCoding));
        assert_eq!(check(|r| host(r).header("transfer-encoding", "Chunked")), Ok(()));
        assert_eq!(check(|r| host(r).header("expect", "100-Continue")), Ok(()));
        assert!(matches!(check(|r| host(r).header("expect", "miracles")), Err(Rejection::BadRequest(_))));
        assert_eq!(check(|r| host(r).method("OPTIONS").uri("*")), Ok(()));
        assert!(matches!(check(|r| host(r).uri("*")), Err(Rejection::BadRequest(_))));
    }
}
