//! The program and its ledger: killed at any point, started on a damaged file, on a full disk.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use sluicegate::mock::{Mock, Options, RunTime};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::client::{self, Answer, With, get};
use crate::support::patience::{PATIENCE, until};
use crate::support::program::{Ended, Place, Running, ended, mock, run_by};
use crate::support::{WEBHOOK_SECRET, create, create_with, poll};

/// Everything at once.
mod killed;

const JOBS: u32 = 6;
/// More than there are slots, so that some wait at any moment.
const CALLERS: usize = 10;

/// `SLUICEGATE_KILL_POINTS` asks for more.
fn kill_points(usual: u64) -> u64 {
    std::env::var("SLUICEGATE_KILL_POINTS").ok().and_then(|points| points.parse().ok()).unwrap_or(usual)
}

#[tokio::test]
async fn killed_at_any_point_no_job_is_lost_and_no_create_is_sent_twice() {
    let mut points = JoinSet::new();
    for point in 0..kill_points(15) {
        if points.len() == 4 {
            points.join_next().await.expect("four run").expect("it holds");
        }
        points.spawn(kill_at(point));
    }
    while let Some(point) = points.join_next().await {
        point.expect("it holds");
    }
}

/// One run of creates, killed at a moment that `point` chooses.
async fn kill_at(point: u64) {
    let mut chance = Rng::with_seed(point);
    let place = Home::new();
    let mock = Arc::new(place.mock(chance.u64(0..20)).await);
    let mut program = place.start(&mock).await;
    let work = Arc::new(Work::default());
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let rng = Rng::with_seed(chance.u64(..));
        callers.spawn(Arc::clone(&work).call(caller, rng, program.data, Arc::clone(&mock)));
    }
    sleep(Duration::from_millis(chance.u64(20..400))).await;
    program.running.kill().await;
    while let Some(caller) = callers.join_next().await {
        caller.expect("no caller panics");
    }
    quiet(&mock).await;

    // What the file says, without the help of any program.
    let rows = place.rows();
    let kept: HashSet<&str> = rows.iter().filter_map(|(id, _)| id.as_deref()).collect();
    let open = rows.iter().filter(|(_, state)| state != "ended").count();
    let uncertain = rows.iter().filter(|(_, state)| state == "sending" || state == "uncertain").count();
    let accepted = mock.job_ids();
    let unknown = accepted.iter().filter(|id| !kept.contains(id.as_str())).count();
    assert!(unknown <= uncertain, "point {point}: {unknown} jobs unknown, {uncertain} creates uncertain");
    assert!(open <= JOBS as usize, "point {point}: {open} slots");
    for id in work.told().values() {
        assert!(kept.contains(id.as_str()), "point {point}: a caller was told of {id}");
    }

    let program = place.start(&mock).await;
    let now = program.admin("/api/v1/status").await;
    assert!(now["accounts"][0]["jobs"]["live"].as_u64() <= Some(u64::from(JOBS)), "point {point}: {now}");
    let live = program.live().await;
    let ours: HashSet<&String> = live.iter().collect();
    assert_eq!(ours.len(), live.len(), "point {point}: each once");
    for (id, _) in rows.iter().filter(|(_, state)| state == "live") {
        let id = id.as_ref().expect("a live job has an id");
        let ended = work.finished(id);
        assert!(ended || ours.contains(id), "point {point}: {id} is live upstream, and was known");
    }

    // Everybody tries again, with the same keys, also those who have an answer.
    for id in &accepted {
        mock.finish(id);
    }
    for id in live {
        program.send(poll(&id)).await.expect("an answer");
    }
    let mut again = JoinSet::new();
    for key in work.keys() {
        let (work, mock, address) = (Arc::clone(&work), Arc::clone(&mock), program.data);
        again.spawn(async move {
            let answer = send(address, asked(&key)).await.expect("an answer");
            match work.told().get(&key) {
                Some(id) if answer.status == StatusCode::CREATED => assert_eq!(answer.job_id(), *id),
                None if answer.status == StatusCode::CREATED => {
                    mock.finish(&answer.job_id());
                    send(address, poll(&answer.job_id())).await.expect("an answer");
                }
                _ => assert_eq!(answer.code(), "outcome_unknown", "{answer:?}"),
            }
        });
    }
    while let Some(caller) = again.join_next().await {
        caller.expect("no caller panics");
    }
    let mut sent: HashMap<Bytes, u32> = HashMap::new();
    for seen in mock.requests().iter().filter(|seen| seen.method == Method::POST) {
        let key = seen.headers.get("idempotency-key").expect("each create has a key");
        *sent.entry(Bytes::copy_from_slice(key.as_bytes())).or_default() += 1;
    }
    let twice: Vec<_> = sent.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "point {point}: {twice:?}");
    assert_eq!(mock.stats().refused_job_429, 0, "point {point}: slots are never doubled");
    program.idle(point).await;
}

/// What callers have done.
#[derive(Default)]
struct Work {
    /// By key: the job that the answer told of, once there was one.
    calls: Mutex<HashMap<String, Option<String>>>,
    finished: Mutex<HashSet<String>>,
}

impl Work {
    /// Creates a job, lets it end after a while, asks for it, and so on until the proxy is gone.
    async fn call(self: Arc<Self>, caller: usize, mut chance: Rng, address: SocketAddr, mock: Arc<Mock>) {
        for n in 0.. {
            let key = format!("{caller}-{n}");
            self.calls.lock().expect("no panics").insert(key.clone(), None);
            let Some(answer) = send(address, asked(&key)).await else { return };
            assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
            let id = answer.job_id();
            self.calls.lock().expect("no panics").insert(key, Some(id.clone()));
            sleep(Duration::from_millis(chance.u64(0..40))).await;
            self.finished.lock().expect("no panics").insert(id.clone());
            mock.finish(&id);
            if send(address, poll(&id)).await.is_none() {
                return;
            }
        }
    }

    fn keys(&self) -> Vec<String> {
        self.calls.lock().expect("no panics").keys().cloned().collect()
    }

    fn told(&self) -> HashMap<String, String> {
        let calls = self.calls.lock().expect("no panics");
        calls.iter().filter_map(|(key, id)| Some((key.clone(), id.clone()?))).collect()
    }

    fn finished(&self, id: &str) -> bool {
        self.finished.lock().expect("no panics").contains(id)
    }
}

#[tokio::test]
async fn a_damaged_ledger_is_refused_with_the_way_out_and_left_as_it_is() {
    let place = Home::new();
    let mock = place.mock(0).await;
    place.start(&mock).await.running.kill().await;
    // With the write-ahead log, nothing would be lost yet.
    fs::remove_file(place.ledger().with_file_name("ledger.sqlite-wal")).expect("there");
    fs::write(place.ledger(), "not a ledger at all".repeat(400)).expect("written");
    let Ended { code, out, err: text } = ended(&mut place.command("", &mock)).await;
    assert_eq!((code, out.as_str()), (Some(1), ""), "{text}");
    for part in ["ledger.sqlite is damaged", "mv ", "Lost then: which jobs are live"] {
        assert!(text.contains(part), "{text}");
    }
    let way_out = text.split("without it (").nth(1).and_then(|rest| rest.split(')').next()).expect("commands");
    let moved = Command::new("sh").args(["-c", way_out]).status().await.expect("a shell");
    assert!(moved.success(), "{way_out}");
    place.start(&mock).await.running.kill().await;
}

#[tokio::test]
async fn a_full_disk_refuses_creates_and_nothing_else() {
    let place = Home::new();
    let mock = place.mock(0).await;
    // Files end at 200 blocks of 512 bytes: the write-ahead log is there after some creates.
    let mut program = place.start_after("trap '' XFSZ; ulimit -f 200; ", &mock).await;
    let refused = timeout(PATIENCE, async {
        loop {
            let answer = program.send(create()).await.expect("an answer");
            if answer.status != StatusCode::CREATED {
                return answer;
            }
            mock.finish(&answer.job_id());
            program.send(poll(&answer.job_id())).await.expect("an answer");
        }
    });
    let refused = refused.await.expect("the disk fills");
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (500, "internal"), "{refused:?}");
    assert_eq!(refused.header("sluicegate-charge"), "not-sent");
    let accepted = mock.stats().creates_accepted;
    assert_eq!(program.send(create()).await.expect("an answer").status.as_u16(), 500);
    assert_eq!(mock.stats().creates_accepted, accepted, "not sent");
    assert_eq!(program.send(get("/v1/echo")).await.expect("an answer").status, StatusCode::OK);
    program.idle(0).await;
    let metrics = client::exchange(TcpStream::connect(program.admin).await.expect("open"), get("/metrics")).await;
    let metrics = String::from_utf8(metrics.body.to_vec()).expect("text");
    let failures = metrics.lines().find_map(|line| line.strip_prefix("sluicegate_ledger_failures_total "));
    assert!(failures.and_then(|count| count.parse::<u64>().ok()) >= Some(2), "{metrics}");
    program.running.kill().await;
    let log = program.running.stderr().await;
    // Once a bad spell: a small write may still fit in between.
    let (bad, good) = ("the ledger cannot be used", "the ledger can be written again");
    let (bad, good) = (log.matches(bad).count(), log.matches(good).count());
    assert!((1..=5).contains(&bad) && (good..=good + 1).contains(&bad), "{log}");
}

/// A directory with a configuration and state.
struct Home(Place);

impl Home {
    fn new() -> Self {
        Self::with("")
    }

    /// With more tables.
    fn with(toml: &str) -> Self {
        let place = Place::new();
        let text = format!(
            "account = \"main\"\n[accounts.main]\nplan = \"main\"\nkey = {{ env = \"CORE_API_KEY\" }}\n\
             [plans.main]\nconcurrent_jobs = {JOBS}\n\
             [jobs]\nuncertain = \"1s\"\n[state]\npath = \"state\"\n[server]\nthreads = 2\n{toml}"
        );
        place.write("proxy.toml", &text);
        Self(place)
    }

    async fn mock(&self, answer_delay_ms: u64) -> Mock {
        mock(Options {
            requests: None,
            concurrent_jobs: Some(JOBS),
            run_time: RunTime::Fixed(Duration::from_secs(3600)),
            answer_delay: Duration::from_millis(answer_delay_ms),
            ..Options::default()
        })
        .await
    }

    fn ledger(&self) -> PathBuf {
        self.0.join("state/ledger.sqlite")
    }

    /// The program, after some words to the shell.
    fn command(&self, before: &str, mock: &Mock) -> Command {
        let mut proxy = self.0.proxy(mock, &["--config", "proxy.toml"]);
        proxy.env("WEBHOOK_SECRET", WEBHOOK_SECRET);
        let mut shell = Command::new("/bin/sh");
        run_by(shell.args(["-c", &format!("{before}exec \"$0\" \"$@\"")]), &proxy);
        shell
    }

    async fn start(&self, mock: &Mock) -> Program {
        self.start_after("", mock).await
    }

    async fn start_after(&self, before: &str, mock: &Mock) -> Program {
        let (running, data, admin) = Running::with_admin(&mut self.command(before, mock)).await;
        Program { running, data, admin }
    }

    /// Id and state of each create and job. A copy is read: opening the file would tidy it up.
    fn rows(&self) -> Vec<(Option<String>, String)> {
        let copy = self.0.join("copy");
        fs::create_dir_all(&copy).expect("a directory");
        for name in ["ledger.sqlite", "ledger.sqlite-wal"] {
            let from = self.ledger().with_file_name(name);
            if Path::new(&from).exists() {
                fs::copy(from, copy.join(name)).expect("copied");
            }
        }
        let ledger = rusqlite::Connection::open(copy.join("ledger.sqlite")).expect("whole");
        let mut statement = ledger.prepare("SELECT id, state FROM jobs").expect("a table");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        rows.collect::<Result<_, _>>().expect("rows")
    }
}

/// The program while it runs.
struct Program {
    running: Running,
    data: SocketAddr,
    admin: SocketAddr,
}

impl Program {
    async fn send(&self, request: Request<Full<Bytes>>) -> Option<Answer> {
        send(self.data, request).await
    }

    async fn admin(&self, path: &str) -> Value {
        send(self.admin, get(path)).await.expect("an answer").json()
    }

    async fn live(&self) -> Vec<String> {
        let jobs = self.admin("/api/v1/jobs").await;
        let ids = jobs["jobs"].as_array().expect("a list").iter();
        ids.map(|job| job["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Waits until no slot is held any more.
    async fn idle(&self, point: u64) {
        until(format!("free at point {point}"), || async {
            let status = self.admin("/api/v1/status").await;
            (status["accounts"][0]["jobs"]["live"] == 0 && status["jobs_uncertain"] == 0, status)
        })
        .await;
    }
}

/// A create of its own, named by its key.
fn asked(key: &str) -> Request<Full<Bytes>> {
    create_with(&json!({"model": "flux-schnell", "input": {"prompt": key}})).with("idempotency-key", key)
}

/// `None` when the proxy was killed before the whole answer came.
async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Option<Answer> {
    let stream = TcpStream::connect(address).await.ok()?;
    let answer = timeout(PATIENCE, client::try_exchange(stream, request)).await.expect("in time")?;
    answer.whole.then_some(answer)
}

/// Waits until the mock has read everything that was on its way.
async fn quiet(mock: &Mock) {
    loop {
        let before = mock.stats().attempts;
        sleep(Duration::from_millis(50)).await;
        if mock.stats().attempts == before {
            return;
        }
    }
}
