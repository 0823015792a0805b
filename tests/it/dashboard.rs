//! The dashboard, in a real browser: what it shows is what the upstream counted.

use std::time::Duration;

use serde_json::{Value, json};
use sluicegate::mock::{Fault, Options, RunTime};
use tokio::net::TcpStream;

use crate::support::chrome::Chrome;
use crate::support::client::{self, With};
use crate::support::{KEY, Live, Setup, create_with, get, poll};

/// Without a browser: who may listen.
mod events;

/// Text of all elements that a selector finds, as a list.
fn texts(selector: &str) -> String {
    format!("[...document.querySelectorAll('{selector}')].map(found => found.innerText.trim())")
}

/// Waits until the page shows a snapshot that was taken after this moment.
async fn refreshed(chrome: &mut Chrome) {
    chrome.value("document.body.dataset.shown = ''").await;
    chrome.until("document.body.dataset.shown > ''").await;
}

fn admin_url(live: &Live) -> String {
    format!("http://{}/", live.server.admin.expect("a port"))
}

/// What a card says, by title.
async fn counts(chrome: &mut Chrome, card: usize) -> Value {
    let script = format!(
        "Object.fromEntries([...document.querySelectorAll('.card')[{card}].querySelectorAll('.counts > div')]
            .map(pair => [pair.querySelector('dt').textContent, pair.querySelector('dd').textContent]))"
    );
    chrome.value(&script).await
}

fn prediction(model: &str) -> http::Request<http_body_util::Full<bytes::Bytes>> {
    create_with(&json!({"model": model, "input": {"prompt": "my secret wish"}}))
}

/// Jobs, polls, another user of the key, faults and refusals: then the page says what the mock counted.
#[tokio::test]
async fn its_numbers_are_the_upstream_s() {
    let setup = Setup {
        mock: Options {
            run_time: RunTime::Fixed(Duration::from_millis(300)),
            model_run_times: vec![("slow".into(), RunTime::Fixed(Duration::from_secs(600)))],
            ..Options::default()
        },
        plan: "requests_per_minute = 60\nconcurrent_jobs = 5\ncredits_per_day = 50",
        toml: "[models.slow]\ncredits = 2\n[models.quick]\ncredits = 0.5\n[retry]\ninitial_backoff = \"10ms\"\n\
            [[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n\
            [[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    let mut chrome = Chrome::start().await;
    chrome.look_like(1280, 1400, "light").await;
    chrome.open(&admin_url(&live)).await;
    chrome.until("document.getElementById('state').textContent === 'Live'").await;
    let base = format!("http://{}", live.server.listen[0]);
    assert_eq!(chrome.value("document.querySelector('#jobs-empty .base').textContent").await, base);

    let as_web = |call: http::Request<_>| call.with("x-api-key", "web-token");
    let as_batch = |call: http::Request<_>| call.with("x-api-key", "batch-token");
    for _ in 0..3 {
        let id = live.send(as_web(prediction("quick"))).await.job_id();
        let ended = live.send(as_web(poll(&id).with("prefer", "wait=20"))).await;
        assert_eq!(ended.json()["status"], "completed");
        assert_eq!(live.send(as_web(poll(&id))).await.status, 200, "from memory");
    }
    live.mock.fault_next("GET", "/v1/echo", Fault::Status { code: 503, headers: [].into(), execute: false });
    assert_eq!(live.send(as_web(get("/v1/echo"))).await.status, 200, "at the second attempt");
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(live.send(as_batch(prediction("slow"))).await.job_id());
    }
    assert_eq!(live.send(get("/v1/echo").with("x-api-key", "nobody")).await.status, 401);
    // Somebody else spends the same key, and the next answer tells.
    for _ in 0..4 {
        client::exchange(
            TcpStream::connect(live.mock.addr()).await.expect("open"),
            get("/v1/echo").with("x-api-key", KEY),
        )
        .await;
    }
    assert_eq!(live.send(as_web(get("/v1/echo?key=web-token"))).await.status, 200);

    // The proxy looks at live jobs in between: the numbers are compared where none of its looks came between them.
    let (stats, counts, gauges) = loop {
        let before = live.mock.stats();
        refreshed(&mut chrome).await;
        let read = (counts(&mut chrome, 0).await, chrome.value(&texts(".gauge .over")).await);
        let after = live.mock.stats();
        if before.attempts == after.attempts {
            break (after, read.0, read.1);
        }
    };
    assert_eq!((stats.creates_accepted, stats.jobs_live_now), (5, 2));
    assert_eq!(counts["attempts"], (stats.attempts - 4).to_string(), "without those of the other user");
    assert_eq!((&counts["retries"], &counts["drift"]), (&json!("1"), &json!("4")));
    assert_eq!((&counts["429 window"], &counts["429 jobs"]), (&json!("0"), &json!("0")));
    let used = format!("{} / 60 attempts in any 60 s", stats.attempts - 4);
    assert_eq!(gauges, json!([used, "2 / 5 jobs", "5.5 / 50 credits today"]));
    assert_eq!(chrome.value("document.querySelectorAll('.pip.taken').length").await, stats.jobs_live_now);
    assert_eq!(chrome.value(&texts(".badge")).await, json!(["4 attempts of others"]));

    let jobs = chrome.value(&texts("#jobs .id")).await;
    assert_eq!(jobs, json!(slow), "the oldest first");
    assert_eq!(chrome.value(&texts("#jobs .below")).await, json!(["slow · batch", "slow · batch"]));
    assert!(
        chrome
            .value("document.getElementById('jobs-note').textContent")
            .await
            .as_str()
            .is_some_and(|note| note.starts_with("2; since the start 3 succeeded"))
    );
    let clients = chrome.value(&texts("#clients tbody td")).await;
    assert_eq!(clients, json!(["batch", "main", "0", "2", "web", "main", "0", "0"]));
    let causes = chrome.value(&texts("#causes tbody td")).await;
    assert_eq!(causes, json!(["retry after", "5xx", "main", "1", "refused here", "unauthorized", "", "1"]));

    let decided = chrome.value(&texts("#recent tbody tr td:nth-child(5)")).await;
    let count = |who: &str| decided.as_array().expect("a list").iter().filter(|by| *by == who).count();
    assert_eq!(
        (count("memory"), count("upstream"), count("proxy"), decided.as_array().map(Vec::len)),
        (6, 7, 1, Some(14)),
        "{decided}"
    );
    let newest = chrome.value(&texts("#recent tbody tr:first-child td")).await;
    assert_eq!(
        (&newest[1], &newest[3], &newest[7]),
        (&json!("GET /v1/echo"), &json!("200"), &json!("1")),
        "no query: {newest}"
    );

    let page = chrome.value("document.documentElement.outerHTML").await;
    for secret in [KEY, "web-token", "my secret wish"] {
        assert!(!page.as_str().expect("text").contains(secret), "{secret}");
    }
    assert_eq!(chrome.complaints, [""; 0]);
    live.stop().await;
}

/// Names and ids are other people's text, and there may be many.
#[tokio::test]
async fn strangers_text_is_text_and_a_thousand_jobs_are_a_hundred_rows() {
    let setup = Setup {
        mock: Options {
            run_time: RunTime::Fixed(Duration::from_secs(600)),
            requests: None,
            concurrent_jobs: None,
            ..Options::default()
        },
        plan: "",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    let evil = "<img src=x onerror=document.title=1><script>document.title=2</script>";
    live.send(prediction(evil)).await.job_id();
    let url = admin_url(&live);
    start_jobs(&live, 999).await;
    let mut chrome = Chrome::start().await;
    chrome.look_like(360, 800, "dark").await;
    chrome.open(&url).await;
    chrome.until("document.querySelectorAll('#jobs tbody tr').length === 100").await;
    let note = chrome.value("document.getElementById('jobs-note').textContent").await;
    assert_eq!(note, "1,000, the oldest 100 shown");
    let shown = chrome.value("document.querySelector('#jobs .below').textContent").await;
    assert_eq!(shown, format!("{evil} · local"));
    assert_eq!(chrome.value("document.querySelectorAll('main img, main script').length").await, 0);
    assert_eq!(chrome.value("document.title").await, "1000 live, 0 waiting · Sluicegate");
    // Without a limit there is nothing to be full.
    assert_eq!(chrome.value("document.querySelectorAll('.bar:not([hidden])').length").await, 0);
    // Nothing is cut off at the smallest width: tables scroll in their panels.
    assert_eq!(chrome.value("document.documentElement.scrollWidth").await, 360);
    assert_eq!(chrome.complaints, [""; 0]);
    live.stop().await;
}

/// Sends so many creates, eight at a time.
async fn start_jobs(live: &Live, number: usize) {
    let mut under_way = tokio::task::JoinSet::new();
    let port = live.server.listen[0];
    for _ in 0..number {
        if under_way.len() == 8 {
            under_way.join_next().await;
        }
        under_way.spawn(async move {
            let stream = TcpStream::connect(port).await.expect("open");
            assert_eq!(client::exchange(stream, prediction("slow")).await.status, 201);
        });
    }
    while under_way.join_next().await.is_some() {}
}

#[tokio::test]
async fn a_lost_connection_is_told_and_taken_up_again() {
    let live = Setup::default().loopback().await;
    let mut chrome = Chrome::start().await;
    // A proxy of its own port between them, to cut.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let (address, admin) = (listener.local_addr().expect("bound"), live.server.admin.expect("a port"));
    let (cut, _) = tokio::sync::broadcast::channel::<()>(1);
    let cuts = cut.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut cut = cuts.subscribe();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(admin).await.expect("open");
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = cut.recv() => {}
                }
            });
        }
    });
    chrome.open(&format!("http://{address}/")).await;
    chrome.until("document.getElementById('state').textContent === 'Live'").await;
    chrome
        .value(
            "window.said = []; new MutationObserver(() => said.push(document.getElementById('state').textContent))
            .observe(document.getElementById('state'), {childList: true, characterData: true, subtree: true}); 0",
        )
        .await;
    cut.send(()).expect("somebody listens");
    chrome.until("said.some(words => words.startsWith('Connection lost, these numbers are of '))").await;
    chrome.until("document.getElementById('state').textContent === 'Live'").await;
    assert_eq!(chrome.value("document.body.classList.contains('lost')").await, false);
    live.stop().await;
}

#[tokio::test]
async fn draining_and_an_unreachable_upstream_are_told() {
    let setup = Setup { toml: "[server]\ndrain_timeout = \"4s\"\n[retry]\nmax_attempts = 1", ..Setup::default() };
    let live = setup.loopback().await;
    let mut chrome = Chrome::start().await;
    chrome.open(&admin_url(&live)).await;
    chrome.until("document.getElementById('state').textContent === 'Live'").await;
    let Live { server, mock, .. } = live;
    let port = server.listen[0];
    let send = move |wait| async move {
        let call = get("/v1/templates").with("sluicegate-max-wait", wait);
        client::exchange(TcpStream::connect(port).await.expect("open"), call).await
    };
    mock.shutdown().await;
    for _ in 0..6 {
        send("0s").await;
    }
    let waiting = tokio::spawn(send("10m"));
    let told =
        "document.getElementById('state').textContent === 'Upstream unreachable: 1 call waiting for a connection'";
    chrome.until(told).await;
    let drained = tokio::spawn(server.drain());
    chrome.until("document.getElementById('state').textContent === 'Draining: no new work is taken'").await;
    assert_eq!(chrome.value("document.getElementById('state').getAttribute('aria-live')").await, "polite");
    drained.await.expect("no panic");
    waiting.abort();
}

/// Texts whose contrast with their ground is below 4.5:1 (WCAG 2.2 §1.4.3).
const FAINT: &str = r"
(() => {
    let looked = 0;
    const parts = colour => colour.match(/[\d.]+/g).map(Number);
    const light = colour => parts(colour).slice(0, 3).map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = node => {
        const colour = getComputedStyle(node).backgroundColor;
        return (parts(colour)[3] ?? 1) > 0 || !node.parentElement ? colour : ground(node.parentElement);
    };
    const faint = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
        looked++;
        const [one, other] = [light(getComputedStyle(node).color), light(ground(node))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) faint.push(`${texts.currentNode.data} ${contrast.toFixed(2)}`);
    }
    return looked > 50 ? faint : [`only ${looked} texts`];
})()
";

#[tokio::test]
async fn the_theme_is_kept_and_everything_is_reached_by_keyboard() {
    let live = Setup::default().loopback().await;
    let mut chrome = Chrome::start().await;
    chrome.look_like(1280, 900, "dark").await;
    let url = admin_url(&live);
    chrome.open(&url).await;
    chrome.until("document.querySelectorAll('.curve').length === 4").await;
    let ground = "getComputedStyle(document.documentElement).backgroundColor";
    assert_eq!(chrome.value(ground).await, "rgb(18, 21, 23)", "as the system prefers");
    let mut reached = Vec::new();
    for _ in 0..4 {
        chrome.press("Tab", 9).await;
        reached.push(chrome.value("document.activeElement.id || document.activeElement.className.baseVal || document.activeElement.className").await);
        let outline = chrome.value("getComputedStyle(document.activeElement).outlineStyle").await;
        assert_eq!(outline, "solid", "{reached:?}");
    }
    assert_eq!(reached, ["skip", "theme", "curve", "curve"]);
    chrome.value("document.getElementById('theme').click()").await;
    assert_eq!(chrome.value("document.getElementById('theme').textContent").await, "Theme: light");
    chrome.open(&url).await;
    chrome.until("document.getElementById('state').textContent === 'Live'").await;
    assert_eq!(chrome.value(ground).await, "rgb(245, 246, 246)", "kept across visits");
    for theme in ["light", "dark"] {
        chrome.look_like(1280, 900, theme).await;
        chrome.value("delete document.documentElement.dataset.theme").await;
        assert_eq!(chrome.value(FAINT).await, json!([]), "{theme}");
    }
    let named = "[...document.querySelectorAll('table')].every(table => table.caption)
        && [...document.querySelectorAll('section')].every(part => document.getElementById(part.getAttribute('aria-labelledby')))
        && document.querySelectorAll('main, header, footer').length === 3";
    assert_eq!(chrome.value(named).await, true);
    live.stop().await;
}
