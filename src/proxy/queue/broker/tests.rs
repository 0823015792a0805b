//! Replicas of a large plan on a real redis-server: accounts and their calls, without HTTP around them. Whoever has a turn is counted by the
//! test. Time is real.
//!
//! `SLUICEGATE_REDIS_WINDOWS` sets how many windows the saturated test lasts.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{self, Amount, Pacing, Secret};
use crate::credits::{self, Credits};
use crate::ledger::{self, Ledger};
use crate::metrics;
use crate::proxy::quota::feedback::Feedback;
use crate::state::redis::store::Store;
use crate::state::redis::{Link, Terms};

use super::super::{Account, Ask, Class, NoTurn};
use super::{Around, SharedView};

const L: u32 = 12_000;
const W: Duration = Duration::from_secs(3);
const J: Duration = Duration::from_millis(100);

fn plan(limit: u32) -> config::Plan {
    let limit = NonZeroU32::new(limit).expect("not zero");
    config::Plan {
        name: "large".into(),
        requests: Some(config::Requests { limit, window: W, jitter: J }),
        concurrent_jobs: None,
        pacing: Pacing::Auto,
        llm: config::Llm::Shared,
        credits_per_day: None,
    }
}

/// Replicas, and the upstream that they call together.
struct Fleet {
    store: Store,
    accounts: Vec<Arc<Account>>,
    limit: usize,
    /// When each attempt was counted.
    counted: Mutex<Vec<Instant>>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// All members, past the hold of a store without a past.
    async fn start(plan: &config::Plan, replicas: u32) -> Arc<Self> {
        let (store, mut tasks) = (Store::start().await, JoinSet::new());
        let hour = Duration::from_secs(3600);
        let jobs =
            config::Jobs { max_age: hour, uncertain: hour, result_ttl: hour, hold: Duration::ZERO, shared: false };
        let terms = Terms::new(plan, replicas, &jobs, 0);
        let ledger = Ledger::open(ledger::Place::Memory, Clock::system(), Counter::default());
        let ledger = Arc::new(ledger.expect("memory"));
        let credits = Credits::open(credits::Terms::none(), 0, ledger, metrics::credits::Metrics::default());
        let credits = Arc::new(credits.expect("no money"));
        let mut accounts = Vec::new();
        for n in 0..replicas {
            let account = Account::new("large".into(), plan, &[Some((None, 1))], 10_000, None, Instant::now());
            account.share(terms.clone(), format!("replica-{n}"), vec!["local".into()], BTreeMap::new());
            let link = Link::new(&store.settings(), &Secret::new("cdt_key"), &terms).expect("a URL");
            let around = Around {
                adopted: mpsc::unbounded_channel().0,
                metrics: metrics::shared::Metrics::default(),
                members: std::env::temp_dir().join(format!("sluicegate-members-{}-{n}", std::process::id())),
                credits: Arc::clone(&credits),
            };
            tasks.spawn(Arc::clone(&account).keep_time());
            tasks.spawn(Arc::clone(&account).keep_shared(link, around, CancellationToken::new()));
            accounts.push(account);
        }
        let limit = plan.requests.map_or(0, |requests| requests.limit.get()) as usize;
        let fleet = Self { store, accounts, limit, counted: Mutex::default(), tasks };
        for n in 0..fleet.accounts.len() {
            fleet.wait_for(n, "up and free", |shared| shared.state == "up" && shared.told.why.is_none()).await;
        }
        Arc::new(fleet)
    }

    fn shared(&self, n: usize) -> SharedView {
        self.accounts[n].shared_view().expect("it is shared")
    }

    async fn wait_for(&self, n: usize, what: &str, is: impl Fn(&SharedView) -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !is(&self.shared(n)) {
            assert!(Instant::now() < until, "never {what}: {:?}", self.shared(n));
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// One attempt through this replica, answered after a millisecond.
    async fn call(&self, n: usize, ask: Ask) -> Result<(), NoTurn> {
        let turn = self.accounts[n].turn(ask).await?;
        let mut permit = turn.permit;
        if permit.is_stale() {
            return Ok(());
        }
        permit.sent();
        self.counted.lock().expect("no panic").push(Instant::now());
        sleep(Duration::from_millis(1)).await;
        permit.answered(Feedback::default(), None, Instant::now());
        drop(turn.slot);
        Ok(())
    }

    /// So many callers at each of these replicas, until then.
    async fn saturate(self: &Arc<Self>, replicas: impl Iterator<Item = usize>, callers: usize, until: Instant) {
        let mut all = JoinSet::new();
        for n in replicas {
            for _ in 0..callers {
                let fleet = Arc::clone(self);
                all.spawn(
                    async move { while Instant::now() < until && fleet.call(n, patient(until)).await.is_ok() {} },
                );
            }
        }
        all.join_all().await;
    }

    fn sent_since(&self, from: Instant) -> usize {
        self.counted.lock().expect("no panic").iter().filter(|at| **at >= from).count()
    }

    /// The plan was kept.
    fn judge(&self) {
        let mut counted = self.counted.lock().expect("no panic").clone();
        counted.sort();
        let mut from = 0;
        for to in 0..counted.len() {
            while counted[to] - counted[from] >= W {
                from += 1;
            }
            assert!(to - from < self.limit, "more than {} in a window", self.limit);
        }
    }

    /// How often scripts were called, and the microseconds of the server's time that one took.
    async fn calls(&self) -> (u64, f64) {
        let info: String = self.store.asked(&["INFO", "commandstats"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:")).unwrap_or_default();
        let field = |name: &str| line.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let calls = field("calls").and_then(|text| text.parse().ok());
        let micros = field("usec_per_call").and_then(|text| text.parse().ok());
        (calls.unwrap_or_default(), micros.unwrap_or_default())
    }

    /// Entries of one of the store's keys, counted by this command.
    async fn size(&self, command: &str, part: &str) -> usize {
        let script = format!("return tostring(redis.call('{command}', redis.call('KEYS', '*:{part}')[1] or 'none'))");
        self.store.asked::<String>(&["EVAL", &script, "0"]).await.parse().expect("a number")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

fn patient(deadline: Instant) -> Ask {
    Ask { client: 0, class: Class::Other, slot: false, again: None, price: Amount::ZERO, deadline }
}

fn impatient() -> Ask {
    patient(Instant::now())
}

#[tokio::test]
async fn eight_saturated_replicas_spend_a_large_plan_with_few_calls() {
    let fleet = Fleet::start(&plan(L), 8).await;
    let windows = std::env::var("SLUICEGATE_REDIS_WINDOWS").ok().and_then(|count| count.parse().ok()).unwrap_or(3);
    fleet.store.run(&["CONFIG", "RESETSTAT"]).await;
    let begun = Instant::now();
    fleet.saturate(0..8, 20, begun + W * windows).await;
    let (calls, micros) = fleet.calls().await;
    fleet.judge();
    let sent = fleet.sent_since(begun);
    let utilisation = f64::from(u32::try_from(sent).expect("few")) / f64::from(L * windows);
    println!("{sent} attempts, {utilisation:.3} of the plan, {calls} calls of {micros} microseconds");
    assert!(utilisation >= 0.95, "{utilisation}");
    assert!(calls * 50 <= sent as u64, "{calls} calls for {sent} attempts");
}

#[tokio::test]
async fn killed_and_restarted_empty_the_store_counts_blocks_as_spent() {
    let mut fleet = Fleet::start(&plan(L), 4).await;
    let killed = Instant::now() + W / 3;
    fleet.saturate(0..4, 20, killed).await;
    Arc::get_mut(&mut fleet).expect("nobody calls").store.kill_and_empty().await;
    fleet.saturate(0..4, 20, killed + W * 4).await;
    fleet.judge();
    // The hold is G + J + W = 4.1 s.
    assert_eq!(fleet.sent_since(killed + W / 2), fleet.sent_since(killed + W), "nothing in the hold");
    assert!(fleet.sent_since(killed + W * 3 / 2) >= L as usize, "they go on after it");
}

#[tokio::test]
async fn what_nobody_needs_lapses_and_what_was_sent_leaves_with_its_window() {
    let fleet = Fleet::start(&plan(L), 2).await;
    fleet.saturate(0..1, 20, Instant::now() + W / 10).await;
    let sent = fleet.sent_since(Instant::now() - W);
    assert!(sent > 200, "{sent}");
    fleet.wait_for(0, "what is left is given back", |shared| shared.unspent.is_some_and(|(left, _)| left == 0)).await;
    assert!(fleet.shared(0).unspent.is_some_and(|(_, lapsed)| lapsed > 0), "{:?}", fleet.shared(0));
    let last = fleet.counted.lock().expect("no panic").last().copied().expect("some");
    fleet.wait_for(1, "all that was sent is told", |shared| shared.told.used as usize == sent).await;
    fleet.wait_for(1, "all have left", |shared| shared.told.used == 0).await;
    // Not held for as long as an unknown grant: 1 s more.
    assert!(last.elapsed() < W + J + Duration::from_millis(800), "{:?}", last.elapsed());
}

#[tokio::test]
async fn the_store_keeps_slices_and_not_attempts_whatever_the_plan() {
    let fleet = Fleet::start(&plan(12_000_000), 2).await;
    fleet.saturate(0..2, 20, Instant::now() + W).await;
    let sent = fleet.sent_since(Instant::now() - W);
    let (places, weights) = (fleet.size("ZCARD", "places").await, fleet.size("HLEN", "weights").await);
    println!("{sent} attempts, {places} places, {:?}", fleet.calls().await);
    // A window and J are 269 slices.
    assert!(sent > 10_000 && places <= 2 * 271 && weights <= places, "{sent} attempts, {places} places");
}

#[tokio::test]
async fn who_cannot_wait_is_refused_without_a_call_until_there_are_places() {
    let fleet = Fleet::start(&plan(L), 2).await;
    let begun = Instant::now();
    // Another's grant, as the store has it: all but a hundred, for a second and a half.
    let taken = "local account, now = redis.call('KEYS', '*:account')[1], redis.call('TIME')
        local key = string.sub(account, 1, -8)
        redis.call('HSET', key .. 'weights', 'other:open', 11900)
        redis.call('ZADD', key .. 'places', now[1] * 1000000 + now[2] + 1500000, 'other:open')
        local extra = redis.call('HGET', account, 'extra') or 0
        local sizes = redis.call('ZCARD', key .. 'places') .. ' ' .. redis.call('HLEN', key .. 'slots') .. ' '
            .. redis.call('HLEN', key .. 'members') .. ' ' .. redis.call('HLEN', key .. 'weights')
        redis.call('HSET', account, 'extra', extra + 11899, 'sizes', sizes)
        return 'done'";
    fleet.store.run(&["EVAL", taken, "0"]).await;
    let mut served = 0;
    let refused = loop {
        match fleet.call(0, impatient()).await {
            Ok(()) => served += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(served, 100);
    let NoTurn::TooLate { retry_in } = refused else { panic!("{refused:?}") };
    assert!(retry_in > Duration::from_millis(500), "{retry_in:?}");
    fleet.store.run(&["CONFIG", "RESETSTAT"]).await;
    for _ in 0..1_000 {
        assert!(matches!(fleet.call(0, impatient()).await, Err(NoTurn::TooLate { .. })));
    }
    let beats = begun.elapsed().as_millis() / 375 * 2 + 2;
    assert!(
        u128::from(fleet.calls().await.0) <= beats,
        "{:?} calls, {beats} of them to show that they live",
        fleet.calls().await
    );
    sleep_until(begun + Duration::from_millis(1_700)).await;
    assert!(fleet.call(0, impatient()).await.is_ok(), "the other's block has lapsed");
}

#[tokio::test]
async fn creates_of_a_large_plan_ask_for_their_slots() {
    let fleet = Fleet::start(&config::Plan { concurrent_jobs: NonZeroU32::new(5), ..plan(L) }, 2).await;
    let create = |deadline| Ask { slot: true, class: Class::Create, ..patient(deadline) };
    let patience = Instant::now() + W;
    let mut held = Vec::new();
    for n in 0..5 {
        held.push(fleet.accounts[n % 2].turn(create(patience)).await.expect("a slot"));
    }
    let refused = fleet.accounts[0].turn(create(Instant::now())).await;
    assert!(matches!(refused, Err(NoTurn::NoSlot { live: 5, limit: 5 })), "{refused:?}");
    assert!(fleet.call(0, patient(patience)).await.is_ok(), "others are not held up");
    drop(held.pop());
    assert!(fleet.call(1, create(patience)).await.is_ok(), "it was freed");
    drop(held);
    fleet.wait_for(0, "nothing was sent but two", |shared| shared.told.used == 2 && shared.told.live == 0).await;
}

#[tokio::test]
async fn a_paced_large_plan_is_evenly_spaced() {
    let fleet = Fleet::start(&config::Plan { pacing: Pacing::Paced, ..plan(L) }, 4).await;
    let begun = Instant::now();
    fleet.saturate(0..4, 20, begun + W * 2).await;
    fleet.judge();
    let sent = fleet.sent_since(begun);
    let utilisation = f64::from(u32::try_from(sent).expect("few")) / f64::from(L * 2);
    let (burst, mut most) = (241, 0);
    let counted = fleet.counted.lock().expect("no panic").clone();
    // In any tenth of a window no more than a burst, and what comes in that time.
    for (index, at) in counted.iter().enumerate() {
        most = most.max(counted[index..].iter().take_while(|other| **other < *at + W / 10).count());
    }
    println!("{utilisation:.3} of the plan, {most} in a tenth of a window");
    // (L - b + 1) / L * W / (W + J) = 0.949, and the first burst; with a window of 4 s and more J is W/40, and it is 0.956.
    assert!(utilisation >= 0.94, "{utilisation}");
    let longest = (W / 10 + J).as_secs_f64() / W.as_secs_f64() * f64::from(L);
    assert!(f64::from(u32::try_from(most).expect("few")) <= f64::from(burst) + longest, "{most}");
}
