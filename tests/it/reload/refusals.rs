//! A configuration that cannot be taken changes nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sluicegate::config;
use sluicegate::reload::Refused;

use super::{FREE, Gate, KEY_FILE, OLD, WINDOW, sources, toml, write};
use crate::support::config::Scratch;
use crate::support::vault::Vault;

#[tokio::test(start_paused = true)]
async fn a_file_with_mistakes_changes_nothing_and_says_so() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let refused =
        gate.reload("requests_per_minute = 0", "[queue]\nmax_wait = \"sometimes\"").await.expect_err("refused");
    let told = refused.to_string();
    assert!(told.contains("must be at least 1") && told.contains("queue.max_wait"), "all at once: {told}");
    let status = gate.proxy.status();
    assert_eq!((&status["config"]["generation"], &status["accounts"][0]["requests"]["limit"]), (&1.into(), &2.into()));
    assert!(status["config"]["refused"]["reason"].as_str().expect("a reason").contains("max_wait"), "{status}");
    assert!(!status.to_string().contains(OLD));
    assert_eq!(gate.reload("requests_per_minute = 3", "").await.expect("taken"), 2);
    let status = gate.proxy.status();
    assert!(status["config"]["refused"].is_null() && status["config"]["generation"] == 2, "{status}");
}

#[tokio::test(start_paused = true)]
async fn what_is_bound_to_the_start_refuses_the_file_or_waits_for_the_next_start() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    for (more, key) in [
        ("[server]\nlisten = \"127.0.0.1:9999\"", "server.listen"),
        ("[admin]\nlisten = \"off\"", "admin.listen"),
        ("[upstream]\nprotocol = \"replicate\"", "upstream.protocol"),
        ("[state]\npath = \"elsewhere\"", "state"),
        ("[credits]\nutc_offset = \"+01:00\"", "credits.utc_offset"),
    ] {
        let refused = gate.reload("requests_per_minute = 9", more).await.expect_err(key);
        assert!(matches!(&refused, Refused::Fixed(keys) if keys == &[key]), "{refused}");
    }
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 2, "none of it is in force");
    gate.reload("requests_per_minute = 9", "[server]\nthreads = 7\nmax_body = \"1MiB\"").await.expect("taken");
    let status = gate.proxy.status();
    assert_eq!(status["config"]["after_restart"], serde_json::json!(["server.threads", "server.max_body"]));
    assert_eq!(status["accounts"][0]["requests"]["limit"], 9);
}

#[tokio::test(start_paused = true)]
async fn two_plans_for_one_key_are_refused_as_at_the_start() {
    let mut gate = Gate::new(FREE, "");
    let twin = "[accounts.twin]\nplan = \"twin\"\nkey = { file = \"key\" }\n[plans.twin]\nrequests_per_minute = 9\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"twin\"";
    let refused = gate.reload(FREE, twin).await.expect_err("refused");
    assert!(refused.to_string().contains("different plans"), "{refused}");
    assert_eq!(gate.statuses(1).await, [200]);
    fs::remove_file(gate.path("proxy.toml")).expect("removed");
    let refused = gate.reloading.reload().await.expect_err("there is no file");
    assert!(refused.to_string().contains("cannot be read"), "{refused}");
    assert_eq!(gate.statuses(1).await, [200]);
}

/// What lies in the directory is not taken in place of what was named or built in.
#[tokio::test(start_paused = true)]
async fn another_file_than_at_the_start_is_not_taken() {
    let scratch = Scratch::new();
    let directory = scratch.0.clone();
    let mut sources = sources(&directory);
    (sources.flags.config, sources.flags.upstream) = (None, None);
    sources.env.insert("CORE_API_KEY".into(), OLD.into());
    sources.env.insert("SLUICEGATE_STATE_STORE".into(), "memory".into());
    let mut gate = Gate::of(sources, Vault::new(&[OLD], WINDOW, Duration::ZERO), scratch);
    write(&directory.join("proxy.toml"), &toml(FREE, "").replace(KEY_FILE, "key = { env = \"CORE_API_KEY\" }"));
    let refused = gate.reloading.reload().await.expect_err("refused");
    assert!(refused.to_string().contains("started with the built-in defaults"), "{refused}");
}

/// Keys of the table in docs/configuration.md that a running process cannot change.
#[test]
fn the_documentation_says_what_is_bound_to_the_start() {
    let doc =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).expect("it is there");
    let section = doc.split("## Live reload").nth(1).expect("a section").split("\n## ").next().expect("its text");
    let (fixed, later) = config::bound_to_the_start();
    for (keys, beginning) in [(fixed, "| refused"), (later, "| after a restart")] {
        let line = section.lines().find(|line| line.starts_with(beginning)).expect(beginning);
        for key in keys {
            assert!(line.contains(&format!("`{key}")), "{key} is not in: {line}");
        }
    }
}
