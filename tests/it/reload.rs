//! Another configuration while requests run, and keys that change under them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use sluicegate::app::Proxy;
use sluicegate::clock::Clock;
use sluicegate::config::{self, Attempt, Flags, Sources};
use sluicegate::reload::{Refused, Reloading};
use tokio::io::duplex;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::With;
use crate::support::config::Scratch;
use crate::support::vault::{Passage, Seen, Vault};
use crate::support::{Answer, PIPE_BYTES, client, create, get, poll};

/// At full load.
mod load;

const WINDOW: Duration = Duration::from_secs(60);
const OLD: &str = "cdt_old_canary";
const NEW: &str = "cdt_new_canary";
const KEY_FILE: &str = "key = { file = \"key\" }";
const FREE: &str = "requests_per_minute = 60\nconcurrent_jobs = 5";

/// A proxy whose configuration is a file, in front of a vault.
struct Gate {
    proxy: Proxy,
    reloading: Reloading,
    vault: Arc<Vault>,
    scratch: Scratch,
}

/// One account `main`, whose key is in the file `key`, with this plan, and more tables.
fn toml(plan: &str, more: &str) -> String {
    let memory = if more.contains("[state]") { "" } else { "[state]\nstore = \"memory\"\n" };
    format!("account = \"main\"\n[accounts.main]\nplan = \"main\"\n{KEY_FILE}\n[plans.main]\n{plan}\n{memory}{more}\n")
}

fn write(path: &Path, text: &str) {
    // By another name first: never half there.
    let aside = path.with_extension("aside");
    fs::write(&aside, text).expect("written");
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::rename(aside, path).expect("moved");
}

fn sources(directory: &Path) -> Sources {
    let env = [("WEB_TOKEN", "web-token"), ("BATCH_TOKEN", "batch-token"), ("PATH", "/usr/bin:/bin")];
    let flags = Flags {
        config: Some(directory.join("proxy.toml")),
        upstream: Some("http://localhost:1".to_owned()),
        ..Flags::default()
    };
    Sources {
        cwd: directory.to_owned(),
        flags,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
    }
}

impl Gate {
    fn new(plan: &str, more: &str) -> Self {
        Self::at(plan, more, Vault::new(&[OLD], WINDOW, Duration::from_millis(20)), Scratch::new())
    }

    fn at(plan: &str, more: &str, vault: Arc<Vault>, scratch: Scratch) -> Self {
        if !scratch.0.join("key").exists() {
            write(&scratch.0.join("key"), OLD);
        }
        write(&scratch.0.join("proxy.toml"), &toml(plan, more));
        Self::of(sources(&scratch.0), vault, scratch)
    }

    fn of(sources: Sources, vault: Arc<Vault>, scratch: Scratch) -> Self {
        let Attempt { loaded, watch } = config::load_watched(&sources);
        let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
        config::prepare(&loaded.config).expect("a place for state");
        let way = Arc::new(Passage(Arc::clone(&vault)));
        let proxy = Proxy::build(&loaded.config, Clock::tokio(), Some(way)).expect("a good configuration");
        let reloading = proxy.reloading(sources, loaded.path, watch);
        Self { proxy, reloading, vault, scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.0.join(name)
    }

    /// Writes the file anew and has it read.
    async fn reload(&mut self, plan: &str, more: &str) -> Result<u64, Refused> {
        write(&self.path("proxy.toml"), &toml(plan, more));
        self.reloading.reload().await.map(|reloaded| reloaded.generation)
    }

    /// Sends one request over a connection of its own.
    fn send(&self, request: Request<Full<Bytes>>) -> impl Future<Output = Answer> + Send + use<> {
        let (near, far) = duplex(PIPE_BYTES);
        tokio::spawn(self.proxy.serve(far));
        client::exchange(near, request)
    }

    async fn statuses(&self, times: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..times {
            statuses.push(self.send(get("/v1/echo")).await.status.as_u16());
        }
        statuses
    }

    fn waiting(&self) -> usize {
        self.proxy.usage().waiting
    }
}

// ---- Limits -----------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_raised_limit_lets_those_go_who_wait_and_counts_what_was_sent() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let begun = Instant::now();
    gate.statuses(2).await;
    let waits = [(); 3].map(|()| tokio::spawn(gate.send(get("/v1/echo"))));
    while gate.waiting() < 3 {
        sleep(Duration::from_millis(1)).await;
    }
    gate.reload("requests_per_minute = 4", "").await.expect("taken");
    while gate.waiting() > 1 {
        sleep(Duration::from_millis(1)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "two of them went at once");
    for answer in waits {
        assert_eq!(answer.await.expect("answered").status, 200);
    }
    assert!(begun.elapsed() >= WINDOW, "the third had to wait for the first's place");
    assert_eq!(gate.vault.seen().most_in_window, 4);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_holds_at_once() {
    let mut gate = Gate::new("requests_per_minute = 10", "");
    let begun = Instant::now();
    gate.statuses(4).await;
    gate.reload("requests_per_minute = 5", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(begun.elapsed() < WINDOW / 2);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW);
    gate.statuses(9).await;
    assert_eq!(gate.vault.seen().most_in_window, 5);
}

#[tokio::test(start_paused = true)]
async fn a_longer_window_is_kept_from_the_first_moment() {
    let mut gate = Gate::new("requests = 10\nper = \"10s\"", "");
    gate.statuses(30).await;
    let changed = Instant::now();
    gate.reload("requests = 10\nper = \"1m\"", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(
        changed.elapsed() >= Duration::from_secs(40),
        "30 of the last minute are over the plan: {:?}",
        changed.elapsed()
    );
    let seen = gate.vault.seen().attempts;
    sleep(WINDOW * 2).await;
    gate.statuses(25).await;
    assert_eq!(gate.vault.seen().attempts - seen, 25);
}

#[tokio::test(start_paused = true)]
async fn a_shrunken_job_limit_is_honoured_as_jobs_end() {
    let mut gate = Gate::new(FREE, "");
    for _ in 0..3 {
        assert_eq!(gate.send(create()).await.status, 201);
    }
    gate.reload("requests_per_minute = 60\nconcurrent_jobs = 1", "").await.expect("taken");
    let fourth = tokio::spawn(gate.send(create()));
    for job in ["job-1", "job-2"] {
        gate.vault.finish(job);
        while gate.send(poll(job)).await.json()["status"] != "completed" {
            sleep(Duration::from_secs(1)).await;
        }
        sleep(Duration::from_secs(120)).await;
        assert_eq!(gate.vault.seen().created, 3, "others still live");
    }
    gate.vault.finish("job-3");
    assert_eq!(fourth.await.expect("answered").status, 201);
    assert_eq!((gate.vault.seen().most_jobs, gate.proxy.usage().jobs_live), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_loses_and_gets_back_its_rate_counts_what_it_does_not_know_as_full() {
    let mut gate = Gate::new("requests_per_minute = 5", "");
    gate.statuses(5).await;
    gate.reload("concurrent_jobs = 5", "").await.expect("taken");
    gate.statuses(20).await;
    let begun = Instant::now();
    gate.reload("requests_per_minute = 5", "").await.expect("taken");
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn credits_that_were_used_stay_used() {
    let prices = "[models.flux-schnell]\ncredits = 1";
    let mut gate = Gate::new("requests_per_minute = 60\ncredits_per_day = 2", prices);
    for _ in 0..2 {
        assert_eq!(gate.send(create()).await.status, 201);
    }
    assert_eq!(gate.send(create()).await.code(), "credits_exhausted");
    gate.reload("requests_per_minute = 60\ncredits_per_day = 3", prices).await.expect("taken");
    assert_eq!(gate.send(create()).await.status, 201);
    assert_eq!(gate.send(create()).await.code(), "credits_exhausted");
}

#[tokio::test(start_paused = true)]
async fn who_has_begun_ends_by_the_terms_of_the_beginning() {
    let plan = "requests_per_minute = 1";
    let mut gate = Gate::new(plan, WEB);
    let as_web = || get("/v1/echo").with("sluicegate-token", "web-token");
    assert_eq!(gate.send(as_web()).await.status, 200);
    let waits = tokio::spawn(gate.send(as_web()));
    while gate.waiting() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    gate.reload(plan, &format!("{BATCH}[queue]\nmax_wait = \"0s\"")).await.expect("taken");
    let at_once = gate.send(get("/v1/echo").with("sluicegate-token", "batch-token")).await;
    assert_eq!(at_once.code(), "rate_limited", "the new terms do not wait");
    assert_eq!(waits.await.expect("answered").status, 200, "who is gone meanwhile is answered all the same");
}

// ---- Who and whose ----------------------------------------------------------------------------------------------------

const WEB: &str = "[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\n";
const BATCH: &str = "[[clients]]\nname = \"batch\"\ntoken = { env = \"BATCH_TOKEN\" }\nplan = \"main\"\n";

#[tokio::test(start_paused = true)]
async fn clients_come_and_go() {
    let mut gate = Gate::new(FREE, WEB);
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let as_batch = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "batch-token");
    assert_eq!(gate.send(as_batch(get("/v1/echo"))).await.code(), "unauthorized");
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, BATCH).await.expect("taken");
    assert_eq!(gate.send(as_batch(get("/v1/echo"))).await.status, 200);
    assert_eq!(gate.send(as_web(get("/v1/echo"))).await.code(), "unauthorized");
    assert_eq!(gate.send(as_batch(poll(&job))).await.status, 404, "it is still web's");
    assert_eq!(gate.proxy.usage().jobs_live, 1);
    gate.reload(FREE, &format!("{BATCH}{WEB}")).await.expect("taken");
    assert_eq!(gate.send(as_web(poll(&job))).await.status, 200, "and web finds it again");
    assert_eq!(gate.send(as_batch(poll(&job))).await.status, 404);
    let status = gate.proxy.status();
    assert_eq!((&status["clients"][0]["name"], &status["clients"][1]["name"]), (&"batch".into(), &"web".into()));
}

#[tokio::test(start_paused = true)]
async fn jobs_of_an_account_that_is_gone_are_followed_with_its_key_to_their_end() {
    let second = "[accounts.second]\nplan = \"main\"\nkey = { file = \"second\" }\n";
    let with = |account: &str| format!("{second}{WEB}account = \"{account}\"\n");
    let scratch = Scratch::new();
    write(&scratch.0.join("second"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(FREE, &with("second"), vault, scratch);
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, WEB).await.expect("taken");
    let before = gate.vault.seen().by_key;
    assert_eq!(gate.send(as_web(get("/v1/echo"))).await.status, 200);
    assert_eq!(gate.vault.seen().by_key[OLD], 1, "new calls take the new account's key: {before:?}");
    gate.vault.finish(&job);
    while gate.send(as_web(poll(&job))).await.json()["status"] != "completed" {
        sleep(Duration::from_secs(1)).await;
    }
    assert!(gate.vault.seen().by_key[NEW] > before[NEW], "the job's own key asked for it");
    assert_eq!(gate.proxy.usage().jobs_live, 0);
}

/// A `[accounts.NAME]` for each, beside `main`.
fn accounts(names: &[(&str, &str)]) -> String {
    names.iter().fold(String::new(), |text, (name, file)| {
        let client = format!("[[clients]]\nname = \"{name}\"\ntoken = {{ command = [\"echo\", \"token-{name}\"] }}\naccount = \"{name}\"\n");
        text + &format!("[accounts.{name}]\nplan = \"main\"\nkey = {{ file = \"{file}\" }}\n{client}")
    })
}

#[tokio::test(start_paused = true)]
async fn an_account_with_another_name_keeps_the_book_of_its_key() {
    let scratch = Scratch::new();
    write(&scratch.0.join("shared"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at("requests_per_minute = 5", &accounts(&[("a", "shared")]), vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..5 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    gate.reload("requests_per_minute = 5", &accounts(&[("b", "shared")])).await.expect("taken");
    let begun = Instant::now();
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW / 2, "{:?}", begun.elapsed());
    assert_eq!(gate.vault.seen().most_in_window, 5);
}

#[tokio::test(start_paused = true)]
async fn jobs_of_a_renamed_account_are_followed_with_the_key_that_it_has_now() {
    let as_web = |request: Request<Full<Bytes>>| request.with("sluicegate-token", "web-token");
    let web_of = |account: &str| {
        format!("{WEB}account = \"{account}\"\n[accounts.{account}]\nplan = \"main\"\nkey = {{ file = \"moved\" }}\n")
    };
    let scratch = Scratch::new();
    write(&scratch.0.join("moved"), NEW);
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(FREE, &web_of("before"), vault, scratch);
    let job = gate.send(as_web(create())).await.job_id();
    gate.reload(FREE, &web_of("after")).await.expect("taken");
    gate.vault.add("cdt_third");
    write(&gate.path("moved"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    gate.vault.revoke(NEW);
    gate.vault.finish(&job);
    while gate.send(as_web(poll(&job))).await.json()["status"] != "completed" {
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((gate.vault.seen().unauthorized, gate.proxy.usage().jobs_live), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_two_accounts_that_no_longer_share_a_key_one_begins_with_a_full_window() {
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), NEW);
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let two = accounts(&[("a", "a-key"), ("b", "b-key")]);
    let mut gate = Gate::at("requests_per_minute = 4", &two, vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    write(&gate.path("b-key"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    assert_eq!(gate.send(call("a")).await.status, 200);
    assert!(begun.elapsed() < WINDOW / 2, "a goes on with the book");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn books_follow_keys_that_are_swapped() {
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), "cdt_third");
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let two = accounts(&[("a", "a-key"), ("b", "b-key")]);
    let mut gate = Gate::at("requests_per_minute = 3", &two, vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    write(&gate.path("a-key"), "cdt_third");
    write(&gate.path("b-key"), NEW);
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(gate.send(call("a")).await.status, 200);
    }
    assert!(begun.elapsed() < WINDOW / 2, "its key had sent nothing");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW / 2, "its key had used up its window");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_comes_back_for_another_account_begins_with_a_full_window() {
    let plan = "requests_per_minute = 3";
    let scratch = Scratch::new();
    write(&scratch.0.join("a-key"), NEW);
    write(&scratch.0.join("b-key"), NEW);
    let vault = Vault::new(&[OLD, NEW, "cdt_third"], WINDOW, Duration::ZERO);
    let mut gate = Gate::at(plan, &accounts(&[("a", "a-key")]), vault, scratch);
    let call = |name: &str| get("/v1/echo").with("sluicegate-token", &format!("token-{name}"));
    assert_eq!(gate.send(call("a")).await.status, 200);
    write(&gate.path("a-key"), "cdt_third");
    gate.reloading.reload().await.expect("taken");
    let begun = Instant::now();
    gate.reload(plan, &accounts(&[("a", "a-key"), ("b", "b-key")])).await.expect("taken");
    assert_eq!(gate.send(call("b")).await.status, 200);
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
}

// ---- Refusals ---------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_file_with_mistakes_changes_nothing_and_says_so() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let refused =
        gate.reload("requests_per_minute = 0", "[queue]\nmax_wait = \"sometimes\"").await.expect_err("refused");
    let told = refused.to_string();
    assert!(told.contains("must be at least 1") && told.contains("queue.max_wait"), "all at once: {told}");
    let status = gate.proxy.status();
    assert_eq!((&status["config"]["generation"], &status["accounts"][0]["requests"]["limit"]), (&1.into(), &2.into()));
    assert!(status["config"]["refused"]["reason"].as_str().expect("a reason").contains("max_wait"), "{status}");
    assert!(!status.to_string().contains(OLD));
    assert_eq!(gate.reload("requests_per_minute = 3", "").await.expect("taken"), 2);
    let status = gate.proxy.status();
    assert!(status["config"]["refused"].is_null() && status["config"]["generation"] == 2, "{status}");
}

#[tokio::test(start_paused = true)]
async fn what_is_bound_to_the_start_refuses_the_file_or_waits_for_the_next_start() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    for (more, key) in [
        ("[server]\nlisten = \"127.0.0.1:9999\"", "server.listen"),
        ("[admin]\nlisten = \"off\"", "admin.listen"),
        ("[upstream]\nprotocol = \"replicate\"", "upstream.protocol"),
        ("[state]\npath = \"elsewhere\"", "state"),
        ("[credits]\nutc_offset = \"+01:00\"", "credits.utc_offset"),
    ] {
        let refused = gate.reload("requests_per_minute = 9", more).await.expect_err(key);
        assert!(matches!(&refused, Refused::Fixed(keys) if keys == &[key]), "{refused}");
    }
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 2, "none of it is in force");
    gate.reload("requests_per_minute = 9", "[server]\nthreads = 7\nmax_body = \"1MiB\"").await.expect("taken");
    let status = gate.proxy.status();
    assert_eq!(status["config"]["after_restart"], serde_json::json!(["server.threads", "server.max_body"]));
    assert_eq!(status["accounts"][0]["requests"]["limit"], 9);
}

#[tokio::test(start_paused = true)]
async fn two_plans_for_one_key_are_refused_as_at_the_start() {
    let mut gate = Gate::new(FREE, "");
    let twin = "[accounts.twin]\nplan = \"twin\"\nkey = { file = \"key\" }\n[plans.twin]\nrequests_per_minute = 9\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"twin\"";
    let refused = gate.reload(FREE, twin).await.expect_err("refused");
    assert!(refused.to_string().contains("different plans"), "{refused}");
    assert_eq!(gate.statuses(1).await, [200]);
    fs::remove_file(gate.path("proxy.toml")).expect("removed");
    let refused = gate.reloading.reload().await.expect_err("there is no file");
    assert!(refused.to_string().contains("cannot be read"), "{refused}");
    assert_eq!(gate.statuses(1).await, [200]);
}

/// What lies in the directory is not taken in place of what was named or built in.
#[tokio::test(start_paused = true)]
async fn another_file_than_at_the_start_is_not_taken() {
    let scratch = Scratch::new();
    let directory = scratch.0.clone();
    let mut sources = sources(&directory);
    (sources.flags.config, sources.flags.upstream) = (None, None);
    sources.env.insert("CORE_API_KEY".into(), OLD.into());
    sources.env.insert("SLUICEGATE_STATE_STORE".into(), "memory".into());
    let mut gate = Gate::of(sources, Vault::new(&[OLD], WINDOW, Duration::ZERO), scratch);
    write(&directory.join("proxy.toml"), &toml(FREE, "").replace(KEY_FILE, "key = { env = \"CORE_API_KEY\" }"));
    let refused = gate.reloading.reload().await.expect_err("refused");
    assert!(refused.to_string().contains("started with the built-in defaults"), "{refused}");
}

// ---- What is noticed --------------------------------------------------------------------------------------------------

/// Waits for a change and reads it.
async fn notice(gate: &mut Gate) {
    let changed = gate.reloading.changed();
    timeout(Duration::from_secs(30), changed).await.expect("noticed");
    gate.reloading.reload().await.expect("taken");
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_noticed_when_it_is_at_rest() {
    let mut gate = Gate::new("requests_per_minute = 2", "");
    let quiet = timeout(Duration::from_secs(60), gate.reloading.changed()).await;
    assert!(quiet.is_err(), "nothing has changed");
    let begun = Instant::now();
    write(&gate.path("proxy.toml"), &toml("requests_per_minute = 3", ""));
    notice(&mut gate).await;
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 3);
    // Written in pieces, it is never at rest until it is whole.
    let text = toml("requests_per_minute = 4", "");
    for end in (text.len() - 40..text.len()).step_by(8) {
        write(&gate.path("proxy.toml"), &text[..end]);
        let changed = timeout(Duration::from_millis(2_100), gate.reloading.changed()).await;
        assert!(changed.is_err(), "half of it is not read");
    }
    write(&gate.path("proxy.toml"), &text);
    notice(&mut gate).await;
    assert_eq!(gate.proxy.status()["accounts"][0]["requests"]["limit"], 4);
    let unchanged = timeout(Duration::from_secs(60), gate.reloading.changed()).await;
    assert!(unchanged.is_err(), "read once");
}

/// A mounted Secret: `key` leads through `..data` to a directory, and a link is swapped when it changes.
#[tokio::test(start_paused = true)]
async fn a_swapped_secret_mount_is_noticed() {
    let scratch = Scratch::new();
    let mount = scratch.0.join("mount");
    let version = |number: u32, key: &str| {
        fs::create_dir_all(mount.join(format!("..{number}"))).expect("made");
        write(&mount.join(format!("..{number}/key")), key);
        symlink(format!("..{number}"), mount.join("..data_tmp")).expect("linked");
        fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("swapped");
    };
    version(1, OLD);
    symlink("..data/key", mount.join("key")).expect("linked");
    symlink("mount/key", scratch.0.join("key")).expect("linked");
    let mut gate = Gate::at(FREE, "", Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO), scratch);
    gate.statuses(1).await;
    version(2, NEW);
    notice(&mut gate).await;
    gate.statuses(1).await;
    assert_eq!(gate.vault.seen().by_key.len(), 2, "the new key is in use");
    assert_eq!(gate.vault.seen().unauthorized, 0);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_was_missing_is_noticed_when_it_is_there() {
    let mut gate = Gate::new(FREE, "");
    let late = "[[clients]]\nname = \"late\"\ntoken = { file = \"late\" }";
    assert!(gate.reload(FREE, late).await.is_err(), "there is no such file");
    write(&gate.path("late"), "late-token");
    notice(&mut gate).await;
    assert_eq!(gate.send(get("/v1/echo").with("x-api-key", "late-token")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn without_an_interval_only_a_signal_reads_it() {
    let mut gate = Gate::new(FREE, "[server]\nreload_interval = \"0s\"");
    write(&gate.path("key"), NEW);
    assert!(timeout(Duration::from_secs(600), gate.reloading.changed()).await.is_err());
}

// ---- Keys -------------------------------------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_read_again_and_the_request_sent_again() {
    let gate = Gate::new(FREE, "");
    gate.statuses(1).await;
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.vault.revoke(OLD);
    // Creates too: a 401 says that nothing was made.
    let created = gate.send(create()).await;
    assert_eq!((created.status.as_u16(), created.attempts()), (201, 2), "{created:?}");
    assert_eq!(created.header("sluicegate-charge"), "accepted");
    assert_eq!(gate.statuses(3).await, [200; 3]);
    let Seen { unauthorized, created, by_key, .. } = gate.vault.seen();
    assert_eq!((unauthorized, created, by_key[NEW]), (1, 1, 4), "and only once");
}

#[tokio::test(start_paused = true)]
async fn all_that_are_refused_at_once_are_served_by_one_look() {
    let plan = "requests_per_minute = 200";
    let scratch = Scratch::new();
    let script = scratch.0.join("key.sh");
    write(&script, "#!/bin/sh\necho run >> runs\ncat key\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("ours");
    let vault = Vault::new(&[OLD], WINDOW, Duration::from_millis(50));
    let command = "[accounts.other]\nplan = \"main\"\nkey = { command = [\"./key.sh\"] }\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"other\"";
    let gate = Gate::at(plan, command, vault, scratch);
    let runs = || fs::read_to_string(gate.path("runs")).expect("it ran").lines().count();
    assert_eq!(runs(), 1);
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.vault.revoke(OLD);
    let calls: Vec<_> =
        (0..50).map(|_| tokio::spawn(gate.send(get("/v1/echo").with("sluicegate-token", "web-token")))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered").status, 200);
    }
    assert_eq!((runs(), gate.vault.seen().unauthorized), (2, 50));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_stays_wrong_is_not_read_again_and_again() {
    let scratch = Scratch::new();
    let script = scratch.0.join("key.sh");
    write(&script, "#!/bin/sh\necho run >> runs\ncat key\n");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).expect("ours");
    let vault = Vault::new(&[], WINDOW, Duration::from_millis(50));
    let command = "[accounts.other]\nplan = \"main\"\nkey = { command = [\"./key.sh\"] }\n[[clients]]\nname = \"web\"\ntoken = { env = \"WEB_TOKEN\" }\naccount = \"other\"";
    let gate = Gate::at("requests_per_minute = 1000", command, vault, scratch);
    for _ in 0..100 {
        let answer = gate.send(get("/v1/echo").with("sluicegate-token", "web-token")).await;
        assert_eq!((answer.status.as_u16(), answer.attempts()), (401, 1), "the refusal is passed on");
    }
    let runs = fs::read_to_string(gate.path("runs")).expect("it ran").lines().count();
    assert!(runs <= 5, "in 5 s: {runs}");
}

#[tokio::test(start_paused = true)]
async fn who_waited_through_a_reload_leaves_with_the_new_key() {
    let mut gate = Gate::new("requests_per_minute = 1", "");
    gate.statuses(1).await;
    let waits = tokio::spawn(gate.send(create()));
    while gate.waiting() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    write(&gate.path("key"), NEW);
    gate.vault.add(NEW);
    gate.reloading.reload().await.expect("taken");
    gate.vault.revoke(OLD);
    assert_eq!(waits.await.expect("answered").status, 201);
    assert_eq!(gate.vault.seen().unauthorized, 0);
}

#[tokio::test(start_paused = true)]
async fn a_new_key_goes_on_in_the_old_one_s_window_also_across_a_kill() {
    let state = "[state]\npath = \"state\"";
    let vault = Vault::new(&[OLD, NEW], WINDOW, Duration::ZERO);
    let plan = "requests_per_minute = 10";
    let mut gate = Gate::at(plan, state, vault, Scratch::new());
    let begun = Instant::now();
    gate.statuses(6).await;
    write(&gate.path("key"), NEW);
    gate.reloading.reload().await.expect("taken");
    gate.statuses(2).await;
    let Gate { proxy, vault, scratch, .. } = gate;
    drop(proxy);
    let gate = Gate::at(plan, state, vault, scratch);
    gate.statuses(2).await;
    assert!(begun.elapsed() < WINDOW / 2);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= WINDOW, "{:?}", begun.elapsed());
    assert_eq!(gate.vault.seen().most_in_window, 10);
}

#[tokio::test(start_paused = true)]
async fn a_window_that_was_made_longer_is_kept_across_a_kill() {
    let state = "[state]\npath = \"state\"";
    let mut gate = Gate::new("requests = 10\nper = \"1s\"", state);
    gate.statuses(30).await;
    let begun = Instant::now();
    let longer = "requests = 10\nper = \"1m\"";
    gate.reload(longer, state).await.expect("taken");
    let Gate { proxy, vault, scratch, .. } = gate;
    drop(proxy);
    let gate = Gate::at(longer, state, vault, scratch);
    gate.statuses(1).await;
    assert!(begun.elapsed() >= Duration::from_secs(50), "{:?}", begun.elapsed());
}

/// A call of the upstream, signed with this secret, for a job that nobody waits for: 404 where the signature counts.
async fn call_signed_with(gate: &Gate, secret: &str) -> u16 {
    let body = "{\"job_id\": \"job-1\", \"status\": \"completed\"}";
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag =
        hmac::sign(&key, body.as_bytes()).as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let (near, far) = duplex(PIPE_BYTES);
    tokio::spawn(gate.proxy.serve_webhooks(far));
    let call = client::post(&format!("/{}", "0".repeat(32)), body).with("x-webhook-signature", &tag);
    client::exchange(near, call).await.status.as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_replaced_webhook_secret_is_accepted_for_a_while() {
    let more = "[webhooks]\nsecret = { file = \"hook\" }\nlisten = \"127.0.0.1:0\"\npublic_url = \"https://hooks.example.com\"";
    let scratch = Scratch::new();
    write(&scratch.0.join("hook"), "first-secret");
    let mut gate = Gate::at(FREE, more, Vault::new(&[OLD], WINDOW, Duration::ZERO), scratch);
    assert_eq!(call_signed_with(&gate, "first-secret").await, 404);
    assert_eq!(call_signed_with(&gate, "second-secret").await, 401);
    write(&gate.path("hook"), "second-secret");
    notice(&mut gate).await;
    for secret in ["first-secret", "second-secret"] {
        assert_eq!(call_signed_with(&gate, secret).await, 404, "{secret}");
    }
    // Another reload in between does not prolong it.
    sleep(Duration::from_secs(300)).await;
    gate.reloading.reload().await.expect("taken");
    assert_eq!(call_signed_with(&gate, "first-secret").await, 404);
    sleep(Duration::from_secs(301)).await;
    assert_eq!(call_signed_with(&gate, "first-secret").await, 401);
    assert_eq!(call_signed_with(&gate, "second-secret").await, 404);
}

/// Keys of the table in docs/configuration.md that a running process cannot change.
#[test]
fn the_documentation_says_what_is_bound_to_the_start() {
    let doc =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).expect("it is there");
    let section = doc.split("## Live reload").nth(1).expect("a section").split("\n## ").next().expect("its text");
    let (fixed, later) = config::bound_to_the_start();
    for (keys, beginning) in [(fixed, "| refused"), (later, "| after a restart")] {
        let line = section.lines().find(|line| line.starts_with(beginning)).expect(beginning);
        for key in keys {
            assert!(line.contains(&format!("`{key}")), "{key} is not in: {line}");
        }
    }
}
