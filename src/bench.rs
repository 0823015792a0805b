//! Decisions by themselves, for `benches/decide.rs` and `benches/scale.rs`. Not part of the library's interface.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use prometheus_client::metrics::counter::Counter;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::cli::demo::oracle::{Limits, makespan};
use crate::clock::Clock;
use crate::config::{self, Amount, Llm, Pacing, Plan, Requests};
use crate::ledger::{Ledger, Place};
use crate::proxy::jobs::poll::Patience;
use crate::proxy::jobs::{Jobs, Owner, Terms, Told};
use crate::proxy::queue::{Account, Ask, Class};
use crate::proxy::quota::feedback::Feedback;

/// An account to be asked for turns.
pub struct Desk {
    account: Arc<Account>,
    deadline: Instant,
}

impl Desk {
    /// `limit` attempts in any minute; `jobs` live at once; this many clients of equal weight.
    #[must_use]
    pub fn new(limit: Option<u32>, jobs: Option<u32>, pacing: Pacing, clients: usize) -> Self {
        Self { account: account(limit, jobs, pacing, clients), deadline: Instant::now() }
    }

    fn ask(&self, class: Class, slot: bool) -> Ask {
        Ask { client: 0, class, slot, again: None, price: Amount::ZERO, deadline: self.deadline }
    }

    /// One attempt from turn to answer. True if it was admitted.
    pub async fn admit(&self) -> bool {
        let Ok(mut turn) = self.account.turn(self.ask(Class::Other, false)).await else { return false };
        turn.permit.sent();
        let _ = turn.permit.answered(Feedback::default(), None, Instant::now());
        true
    }

    /// A turn with a job slot, both given back unused.
    pub async fn reserve_and_drop(&self) -> bool {
        self.account.turn(self.ask(Class::Create, true)).await.is_ok()
    }

    /// Asks where nothing is free. True if it was refused.
    pub async fn refuse(&self) -> bool {
        self.account.turn(self.ask(Class::Other, false)).await.is_err()
    }

    /// One attempt of this client. True if it was admitted.
    pub async fn admit_as(&self, client: usize) -> bool {
        let ask = Ask { client, ..self.ask(Class::Other, false) };
        let Ok(mut turn) = self.account.turn(ask).await else { return false };
        turn.permit.sent();
        let _ = turn.permit.answered(Feedback::default(), None, Instant::now());
        true
    }

    /// With so many waiters for the one slot, of all clients in turn: how long it takes to hand it over once, as an average of `most`.
    pub async fn hand_over_among(&self, waiters: usize, clients: usize, most: usize) -> Duration {
        let holder = self.account.turn(self.ask(Class::Create, true)).await;
        let (served, mut waiting) = (Arc::new(AtomicUsize::new(0)), JoinSet::new());
        for waiter in 0..waiters {
            let (account, served) = (Arc::clone(&self.account), Arc::clone(&served));
            let deadline = Instant::now() + Duration::from_secs(600);
            let ask = Ask { client: waiter % clients, deadline, ..self.ask(Class::Create, true) };
            waiting.spawn(async move {
                let turn = account.turn(ask).await;
                served.fetch_add(usize::from(turn.is_ok()), Ordering::Relaxed);
            });
        }
        while self.account.snapshot().waiting < waiters {
            tokio::task::yield_now().await;
        }
        let begun = Instant::now();
        drop(holder);
        while served.load(Ordering::Relaxed) < most.min(waiters) {
            tokio::task::yield_now().await;
        }
        let took = begun.elapsed();
        let served = u32::try_from(served.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        waiting.shutdown().await;
        took / served.max(1)
    }

    /// Uses up the window, so that `refuse` refuses.
    pub async fn exhaust(&self) {
        while self.admit().await {}
    }

    /// Two waiters for one slot: the second gets it by the first's drop.
    pub async fn hand_over(&self) -> bool {
        let first = self.account.turn(self.ask(Class::Create, true)).await;
        let waits = Ask { deadline: Instant::now() + Duration::from_secs(60), ..self.ask(Class::Create, true) };
        let second = self.account.turn(waits);
        let ((), second) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                drop(first);
            },
            second
        );
        second.is_ok()
    }
}

fn account(limit: Option<u32>, jobs: Option<u32>, pacing: Pacing, clients: usize) -> Arc<Account> {
    let requests = limit.and_then(NonZeroU32::new).map(|limit| Requests {
        limit,
        window: Duration::from_secs(60),
        jitter: Duration::from_millis(1500),
    });
    let concurrent_jobs = jobs.and_then(NonZeroU32::new);
    let plan =
        Plan { name: "bench".into(), requests, concurrent_jobs, pacing, llm: Llm::Shared, credits_per_day: None };
    Account::new("bench".into(), &plan, &vec![Some((None, 1)); clients], 1_000_000, None, Instant::now())
}

/// The job table and its ledger, in memory, with a look at nothing.
pub struct Table {
    jobs: Arc<Jobs>,
    account: Arc<Account>,
    ledger: Arc<Ledger>,
    never: CancellationToken,
}

const OWNER: Owner = Owner { account: 0, client: 0 };

impl Table {
    /// Empty, of a plan with 60 requests a minute and no limit of jobs.
    ///
    /// # Panics
    /// If there is no memory for a ledger.
    #[must_use]
    pub fn new() -> Self {
        let account = account(Some(60), Some(u32::MAX), Pacing::Auto, 1);
        let ledger = Ledger::open(Place::Memory, Clock::system(), Counter::default()).expect("a ledger in memory");
        let ledger = Arc::new(ledger);
        let hour = Duration::from_secs(3_600);
        let settings =
            config::Jobs { max_age: hour, uncertain: hour, result_ttl: hour, hold: Duration::ZERO, shared: false };
        let accounts = vec![("bench".to_owned(), Arc::clone(&account))];
        let clients = vec!["local".to_owned()];
        let protocol = Arc::new(crate::protocol::core_today());
        let jobs = Jobs::new(protocol, Terms::new(settings, &[], accounts, clients), Arc::clone(&ledger));
        Self { jobs: Arc::new(jobs), account, ledger, never: CancellationToken::new() }
    }

    /// A create with its intent, its answer, and its job's place in the table. True if it was accepted.
    pub async fn start(&self, id: &str, model: &str) -> bool {
        let slot = (self.account.adopt(0, "", ""), self.ledger.number());
        let Ok(pending) = self.jobs.begin(slot, OWNER, model, None).await else { return false };
        pending.settle(&told(id, "pending", 0)).await.1.is_some()
    }

    /// A poll that is answered from the last state.
    pub async fn poll(&self, id: &str) -> bool {
        self.jobs.ask(id, Patience::Wait(Duration::ZERO), &self.never).await.is_some()
    }

    /// A look finds that the job runs, and the next one is planned.
    pub fn look(&self, id: &str) {
        self.jobs.saw_status(id, OWNER, told(id, "processing", 0), Instant::now());
        self.jobs.plan_again(id);
    }

    /// A look finds that the job has ended, with an answer of about so many bytes.
    pub fn end(&self, id: &str, bytes: usize) {
        self.jobs.saw_status(id, OWNER, told(id, "completed", bytes), Instant::now());
    }

    /// Ended jobs that are remembered, and the bytes of their answers.
    #[must_use]
    pub fn remembered(&self) -> (usize, usize) {
        self.jobs.remembered()
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

fn told(id: &str, status: &str, bytes: usize) -> Told {
    let result = "x".repeat(bytes);
    let body = format!(r#"{{"job_id":"{id}","status":"{status}","provider":"bench","result":"{result}"}}"#);
    Told::new(StatusCode::OK, &HeaderMap::new(), &Bytes::from(body))
}
