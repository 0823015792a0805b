//! Ended jobs, remembered for `jobs.result_ttl`, so that a late poll costs nothing upstream. Bounded in number and bytes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Most jobs remembered. Older ones are asked for upstream again.
const MOST_JOBS: usize = 20_000;
/// Most bytes of their answers together.
const MOST_BYTES: usize = 64 << 20;

/// Ids of ended jobs, oldest first.
#[derive(Debug)]
pub(crate) struct Remembered {
    ttl: Duration,
    jobs: VecDeque<(Instant, String, usize)>,
    bytes: usize,
}

impl Remembered {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, jobs: VecDeque::new(), bytes: 0 }
    }

    /// How long those are remembered that end from now on.
    pub(crate) fn keep_for(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// Adds a job with the size of its answer. Returns the ids to forget, and when to come back if this is the only one.
    pub(crate) fn add(&mut self, id: &str, size: usize, now: Instant) -> (Vec<String>, Option<Instant>) {
        let until = now + self.ttl;
        self.jobs.push_back((until, id.to_owned(), size));
        self.bytes += size;
        let wake = (self.jobs.len() == 1).then_some(until);
        (self.expire(now), wake)
    }

    /// Ids to forget at `now`.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<String> {
        let mut forgotten = Vec::new();
        while let Some((until, ..)) = self.jobs.front() {
            if *until > now && self.jobs.len() <= MOST_JOBS && self.bytes <= MOST_BYTES {
                break;
            }
            if let Some((_, id, size)) = self.jobs.pop_front() {
                self.bytes -= size;
                forgotten.push(id);
            }
        }
        forgotten
    }

    /// When the oldest is to be forgotten.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.jobs.front().map(|(until, ..)| *until)
    }

    /// How many, and the bytes of their answers.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.jobs.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_forgotten_by_age_number_and_bytes() {
        let now = Instant::now();
        let mut kept = Remembered::new(Duration::from_secs(60));
        assert_eq!(kept.add("a", 10, now), (vec![], Some(now + Duration::from_secs(60))));
        assert_eq!(kept.add("b", MOST_BYTES, now).0, ["a"]);
        assert_eq!(kept.expire(now + Duration::from_secs(60)), ["b"]);
        for n in 0..MOST_JOBS + 7 {
            kept.add(&n.to_string(), 1, now);
        }
        assert_eq!(kept.size(), (MOST_JOBS, MOST_JOBS));
    }
}
