//! `[webhooks]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::Uri;

use super::Context;
use super::accounts::{resolve, trusted};
use super::ports::address_or_off;
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::Place;
use crate::config::source::Source;
use crate::config::{Admin, Allow, Inbound, Secret, Server, Webhooks, address};
use crate::webhooks::signature::Keys;

pub(super) fn read(root: &Section<'_>, server: &Server, admin: &Admin, context: &mut Context<'_>) -> Webhooks {
    let section = root.section("webhooks");
    let inbound = inbound(&section, server, admin, context);
    let listening = inbound.as_ref().map(|inbound| inbound.listen);
    let ports =
        [("admin.listen", admin.listen), ("admin.health_listen", admin.health_listen), ("webhooks.listen", listening)];
    let ports = ports.into_iter().filter_map(|(key, address)| Some((key, address?)));
    let ours: Vec<_> = server.listen.iter().map(|address| ("server.listen", *address)).chain(ports).collect();
    let allow = section.list("allow", |value| allowed(allow(text(value)?)?, &ours)).unwrap_or_default();
    let secret = secret(&section, context);
    if !allow.is_empty() && !section.has("secret") {
        context.warnings.push(
            "webhooks.allow is of no use without webhooks.secret: creates that name these targets are refused"
                .to_owned(),
        );
    }
    Webhooks { secret, inbound, allow }
}

fn secret(section: &Section<'_>, context: &mut Context<'_>) -> Option<Secret> {
    let source = trusted(section.read("secret", Source::parse), section, "secret", context);
    let secret = resolve(source.as_ref(), section, "secret", context)?.secret;
    if Keys::new(&secret).is_none() {
        let complaint = Complaint::new("starts with whsec_, but what follows is not base64");
        section.complain("secret", complaint.help("use it as it was given to you, or without the prefix"));
    }
    Some(secret)
}

fn inbound(section: &Section<'_>, server: &Server, admin: &Admin, context: &Context<'_>) -> Option<Inbound> {
    let listen = section.read("listen", address_or_off).flatten();
    let public_url = public_url(section, context);
    let taken =
        |address| server.listen.contains(&address) || [admin.listen, admin.health_listen].contains(&Some(address));
    if let Some(address) = listen.filter(|address| address.port() != 0 && taken(*address)) {
        let complaint = Complaint::new(format!("= {address} is taken by another port of ours"));
        section.complain("listen", complaint);
    }
    match (listen, section.has("public_url")) {
        (Some(_), false) => {
            let help = "the https URL that leads to webhooks.listen, like \"https://hooks.example.com\"";
            section.demand("public_url", help);
        }
        (None, true) => {
            let complaint = Complaint::new("is of no use without webhooks.listen");
            section.complain("public_url", complaint.help("set webhooks.listen to the address that it leads to"));
        }
        _ => {}
    }
    if listen.is_some() {
        section.demand("secret", "what arrives is verified with it: write secret = { env = \"WEBHOOK_SECRET\" }");
    }
    Some(Inbound { listen: listen?, public_url: public_url? })
}

fn public_url(section: &Section<'_>, context: &Context<'_>) -> Option<Uri> {
    let url = section.read("public_url", |value| address::url(text(value)?))?;
    if address::is_loopback(&url) {
        return Some(url);
    }
    let found_by_chance = !context.trusted && matches!(section.place("public_url"), Place::File(_));
    if url.scheme_str() == Some("http") {
        section.complain("public_url", Complaint::new("must be https: results would travel in the clear"));
    } else if found_by_chance {
        let complaint =
            Complaint::new("would have results sent to another machine, and this file was only found in the directory");
        section.complain("public_url", complaint.help("if you trust the file, name it: --config proxy.toml"));
    }
    Some(url)
}

/// `host:port`; the port may be `*`.
fn allow(text: &str) -> Result<Allow, Complaint> {
    let wrong = || {
        let complaint = Complaint::new("must be a host and a port, like \"localhost:3000\"");
        complaint.help("every port is \"localhost:*\"; there are no wildcards in hosts, and no scheme or path")
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = address::host(host).map_err(|_| wrong())?;
    let port = match port {
        "*" => None,
        port => Some(port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong)?),
    };
    Ok(Allow { host: host.trim_matches(['[', ']']).to_owned(), port })
}

/// Nothing is ever delivered to a port of ours: an entry that names one is a mistake.
fn allowed(allow: Allow, ours: &[(&str, SocketAddr)]) -> Result<Allow, Complaint> {
    let leads_to = |address: &SocketAddr| allow.port == Some(address.port()) && reaches(&allow.host, address.ip());
    match ours.iter().find(|(_, address)| leads_to(address)) {
        Some((key, address)) => {
            let complaint = Complaint::new(format!(
                "names {address}, a port of this proxy ({key}), and nothing is delivered there"
            ));
            Err(complaint.help("name the port of the app that takes the webhooks"))
        }
        None => Ok(allow),
    }
}

/// Whether `host` leads to a port on `own`, as far as it can be told without asking the system: names other than `localhost` are not resolved.
fn reaches(host: &str, own: IpAddr) -> bool {
    let own = own.to_canonical();
    if let Ok(ip) = host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        // An unspecified address connects to this machine; on one, all of this machine's are listened on.
        return ip == own || ip.is_unspecified() || (own.is_unspecified() && ip.is_loopback());
    }
    let local = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    (host == "localhost" || host.ends_with(".localhost")) && (own.is_unspecified() || local.contains(&own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_of_ours_is_allowed_by_any_of_its_names() {
        let ours =
            [("server.listen", "127.0.0.1:8787"), ("admin.listen", "0.0.0.0:8788"), ("webhooks.listen", "[::1]:8790")];
        let ours = ours.map(|(key, address)| (key, address.parse().expect("an address")));
        let refused = |text: &str| allow(text).is_ok_and(|entry| allowed(entry, &ours).is_err());
        for text in [
            "localhost:8787",
            "LOCALHOST:8788",
            "app.localhost:8787",
            "127.0.0.1:8787",
            "[::ffff:127.0.0.1]:8787",
            "0.0.0.0:8787",
            "127.0.0.1:8788",
            "127.9.9.9:8788",
            "[::1]:8788",
            "localhost:8790",
            "[::1]:8790",
        ] {
            assert!(refused(text), "{text}");
        }
        for text in
            ["localhost:3000", "localhost:*", "127.0.0.2:8787", "127.0.0.1:8790", "my-svc:8787", "192.0.2.1:8788"]
        {
            assert!(allow(text).is_ok() && !refused(text), "{text}");
        }
    }

    #[test]
    fn a_port_is_always_said() {
        let read = |text: &str| allow(text).ok().map(|allow| (allow.host, allow.port));
        assert_eq!(read("localhost:3000"), Some(("localhost".into(), Some(3000))));
        assert_eq!(read("LocalHost:*"), Some(("localhost".into(), None)));
        assert_eq!(read("my-svc.default.svc:8080"), Some(("my-svc.default.svc".into(), Some(8080))));
        assert_eq!(read("[::1]:80"), Some(("::1".into(), Some(80))));
        for wrong in
            ["localhost", "*:80", "::1", "http://localhost:80", "localhost:80/x", "localhost:0", "a:65536", ":80", ""]
        {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
