//! The integration tests, one binary: a file a behaviour.

#![allow(unreachable_pub, missing_docs, reason = "a binary of tests has no public interface")]

mod support;

mod config;

mod quota;

mod fairness;

mod slots;

mod retries;

mod restart;

mod cancel;

mod guard;

mod streams;

mod secrets;

mod answers;

mod admin;

mod regression;
