//! The decision path by itself, for `benches/decide.rs`. Not part of the library's interface.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use crate::cli::demo::oracle::{Limits, makespan};
use crate::config::{Llm, Pacing, Plan, Requests};
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
        let requests = limit.and_then(NonZeroU32::new).map(|limit| Requests {
            limit,
            window: Duration::from_secs(60),
            jitter: Duration::from_millis(1500),
        });
        let concurrent_jobs = jobs.and_then(NonZeroU32::new);
        let plan =
            Plan { name: "bench".into(), requests, concurrent_jobs, pacing, llm: Llm::Shared, credits_per_day: None };
        let now = Instant::now();
        let account = Account::new("bench".into(), &plan, &vec![(None, 1); clients], 1_000_000, None, now);
        Self { account, deadline: now }
    }

    fn ask(&self, class: Class, slot: bool) -> Ask {
        Ask { client: 0, class, slot, again: None, deadline: self.deadline }
    }

    /// One attempt from turn to answer. True if it was admitted.
    pub async fn admit(&self) -> bool {
        let Ok(mut turn) = self.account.turn(self.ask(Class::Other, false)).await else { return false };
        turn.permit.sent();
        let _ = turn.permit.answered(Feedback::default(), None);
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
