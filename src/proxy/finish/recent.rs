//! The latest requests, for those who look on. While nobody does, a request pays one load for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// So many are kept.
pub(crate) const KEPT: usize = 100;
/// Longer paths are cut.
const PATH_CHARS: usize = 120;

/// A request that has ended.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Seen {
    /// Numbered from 1 in the order of their ends, since somebody looks on.
    pub(crate) number: u64,
    /// Milliseconds since 1970 at its end.
    pub(crate) at: u64,
    pub(crate) client: Option<String>,
    pub(crate) account: Option<String>,
    pub(crate) class: Option<&'static str>,
    pub(crate) method: String,
    /// Without its query, which may hold a credential.
    pub(crate) path: String,
    /// 499: the caller left before its answer.
    pub(crate) status: u16,
    /// Who decided about the answer.
    pub(crate) by: By,
    /// The code of an answer of our own.
    pub(crate) code: Option<&'static str>,
    /// Of creates: what is known of the money.
    pub(crate) charge: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) queue_ms: u64,
    pub(crate) upstream_ms: u64,
    pub(crate) total_ms: u64,
    /// The answer was passed on to its end.
    pub(crate) complete: bool,
}

/// Who decided about an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    Upstream,
    /// It was known here, and cost no attempt.
    Memory,
    /// Refused by the proxy.
    Proxy,
    /// Left before there was one.
    Caller,
}

/// The ring, and how many look on.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    watchers: AtomicUsize,
    /// Short; taken at the end of a request only while somebody looks on.
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    number: u64,
    seen: VecDeque<Arc<Seen>>,
}

impl Recent {
    /// Somebody looks on, for as long as the value lives.
    pub(crate) fn watch(self: &Arc<Self>) -> Watching {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watching(Arc::clone(self))
    }

    /// Keeps what `describe` says of a request, where somebody looks on.
    pub(crate) fn note(&self, describe: impl FnOnce() -> Seen) {
        if self.watchers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut seen = describe();
        if seen.path.chars().nth(PATH_CHARS).is_some() {
            seen.path = seen.path.chars().take(PATH_CHARS).chain(['…']).collect();
        }
        let mut ring = self.ring();
        ring.number += 1;
        seen.number = ring.number;
        if ring.seen.len() == KEPT {
            ring.seen.pop_front();
        }
        ring.seen.push_back(Arc::new(seen));
    }

    /// The latest first.
    pub(crate) fn latest(&self) -> Vec<Arc<Seen>> {
        self.ring().seen.iter().rev().cloned().collect()
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who looks on. What was kept goes with the last one.
#[derive(Debug)]
#[must_use]
pub(crate) struct Watching(Arc<Recent>);

impl Drop for Watching {
    fn drop(&mut self) {
        if self.0.watchers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.ring().seen.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str) -> Seen {
        Seen {
            number: 0,
            at: 0,
            client: None,
            account: None,
            class: None,
            method: "GET".into(),
            path: path.into(),
            status: 200,
            by: By::Upstream,
            code: None,
            charge: None,
            attempts: 1,
            queue_ms: 0,
            upstream_ms: 0,
            total_ms: 0,
            complete: true,
        }
    }

    #[test]
    fn requests_are_kept_while_somebody_looks_on_and_no_more_than_the_ring_holds() {
        let recent = Arc::new(Recent::default());
        recent.note(|| unreachable!("nobody looks on"));
        let watching = (recent.watch(), recent.watch());
        for number in 0..KEPT + 5 {
            recent.note(|| seen(&format!("/{number}")));
        }
        let latest = recent.latest();
        assert_eq!((latest.len(), latest[0].path.as_str(), latest[0].number), (KEPT, "/104", 105));
        drop(watching.0);
        assert_eq!(recent.latest().len(), KEPT, "one still looks on");
        drop(watching.1);
        assert_eq!(recent.latest().len(), 0);
        recent.note(|| unreachable!("nobody looks on"));
    }

    #[test]
    fn long_paths_are_cut_between_characters() {
        let recent = Arc::new(Recent::default());
        let _watching = recent.watch();
        recent.note(|| seen(&"ü".repeat(PATH_CHARS)));
        recent.note(|| seen(&"ü".repeat(PATH_CHARS + 1)));
        let [cut, whole] = &recent.latest()[..] else { panic!("two") };
        assert_eq!((&whole.path, &cut.path), (&"ü".repeat(PATH_CHARS), &format!("{}…", whole.path)));
    }
}
