//! Where values come from: which file, which variable, which secret, and who might have put them there.

use std::fs;
use std::os::unix::fs::MetadataExt;

use sluicegate::config::{self, Sources};

use super::{MINIMAL, Scratch, seconds};

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
        assert!(!scratch.path().join("ran").exists());
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

#[test]
fn secret_files_that_others_may_write_are_refused() {
    let scratch = Scratch::new();
    let text = MINIMAL.replace("{ env = \"CORE_API_KEY\" }", "{ file = \"mounted\" }");
    // As secrets are mounted: a link to a file in a directory that is swapped.
    std::os::unix::fs::symlink("key", scratch.path().join("mounted")).unwrap();
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
        let warned = warned && fs::metadata(scratch.path().join("key")).unwrap().uid() != 0;
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
