//! One job: what is known of it, and where it is looked at.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::protocol::End;
use crate::protocol::took::Took;
use crate::proxy::queue::Slot;

use super::Owner;
use super::fleet::Kept;

pub(super) struct Job {
    pub(super) owner: Owner,
    pub(super) number: u64,
    pub(super) model: Arc<str>,
    /// `None` when it has ended.
    pub(super) slot: Option<Held>,
    pub(super) started: Instant,
    pub(super) status: String,
    /// When it was last known to run: the time at which that was asked.
    pub(super) running: Instant,
    /// Looks so far.
    pub(super) looks: u32,
    /// Looks in a row that told nothing of its state.
    pub(super) vain: u32,
    /// When it is looked at next.
    pub(super) due: Instant,
    /// Its entry among what is due; entries at other times are of earlier plans.
    pub(super) entry: Option<Instant>,
    pub(super) looking: bool,
    /// False where the job was first seen when it ran already: its end teaches nothing.
    pub(super) seen_start: bool,
    /// The last answer about it; the first is its create's.
    pub(super) told: Option<Arc<Told>>,
    /// An answer that was no state of the job (401, 403, 5xx), until the next that is.
    pub(super) trouble: Option<Arc<Told>>,
    pub(super) odd: Odd,
    /// Rings for those who wait for a change; gone when the job has ended.
    pub(super) changed: Option<Arc<watch::Sender<()>>>,
    pub(super) ended: Option<End>,
    /// Where replicas share jobs: what the store has of it.
    pub(super) kept: Option<Box<Kept>>,
}

/// Where a live job is looked at.
pub(super) enum Held {
    /// Here, in this slot.
    Here(Slot),
    /// By another replica, which has its slot.
    Elsewhere,
}

/// An answer about a job, as the upstream gave it.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

impl Told {
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Self {
        Self {
            status,
            content_type: headers.get(header::CONTENT_TYPE).cloned(),
            body: body.clone(),
            at: Instant::now(),
        }
    }
}

/// What is strange about a job.
#[derive(Debug, Default)]
pub(super) struct Odd {
    /// The log was told of an answer that is none.
    pub(super) warned: bool,
    /// The last answer about it was too long to be read.
    pub(super) unread: bool,
    /// Other creates were answered with its id.
    pub(super) repeated: bool,
}

/// How the end of a job came to be known.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sight {
    /// It was concluded.
    None,
    /// An answer said so, perhaps with how long the job took.
    Seen(Option<Took>),
    /// Another replica saw such an answer.
    Heard(Option<Took>),
}

impl Job {
    pub(super) fn new(
        owner: Owner,
        number: u64,
        model: Arc<str>,
        slot: Slot,
        status: String,
        told: Option<Told>,
    ) -> Self {
        let told = told.map(Arc::new);
        Self { number, model, slot: Some(Held::Here(slot)), told, ..Self::without_slot(owner, status) }
    }

    pub(super) fn without_slot(owner: Owner, status: String) -> Self {
        let now = Instant::now();
        Self {
            owner,
            number: 0,
            model: "unknown".into(),
            slot: None,
            started: now,
            status,
            running: now,
            looks: 0,
            vain: 0,
            due: now,
            entry: None,
            looking: false,
            seen_start: true,
            told: None,
            trouble: None,
            odd: Odd::default(),
            changed: None,
            ended: None,
            kept: None,
        }
    }

    /// Tells those who wait that something is new.
    pub(super) fn ring(&self) {
        if let Some(changed) = &self.changed {
            changed.send_replace(());
        }
    }
}
