//! The file that is shipped and the documentation: they say what is true, and all of it.

use std::fs;
use std::path::Path;

use sluicegate::config::{self, Amount, Config, Price, State};

use super::{MINIMAL, Scratch};

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
