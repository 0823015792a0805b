//! `sluicegate healthcheck`: for container health checks, where there is no curl.

use std::time::Duration;

use clap::Args;
use http::{Method, StatusCode, Uri};

use crate::config::Flags;

use super::{ConfigFlags, Failure, base_url, client, glance, say, start};

/// In all, whatever happens.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `healthcheck`.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    #[command(flatten)]
    flags: ConfigFlags,
    /// Ask this URL instead of the configured admin or health port
    #[arg(long, value_name = "URL")]
    url: Option<Uri>,
}

pub(super) async fn healthcheck(args: HealthArgs, above: ConfigFlags) -> Result<u8, Failure> {
    let url = match args.url {
        Some(url) => url,
        None => configured(args.flags.or(above))?,
    };
    let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return Err(Failure::failed(format_args!("{url} is not a URL like http://127.0.0.1:8788/readyz")));
    };
    let authority = match authority.port() {
        Some(_) => authority.to_string(),
        None => format!("{}:80", authority.host()),
    };
    let target = match url.path_and_query().map_or("/", |target| target.as_str()) {
        "/" => "/readyz",
        target => target,
    };
    let answer = tokio::time::timeout(PATIENCE, client::send(&authority, Method::GET, target, None)).await;
    let place = format!("http://{authority}{target}");
    match answer {
        Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
            say("ready");
            Ok(0)
        }
        Ok(Ok(answer)) => {
            let text = String::from_utf8_lossy(answer.body());
            let text = text.lines().next().unwrap_or_default().chars().take(200).collect::<String>();
            Err(Failure::failed(format_args!("{place} answers {}: {text}", answer.status())))
        }
        Ok(Err(error)) => Err(Failure::failed(format_args!("{place} does not answer: {error}"))),
        Err(_) => Err(Failure::failed(format_args!("{place} does not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// The port that the configuration names. Its mistakes are not ours to report: exit code 1 whatever they are.
fn configured(flags: Flags) -> Result<Uri, Failure> {
    let glance = glance::glance(&start::sources(flags)?).map_err(Failure::failed)?;
    let Some(address) = glance.admin.or(glance.health) else {
        return Err(Failure::failed("admin.listen and admin.health_listen are off: nothing to ask; see --url"));
    };
    if address.port() == 0 {
        return Err(Failure::failed("the configured port is 0, any free one: name it with --url"));
    }
    base_url(address).parse().map_err(Failure::failed)
}
