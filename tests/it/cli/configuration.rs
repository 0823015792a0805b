//! `init` and `check`, and what is said where there is nothing to start with.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::program::{KEY, Place, ended};

#[tokio::test]
async fn init_writes_what_check_accepts_and_never_overwrites() {
    let place = Place::new();
    let init = place.run(&["init"]).await;
    assert_eq!(init.code, Some(0), "{}", init.err);
    assert!(init.out.contains("sluicegate check"), "{}", init.out);
    let file = place.join("proxy.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o022, 0);
    assert_eq!(fs::read_to_string(&file).unwrap(), sluicegate::config::TEMPLATE);

    let check = ended(place.bare(&["check"]).env("CORE_API_KEY", KEY)).await;
    assert_eq!(check.code, Some(0), "{}", check.err);
    assert!(check.out.contains("proxy.toml is valid: 1 account, 0 clients"), "{}", check.out);
    assert!(check.out.contains("60 requests in any 60 s") && !check.out.contains(KEY), "{}", check.out);

    fs::write(&file, "account = \"mine\"\n").unwrap();
    let again = place.run(&["init"]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.err.contains("--force"), "{}", again.err);
    assert_eq!(fs::read_to_string(&file).unwrap(), "account = \"mine\"\n");
    assert_eq!(place.run(&["init", "--force", "."]).await.code, Some(0));
    assert_eq!(fs::read_to_string(&file).unwrap(), sluicegate::config::TEMPLATE);
    let mut left: Vec<_> = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["proxy.schema.json", "proxy.toml"], "nothing else is left");
}

#[tokio::test]
async fn check_shows_all_mistakes_and_ends_with_2() {
    let place = Place::new();
    let file = place.join("proxy.toml");
    let text = sluicegate::config::TEMPLATE.replace("concurrent_jobs = 5", "concurrent_jobs = 0");
    fs::write(&file, text.replace("[queue]", "[queue]\nmax_wate = \"1s\"")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    for command in ["check", "run"] {
        let run = ended(place.bare(&[command]).env("CORE_API_KEY", KEY)).await;
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""));
        for part in ["concurrent_jobs", "max_wate", "2 problems; nothing was started", "proxy.toml:"] {
            assert!(run.err.contains(part), "{part}\n{}", run.err);
        }
        assert!(!run.err.contains('\x1b'), "no colours without a terminal");
    }
    assert!(!place.join(".local").exists(), "nothing is created");
}

#[tokio::test]
async fn check_finds_what_only_shows_when_the_parts_are_built() {
    let place = Place::new();
    let text = "account = \"a\"\n[accounts.a]\nplan = \"free\"\nkey = { env = \"CORE_API_KEY\" }\n\
                [accounts.b]\nplan = \"pro\"\nkey = { env = \"CORE_API_KEY\" }\n\
                [plans.free]\nrequests_per_minute = 60\n[plans.pro]\nrequests_per_minute = 300\n\
                [[clients]]\nname = \"c\"\ntoken = { env = \"TOKEN\" }\naccount = \"b\"\n";
    fs::write(place.join("two.toml"), text).unwrap();
    fs::set_permissions(place.join("two.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut command = place.bare(&["check", "--config", "two.toml"]);
    let check = ended(command.env("CORE_API_KEY", KEY).env("TOKEN", "token")).await;
    assert_eq!(check.code, Some(2), "{}", check.err);
    assert!(check.err.contains("same key but different plans"), "{}", check.err);
}

#[tokio::test]
async fn without_file_and_key_it_says_what_would_help() {
    let place = Place::new();
    let run = place.run(&[]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(2), ""));
    for way in ["sluicegate init", "CORE_API_KEY", "sluicegate demo"] {
        assert!(run.err.contains(way), "{}", run.err);
    }
}
