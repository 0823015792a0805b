//! `[upstream]` and `[[routes]]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::Uri;

use super::Context;
use crate::config::document::Value;
use crate::config::reader::{Complaint, Section, text};
use crate::config::report::Place;
use crate::config::{Http2, Protocol, Route, RouteAuth, Upstream, address};

/// The host of the preset `core.today`, the one place where a file that nobody named may send a key.
const PRESET: &str = "api.core.today";

const SECOND: Duration = Duration::from_secs(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(86_400);

pub(super) fn read(root: &Section<'_>, context: &Context<'_>) -> Upstream {
    let section = root.section("upstream");
    let url = url(&section, context);
    let protocol = section.choice("protocol", &[("core.today", Protocol::CoreToday)], &["replicate"]);
    let http2 =
        section.choice("http2", &[("auto", Http2::Auto), ("never", Http2::Never), ("always", Http2::Always)], &[]);
    Upstream {
        url: url.unwrap_or_else(|| Uri::from_static("https://api.core.today")),
        protocol: protocol.unwrap_or(Protocol::CoreToday),
        connect_timeout: section.duration("connect_timeout", SECOND * 5, TIMEOUT),
        attempt_timeout: section.duration("attempt_timeout", SECOND * 60, TIMEOUT),
        total_timeout: section.duration("total_timeout", SECOND * 300, TIMEOUT),
        idle_timeout: section.duration("idle_timeout", SECOND * 300, TIMEOUT),
        http2: http2.unwrap_or(Http2::Auto),
    }
}

/// `None`: not there, or not fit to be used.
fn url(section: &Section<'_>, context: &Context<'_>) -> Option<Uri> {
    let allow_plain = section.flag("allow_plain_http");
    let url = section.read("url", |value| address::url(text(value)?))?;
    if address::is_loopback(&url) {
        return Some(url);
    }
    let plain = url.scheme_str() == Some("http");
    let found_by_chance = !context.trusted && matches!(section.place("url"), Place::File(_));
    if plain && !allow_plain {
        let complaint = Complaint::new("must be https: the API key would travel in the clear");
        section.complain("url", complaint.help("to another machine of your own, set upstream.allow_plain_http = true"));
    } else if found_by_chance && (plain || url.host() != Some(PRESET)) {
        let complaint = Complaint::new(format!(
            "would send the API key to another place than https://{PRESET}, and this file was only found in the directory"
        ));
        section.complain("url", complaint.help("if you trust the file, name it: --config proxy.toml"));
    }
    Some(url)
}

pub(super) fn routes(root: &Section<'_>) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for section in root.items("routes") {
        let prefix = section.required("prefix", "for example prefix = \"/v1/reports/\"", prefix);
        let words = [("account", RouteAuth::Account), ("client", RouteAuth::Client)];
        section.demand("auth", "write auth = \"client\" or auth = \"account\"");
        let auth = section.choice("auth", &words, &[]);
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
