//! Clients and accounts that come, go and change their names and keys.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::time::{Instant, sleep};

use super::{BATCH, WEB};
use super::{FREE, Gate, NEW, OLD, WINDOW, write};
use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::vault::Vault;
use crate::support::{create, get, poll};

#[tokio::test(start_paused = true)]
async fn clients_come_and_go() {
    let mut gate = Gate::new(FREE, WEB);
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let as_batch = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "batch-token");
    assert_eq!(gate.send(as_batch(get("/v1/echo"))).await.code(), "unauthorized");
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, BATCH).await.expect("taken");
    assert_eq!(gate.send(as_batch(get("/v1/echo"))).await.status, 200);
    assert_eq!(gate.send(as_web(get("/v1/echo"))).await.code(), "unauthorized");
    assert_eq!(gate.send(as_batch(poll(&job))).await.status, 404, "it is still web's");
    assert_eq!(gate.proxy.usage().jobs_live, 1);
    gate.reload(FREE, &format!("{BATCH}{WEB}")).await.expect("taken");
    assert_eq!(gate.send(as_web(poll(&job))).await.status, 200, "and web finds it again");
    assert_eq!(gate.send(as_batch(poll(&job))).await.status, 404);
    let status = gate.proxy.status();
    assert_eq!((&status["clients"][0]["name"], &status["clients"][1]["name"]), (&"batch".into(), &"web".into()));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_an_account_that_is_gone_are_followed_with_its_key_to_their_end() {
    let second = "[accounts.second]\nplan = \"main\"\nkey = { file = \"second\" }\n";
    let with = |account: &str| format!("{second}{WEB}account = \"{account}\"\n");
    let scratch = Scratch::new();
    write(&scratch.0.join("second"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(FREE, &with("second"), vault, scratch);
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, WEB).await.expect("taken");
    let before = gate.vault.seen().by_key;
    assert_eq!(gate.send(as_web(get("/v1/echo"))).await.status, 200);
    assert_eq!(gate.vault.seen().by_key[OLD], 1, "new calls take the new account's key: {before:?}");
    gate.vault.finish(&job);
    while gate.send(as_web(poll(&job))).await.json()["status"] != "completed" {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(gate.vault.seen().by_key[NEW] > before[NEW], "the job's own key asked for it");
    assert_eq!(gate.proxy.usage().jobs_live, 0);
}

/// A `[accounts.NAME]` for each, beside `main`.
fn accounts(names: &[(&str, &str)]) -> String {
    names.iter().fold(String::new(), |text, (name, file)| {
        let client = format!("[[clients]]\nname = \"{name}\"\ntoken = {{ command = [\"echo\", \"token-{name}\"] }}\naccount = \"{name}\"\n");
        text + &format!("[accounts.{name}]\nplan = \"main\"\nkey = {{ file = \"{file}\" }}\n{client}")
    })
}

#[tokio::test(start_paused = true)]
async fn an_account_with_another_name_keeps_the_book_of_its_key() {
    let scratch = Scratch::new();
    write(&scratch.0.join("shared"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at("requests_per_minute = 5", &accounts(&[("a", "shared")]), vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..5 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    gate.reload("requests_per_minute = 5", &accounts(&[("b", "shared")])).await.expect("taken");
    let begun = Instant::now();
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW / 2, "{:?}", begun.elapsed());
    assert_eq!(gate.vault.seen().most_in_window, 5);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_renamed_account_are_followed_with_the_key_that_it_has_now() {
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let web_of = |account: &str| {
        format!("{WEB}account = \"{account}\"\n[accounts.{account}]\nplan = \"main\"\nkey = {{ file = \"moved\" }}\n")
    };
    let scratch = Scratch::new();
    write(&scratch.0.join("moved"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(FREE, &web_of("before"), vault, scratch);
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, &web_of("after")).await.expect("taken");
    gate.vault.add("cdt_third");
    write(&gate.path("moved"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    gate.vault.revoke(NEW);
    gate.vault.finish(&job);
    while gate.send(as_web(poll(&job))).await.json()["status"] != "completed" {
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((gate.vault.seen().unauthorized, gate.proxy.usage().jobs_live), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_two_accounts_that_no_longer_share_a_key_one_begins_with_a_full_window() {
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), NEW);
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let two = accounts(&[("a", "a-key"), ("b", "b-key")]);
    let mut gate = Gate::at("requests_per_minute = 4", &two, vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    write(&gate.path("b-key"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    assert_eq!(gate.send(call("a")).await.status, 200);
    assert!(begun.elapsed() < WINDOW / 2, "a goes on with the book");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn books_follow_keys_that_are_swapped() {
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), "cdt_third");
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let two = accounts(&[("a", "a-key"), ("b", "b-key")]);
    let mut gate = Gate::at("requests_per_minute = 3", &two, vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    write(&gate.path("a-key"), "cdt_third");
    write(&gate.path("b-key"), NEW);
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    assert!(begun.elapsed() < WINDOW / 2, "its key had sent nothing");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW / 2, "its key had used up its window");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_back_for_another_account_begins_with_a_full_window() {
    let plan = "requests_per_minute = 3";
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), NEW);
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(plan, &accounts(&[("a", "a-key")]), vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    assert_eq!(gate.send(call("a")).await.status, 200);
    write(&gate.path("a-key"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    gate.reload(plan, &accounts(&[("a", "a-key"), ("b", "b-key")])).await.expect("taken");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}
