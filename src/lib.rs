//! Sluicegate: a local rate-limiting reverse proxy for metered, asynchronous AI APIs.

pub mod config;
mod proxy;
mod state;
