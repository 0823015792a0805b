//! One program for all targets: `FUZZ_TARGET` names the one. The functions and their properties are `src/fuzz.rs`.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sluicegate::fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
    let target = TARGETS.iter().find(|(other, _)| *other == name);
    target.unwrap_or_else(|| panic!("no target {name}: {:?}", TARGETS.map(|(name, _)| name))).1
});

fuzz_target!(|data: &[u8]| TARGET(data));
