//! A real browser: what pages of other origins, and of a name rebound to this machine, can make the proxy do.
//!
//! Headless Chromium shows a page of the test's own server, which tries everything that a page can and then reports what it could read.
//! The mock counts what came through; the proxy's metrics show that the attempts did arrive at its ports.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::config::Scratch;
use crate::support::patience::until;
use crate::support::{Live, Setup};

/// Names that lead here, as an attacker's DNS would have it.
const RULES: &str = "--host-resolver-rules=MAP rebound.test 127.0.0.1, MAP evil.test 127.0.0.1";

/// Serves the page and takes its report. Everything else goes on to `target` byte for byte: with that, a name that first led to the
/// page's server leads to the proxy, at the same port, as after a rebinding.
struct Pages {
    address: SocketAddr,
    reports: mpsc::UnboundedReceiver<Value>,
}

impl Pages {
    async fn bind() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.expect("a free port")
    }

    fn serve(listener: TcpListener, script: String, target: SocketAddr) -> Self {
        let address = listener.local_addr().expect("bound");
        let (report, reports) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (script, report) = (script.clone(), report.clone());
                // A browser that left in the middle is none of our business.
                tokio::spawn(async move { answer(tcp, &script, &report, target).await.ok() });
            }
        });
        Self { address, reports }
    }

    async fn report(&mut self) -> Value {
        let report = timeout(Duration::from_secs(90), self.reports.recv()).await;
        report.expect("the page reported in time").expect("the server is there")
    }
}

async fn answer(
    mut tcp: TcpStream,
    script: &str,
    report: &mpsc::UnboundedSender<Value>,
    target: SocketAddr,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        if tcp.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let page = if read.starts_with(b"GET /page ") {
        format!("<!doctype html><meta charset=utf-8><body><script>{SHARED}{script}</script>")
    } else if read.starts_with(b"POST /report ") {
        // The report is JSON in one line and ends with a line feed.
        while read.last() != Some(&b'\n') || read.ends_with(b"\r\n") {
            if tcp.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let _ = report.send(serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")));
        String::new()
    } else if read.starts_with(b"GET /favicon.ico ") {
        String::new()
    } else {
        let mut proxy = TcpStream::connect(target).await?;
        proxy.write_all(&read).await?;
        copy_bidirectional(&mut tcp, &mut proxy).await?;
        return Ok(());
    };
    let length = page.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {length}\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await?;
    tcp.write_all(page.as_bytes()).await
}

/// Opens the page in a browser that lives as long as the value, with a profile of its own.
fn browse(url: &str, profile: &Scratch) -> Child {
    let mut browser = Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage"]);
    browser.args(["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]);
    browser.args(["--no-proxy-server", "--remote-debugging-port=0", RULES]);
    browser.arg(format!("--user-data-dir={}", profile.0.join("profile").display())).arg(url);
    browser.env("HOME", &profile.0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    browser.spawn().unwrap_or_else(|error| panic!("the tests need Chromium (`chromium`): {error}"))
}

/// What pages share: `attempt` tries one thing and notes what could be read; nothing hangs for ever.
const SHARED: &str = r"
const read = [];
let tried = 0;
const limit = ms => new Promise(done => setTimeout(done, ms));
async function attempt(name, what) {
    tried++;
    try {
        const got = await Promise.race([what(), limit(3000)]);
        if (got) read.push({name, got: String(got)});
    } catch (error) {}
}
// Of an answer that the page may look at: its status and its text.
async function look(response) {
    if (response.type === 'opaque') return '';
    return response.status + ' ' + await response.text();
}
// By address: connections to the page's name may lead to the proxy by now.
async function report(more) {
    const url = 'http://127.0.0.1:' + location.port + '/report';
    await fetch(url, {method: 'POST', mode: 'no-cors', body: JSON.stringify({read, tried, ...more}) + '\n'});
}
";

/// Everything that a page can send without being asked, to each of `ATTACKED`.
const ATTACK: &str = r#"
let number = 0;
function element(tag, fields, ended = ['load', 'error']) {
    return new Promise(done => {
        const made = Object.assign(document.createElement(tag), fields);
        for (const name of ended) made.addEventListener(name, () => done(made));
        document.body.append(made);
    });
}
function inside(frame) {
    const text = frame.contentDocument && frame.contentDocument.body ? frame.contentDocument.body.innerText : '';
    return text ? 'in a frame ' + text : '';
}
function form(url, enctype, more = {}) {
    const frame = Object.assign(document.createElement('iframe'), {name: 'frame' + number});
    document.body.append(frame);
    const made = Object.assign(document.createElement('form'),
        {method: 'POST', action: url, enctype, target: frame.name, ...more});
    made.innerHTML = '<input name=\'{"model":"flux-schnell","input":{"prompt":"a\' value=\'b"}}\'>';
    document.body.append(made);
    return new Promise(done => { frame.onload = () => done(inside(frame)); made.submit(); });
}
function sandboxed(url) {
    const script = `fetch(${JSON.stringify(url)}, {method: 'POST', mode: 'no-cors', body: '{}'}).finally(() => parent.postMessage('', '*'))`;
    const heard = new Promise(done => addEventListener('message', () => done(''), {once: true}));
    const frame = document.createElement('iframe');
    frame.sandbox = 'allow-scripts';
    frame.srcdoc = '<script>' + script + '</' + 'script>';
    document.body.append(frame);
    return heard;
}
async function attack(base, path) {
    const at = () => base + path + (path.includes('?') ? '&' : '?') + 'n=' + ++number;
    const json = '{"model":"flux-schnell","input":{"prompt":"a"}}';
    for (const mode of ['cors', 'no-cors']) {
        for (const credentials of ['omit', 'include']) {
            await attempt('get ' + mode, async () => look(await fetch(at(), {mode, credentials})));
            for (const type of ['text/plain', 'application/json', 'application/x-www-form-urlencoded']) {
                const headers = {'content-type': type};
                const post = {method: 'POST', mode, credentials, headers, body: json};
                await attempt('post ' + mode + ' ' + type, async () => look(await fetch(at(), post)));
            }
        }
    }
    await attempt('no referrer', async () => look(await fetch(at(), {mode: 'no-cors', referrerPolicy: 'no-referrer'})));
    await attempt('put', async () => look(await fetch(at(), {method: 'PUT', body: json})));
    await attempt('delete', async () => look(await fetch(at(), {method: 'DELETE'})));
    await attempt('own header', async () => look(await fetch(at(), {headers: {'x-api-key': 'k'}})));
    await attempt('sandbox', () => sandboxed(at()));
    for (const enctype of ['text/plain', 'multipart/form-data', 'application/x-www-form-urlencoded']) {
        await attempt('form ' + enctype, () => form(at(), enctype));
    }
    await attempt('form without referrer', () => form(at(), 'text/plain', {rel: 'noreferrer'}));
    await attempt('image', async () => (await element('img', {src: at()})).naturalWidth);
    await attempt('image without referrer', async () =>
        (await element('img', {src: at(), referrerPolicy: 'no-referrer'})).naturalWidth);
    await attempt('image with cors', async () => (await element('img', {crossOrigin: 'anonymous', src: at()})).naturalWidth);
    await attempt('script', async () => { await element('script', {src: at()}); });
    await attempt('module', async () => { await element('script', {type: 'module', src: at()}); });
    await attempt('style', async () => { await element('link', {rel: 'stylesheet', href: at()}); });
    await attempt('preload', async () => { await element('link', {rel: 'preload', as: 'fetch', href: at()}); });
    await attempt('frame', async () => inside(await element('iframe', {src: at()})));
    await attempt('object', async () => { await element('object', {data: at()}); });
    await attempt('video', async () => { await element('video', {src: at()}, ['error', 'loadeddata']); });
    await attempt('beacon', async () => { navigator.sendBeacon(at(), new Blob([json], {type: 'text/plain'})); });
    await attempt('events', () => new Promise(done => {
        const source = new EventSource(at(), {withCredentials: true});
        source.onopen = () => done('open');
        source.onmessage = event => done(event.data);
        source.onerror = () => { source.close(); done(''); };
    }));
    await attempt('socket', () => new Promise(done => {
        const socket = new WebSocket(at().replace('http', 'ws'));
        socket.onopen = () => done('open');
        socket.onerror = () => done('');
    }));
}
(async () => {
    for (const [base, path] of ATTACKED) await attack(base, path);
    await report({});
    location.href = ATTACKED[0][0] + ATTACKED[0][1] + '?top';
})();
"#;

/// The attack on each of these, as bases and paths.
fn attack(targets: &[(String, &str)]) -> String {
    format!("const ATTACKED = {};{ATTACK}", json!(targets))
}

/// How many requests the data port refused with this code.
async fn refused(live: &Live, code: &str) -> u64 {
    let page = live.admin("/metrics").await.body;
    let counted = String::from_utf8_lossy(&page);
    let mine = counted.lines().filter(|line| line.contains(&format!("code=\"{code}\"")));
    mine.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Waits until the data port has refused so many.
async fn refused_all(live: &Live, code: &str, expected: u64) -> u64 {
    until(format!("{expected} times {code}"), || async {
        let now = refused(live, code).await;
        (now >= expected, now)
    })
    .await
}

fn nothing_came_through(live: &Live, case: &str) {
    let stats = live.mock.stats();
    let mut seen = String::new();
    for request in live.mock.requests() {
        let _ = writeln!(seen, "{} {}", request.method, request.path);
    }
    assert_eq!((stats.attempts, stats.unauthorized), (0, 0), "{case}: {seen}");
}

/// Whatever a page of this origin can do, nothing comes of it; returns how many attempts it made at the data port.
async fn page_is_powerless(page_host: &str) {
    let live = Setup::default().loopback().await;
    let (data, admin) = (live.server.listen[0], live.server.admin.expect("a port"));
    let data_paths = ["/v1/predictions", "/v1/echo"];
    let mut targets: Vec<(String, &str)> = Vec::new();
    for host in ["127.0.0.1", "localhost"] {
        targets.extend(data_paths.map(|path| (format!("http://{host}:{}", data.port()), path)));
    }
    let at_data = targets.len() as u64;
    for path in ["/api/v1/status", "/metrics", "/api/v1/webhooks/1/replay"] {
        targets.push((format!("http://127.0.0.1:{}", admin.port()), path));
    }
    let mut pages = Pages::serve(Pages::bind().await, attack(&targets), data);
    let profile = Scratch::new();
    let _browser = browse(&format!("http://{page_host}:{}/page", pages.address.port()), &profile);
    let report = pages.report().await;
    assert_eq!(report["read"], json!([]), "{page_host}");
    let tried = report["tried"].as_u64().expect("a number") / targets.len() as u64;
    assert!(tried >= 38, "{tried}");
    // Each attempt arrives, and the page's last step, a navigation at the top.
    let arrived = refused_all(&live, "forbidden_origin", tried * at_data + 1).await;
    assert!(arrived > tried * at_data, "{page_host}: {arrived} of {tried} at each of {at_data}");
    nothing_came_through(&live, page_host);
}

#[tokio::test]
async fn a_page_of_another_site_makes_the_proxy_send_nothing_and_reads_nothing() {
    page_is_powerless("evil.test").await;
}

/// For a browser another port of localhost is another origin, but the same site.
#[tokio::test]
async fn a_page_of_another_port_of_this_machine_is_as_powerless() {
    page_is_powerless("localhost").await;
}

/// The page's name and port lead to the proxy as soon as the page is there: to the browser all of it is one origin, so that it sends no
/// Origin with GET and lets the page read everything.
#[tokio::test]
async fn a_page_under_a_rebound_name_makes_the_proxy_send_nothing_and_reads_only_refusals() {
    let live = Setup::default().loopback().await;
    let ports = [
        (live.server.listen[0], ["/v1/predictions", "/v1/echo"]),
        (live.server.admin.expect("a port"), ["/api/v1/status", "/metrics"]),
    ];
    for (port, paths) in ports {
        let listener = Pages::bind().await;
        let base = format!("http://rebound.test:{}", listener.local_addr().expect("bound").port());
        let targets = paths.map(|path| (base.clone(), path));
        let mut pages = Pages::serve(listener, attack(&targets), port);
        let profile = Scratch::new();
        let _browser = browse(&format!("{base}/page"), &profile);
        let report = pages.report().await;
        let read = report["read"].as_array().expect("a list");
        assert!(read.len() > 20, "it could not even read refusals: {report}");
        for answer in read {
            let got = answer["got"].as_str().unwrap_or_default();
            assert!(got.contains("misdirected_host"), "{answer}");
        }
    }
    let arrived = refused_all(&live, "misdirected_host", 76).await;
    assert!(arrived >= 76, "{arrived}");
    nothing_came_through(&live, "rebound");
}

/// The other way round: a page whose origin is allowed gets through, with all that it has to send, and reads what it is answered.
#[tokio::test]
async fn a_page_of_an_allowed_origin_gets_through_and_reads_its_answers() {
    let listener = Pages::bind().await;
    let origin = format!("http://localhost:{}", listener.local_addr().expect("bound").port());
    let toml = format!(
        "[server]\nallowed_origins = [\"{origin}\"]\n[[clients]]\nname = \"web\"\ntoken = {{ env = \"WEB_TOKEN\" }}"
    );
    let live = Setup { toml: String::leak(toml), ..Setup::default() }.loopback().await;
    let script = format!(
        "const BASE = 'http://127.0.0.1:{}';{}",
        live.server.listen[0].port(),
        r#"
(async () => {
    const authorization = 'Bearer web-token';
    const headers = {authorization, 'content-type': 'application/json'};
    const body = '{"model":"flux-schnell","input":{"prompt":"a"}}';
    const created = await fetch(BASE + '/v1/predictions', {method: 'POST', headers, body});
    const told = created.headers;
    const job = await created.json();
    const id = job.job_id || job.id;
    const state = await fetch(BASE + '/v1/predictions/' + id, {headers: {authorization}});
    const stranger = await fetch(BASE + '/v1/echo', {headers: {authorization: 'Bearer nobody'}});
    await report({id, created: created.status, charge: told.get('sluicegate-charge'), request: told.get('x-request-id'),
        state: state.status, stranger: (await stranger.json()).code});
})().catch(error => report({error: String(error)}));
"#
    );
    let mut pages = Pages::serve(listener, script, live.server.listen[0]);
    let profile = Scratch::new();
    let _browser = browse(&format!("{origin}/page"), &profile);
    let report = pages.report().await;
    assert_eq!(
        (&report["created"], &report["state"], &report["charge"]),
        (&json!(201), &json!(200), &json!("accepted")),
        "{report}"
    );
    assert_eq!(
        (report["stranger"].as_str(), report["request"].as_str().map(str::len)),
        (Some("unauthorized"), Some(32))
    );
    assert_eq!(live.mock.stats().creates_accepted, 1);
    assert_eq!(Some(live.mock.job_ids()[0].as_str()), report["id"].as_str());
}
