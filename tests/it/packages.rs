//! What is packed with the program: completions, manual pages, the schema of the configuration.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::program::{Ended, PROGRAM, Place, ended};
use crate::tools;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The schemas of a key's path, with `*` for names of the operator's choice.
fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(schema, |here, segment| {
        let here = if here["type"] == "array" { &here["items"] } else { here };
        if segment == "*" { &here["additionalProperties"] } else { &here["properties"][segment] }
    })
}

#[tokio::test]
async fn the_schema_in_the_repository_is_the_program_s() {
    let file = root().join("proxy.schema.json");
    let printed = ended(&mut Place::new().sluicegate(&["schema"])).await;
    assert_eq!(printed.code, Some(0), "{printed:?}");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &printed.out).expect("written");
    }
    let kept = fs::read_to_string(&file).expect("there");
    assert!(kept == printed.out, "proxy.schema.json is out of date: `cargo run -- schema > proxy.schema.json`");
}

#[test]
fn the_schema_has_every_key_and_says_what_it_is_for() {
    let schema = sluicegate::config::schema();
    for path in sluicegate::config::keys() {
        let key = at(&schema, path);
        assert!(key["description"].as_str().is_some_and(|text| !text.is_empty()), "{path}: {key}");
    }
}

#[tokio::test]
async fn the_schema_accepts_every_valid_file_and_refuses_unknown_keys_in_every_table() {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join("tests/it/config/valid"))
        .expect("there")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.push(root().join("proxy.toml"));
    let mut check = tools::python(&["tests/deploy/schema.py", "proxy.schema.json"]).await;
    let Ended { code, out, err } = ended(check.args(&files)).await;
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with(&format!("{} files valid, ", files.len())), "{out}");
}

#[tokio::test]
async fn the_schema_notices_values_that_no_key_may_have() {
    let place = Place::new();
    for wrong in [
        "[server]\nthreads = 1025",
        "[server]\nallow_open = \"yes\"",
        "[plans.a]\npacing = \"fast\"",
        "[queue]\nmax_wait = 30",
        "[queue]\nmax_wait = \"soon\"",
        "[accounts.a]\nplan = \"p\"\nkey = \"cdt_literal\"",
        "[accounts.a]\nplan = \"p\"\nkey = { env = \"A\", file = \"b\" }",
        "[accounts.a]\nkey = { env = \"A\" }",
        "[retry]\nstatuses = [200]",
        "[[clients]]\nname = \"a\"\nweight = 0",
    ] {
        let file = place.write("wrong.toml", wrong);
        let mut check = tools::python(&["tests/deploy/schema.py", "proxy.schema.json"]).await;
        let ended = ended(check.arg(file)).await;
        assert_eq!(ended.code, Some(1), "{wrong}: {ended:?}");
    }
}

#[tokio::test]
async fn init_names_the_schema_that_it_writes() {
    let place = Place::new();
    let init = ended(&mut place.sluicegate(&["init"])).await;
    assert_eq!(init.code, Some(0), "{init:?}");
    let text = fs::read_to_string(place.join("proxy.toml")).expect("there");
    assert!(text.starts_with("#:schema ./proxy.schema.json\n"), "{text}");
    let schema = fs::read_to_string(place.join("proxy.schema.json")).expect("there");
    assert_eq!(schema, fs::read_to_string(root().join("proxy.schema.json")).expect("there"));
}

#[tokio::test]
async fn the_manual_has_a_page_for_each_command() {
    let place = Place::new();
    let man = ended(&mut place.sluicegate(&["man", "pages"])).await;
    assert_eq!(man.code, Some(0), "{man:?}");
    let page = |name: &str| fs::read_to_string(place.join("pages").join(name)).expect(name);
    let program = page("sluicegate.1");
    let commands =
        ["run", "check", "init", "demo", "mock", "env", "exec", "healthcheck", "doctor", "explain", "schema"];
    for command in commands {
        assert!(program.contains(&format!("sluicegate\\-{command}(1)")), "{command}\n{program}");
        assert!(page(&format!("sluicegate-{command}.1")).starts_with(".ie"), "{command}");
    }
    let pages = fs::read_dir(place.join("pages")).expect("there").count();
    assert!(pages < 40, "{pages}: no pages about help");
    let one = ended(&mut place.sluicegate(&["man"])).await;
    assert_eq!(one.out, program);
}

/// What a shell makes of the script is the shell's; that it takes it is ours.
#[tokio::test]
async fn shells_take_the_completions() {
    let place = Place::new();
    for (shell, check) in [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "-n"])] {
        let made = ended(&mut place.sluicegate(&["completions", shell])).await;
        assert!(made.code == Some(0) && made.out.contains("doctor"), "{shell}: {made:?}");
        let file = place.write(shell, &made.out);
        // Only bash is on every machine.
        if shell == "bash" || crate::tools::is_there(check[0]) {
            let took = ended(place.command(check[0], &check[1..]).arg(file)).await;
            assert_eq!(took.code, Some(0), "{shell}: {took:?}");
        }
    }
    for shell in ["elvish", "powershell"] {
        let made = ended(&mut place.sluicegate(&["completions", shell])).await;
        assert_eq!(made.code, Some(0), "{shell}: {made:?}");
    }
}

// ---- Releases ----------------------------------------------------------------------------------------------------------

/// Packs a release of a program that only passes on what it is asked: what is packed does not depend on its size.
async fn packed(place: &Place, into: &str) -> PathBuf {
    let program = place.write("program", &format!("#!/bin/sh\nexec {PROGRAM} \"$@\"\n"));
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("ours");
    let script = root().join("scripts/dist").display().to_string();
    let mut pack = place.command(&script, &["program", "x86_64-linux", into]);
    let packed = ended(pack.env("SOURCE_DATE_EPOCH", "1700000000")).await;
    assert_eq!(packed.code, Some(0), "{packed:?}");
    let archive = place.join(into).join(format!("sluicegate-{}-x86_64-linux.tar.gz", env!("CARGO_PKG_VERSION")));
    assert_eq!(packed.out.trim(), archive.display().to_string());
    archive
}

#[tokio::test]
async fn a_release_holds_all_that_is_shipped_and_its_checksum_is_right() {
    let place = Place::new();
    let archive = packed(&place, "one").await;
    let twice = packed(&place, "two").await;
    assert!(fs::read(&archive).expect("there") == fs::read(twice).expect("there"), "the same input, other bytes");
    let sum = format!("{}.sha256", archive.display());
    let checked = ended(place.command("sha256sum", &["--check", &sum]).current_dir(place.join("one"))).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let listed = ended(&mut place.command("tar", &["tzf", &archive.display().to_string()])).await;
    for file in [
        "/sluicegate",
        "/README.md",
        "/LICENSE-MIT",
        "/proxy.toml",
        "/proxy.schema.json",
        "/completions/sluicegate.bash",
        "/completions/sluicegate.zsh",
        "/man/sluicegate.1",
        "/man/sluicegate-doctor.1",
        "/deploy/systemd/sluicegate.service",
        "/deploy/kubernetes/sidecar/kustomization.yaml",
        "/deploy/helm/sluicegate/Chart.yaml",
    ] {
        assert!(listed.out.lines().any(|line| line.ends_with(file)), "{file}\n{}", listed.out);
    }
}

#[tokio::test]
async fn workflows_are_what_their_runner_takes() {
    let workflow = ".github/workflows/release.yml";
    let arguments = ["--builtin-schema", "vendor.github-workflows", workflow];
    let checked = ended(&mut tools::tool("check-jsonschema", &arguments).await).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let text = fs::read_to_string(root().join(workflow)).expect("there");
    assert!(text.contains("\npermissions: {}\n"), "no job has a right that it does not name");
    for script in text.split_whitespace().filter(|word| word.starts_with("scripts/")) {
        assert!(root().join(script).is_file(), "{script}");
    }
    // What outsiders write reaches shells by variables only.
    let pasted = text.lines().filter(|line| line.contains("run:") && line.contains("${{"));
    assert!(pasted.into_iter().all(|line| line.contains("matrix.target")), "{text}");
}
