//! Redis Cluster: one account's keys are on one node, and then on another.

use std::time::Duration;

use sluicegate::mock::{Options, RunTime};
use tokio::time::{Instant, sleep, timeout_at};

use super::{W, joined, kept, saturate_all};
use crate::support::client::With;
use crate::support::cluster::Cluster;
use crate::support::create;
use crate::support::redis::{Fleet, wait_for};

const PLAN: &str = "requests = 60\nper = \"2s\"\njitter = \"300ms\"\nconcurrent_jobs = 5";

/// Three of five slots are taken for the whole time, while everyone is saturated: the keys go to another master, which is killed, comes back
/// as a replica, and takes over again when it is told to.
#[tokio::test]
async fn a_failover_loses_no_slot_and_exceeds_nothing() {
    let mut cluster = Cluster::start().await;
    let mock = Options { window: W, run_time: RunTime::Fixed(Duration::from_secs(3600)), ..Options::default() };
    let mut fleet = Fleet::new(mock, PLAN, 4);
    fleet.login = "cluster = true, ";
    let sites = fleet.start(&cluster.urls().join("\", \"")).await;
    for site in &sites[..3] {
        site.start_job().await;
    }
    let until = Instant::now() + Duration::from_secs(20);
    let all = saturate_all(&sites, 10, until);
    sleep(Duration::from_secs(1)).await;

    let first = cluster.owner().await;
    let mut masters = Vec::new();
    for node in 0..6 {
        if node != first && cluster.role(node).await == "master" {
            masters.push(node);
        }
    }
    let killed = masters[0];
    cluster.reshard(first, killed).await;
    wait_for(&sites[0], "past the roll", |shared| shared["state"] == "up" && !shared["waits_for"].is_string()).await;
    assert_eq!(cluster.owner().await, killed, "it has the keys");
    let heir = cluster.replica_of(killed).await;
    cluster.nodes[killed].kill();
    cluster.until_role(heir, "master").await;
    for site in &sites {
        wait_for(site, "up, with the slots", |shared| shared["state"] == "up" && shared["jobs_live"] == 3).await;
    }
    cluster.nodes[killed].up().await;
    cluster.until_healthy(killed).await;
    let before = fleet.mock.stats().attempts;
    wait_for(&sites[0], "past the roll", |shared| !shared["waits_for"].is_string()).await;
    let sent = fleet.mock.wait_until(|stats| stats.attempts >= before + 60);
    timeout_at(until, sent).await.expect("they go on sending");
    cluster.nodes[killed].run(&["CLUSTER", "FAILOVER"]).await;
    let answered = joined(all).await;
    kept(&fleet);
    // Of twenty seconds four pass without an owner, and four in three rolls; on a busy machine more.
    assert!(answered >= 60 * 3, "{answered} answers");
    assert_eq!(cluster.owner().await, killed, "it took over again");

    for site in &sites {
        wait_for(site, "up again", |shared| shared["state"] == "up" && shared["jobs_live"] == 3).await;
    }
    sites[3].start_job().await;
    sites[0].start_job().await;
    let sixth = sites[1].send(create().with("sluicegate-max-wait", "1s")).await;
    assert!(["job_limit", "queue_timeout"].contains(&&*sixth.code()), "{sixth:?}");
    let stats = fleet.mock.stats();
    assert_eq!((stats.jobs_live_peak, stats.refused_job_429), (5, 0));
    kept(&fleet);
}
