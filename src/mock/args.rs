//! `sluicegate mock`: the mock on the command line.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::counter::Counter;
use super::options::{Dialect, Options, RunTime, parse_duration};
use super::{KeyStats, Mock};

/// An offline stand-in for the API, with its limits, jobs, webhooks, streams and faults
#[derive(Debug, Clone, clap::Args)]
pub struct MockArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// Requests per window; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub requests: u32,
    /// Length of the window
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = positive)]
    pub per: Duration,
    /// Unfinished jobs allowed at once; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub jobs: u32,
    /// How long a job runs, or a range such as 1s..3s
    #[arg(long, value_name = "TIME", default_value = "2.5s")]
    pub run_time: RunTime,
    /// Run time of one model, such as flux-pro=8s..12s; may be repeated
    #[arg(long, value_name = "MODEL=TIME", value_parser = model_run_time)]
    pub model_run_time: Vec<(String, RunTime)>,
    /// How requests are counted: fixed, anchored, sliding, token-bucket, token-bucket:CAPACITY, two-bucket:LIMIT/WINDOW
    #[arg(long, value_name = "KIND", default_value = "sliding")]
    pub counter: Counter,
    /// Form of job answers: a or b; or replicate: that API instead
    #[arg(long, value_name = "A|B|REPLICATE", default_value = "b")]
    pub dialect: Dialect,
    /// Accepted key, with books of its own; may be repeated. None: any key, one book
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// Environment variable with the secret that signs webhooks
    #[arg(long, value_name = "VAR")]
    pub webhook_secret_env: Option<String>,
    /// Leave the rate-limit headers out
    #[arg(long)]
    pub no_rate_headers: bool,
    /// Fast motion: divides the window and the run times
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = factor)]
    pub speed: f64,
}

impl MockArgs {
    /// The options asked for.
    ///
    /// # Errors
    /// When the variable named by `--webhook-secret-env` is not set.
    pub fn options(&self) -> io::Result<Options> {
        let secret = self.webhook_secret_env.as_ref().map(|name| {
            std::env::var(name).map_err(|_| io::Error::other(format!("the variable {name} is not set or not text")))
        });
        let options = Options {
            requests: Some(self.requests).filter(|&n| n > 0),
            window: self.per,
            counter: self.counter.clone(),
            concurrent_jobs: Some(self.jobs).filter(|&n| n > 0),
            run_time: self.run_time,
            model_run_times: self.model_run_time.clone(),
            dialect: self.dialect,
            keys: self.keys.clone(),
            rate_headers: !self.no_rate_headers,
            webhook_secret: secret.transpose()?,
            seed: fastrand::u64(..),
            ..Options::default()
        };
        Ok(options.sped_up(self.speed))
    }
}

/// Runs the mock until it is interrupted or terminated.
///
/// # Errors
/// When the address cannot be bound or an option does not hold.
pub async fn run(args: MockArgs) -> io::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mock = Mock::start(args.options()?, args.listen).await?;
    say(&banner(&mock));
    say(&format!("sluicegate mock ready on {}", mock.url()));
    tokio::select! {
        result = tokio::signal::ctrl_c() => result?,
        _ = terminated.recv() => {}
    }
    let stats = mock.stats();
    say(&format!("{} requests, {} jobs; {}", stats.attempts, stats.creates_accepted, refusals(&stats.keys)));
    mock.shutdown().await;
    Ok(())
}

/// A line for whoever reads stdout; `println!` would panic once nobody does.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn banner(mock: &Mock) -> String {
    let options = mock.options();
    let or_any = |limit: Option<u32>| limit.map_or_else(|| "any number of".to_owned(), |n| n.to_string());
    let run_time = match options.run_time {
        RunTime::Fixed(d) => format!("{d:?}"),
        RunTime::Uniform(low, high) => format!("{low:?} to {high:?}"),
    };
    let keys = if options.keys.is_empty() { "any".to_owned() } else { options.keys.len().to_string() };
    let (key, probe) = match options.dialect {
        Dialect::Replicate => ("Authorization: Bearer r8_demo", "account"),
        Dialect::A | Dialect::B => ("X-API-Key: cdt_demo", "echo"),
    };
    let (requests, jobs) = (or_any(options.requests), or_any(options.concurrent_jobs));
    let url = mock.url();
    format!(
        "sluicegate mock: an imitation of the API; nothing leaves this machine, nothing costs credits\n\
         \x20 limits   {requests} requests in {:?} ({}), {jobs} jobs at once\n\
         \x20 jobs     run {run_time}, answered in dialect {:?}\n\
         \x20 keys     {keys} accepted\n\
         \x20 try      curl -H '{key}' {url}/v1/{probe}\n\
         \x20 watch    {url}/_mock/stats and /_mock/requests; faults: POST {url}/_mock/faults",
        options.window, options.counter, options.dialect,
    )
}

fn refusals(keys: &std::collections::BTreeMap<String, KeyStats>) -> String {
    let sum = |count: fn(&KeyStats) -> u64| keys.values().map(count).sum::<u64>();
    let (rate, jobs) = (sum(|key| key.refused_rate_429), sum(|key| key.refused_job_429));
    format!("refused {rate} for the rate, {jobs} for the job limit")
}

fn positive(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn model_run_time(text: &str) -> Result<(String, RunTime), String> {
    let (model, time) = text.split_once('=').ok_or("is written like flux-pro=8s..12s")?;
    Ok((model.to_owned(), time.parse()?))
}
