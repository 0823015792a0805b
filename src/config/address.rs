//! Texts that name a place on the network: listen addresses, URLs, hosts, origins.

use std::net::{IpAddr, SocketAddr};

use http::Uri;

use super::reader::Complaint;

/// An IP address and port to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Complaint> {
    text.parse().map_err(|_| {
        let complaint = Complaint::new("must be an IP address and a port, like \"127.0.0.1:8787\"");
        if text.parse::<IpAddr>().is_ok() {
            return complaint.help("add the port after a colon; an IPv6 address stands in brackets: \"[::1]:8787\"");
        }
        let port = text.trim_start_matches("localhost").trim_start_matches(':');
        if port.parse::<u16>().is_ok() && !text.contains('.') {
            complaint.help(format!("write \"127.0.0.1:{port}\" for this machine only"))
        } else {
            complaint
        }
    })
}

/// Scheme, authority and an optional path prefix; the slash at its end is dropped.
pub(super) fn url(text: &str) -> Result<Uri, Complaint> {
    let lower = text.to_ascii_lowercase();
    if !lower.starts_with("http://") && !lower.starts_with("https://") {
        return Err(Complaint::new("must start with https:// or http://"));
    }
    if text.contains(['?', '#']) {
        return Err(Complaint::new("must not have a query or fragment").help("leave out what follows ? or #"));
    }
    let uri: Uri = text.parse().map_err(|_| Complaint::new("is not a valid URL"))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(Complaint::new("must not hold a user or password").help("the key goes under [accounts]"));
    }
    let host = uri.host().unwrap_or_default();
    if host.is_empty() || host == "[]" {
        return Err(Complaint::new("must name a host"));
    }
    let port = authority.strip_prefix(host).unwrap_or_default();
    if !port.is_empty() && uri.port_u16().is_none_or(|port| port == 0) {
        return Err(Complaint::new("has a port that is not between 1 and 65535"));
    }
    let scheme = uri.scheme_str().unwrap_or("https");
    let path = uri.path().trim_end_matches('/');
    format!("{scheme}://{}{path}", authority.to_ascii_lowercase())
        .parse()
        .map_err(|_| Complaint::new("is not a valid URL"))
}

/// Whether a URL stays on this machine.
pub(super) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A host name as it stands in `Host`, lower case, without a port.
pub(super) fn host(text: &str) -> Result<String, Complaint> {
    let bare = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let ipv6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if bare || ipv6.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) {
        return Ok(text.to_ascii_lowercase());
    }
    let complaint = Complaint::new("must be a host name without scheme, port and path");
    Err(if text.contains('*') {
        complaint.help("there are no wildcards; list each host")
    } else {
        complaint.help("for example \"proxy.internal\"")
    })
}

/// A browser origin, lower case.
pub(super) fn origin(text: &str) -> Result<String, Complaint> {
    let wrong = || Complaint::new("must be an origin like \"http://localhost:3000\"");
    if matches!(text, "*" | "null") {
        return Err(wrong().help("list each origin; any page could spend the quota otherwise"));
    }
    let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
    let letters = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let scheme_fits = !scheme.is_empty() && scheme.chars().all(letters);
    let authority_fits = !authority.is_empty() && authority.parse::<http::uri::Authority>().is_ok();
    if scheme_fits && authority_fits && !authority.contains(['@', '*']) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(wrong().help("scheme, host and port only: no path, and no slash at the end"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_normalised() {
        let shown = |text: &str| url(text).ok().map(|uri| uri.to_string());
        assert_eq!(shown("https://API.core.today/").as_deref(), Some("https://api.core.today/"));
        assert_eq!(shown("http://127.0.0.1:9/base/").as_deref(), Some("http://127.0.0.1:9/base"));
        for wrong in [
            "",
            "api.core.today",
            "ftp://x",
            "https://",
            "https://u:p@x",
            "https://x?a",
            "https://x#a",
            "https://x:0",
            "https://x:99999",
        ] {
            assert!(url(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn loopback_is_this_machine() {
        for (text, expected) in [
            ("http://localhost:1", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:1", true),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(url(text).ok().map(|uri| is_loopback(&uri)), Some(expected), "{text}");
        }
    }

    #[test]
    fn origins_have_no_path() {
        assert_eq!(origin("HTTP://Localhost:3000").ok().as_deref(), Some("http://localhost:3000"));
        for wrong in ["*", "null", "localhost", "http://a/", "http://", "http://*.x"] {
            assert!(origin(wrong).is_err(), "{wrong:?}");
        }
    }
}
