//! Creates that are forms.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::mock::{Options, RunTime};
use tokio::time::sleep;

use super::{HOOK, IN, OUT, Stage, options, secs, signed};
use crate::support::post;

/// The upstream's way to read a form.
fn form(parts: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let part = |(name, value): &(&str, &str)| {
        let file = if name.starts_with("file:") { "; filename=\"a.png\"" } else { "" };
        format!("--XX\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n{value}\r\n")
    };
    let body: String = parts.iter().map(part).collect::<String>() + "--XX--\r\n";
    let mut request = post("/v1/predictions/upload", body);
    request.headers_mut().insert("content-type", "multipart/form-data; boundary=XX".parse().expect("a type"));
    request
}

#[tokio::test(start_paused = true)]
async fn the_webhook_of_a_form_is_delivered_like_any_other() {
    let large = "x".repeat(3 << 20);
    for file in ["abc", &large] {
        let stage = Stage::new(OUT);
        let (hook, events) = (("webhook", HOOK), ("webhook_events", "completed"));
        let parts = [hook, events, ("model", "m"), ("input", "{}"), ("file:image", file)];
        let answer = stage.send(form(&parts)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        sleep(secs(30)).await;
        let hits = stage.receivers.hits();
        let [hit] = &hits[..] else { panic!("{hits:?}") };
        assert_eq!((hit.job(), hit.port), (answer.job_id(), 3000));
        let sent = stage.sent();
        assert!(!sent.contains("webhook") && !sent.contains("3000"), "{}", &sent[..1_000]);
        let seen = stage.mock.requests().into_iter().find(|seen| seen.method == "POST").expect("a create");
        assert!(seen.headers.contains_key("content-length"), "it is still told: {:?}", seen.headers);
    }
}

#[tokio::test(start_paused = true)]
async fn the_webhook_of_a_form_is_relayed() {
    let stage = Stage::with(IN, Options { run_time: RunTime::Fixed(secs(3_600)), ..options() });
    let answer = stage.send(form(&[("model", "m"), ("input", "{}"), ("webhook", HOOK)])).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let tell = format!(r#"{{"job_id":"{}","status":"completed"}}"#, answer.job_id());
    assert_eq!(stage.call(signed(&stage.token(), tell)).await.status, 200);
    sleep(secs(1)).await;
    assert_eq!((stage.receivers.hits().len(), stage.proxy.usage().jobs_live), (1, 0));
}
