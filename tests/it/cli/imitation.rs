//! `mock` and `demo`.

use rustix::process::Signal;

use super::CREATE;
use crate::support::program::{Place, Running, send};

#[tokio::test]
async fn mock_has_a_ready_line_and_ends_by_signal() {
    let place = Place::new();
    let mut mock = Running::start(&mut place.bare(&["mock", "--listen", "127.0.0.1:0", "--requests", "1"]));
    let address = mock.line("sluicegate mock ready on http://").await.parse().unwrap();
    let answer = send(address, "GET /v1/echo HTTP/1.1\nX-API-Key: any").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    mock.signal(Signal::TERM);
    assert_eq!(mock.line("1 requests").await, ", 0 jobs; refused 0 for the rate, 0 for the job limit");
    assert_eq!(mock.exit_code().await, Some(0));
}

#[tokio::test]
async fn the_demo_loses_nothing_and_is_never_refused() {
    let place = Place::new();
    // The demo takes the usual ports if it can, and others if it cannot.
    let run = place.run(&["demo", "--once"]).await;
    assert_eq!(run.code, Some(0), "{}\n{}", run.out, run.err);
    for part in [
        "ten times the real speed",
        "sluicegate ready on http://127.0.0.1:",
        "50 predictions done, 0 lost",
        "the best possible is 7.0 s",
        "0 answers 429",
    ] {
        assert!(run.out.contains(part), "{part}\n{}", run.out);
    }
    let time = run.out.lines().find_map(|line| line.trim().strip_prefix("time")).unwrap();
    let seconds: f64 = time.split_whitespace().next().unwrap().parse().unwrap();
    assert!(seconds < 30.0, "{time}");
    assert!(!place.join(".local").exists(), "it keeps no state");
}

#[tokio::test]
async fn the_demo_stays_up_until_it_is_ended() {
    let place = Place::new();
    let mut demo = Running::start(&mut place.bare(&["demo", "--n", "2"]));
    let address = demo.ready().await;
    demo.line("it stays up").await;
    let answer = send(address, CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    demo.signal(Signal::INT);
    assert_eq!(demo.exit_code().await, Some(0));
}
