//! The operator's port.

use serde_json::json;
use sluicegate::mock::{Options, RunTime};
use std::time::Duration;

use crate::support::client::{self, With};
use crate::support::{KEY, Setup, create, get, poll};

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
    assert_eq!(live.admin("/nothing").await.status, 404);

    let admin = live.server.admin.expect("a port");
    let connect = || async { tokio::net::TcpStream::connect(admin).await.expect("open") };
    let evil = client::exchange(connect().await, get("/api/v1/status").with("host", "evil.test")).await;
    assert_eq!(evil.status, 421);
    let page = client::exchange(connect().await, get("/api/v1/status").with("origin", "http://evil.test")).await;
    assert_eq!(page.status, 403);
    let posted = client::exchange(connect().await, client::post("/api/v1/status", "{}")).await;
    assert_eq!(posted.status, 405);
    let traced = client::exchange(connect().await, client::request("TRACE", "/api/v1/status", "")).await;
    assert_eq!((traced.status.as_u16(), traced.header("allow")), (405, "GET, HEAD"));
    assert_eq!(live.mock.stats().attempts, 1, "nothing of this went upstream");
    assert!(live.stop().await);
}

#[tokio::test]
async fn no_page_in_a_browser_gets_anything_and_no_get_changes_anything() {
    let live = Setup::default().loopback().await;
    let admin = live.server.admin.expect("a port");
    let send = async |call| client::exchange(tokio::net::TcpStream::connect(admin).await.expect("open"), call).await;
    let replay = "/api/v1/webhooks/1/replay";
    let paths = [
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/api/v1/jobs",
        "/api/v1/usage",
        "/api/v1/webhooks",
        replay,
    ];
    for path in paths {
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"] {
            let call = || client::request(method, path, "");
            for (name, value) in
                [("origin", "http://evil.test"), ("origin", "null"), ("origin", "http://localhost:3000")]
            {
                assert_eq!(send(call().with(name, value)).await.status, 403, "{method} {path} {value}");
            }
            assert_eq!(send(call().with("sec-fetch-site", "cross-site")).await.status, 403, "{method} {path}");
            assert_eq!(send(call().with("host", "evil.test")).await.status, 421, "{method} {path}");
            let answer = send(call()).await;
            assert!(!answer.headers.contains_key("access-control-allow-origin"), "{method} {path}");
            let expected: &[u16] = match (method, path == replay) {
                ("GET" | "HEAD", false) => &[200],
                // There is no such webhook.
                ("POST", true) => &[404],
                _ => &[405],
            };
            assert!(expected.contains(&answer.status.as_u16()), "{method} {path}: {answer:?}");
            if answer.status == 405 {
                let allow = if path == replay { "POST" } else { "GET, HEAD" };
                assert_eq!(answer.header("allow"), allow, "{method} {path}");
                let told = format!("this path of the admin port takes {allow} only");
                assert!(method == "HEAD" || answer.json()["detail"] == told, "{method} {path}: {answer:?}");
            }
        }
    }
    assert_eq!(live.mock.stats().attempts, 0);
    assert!(live.stop().await);
}

#[tokio::test]
async fn a_forecast_follows_from_what_was_learned_and_what_is_free() {
    let setup = Setup {
        mock: Options { run_time: RunTime::Fixed(Duration::from_millis(300)), ..Options::default() },
        plan: "requests_per_minute = 60\nconcurrent_jobs = 5\ncredits_per_day = 10",
        toml: "[models.\"flux-schnell\"]\ncredits = 1\npoll = \"100ms\"",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    let ask = async |query: &str| live.admin(&format!("/api/v1/forecast?{query}")).await;
    let guess = ask("model=flux-schnell&n=1").await.json();
    assert_eq!((&guess["known"], &guess["run_time_secs"]["mean"]), (&json!(false), &json!(0.1)));
    let unknown = ask("model=unheard-of&n=1").await.json();
    assert_eq!((&unknown["known"], &unknown["done_in_secs"]), (&json!(false), &json!(null)));
    assert_eq!((&unknown["credits"], &unknown["bottleneck"]), (&json!(null), &json!(null)));

    let id = live.send(create()).await.job_id();
    let ended = live.send(poll(&id).with("prefer", "wait=20")).await;
    assert_eq!(ended.json()["status"], "completed");
    let few = ask("model=flux-schnell&n=5&account=main").await.json();
    assert_eq!((&few["known"], &few["account"], &few["n"]), (&json!(true), &json!("main"), &json!(5)));
    let mean = few["run_time_secs"]["mean"].as_f64().expect("a number");
    assert!((0.05..1.0).contains(&mean) && few["run_time_secs"]["p90"].as_f64() >= Some(mean), "{few}");
    assert_eq!((&few["attempts"], &few["bottleneck"]), (&json!(10), &json!("run_time")));
    assert!((few["done_in_secs"].as_f64().expect("a number") - mean).abs() < 0.01, "{few}");
    let credits = &few["credits"];
    assert_eq!((&credits["each"], &credits["total"], &credits["left"]), (&json!(1), &json!(5), &json!(9)));
    assert_eq!(credits["enough"], true);
    let many = ask("model=flux-schnell&n=40").await.json();
    assert_eq!((&many["bottleneck"], &many["credits"]["enough"]), (&json!("credits"), &json!(false)));
    assert!(many["done_at"].as_u64() > many["credits"]["reset_at"].as_u64(), "{many}");

    for (query, reason) in
        [("model=m&n=0", "from 1 to 10000"), ("n=1", "model is missing"), ("model=m&n=1&account=x", "no account \"x\"")]
    {
        let refused = ask(query).await;
        assert_eq!(refused.status, 400, "{query}");
        assert!(String::from_utf8_lossy(&refused.body).contains(reason), "{query}");
    }
    assert!(live.stop().await);
}
