//! What is owed is owed after a crash, too, and once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use sluicegate::mock::{Mock, Options, RunTime};
use tokio::time::sleep;

use super::{HOOK, IN, Manner, OUT, Receivers, Stage, options, secs, signed};
use crate::support::config::Scratch;
use crate::support::poll;

#[tokio::test(start_paused = true)]
async fn killed_at_any_moment_every_webhook_comes_and_under_one_id() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    for round in 0..25_u64 {
        let (mut mock, mut receivers, mut scratch) =
            (Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
        receivers.set(3000, Manner::Fail(u32::try_from(round % 4).expect("small")));
        let mut ids = HashSet::new();
        for kill in 0..4_u64 {
            let stage = Stage::on(&toml, mock, receivers, scratch);
            ids.insert(stage.start(HOOK).await);
            sleep(Duration::from_millis((round * 977 + kill * 3_331) % 12_000)).await;
            if round % 2 == 0 {
                for id in &ids {
                    stage.send(poll(id)).await;
                }
            }
            (mock, receivers, scratch) = stage.kill();
        }
        let stage = Stage::on(&toml, mock, receivers, scratch);
        sleep(secs(900)).await;
        let mut told: HashMap<String, HashSet<String>> = HashMap::new();
        for hit in stage.receivers.hits() {
            told.entry(hit.job()).or_default().insert(hit.id().to_owned());
        }
        assert_eq!(told.keys().cloned().collect::<HashSet<_>>(), ids, "round {round}");
        assert!(told.values().all(|ids| ids.len() == 1), "round {round}: {told:?}");
        assert_eq!(stage.proxy.usage().jobs_live, 0, "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_delivered_is_not_delivered_again() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
    stage.start(HOOK).await;
    sleep(secs(30)).await;
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    sleep(secs(600)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_seen_but_not_written_is_found_again() {
    let toml = format!("{OUT}\n[state]\nstore = \"local\"");
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(options())), Receivers::default(), Scratch::new());
    stage.start(HOOK).await;
    let (mock, receivers, scratch) = stage.kill();
    // The job table's own record is gone, as if it had written the end before the outbox could.
    for entry in std::fs::read_dir(scratch.0.join(".local/state/sluicegate")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.ends_with("jobs.journal") {
            std::fs::remove_file(path).expect("removed");
        }
    }
    sleep(secs(30)).await;
    let stage = Stage::on(&toml, mock, receivers, scratch);
    sleep(secs(30)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_finds_its_webhook_after_a_crash() {
    let toml = format!("{IN}\n[state]\nstore = \"local\"");
    let slow = Options { run_time: RunTime::Fixed(secs(3_600)), ..options() };
    let stage = Stage::on(&toml, Arc::new(Mock::in_memory(slow)), Receivers::default(), Scratch::new());
    let id = stage.start(HOOK).await;
    let token = stage.token();
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    let tell = format!(r#"{{"job_id":"{id}","status":"failed","error":"x"}}"#);
    assert_eq!(stage.call(signed(&token, tell.clone())).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!((stage.receivers.hits().len(), stage.proxy.usage().jobs_live), (1, 0));
    let (mock, receivers, scratch) = stage.kill();
    let stage = Stage::on(&toml, mock, receivers, scratch);
    assert_eq!(stage.call(signed(&token, tell)).await.status, 200, "again");
    sleep(secs(60)).await;
    assert_eq!(stage.receivers.hits().len(), 1);
}
