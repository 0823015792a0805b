//! `[webhooks]`.

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
    let allow = section.list("allow", |value| allow(text(value)?)).unwrap_or_default();
    let secret = secret(&section, context);
    if !allow.is_empty() && !section.has("secret") {
        context.warnings.push(
            "webhooks.allow is of no use without webhooks.secret: creates that name these targets are refused"
                .to_owned(),
        );
    }
    Webhooks { secret, inbound: inbound(&section, server, admin, context), allow }
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

#[cfg(test)]
mod tests {
    use super::*;

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
