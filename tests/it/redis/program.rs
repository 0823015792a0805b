//! The program itself as a replica: TLS to the store, and how it goes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sluicegate::mock::{Mock, Options};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

use crate::support::KEY;
use crate::support::config::Scratch;
use crate::support::redis::{Redis, free_port};

/// How many members the store knows.
async fn members(redis: &Redis) -> usize {
    let found = redis.run(&["KEYS", "sluicegate:*:members"]).await;
    let keys: Vec<String> = redis::from_redis_value(found).expect("names");
    let Some(key) = keys.first() else { return 0 };
    redis::from_redis_value(redis.run(&["HLEN", key]).await).expect("a number")
}

async fn until_members(redis: &Redis, count: usize) {
    let until = Instant::now() + Duration::from_secs(30);
    while members(redis).await != count {
        assert!(Instant::now() < until, "never {count} members");
        sleep(Duration::from_millis(50)).await;
    }
}

fn start(scratch: &Scratch, mock: &Mock, url: &str) -> Child {
    let config = scratch.0.join("proxy.toml");
    let text = format!(
        "[accounts.main]\nplan = \"main\"\nkey = {{ env = \"KEY\" }}\n[plans.main]\nrequests_per_minute = 60\n\
         [state]\nstore = \"redis\"\nredis = {{ url = \"{url}\", replicas = 2 }}\n"
    );
    fs::write(&config, text).expect("written");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("ours");
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("--config")
        .arg(&config)
        .env_clear()
        .env("HOME", &scratch.0)
        .env("KEY", KEY)
        .env("SSL_CERT_FILE", scratch.0.join("ca.pem"))
        .env("SLUICEGATE_UPSTREAM_URL", mock.url())
        .env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0")
        .env("SLUICEGATE_ADMIN_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts")
}

#[tokio::test]
async fn over_tls_it_joins_and_when_it_ends_it_leaves() {
    let scratch = Scratch::new();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(scratch.0.join("ca.pem"), made.cert.pem()).expect("written");
    fs::write(scratch.0.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let (port, file) = (free_port(), |name: &str| scratch.0.join(name).display().to_string());
    let settings = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"].map(str::to_owned);
    let files = ["--tls-cert-file".to_owned(), file("ca.pem"), "--tls-key-file".to_owned(), file("key.pem")];
    let files = files.into_iter().chain(["--tls-ca-cert-file".to_owned(), file("ca.pem")]);
    let redis = Redis::with(settings.into_iter().chain(files).collect()).await;
    let any = "127.0.0.1:0".parse().expect("an address");
    let mock = Mock::start(Options { keys: vec![KEY.into()], ..Options::default() }, any).await.expect("a free port");

    let mut child = start(&scratch, &mock, &format!("rediss://localhost:{port}"));
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let ready = lines.next_line().await.expect("text").expect("a line");
    assert!(ready.starts_with("sluicegate ready"), "{ready}");
    until_members(&redis, 1).await;
    let pid = Pid::from_raw(i32::try_from(child.id().expect("it runs")).expect("a pid")).expect("a pid");
    kill_process(pid, Signal::TERM).expect("sent");
    assert!(child.wait().await.expect("it ends").success());
    assert_eq!(members(&redis).await, 0, "it has taken its leave");

    // A certificate of somebody else: it never joins.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(scratch.0.join("ca.pem"), other.cert.pem()).expect("written");
    let _stranger = start(&scratch, &mock, &format!("rediss://localhost:{port}"));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(members(&redis).await, 0);
}
