//! What must hold after every run, judged by the upstream's own books and by what reached the proxy.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use sluicegate::app::Proxy;
use sluicegate::mock::Seen;
use tokio::time::Instant;

use super::answers::Arrived;
use super::callers::{CALL, What};
use super::plan::Habit;
use super::world::World;

const DOCUMENTED: [u16; 6] = [408, 429, 500, 502, 503, 504];
/// After these nothing was carried out.
const REFUSALS: [u16; 4] = [403, 422, 429, 503];
/// What reached a proxy so shortly before its death, or before a deadline, it may not have seen.
const BLINK: Duration = Duration::from_millis(2);

/// One logical create: what the upstream saw of it, and what its caller heard.
#[derive(Default)]
struct Create {
    attempts: Vec<Seen>,
    heard: Vec<What>,
    /// When its caller was told that the outcome is unknown.
    given_up: Vec<Instant>,
}

/// Notes everything that is wrong.
pub fn judge(world: &World) {
    let seen = world.mock.requests();
    for seen in &seen {
        let (status, job) = (seen.status, seen.job.as_deref().unwrap_or("-"));
        let call = call_of(seen).unwrap_or("-");
        world.trace.note_at(seen.at, format!("upstream: {} {} {call} -> {status} {job}", seen.method, seen.path));
    }
    let mut creates: BTreeMap<String, Create> = BTreeMap::new();
    for seen in seen.into_iter().filter(|seen| seen.method == Method::POST) {
        let call = call_of(&seen).unwrap_or_default().to_owned();
        creates.entry(call).or_default().attempts.push(seen);
    }
    for heard in world.all_heard() {
        let create = creates.entry(heard.call).or_default();
        if matches!(&heard.what, What::Answer { code, .. } if code == "outcome_unknown") {
            create.given_up.push(heard.at);
        }
        create.heard.push(heard.what);
    }
    let arrived = world.net.answers.all();
    books(world);
    for (call, create) in &creates {
        sent_once(world, call, create);
        told_the_truth(world, call, create);
        no_id_is_lost(world, call, create, &arrived);
    }
    credits(world, &creates, &arrived);
}

fn call_of(seen: &Seen) -> Option<&str> {
    seen.headers.get(CALL)?.to_str().ok()
}

/// Window, jobs, credentials.
fn books(world: &World) {
    let stats = world.mock.stats();
    let wrong = |holds: bool, what: &str| {
        if !holds {
            world.wrong(format!("{what}: {stats:?}"));
        }
    };
    wrong(stats.max_in_window <= world.plan.requests as usize, "more in a window than the plan allows");
    wrong(stats.refused_rate_429 == 0, "a 429 of the upstream's own for the rate");
    wrong(stats.unauthorized == 0, "a request without the key");
    wrong(stats.jobs_live_peak <= world.plan.jobs as usize, "more jobs than the plan allows");
    if world.plan.tells_the_truth() {
        wrong(stats.refused_job_429 == 0, "a 429 of the upstream's own for jobs");
    }
}

/// No attempt of a create follows another that may have been carried out, unless the upstream documents its status as retryable.
fn sent_once(world: &World, call: &str, create: &Create) {
    for pair in create.attempts.windows(2) {
        let before = pair[0].status;
        let retried = match world.plan.creates {
            "documented" => DOCUMENTED.contains(&before),
            "safe" => [429, 503].contains(&before),
            _ => false,
        };
        // The same key may try again what cost nothing.
        let again = call.starts_with('k') && REFUSALS.contains(&before);
        if !retried && !again {
            world.wrong(format!("create {call} was sent again after {before}"));
        }
    }
}

/// What callers are told of their money is so.
fn told_the_truth(world: &World, call: &str, create: &Create) {
    let jobs: Vec<&str> = create.attempts.iter().filter_map(|seen| seen.job.as_deref()).collect();
    let mut accepted: Vec<&str> = Vec::new();
    let (mut cost_nothing, mut not_sent) = (true, true);
    for what in &create.heard {
        let What::Answer { status, charge, job, code, .. } = what else {
            (cost_nothing, not_sent) = (false, false);
            continue;
        };
        match charge.as_str() {
            "accepted" => match job.as_deref() {
                Some(job) if jobs.contains(&job) => accepted.push(job),
                _ => world.wrong(format!("create {call} was accepted as {job:?}, the upstream started {jobs:?}")),
            },
            "refused" | "not-sent" if *status < 300 => world.wrong(format!("create {call}: {status}, but {charge}")),
            "refused" | "not-sent" | "unknown" => {}
            // Refused before it was known to be a create.
            other => world.wrong(format!("create {call}: {status} {code} says `{other}` of its money")),
        }
        cost_nothing &= matches!(charge.as_str(), "refused" | "not-sent");
        not_sent &= charge == "not-sent";
    }
    if !create.heard.is_empty() && cost_nothing && !jobs.is_empty() {
        world.wrong(format!("create {call} cost nothing, its caller heard, but started {jobs:?}"));
    }
    if !create.heard.is_empty() && not_sent && !create.attempts.is_empty() {
        world.wrong(format!("create {call} was not sent, its caller heard, but the upstream saw it"));
    }
    accepted.dedup();
    if accepted.len() > 1 {
        world.wrong(format!("create {call} has one key and the jobs {accepted:?}"));
    }
}

/// A job whose id reached the proxy is known to its caller, or followed to its end.
fn no_id_is_lost(world: &World, call: &str, create: &Create, arrived: &[Arrived]) {
    for job in create.attempts.iter().filter_map(|seen| seen.job.as_deref()) {
        let about = || arrived.iter().filter(|arrived| arrived.job.as_deref() == Some(job));
        let Some(first) = about().find(|arrived| (200..300).contains(&arrived.status)) else { continue };
        let told = create.heard.iter().any(|what| matches!(what, What::Answer { job: Some(told), .. } if told == job));
        // It came in the instant in which the proxy gave it up.
        let late = |heard: &Instant| first.at <= *heard && *heard <= first.at + world.plan.weather.lag + BLINK;
        let given_up = create.given_up.iter().any(late);
        if !told && !about().any(ended) && !given_up && !dies_after(world, first.at) {
            world.wrong(format!("job {job} of create {call} is lost: nobody was told of it, nobody followed it"));
        }
    }
}

fn ended(arrived: &Arrived) -> bool {
    matches!(arrived.state.as_deref(), Some("completed" | "failed" | "cancelled"))
}

fn dies_after(world: &World, at: Instant) -> bool {
    world.died.lock().expect("no panics").iter().any(|died| at <= *died && *died <= at + BLINK)
}

/// The book says what the upstream did, and no more than what is unknown beyond it.
fn credits(world: &World, creates: &BTreeMap<String, Create>, arrived: &[Arrived]) {
    if !world.plan.priced || !world.plan.steps.is_empty() {
        return;
    }
    let (mut least, mut most) = (0, 0);
    for (call, create) in creates {
        let jobs: Vec<&str> = create.attempts.iter().filter_map(|seen| seen.job.as_deref()).collect();
        let failed = |job: &&str| {
            let failed =
                |arrived: &&Arrived| arrived.job.as_deref() == Some(job) && arrived.state.as_deref() == Some("failed");
            arrived.iter().any(|arrived| failed(&arrived))
        };
        let fails = is_to_fail(world, call);
        if jobs.iter().any(|job| !failed(job)) && !fails {
            least += 1;
        }
        let open = create.heard.iter().any(|what| match what {
            What::Answer { charge, .. } => charge == "unknown",
            What::Broke | What::Left => true,
        });
        most += u64::from(open || jobs.iter().any(|job| !failed(job)));
    }
    let report = world.with_proxy(Proxy::credits);
    let used = report["accounts"][0]["used"].as_f64().unwrap_or(-1.0);
    #[allow(clippy::cast_precision_loss)]
    if used < f64::from(least) || used > most as f64 {
        world.wrong(format!("credits: {used} used, it must be {least} to {most}: {report}"));
    }
}

fn is_to_fail(world: &World, call: &str) -> bool {
    let index: Option<usize> = call.get(1..).and_then(|index| index.parse().ok());
    let caller = index.and_then(|index| world.plan.callers.get(index));
    caller.is_some_and(|caller| matches!(caller.habit, Habit::Follows { fails: true, .. }))
}
