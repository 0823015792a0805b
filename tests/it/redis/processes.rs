//! Eight processes of the program, half of them in another network, a real redis-server, and what goes wrong with machines, networks, clocks and
//! processes. The upstream judges, by its own clock.
//!
//! Needs root, for networks of its own. `SLUICEGATE_FAULT_WINDOWS=20` runs each fault by itself for so many windows of six seconds and tells
//! how much of the plan was used; without it, all of them strike one fleet, in fast motion.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate::mock::{Mock, Options, RunTime};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::client::{With, try_exchange};
use crate::support::program::{KEY, Place, Running, run_by};
use crate::support::redis::Redis;
use crate::support::{Answer, create, get, poll};

const REPLICAS: usize = 8;
const PLAN: usize = 60;
const JOBS: usize = 5;
/// The network of the store, the upstream and half of the replicas, and the other half's.
const NEAR: &str = "10.77.0.1";
const FAR: &str = "10.77.0.2";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of those that hold most slots; they come back after their slots have been taken over.
    Killed,
    /// The wall clock of one replica goes an hour forward, then back.
    ReplicasClock,
    /// The server's.
    StoresClock,
    /// Questions of the far half arrive at the store, answers do not come back.
    OneWay,
    /// Neither does.
    Partition,
    /// `kill -9`; it comes back empty.
    StoreKilled,
}

const FAULTS: [Fault; 6] =
    [Fault::Killed, Fault::ReplicasClock, Fault::StoresClock, Fault::OneWay, Fault::Partition, Fault::StoreKilled];

#[tokio::test]
async fn eight_processes_keep_the_plan_whatever_fails() {
    assert!(rustix::process::geteuid().is_root(), "only root can make networks: run this one as root");
    let program = std::env::current_exe().expect("this one");
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program)
        .args(["--exact", "redis::processes::inside", "--ignored", "--nocapture"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("unshare is installed");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    println!("{}", out.lines().filter(|line| line.starts_with("fault ")).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
#[ignore = "the other runs it, in namespaces of its own"]
async fn inside() {
    network().await;
    let long = std::env::var("SLUICEGATE_FAULT_WINDOWS").ok().and_then(|count| count.parse::<u32>().ok());
    let Some(windows) = long else {
        let mut fleet = Fleet::start(Duration::from_secs(2)).await;
        for fault in FAULTS {
            fleet.strike(fault).await;
            fleet.sends_again(fault).await;
        }
        return;
    };
    let only = std::env::var("SLUICEGATE_FAULT").ok();
    for fault in FAULTS.into_iter().filter(|fault| only.as_ref().is_none_or(|only| *only == format!("{fault:?}"))) {
        let mut fleet = Fleet::start(Duration::from_secs(6)).await;
        let begun = Instant::now();
        fleet.strike(fault).await;
        sleep_until(begun + fleet.window * windows + fleet.left_out()).await;
        fleet.judge(fault, begun);
    }
}

/// One network for the store, the upstream and half of the replicas, and one for the others.
async fn network() {
    let near = format!("{NEAR}/24");
    let far = format!("{FAR}/24");
    for words in [
        "mount -t tmpfs none /run",
        "mkdir /run/netns",
        "ip link set lo up",
        "ip netns add far",
        "ip link add near type veth peer name away netns far",
        &format!("ip address add {near} dev near"),
        "ip link set near up",
        &format!("ip -n far address add {far} dev away"),
        "ip -n far link set away up",
        "ip -n far link set lo up",
    ] {
        run(words).await;
    }
}

async fn run(words: &str) {
    let words: Vec<&str> = words.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().await.expect("installed");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

struct Fleet {
    window: Duration,
    mock: Arc<Mock>,
    redis: Redis,
    place: Place,
    replicas: Vec<Replica>,
    /// When nothing need have been sent: holds and outages.
    out: Vec<(Instant, Instant)>,
}

struct Replica {
    number: usize,
    place: Place,
    running: Option<Running>,
    /// Where its callers find it.
    at: Arc<Mutex<Option<std::net::SocketAddr>>>,
    /// Jobs that its callers have under way.
    jobs: Arc<AtomicUsize>,
}

impl Fleet {
    /// All are members, saturated, and past the hold of a new store.
    async fn start(window: Duration) -> Self {
        let place = Place::new();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/redis/clock.c");
        run(&format!("cc -O2 -shared -fPIC -o {} {source}", place.join("clock.so").display())).await;
        let any = format!("{NEAR}:0").parse().expect("an address");
        let run_time = RunTime::Fixed(window / 4);
        let keys = vec![KEY.to_owned()];
        let mock = Mock::start(Options { window, keys, run_time, ..Options::default() }, any).await.expect("a port");
        let mut redis = Redis::with(["--bind", "0.0.0.0", "--protected-mode", "no"].map(str::to_owned).to_vec()).await;
        redis.kill();
        redis.environment = clock(&place.join("clock.so"), &place.write("clock of the store", "0"));
        redis.up().await;
        let mut fleet = Self { window, mock: Arc::new(mock), redis, place, replicas: Vec::new(), out: Vec::new() };
        for number in 0..REPLICAS {
            let mut replica = fleet.replica(number);
            fleet.begin(&mut replica).await;
            for caller in 0..8 {
                tokio::spawn(calls(Arc::clone(&replica.at), Arc::clone(&replica.jobs), caller < 2));
            }
            fleet.replicas.push(replica);
        }
        fleet.until_sending(PLAN).await;
        fleet
    }

    fn replica(&self, number: usize) -> Replica {
        let place = Place::new();
        place.write("clock", "0");
        let (seconds, url) = (self.window.as_secs(), format!("redis://{NEAR}:{}", self.redis.port));
        place.write(
            "proxy.toml",
            &format!(
                "[accounts.main]\nplan = \"main\"\nkey = {{ env = \"CORE_API_KEY\" }}\n\
                 [plans.main]\nrequests = {PLAN}\nper = \"{seconds}s\"\njitter = \"400ms\"\nconcurrent_jobs = {JOBS}\n\
                 [server]\nthreads = 1\nallow_open = true\nlisten = \"{}:0\"\n\
                 [upstream]\nurl = \"{}\"\nallow_plain_http = true\n[log]\nlevel = \"warn\"\n\
                 [state]\nstore = \"redis\"\npath = \"state\"\nredis = {{ url = \"{url}\", replicas = {REPLICAS} }}\n",
                if number.is_multiple_of(2) { NEAR } else { FAR },
                self.mock.url(),
            ),
        );
        let (at, jobs) = (Arc::new(Mutex::new(None)), Arc::new(AtomicUsize::new(0)));
        Replica { number, place, running: None, at, jobs }
    }

    /// The process, in its network, with a clock of its own.
    async fn begin(&self, replica: &mut Replica) {
        let place = &replica.place;
        let config = place.join("proxy.toml").display().to_string();
        let mut command = place.sluicegate(&["--config", &config]);
        command
            .env_remove("SLUICEGATE_SERVER_LISTEN")
            .envs(clock(&self.place.join("clock.so"), &place.join("clock")))
            .stderr(Stdio::null());
        if !replica.number.is_multiple_of(2) {
            let mut outer = Command::new("ip");
            run_by(outer.args(["netns", "exec", "far"]), &command);
            outer.stderr(Stdio::null());
            command = outer;
        }
        let mut running = Running::start(&mut command);
        *replica.at.lock().expect("no panic") = Some(running.ready().await);
        replica.running = Some(running);
    }

    /// Until so many more attempts were counted.
    async fn until_sending(&self, more: usize) {
        let from = self.mock.stats().attempts;
        let sent = self.mock.wait_until(|stats| stats.attempts >= from + more as u64);
        timeout(self.window * 20, sent).await.expect("it goes on sending");
    }

    // ---- Terms, as docs/scale-out.md has them ---------------------------------------------------------------------------

    fn lease(&self) -> Duration {
        (self.window / 12).max(Duration::from_millis(1_500))
    }

    fn full(&self) -> Duration {
        (self.window / 6).max(Duration::from_secs(1)) + Duration::from_millis(400) + self.window
    }

    fn hold(&self) -> Duration {
        self.lease() * 4 / 3 + self.full()
    }

    fn is_fast(&self) -> bool {
        self.window <= Duration::from_secs(2)
    }

    fn left_out(&self) -> Duration {
        self.out.iter().map(|(from, to)| *to - *from).sum()
    }

    // ---- What happens ---------------------------------------------------------------------------------------------------

    async fn strike(&mut self, fault: Fault) {
        let begun = Instant::now();
        match fault {
            Fault::Killed => self.kill_two().await,
            Fault::ReplicasClock => step(&self.replicas[3].place.join("clock"), self.window / 2).await,
            Fault::StoresClock => {
                // Each step is noticed by the next calls, and counts as a full window.
                let noticed = self.full() + self.lease() / 2;
                step(&self.place.join("clock of the store"), if self.is_fast() { self.lease() } else { noticed }).await;
                self.out.push((begun, Instant::now() + noticed));
            }
            Fault::OneWay | Fault::Partition => {
                self.cut(fault).await;
                let held = self.hold();
                // In fast motion one of them ends before those that are cut off go on with their share.
                sleep(match fault {
                    _ if !self.is_fast() => held + self.window * 8,
                    Fault::OneWay => held + self.window,
                    _ => self.lease() * 2,
                })
                .await;
                run("nft delete table inet cut").await;
                self.out.push((begun, (begun + held).min(Instant::now())));
            }
            Fault::StoreKilled => {
                self.redis.kill();
                sleep(self.lease() / 2).await;
                self.redis.up().await;
                self.out.push((begun, begun + self.lease() + self.full()));
            }
        }
    }

    async fn kill_two(&mut self) {
        let mut order: Vec<usize> = (0..REPLICAS).collect();
        order.sort_by_key(|n| std::cmp::Reverse(self.replicas[*n].jobs.load(Ordering::SeqCst)));
        let held: usize = order[..2].iter().map(|n| self.replicas[*n].jobs.load(Ordering::SeqCst)).sum();
        assert!(held > 0, "nobody holds a slot");
        for n in &order[..2] {
            let replica = &mut self.replicas[*n];
            *replica.at.lock().expect("no panic") = None;
            // Of the one in the far network what runs is `ip`, which has become the program.
            drop(replica.running.take());
        }
        sleep(self.lease() * 3 + self.lease() / 2).await;
        for n in &order[..2] {
            let mut replica = self.replicas.remove(*n);
            self.begin(&mut replica).await;
            self.replicas.insert(*n, replica);
        }
    }

    async fn cut(&self, fault: Fault) {
        let port = self.redis.port;
        run("nft add table inet cut").await;
        run("nft add chain inet cut out { type filter hook output priority 0 ; }").await;
        run(&format!("nft add rule inet cut out ip daddr {FAR} tcp sport {port} drop")).await;
        if fault == Fault::Partition {
            run("nft add chain inet cut in { type filter hook input priority 0 ; }").await;
            run(&format!("nft add rule inet cut in ip saddr {FAR} tcp dport {port} drop")).await;
        }
    }

    // ---- What came of it ------------------------------------------------------------------------------------------------

    fn kept(&self, fault: Fault) {
        let stats = self.mock.stats();
        assert!(stats.max_in_window <= PLAN, "{fault:?}: {} in a window", stats.max_in_window);
        assert!(stats.jobs_live_peak <= JOBS, "{fault:?}: {} jobs", stats.jobs_live_peak);
        assert_eq!((stats.refused_rate_429, stats.refused_job_429), (0, 0), "{fault:?}");
    }

    async fn sends_again(&mut self, fault: Fault) {
        let out = self.out.drain(..).map(|(_, until)| until).max();
        sleep_until(out.unwrap_or_else(Instant::now)).await;
        let begun = Instant::now();
        self.until_sending(PLAN).await;
        println!("fault {fault:?}: a plan in {:?}", begun.elapsed());
        assert!(begun.elapsed() < self.window * 3, "{fault:?}: {:?} for one plan", begun.elapsed());
        self.kept(fault);
    }

    fn judge(&mut self, fault: Fault, begun: Instant) {
        let until = Instant::now();
        let is_out = |at: Instant| self.out.iter().any(|(from, to)| (*from..*to).contains(&at));
        let log = self.mock.requests();
        let sent =
            log.iter().filter(|seen| seen.counted && (begun..until).contains(&seen.at) && !is_out(seen.at)).count();
        let measured = (until - begun).saturating_sub(self.left_out());
        let windows = measured.as_secs_f64() / self.window.as_secs_f64();
        let used = f64::from(u32::try_from(sent).expect("few")) / (60.0 * windows);
        let stats = self.mock.stats();
        println!(
            "fault {fault:?}: {used:.3} of the plan in {windows:.1} windows (left out {:.1} s), at most {} in a window and {} jobs",
            self.left_out().as_secs_f64(),
            stats.max_in_window,
            stats.jobs_live_peak,
        );
        self.kept(fault);
        assert!(used >= 0.9, "{fault:?}: {used:.3}");
    }
}

/// An hour forward, and later back again.
async fn step(clock: &Path, later: Duration) {
    fs::write(clock, "3600").expect("written");
    sleep(later).await;
    fs::write(clock, "0").expect("written");
}

/// The variables that show a program the clock whose offset a file holds. What it measures by no wall clock stays as it is.
fn clock(library: &Path, offset: &Path) -> Vec<(String, String)> {
    let pairs = [("LD_PRELOAD", library), ("CLOCK_OFFSET", offset)];
    pairs.map(|(name, path)| (name.to_owned(), path.display().to_string())).to_vec()
}

/// Calls one replica for ever, one job after the other or one cheap call after the other, wherever it is at the time.
async fn calls(at: Arc<Mutex<Option<std::net::SocketAddr>>>, jobs: Arc<AtomicUsize>, is_job: bool) {
    let send = async |request| -> Option<Answer> {
        let address = (*at.lock().expect("no panic"))?;
        try_exchange(TcpStream::connect(address).await.ok()?, request).await
    };
    loop {
        if is_job {
            if let Some(created) = send(create()).await.filter(|created| created.status == 201) {
                jobs.fetch_add(1, Ordering::SeqCst);
                send(poll(&created.job_id()).with("prefer", "wait=30")).await;
                jobs.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
        } else if send(get("/v1/echo")).await.is_some_and(|answer| answer.status == 200) {
            continue;
        }
        sleep(Duration::from_millis(50)).await;
    }
}
