//! What a call of `call.lua` says and hears, as JSON. Durations are whole microseconds, rounded to the safe side by who makes them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Terms;

/// What a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Op {
    /// Reports, asks, and shows that the replica lives.
    Call,
    /// Becomes a member, or one again: with all that it holds.
    Join,
    /// Sends nothing any more.
    Leave,
}

/// A slot of the plan's jobs, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SlotEntry {
    pub(crate) slot: String,
    /// Grows with each owner: who had it before cannot free it.
    pub(crate) fence: u32,
    /// Empty while its create has no answer.
    pub(crate) job: String,
    pub(crate) model: String,
    /// Names of the configuration.
    pub(crate) client: String,
    pub(crate) account: String,
    /// What its create cost, where that is counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) paid: Option<Paid>,
}

/// What a create cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Paid {
    /// Millionths of a credit.
    #[serde(with = "text")]
    pub(crate) amount: u64,
    pub(crate) day: i64,
    /// The replica that has taken it from the budget.
    pub(crate) by: String,
}

/// What a replica has taken of a day's budget: the day, millionths of a credit, and whether it was final when it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Row(pub(crate) i64, #[serde(with = "text")] pub(crate) u64, pub(crate) bool);

/// The budget of a day, and what this replica has taken.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PurseTold {
    /// Millionths of a credit.
    #[serde(with = "text")]
    pub(crate) budget: u64,
    /// Of the day to UTC, in seconds.
    pub(crate) offset: i32,
    /// The day by this replica's calendar.
    pub(crate) day: i64,
    /// The day that it last heard from a store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seen: Option<i64>,
    /// What this replica has taken, and on which day.
    #[serde(with = "text")]
    pub(crate) spent: u64,
    pub(crate) of: i64,
    /// At a join: what the others had.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) others: BTreeMap<String, Row>,
}

/// What the store says of the day's budget.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct PurseReply {
    pub(crate) day: i64,
    /// Microseconds to its end.
    pub(crate) ends: f64,
    /// What all have taken.
    #[serde(with = "text")]
    pub(crate) used: u64,
    /// The day on which this replica's grants count.
    pub(crate) of: i64,
    /// Somebody's part is not known: nothing is granted.
    pub(crate) frozen: bool,
    pub(crate) others: BTreeMap<String, Row>,
}

/// One place in the window and, for creates, one slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AskFor(
    /// The place's name.
    pub(crate) String,
    /// The slot's name; empty where none is wanted.
    pub(crate) String,
    /// The client.
    pub(crate) String,
    /// The account.
    pub(crate) String,
    /// What it costs, in millionths of a credit.
    #[serde(with = "text")]
    pub(crate) u64,
);

/// The request. What is empty is left out, for Lua takes JSON's null for true.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) id: String,
    pub(crate) life: String,
    pub(crate) seq: u64,
    /// The last call whose answer has arrived.
    pub(crate) ack: u64,
    #[serde(flatten)]
    pub(crate) terms: Lines,
    /// The server's clock has gone further than ours since the last call.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) stepped: bool,
    /// Places, and how long each is still taken; zero: nothing was sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ends: Vec<(String, u64)>,
    /// Slots that are free, with their fences; 1: what was paid is refunded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) freed: Vec<(String, u32, u8)>,
    /// Slots that are held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) slots: Vec<SlotEntry>,
    /// How long the upstream wants nobody to ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) closed: Option<u64>,
    /// Attempts are to be spaced evenly from now on.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) paced: bool,
    /// At a join: how long own attempts still count, and how many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) uploads: Vec<(u64, u32)>,
    /// At a join: the other members as they were last heard of.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) others: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) asks: Vec<AskFor>,
    /// Of a plan of blocks: attempts that may still be sent, and those without an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) open: Option<u32>,
    /// Slices of the window that have changed: their name, how long they still count, and the attempts in them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) spent: Vec<(u64, u64, u32)>,
    /// More attempts to be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) want: Option<u32>,
    /// More wait than are asked for.
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) more: bool,
    /// Slots of replicas that are gone may come to us, who hold so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) adopt: Option<usize>,
    /// Where credits are shared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) purse: Option<PurseTold>,
}

/// The plan and the terms, with every call: the store keeps no configuration.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Lines {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobs: Option<u32>,
    replicas: u32,
    window: u64,
    jitter: u64,
    grant: u64,
    hold: u64,
    lease: u64,
    forget: u64,
    patience: u64,
    max_age: u64,
    burst: u32,
    period: u64,
    #[serde(skip_serializing_if = "is_false")]
    pace: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chunk: Option<u32>,
}

impl Lines {
    pub(crate) fn new(terms: &Terms) -> Self {
        Self {
            limit: terms.limit,
            jobs: terms.jobs,
            replicas: terms.replicas,
            window: micros(terms.window),
            jitter: micros(terms.jitter),
            grant: micros(terms.grant),
            hold: micros(terms.full()),
            lease: micros(terms.lease),
            forget: micros(terms.forget()),
            patience: micros(terms.patience()),
            max_age: micros(terms.max_age),
            burst: terms.burst,
            period: micros(terms.period),
            pace: terms.paced,
            block: terms.block,
            chunk: terms.chunk(),
        }
    }
}

/// The answer.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the answer")]
pub(crate) struct Reply {
    /// The server's clock.
    pub(crate) now: String,
    pub(crate) joined: bool,
    /// Why nothing was done: `unknown`, `taken`, `full`, `newer`.
    pub(crate) refused: Option<String>,
    /// By ask: 1 or 0; 2 where the credits do not last for it.
    pub(crate) granted: Vec<u8>,
    /// Attempts that were granted at once.
    pub(crate) block: u32,
    /// Places that are left.
    pub(crate) free: Option<u32>,
    /// Microseconds until asking makes sense.
    pub(crate) wait: Option<u64>,
    /// What is waited for.
    pub(crate) why: Option<String>,
    /// An ask was refused for its slot.
    pub(crate) no_slot: bool,
    /// Slots that another owns, or whose job has another.
    pub(crate) lost: Vec<String>,
    pub(crate) adopted: Vec<SlotEntry>,
    /// The store has other slots of ours than we told: an answer was lost.
    pub(crate) odd: bool,
    pub(crate) others: BTreeMap<String, String>,
    pub(crate) members: u32,
    /// Members that are not heard of, whose share is kept.
    pub(crate) away: u32,
    pub(crate) used: u32,
    /// Slots that are taken.
    pub(crate) live: u32,
    pub(crate) paced: bool,
    pub(crate) purse: Option<PurseReply>,
}

impl Reply {
    /// The server's clock since its epoch.
    pub(crate) fn server_time(&self) -> Option<Duration> {
        self.now.parse().ok().map(Duration::from_micros)
    }
}

/// Rounded up: longer is safer.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// Numbers of more digits than the store's JSON keeps.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
