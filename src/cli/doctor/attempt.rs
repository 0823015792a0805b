//! The one request that `doctor` spends: through a running proxy, which counts it, else directly and into the proxy's books.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::cli::base_url;
use crate::clock::Clock;
use crate::config::{self, Account, Config};
use crate::protocol::{Family, KeyHeaders};
use crate::proxy::quota::window::WindowLog;
use crate::proxy::upstream::target::Target;
use crate::state::State;

use super::answer::{self, Answer};
use super::finding::Finding;
use super::reach::{self, Reached};

/// A job that nobody has: asking about it creates nothing and costs no credits.
const NO_JOB: &str = "sluicegate-doctor";
/// For a running proxy, which may have to wait for a place in its window.
const PATIENCE: Duration = Duration::from_secs(15);

/// What became of it in the books.
enum Booked {
    /// In the file that the next start reads.
    Written,
    /// Nowhere.
    No,
    /// There is no place for it.
    Full,
}

/// Asks with this account's key, through a running proxy.
pub(super) async fn through(config: &Config, index: usize, account: &Account) -> Vec<Finding> {
    let client = config.clients.iter().find(|client| client.account == index);
    if client.is_none() && !(config.clients.is_empty() && index == config.default_account) {
        let said =
            format!("account {}: no client is served with it, so the running proxy cannot be asked", account.name);
        return vec![Finding::skip("key", said)];
    }
    let Some((method, path)) = config.upstream.protocol.status_request(NO_JOB, NO_JOB) else {
        return vec![unaskable(account)];
    };
    let Some(address) = config.server.listen.first() else { return Vec::new() };
    let url = base_url(*address);
    let authority = url.trim_start_matches("http://").to_owned();
    let token = client.map(|client| client.token.expose());
    let asked = Clock::system().wall();
    let sent = Instant::now();
    let head = tokio::time::timeout(PATIENCE, ask_proxy(&authority, method, &path, token)).await;
    match head.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs())).and_then(|head| head) {
        Ok((status, headers)) => {
            let answer = Answer { status, headers, wall: asked + sent.elapsed() / 2, relayed: true };
            let mut findings = answer::read(account, &answer);
            findings.push(Finding::ok(
                "cost",
                format!("account {}: one request, counted by the running proxy; no credits", account.name),
            ));
            findings
        }
        Err(error) => {
            let said = format!("account {}: the running proxy at {url} does not answer: {error}", account.name);
            vec![Finding::fail("key", said, "look at its log")]
        }
    }
}

async fn ask_proxy(authority: &str, method: Method, path: &str, token: Option<&str>) -> Result<reach::Head, String> {
    let tcp = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, authority)
        .header("sluicegate-max-wait", "5s")
        .header(header::USER_AGENT, concat!("sluicegate-doctor/", env!("CARGO_PKG_VERSION")));
    if let Some(token) = token {
        request = request.header("sluicegate-token", token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let (head, _) = sender.send_request(request).await.map_err(|error| error.to_string())?.into_parts();
    Ok((head.status, head.headers))
}

/// Asks with this account's key over a connection of our own.
pub(super) async fn directly(config: &Config, account: &Account, reached: Reached) -> Vec<Finding> {
    let protocol = &config.upstream.protocol;
    let request = protocol.status_request(NO_JOB, NO_JOB);
    let (Some((method, path)), Some(target), Some(keys)) =
        (request, Target::new(&config.upstream.url), KeyHeaders::new(&account.key, protocol))
    else {
        return vec![unaskable(account)];
    };
    let booked = book(config, account);
    if matches!(booked, Booked::Full) {
        let said = format!("account {}: its window is full, so it was not asked", account.name);
        return vec![Finding::warn("key", said, "wait a minute and ask again")];
    }
    let asked = Clock::system().wall();
    let sent = Instant::now();
    let mut findings = match reach::ask(reached, &target, method, &path, keys.header(Family::Native)).await {
        Ok((status, headers)) => {
            let answer = Answer { status, headers, wall: asked + sent.elapsed() / 2, relayed: false };
            answer::read(account, &answer)
        }
        Err(error) => {
            let said =
                format!("account {}: the upstream took the request and did not answer it: {error}", account.name);
            vec![Finding::fail("key", said, "is upstream.url the API's own address? Ask again later")]
        }
    };
    let what = match booked {
        Booked::Written => "one request, in the books of the next start; no credits",
        _ => "one request, which a proxy started within the next minute does not know of; no credits",
    };
    findings.push(Finding::ok("cost", format!("account {}: {what}", account.name)));
    findings
}

fn unaskable(account: &Account) -> Finding {
    let said = format!("account {}: this protocol has no request that is sure to create nothing", account.name);
    Finding::skip("key", said)
}

/// Writes the attempt where a proxy finds it that starts later. Nothing is made that was not there.
fn book(config: &Config, account: &Account) -> Booked {
    let (Some(path), Some(requests)) = (config.state.path(), &account.plan.requests) else {
        return Booked::No;
    };
    // What replicas share is not in the file alone.
    if !path.is_dir() || matches!(config.state, config::State::Redis(..)) {
        return Booked::No;
    }
    // Let go at once: a proxy that starts now must not find the directory taken for as long as the upstream takes.
    let Ok(state) = State::open(path) else { return Booked::No };
    let Ok(mut ring) = state.ring(&account.key, requests, Clock::system()) else { return Booked::No };
    let now = Instant::now();
    let mut log = WindowLog::new(requests.limit.get(), requests.window, requests.jitter, now);
    ring.restore(&mut log, now);
    if log.free(now) == 0 {
        return Booked::Full;
    }
    ring.record(now);
    Booked::Written
}
