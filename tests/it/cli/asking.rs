//! Commands that ask a running proxy.

use std::time::Duration;

use sluicegate::mock::Options;
use tokio::net::TcpListener;

use crate::support::program::{Place, Running, ended, free_port, mock};

#[tokio::test]
async fn healthcheck_needs_no_key() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let admin = free_port().to_string();
    let check = || {
        let mut command = place.bare(&["healthcheck"]);
        command.env("SLUICEGATE_ADMIN_LISTEN", &admin);
        command
    };
    let before = ended(&mut check()).await;
    assert_eq!(before.code, Some(1));
    assert!(before.err.contains(&admin), "{}", before.err);

    let mut proxy = Running::start(place.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    let data = proxy.ready().await;
    let during = ended(&mut check()).await;
    assert_eq!((during.code, during.out.as_str()), (Some(0), "ready\n"), "{}", during.err);
    let url = format!("http://{admin}");
    assert_eq!(place.run(&["healthcheck", "--url", &url]).await.code, Some(0));
    let wrong = format!("http://{data}/nothing/here");
    let other = place.run(&["healthcheck", "--url", &wrong]).await;
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("404"), "{}", other.err);
}

#[tokio::test]
async fn usage_asks_the_running_proxy() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let admin = free_port().to_string();
    let url = format!("http://{admin}");
    assert_eq!(place.run(&["usage", "--url", &url]).await.code, Some(1));
    let mut proxy = Running::start(place.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    proxy.ready().await;
    let shown = place.run(&["usage", "--url", &url]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.out.contains("budgets renew in") && shown.out.contains("account"), "{}", shown.out);
    let json = place.run(&["usage", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"last_30_days\":[]"), "{}", json.out);

    let forecast = place.run(&["forecast", "--model", "new one", "-n", "3", "--url", &url]).await;
    assert_eq!(forecast.code, Some(0), "{}", forecast.err);
    assert!(forecast.out.starts_with("3 jobs of new one on"), "{}", forecast.out);
    let json = place.run(&["forecast", "--model", "new one", "-n", "3", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"known\":false"), "{}", json.out);
    let nobody = ["forecast", "--model", "m", "-n", "3", "--account", "nobody", "--url", &url];
    let nobody = place.run(&nobody).await;
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("there is no account \"nobody\""), "{}", nobody.err);
    assert_eq!(place.run(&["forecast", "--model", "m", "-n", "0", "--url", &url]).await.code, Some(2));
}

#[tokio::test]
async fn healthcheck_gives_up_on_a_port_that_never_answers() {
    let place = Place::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begun = tokio::time::Instant::now();
    let run = place.run(&["healthcheck", "--url", &url]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("within 2 s"), "{}", run.err);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
