//! The program at full load while one percent of its attempts fail in each way: does anything grow, is everything given back, is the plan kept?
//!
//! Real sockets, the real binary, the imitated API as the judge. `SOAK_SECS=600 cargo bench --bench soak`; ten seconds without it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use sluicegate::mock::{Fault, Mock, Options, Planned, RunTime};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const KEY: &str = "cdt_soak";
const LIMIT: u32 = 600;
const WINDOW: Duration = Duration::from_secs(2);
const JOBS: u32 = 40;
const CALLERS: usize = 64;
/// Every so many attempts one fails, and the seven ways take turns: one percent each.
const BETWEEN_FAULTS: u32 = 14;
/// What memory may have grown by between the first and the last third of the run, once it is warm.
const GROWTH_KIB: f64 = 8.0 * 1024.0;

fn main() -> ExitCode {
    // Under `cargo test --benches` nothing is measured.
    if !std::env::args().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    let secs = std::env::var("SOAK_SECS").ok().and_then(|secs| secs.parse().ok()).unwrap_or(10);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(soak(Duration::from_secs(secs)))
}

async fn soak(lasts: Duration) -> ExitCode {
    let folder = Folder::new();
    let mock = Arc::new(Mock::start(options(), "127.0.0.1:0".parse().expect("an address")).await.expect("a free port"));
    let program = Program::start(&folder, &mock).await;
    let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(Heard::default()));
    let callers: Vec<_> = (0_u64..)
        .take(CALLERS)
        .map(|seed| {
            tokio::spawn(call(program.data.clone(), Rng::with_seed(seed), Arc::clone(&stop), Arc::clone(&heard)))
        })
        .collect();
    let begun = Instant::now();
    let (mut planned, mut samples) = (0, Vec::new());
    while begun.elapsed() < lasts {
        while planned < mock.stats().faults + 300 {
            mock.script([fault(planned)]);
            planned += 1;
        }
        samples.push(program.sample());
        sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("no caller panics");
    }
    let gauges = program.quiet().await;
    report(lasts, &mock, &heard, &samples, program.sample(), &gauges)
}

fn options() -> Options {
    Options {
        requests: Some(LIMIT),
        window: WINDOW,
        concurrent_jobs: Some(JOBS),
        run_time: RunTime::Uniform(Duration::from_millis(20), Duration::from_millis(400)),
        keys: vec![KEY.to_owned()],
        ..Options::default()
    }
}

/// Reset, 5xx, 429, slow, cut, no JSON, silence: by turns.
fn fault(number: u64) -> Planned {
    let status = |code| Fault::Status { code, headers: BTreeMap::new(), execute: false };
    let fault = match number % 7 {
        0 => Fault::ResetBefore,
        1 => status(503),
        2 => status(429),
        3 => Fault::SlowHead { delay: Duration::from_millis(700) },
        4 => Fault::HalfBody,
        5 => Fault::OtherBody { body: "{\"half".to_owned() },
        _ => Fault::Hang { execute: false },
    };
    fault.on("", "/v1/").after(BETWEEN_FAULTS - 1)
}

#[derive(Default)]
struct Heard {
    good: AtomicU64,
    other: AtomicU64,
    none: AtomicU64,
    left: AtomicU64,
}

/// One caller: creates and waits for the end, or asks for something else; now and then it hangs up.
async fn call(address: String, mut rng: Rng, stop: Arc<AtomicBool>, heard: Arc<Heard>) {
    let mut connection = None;
    while !stop.load(Ordering::SeqCst) {
        let Some(mut sender) = (match connection.take() {
            Some(sender) => Some(sender),
            None => connect(&address).await,
        }) else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let create = rng.u32(..3) > 0;
        let path = if create { "/v1/predictions" } else { "/v1/echo" };
        let body = if create { Bytes::from_static(br#"{"model":"flux-schnell","input":{}}"#) } else { Bytes::new() };
        let request =
            Request::builder().method(if create { "POST" } else { "GET" }).uri(path).header("host", "localhost");
        let request = request.header("prefer", "wait=20").body(Full::new(body)).expect("a request");
        let patience = if rng.u32(..100) == 0 { Duration::from_millis(rng.u64(..50)) } else { Duration::from_secs(60) };
        let count = match timeout(patience, exchange(&mut sender, request)).await {
            Err(_) if patience < Duration::from_secs(1) => &heard.left,
            Ok(Some(true)) => {
                connection = Some(sender);
                &heard.good
            }
            Ok(Some(false)) => {
                connection = Some(sender);
                &heard.other
            }
            Ok(None) | Err(_) => &heard.none,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connect(address: &str) -> Option<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// Whether the answer was a good one; `None`: it did not come, or not whole.
async fn exchange(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Option<bool> {
    sender.ready().await.ok()?;
    let answer = sender.send_request(request).await.ok()?;
    let good = answer.status().is_success();
    answer.into_body().collect().await.ok()?;
    Some(good)
}

/// Removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-soak-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a directory");
        let text = format!(
            "account = \"main\"\n[accounts.main]\nplan = \"main\"\nkey = {{ env = \"KEY\" }}\n[plans.main]\nrequests = {LIMIT}\nper = \"2s\"\n\
             jitter = \"500ms\"\nconcurrent_jobs = {JOBS}\n[upstream]\nattempt_timeout = \"3s\"\ntotal_timeout = \"20s\"\n[queue]\nmax_wait = \"30s\"\n\
             [retry]\nbudget = 0.5\ninitial_backoff = \"50ms\"\nmax_backoff = \"500ms\"\n[jobs]\nuncertain = \"3s\"\nresult_ttl = \"5s\"\n\
             [models.\"flux-schnell\"]\npoll = \"100ms\"\ncredits = 1\n[state]\npath = \"state\"\n[server]\nlisten = \"127.0.0.1:0\"\n[log]\nlevel = \"error\"\n"
        );
        let file = path.join("proxy.toml");
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("ours");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Program {
    child: Child,
    data: String,
    admin: String,
}

#[derive(Clone, Copy)]
struct Sample {
    rss_kib: f64,
    descriptors: usize,
}

impl Program {
    async fn start(folder: &Folder, mock: &Mock) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let admin = free.local_addr().expect("an address").to_string();
        drop(free);
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["--config", "proxy.toml", "--upstream", &mock.url()])
            .current_dir(&folder.0)
            .env_clear()
            .env("KEY", KEY)
            .env("SLUICEGATE_ADMIN_LISTEN", &admin)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next_line().await.expect("text").expect("the ready line");
        let data = line.strip_prefix("sluicegate ready on http://").expect("the ready line").to_owned();
        Self { child, data, admin }
    }

    fn sample(&self) -> Sample {
        let process = format!("/proc/{}", self.child.id().expect("it runs"));
        let status = fs::read_to_string(format!("{process}/status")).expect("it runs");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let descriptors = fs::read_dir(format!("{process}/fd")).expect("it runs").count();
        Sample { rss_kib: rss.expect("a number"), descriptors }
    }

    async fn get(&self, path: &str) -> String {
        let mut sender = connect(&self.admin).await.expect("the admin port");
        let request =
            Request::builder().uri(path).header("host", "localhost").body(Full::default()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let body = answer.into_body().collect().await.expect("an answer").to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    /// What must be zero when nothing is under way, once it is or after a minute.
    async fn quiet(&self) -> Vec<(String, f64)> {
        const HOME: [&str; 6] =
            ["in_flight", "connections", "jobs_live", "jobs_uncertain", "queue_waiting", "held_bodies_bytes"];
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let metrics = self.get("/metrics").await;
            let of = |name: &str| {
                let lines = metrics.lines().filter_map(|line| line.strip_prefix("sluicegate_")?.strip_prefix(name));
                let values =
                    lines.filter(|rest| rest.starts_with([' ', '{'])).filter_map(|rest| rest.rsplit(' ').next());
                (name.to_owned(), values.filter_map(|value| value.parse::<f64>().ok()).sum::<f64>())
            };
            let gauges: Vec<_> = HOME.into_iter().map(of).collect();
            if gauges.iter().all(|(_, value)| *value == 0.0) || Instant::now() > until {
                return gauges;
            }
            sleep(Duration::from_millis(500)).await;
        }
    }
}

fn report(
    lasts: Duration,
    mock: &Mock,
    heard: &Heard,
    samples: &[Sample],
    end: Sample,
    gauges: &[(String, f64)],
) -> ExitCode {
    let stats = mock.stats();
    let third = samples.len() / 3;
    // The first third warms up.
    let (early, late) = (&samples[third..2 * third], &samples[2 * third..]);
    let (before, after) = (mean(early, |sample| sample.rss_kib), mean(late, |sample| sample.rss_kib));
    #[allow(clippy::cast_precision_loss)]
    let (fd_before, fd_after) =
        (mean(early, |sample| sample.descriptors as f64), mean(late, |sample| sample.descriptors as f64));
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let injected = stats.by_status.get(&429).copied().unwrap_or_default();
    let of_its_own = stats.refused_rate_429 + stats.refused_job_429;
    println!(
        "{} s, {} attempts, {} jobs, {} faults",
        lasts.as_secs(),
        stats.attempts,
        stats.creates_accepted,
        stats.faults
    );
    println!(
        "callers heard: {} good, {} other answers, {} none or not whole; {} hung up",
        count(&heard.good),
        count(&heard.other),
        count(&heard.none),
        count(&heard.left)
    );
    let mut broken = false;
    let mut line = |name: &str, figure: String, holds: bool| {
        println!("{name:<44} {figure:>28}  {}", if holds { "holds" } else { "BROKEN" });
        broken |= !holds;
    };
    line(
        "memory, middle and last third, MiB",
        format!("{:.1} {:.1}", before / 1024.0, after / 1024.0),
        after - before < GROWTH_KIB,
    );
    line(
        "descriptors, middle and last third, at the end",
        format!("{fd_before:.0} {fd_after:.0} {}", end.descriptors),
        fd_after < fd_before + 20.0,
    );
    line(
        "most in a window, of the plan",
        format!("{} {LIMIT}", stats.max_in_window),
        stats.max_in_window <= LIMIT as usize,
    );
    line(
        "most jobs alive, of the plan",
        format!("{} {JOBS}", stats.jobs_live_peak),
        stats.jobs_live_peak <= JOBS as usize,
    );
    line("429s beyond those injected", format!("{of_its_own} of {injected}"), of_its_own == 0);
    for (name, value) in gauges {
        line(name, value.to_string(), *value == 0.0);
    }
    ExitCode::from(u8::from(broken))
}

fn mean(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    #[allow(clippy::cast_precision_loss)]
    let count = samples.len().max(1) as f64;
    samples.iter().map(of).sum::<f64>() / count
}
