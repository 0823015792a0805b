//! Sluicegate: a local rate-limiting reverse proxy for metered, asynchronous AI APIs.

pub mod config;
pub mod mock;
mod proxy;
mod state;
