//! The pictures of docs/dashboard.md, by hand: `cargo nextest run --run-ignored only -E 'test(pictures)'`. They take seven minutes, for curves
//! to show something.

use std::time::Duration;

use serde_json::json;
use sluicegate::mock::{Fault, Options, RunTime};
use tokio::net::TcpStream;

use super::{admin_url, prediction, refreshed};
use crate::support::chrome::Chrome;
use crate::support::client::{self, With, get};
use crate::support::{Setup, create_with, poll};

#[tokio::test]
#[ignore = "writes docs/images"]
async fn pictures() {
    let setup = Setup {
        mock: Options {
            run_time: RunTime::Uniform(Duration::from_secs(3), Duration::from_secs(9)),
            model_run_times: vec![(
                "kling-video".into(),
                RunTime::Uniform(Duration::from_secs(40), Duration::from_secs(90)),
            )],
            ..Options::default()
        },
        plan: "requests_per_minute = 60\nconcurrent_jobs = 5\ncredits_per_day = 500",
        toml: "[models.kling-video]\ncredits = 4\npoll = \"5s\"\n[models.flux-schnell]\ncredits = 1\npoll = \"1s\"\n[retry]\ninitial_backoff = \"10ms\"\n\
            [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\nweight = 3\n\
            [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    let images = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/images");
    std::fs::create_dir_all(&images).expect("made");
    let mut chrome = Chrome::start().await;
    chrome.look_like(1280, 1180, "light").await;
    chrome.open(&admin_url(&live)).await;
    let port = live.server.listen[0];
    let send = move |call| async move { client::exchange(TcpStream::connect(port).await.expect("open"), call).await };
    live.mock.script([Fault::Status { code: 503, headers: [].into(), execute: false }
        .on("GET", "/v1/echo")
        .after(2)
        .times(3)]);
    let mut callers = tokio::task::JoinSet::new();
    for (caller, (token, model)) in [
        ("web-token", "flux-schnell"),
        ("web-token", "flux-schnell"),
        ("batch-token", "kling-video"),
        ("batch-token", "flux-schnell"),
    ]
    .into_iter()
    .cycle()
    .take(10)
    .enumerate()
    {
        callers.spawn(async move {
            tokio::time::sleep(Duration::from_millis(700 * caller as u64)).await;
            loop {
                let made = send(prediction(model).with("x-api-key", token)).await;
                let id = made.job_id();
                while send(poll(&id).with("x-api-key", token)).await.json()["status"] != "completed" {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                send(get("/v1/echo").with("x-api-key", token)).await;
            }
        });
    }
    callers.spawn(async move {
        loop {
            send(get("/v1/templates").with("x-api-key", "nobody")).await;
            let impatient = create_with(&json!({"model": "flux-schnell"})).with("sluicegate-max-wait", "0s");
            send(impatient.with("x-api-key", "batch-token")).await;
            tokio::time::sleep(Duration::from_secs(17)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(400)).await;
    for (name, width, height, theme) in [
        ("dashboard-light", 1280, 1180, "light"),
        ("dashboard-dark", 1280, 1180, "dark"),
        ("dashboard-narrow-dark", 360, 1500, "dark"),
    ] {
        chrome.look_like(width, height, theme).await;
        refreshed(&mut chrome).await;
        std::fs::write(images.join(format!("{name}.png")), chrome.picture().await).expect("written");
    }
    callers.abort_all();
}
