//! The integration tests, one binary: a file a behaviour, in the order of a request's way.
#![allow(unreachable_pub, missing_docs, reason = "a binary of tests has no public interface")]

mod support;

mod tools;

mod config;

mod cli;

mod doctor;

mod packages;

mod deploy;

mod docs;

mod units;

mod watch;

mod traces;

mod guard;

mod cors;

mod browser;

mod framing;

mod h2;

mod clients;

mod rules;

mod quota;

mod fairness;

mod credits;

mod slots;

mod polling;

mod makespan;

mod odd;

mod retries;

mod upstream;

mod upstream_h2;

mod circuit;

mod memory;

mod streams;

mod answers;

mod secrets;

mod security;

mod cancel;

mod protocols;

mod redis;
mod redis_credits;
mod redis_idempotency;
mod redis_jobs;
mod reload;

mod drain;

mod systemd;

mod restart;

mod ledger;

mod webhooks;

mod admin;

mod dashboard;

mod status;

mod sdk;

mod regression;

mod fuzz;

mod sim;
