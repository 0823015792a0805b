//! What the benches of whole processes share: parties, each a process of its own on a core of its own, and callers.
//!
//! The server under test runs on core 0; upstream and callers run on core 1 (`taskset`, where there is one). The figure is the server's
//! own CPU time from the kernel's accounting, which moves far less than throughput on a noisy machine.

// Each bench uses its own part of this.
#![allow(dead_code)]

pub(crate) mod callers;
pub(crate) mod party;
pub(crate) mod upstream;

/// Interleaved rounds; one more before them warms up.
pub(crate) const ROUNDS: usize = 5;

/// Median with its spread, and the text that shows both.
pub(crate) struct Figure {
    /// The middle of the rounds.
    pub(crate) median: f64,
    /// `median [least - most]`.
    pub(crate) text: String,
}

impl Figure {
    /// Of one figure a round.
    pub(crate) fn of(mut rounds: Vec<f64>) -> Self {
        rounds.sort_by(f64::total_cmp);
        let median = rounds[rounds.len() / 2];
        Self { median, text: format!("{median:.1} [{:.1} - {:.1}]", rounds[0], rounds[rounds.len() - 1]) }
    }
}

/// Runs every round with each of `parties` in turn, and gives each one's figure.
pub(crate) fn interleaved<P>(parties: &[P], rounds: usize, mut measure: impl FnMut(&P) -> f64) -> Vec<Figure> {
    let mut figures = vec![Vec::new(); parties.len()];
    for round in 0..=rounds {
        for (party, figures) in parties.iter().zip(&mut figures) {
            let figure = measure(party);
            if round > 0 {
                figures.push(figure);
            }
        }
    }
    figures.into_iter().map(Figure::of).collect()
}

/// Whether anything is to be measured: under `cargo test --benches` nothing is.
pub(crate) fn wanted() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

/// Whether a part of a bench is to run: all do, unless some are named (`cargo bench --bench peers -- memory`).
pub(crate) fn chosen(part: &str) -> bool {
    let mut named = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).peekable();
    named.peek().is_none() || named.any(|name| name == part)
}
