//! `sluicegate demo`: an imitated API, the proxy before it, and a piece of work that would break the plan by itself.
//!
//! Everything runs at ten times the speed: the Free plan's 60 requests a minute become 60 in 6 s.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use crate::config::{self, Config, Flags, Pacing, Plan, Requests, Sources};
use crate::mock::{Mock, Options, Stats};
use crate::server::Server;

use self::callers::{Caller, Work};
use self::oracle::Limits;
use self::view::View;
use super::run::ready_line;
use super::signals::Signals;
use super::{Failure, base_url, complain, say, start};

mod callers;

pub(crate) mod oracle;

mod view;

/// Everything is this much faster than the real API.
const SPEED: f64 = 10.0;
/// A job takes 2.5 s, divided by the speed.
const RUN_TIME: Duration = Duration::from_millis(250);
const CALLERS: usize = 10;

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// End after the work: exit code 0 if nothing was lost and the upstream never answered 429
    #[arg(long)]
    once: bool,
    /// How many predictions to make
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    n: u32,
}

pub(super) async fn demo(args: DemoArgs) -> Result<u8, Failure> {
    let mut signals = Signals::new()?;
    let options = Options { seed: fastrand::u64(..), ..Options::default() };
    let mock = Mock::start(options.sped_up(SPEED), ([127, 0, 0, 1], 0).into()).await?;
    let mut config = config(&mock)?;
    let server = serve(&mut config).await?;
    let limits = limits(&config);
    say(format_args!(
        "sluicegate demo, at ten times the real speed; nothing leaves this machine, nothing costs credits\n\
         \x20 upstream  {} imitates the Free plan: {} requests in any {} s, {} jobs at once, {} s each\n\
         \x20 work      {CALLERS} callers make {} predictions and poll as the vendor's examples do",
        mock.url(),
        limits.requests,
        limits.window.as_secs_f64(),
        limits.jobs,
        RUN_TIME.as_secs_f64(),
        args.n,
    ));
    say(ready_line(&server));
    let work = tokio::select! {
        work = work(&server, args.n, limits) => work,
        stop = signals.next() => return Ok(stop.exit_code()),
    };
    let stats = mock.stats();
    say(summary(&work, &stats, limits));
    let clean = work.lost == 0 && refused(&stats) == 0;
    if !args.once {
        say(invitation(&server));
        signals.next().await;
    }
    let drained = start::drain(server, &mut signals).await;
    mock.shutdown().await;
    Ok(if args.once { u8::from(!clean) } else { drained })
}

/// The built-in configuration, pointed at the mock, with its plan at ten times the speed.
fn config(mock: &Mock) -> Result<Config, Failure> {
    let env = [
        ("CORE_API_KEY", "demo".to_owned()),
        ("SLUICEGATE_UPSTREAM_URL", mock.url()),
        ("SLUICEGATE_STATE_STORE", "memory".to_owned()),
    ];
    let sources = Sources {
        flags: Flags::default(),
        env: env.map(|(name, value)| (name.to_owned(), value)).into(),
        // No proxy.toml lies there, nor ever will.
        cwd: "/dev/null".into(),
    };
    let mut config = config::load(&sources)?.config;
    let (requests, jobs) = (mock.options().requests.unwrap_or(60), mock.options().concurrent_jobs);
    let plan = Plan {
        name: "free".to_owned(),
        requests: NonZeroU32::new(requests).map(|limit| Requests {
            limit,
            window: mock.options().window,
            jitter: (mock.options().window / 40).max(Duration::from_millis(100)),
        }),
        concurrent_jobs: jobs.and_then(NonZeroU32::new),
        pacing: Pacing::Auto,
        llm: config::Llm::Shared,
        credits_per_day: None,
    };
    let plan = Arc::new(plan);
    for account in &mut config.accounts {
        account.plan = Arc::clone(&plan);
    }
    Ok(config)
}

/// On the usual ports, else on free ones.
async fn serve(config: &mut Config) -> Result<Server, Failure> {
    match Server::start(config).await {
        Err(error) if start::is_port_taken(&error) => {
            complain(format_args!("note: {error}; the demo takes free ports instead"));
            config.server.listen.iter_mut().for_each(|address| address.set_port(0));
            config.admin.listen.iter_mut().for_each(|address| address.set_port(0));
            start::start(config).await
        }
        started => Ok(started?),
    }
}

fn limits(config: &Config) -> Limits {
    let plan = config.accounts.first().map(|account| &account.plan);
    let requests = plan.and_then(|plan| plan.requests);
    Limits {
        requests: requests.map_or(usize::MAX, |requests| requests.limit.get() as usize),
        window: requests.map_or(Duration::ZERO, |requests| requests.window),
        jobs: plan.and_then(|plan| plan.concurrent_jobs).map_or(usize::MAX, |jobs| jobs.get() as usize),
    }
}

/// What came of the work.
struct Outcome {
    done: u32,
    lost: u32,
    took: Duration,
    first_error: Option<String>,
}

async fn work(server: &Server, n: u32, limits: Limits) -> Outcome {
    let begun = Instant::now();
    let authority = server.listen.first().map(ToString::to_string).unwrap_or_default();
    let work = Arc::new(Work::new(n));
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(Caller::new(authority.clone(), Arc::clone(&work)).run());
    }
    let mut view = View::new(n, limits);
    let mut ticks = tokio::time::interval(view.every());
    loop {
        tokio::select! {
            ended = callers.join_next() => if ended.is_none() { break },
            _ = ticks.tick() => view.show(server.proxy(), &work, begun.elapsed()),
        }
    }
    let took = begun.elapsed();
    view.show(server.proxy(), &work, took);
    let (done, lost) = work.counts();
    Outcome { done, lost, took, first_error: work.first_error() }
}

fn refused(stats: &Stats) -> u64 {
    stats.refused_rate_429 + stats.refused_job_429
}

fn summary(work: &Outcome, stats: &Stats, limits: Limits) -> String {
    let best = oracle::makespan(&vec![RUN_TIME; (work.done + work.lost) as usize], limits);
    let took = work.took.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "counts of a demonstration are small")]
    let each = stats.attempts as f64 / f64::from((work.done + work.lost).max(1));
    let error = work.first_error.as_ref().map(|error| format!("\n  error     {error}")).unwrap_or_default();
    format!(
        "{} predictions done, {} lost\n\
         \x20 time      {took:.1} s; the best possible is {:.1} s: each job asked about once, at the moment it ends\n\
         \x20 attempts  {} upstream, {each:.1} a prediction; at most {} in any {} s (limit {})\n\
         \x20 jobs      at most {} at once (limit {})\n\
         \x20 refused   {} answers 429 from the upstream, by its own count{error}",
        work.done,
        work.lost,
        best.as_secs_f64(),
        stats.attempts,
        stats.max_in_window,
        limits.window.as_secs_f64(),
        limits.requests,
        stats.jobs_live_peak,
        limits.jobs,
        refused(stats),
    )
}

fn invitation(server: &Server) -> String {
    let base = server.listen.first().map(|address| base_url(*address)).unwrap_or_default();
    let admin = server.admin.map(base_url).unwrap_or_default();
    format!(
        "it stays up; try, and end it with Ctrl-C:\n\
         \x20 curl -s {base}/v1/predictions -H 'content-type: application/json' -d '{{\"model\": \"flux-schnell\", \"input\": {{\"prompt\": \"a paper boat\"}}}}'\n\
         \x20 curl -s {admin}/api/v1/status\n\
         \x20 export CORE_API_BASE={base}\n\
         \x20 export OPENAI_BASE_URL={base}/llm/openai/v1 OPENAI_API_KEY=sluicegate"
    )
}
