//! What replicas tell each other of jobs: states, last answers, webhooks that are owed and who delivers them.
//!
//! The rules are in `jobs.lua`. This file says what a call asks and hears; who asks when is `proxy::jobs::fleet`'s.

use std::time::Duration;

use bytes::Bytes;
use redis::Script;
use serde::{Deserialize, Serialize};

use crate::config::{self, Secret};

use super::server::Server;
use super::{Failure, Terms, key_of};

/// The script, and the parts of an account that it is about.
const RULES: &str = concat!(include_str!("lives.lua"), include_str!("jobs.lua"));
const PARTS: [&str; 9] = ["jobs", "answers", "live", "ended", "hooks", "lapses", "owed", "account", "members"];
/// Longest body of a webhook that another replica could deliver as it is; of longer ones it tells the end.
pub(crate) const LONGEST_MESSAGE: usize = 64 << 10;
/// Undelivered webhooks whose bodies are kept.
const MOST_BODIES: u32 = 1_000;
/// Longest answer that is kept; of longer ones only the state is.
pub(crate) const LONGEST: usize = 256 << 10;
/// Bytes of the answers of one account together. Beyond, ended jobs are forgotten, the oldest first.
const MOST_BYTES: u64 = 64 << 20;
/// Jobs of each kind, and webhooks.
const MOST: u32 = 20_000;
/// Answers that are told in one call although nobody waits for them.
const MOST_IDLE: u64 = 4 << 20;
/// How long it is known that a webhook was delivered: as long as one is tried.
const DELIVERED: Duration = Duration::from_secs(86_400);

/// One thing that a call says or asks.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Ask {
    /// The state of a job.
    Put(Put),
    /// What is known of one, unless it is this version. Where nobody waits, a long answer may come another time.
    Get {
        id: String,
        v: u64,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        idle: bool,
    },
    /// A webhook will be due at the end of the create whose URL has this token.
    Owe { token: String, hook: Hook },
    /// The webhook with this token, and the job that the upstream has named with it.
    Token {
        token: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        job: Option<String>,
    },
    /// May this row of this replica deliver this message, for so many milliseconds?
    Claim { message: String, row: i64, lease: u64 },
    /// A webhook is due, and its replica will claim it within so many milliseconds.
    Due {
        message: String,
        job: String,
        end: String,
        hook: Hook,
        lease: u64,
        /// Place of the body among the call's arguments.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<usize>,
        #[serde(skip)]
        text: Bytes,
    },
    /// One that was due, and whose replica did not go on with it: ours for so many milliseconds.
    Orphan { lease: u64 },
    /// It did, or failed and will try again within so many milliseconds.
    Tried { message: String, row: i64, done: bool, lease: u64 },
}

/// A state of a job, as its replica knows it. What is empty is left out, for Lua takes JSON's null for true.
#[derive(Debug, Clone, Default, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the call")]
pub(crate) struct Put {
    pub(crate) id: String,
    /// Names of the configuration.
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    /// It is ours, whoever had it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) take: bool,
    /// It is ours, unless it has another owner.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) own: bool,
    pub(crate) status: String,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<String>,
    /// Of the last answer: its status, form, and milliseconds since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) form: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) age: Option<u64>,
    /// Milliseconds until its replica looks again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
    /// Place of the last answer among the call's arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) body: Option<usize>,
    /// Its last answer is too long to be read: only the upstream can tell.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unread: bool,
    /// The last answer is what was told before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) same: bool,
    /// The webhooks that are owed at its end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hooks: Vec<Hook>,
}

/// A webhook that is owed, for whoever sees the job's end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hook {
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) target: String,
    pub(crate) completed: bool,
    pub(crate) failed: bool,
    /// The end of the URL that the upstream was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Of a token: the job that it was called about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) job: Option<String>,
}

/// What is heard of one ask. All empty: nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the answer")]
pub(crate) struct Heard {
    /// Grows with each change.
    pub(crate) v: u64,
    /// It is the version that was named.
    pub(crate) same: bool,
    /// The answer that was to be kept is not there any more.
    pub(crate) lost: bool,
    /// The replica that looks at it.
    pub(crate) owner: Option<String>,
    /// That replica has not been heard of for long.
    pub(crate) gone: bool,
    pub(crate) account: String,
    pub(crate) client: String,
    pub(crate) model: String,
    pub(crate) status: String,
    pub(crate) end: Option<String>,
    pub(crate) code: Option<u16>,
    #[serde(rename = "type")]
    pub(crate) form: Option<String>,
    pub(crate) age: Option<u64>,
    pub(crate) next: Option<u64>,
    pub(crate) hooks: Vec<Hook>,
    /// The delivery was made, or given up.
    pub(crate) done: bool,
    /// Nothing is known of the token, but the store may have lost it, and hear of it again.
    pub(crate) unsure: bool,
    /// A webhook that another replica has left, and its job.
    pub(crate) message: Option<String>,
    pub(crate) job: String,
    /// Milliseconds for which another has it.
    pub(crate) wait: Option<u64>,
    body: Option<usize>,
    /// The last answer.
    #[serde(skip)]
    pub(crate) answer: Option<Bytes>,
}

#[derive(Serialize)]
struct Request<'a> {
    me: &'a str,
    /// Milliseconds for which live jobs, ended ones and deliveries are known, after which a silent owner counts as gone, and of a lease.
    live: u64,
    ended: u64,
    delivered: u64,
    gone: u64,
    lease: u64,
    most: u32,
    bodies: u32,
    bytes: u64,
    idle: u64,
    asks: &'a [Ask],
}

/// The calls about the jobs of one account.
pub(crate) struct JobsLink {
    server: Server,
    script: Script,
    keys: [String; 9],
    me: String,
    hold: Duration,
    lease: Duration,
}

impl JobsLink {
    /// Opens nothing yet. An error: the URL cannot be used. `me`: this replica.
    pub(crate) fn new(
        settings: &config::Redis,
        key: &Secret,
        terms: &Terms,
        me: String,
    ) -> Result<Self, redis::RedisError> {
        let part = |part| key_of(key, part);
        Ok(Self {
            server: Server::new(settings, terms.timeout())?,
            script: Script::new(RULES),
            keys: PARTS.map(part),
            me,
            hold: terms.hold(),
            lease: terms.lease,
        })
    }

    /// One call; `answers` are the arguments that its `Put`s name. What is heard comes in the order of what was asked.
    /// What is said is kept for as long as `jobs` has it now.
    pub(crate) async fn call(
        &self,
        asks: &[Ask],
        answers: &[Bytes],
        jobs: &config::Jobs,
    ) -> Result<Vec<Heard>, Failure> {
        let request = Request {
            me: &self.me,
            // An owner has until then to say that it is over.
            live: millis(jobs.max_age + jobs.result_ttl + self.hold),
            ended: millis(jobs.result_ttl),
            delivered: millis(DELIVERED),
            // Others take its slots over after three leases.
            gone: millis(self.lease * 6),
            lease: millis(self.lease),
            most: MOST,
            bodies: MOST_BODIES,
            bytes: MOST_BYTES,
            idle: MOST_IDLE,
            asks,
        };
        let request = serde_json::to_vec(&request)?;
        let args: Vec<&[u8]> = std::iter::once(&request[..]).chain(answers.iter().map(|answer| &answer[..])).collect();
        let mut parts: Vec<Vec<u8>> = self.server.run(&self.script, &self.keys, args).await?;
        let mut heard: Vec<Heard> = serde_json::from_slice(parts.first().map_or(&[][..], |first| &first[..]))?;
        for one in &mut heard {
            one.answer = one.body.and_then(|place| parts.get_mut(place)).map(|body| std::mem::take(body).into());
        }
        Ok(heard)
    }
}

/// Rounded down.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
