//! What is counted of reloads.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    taken: Counter,
    refused: Counter,
    renewed: Counter,
    successful: Gauge,
    at: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let reloads = Family::<[(&str, &str); 1], Counter>::default();
        registry.register("reloads", "Reloads of the configuration, by what came of them", reloads.clone());
        let renewed = Counter::default();
        registry.register("keys_renewed", "Keys read again because the upstream refused them", renewed.clone());
        let (successful, at) = (Gauge::default(), Gauge::default());
        registry.register("config_last_reload_successful", "1 unless the last reload was refused", successful.clone());
        let help = "When the configuration that runs was read";
        registry.register_with_unit("config_last_reload_success_timestamp", help, Unit::Seconds, at.clone());
        successful.set(1);
        let [taken, refused] = ["taken", "refused"].map(|result| reloads.get_or_create_owned(&[("result", result)]));
        Self { taken, refused, renewed, successful, at }
    }

    /// A configuration is in force since then.
    pub(crate) fn started(&self, secs: f64) {
        self.at.set(secs);
    }

    pub(crate) fn taken(&self, secs: f64) {
        self.taken.inc();
        self.successful.set(1);
        self.at.set(secs);
    }

    pub(crate) fn refused(&self) {
        self.refused.inc();
        self.successful.set(0);
    }

    pub(crate) fn renewed(&self) {
        self.renewed.inc();
    }
}
