//! What happened in a run, in order: what one reads when it failed, and what two runs of a seed are compared by.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

/// The events of one run.
#[derive(Clone)]
pub struct Trace {
    start: Instant,
    events: Arc<Mutex<Vec<(Duration, String)>>>,
}

impl Trace {
    pub fn new() -> Self {
        Self { start: Instant::now(), events: Arc::default() }
    }

    /// Notes what happens now.
    pub fn note(&self, event: impl Into<String>) {
        self.note_at(Instant::now(), event);
    }

    /// Notes what happened earlier.
    pub fn note_at(&self, at: Instant, event: impl Into<String>) {
        self.events.lock().expect("no panics").push((at - self.start, event.into()));
    }

    /// By time; what happened at one time, by its words: who of several that waited for one thing is woken first is left to tokio.
    pub fn text(&self) -> String {
        let mut events = self.events.lock().expect("no panics").clone();
        events.sort();
        events.iter().fold(String::new(), |mut text, (at, event)| {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{:>12.6}  {event}", at.as_secs_f64());
            text
        })
    }

    /// Equal for equal runs.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text().hash(&mut hasher);
        hasher.finish()
    }
}
