//! Which changes are noticed, and when.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{FREE, Gate, NEW, OLD, WINDOW, notice, toml, write};
use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::get;
use crate::support::vault::Vault;

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_noticed_when_it_is_at_rest() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let quiet = timeout(Duration::from_secs(60), gate.reloading.changed()).await;
    assert!(quiet.is_err(), "nothing has changed");
    let begun = Instant::now();
    write(&gate.path("proxy.toml"), &toml("requests_per_minute = 3", ""));
    notice(&mut gate).await;
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 3);
    // Written in pieces, it is never at rest until it is whole.
    let text = toml("requests_per_minute = 4", "");
    for end in (text.len() - 40..text.len()).step_by(8) {
        write(&gate.path("proxy.toml"), &text[..end]);
        let changed = timeout(Duration::from_millis(2_100), gate.reloading.changed()).await;
        assert!(changed.is_err(), "half of it is not read");
    }
    write(&gate.path("proxy.toml"), &text);
    notice(&mut gate).await;
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 4);
    let unchanged = timeout(Duration::from_secs(60), gate.reloading.changed()).await;
    assert!(unchanged.is_err(), "read once");
}

/// A mounted Secret: `key` leads through `..data` to a directory, and a link is swapped when it changes.
#[tokio::test(start_paused = true)]
async fn a_swapped_secret_mount_is_noticed() {
    let scratch = Scratch::new();
    let mount = scratch.0.join("mount");
    let version = |number: u32, key: &str| {
        fs::create_dir_all(mount.join(format!("..{number}"))).expect("made");
        write(&mount.join(format!("..{number}/key")), key);
        symlink(format!("..{number}"), mount.join("..data_tmp")).expect("linked");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
    };
    version(1, OLD);
    symlink("..data/key", mount.join("key")).expect("linked");
    symlink("mount/key", scratch.0.join("key")).expect("linked");
    let mut gate = Gate::at(FREE, "", Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO), scratch);
    gate.statuses(1).await;
    version(2, NEW);
    notice(&mut gate).await;
    gate.statuses(1).await;
    assert_eq!(gate.vault.seen().by_key.len(), 2, "the new key is in use");
    assert_eq!(gate.vault.seen().unauthorized, 0);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_was_missing_is_noticed_when_it_is_there() {
    let mut gate = Gate::new(FREE, "");
    let late = "[[clients]]\nname = \"late\"\ntoken = { file = \"late\" }";
    assert!(gate.reload(FREE, late).await.is_err(), "there is no such file");
    write(&gate.path("late"), "late-token");
    notice(&mut gate).await;
    assert_eq!(gate.send(get("/v1/echo").with("x-api-key", "late-token")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_only_a_signal_reads_it() {
    let mut gate = Gate::new(FREE, "[server]\nreload_interval = \"0s\"");
    write(&gate.path("key"), NEW);
    assert!(timeout(Duration::from_secs(600), gate.reloading.changed()).await.is_err());
}
