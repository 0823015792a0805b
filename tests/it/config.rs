//! From `proxy.toml`, environment and flags to a configuration, or to all that is wrong with them.
//!
//! `invalid/NAME.toml` gives exactly `invalid/NAME.stderr`; `BLESS=1 cargo test` writes the latter anew. Lines `#! env NAME=VALUE`
//! and `#! flag NAME=VALUE` at the top of a file add to the test's environment and command line.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use sluicegate::config::{
    self, Amount, Config, Flags, Http2, Llm, Loaded, LogFormat, Models, Pacing, Price, Refund, Report, RetryCreates,
    RouteAuth, Sources, State,
};

/// A directory of its own for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluicegate-config-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Writes a file that only its owner can touch, whatever the umask.
    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        self.write_with_mode(name, text, 0o600);
    }

    fn write_with_mode(&self, name: &str, text: impl AsRef<[u8]>, mode: u32) {
        fs::write(self.0.join(name), text).unwrap();
        fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Sources that name no file yet, with a small environment.
    fn sources(&self) -> Sources {
        let env = [
            ("APP_TOKEN", "app-token"),
            ("CORE_API_KEY", "core-key"),
            ("EMPTY", ""),
            ("HOME", "/home/someone"),
            ("HOOK_SECRET", "hook-secret"),
            ("HOOK_SECRET_BAD", "whsec_not-base64!"),
            ("PATH", "/usr/bin:/bin"),
            ("REPLICATE_API_TOKEN", "replicate-token"),
            ("WEB_TOKEN", "web-token"),
            ("WITH_SPACES", "not a key"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Sources { flags: Flags::default(), env, cwd: self.0.clone() }
    }

    /// Loads `text` as a file that was named on the command line.
    fn load(&self, name: &str, text: &str) -> Result<Loaded, Report> {
        self.write(name, text);
        let mut sources = self.sources();
        sources.flags.config = Some(name.into());
        for line in text.lines().map_while(|line| line.strip_prefix("#! ")) {
            let (kind, rest) = line.split_once(' ').unwrap();
            let (name, value) = rest.split_once('=').unwrap();
            match (kind, name) {
                ("env", _) => drop(sources.env.insert(name.to_owned(), value.to_owned())),
                ("flag", "account") => sources.flags.account = Some(value.to_owned()),
                ("flag", "listen") => sources.flags.listen = Some(value.to_owned()),
                ("flag", "upstream") => sources.flags.upstream = Some(value.to_owned()),
                _ => panic!("what is {line}?"),
            }
        }
        config::load(&sources)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn corpus(kind: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config").join(kind);
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    paths.sort();
    paths
}

fn valid(name: &str) -> Loaded {
    let scratch = Scratch::new();
    scratch.write("secret.txt", "from-file\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/config/valid").join(name).with_extension("toml");
    scratch.load("proxy.toml", &fs::read_to_string(path).unwrap()).unwrap_or_else(|report| panic!("{name}:\n{report}"))
}

const MINIMAL: &str = include_str!("config/valid/minimal.toml");
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
        let shown = format!("{report}\n").replace(scratch.0.to_str().unwrap(), "DIR");
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
fn the_shipped_file_equals_the_defaults() {
    let scratch = Scratch::new();
    let shipped = scratch.load("shipped.toml", config::TEMPLATE).unwrap().config;
    let bare = MINIMAL
        .replace("accounts.dev", "accounts.dev-local")
        .replace("plan =", "description = \"local development\"\nplan =");
    let bare = scratch.load("bare.toml", &bare).unwrap().config;
    assert_eq!(shipped, bare);
    let none = scratch.sources();
    assert_eq!(config::load(&none).unwrap().config, bare, "without a file");
}

#[test]
fn the_comments_of_the_shipped_file_are_true() {
    // With each `# key = value` uncommented it still says what holds anyway, but for examples.
    let uncomment = |line: &'static str| {
        line.strip_prefix("# ").filter(|rest| rest.starts_with('[') || is_setting(rest)).unwrap_or(line)
    };
    let uncommented = config::TEMPLATE.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let scratch = Scratch::new();
    let mut sources = scratch.sources();
    scratch.write("proxy.toml", uncommented.replace("account = \"prod-backend\"", ""));
    sources.flags.config = Some("proxy.toml".into());
    let config = config::load(&sources).unwrap_or_else(|report| panic!("{report}")).config;
    let shipped = scratch.load("shipped.toml", config::TEMPLATE).unwrap().config;
    assert_eq!((config.clients.len(), config.routes.len(), config.models.len()), (1, 1, 1));
    assert_eq!(config.state, State::Local("/var/lib/sluicegate".into()));
    assert_eq!((config.accounts[0].rules.substitute.len(), config.accounts[0].rules.caps.len()), (1, 1));
    assert_eq!(config.accounts[0].plan.credits_per_day, Some(Amount::whole(50)));
    assert_eq!(config.models[0].price, Some(Price::Call(Amount::whole(1))));
    let (clients, routes, models, state) = (shipped.clients, shipped.routes, shipped.models, shipped.state);
    let shipped = Config { accounts: shipped.accounts, clients, routes, models, state, ..config.clone() };
    assert_eq!(scratch.load("again.toml", config::TEMPLATE).unwrap().config, shipped);
}

/// `key = value`, as opposed to prose in a comment.
fn is_setting(line: &str) -> bool {
    line.split_once(" = ")
        .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
}

#[test]
fn every_value_arrives() {
    let loaded = valid("everything");
    let Config {
        server,
        admin,
        upstream,
        routes,
        accounts,
        clients,
        queue,
        retry,
        jobs,
        models,
        webhooks,
        state,
        log,
        ..
    } = &loaded.config;
    let listen: Vec<String> = server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:1000", "[::1]:1001", "0.0.0.0:1002"]);
    assert_eq!(server.threads.map(std::num::NonZeroUsize::get), Some(3));
    assert_eq!(server.allowed_hosts, ["proxy.internal", "[::1]"]);
    assert_eq!(server.allowed_origins, ["http://localhost:3000"]);
    assert_eq!((server.max_body_bytes, server.buffer_bytes), (1_000_000, 2_000_000));
    assert_eq!((server.header_timeout, server.body_timeout), (seconds(1), seconds(2)));
    assert_eq!((server.drain_timeout, server.max_connections.get()), (seconds(0), 4));
    assert_eq!((admin.listen, admin.health_listen), (None, Some("0.0.0.0:1003".parse().unwrap())));
    assert_eq!(upstream.url, "http://core.internal:81/base");
    assert_eq!((upstream.connect_timeout, upstream.attempt_timeout), (Duration::from_millis(1500), seconds(90)));
    assert_eq!((upstream.total_timeout, upstream.idle_timeout), (seconds(120), Duration::from_millis(250)));
    assert_eq!(upstream.http2, Http2::Never);
    let routes: Vec<_> = routes.iter().map(|route| (route.prefix.as_str(), route.auth)).collect();
    assert_eq!(routes, [("/v1/reports/", RouteAuth::Client), ("/", RouteAuth::Account)]);
    let [prod, batch] = accounts.as_slice() else { panic!("the unused account is left out") };
    assert_eq!(
        (prod.name.as_str(), prod.key.expose(), prod.description.as_deref()),
        ("prod", "from-file", Some("production"))
    );
    assert!(prod.key_origin.starts_with("file ") && prod.key_origin.ends_with("secret.txt"), "{}", prod.key_origin);
    assert_eq!(
        (batch.name.as_str(), batch.key.expose(), batch.key_origin.as_str()),
        ("batch", "from-command", "command printf")
    );
    assert_eq!((prod.plan.pacing, prod.plan.concurrent_jobs), (Pacing::Burst, None));
    let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
    assert_eq!(prod.rules.substitute, [pair("flux-pro", "flux-schnell"), pair("a/b", "c")]);
    let caps: Vec<_> = prod.rules.caps.iter().map(|(field, most)| format!("{field} {most}")).collect();
    assert_eq!(caps, ["duration 5", "guidance 7.5"]);
    assert_eq!(prod.rules.models, Models::Not(vec!["kling".into()]));
    assert_eq!(batch.rules.models, Models::Only(vec!["flux-schnell".into()]));
    let requests = batch.plan.requests.unwrap();
    assert_eq!((requests.limit.get(), requests.window, requests.jitter), (10, seconds(1), seconds(0)));
    assert_eq!((batch.plan.pacing, batch.plan.llm), (Pacing::Paced, Llm::Unmetered));
    let [web, app] = clients.as_slice() else { panic!("two clients") };
    assert_eq!((web.name.as_str(), web.token.expose(), web.account, web.weight.get()), ("web", "web-token", 1, 7));
    assert_eq!(web.plan.as_ref(), Some(&batch.plan));
    assert_eq!((app.account, app.plan.is_none(), app.weight.get()), (loaded.config.default_account, true, 1));
    assert_eq!((queue.max_wait, queue.max_waiting.get()), (seconds(0), 5));
    assert_eq!((retry.max_attempts.get(), retry.budget_floor, retry.creates), (1, 0, RetryCreates::Safe));
    assert_eq!((retry.initial_backoff, retry.max_backoff), (Duration::from_millis(10), Duration::from_millis(20)));
    assert_eq!(retry.statuses, [429, 503]);
    assert!((retry.budget - 1.0).abs() < f64::EPSILON);
    assert_eq!((jobs.max_age, jobs.uncertain, jobs.shared), (seconds(3600), seconds(0), true));
    let models: Vec<_> = models.iter().map(|model| (model.name.as_str(), model.poll)).collect();
    assert_eq!(models, [("flux-schnell", Duration::from_millis(500)), ("plain", seconds(1))]);
    assert_eq!(webhooks.secret.as_ref().map(config::Secret::expose), Some("hook-secret"));
    let inbound = webhooks.inbound.as_ref().unwrap();
    assert_eq!(
        (inbound.listen.port(), inbound.public_url.to_string().as_str()),
        (1004, "https://hooks.example.com/in")
    );
    let allow: Vec<_> = webhooks.allow.iter().map(|allow| (allow.host.as_str(), allow.port)).collect();
    let expected =
        [("localhost", Some(3000)), ("localhost", None), ("my-svc.default.svc", Some(8080)), ("::1", Some(80))];
    assert_eq!(allow, expected);
    let prices: Vec<_> = loaded.config.models.iter().map(|model| model.price).collect();
    assert_eq!(prices, [Amount::of(0.25).map(Price::Call), Amount::of(2.0).map(Price::ThousandTokens)]);
    assert_eq!((prod.plan.credits_per_day, batch.plan.credits_per_day), (Some(Amount::whole(50)), Amount::of(0.5)));
    let credits = &loaded.config.credits;
    assert_eq!((credits.utc_offset_secs, &*credits.refund), (-19_800, &[Refund::Gone, Refund::Failed][..]));
    assert!(matches!(state, State::Local(path) if path.ends_with("state")));
    assert_eq!((log.format, log.level.as_str()), (LogFormat::Json, "info,sluicegate=trace"));
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn jitter_follows_the_window() {
    let jitter = |name| valid(name).config.accounts[0].plan.requests.unwrap().jitter;
    assert_eq!(jitter("minimal"), Duration::from_millis(1500));
    assert_eq!(jitter("small-window"), Duration::from_millis(100));
    assert_eq!(valid("unlimited").config.accounts[0].plan.requests, None);
}

#[test]
fn flags_win_over_variables_over_the_file() {
    let scratch = Scratch::new();
    scratch.write("proxy.toml", format!("{MINIMAL}\n[server]\nlisten = \"127.0.0.1:1\"\n[queue]\nmax_wait = \"1s\"\n"));
    let mut sources = scratch.sources();
    let port = |sources: &Sources| config::load(sources).unwrap().config.server.listen[0].port();
    assert_eq!(port(&sources), 1);
    sources.env.insert("SLUICEGATE_SERVER_LISTEN".into(), "127.0.0.1:2, 127.0.0.1:3".into());
    sources.env.insert("SLUICEGATE_QUEUE_MAX_WAIT".into(), "2s".into());
    sources.env.insert("SLUICEGATE_RETRY_BUDGET".into(), "0.5".into());
    sources.env.insert("SLUICEGATE_SERVER_MAX_BODY".into(), "1MiB".into());
    sources.env.insert("SLUICEGATE_JOBS_SHARED".into(), "true".into());
    sources.env.insert("SLUICEGATE_LOG_LEVEL".into(), String::new());
    let config = config::load(&sources).unwrap().config;
    assert_eq!((config.server.listen.len(), config.server.listen[0].port()), (2, 2));
    assert_eq!((config.queue.max_wait, config.server.max_body_bytes), (seconds(2), 1 << 20));
    assert!(config.jobs.shared && (config.retry.budget - 0.5).abs() < f64::EPSILON);
    assert_eq!(config.log.level, "info", "an empty variable says nothing");
    sources.flags.listen = Some("127.0.0.1:4".into());
    assert_eq!(port(&sources), 4);
}

#[test]
fn kubernetes_service_links_are_ignored() {
    let scratch = Scratch::new();
    let mut sources = scratch.sources();
    sources.env.insert("SLUICEGATE_SERVICE_HOST".into(), "10.0.0.1".into());
    sources.env.insert("SLUICEGATE_PORT".into(), "tcp://10.0.0.1:8787".into());
    assert!(config::load(&sources).is_ok());
}

#[test]
fn without_file_and_key_the_ways_out_are_named() {
    let scratch = Scratch::new();
    let mut sources = scratch.sources();
    assert_eq!(config::load(&sources).unwrap().path, None);
    sources.env.remove("CORE_API_KEY");
    let report = config::load(&sources).unwrap_err().to_string();
    for way in ["sluicegate init", "CORE_API_KEY", "sluicegate demo"] {
        assert!(report.contains(way), "{report}");
    }
}

#[test]
fn a_file_is_found_by_flag_then_variable_then_directory() {
    let scratch = Scratch::new();
    for (name, wait) in [("proxy.toml", "1s"), ("variable.toml", "2s"), ("flag.toml", "3s")] {
        scratch.write(name, format!("{MINIMAL}\n[queue]\nmax_wait = \"{wait}\"\n"));
    }
    let mut sources = scratch.sources();
    let wait = |sources: &Sources| config::load(sources).unwrap().config.queue.max_wait;
    assert_eq!(wait(&sources), seconds(1));
    sources.env.insert("SLUICEGATE_CONFIG".into(), "variable.toml".into());
    assert_eq!(wait(&sources), seconds(2));
    sources.flags.config = Some("flag.toml".into());
    assert_eq!(wait(&sources), seconds(3));
    sources.flags.config = Some("missing.toml".into());
    let report = config::load(&sources).unwrap_err().to_string();
    assert!(report.contains("missing.toml cannot be read"), "{report}");
}

#[test]
fn a_file_that_only_lies_there_cannot_steal_a_key() {
    let scratch = Scratch::new();
    let load = |text: &str, named: bool| {
        scratch.write("proxy.toml", text);
        let mut sources = scratch.sources();
        sources.flags.config = named.then(|| "proxy.toml".into());
        config::load(&sources)
    };
    let url = |url: &str| format!("{MINIMAL}\n[upstream]\nallow_plain_http = true\nurl = \"{url}\"\n");
    let command = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "{ command = [\"touch\", \"ran\"] }");
    for text in [&url("https://evil.example"), &url("http://api.core.today"), &command] {
        let report = load(text, false).unwrap_err().to_string();
        assert!(report.contains("--config proxy.toml"), "{report}");
        assert!(!scratch.0.join("ran").exists());
    }
    let protocol = |name: &str, theirs: &str| format!("{}protocol = \"{name}\"\n", url(theirs));
    let own = "[protocols.own]\ncreate = \"POST /a\"\nstatus = \"GET /a/{id}\"\nsucceeded = \"done\"\n";
    for (name, theirs) in [("replicate", "https://api.core.today"), ("own", "https://api.core.today")] {
        let text = format!("{}{own}", protocol(name, theirs));
        assert!(load(&text, false).unwrap_err().to_string().contains("--config proxy.toml"), "{name}");
        assert!(load(&text, true).is_ok(), "{name}");
    }
    assert!(load(&protocol("replicate", "https://api.replicate.com"), false).is_ok());
    for allowed in ["https://api.core.today", "http://127.0.0.1:9", "http://localhost:9/base"] {
        assert!(load(&url(allowed), false).is_ok(), "{allowed}");
    }
    assert!(load(&url("https://evil.example"), true).is_ok());
    let printing = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "{ command = [\"echo\", \"printed\"] }");
    assert_eq!(load(&printing, true).unwrap().config.accounts[0].key.expose(), "printed");
    // What the operator says elsewhere is the operator's.
    scratch.write("proxy.toml", MINIMAL);
    let mut sources = scratch.sources();
    sources.flags.upstream = Some("https://elsewhere.example".into());
    assert!(config::load(&sources).is_ok());
}

#[test]
fn a_preset_brings_its_url() {
    let load = |text: &str| Scratch::new().load("proxy.toml", &format!("{MINIMAL}{text}")).unwrap().config.upstream;
    assert_eq!(load("").url, "https://api.core.today");
    let replicate = load("[upstream]\nprotocol = \"replicate\"\n");
    assert_eq!(replicate.url, "https://api.replicate.com");
    assert_ne!(replicate.protocol, load("").protocol);
    let elsewhere = load("[upstream]\nprotocol = \"replicate\"\nurl = \"https://replicate.internal\"\n");
    assert_eq!((elsewhere.url.host(), elsewhere.protocol), (Some("replicate.internal"), replicate.protocol));
}

#[test]
fn files_that_others_may_write_are_refused() {
    let scratch = Scratch::new();
    let sources = scratch.sources();
    for mode in [0o620, 0o602, 0o666] {
        scratch.write_with_mode("proxy.toml", MINIMAL, mode);
        let report = config::load(&sources).unwrap_err().to_string();
        assert!(report.contains("chmod go-w proxy.toml"), "{report}");
    }
    scratch.write_with_mode("proxy.toml", MINIMAL, 0o644);
    assert!(config::load(&sources).is_ok());
}

/// Every key that bounds the way upstream stands in docs/limits.md with its default.
#[test]
fn every_bound_on_the_way_upstream_is_documented() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/limits.md")).unwrap();
    let upstream = page.split("\n## ").find(|section| section.starts_with("Upstream")).expect("a section");
    let no_bounds =
        ["upstream.url", "upstream.allow_plain_http", "upstream.protocol", "upstream.http2", "retry.statuses"];
    let bounds = config::keys().filter(|key| {
        let bounds = ["upstream.", "retry.", "queue.", "jobs."].iter().any(|section| key.starts_with(section));
        bounds && !no_bounds.contains(key) && !["retry.creates", "jobs.shared"].contains(key)
    });
    for key in bounds {
        assert!(upstream.contains(&format!("`{key}`")), "{key} is not in docs/limits.md");
    }
}

#[test]
fn secret_files_that_others_may_write_are_refused() {
    let scratch = Scratch::new();
    let text = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "{ file = \"mounted\" }");
    // As secrets are mounted: a link to a file in a directory that is swapped.
    std::os::unix::fs::symlink("key", scratch.0.join("mounted")).unwrap();
    for mode in [0o620, 0o602, 0o666, 0o646] {
        scratch.write_with_mode("key", "abc", mode);
        let report = scratch.load("proxy.toml", &text).unwrap_err().to_string();
        assert!(report.contains("other users can write") && report.contains("chmod go-w"), "{report}");
        assert!(report.contains("accounts.") && !report.contains("abc"), "{report}");
    }
    for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o444, true), (0o644, true)] {
        scratch.write_with_mode("key", "abc", mode);
        let loaded = scratch.load("proxy.toml", &text).unwrap();
        // Those of root may be read by all: Kubernetes mounts them so.
        let warned = warned && fs::metadata(scratch.0.join("key")).unwrap().uid() != 0;
        assert_eq!(loaded.warnings.len(), usize::from(warned), "{mode:o}: {:?}", loaded.warnings);
    }
}

#[test]
fn one_newline_after_a_secret_is_not_part_of_it() {
    let scratch = Scratch::new();
    let text = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "{ file = \"key\" }");
    for (content, expected) in [
        ("abc", Some("abc")),
        ("abc\n", Some("abc")),
        ("abc\r\n", Some("abc")),
        ("abc\n\n", None),
        ("", None),
        ("é", None),
    ] {
        scratch.write("key", content);
        let loaded = scratch.load("proxy.toml", &text);
        assert_eq!(
            loaded.ok().map(|loaded| loaded.config.accounts[0].key.expose().to_owned()).as_deref(),
            expected,
            "{content:?}"
        );
    }
}

#[test]
fn open_ports_are_warned_about() {
    assert_eq!(valid("minimal").warnings, Vec::<String>::new());
    assert_eq!(valid("open-with-clients").warnings, Vec::<String>::new());
    assert_eq!(valid("everything").warnings, Vec::<String>::new());
    let open =
        format!("{MINIMAL}\n[server]\nlisten = \"0.0.0.0:1002\"\nallow_open = true\n[admin]\nlisten = \"[::]:1003\"\n");
    let warnings = Scratch::new().load("open.toml", &open).unwrap().warnings;
    assert!(
        warnings.len() == 2 && warnings[0].contains("0.0.0.0:1002") && warnings[1].contains("[::]:1003"),
        "{warnings:?}"
    );
}

#[test]
fn a_file_found_by_chance_sends_results_nowhere_else() {
    let scratch = Scratch::new();
    let hooks = |url: &str| {
        let hooks = "[webhooks]\nsecret = { env = \"HOOK_SECRET\" }\nlisten = \"127.0.0.1:1\"";
        scratch.write("proxy.toml", format!("{MINIMAL}\n{hooks}\npublic_url = \"{url}\"\n"));
        config::load(&scratch.sources()).map(|loaded| loaded.config.webhooks.inbound.is_some())
    };
    assert!(hooks("http://127.0.0.1:1").unwrap());
    let report = hooks("https://hooks.example.com").unwrap_err().to_string();
    assert!(report.contains("only found in the directory") && report.contains("--config"), "{report}");
}

#[test]
fn state_goes_where_the_platform_keeps_it() {
    let scratch = Scratch::new();
    let mut sources = scratch.sources();
    let state = |sources: &Sources| match config::load(sources).unwrap().config.state {
        State::Local(path) => path,
        other => panic!("local is the default, not {other:?}"),
    };
    if cfg!(target_os = "linux") {
        assert_eq!(state(&sources), Path::new("/home/someone/.local/state/sluicegate"));
        sources.env.insert("XDG_STATE_HOME".into(), "/xdg".into());
        assert_eq!(state(&sources), Path::new("/xdg/sluicegate"));
    }
    sources.env.insert("STATE_DIRECTORY".into(), "/var/lib/sluicegate:/var/lib/other".into());
    assert_eq!(state(&sources), Path::new("/var/lib/sluicegate"));
    sources.env = BTreeMap::from([("CORE_API_KEY".to_owned(), "k".to_owned())]);
    assert!(config::load(&sources).unwrap_err().to_string().contains("HOME is not set"));
    assert_eq!(valid("memory").config.state, State::Memory);
}

#[test]
fn replicas_share_through_redis() {
    let State::Redis(path, redis) = valid("redis").config.state else { panic!("another store") };
    assert_eq!((path.as_path(), redis.replicas.get()), (Path::new("/var/lib/sluicegate"), 4));
    assert_eq!(
        (&*redis.urls, redis.user.as_deref()),
        (&["redis://redis.internal:6380/3".to_owned()][..], Some("sluicegate"))
    );
    assert!(!redis.cluster);
    assert_eq!(format!("{:?}", redis.password), "Some([redacted])");
    // A file that only lay in the directory may not choose another machine to keep the plan, and send it a password.
    let scratch = Scratch::new();
    let store = "[state]\nstore = \"redis\"\nredis = { url = \"redis://redis.internal\", replicas = 2 }";
    scratch.write("proxy.toml", format!("{MINIMAL}\n{store}\n"));
    let report = config::load(&scratch.sources()).unwrap_err().to_string();
    assert!(report.contains("only found in the directory") && report.contains("--config"), "{report}");
    assert!(scratch.load("named.toml", &format!("{MINIMAL}\n{store}\n")).is_ok());
    assert!(scratch.load("named.toml", &format!("{MINIMAL}\n{store}\n").replace("redis.internal", "[::1]:1")).is_ok());
}

#[test]
fn a_cluster_is_named_by_some_of_its_nodes() {
    let State::Redis(_, redis) = valid("redis-cluster").config.state else { panic!("another store") };
    assert!(redis.cluster);
    assert_eq!(redis.urls.len(), 2);
}

#[test]
fn loading_creates_nothing_and_preparing_makes_the_directory() {
    let scratch = Scratch::new();
    let text = format!("{MINIMAL}\n[state]\npath = \"a/b\"\n");
    let config = scratch.load("proxy.toml", &text).unwrap().config;
    let directory = scratch.0.join("a/b");
    assert!(!directory.exists());
    config::prepare(&config).unwrap();
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    config::prepare(&config).unwrap();
    fs::remove_dir(&directory).unwrap();
    fs::write(&directory, "").unwrap();
    let report = config::prepare(&config).unwrap_err().to_string();
    assert!(report.contains("state.path"), "{report}");
}

#[test]
fn every_key_is_documented() {
    let doc = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md")).unwrap();
    for key in config::keys() {
        let shown = key.replace('*', "NAME");
        assert!(doc.contains(&format!("| `{shown}` |")), "docs/configuration.md has no row for {shown}");
    }
}

#[test]
fn examples_in_the_documentation_are_valid() {
    for (name, least) in [("configuration", 1), ("protocols", 3), ("webhooks", 2), ("scale-out", 2)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name).with_extension("md");
        let doc = fs::read_to_string(path).unwrap();
        let examples: Vec<String> = doc
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .map(|example| example.replace("file = \"/run/secrets/core-api-key\"", "env = \"CORE_API_KEY\""))
            .map(|example| example.replace("file = \"/run/secrets/webhook-secret\"", "env = \"HOOK_SECRET\""))
            .map(|example| example.replace("WEBHOOK_SECRET", "HOOK_SECRET").replace("REDIS_PASSWORD", "HOOK_SECRET"))
            .collect();
        assert!(examples.len() >= least);
        for example in &examples {
            Scratch::new().load("example.toml", example).unwrap_or_else(|report| panic!("{example}\n{report}"));
        }
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

/// What a hand that slips may type.
fn slip() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "", "x", " ", "=", "\"", "'", "\"\"\"", "'''", "#", "\n", "[", "]", "{", "}", ",", ".", "\\", "é", "0",
    ])
}

/// Fragments that meet often in configurations, and some that never should.
fn fragment() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "[server]\n",
        "[[clients]]\n",
        "[plans.free]\n",
        "[accounts.dev]\n",
        "[models.\"a b\"]\n",
        "[protocols.own]\n",
        "[protocols.own.headers]\n",
        "create = \"POST /{a}/{b*}\"\n",
        "status = \"GET /{id}\"\n",
        "wait_text = \"~{seconds}\"\n",
        "model = \"{a}\"\n",
        "auth = \"x: {key}\"\n",
        "[[routes]]\n",
        "listen",
        "key",
        "token",
        "per",
        "requests",
        "jitter",
        "url",
        "path",
        "level",
        " = ",
        "\"127.0.0.1:1\"",
        "\"1s\"",
        "\"http://[::1\"",
        "\"\\u0000\"",
        "{ env = \"CORE_API_KEY\" }",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\n",
        "\r\n",
        "\"",
        "'''",
        "\"\"\"",
        "# ",
        "-1",
        "0x7fffffffffffffffff",
        "1e999",
        "nan",
        "true",
        "1979-05-27",
        "é",
        "😀",
        "\u{feff}",
        "\u{0}",
        "\t",
        "account = \"dev\"\n",
        "plan = \"free\"\n",
        "a.b.c = 1\n",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => ".{0,8}"]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_in_a_file_panics(fragments in prop::collection::vec(fragment(), 0..40)) {
        let scratch = Scratch::new();
        if let Err(report) = scratch.load_as_is(&fragments.concat()) {
            prop_assert!(report.count() > 0 && !report.to_string().is_empty());
        }
    }

    #[test]
    fn a_literal_secret_is_never_shown(at in any::<prop::sample::Index>(), length in 0..4_usize, put in slip()) {
        let text = "account = \"dev\"\nplans.free.llm = 'x'\n[accounts.dev]\nplan = 5\nkey = \"hush-hush\"\ndescription = 1\n\n\
                    [[clients]]\nname = \"web\"\ntoken = \"hush-hush\"\nweight = 0\n[queue]\nmax_wait = 5\n";
        let at = at.index(text.len());
        let damaged = format!("{}{put}{}", &text[..at], &text[(at + length).min(text.len())..]);
        let scratch = Scratch::new();
        if let Err(report) = scratch.load_as_is(&damaged) {
            prop_assert!(!report.to_string().contains("hush-hush"), "{damaged}\n{report}");
        }
    }

    #[test]
    fn bytes_and_variables_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in ".{0,20}", index in any::<prop::sample::Index>()) {
        let scratch = Scratch::new();
        scratch.write("proxy.toml", bytes);
        let _ = config::load(&scratch.sources());
        scratch.write("proxy.toml", MINIMAL);
        let keys: Vec<&str> = config::keys().filter(|key| !key.contains('*')).collect();
        let mut sources = scratch.sources();
        let variable = format!("SLUICEGATE_{}", index.get(&keys).replace('.', "_").to_ascii_uppercase());
        sources.env.insert(variable, text);
        let _ = config::load(&sources);
    }
}

impl Scratch {
    /// Loads `text` without looking for `#!` lines in it.
    fn load_as_is(&self, text: &str) -> Result<Loaded, Report> {
        self.write("proxy.toml", text);
        let mut sources = self.sources();
        sources.flags.config = Some("proxy.toml".into());
        config::load(&sources)
    }
}
