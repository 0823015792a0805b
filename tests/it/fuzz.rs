//! The fuzz targets, briefly: each on its corpus and on some thousand mutations of it. `scripts/fuzz` runs them with coverage for as long
//! as one likes.

use std::fs;
use std::path::Path;

use fastrand::Rng;
use sluicegate::fuzz::TARGETS;

/// `FUZZ_RUNS` asks for more.
fn runs() -> usize {
    std::env::var("FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3_000)
}

#[test]
fn no_bytes_break_a_property_of_what_reads_them() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "fuzz/corpus/{name} has no seeds");
        for seed in &corpus {
            target(seed);
        }
        let mut rng = Rng::with_seed(7);
        for _ in 0..runs() {
            let mut input = corpus[rng.usize(..corpus.len())].clone();
            for _ in 0..rng.usize(1..6) {
                mutate(&mut input, &corpus, &mut rng);
            }
            target(&input);
        }
    }
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("readable")).collect()
}

/// One change: a byte, a piece cut, doubled or taken from elsewhere, a number made large.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], rng: &mut Rng) {
    let at = rng.usize(..=input.len());
    let end = (at + rng.usize(..16)).min(input.len());
    match rng.u32(..6) {
        0 if at < input.len() => input[at] = rng.u8(..),
        1 if at < input.len() => input[at] ^= 1 << rng.u32(..8),
        2 => drop(input.drain(at..end)),
        3 => {
            let piece = input[at..end].to_vec();
            input.splice(at..at, piece);
        }
        4 => {
            let other = &corpus[rng.usize(..corpus.len())];
            let from = rng.usize(..=other.len());
            let piece = other[from..(from + rng.usize(..32)).min(other.len())].to_vec();
            input.splice(at..end, piece);
        }
        _ => {
            let piece: &[u8] = [
                &b"\0"[..],
                b"\xff\xfe",
                b"\"",
                b"\\u0000",
                b"{",
                b"}",
                b"/",
                b"%2f",
                b"99999999999999999999",
                b"-1",
                b"1e309",
                b"\r\n",
                b"data:",
            ][rng.usize(..13)];
            input.splice(at..at, piece.iter().copied());
        }
    }
}
