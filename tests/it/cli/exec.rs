//! `exec`: a command with the proxy up and without the key.

use rustix::process::Signal;
use sluicegate::mock::Options;

use super::CREATE;
use crate::support::program::{KEY, Place, Running, ended, mock, send};

#[tokio::test]
async fn exec_gives_the_command_everything_but_the_key() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut command = place.proxy(&mock, &["exec", "--", "sh", "-c", "env; exit 7"]);
    command
        .env("CORE_STAGING_API_KEY", "another-key-of-the-file")
        .env("HIDDEN", format!("Bearer {KEY}"))
        .env("OPENAI_API_KEY", KEY)
        .env("OTHER", "kept");
    let run = ended(&mut command).await;
    assert_eq!(run.code, Some(7), "{}", run.err);
    assert!(!run.out.contains(KEY) && !run.out.contains("another-key-of-the-file"), "{}", run.out);
    let value = |name: &str| {
        let beginning = format!("{name}=");
        run.out.lines().find_map(|line| line.strip_prefix(&beginning).map(str::to_owned))
    };
    assert_eq!(value("OTHER").as_deref(), Some("kept"));
    assert_eq!(value("HIDDEN"), None);
    assert_eq!(value("OPENAI_API_KEY").as_deref(), Some("sluicegate"));
    assert_eq!(value("CORE_API_KEY").as_deref(), Some("sluicegate"));
    let base = value("CORE_API_BASE").unwrap();
    assert!(base.starts_with("http://127.0.0.1:") && !base.ends_with(":0"), "{base}");
    assert_eq!(value("OPENAI_BASE_URL").unwrap(), format!("{base}/llm/openai/v1"));
    assert!(!run.out.contains("sluicegate ready"), "stdout is the command's");
}

#[tokio::test]
async fn exec_serves_its_command_and_passes_signals_on() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let script = "trap 'echo got it; exit 5' TERM; echo base $CORE_API_BASE; while :; do sleep 0.05; done";
    let mut run = Running::start(&mut place.proxy(&mock, &["exec", "sh", "-c", script]));
    let base = run.line("base http://").await;
    let answer = send(base.parse().unwrap(), CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    run.signal(Signal::TERM);
    run.line("got it").await;
    assert_eq!(run.exit_code().await, Some(5));
}

#[tokio::test]
async fn exec_of_a_missing_command_ends_with_127() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let run = ended(&mut place.proxy(&mock, &["exec", "--", "no-such-command"])).await;
    assert_eq!(run.code, Some(127));
    assert!(run.err.contains("no-such-command cannot be run"), "{}", run.err);
}
