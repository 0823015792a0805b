//! `[state]`: the directory, and the store of replicas.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sluicegate::config::{self, Sources, State};

use super::{MINIMAL, Scratch, valid};

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
    let directory = scratch.path().join("a/b");
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
