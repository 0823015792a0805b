//! One question to the admin port of a running proxy.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, Uri};

use crate::config::Flags;

use super::{Failure, base_url, client, glance, start};

/// In all, whatever happens.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for `target` at this URL, else at the admin port that the configuration names. Also returns what was asked, for people.
pub(super) async fn ask(url: Option<Uri>, flags: Flags, target: &str) -> Result<(String, Response<Bytes>), Failure> {
    let url = match url {
        Some(url) => url,
        None => configured(flags)?,
    };
    let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(Failure::failed(format_args!("{url} is not a URL like http://127.0.0.1:8788")));
    };
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{}:80", authority.host()),
    };
    let place = format!("http://{authority}{target}");
    let answer = tokio::time::timeout(PATIENCE, client::send(&authority, Method::GET, target, None)).await;
    let answer = answer
        .map_err(|_| Failure::failed(format_args!("{place} does not answer within {} s", PATIENCE.as_secs())))?
        .map_err(|error| Failure::failed(format_args!("{place} does not answer: {error}")))?;
    Ok((place, answer))
}

/// The admin port that the configuration names.
fn configured(flags: Flags) -> Result<Uri, Failure> {
    let glance = glance::glance(&start::sources(flags)?).map_err(Failure::failed)?;
    let Some(address) = glance.admin else {
        return Err(Failure::failed("admin.listen is off: nothing to ask; see --url"));
    };
    if address.port() == 0 {
        return Err(Failure::failed("the configured port is 0, any free one: name it with --url"));
    }
    base_url(address).parse().map_err(Failure::failed)
}
