//! SECURITY.md promises what tests show: those that it names are there.

use std::fs;
use std::path::{Path, PathBuf};

/// Where a test of this module would stand: `guard` in tests/it, `proxy::guard::tests` in src.
fn source(module: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let module = module.replace("::", "/");
    let Some(module) = module.strip_suffix("/tests") else { return root.join(format!("tests/it/{module}.rs")) };
    let path = root.join("src").join(module);
    let own = path.join("tests.rs");
    if own.exists() { own } else { path.with_extension("rs") }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).expect("the page");
    let mut named = 0;
    for text in page.split('`').skip(1).step_by(2) {
        let Some((module, test)) = text.rsplit_once("::").filter(|(_, test)| !test.is_empty()) else { continue };
        let file = source(module);
        let source = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(source.contains(&format!("fn {test}(")), "{text} is not in {}", file.display());
        named += 1;
    }
    assert!(named > 25, "{named}");
}
