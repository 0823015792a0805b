//! Several replicas, one plan, one real redis-server: what they send together never exceeds the plan, whatever happens to any of them.
//!
//! Time is real here: the plan's minute is two seconds. `SLUICEGATE_REDIS_WINDOWS` sets how many windows the long tests last.

use std::sync::Arc;
use std::time::Duration;

use sluicegate::mock::{Options, RunTime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::relay::{Passes, Relay};
use crate::support::{Site, create, get, poll, saturate};

/// What is done to the store.
mod faults;

/// Several nodes.
mod cluster;

/// Plans too large to ask for each attempt.
mod blocks;

/// The program itself.
mod program;

/// Many of it, and what fails around them.
#[cfg(target_os = "linux")]
mod processes;

/// The same with one process alone.
mod both;

/// 60 a minute, in fast motion; J is what a busy machine may need between our write and the upstream's count.
const RATE: &str = "requests = 60\nper = \"2s\"\njitter = \"300ms\"";
const W: Duration = Duration::from_secs(2);
/// Jobs alone.
const JOBS: &str = "concurrent_jobs = 5\nrequests = 2000\nper = \"2s\"";

fn rate_only() -> Options {
    Options { window: W, ..Options::default() }
}

fn jobs_only(run_time: Duration) -> Options {
    Options { requests: Some(2_000), window: W, run_time: RunTime::Fixed(run_time), ..Options::default() }
}

/// How many windows a test lasts.
fn windows(usual: u32) -> u32 {
    std::env::var("SLUICEGATE_REDIS_WINDOWS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

/// All of these saturated, each by so many callers, until then.
fn saturate_all(sites: &[Arc<Site>], callers: usize, until: Instant) -> Vec<JoinHandle<usize>> {
    let saturated = |site: &Arc<Site>| {
        let site = Arc::clone(site);
        tokio::spawn(async move { saturate(&site, callers, until).await })
    };
    sites.iter().map(saturated).collect()
}

async fn joined(all: Vec<JoinHandle<usize>>) -> usize {
    let mut answered = 0;
    for one in all {
        answered += one.await.expect("no caller panics");
    }
    answered
}

/// The plan was kept, as the upstream counts it.
fn kept(fleet: &Fleet) {
    let stats = fleet.mock.stats();
    assert!(stats.max_in_window <= 60, "{} in a window", stats.max_in_window);
    assert_eq!((stats.refused_rate_429, stats.refused_job_429), (0, 0));
}

fn share_of(part: usize, windows: u32) -> f64 {
    f64::from(u32::try_from(part).expect("few")) / f64::from(60 * windows)
}

#[tokio::test]
async fn eight_saturated_replicas_spend_one_plan_and_all_of_it() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 8);
    let sites = fleet.start(&redis.url()).await;
    let windows = windows(4);
    redis.run(&["CONFIG", "RESETSTAT"]).await;
    let until = Instant::now() + W * windows;
    let answered = joined(saturate_all(&sites, 20, until)).await;
    let calls = redis.calls().await;
    kept(&fleet);
    let utilisation = share_of(answered, windows);
    println!("{answered} answers, {utilisation:.3} of the plan, {calls} calls");
    assert!(utilisation >= 0.95, "{utilisation}");
    // A beat is 375 ms here, and is not paid by an attempt.
    let beats = u64::from(windows) * 8 * 6;
    assert!(calls <= u64::try_from(answered).expect("few") + beats, "{calls} calls for {answered}");
}

#[tokio::test]
async fn paced_replicas_are_evenly_spaced_together() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), "requests = 60\nper = \"2s\"\npacing = \"paced\"", 3);
    let sites = fleet.start(&redis.url()).await;
    let until = Instant::now() + W * 2;
    let answered = joined(saturate_all(&sites, 5, until)).await;
    kept(&fleet);
    // b = 2, T = (W + J)/(L - b + 1) = 35.6 ms.
    assert!((100..=114).contains(&answered), "{answered}");
    let log = fleet.mock.requests();
    let close = log.windows(3).filter(|three| three[2].at - three[0].at < Duration::from_millis(25)).count();
    assert_eq!(close, 0, "three at once");
}

#[tokio::test]
async fn jobs_of_all_replicas_together_stay_within_the_plan() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(jobs_only(Duration::from_millis(600)), JOBS, 4);
    let sites = fleet.start(&redis.url()).await;
    let until = Instant::now() + Duration::from_secs(6);
    let callers: Vec<_> = (0..16)
        .map(|n| {
            let site = Arc::clone(&sites[n % 4]);
            tokio::spawn(async move {
                let mut done = 0;
                while Instant::now() < until {
                    let id = site.send(create()).await.job_id();
                    let ended = site.send(poll(&id).with("prefer", "wait=30")).await;
                    assert_eq!(ended.json()["status"], "completed");
                    done += 1;
                }
                done
            })
        })
        .collect();
    let done = joined(callers).await;
    let stats = fleet.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (5, 0));
    println!("{done} jobs");
    assert!(done >= 30, "{done} jobs in 6 s, of 50 at most");
}

#[tokio::test]
async fn a_refusal_storm_makes_no_call() {
    let redis = Redis::start().await;
    let fleet =
        Fleet::new(Options { window: Duration::from_secs(8), ..Options::default() }, "requests = 20\nper = \"8s\"", 2);
    // Its hold is a window long: the first call of a fresh store is that of nobody.
    let site = Arc::new(fleet.replica(&redis.url()));
    wait_for(&site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    for _ in 0..20 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    }
    let now = || get("/v1/echo").with("sluicegate-max-wait", "0s");
    assert_eq!(site.send(now()).await.code(), "rate_limited");
    redis.run(&["CONFIG", "RESETSTAT"]).await;
    let begun = Instant::now();
    for _ in 0..500 {
        let refused = site.send(now()).await;
        assert_eq!(refused.code(), "rate_limited");
        assert!(refused.number("retry-after") >= 3, "{refused:?}");
    }
    let (calls, beats) = (redis.calls().await, begun.elapsed().as_millis() / 416 + 2);
    assert!(u128::from(calls) <= beats, "{calls} calls, {beats} of them to show that it lives");
}

#[tokio::test]
async fn killed_and_restarted_empty_the_store_counts_as_full() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 4);
    let sites = fleet.start(&redis.url()).await;
    let until = Instant::now() + W * 8;
    let all = saturate_all(&sites, 20, until);
    sleep(Duration::from_millis(2_500)).await;
    redis.kill();
    sleep(Duration::from_millis(300)).await;
    redis.up().await;
    joined(all).await;
    kept(&fleet);
    let asked = fleet.mock.requests();
    let last = asked.last().expect("some").at;
    assert!(last > until - W, "they go on after the hold");
    // The hold is G + J + W = 3.3 s, and what remains of the 16 s is 10 s.
    assert!(asked.len() >= 60 * 5, "{}", asked.len());
}

#[tokio::test]
async fn while_the_store_is_gone_each_sends_its_share() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::new(Options { concurrent_jobs: None, ..rate_only() }, RATE, 8);
    let sites = fleet.start(&redis.url()).await;
    let before = Instant::now();
    let all = saturate_all(&sites, 10, before + Duration::from_secs(14));
    sleep(Duration::from_secs(2)).await;
    redis.kill();
    let gone = Instant::now();
    joined(all).await;
    kept(&fleet);
    // Lease, timeout, G, J and W: 1.5 + 0.5 + 1 + 0.3 + 2 s. Then floor(60/8) each, 56 together.
    let hold = Duration::from_millis(5_300);
    let asked = fleet.mock.requests();
    let at = |from: Duration, to: Duration| {
        asked.iter().filter(|seen| seen.at >= gone + from && seen.at < gone + to).count()
    };
    assert_eq!(at(Duration::from_millis(600), hold.mul_f64(0.9)), 0, "nothing during the hold");
    let alone: Vec<Instant> =
        asked.iter().map(|seen| seen.at).filter(|seen| *seen >= gone + hold.mul_f64(0.9)).collect();
    let most = alone.iter().map(|from| alone.iter().filter(|at| (*from..*from + W).contains(at)).count()).max();
    assert!(most.is_some_and(|most| (50..=56).contains(&most)), "{most:?} in a window");
    // More than three windows are left.
    assert!(alone.len() >= 56 * 5 / 2, "{}", alone.len());
    let state = sites[0].proxy.status()["accounts"][0]["shared"]["state"].clone();
    assert_eq!(state, "share");
}

/// Half of the replicas are cut off for a while. In one direction only: see `processes`.
#[tokio::test]
async fn a_partition_of_half_the_replicas_keeps_the_plan() {
    let redis = Redis::start().await;
    let relay = Relay::to(redis.address()).await;
    let fleet = Fleet::new(rate_only(), RATE, 4);
    let sites: Vec<_> =
        (0..4).map(|n| Arc::new(fleet.replica(&if n < 2 { redis.url() } else { relay.url() }))).collect();
    for site in &sites {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    let begun = Instant::now();
    let until = begun + Duration::from_secs(18);
    let connected = saturate_all(&sites[..2], 20, until);
    let cut_off = saturate_all(&sites[2..], 20, until);
    sleep(Duration::from_secs(2)).await;
    relay.let_pass(Passes::Nothing);
    sleep(Duration::from_secs(10)).await;
    let shared = sites[2].proxy.status()["accounts"][0]["shared"]["state"].clone();
    assert_eq!(shared, "share");
    let away = sites[0].proxy.status()["accounts"][0]["shared"]["away"].clone();
    assert_eq!(away, 2);
    relay.let_pass(Passes::All);
    for site in &sites {
        wait_for(site, "up again, and all are there", |shared| shared["state"] == "up" && shared["away"] == 0).await;
    }
    let (connected, cut_off) = (joined(connected).await, joined(cut_off).await);
    kept(&fleet);
    println!("connected {connected}, cut off for ten seconds {cut_off}");
    // Nine windows. Half of the plan is theirs for as long as the others are away.
    assert!(connected >= 30 * 8, "{connected}");
    assert!(cut_off >= 30 * 3, "{cut_off}");
}

#[tokio::test]
async fn slots_of_a_killed_replica_are_taken_over_and_freed_only_at_their_jobs_end() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(jobs_only(Duration::from_secs(3600)), JOBS, 3);
    let sites = fleet.start(&redis.url()).await;
    let [killed, one, _two] = <[Arc<Site>; 3]>::try_from(sites).ok().expect("three");
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(killed.start_job().await);
    }
    // As by `kill -9`: it tells nobody.
    drop(killed);
    let waiting = one.spawn(create());
    wait_for(&one, "the jobs are taken over", |_| one.proxy.usage().jobs_live > 0).await;
    sleep(W * 2).await;
    assert_eq!(fleet.mock.stats().jobs_live_peak, 5);
    assert!(!waiting.is_finished(), "all slots are still taken");
    fleet.mock.finish(&jobs[0]);
    let created = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("a slot came free");
    assert_eq!(created.expect("no panic").status, 201);
    let stats = fleet.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (5, 0));
}

#[tokio::test]
async fn slots_of_a_killed_replica_are_taken_over_by_one_that_waits_for_them_all_the_time() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(jobs_only(Duration::from_secs(3600)), JOBS, 2);
    let sites = fleet.start(&redis.url()).await;
    let [killed, other] = <[Arc<Site>; 2]>::try_from(sites).ok().expect("two");
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(killed.start_job().await);
    }
    drop(killed);
    let waiting = other.spawn(create());
    fleet.mock.finish(&jobs[0]);
    let created = tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("a slot came free");
    assert_eq!(created.expect("no panic").status, 201);
}

#[tokio::test]
async fn a_restarted_replica_finds_its_slots_again() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(jobs_only(Duration::from_secs(3600)), JOBS, 1);
    let site = fleet.replica(&redis.url());
    wait_for(&site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    for _ in 0..5 {
        site.start_job().await;
    }
    let Site { proxy, scratch, .. } = site;
    drop(proxy);
    let site = fleet.replica_in(scratch, &redis.url());
    wait_for(&site, "up with its jobs", |shared| shared["state"] == "up" && shared["jobs_live"] == 5).await;
    sleep(Duration::from_secs(1)).await;
    wait_for(&site, "still five", |shared| shared["jobs_live"] == 5).await;
    let refused = site.send(create().with("sluicegate-max-wait", "0s")).await;
    assert_eq!(refused.code(), "job_limit", "{refused:?}");
    assert_eq!(fleet.mock.stats().jobs_live_peak, 5);
}

#[tokio::test]
async fn a_job_seen_by_two_replicas_takes_one_slot() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(jobs_only(Duration::from_secs(3600)), JOBS, 2);
    let sites = fleet.start(&redis.url()).await;
    let id = sites[0].start_job().await;
    assert_eq!(sites[1].send(poll(&id)).await.status, 200);
    sleep(Duration::from_secs(1)).await;
    wait_for(&sites[1], "one slot", |shared| shared["jobs_live"] == 1).await;
    fleet.mock.finish(&id);
    assert_eq!(sites[1].send(poll(&id).with("prefer", "wait=30")).await.json()["status"], "completed");
    assert_eq!(sites[0].send(poll(&id).with("prefer", "wait=30")).await.json()["status"], "completed");
    for site in &sites {
        wait_for(site, "none", |shared| shared["jobs_live"] == 0).await;
    }
}

#[tokio::test]
async fn one_replica_too_many_sends_nothing() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 2);
    let sites = fleet.start(&redis.url()).await;
    let third = fleet.replica(&redis.url());
    wait_for(&third, "refused a seat", |shared| shared["state"] == "no_seat").await;
    let refused = third.send(get("/v1/echo").with("sluicegate-max-wait", "1s")).await;
    assert_eq!(refused.code(), "queue_timeout", "{refused:?}");
    assert_eq!(fleet.mock.stats().attempts, 0);
    drop(sites);
}

#[tokio::test]
async fn a_state_directory_is_one_replica() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(rate_only(), RATE, 1);
    let site = fleet.replica_in(Scratch::new(), &redis.url());
    wait_for(&site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    for _ in 0..60 {
        assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    }
    let Site { proxy, scratch, .. } = site;
    drop(proxy);
    let site = fleet.replica_in(scratch, &redis.url());
    assert_eq!(site.send(get("/v1/echo")).await.status, 200);
    kept(&fleet);
    wait_for(&site, "one member", |shared| shared["members"] == 1).await;
}
