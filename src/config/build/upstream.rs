//! `[upstream]` and `[[routes]]`.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

use super::Context;
use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::{Place, quoted};
use crate::config::{Http2, Protocol, Route, RouteAuth, Upstream, address, suggest};
use crate::protocol;

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

pub(super) fn read(root: &Section<'_>, protocols: &[Arc<Protocol>], context: &Context<'_>) -> Upstream {
    let section = root.section("upstream");
    let protocol = section.read("protocol", |value| named(text(value)?, protocols));
    let protocol = protocol.or_else(|| protocols.first().cloned()).unwrap_or_else(|| Arc::new(protocol::core_today()));
    let url = url(&section, &protocol, context);
    let http2 = section.choice("http2", &[("auto", Http2::Auto), ("never", Http2::Never), ("always", Http2::Always)]);
    Upstream {
        url,
        protocol,
        connect_timeout: section.duration("connect_timeout", SECOND * 5, TIMEOUT),
        attempt_timeout: section.duration("attempt_timeout", SECOND * 60, TIMEOUT),
        total_timeout: section.duration("total_timeout", SECOND * 300, TIMEOUT),
        idle_timeout: section.duration("idle_timeout", SECOND * 300, TIMEOUT),
        http2: http2.unwrap_or(Http2::Auto),
    }
}

/// The protocol of this name.
fn named(name: &str, protocols: &[Arc<Protocol>]) -> Result<Arc<Protocol>, Complaint> {
    protocols.iter().find(|protocol| protocol.name == name).cloned().ok_or_else(|| {
        let names = protocols.iter().map(|protocol| protocol.name.as_str());
        let complaint = Complaint::new(format!(
            "names no protocol: {} is neither built in nor a table below [protocols]",
            quoted(name)
        ));
        complaint.maybe_help(suggest::help(name, names))
    })
}

/// The preset's own where none is written or it is not fit to be used.
fn url(section: &Section<'_>, protocol: &Protocol, context: &Context<'_>) -> Uri {
    let allow_plain = section.flag("allow_plain_http");
    let preset = protocol.url.map(Uri::from_static);
    if preset.is_none() && !section.has("url") {
        let complaint =
            Complaint::new(format!("is missing: the protocol {} has none of its own", quoted(&protocol.name)));
        section.complain("url", complaint.help("for example url = \"https://api.example.com\""));
    }
    let Some(url) = section.read("url", |value| address::url(text(value)?)) else {
        return preset.unwrap_or_default();
    };
    if address::is_loopback(&url) {
        return url;
    }
    // The one place where a file that nobody named may send a key.
    let preset = preset.as_ref().and_then(Uri::host);
    let plain = url.scheme_str() == Some("http");
    let found_by_chance = !context.trusted && matches!(section.place("url"), Place::File(_));
    if plain && !allow_plain {
        let complaint = Complaint::new("must be https: the API key would travel in the clear");
        section.complain("url", complaint.help("to another machine of your own, set upstream.allow_plain_http = true"));
    } else if found_by_chance && (plain || preset.is_none() || url.host() != preset) {
        let place = preset.map_or_else(|| "this machine".to_owned(), |host| format!("https://{host}"));
        let complaint = Complaint::new(format!(
            "would send the API key to another place than {place}, and this file was only found in the directory"
        ));
        section.complain("url", complaint.help("if you trust the file, name it: --config proxy.toml"));
    }
    url
}

pub(super) fn routes(root: &Section<'_>) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for section in root.items("routes") {
        let prefix = section.required("prefix", "for example prefix = \"/v1/reports/\"", prefix);
        let words = [("account", RouteAuth::Account), ("client", RouteAuth::Client)];
        section.demand("auth", "write auth = \"client\" or auth = \"account\"");
        let auth = section.choice("auth", &words);
        let (Some(prefix), Some(auth)) = (prefix, auth) else {
            continue;
        };
        if routes.iter().any(|earlier| earlier.prefix == prefix) {
            section
                .complain("prefix", Complaint::new("is the same as an earlier route's; the first that matches counts"));
        }
        routes.push(Route { prefix, auth });
    }
    routes
}

fn prefix(value: &Value) -> Result<String, Complaint> {
    let prefix = text(value)?;
    if !prefix.starts_with('/') {
        Err(Complaint::new("must start with a slash"))
    } else if prefix.bytes().all(|byte| byte.is_ascii_graphic()) && !prefix.contains(['?', '#']) {
        Ok(prefix.to_owned())
    } else {
        Err(Complaint::new("must be a path as it stands in a request: visible ASCII, no query"))
    }
}
