//! Whole files, good and bad, and every word that is said of the bad ones.

use std::fs;
use std::path::{Path, PathBuf};

use super::{MINIMAL, Scratch, valid};

fn corpus(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config").join(kind);
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    paths.sort();
    paths
}

const SECRETS: [&str; 12] = [
    "literal-one",
    "literal-two",
    "12345\n",
    "hunter2",
    "sk-unfinished",
    "sk_live",
    "sk0123456789",
    "cdt0123456789",
    "stdout-secret",
    "not a key",
    "whsec_not-base64!",
    "4f1e7d6c5b4a39281706f5e4",
];

#[test]
fn every_mistake_is_explained() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut wrong = Vec::new();
    let files = corpus("invalid");
    assert!(files.len() >= 25);
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let scratch = Scratch::new();
        let Err(report) = scratch.load(name, &fs::read_to_string(&path).unwrap()) else {
            panic!("{name} was accepted");
        };
        let shown = format!("{report}\n").replace(scratch.path().to_str().unwrap(), "DIR");
        for secret in SECRETS {
            assert!(!shown.contains(secret), "{name} shows {secret}:\n{shown}");
            assert!(!report.styled().contains(secret), "{name} shows {secret}");
        }
        assert!(!shown.contains('\x1b'), "{name} lets control characters through");
        assert_eq!(report.count(), shown.lines().filter(|line| line.starts_with("error: ")).count(), "{name}");
        let expected = path.with_extension("stderr");
        if bless {
            fs::write(expected, shown).unwrap();
        } else if fs::read_to_string(expected).unwrap_or_default() != shown {
            wrong.push(format!("{name} now gives:\n{shown}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nBLESS=1 accepts this", wrong.join("\n"));
}

#[test]
fn valid_files_are_accepted() {
    for path in corpus("valid") {
        valid(path.file_stem().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_report_shows_no_secret_in_debug_either() {
    let scratch = Scratch::new();
    let text = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "\"literal-one\"");
    let report = scratch.load("proxy.toml", &text).unwrap_err();
    assert!(!format!("{report:?}").contains("literal-one"));
    let config = valid("minimal").config;
    assert!(!format!("{config:?}").contains("core-key"));
}
