//! The pages for a task: every command in them is run, in order, each page in a directory and a network of its own.
//!
//! Blocks marked `sh` are run; `text` is what needs a registry, a cluster or a machine to install on. The API is imitated.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::support::program::{Ended, KEY, PROGRAM, Place, ended};
use crate::tools::tool;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The blocks of a page in this language.
fn blocks<'p>(page: &'p str, language: &str) -> Vec<&'p str> {
    let blocks = page.split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

/// What stands before the page's own commands: a network where nobody else has a port, and the API.
const BEFORE: &str = r"
set -euo pipefail
ip link set lo up
sluicegate mock --listen 127.0.0.1:9090 --run-time 300ms > /dev/null &
mock=$!
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
until curl --fail --silent http://127.0.0.1:9090/_mock/stats > /dev/null; do sleep 0.05; done
disown $mock
export SLUICEGATE_UPSTREAM_URL=http://127.0.0.1:9090
";

/// Runs a page; returns what its commands printed.
async fn run(name: &str, blocks_expected: usize) -> String {
    let page = fs::read_to_string(root().join("docs").join(name)).expect(name);
    let sh = blocks(&page, "sh");
    assert_eq!(sh.len(), blocks_expected, "{name}: a block was lost or added");
    run_script(name, &sh.join("\n")).await
}

async fn run_script(name: &str, script: &str) -> String {
    let place = Place::new();
    // As in a clone, but for what the commands make.
    std::os::unix::fs::symlink(root().join("deploy"), place.join("deploy")).expect("linked");
    let script = place.write("page.sh", &format!("{BEFORE}\nset -x\n{script}\nkill $mock\n"));
    // Helm and kubectl are found there.
    let tools = tool("kubectl", &[]).await.as_std().get_program().to_owned();
    let tools = Path::new(&tools).parent().expect("a directory").display().to_string();
    let ours = Path::new(PROGRAM).parent().expect("a directory").display().to_string();
    let mut command = place.command("unshare", &["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    if !rustix::process::geteuid().is_root() {
        // Whoever may not make a network of their own may where they are root of nothing else.
        command.arg("--map-root-user");
    }
    command
        .arg("bash")
        .arg(script)
        .env("PATH", format!("{ours}:{tools}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"))
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::null());
    let Ended { code, out, err } = ended(&mut command).await;
    assert_eq!(code, Some(0), "{name}: {out}\n{err}");
    assert!(!out.contains(KEY));
    out
}

/// The README's two commands, with nothing edited: the proxy, and a call.
#[tokio::test]
async fn a_first_request_takes_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("there");
    let sh = blocks(&readme, "sh");
    let (start, call) = (sh[1], sh[2]);
    assert!(start.contains("export CORE_API_KEY=...") && start.contains("\ncargo run --release "), "{start}");
    assert!(call.starts_with("curl http://127.0.0.1:8787/v1/predictions "), "{call}");
    let start = start.replace("cargo run --release ", "sluicegate & ");
    let script = format!("{start}\nuntil sluicegate healthcheck; do sleep 0.05; done\n{call}\n");
    let out = run_script("README.md", &script).await;
    assert!(out.contains("\"job_id\":"), "{out}");
}

#[tokio::test]
async fn laptop() {
    let out = run("laptop.md", 5).await;
    assert!(out.contains("ok    key ") && out.contains("is let in"), "{out}");
    assert!(out.contains(r#""status":"completed""#), "{out}");
    assert!(out.contains("proxy.toml is valid"), "{out}");
}

#[tokio::test]
async fn sidecar() {
    run("sidecar.md", 2).await;
}

#[tokio::test]
async fn team_server() {
    let out = run("team-server.md", 3).await;
    assert!(out.contains("proxy.toml is valid: 1 account, 2 clients"), "{out}");
    assert!(out.contains("counted by the running proxy"), "{out}");
}

#[tokio::test]
async fn ci() {
    let out = run("ci.md", 4).await;
    assert!(out.contains("ci.toml is valid: 1 account"), "{out}");
}

#[tokio::test]
async fn load_test() {
    let out = run("load-test.md", 3).await;
    assert!(out.contains("sluicegate_queue_wait_seconds_sum"), "{out}");
    assert!(out.contains("100 jobs of flux-schnell"), "{out}");
}

/// Links between pages, and to files of the repository, lead somewhere.
#[test]
fn links_lead_somewhere() {
    let docs = root().join("docs");
    let mut pages: Vec<_> = fs::read_dir(&docs).expect("there").map(|entry| entry.expect("an entry").path()).collect();
    pages.push(root().join("README.md"));
    for page in pages.iter().filter(|page| page.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(page).expect("text");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if link.is_empty() || link.contains("://") {
                continue;
            }
            let target = page.parent().expect("a directory").join(link);
            assert!(target.exists(), "{}: {link}", page.display());
        }
    }
}

/// What a page names in passing is there too.
#[test]
fn files_that_pages_name_exist() {
    for page in ["laptop.md", "sidecar.md", "team-server.md", "ci.md", "load-test.md"] {
        let text = fs::read_to_string(root().join("docs").join(page)).expect(page);
        for named in text.split('`').filter(|word| word.starts_with("deploy/") && !word.contains(' ')) {
            assert!(root().join(named).exists(), "{page}: {named}");
        }
    }
}
