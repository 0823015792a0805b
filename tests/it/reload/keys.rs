//! Keys and secrets that change.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::io::duplex;
use tokio::time::{Instant, sleep};

use super::{FREE, Gate, NEW, OLD, WINDOW, notice, write};
use crate::support::client::{self, With};
use crate::support::config::Scratch;
use crate::support::vault::{Seen, Vault};
use crate::support::{PIPE_BYTES, create, get};

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_read_again_and_the_request_sent_again() {
    let gate = Gate::new(FREE, "");
    gate.statuses(1).await;
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.vault.revoke(OLD);
    // Creates too: a 401 says that nothing was made.
    let created = gate.send(create()).await;
    assert_eq!((created.status.as_u16(), created.attempts()), (201, 2), "{created:?}");
    assert_eq!(created.header("sluicegate-charge"), "accepted");
    assert_eq!(gate.statuses(3).await, [200; 3]);
    let Seen { unauthorized, created, by_key, .. } = gate.vault.seen();
    assert_eq!((unauthorized, created, by_key[NEW]), (1, 1, 4), "and only once");
}

#[tokio::test(start_paused = true)]
async fn all_that_are_refused_at_once_are_served_by_one_look() {
    let plan = "requests_per_minute = 200";
    let scratch = Scratch::new();
    let script = scratch.0.join("key.sh");
    write(&script, "#!/bin/sh\necho run >> runs\ncat key\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("ours");
    let vault = Vault::new(&[OLD], WINDOW, Duration::from_millis(50));
    let command = "[accounts.other]\nplan = \"main\"\nkey = { command = [\"./key.sh\"] }\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"other\"";
    let gate = Gate::at(plan, command, vault, scratch);
    let runs = || fs::read_to_string(gate.path("runs")).expect("it ran").lines().count();
    assert_eq!(runs(), 1);
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.vault.revoke(OLD);
    let calls: Vec<_> =
        (0..50).map(|_| tokio::spawn(gate.send(get("/v1/echo").with("sluicegate-token", "web-token")))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 200);
    }
    assert_eq!((runs(), gate.vault.seen().unauthorized), (2, 50));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_stays_wrong_is_not_read_again_and_again() {
    let scratch = Scratch::new();
    let script = scratch.0.join("key.sh");
    write(&script, "#!/bin/sh\necho run >> runs\ncat key\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("ours");
    let vault = Vault::new(&[], WINDOW, Duration::from_millis(50));
    let command = "[accounts.other]\nplan = \"main\"\nkey = { command = [\"./key.sh\"] }\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"other\"";
    let gate = Gate::at("requests_per_minute = 1000", command, vault, scratch);
    for _ in 0..100 {
        let answer = gate.send(get("/v1/echo").with("sluicegate-token", "web-token")).await;
        assert_eq!((answer.status.as_u16(), answer.attempts()), (401, 1), "the refusal is passed on");
    }
    let runs = fs::read_to_string(gate.path("runs")).expect("it ran").lines().count();
    assert!(runs <= 5, "in 5 s: {runs}");
}

#[tokio::test(start_paused = true)]
async fn who_waited_through_a_reload_leaves_with_the_new_key() {
    let mut gate = Gate::new("requests_per_minute = 1", "");
    gate.statuses(1).await;
    let waits = tokio::spawn(gate.send(create()));
    while gate.waiting() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.reloading.reload().await.expect("taken");
    gate.vault.revoke(OLD);
    assert_eq!(waits.await.expect("answered").status, 201);
    assert_eq!(gate.vault.seen().unauthorized, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_goes_on_in_the_old_one_s_window_also_across_a_kill() {
    let state = "[state]\npath = \"state\"";
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let plan = "requests_per_minute = 10";
    let mut gate = Gate::at(plan, state, vault, Scratch::new());
    let begun = Instant::now();
    gate.statuses(6).await;
    write(&gate.path("key"), NEW);
    gate.reloading.reload().await.expect("taken");
    gate.statuses(2).await;
    let Gate { proxy, vault, scratch, .. } = gate;
    drop(proxy);
    let gate = Gate::at(plan, state, vault, scratch);
    gate.statuses(2).await;
    assert!(begun.elapsed() < WINDOW / 2);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
    assert_eq!(gate.vault.seen().most_in_window, 10);
}

/// A call of the upstream, signed with this secret, for a job that nobody waits for: 404 where the signature counts.
async fn call_signed_with(gate: &Gate, secret: &str) -> u16 {
    let body = "{\"job_id\": \"job-1\", \"status\": \"completed\"}";
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag =
        hmac::sign(&key, body.as_bytes()).as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let (near, far) = duplex(PIPE_BYTES);
    tokio::spawn(gate.proxy.serve_webhooks(far));
    let call = client::post(&format!("/{}", "0".repeat(32)), body).with("x-webhook-signature", &tag);
    client::exchange(near, call).await.status.as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_replaced_webhook_secret_is_accepted_for_a_while() {
    let more = "[webhooks]\nsecret = { file = \"hook\" }\nlisten = \"127.0.0.1:0\"\npublic_url = \"https://hooks.example.com\"";
    let scratch = Scratch::new();
    write(&scratch.0.join("hook"), "first-secret");
    let mut gate = Gate::at(FREE, more, Vault::new(&[OLD], WINDOW, Duration::ZERO), scratch);
    assert_eq!(call_signed_with(&gate, "first-secret").await, 404);
    assert_eq!(call_signed_with(&gate, "second-secret").await, 401);
    write(&gate.path("hook"), "second-secret");
    notice(&mut gate).await;
    for secret in ["first-secret", "second-secret"] {
        assert_eq!(call_signed_with(&gate, secret).await, 404, "{secret}");
    }
    // Another reload in between does not prolong it.
    sleep(Duration::from_secs(300)).await;
    gate.reloading.reload().await.expect("taken");
    assert_eq!(call_signed_with(&gate, "first-secret").await, 404);
    sleep(Duration::from_secs(301)).await;
    assert_eq!(call_signed_with(&gate, "first-secret").await, 401);
    assert_eq!(call_signed_with(&gate, "second-secret").await, 404);
}
