//! The operator's port.

use serde_json::json;
use sluicegate::mock::{Options, RunTime};
use std::time::Duration;

use crate::support::client::{self, With};
use crate::support::{KEY, Setup, create, get};

#[tokio::test]
async fn it_tells_health_limits_jobs_and_metrics_and_changes_nothing() {
    let setup = Setup {
        mock: Options { run_time: RunTime::Fixed(Duration::from_secs(600)), ..Options::default() },
        ..Setup::default()
    };
    let live = setup.loopback().await;
    assert_eq!(live.admin("/livez").await.status, 200);
    assert_eq!(live.admin("/readyz").await.status, 200);
    let id = live.send(create()).await.job_id();
    assert_eq!(live.send(get("/v1/echo").with("host", "evil.test")).await.status, 421);

    let status = live.admin("/api/v1/status").await;
    assert_eq!((status.header("content-type"), status.header("cache-control")), ("application/json", "no-store"));
    let account = &status.json()["accounts"][0];
    assert_eq!((&account["name"], &account["jobs"]), (&json!("main"), &json!({"live": 1, "limit": 5})));
    assert_eq!((&account["requests"]["limit"], &account["requests"]["used"]), (&json!(60), &json!(1)));

    let jobs = live.admin("/api/v1/jobs").await.json();
    let job = &jobs["jobs"][0];
    assert_eq!((&job["id"], &job["model"], &job["client"]), (&json!(id), &json!("flux-schnell"), &json!("local")));

    let metrics = live.admin("/metrics").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    for line in [
        "sluicegate_requests_total{class=\"create\",status=\"2xx\"} 1",
        "sluicegate_rejections_total{code=\"misdirected_host\"} 1",
        "sluicegate_attempts_total{account=\"main\",class=\"create\",outcome=\"2xx\"} 1",
        "sluicegate_jobs_live{account=\"main\"} 1",
        "sluicegate_window_used{account=\"main\"} 1",
        "sluicegate_window_limit{account=\"main\"} 60",
        "sluicegate_ready 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert!(text.ends_with("# EOF\n") && !text.contains(KEY));
    assert_eq!(live.admin("/").await.status, 404);

    let admin = live.server.admin.expect("a port");
    let connect = || async { tokio::net::TcpStream::connect(admin).await.expect("open") };
    let evil = client::exchange(connect().await, get("/api/v1/status").with("host", "evil.test")).await;
    assert_eq!(evil.status, 421);
    let page = client::exchange(connect().await, get("/api/v1/status").with("origin", "http://evil.test")).await;
    assert_eq!(page.status, 403);
    let posted = client::exchange(connect().await, client::post("/api/v1/status", "{}")).await;
    assert_eq!(posted.status, 405);
    assert_eq!(live.mock.stats().attempts, 1, "nothing of this went upstream");
    assert!(live.stop().await);
}
