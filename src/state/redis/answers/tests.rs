//! The script in a real redis-server, call by call.

use crate::state::redis::store::{Member, Store, doctored};

use super::*;

/// What the script answers to replica `of` about the create `n`.
async fn said(server: &Server, of: &str, n: u32, op: &str, answer: &[&str]) -> String {
    said_by(RULES, server, of, n, op, answer).await.expect("it answers")
}

/// The same by a script of another version.
async fn said_by(
    script: &str,
    server: &Server,
    of: &str,
    n: u32,
    op: &str,
    answer: &[&str],
) -> Result<String, Failure> {
    let keys = ["answer:k", "account", "members"].map(|part| format!("{{x}}:{part}"));
    let n = n.to_string();
    let mut args = vec![op, of, "life", &n, "body", "1000000", "60000"];
    args.extend(answer);
    let words: Vec<String> = server.run(&Script::new(script), &keys, args).await?;
    Ok(words.join(" "))
}

#[tokio::test]
async fn what_was_given_back_is_not_taken_by_a_call_that_comes_late() {
    let store = Store::start().await;
    let server = store.server();
    // It was given up before it came.
    assert_eq!(said(&server, "a", 1, "forget", &[]).await, "done");
    assert_eq!(said(&server, "a", 1, "enter", &[]).await, "runs");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "runs");
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "yours");
    assert_eq!(said(&server, "b", 1, "forget", &[]).await, "done");
    assert_eq!(said(&server, "a", 2, "enter", &[]).await, "yours", "another create of the same replica");
}

/// A replica tells a store that was emptied what it has under way; by the time that arrives, the create may have been refused.
#[tokio::test]
async fn what_was_given_back_is_not_taken_by_what_is_told_again() {
    let store = Store::start().await;
    let server = store.server();
    for (n, late) in [(1, "sending"), (2, "unknown")] {
        assert_eq!(said(&server, "a", n, "enter", &[]).await, "yours", "{late}");
        assert_eq!(said(&server, "a", n, "begin", &[]).await, "yours", "{late}");
        assert_eq!(said(&server, "a", n, "forget", &[]).await, "done", "{late}");
        assert_eq!(said(&server, "a", n, late, &[]).await, "done", "{late}");
    }
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "yours");
}

#[tokio::test]
async fn an_answer_is_not_put_away_by_a_call_that_comes_late() {
    let store = Store::start().await;
    let server = store.server();
    assert_eq!(said(&server, "a", 1, "enter", &[]).await, "yours");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "yours");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "yours", "asked again, as its answer was lost");
    assert_eq!(said(&server, "a", 1, "said", &["201", "", "{}", "1"]).await, "done");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "runs");
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "said 201  {} 1");
}

#[tokio::test]
async fn who_lives_is_not_judged_by_the_server_s_clock() {
    let store = Store::start().await;
    let server = store.server();
    // The lease is a second. The server's clock has gone an hour further, and neither replica has called since.
    let stepped = Member { silent: Duration::from_secs(3_600), ..Member::called("a", "life") };
    store.knows(Duration::from_secs(3_600), &[stepped]).await;
    assert_eq!(said(&server, "a", 1, "enter", &[]).await, "yours");
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "runs");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "yours");
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "runs", "it is sent by one that lives");
    // Silent for four leases, as those who called have seen, though the clock was set back meanwhile.
    let silent = Member { silent: Duration::ZERO, aged: Duration::from_secs(4), ..Member::called("a", "life") };
    store.knows(Duration::ZERO, &[silent]).await;
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "unknown");
}

#[tokio::test]
async fn who_has_not_come_back_after_a_loss_is_not_given_up_before_the_account_has_settled() {
    let store = Store::start().await;
    let server = store.server();
    store.knows(Duration::ZERO, &[Member::called("a", "life")]).await;
    assert_eq!(said(&server, "a", 1, "enter", &[]).await, "yours");
    assert_eq!(said(&server, "a", 1, "begin", &[]).await, "yours");
    for (field, value) in [("full", "9000000000000000"), ("roll", "1")] {
        store.knows(Duration::ZERO, &[]).await;
        store.run(&["HSET", "{x}:account", field, value]).await;
        assert_eq!(said(&server, "b", 1, "enter", &[]).await, "runs", "{field}");
    }
    store.run(&["DEL", "{x}:account"]).await;
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "runs", "nothing is known of anybody");
    store.knows(Duration::ZERO, &[Member::called("a", "another")]).await;
    assert_eq!(said(&server, "b", 1, "enter", &[]).await, "unknown");
}

#[tokio::test]
async fn scripts_of_several_versions_have_one_create_for_a_key() {
    let store = Store::start().await;
    let server = store.server();
    // One keeps more, and one is from before there were versions.
    let newer = doctored(
        RULES,
        &[
            ("'asked', asked)", "'asked', asked, 'weight', ARGV[12] or '7')"),
            ("redis.call('HSET', key, 'status'", "redis.call('HSET', key, 'weight', '8', 'status'"),
        ],
    );
    let older = doctored(RULES, &[("if newer then return newer end", "")]);
    let by = async |script: &str, of: &str, op: &str, answer: &[&str]| {
        said_by(script, &server, of, 1, op, answer).await.expect("it answers")
    };
    store.knows(Duration::ZERO, &[Member::called("a", "life"), Member::called("b", "life")]).await;
    assert_eq!(by(&newer, "a", "enter", &[]).await, "yours");
    for script in [&older, RULES] {
        assert_eq!(by(script, "b", "enter", &[]).await, "runs");
        assert_eq!(by(script, "b", "begin", &[]).await, "runs");
    }
    assert_eq!(by(&newer, "a", "begin", &[]).await, "yours");
    // Updated, or put back, in the middle of its create.
    assert_eq!(by(&older, "a", "begin", &[]).await, "yours");
    assert_eq!(by(RULES, "a", "said", &["201", "", "{}", "1"]).await, "done");
    for script in [&older, RULES, &newer] {
        assert_eq!(by(script, "b", "enter", &[]).await, "said 201  {} 1");
    }
}

#[tokio::test]
async fn an_account_that_a_newer_version_keeps_is_left_alone() {
    let store = Store::start().await;
    let server = store.server();
    store.run(&["HSET", "{x}:account", "version", "2"]).await;
    let refused = said_by(RULES, &server, "a", 1, "enter", &[]).await.expect_err("refused");
    assert!(refused.to_string().contains("newer version"), "{refused}");
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:answer:k", "state"]).await, None);
}
