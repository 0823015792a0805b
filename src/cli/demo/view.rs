//! What is shown while the demo works: redrawn lines on a terminal, else a line a second.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use crate::app::Proxy;
use crate::cli::{say, say_bytes};

use super::callers::Work;
use super::oracle::Limits;

const BAR: usize = 30;

pub(super) struct View {
    total: u32,
    limits: Limits,
    live: bool,
    /// Lines on the screen that the next picture replaces.
    drawn: usize,
}

impl View {
    pub(super) fn new(total: u32, limits: Limits) -> Self {
        Self { total, limits, live: stdout().is_terminal(), drawn: 0 }
    }

    /// How often to show.
    pub(super) fn every(&self) -> Duration {
        Duration::from_millis(if self.live { 100 } else { 1_000 })
    }

    pub(super) fn show(&mut self, proxy: &Proxy, work: &Work, elapsed: Duration) {
        let usage = proxy.usage();
        let used = proxy.status().pointer("/accounts/0/requests/used").and_then(serde_json::Value::as_u64);
        let (done, lost) = work.counts();
        let Limits { requests, window, jobs } = self.limits;
        let (total, elapsed, used) = (self.total, elapsed.as_secs_f64(), used.unwrap_or_default());
        let counts = format!(
            "{} of {jobs} jobs live, {} waiting, {used} of {requests} attempts in the last {} s",
            usage.jobs_live,
            usage.waiting,
            window.as_secs_f64()
        );
        let lost = if lost == 0 { String::new() } else { format!(", {lost} lost") };
        if self.live {
            let picture =
                format!("  [{}] {done} of {total} done{lost}, {elapsed:.1} s\n  {counts}\n", bar(done, total));
            say_bytes(format!("{}{picture}", self.clear()).as_bytes());
            self.drawn = picture.lines().count();
        } else {
            say(format_args!("{elapsed:5.1} s: {done} of {total} done{lost}; {counts}"));
        }
    }

    /// Moves up over the last picture and clears it.
    fn clear(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.drawn) }
    }
}

fn bar(done: u32, total: u32) -> String {
    let filled = (BAR * done as usize) / total.max(1) as usize;
    format!("{}{}", "#".repeat(filled.min(BAR)), ".".repeat(BAR.saturating_sub(filled)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_has_one_length() {
        for (done, filled) in [(0, 0), (1, 1), (15, 15), (30, 30)] {
            let bar = bar(done, 30);
            assert_eq!((bar.len(), bar.matches('#').count()), (BAR, filled));
        }
    }
}
