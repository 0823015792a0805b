//! Where a webhook may go: what was allowed by name, what the upstream reaches by itself, and never a port of our own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use http::Uri;

use crate::config::Allow;

/// The URL of a webhook, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) uri: Uri,
    /// Lower case, without brackets and a dot at its end.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) https: bool,
}

/// What is to be done with a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The operator allowed it.
    Allowed,
    /// The upstream can reach it, as far as its name tells.
    Public,
    /// Neither: this machine, a private network, a name of a cluster.
    Local,
}

impl Target {
    /// `None` where it is no `http` or `https` URL, or has a user in it.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.trim().split('#').next()?.parse().ok()?;
        let https = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = uri.authority()?.as_str();
        let host = uri.host()?.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase();
        let default = if https { 443 } else { 80 };
        let port = if authority.ends_with(|last: char| last.is_ascii_digit()) || authority.ends_with(':') {
            uri.port_u16().unwrap_or(default)
        } else {
            default
        };
        let has_user = authority.contains('@');
        (!host.is_empty() && port != 0 && !has_user).then_some(Self { uri, host, port, https })
    }

    /// What the deliveries of one receiver share.
    pub(crate) fn receiver(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// By name alone; what the name resolves to is checked when it is delivered.
    pub(crate) fn place(&self, allow: &[Allow]) -> Place {
        let allowed = |entry: &Allow| entry.host == self.host && entry.port.is_none_or(|port| port == self.port);
        if allow.iter().any(allowed) {
            Place::Allowed
        } else if is_local_name(&self.host) {
            Place::Local
        } else {
            Place::Public
        }
    }
}

fn is_local_name(host: &str) -> bool {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return !is_public(ip);
    }
    let suffixes = [".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa"];
    !host.contains('.') || suffixes.iter().any(|suffix| host.ends_with(suffix))
}

/// Whether the upstream could reach an address. Not all of IANA's registries, but all that lead into a network of one's own.
pub(crate) fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let shared = a == 100 && (64..128).contains(&b); // RFC 6598
    let benchmarking = a == 198 && (b == 18 || b == 19); // RFC 2544
    let protocols = a == 192 && b == 0 && c == 0; // RFC 6890
    let own = ip.is_private() || ip.is_loopback() || ip.is_link_local() || a == 0;
    !(own || shared || benchmarking || protocols || ip.is_documentation() || a >= 224)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [first, second, ..] = ip.segments();
    // What carries an IPv4 address inside: NAT64 (RFC 6052), 6to4 (RFC 3056).
    let inner = match (first, second) {
        (0x64, 0xff9b) => Some(ip.segments()[6..].to_vec()),
        (0x2002, _) => Some(ip.segments()[1..3].to_vec()),
        _ => None,
    };
    if let Some(inner) = inner {
        let bits = u32::from(inner[0]) << 16 | u32::from(inner[1]);
        return is_public_v4(Ipv4Addr::from(bits));
    }
    // 2000::/3 is all that is given out; 2001:db8::/32 is for documents.
    (0x2000..0x4000).contains(&first) && !(first == 0x2001 && second == 0x0db8)
}

/// Whether a connection to `address` would reach one of the ports we listen on.
pub(crate) fn is_ours(address: SocketAddr, ours: &[SocketAddr]) -> bool {
    let ip = address.ip().to_canonical();
    ours.iter().filter(|own| own.port() == address.port()).any(|own| {
        let listening = own.ip().to_canonical();
        let everywhere = listening.is_unspecified();
        // An unspecified address connects to this machine; on an unspecified one every address of this machine is listened on.
        listening == ip || ip.is_unspecified() || (everywhere && is_of_this_machine(ip))
    })
}

/// A socket can be bound to the addresses of this machine only.
fn is_of_this_machine(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow() -> Vec<Allow> {
        let entry = |host: &str, port| Allow { host: host.into(), port };
        vec![
            entry("localhost", Some(3000)),
            entry("127.0.0.1", None),
            entry("my-svc.default.svc", Some(8080)),
            entry("::1", Some(80)),
        ]
    }

    fn place(url: &str) -> Option<Place> {
        Target::parse(url).map(|target| target.place(&allow()))
    }

    #[test]
    fn only_what_was_allowed_with_its_port_is_ours_to_deliver() {
        for url in [
            "http://localhost:3000/hook",
            "https://LOCALHOST:3000",
            "http://localhost.:3000/",
            "http://127.0.0.1:1/x?y=z#f",
            "http://my-svc.default.svc:8080/",
            "http://[::1]/",
        ] {
            assert_eq!(place(url), Some(Place::Allowed), "{url}");
        }
        for url in [
            "http://localhost/",
            "http://localhost:3001/",
            "http://127.0.0.2/",
            "http://my-svc.default.svc/",
            "http://other/",
            "http://10.0.0.7:3000/",
            "http://192.168.1.1/",
            "http://169.254.169.254/latest",
            "http://[::1]:81/",
            "http://[fd00::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://printer.local/",
            "http://100.64.0.1/",
        ] {
            assert_eq!(place(url), Some(Place::Local), "{url}");
        }
        for url in ["https://example.com/hook", "http://example.com", "https://8.8.8.8/", "https://[2606:4700::1111]/"]
        {
            assert_eq!(place(url), Some(Place::Public), "{url}");
        }
    }

    #[test]
    fn what_is_no_target_is_left_alone() {
        for url in [
            "",
            "localhost:3000",
            "/hook",
            "ftp://localhost:3000/",
            "http://",
            "http://u:p@localhost:3000/",
            "http://localhost:0/",
        ] {
            assert_eq!(Target::parse(url), None, "{url}");
        }
    }

    #[test]
    fn addresses_that_hide_a_private_one_are_private() {
        for ip in [
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "::ffff:127.0.0.1",
            "::",
            "fe80::1",
            "ff02::1",
            "2001:db8::1",
            "0.0.0.0",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
        assert!(is_public("64:ff9b::808:808".parse().unwrap()) && is_public("1.1.1.1".parse().unwrap()));
    }

    #[test]
    fn our_own_ports_are_known_by_any_of_their_addresses() {
        let ours: Vec<SocketAddr> = vec!["127.0.0.1:8787".parse().unwrap(), "0.0.0.0:8789".parse().unwrap()];
        let ours = |address: &str| is_ours(address.parse().unwrap(), &ours);
        assert!(ours("127.0.0.1:8787") && ours("0.0.0.0:8787") && ours("[::ffff:127.0.0.1]:8787") && ours("[::]:8787"));
        assert!(ours("127.0.0.1:8789") && ours("127.3.2.1:8789") && ours("[::1]:8789"));
        assert!(!ours("127.0.0.1:8788") && !ours("127.0.0.2:8787") && !ours("192.0.2.1:8789"));
    }
}
