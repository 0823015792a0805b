//! The vendors' own client libraries through the proxy, with nothing changed but the base URL and a placeholder for the key.
//!
//! Each test puts a proxy before a mock of the API and runs a scenario of `tests/sdk/with_*.py`. The mock lets nobody in without the
//! right key in the right place, so an answer proves that the key was put in. `PYTHON` names another interpreter than `python3`.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluicegate::app::Usage;
use sluicegate::config::{self, Config, Flags, Sources};
use sluicegate::mock::{Dialect, Fault, Mock, Options, RunTime};
use sluicegate::server::Server;
use tokio::process::Command;

use crate::support::patience::until;

const KEY: &str = "cdt_test_key_of_the_account";
const PLACEHOLDER: &str = "placeholder-of-the-app";
/// Where the README's snippets expect the proxy.
const DEFAULT_URL: &str = "http://127.0.0.1:8787";
/// Between two chunks of a stream: long beside what an SDK takes to read its first one on a busy machine.
const GAP: Duration = Duration::from_millis(100);
/// Far beyond any scenario, also on a busy machine.
const LONGEST: Duration = Duration::from_secs(120);

const FREE: &str = "requests_per_minute = 60\nconcurrent_jobs = 5";
const CLIENT: &str = "[[clients]]\nname = \"app\"\ntoken = { env = \"APP_TOKEN\" }";
const RETRY_TWICE: &str = "[retry]\nmax_attempts = 2\ninitial_backoff = \"10ms\"";

#[tokio::test]
async fn openai_chats_streams_and_lists_models() {
    answers("with_openai.py").await;
}

#[tokio::test]
async fn anthropic_answers_and_streams() {
    answers("with_anthropic.py").await;
}

#[tokio::test]
async fn google_genai_answers_and_streams() {
    answers("with_genai.py").await;
}

#[tokio::test]
async fn requests_creates_polls_cancels_and_uploads() {
    answers("with_requests.py").await;
}

#[tokio::test]
async fn openai_sees_refusals_as_its_own_errors() {
    refusals("with_openai.py", 1).await;
}

#[tokio::test]
async fn anthropic_sees_refusals_as_its_own_errors() {
    refusals("with_anthropic.py", 1).await;
}

#[tokio::test]
async fn google_genai_sees_refusals_as_its_own_errors() {
    refusals("with_genai.py", 1).await;
}

#[tokio::test]
async fn requests_sees_refusals_as_problems() {
    refusals("with_requests.py", 3).await;
}

#[tokio::test]
async fn openai_does_not_multiply_retries() {
    retries("with_openai.py", "/llm/", 4).await;
}

#[tokio::test]
async fn anthropic_does_not_multiply_retries() {
    retries("with_anthropic.py", "/llm/", 4).await;
}

#[tokio::test]
async fn google_genai_does_not_multiply_retries() {
    retries("with_genai.py", "/llm/", 4).await;
}

#[tokio::test]
async fn requests_sees_what_became_of_the_money() {
    retries("with_requests.py", "/v1/predictions", 4).await;
}

#[tokio::test]
async fn openai_waits_in_the_queue_or_as_long_as_it_is_told() {
    patience("with_openai.py", 8).await;
}

#[tokio::test]
async fn anthropic_waits_in_the_queue_or_as_long_as_it_is_told() {
    patience("with_anthropic.py", 5).await;
}

#[tokio::test]
async fn replicate_python_runs_models_and_cancels() {
    for scenario in ["answers", "variables"] {
        let stage = Stage::replicate("requests_per_minute = 600\nconcurrent_jobs = 5", "").await;
        stage.run("with_replicate.py", scenario).await;
        stage.close().await;
    }
}

#[tokio::test]
async fn replicate_python_sees_refusals_as_its_own_errors() {
    let stage = Stage::replicate("requests_per_minute = 600\nconcurrent_jobs = 1", CLIENT).await;
    stage.run("with_replicate.py", "refusals").await;
    stage.close().await;
}

#[tokio::test]
async fn replicate_javascript_runs_models_and_cancels() {
    let stage = Stage::replicate("requests_per_minute = 600\nconcurrent_jobs = 5", "").await;
    stage.node("with_replicate.cjs", "answers").await;
    stage.close().await;
}

#[tokio::test]
async fn replicate_javascript_sees_refusals() {
    let stage = Stage::replicate("requests_per_minute = 600\nconcurrent_jobs = 1", CLIENT).await;
    stage.node("with_replicate.cjs", "refusals").await;
    stage.close().await;
}

#[tokio::test]
async fn the_readme_s_snippets_work_as_they_stand() {
    let stage = Stage::open(FREE, "").await;
    let snippets = readme("python");
    assert_eq!(snippets.len(), 4);
    for snippet in snippets {
        assert!(snippet.contains(DEFAULT_URL), "{snippet}");
        let printed = stage.python(&["-c", &snippet.replace(DEFAULT_URL, &stage.url())]).await;
        assert!(printed.contains("has nothing to add.") || printed.starts_with("completed http"), "{printed}");
    }
    stage.close().await;
}

#[test]
fn the_readme_s_configuration_is_valid() {
    for text in readme("toml") {
        let config = load(&text.replace("{ file = \"/run/secrets/core-api-key\" }", "{ env = \"CORE_API_KEY\" }"));
        assert_eq!(config.clients.len(), 2);
    }
}

async fn answers(script: &str) {
    let stage = Stage::open(FREE, "").await;
    stage.run(script, "answers").await;
    stage.close().await;
}

/// A window for `requests`, one job, and a client that has to say who it is.
async fn refusals(script: &str, requests: u32) {
    let plan = format!("requests_per_minute = {requests}\nconcurrent_jobs = 1");
    let stage = Stage::open(&plan, CLIENT).await;
    stage.run(script, "refusals").await;
    assert_eq!(stage.mock.stats().attempts, u64::from(requests), "a refusal is not sent upstream");
    stage.close().await;
}

/// The first call meets two 503s, which is as often as the proxy tries. The second is reset in silence and must not be repeated.
async fn retries(script: &str, path: &str, posts: usize) {
    let stage = Stage::open(FREE, RETRY_TWICE).await;
    let busy = Fault::Status { code: 503, headers: [].into(), execute: false };
    let faults = [busy.on("POST", path).times(2), Fault::ResetBefore.on("POST", path)];
    stage.mock.script(faults);
    stage.run(script, "retries").await;
    let requests = stage.mock.requests();
    assert_eq!(requests.iter().filter(|seen| seen.method == "POST").count(), posts);
    // A create of unknown outcome keeps its slot.
    let usage = stage.idle().await;
    assert_eq!(usage.jobs_uncertain, usize::from(path == "/v1/predictions"));
}

async fn patience(script: &str, calls: u64) {
    let stage = Stage::open("requests = 2\nper = \"1s\"", "").await;
    stage.run(script, "patience").await;
    let stats = stage.mock.stats();
    assert_eq!(stats.attempts, calls);
    assert!(stats.max_in_window <= 2, "{stats:?}");
    stage.close().await;
}

/// A proxy before a mock.
struct Stage {
    mock: Mock,
    server: Server,
}

impl Stage {
    /// The mock counts as the plan says; `rest` is what else `proxy.toml` has.
    async fn open(plan: &str, rest: &str) -> Self {
        Self::of(Dialect::B, "core.today", plan, rest).await
    }

    /// The same in front of a mock of Replicate.
    async fn replicate(plan: &str, rest: &str) -> Self {
        Self::of(Dialect::Replicate, "replicate", plan, rest).await
    }

    async fn of(dialect: Dialect, protocol: &str, plan: &str, rest: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = |url: &str| {
            load(&format!(
                "account = \"main\"\n[accounts.main]\nplan = \"test\"\nkey = {{ env = \"CORE_API_KEY\" }}\n\
                 [plans.test]\n{plan}\n[server]\nlisten = \"{any}\"\nthreads = 1\n[admin]\nlisten = \"off\"\n\
                 [upstream]\nurl = \"{url}\"\nprotocol = \"{protocol}\"\n[state]\nstore = \"memory\"\n{rest}\n"
            ))
        };
        let limits = &config("http://127.0.0.1:1").accounts[0].plan;
        let requests = limits.requests.expect("the plan has a rate");
        let options = Options {
            requests: Some(requests.limit.get()),
            window: requests.window,
            concurrent_jobs: limits.concurrent_jobs.map(Into::into),
            run_time: RunTime::Fixed(Duration::from_millis(300)),
            keys: vec![KEY.to_owned()],
            dialect,
            llm_gap: GAP,
            ..Options::default()
        };
        let mock = Mock::start(options, any).await.expect("a port for the mock");
        let server = Server::start(&config(&mock.url())).await.expect("the proxy starts");
        Self { mock, server }
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.listen[0])
    }

    async fn run(&self, script: &str, scenario: &str) {
        let script = sdk().join(script);
        self.python(&[script.to_str().expect("a path of text"), scenario]).await;
    }

    /// Runs Python and returns what it printed.
    async fn python(&self, args: &[&str]) -> String {
        let python = environment("python", "sdk-venv").await.join("bin/python");
        self.program(clean(python), args).await
    }

    async fn node(&self, script: &str, scenario: &str) {
        let modules = environment("node", "sdk-node").await.join("node_modules");
        let mut node = clean("node");
        node.env("NODE_PATH", modules);
        self.program(node, &[sdk().join(script).to_str().expect("a path of text"), scenario]).await;
    }

    /// Runs a program and returns what it printed; fails with all that it wrote if it fails.
    async fn program(&self, mut command: Command, args: &[&str]) -> String {
        command
            .args(args)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("SLUICEGATE_URL", self.url())
            .env("PLACEHOLDER_KEY", PLACEHOLDER)
            .env("MOCK_GAP_SECS", GAP.as_secs_f64().to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LONGEST, command.output()).await.expect("it ends").expect("it runs");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {}\n{stdout}{stderr}\n{:#?}", output.status, self.mock.stats());
        stdout.into_owned()
    }

    /// Waits until nothing is under way.
    async fn idle(&self) -> Usage {
        until("idle", || async {
            let usage = self.server.proxy().usage();
            ((usage.in_flight, usage.tasks_running, usage.waiting) == (0, 0, 0), usage)
        })
        .await
    }

    /// Nothing is left over, and the upstream saw the account's key and nothing of the app's.
    async fn close(self) {
        let usage = self.idle().await;
        assert_eq!((usage.jobs_live, usage.jobs_uncertain, usage.held_bytes), (0, 0, 0));
        let stats = self.mock.stats();
        assert_eq!((stats.unauthorized, stats.refused_rate_429, stats.refused_job_429), (0, 0, 0));
        for seen in self.mock.requests() {
            assert_eq!(seen.key, KEY, "{} {}", seen.method, seen.path);
            let sent = format!("{} {:?}", seen.path, seen.headers);
            assert!(!sent.contains(PLACEHOLDER), "{sent}");
        }
        assert!(self.server.drain().await, "nothing holds the drain up");
    }
}

/// No key, proxy or base URL of whoever runs the tests.
fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// The README's blocks of code in a language.
fn readme(language: &str) -> Vec<&'static str> {
    let blocks = include_str!("../../README.md").split("\n```").skip(1).step_by(2);
    blocks.filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect()
}

fn load(text: &str) -> Config {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = std::env::temp_dir().join(format!("sluicegate-sdk-{}-{number}.toml", std::process::id()));
    fs::write(&file, text).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a file of ours");
    let env = [
        ("CORE_API_KEY", KEY),
        ("APP_TOKEN", PLACEHOLDER),
        ("WEB_TOKEN", "web"),
        ("BATCH_TOKEN", "batch"),
        ("HOME", "/nowhere"),
    ];
    let sources = Sources {
        flags: Flags { config: Some(file.clone()), ..Flags::default() },
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        cwd: std::env::temp_dir(),
    };
    let loaded = config::load(&sources);
    fs::remove_file(file).expect("still there");
    loaded.unwrap_or_else(|report| panic!("{report}")).config
}

/// The environment with the SDKs of a language, made by the first test that needs it and kept below `target`.
async fn environment(language: &str, name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("..");
    let directory = target.join(name);
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let prepared = Command::new(&python)
        .arg(sdk().join("prepare.py"))
        .arg(language)
        .arg(&directory)
        .output()
        .await
        .unwrap_or_else(|error| panic!("{} does not run: {error}; the SDK tests need it", python.display()));
    assert!(
        prepared.status.success(),
        "{}{}",
        String::from_utf8_lossy(&prepared.stdout),
        String::from_utf8_lossy(&prepared.stderr)
    );
    directory
}

fn sdk() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}
