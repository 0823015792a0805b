//! What is counted of credits.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::credits::amount::Amount;

type Labels = [(&'static str, String); 1];
type PerAccount = Family<Labels, Gauge<f64, AtomicU64>>;

/// The metrics of credits. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    used: PerAccount,
    limit: PerAccount,
    unpriced: Family<Labels, Counter>,
    uncounted: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("credits_used", "Credits charged or reserved today", metrics.used.clone());
        registry.register("credits_limit", "Credits that a day may cost", metrics.limit.clone());
        let help = "Creates and LLM calls whose model has no price, where others have";
        registry.register("credits_unpriced", help, metrics.unpriced.clone());
        let help = "Answers whose tokens could not be counted: compressed, or without usage";
        registry.register("credits_uncounted", help, metrics.uncounted.clone());
        metrics
    }

    /// A call's model has no price.
    pub(crate) fn unpriced(&self, account: &str) {
        self.unpriced.get_or_create_owned(&[("account", account.to_owned())]).inc();
    }

    /// An answer did not tell its tokens.
    pub(crate) fn uncounted(&self) {
        self.uncounted.inc();
    }

    pub(crate) fn set(&self, account: &str, used: Amount, limit: Option<Amount>) {
        let labels = [("account", account.to_owned())];
        self.used.get_or_create_owned(&labels).set(used.float());
        if let Some(limit) = limit {
            self.limit.get_or_create_owned(&labels).set(limit.float());
        }
    }
}
