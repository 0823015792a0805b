//! What is counted of connecting to the upstream.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::proxy::rejection::Unreachable;

/// The metrics of the circuit breaker. Clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    open: Gauge,
    opened: Counter,
    failures: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("circuit_open", "1 while no connection to the upstream can be had", metrics.open.clone());
        registry.register("circuit_opened", "How often the circuit opened", metrics.opened.clone());
        let help = "Connections to the upstream that came to nothing, probes included";
        registry.register("connect_failures", help, metrics.failures.clone());
        metrics
    }

    /// A connection came to nothing.
    pub(crate) fn failed(&self, reason: Unreachable) {
        self.failures.get_or_create_owned(&[("reason", reason.name())]).inc();
    }

    pub(crate) fn opened(&self) {
        self.opened.inc();
        self.open.set(1);
    }

    pub(crate) fn closed(&self) {
        self.open.set(0);
    }
}
