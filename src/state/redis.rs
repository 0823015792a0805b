//! What replicas of one account share through Redis or Valkey: the window, the job slots, and who is there.
//!
//! The rules are in `call.lua`, run by the server in one step; every call carries the plan, and what a replica reports and asks. This file
//! holds the calls and the terms. Who asks when, and what becomes of the answer, is `proxy::queue`'s.

use std::fmt::Write as _;
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo, Script};

use crate::config::{self, Amount, Pacing, Secret};
use crate::proxy::quota::{pace, window};

use self::server::Server;
use self::wire::{Reply, Request};

/// The connection.
pub(crate) mod server;

/// What calls say and hear.
pub(crate) mod wire;

/// A server for tests.
#[cfg(test)]
pub(crate) mod store;

/// Replicas of several versions.
#[cfg(test)]
mod versions;

/// Idempotency keys, and their answers.
pub(crate) mod answers;

/// What is said of jobs.
pub(crate) mod jobs;

/// The version of the keys and of what a script may find in them. A change that an older one would misread takes another.
const KEYS: &str = "sluicegate:1";
/// How long a replica may go on with its share while it is cut off; then it sends nothing, and its seat is free for another.
const CUT_OFF_AT_MOST: Duration = Duration::from_secs(3600);
/// A block is no larger than this part of a plan.
const BLOCKS: u32 = 50;
/// Waiting for attempts that others have sent ends when this part of the plan is free: smaller ones would cost more calls, larger ones lie
/// idle for longer.
const CHUNKS: u32 = 128;

/// The plan, and how long things last. Each is derived from the plan, so that replicas agree.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// L.
    pub(crate) limit: Option<u32>,
    pub(crate) jobs: Option<u32>,
    /// How many replicas there are at most.
    pub(crate) replicas: u32,
    /// W.
    pub(crate) window: Duration,
    /// J.
    pub(crate) jitter: Duration,
    /// How long after it was granted an attempt may be sent.
    pub(crate) grant: Duration,
    /// How long a replica may be silent before its share is kept for it.
    pub(crate) lease: Duration,
    /// How long a slot whose job is not known counts.
    pub(crate) max_age: Duration,
    pub(crate) burst: u32,
    pub(crate) period: Duration,
    /// Evenly spaced from the start.
    pub(crate) paced: bool,
    /// The most attempts that are granted at once, where they are not granted one by one.
    pub(crate) block: Option<u32>,
    /// What a day may cost, where that is bounded, and the day's offset to UTC in seconds.
    pub(crate) credits: Option<(Amount, i32)>,
}

impl Terms {
    pub(crate) fn new(plan: &config::Plan, replicas: u32, jobs: &config::Jobs, utc_offset: i32) -> Self {
        let (window, jitter) =
            plan.requests.map_or((Duration::from_secs(60), Duration::from_millis(1500)), |requests| {
                (requests.window, requests.jitter)
            });
        Self {
            limit: plan.requests.map(|requests| requests.limit.get()),
            jobs: plan.concurrent_jobs.map(std::num::NonZeroU32::get),
            replicas,
            window,
            jitter,
            grant: (window / 6).clamp(Duration::from_secs(1), Duration::from_secs(10)),
            lease: (window / 12).clamp(Duration::from_millis(1500), Duration::from_secs(5)),
            max_age: slots_for(jobs),
            burst: plan.requests.map_or(1, |requests| pace::burst(requests.limit).get()),
            period: plan
                .requests
                .map_or(Duration::ZERO, |requests| pace::period(requests.limit, requests.window, requests.jitter)),
            paced: plan.pacing == Pacing::Paced,
            block: plan
                .requests
                .map(|requests| requests.limit.get())
                .filter(|limit| *limit > window::EXACT_UP_TO)
                .map(|limit| limit / BLOCKS),
            credits: plan.credits_per_day.map(|budget| (budget, utc_offset)),
        }
    }

    /// How many attempts are worth a call, for one that waits for a block.
    pub(crate) fn chunk(&self) -> Option<u32> {
        self.block.and(self.limit).map(|limit| (limit / CHUNKS).max(1))
    }

    /// floor(L/replicas): what a replica that is cut off may send in any window.
    pub(crate) fn share(&self) -> Option<u32> {
        self.limit.map(|limit| limit / self.replicas)
    }

    /// After this nothing counts any more that was granted before.
    pub(crate) fn full(&self) -> Duration {
        self.grant + self.jitter + self.window
    }

    /// How long a replica that is cut off sends nothing, from its last good call on. By then the others have kept its share for as long as
    /// an attempt of theirs counts.
    pub(crate) fn hold(&self) -> Duration {
        self.lease + self.timeout() + self.full()
    }

    /// From its last good call on, a replica that is cut off sends nothing after this.
    pub(crate) fn cut_off(&self) -> Duration {
        self.hold() + CUT_OFF_AT_MOST
    }

    /// Then nothing of it can count any more.
    pub(crate) fn forget(&self) -> Duration {
        self.cut_off() + self.hold()
    }

    /// How long a call may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.lease / 3
    }

    /// How often a replica shows that it lives. Two in a row may fail before its lease ends.
    pub(crate) fn beat(&self) -> Duration {
        self.lease / 4
    }

    /// How long others wait for one whose turn has come.
    pub(crate) fn patience(&self) -> Duration {
        (self.window / 240).clamp(Duration::from_millis(50), Duration::from_millis(250))
    }

    /// Between two questions whether a slot is free.
    pub(crate) fn slot_poll(&self) -> Duration {
        (self.window / 600).clamp(Duration::from_millis(20), Duration::from_millis(100))
    }
}

/// How long a slot whose job is not known counts.
pub(crate) fn slots_for(jobs: &config::Jobs) -> Duration {
    jobs.max_age.max(jobs.uncertain)
}

/// Why a call came to nothing. What it was to do may have been done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Slow(Duration),
    /// The server or the network said so.
    #[error("{0}")]
    Redis(#[from] redis::RedisError),
    /// The answer is none of ours.
    #[error("the answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
}

/// The calls for one account. They go one by one: what is asked meanwhile goes together in the next.
pub(crate) struct Link {
    server: Server,
    script: Script,
    keys: [String; 7],
}

impl Link {
    /// Opens nothing yet. An error: the URL cannot be used.
    pub(crate) fn new(settings: &config::Redis, key: &Secret, terms: &Terms) -> Result<Self, redis::RedisError> {
        Ok(Self {
            server: Server::new(settings, terms.timeout())?,
            script: Script::new(include_str!("redis/call.lua")),
            keys: ["account", "places", "members", "slots", "turns", "purse", "weights"].map(|part| key_of(key, part)),
        })
    }

    /// One call.
    pub(crate) async fn call(&mut self, request: &Request) -> Result<Reply, Failure> {
        let answer: String = self.server.run(&self.script, &self.keys, serde_json::to_string(request)?).await?;
        Ok(serde_json::from_str(&answer)?)
    }
}

/// Names a part of what is shared about an API key, and tells nothing about the key. One hash tag: all parts are on one node of a cluster.
pub(crate) fn key_of(key: &Secret, part: &str) -> String {
    format!("{KEYS}:{{{}}}:{part}", super::fingerprint(key))
}

/// Whether the driver can use this URL.
pub(crate) fn is_usable(url: &str) -> Result<bool, String> {
    let info = url.into_connection_info().map_err(|error| error.to_string())?;
    Ok(!matches!(info.addr(), ConnectionAddr::Unix(_)))
}

/// 16 random bytes as hex.
pub(crate) fn random_name() -> String {
    let mut bytes = [0; 16];
    // Only when the system has no randomness at all does this fail; then chance has to do.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        fastrand::fill(&mut bytes);
    }
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
