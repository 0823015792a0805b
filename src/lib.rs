//! Sluicegate: a local rate-limiting reverse proxy for metered, asynchronous AI APIs.

mod admin;
pub mod app;
#[doc(hidden)]
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
mod credits;
mod forecast;
#[doc(hidden)]
pub mod fuzz;
mod ledger;
mod metrics;
pub mod mock;
mod protocol;
mod proxy;
pub mod reload;
mod replicas;
pub mod server;
mod state;
#[cfg_attr(not(feature = "otel"), path = "traces/off.rs")]
mod traces;
mod webhooks;

/// Opening connections to the upstream: what a test brings instead of a network.
pub mod connect {
    pub use crate::proxy::upstream::connect::{Connect, Connected, Connecting, Failure, Stream};
    pub use crate::webhooks::send::Dial;
}
