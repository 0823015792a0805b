//! The integration tests, one binary: a file a behaviour.

mod cli;
mod config;
mod sdk;
