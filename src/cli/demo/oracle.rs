//! The best that any client could do under a plan, with knowledge that none has.
//!
//! It knows every run time, asks about each job once, at the moment it ends, and sends the instant the plan allows: one create and one
//! status request a job, status requests first. What a real client needs above this is the price of not knowing.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// The plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any window; at least one.
    pub requests: usize,
    /// How long a window is.
    pub window: Duration,
    /// Jobs alive at once; at least one.
    pub jobs: usize,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Create,
    Status,
}

/// From the first create to the last status request.
#[must_use]
pub fn makespan(run_times: &[Duration], limits: Limits) -> Duration {
    schedule(run_times, limits).last().map_or(Duration::ZERO, |(at, _)| *at)
}

/// Every request and its time from the start, in order.
fn schedule(run_times: &[Duration], limits: Limits) -> Vec<(Duration, Kind)> {
    let mut to_create = run_times.iter().peekable();
    // Ends of the jobs not yet asked about; those in the future are alive.
    let mut ends: BinaryHeap<Reverse<Duration>> = BinaryHeap::new();
    let mut in_window: VecDeque<Duration> = VecDeque::new();
    let mut sent = Vec::new();
    let mut now = Duration::ZERO;
    loop {
        if in_window.len() >= limits.requests
            && let Some(first) = in_window.pop_front()
        {
            // Two that lie exactly one window apart are not in the same window.
            now = now.max(first + limits.window);
        }
        let kind = loop {
            let next_end = ends.peek().map(|Reverse(end)| *end);
            let alive = ends.iter().filter(|Reverse(end)| *end > now).count();
            match next_end {
                Some(end) if end <= now => break Some(Kind::Status),
                _ if alive < limits.jobs && to_create.peek().is_some() => break Some(Kind::Create),
                Some(end) => now = end,
                None => break None,
            }
        };
        match kind {
            None => return sent,
            Some(Kind::Status) => drop(ends.pop()),
            Some(Kind::Create) => ends.extend(to_create.next().map(|run_time| Reverse(now + *run_time))),
        }
        sent.extend(kind.map(|kind| (now, kind)));
        in_window.push_back(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: Limits = Limits { requests: 60, window: Duration::from_secs(60), jobs: 5 };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn slots_bind_while_the_window_has_room() {
        assert_eq!(makespan(&[], FREE), Duration::ZERO);
        assert_eq!(makespan(&[seconds(2.5)], FREE), seconds(2.5));
        assert_eq!(makespan(&[seconds(2.5); 6], FREE), seconds(5.0));
        assert_eq!(makespan(&[seconds(2.5); 30], FREE), seconds(15.0), "60 requests: six waves of five");
    }

    #[test]
    fn the_window_binds_from_the_sixty_first_request_on() {
        // Create 31 goes out at 15 s as request 60; the status of job 30 and its own wait for the window.
        assert_eq!(makespan(&[seconds(2.5); 31], FREE), seconds(62.5));
        assert_eq!(makespan(&[seconds(2.5); 60], FREE), seconds(75.0), "the second minute is like the first");
    }

    #[test]
    fn unequal_run_times_fill_the_gaps() {
        let two = Limits { jobs: 2, ..FREE };
        assert_eq!(makespan(&[seconds(4.0), seconds(1.0), seconds(3.0)], two), seconds(4.0));
    }

    proptest! {
        #[test]
        fn no_schedule_breaks_the_plan(
            run_times in proptest::collection::vec(1_u64..5_000, 0..60),
            requests in 1_usize..20,
            jobs in 1_usize..6,
        ) {
            let run_times: Vec<_> = run_times.into_iter().map(Duration::from_millis).collect();
            let limits = Limits { requests, window: seconds(6.0), jobs };
            let sent = schedule(&run_times, limits);
            prop_assert_eq!(sent.len(), run_times.len() * 2);
            for pair in sent.windows(requests + 1) {
                prop_assert!(pair[requests].0 >= pair[0].0 + limits.window);
            }
            let creates = sent.iter().filter(|(_, kind)| *kind == Kind::Create).map(|(at, _)| *at);
            let lives: Vec<_> = creates.zip(&run_times).map(|(at, run_time)| (at, at + *run_time)).collect();
            for (start, _) in &lives {
                let alive = lives.iter().filter(|(from, to)| from <= start && start < to).count();
                prop_assert!(alive <= jobs);
            }
        }
    }
}
