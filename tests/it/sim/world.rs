//! One run: callers, proxy, network and upstream in one thread of paused time, until all is quiet again.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::mock::Mock;
use tokio::io::DuplexStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::callers::{self, Heard};
use super::net::Net;
use super::plan::Plan;
use super::trace::Trace;
use super::verdict;
use crate::support::config::Scratch;
use crate::support::{NOTHING, copy_all};

/// In simulated time, far beyond every deadline of a run.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);
/// After the last caller, what is held may be held so long: a create of unknown outcome two minutes, a job a look or two.
const SETTLES_IN: Duration = Duration::from_secs(3600);
const NOON: u64 = 20_000 * 86_400 + 43_200;

/// What came of a run.
pub struct Report {
    pub wrongs: Vec<String>,
    pub trace: Trace,
    /// Requests that the upstream saw, and jobs that it started.
    pub attempts: u64,
    pub jobs: u64,
}

/// A run under way.
pub struct World {
    pub plan: Plan,
    pub trace: Trace,
    pub mock: Arc<Mock>,
    pub net: Arc<Net>,
    clock: Clock,
    step: &'static AtomicI64,
    alive: Mutex<Option<Alive>>,
    wrongs: Mutex<Vec<String>>,
    heard: Mutex<Vec<Heard>>,
    pub died: Mutex<Vec<Instant>>,
}

/// The proxy of the moment.
struct Alive {
    proxy: Proxy,
    scratch: Scratch,
    life: CancellationToken,
}

impl World {
    fn new(plan: Plan) -> Self {
        let trace = Trace::new();
        let wall = UNIX_EPOCH + Duration::from_secs(NOON);
        let mock =
            Arc::new(Mock::in_memory(sluicegate::mock::Options { start_epoch: Some(wall), ..plan.mock.clone() }));
        mock.script(plan.faults.clone());
        let net = Net::new(Arc::clone(&mock), plan.weather, plan.seed, trace.clone());
        let (clock, step) = clock(wall);
        let world = Self {
            plan,
            trace,
            mock,
            net,
            clock,
            step,
            alive: Mutex::default(),
            wrongs: Mutex::default(),
            heard: Mutex::default(),
            died: Mutex::default(),
        };
        world.start(Scratch::new());
        world
    }

    fn start(&self, scratch: Scratch) {
        let config = scratch.load(&self.plan.limits, &self.plan.toml, "http://localhost:1");
        let life = CancellationToken::new();
        let proxy = Proxy::build(&config, self.clock, Some(self.net.wire(life.clone()))).expect("it starts");
        self.trace.note("the proxy starts");
        *self.alive.lock().expect("no panics") = Some(Alive { proxy, scratch, life });
    }

    /// As `kill -9`: its connections break, and its files stay as they are at this moment. Its tasks run on in this process, but reach
    /// nobody any more.
    fn kill(&self) -> Scratch {
        let Alive { proxy, scratch, life } = self.alive.lock().expect("no panics").take().expect("it lives");
        self.trace.note("the proxy dies");
        self.died.lock().expect("no panics").push(Instant::now());
        life.cancel();
        let copy = Scratch::new();
        copy_all(&scratch.0, &copy.0);
        drop(proxy);
        copy
    }

    /// A connection to the proxy, once there is one, and what ends when that dies.
    pub async fn connect(&self, rng: Rng) -> (DuplexStream, CancellationToken) {
        loop {
            if let Some(alive) = &*self.alive.lock().expect("no panics") {
                let (near, far) = self.net.caller(rng, &alive.life);
                tokio::spawn(alive.proxy.serve(far));
                return (near, alive.life.clone());
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    pub fn wrong(&self, what: String) {
        self.trace.note(format!("WRONG: {what}"));
        self.wrongs.lock().expect("no panics").push(what);
    }

    pub fn heard(&self, heard: Heard) {
        self.heard.lock().expect("no panics").push(heard);
    }

    pub fn all_heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no panics").clone()
    }

    /// Asks the proxy that lives.
    pub fn with_proxy<T>(&self, ask: impl FnOnce(&Proxy) -> T) -> T {
        ask(&self.alive.lock().expect("no panics").as_ref().expect("it lives").proxy)
    }

    async fn fate(self: Arc<Self>) {
        let begun = Instant::now();
        let deaths = async {
            for (at, down) in &self.plan.deaths {
                sleep_until(begun + *at).await;
                let scratch = self.kill();
                sleep(*down).await;
                self.start(scratch);
            }
        };
        let steps = async {
            for (at, by) in &self.plan.steps {
                sleep_until(begun + *at).await;
                self.trace.note(format!("the clock steps by {by} s"));
                self.step.fetch_add(*by, Ordering::SeqCst);
            }
        };
        tokio::join!(deaths, steps);
    }

    async fn settle(&self) {
        let until = Instant::now() + SETTLES_IN;
        loop {
            let usage = self.with_proxy(Proxy::usage);
            if usage == NOTHING {
                return;
            }
            if Instant::now() > until {
                return self.wrong(format!("still taken an hour later: {usage:?}"));
            }
            sleep(Duration::from_secs(1)).await;
        }
    }
}

fn clock(wall: SystemTime) -> (Clock, &'static AtomicI64) {
    let step: &'static AtomicI64 = Box::leak(Box::new(AtomicI64::new(0)));
    (Clock::stepped(wall, step).up_for(Duration::from_secs(100_000)), step)
}

/// Runs a seed to its end, in a runtime of its own.
pub fn run(seed: u64) -> Report {
    // The proxy's own dice: jitter, request ids.
    fastrand::seed(seed);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Without it, tokio chooses by itself who of several that wait for one thing is woken first.
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = runtime.enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let world = Arc::new(World::new(Plan::of(seed)));
        let fate = tokio::spawn(Arc::clone(&world).fate());
        let callers = world.plan.callers.clone().into_iter().enumerate();
        let callers: Vec<_> =
            callers.map(|(index, caller)| tokio::spawn(callers::live(Arc::clone(&world), index, caller))).collect();
        for (index, caller) in callers.into_iter().enumerate() {
            match timeout(PATIENCE, caller).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => world.wrong(format!("caller {index}: {error}")),
                Err(_) => world.wrong(format!("caller {index} waits for ever")),
            }
        }
        fate.await.expect("fate does not panic");
        world.trace.note("all callers have gone");
        world.net.calm();
        world.settle().await;
        verdict::judge(&world);
        let stats = world.mock.stats();
        let wrongs = world.wrongs.lock().expect("no panics").clone();
        Report { wrongs, trace: world.trace.clone(), attempts: stats.attempts, jobs: stats.creates_accepted }
    })
}
