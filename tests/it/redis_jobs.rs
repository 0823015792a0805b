//! Several replicas, one job: looked at by one of them, known to all, ended once.
//!
//! Time is real here, and the store a real redis-server.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use sluicegate::mock::{Options, RunTime};
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{Answer, With, request};
use crate::support::config::Scratch;
use crate::support::redis::{Fleet, Redis, wait_for};
use crate::support::relay::{Passes, Relay};
use crate::support::{Setup, Site, create, poll};

/// Who is told.
mod webhooks;

/// Jobs alone, in fast motion: a lease is 1.5 s.
const JOBS: &str = "concurrent_jobs = 5\nrequests = 2000\nper = \"2s\"";
const HOUR: RunTime = RunTime::Fixed(Duration::from_secs(3600));

fn until_told(run_time: RunTime) -> Options {
    Options { requests: Some(2_000), window: Duration::from_secs(2), run_time, ..Options::default() }
}

/// Status requests that the upstream has counted.
fn polls(fleet: &Fleet) -> usize {
    fleet.mock.requests().iter().filter(|seen| seen.method == Method::GET).count()
}

/// At no attempt.
async fn told(site: &Site, id: &str) -> Answer {
    let answer = site.send(poll(id)).await;
    assert_eq!((answer.status.as_u16(), answer.attempts()), (200, 0), "{answer:?}");
    answer
}

async fn completed(site: &Site, id: &str) -> Answer {
    let answer = site.send(poll(id).with("prefer", "wait=30")).await;
    assert_eq!((answer.status.as_u16(), answer.attempts()), (200, 0), "{answer:?}");
    assert_eq!(answer.json()["status"], "completed", "{answer:?}");
    answer
}

#[tokio::test]
async fn a_job_is_known_to_all_replicas_and_looked_at_by_one() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 3);
    let mut sites = fleet.start(&redis.url()).await;
    let id = sites[0].start_job().await;
    for site in &sites[1..] {
        let answer = told(site, &id).await;
        assert_eq!(answer.json()["job_id"], id.as_str());
        assert!(answer.number("retry-after") >= 1, "{answer:?}");
    }
    // A hundred callers, through all.
    let begun = Instant::now();
    let callers: Vec<_> = (0..99)
        .map(|n| {
            let (site, id) = (Arc::clone(&sites[n % 3]), id.clone());
            tokio::spawn(async move { completed(&site, &id).await.body })
        })
        .collect();
    sleep(Duration::from_millis(1_500)).await;
    let asked = polls(&fleet);
    assert!((1..=2).contains(&asked), "{asked} polls in 1.5 s: as with one replica");
    fleet.mock.finish(&id);
    let mut bodies = Vec::new();
    for caller in callers {
        bodies.push(caller.await.expect("no panic"));
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "one answer");
    let asked = polls(&fleet);
    println!("{asked} polls for 99 callers in {:?}", begun.elapsed());
    // What has ended is known to all, also where nobody has asked before.
    for site in &sites {
        told(site, &id).await;
        wait_for(site, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    }
    // Nor is it forgotten by a replica that is started again.
    let Site { proxy, scratch, .. } = Arc::into_inner(sites.remove(0)).expect("nobody else has it");
    drop(proxy);
    let back = fleet.replica_in(scratch, &redis.url());
    wait_for(&back, "up", |shared| shared["state"] == "up").await;
    told(&back, &id).await;
    assert_eq!(polls(&fleet), asked);
}

#[tokio::test]
async fn ends_are_known_to_those_who_never_asked_and_cancels_free_the_slot() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 2);
    let sites = fleet.start(&redis.url()).await;
    let id = sites[0].start_job().await;
    fleet.mock.finish(&id);
    let first = completed(&sites[0], &id).await;
    let asked = fleet.mock.stats().attempts;
    let other = told(&sites[1], &id).await;
    assert_eq!(other.body, first.body);
    assert_eq!(other.header("content-type"), first.header("content-type"));
    assert_eq!(fleet.mock.stats().attempts, asked);

    let id = sites[0].start_job().await;
    let cancelled = sites[1].send(request("DELETE", &format!("/v1/predictions/{id}"), "")).await;
    assert!(cancelled.status.is_success(), "{cancelled:?}");
    wait_for(&sites[0], "the slot is free", |_| sites[0].proxy.usage().jobs_live == 0).await;
    for site in &sites {
        wait_for(site, "all slots are free", |shared| shared["jobs_live"] == 0).await;
    }

    let (asked_before, new) = (sites[0].start_job().await, sites[0].start_job().await);
    told(&sites[1], &asked_before).await;
    redis.run(&["FLUSHALL"]).await;
    // The window counts as full meanwhile: nobody can ask the upstream.
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        told(&sites[1], &asked_before).await;
        let answer = sites[1].send(poll(&new).with("sluicegate-max-wait", "0s")).await;
        assert_eq!(answer.attempts(), 0);
        if answer.status == 200 {
            break;
        }
        assert!(Instant::now() < until, "never told again: {answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn another_finishes_the_job_of_a_killed_replica() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 3);
    let sites = fleet.start(&redis.url()).await;
    let [killed, one, other] = <[Arc<Site>; 3]>::try_from(sites).ok().expect("three");
    let id = killed.start_job().await;
    let waits = one.spawn(poll(&id).with("prefer", "wait=60"));
    told(&other, &id).await;
    // As by `kill -9`: it tells nobody.
    drop(killed);
    fleet.mock.finish(&id);
    let answer = waits.await.expect("no panic");
    assert_eq!((answer.status.as_u16(), answer.attempts()), (200, 0), "{answer:?}");
    assert_eq!(answer.json()["status"], "completed", "{answer:?}");
    for site in [&one, &other] {
        completed(site, &id).await;
        wait_for(site, "the slot is free", |shared| shared["jobs_live"] == 0).await;
    }
}

#[tokio::test]
async fn a_job_is_its_client_s_through_every_replica() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 2);
    let toml = format!(
        "[[clients]]\nname = \"web\"\ntoken = {{ env = \"WEB_TOKEN\" }}\n[[clients]]\nname = \"batch\"\n\
         token = {{ env = \"BATCH_TOKEN\" }}\n[state]\nstore = \"redis\"\nredis = {{ url = \"{}\", replicas = 2 }}",
        redis.url()
    );
    let toml: &'static str = toml.leak();
    let sites = [(); 2].map(|()| {
        let setup = Setup { plan: JOBS, toml, ..Setup::default() };
        setup.proxy_to(Arc::clone(&fleet.mock), Scratch::new())
    });
    for site in &sites {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    let by = |token: &str, request: http::Request<_>| request.with("sluicegate-token", token);
    let id = sites[0].send(by("web-token", create())).await.job_id();
    let asked = fleet.mock.stats().attempts;
    let cancel = || request("DELETE", &format!("/v1/predictions/{id}"), "");
    for site in [&sites[1], &sites[0]] {
        assert_eq!(site.send(by("batch-token", poll(&id))).await.status, 404);
        assert_eq!(site.send(by("batch-token", cancel())).await.status, 404);
        let own = site.send(by("web-token", poll(&id))).await;
        assert_eq!((own.status.as_u16(), own.attempts()), (200, 0), "{own:?}");
    }
    let own_looks = polls(&fleet);
    assert_eq!(fleet.mock.stats().attempts - asked, own_looks as u64, "nothing of the others' went up");
    assert!(sites[1].send(by("web-token", cancel())).await.status.is_success());
    for site in &sites {
        wait_for(site, "all slots are free", |shared| shared["jobs_live"] == 0).await;
        assert_eq!(site.send(by("batch-token", poll(&id))).await.status, 404, "afterwards neither");
    }
}

#[tokio::test]
async fn without_the_store_each_goes_by_what_it_sees() {
    let mut redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 2);
    let sites = fleet.start(&redis.url()).await;
    // The oldest of a model of which nothing is known is looked at first.
    let ends = sites[0].start_job().await;
    let (lives, strange) = (sites[0].start_job().await, sites[0].start_job().await);
    told(&sites[1], &lives).await;
    redis.kill();
    // Its own replica answers from what it knows.
    assert_eq!(told(&sites[0], &ends).await.json()["job_id"], ends.as_str());
    fleet.mock.finish(&ends);
    // After the hold, each with its share: the other asks upstream, the owner looks.
    let other = sites[1].send(poll(&ends).with("sluicegate-max-wait", "20s")).await;
    assert_eq!((other.status.as_u16(), other.attempts()), (200, 1), "{other:?}");
    assert_eq!(other.json()["status"], "completed");
    completed(&sites[0], &ends).await;
    let other = sites[1].send(poll(&lives).with("sluicegate-max-wait", "20s")).await;
    assert_eq!(other.status, 200, "{other:?}");
    // It cannot know that another looks at this one.
    assert_eq!(sites[1].send(poll(&strange).with("sluicegate-max-wait", "20s")).await.status, 200);
    assert_eq!(sites[1].proxy.usage().jobs_live, 1);
    redis.up().await;
    for site in &sites {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    // One looks again, whoever was first to tell the empty store, and nothing is lost.
    let live = || sites.iter().map(|site| site.proxy.usage().jobs_live).sum::<u32>();
    wait_for(&sites[1], "one owner each", |_| live() == 2).await;
    for id in [&lives, &strange] {
        fleet.mock.finish(id);
        completed(&sites[0], id).await;
        completed(&sites[1], id).await;
    }
    for site in &sites {
        wait_for(site, "all slots are free", |shared| shared["jobs_live"] == 0).await;
    }
}

/// Asks about a job whose replica and record are gone, until the upstream was asked. Nobody else calls the store.
async fn asked_upstream(redis: &Redis, fleet: &Fleet, site: &Site, id: &str) {
    redis.run(&["FLUSHALL"]).await;
    redis.run(&["CONFIG", "RESETSTAT"]).await;
    let (begun, mut asked, before) = (Instant::now(), 0, polls(fleet));
    // The window counts as full for 3 s or so; then the upstream tells.
    while polls(fleet) == before {
        assert!(begun.elapsed() < Duration::from_secs(20), "never asked for upstream");
        let answer = timeout(Duration::from_secs(15), site.send(poll(id))).await.expect("no answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        asked += 1;
        sleep(Duration::from_millis(100)).await;
    }
    // Beside the polls: one that waits reads each 150 ms at most, and there are the account's beats and those of its jobs.
    let (calls, tenths) = (redis.calls().await, begun.elapsed().as_millis() / 100 + 1);
    let most = u64::try_from(tenths).expect("few") * 2 + asked + 20;
    assert!(calls <= most, "{calls} calls for {asked} polls in {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_job_whose_replica_and_record_are_gone_is_asked_for_upstream() {
    let redis = Redis::start().await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 2);
    let sites = fleet.start(&redis.url()).await;
    let [gone, other] = <[Arc<Site>; 2]>::try_from(sites).ok().expect("two");
    let id = gone.start_job().await;
    told(&other, &id).await;
    let waits = other.spawn(poll(&id).with("prefer", "wait=60"));
    drop(gone);
    asked_upstream(&redis, &fleet, &other, &id).await;
    fleet.mock.finish(&id);
    // Who waited may have been the one that asked the upstream, and heard what that said.
    assert_eq!(waits.await.expect("no panic").status, 200);
    let answer = other.send(poll(&id).with("prefer", "wait=20")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &"completed".into()), "{answer:?}");
    assert!(polls(&fleet) <= 8, "{} polls", polls(&fleet));
}

#[tokio::test]
async fn who_lost_a_job_to_a_replica_that_is_gone_does_not_ask_the_store_in_a_circle() {
    let redis = Redis::start().await;
    let relay = Relay::to(redis.address()).await;
    let fleet = Fleet::new(until_told(HOUR), JOBS, 2);
    let (first, second) = (fleet.replica(&relay.url()), fleet.replica(&redis.url()));
    for site in [&first, &second] {
        wait_for(site, "up and free", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    }
    let id = first.start_job().await;
    relay.let_pass(Passes::Nothing);
    wait_for(&second, "it is taken over", |_| second.proxy.usage().jobs_live == 1).await;
    relay.let_pass(Passes::All);
    wait_for(&first, "it knows", |_| first.proxy.usage().jobs_live == 0).await;
    told(&first, &id).await;
    drop(second);
    asked_upstream(&redis, &fleet, &first, &id).await;
    fleet.mock.finish(&id);
    let answer = first.send(poll(&id).with("prefer", "wait=20")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &"completed".into()), "{answer:?}");
}
