//! What is counted of the store that replicas share.

use std::sync::atomic::Ordering;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::proxy::queue::SharedView;

type PerAccount = Family<[(&'static str, String); 1], Gauge>;

/// The metrics of the store. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    calls: Family<[(&'static str, &'static str); 1], Counter>,
    up: PerAccount,
    members: PerAccount,
    away: PerAccount,
    used: PerAccount,
    live: PerAccount,
    frozen: PerAccount,
    unspent: PerAccount,
    lapsed: Family<[(&'static str, String); 1], Counter>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("shared_store_calls", "Calls to the shared store, by outcome", metrics.calls.clone());
        registry.register("shared_store_up", "1 while the shared store answers this replica", metrics.up.clone());
        registry.register("shared_replicas", "Replicas that the shared store knows", metrics.members.clone());
        let help = "Those of them that are silent, whose share is kept";
        registry.register("shared_replicas_away", help, metrics.away.clone());
        registry.register("shared_window_used", "Attempts of all replicas that count", metrics.used.clone());
        registry.register("shared_jobs_live", "Job slots that all replicas have taken", metrics.live.clone());
        let help = "1 while no credits are granted, as the part of a replica is not known";
        registry.register("shared_credits_frozen", help, metrics.frozen.clone());
        let help = "Attempts that were granted to this replica in blocks and are not sent yet";
        registry.register("shared_unspent", help, metrics.unspent.clone());
        let help = "Attempts that were granted to this replica in blocks and never sent";
        registry.register("shared_lapsed", help, metrics.lapsed.clone());
        metrics
    }

    /// A call has been answered, or not.
    pub(crate) fn called(&self, answered: bool) {
        self.calls.get_or_create_owned(&[("outcome", if answered { "answered" } else { "failed" })]).inc();
    }

    pub(super) fn set(&self, account: &str, view: &SharedView) {
        let set = |gauge: &PerAccount, value: u32| {
            gauge.get_or_create_owned(&[("account", account.to_owned())]).set(i64::from(value));
        };
        set(&self.up, u32::from(view.state == "up"));
        set(&self.members, view.told.members);
        set(&self.away, view.told.away);
        set(&self.used, view.told.used);
        set(&self.live, view.told.live);
        if let Some((left, lapsed)) = view.unspent {
            set(&self.unspent, left);
            let total = self.lapsed.get_or_create_owned(&[("account", account.to_owned())]);
            total.inner().store(lapsed, Ordering::Relaxed);
        }
        if let Some(funds) = view.funds {
            set(&self.frozen, u32::from(funds.frozen));
        }
    }
}
