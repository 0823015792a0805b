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

use super::faults::ACL;
use crate::support::KEY;
use crate::support::cluster::settings;
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
    start_with(scratch, mock, &format!("url = \"{url}\""))
}

fn start_with(scratch: &Scratch, mock: &Mock, store: &str) -> Child {
    let config = scratch.0.join("proxy.toml");
    let text = format!(
        "[accounts.main]\nplan = \"main\"\nkey = {{ env = \"KEY\" }}\n[plans.main]\nrequests_per_minute = 60\n\
         [state]\nstore = \"redis\"\nredis = {{ {store}, replicas = 2 }}\n"
    );
    fs::write(&config, text).expect("written");
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).expect("ours");
    Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("--config")
        .arg(&config)
        .env_clear()
        .env("HOME", &scratch.0)
        .env("KEY", KEY)
        .env("REDIS_PASSWORD", "cdt_second_key")
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

async fn upstream() -> Mock {
    let any = "127.0.0.1:0".parse().expect("an address");
    Mock::start(Options { keys: vec![KEY.into()], ..Options::default() }, any).await.expect("a free port")
}

/// The settings of a server with a certificate, which the program will find too.
fn tls(scratch: &Scratch, port: u16) -> Vec<String> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(scratch.0.join("ca.pem"), made.cert.pem()).expect("written");
    fs::write(scratch.0.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let file = |name: &str| scratch.0.join(name).display().to_string();
    let settings = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"].map(str::to_owned);
    let files = ["--tls-cert-file".to_owned(), file("ca.pem"), "--tls-key-file".to_owned(), file("key.pem")];
    let files = files.into_iter().chain(["--tls-ca-cert-file".to_owned(), file("ca.pem")]);
    settings.into_iter().chain(files).collect()
}

/// A cluster of one node, which is enough for its dialect: what the user may do, and that nodes are reached by TLS too.
#[tokio::test]
async fn it_joins_a_cluster_over_tls_as_a_user() {
    let scratch = Scratch::new();
    let port = free_port();
    let redis = Redis::with(settings(&["--tls-cluster", "yes"]).into_iter().chain(tls(&scratch, port)).collect()).await;
    redis.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let user = format!("{ACL} +cluster|slots +ping");
    let words: Vec<&str> = ["ACL", "SETUSER", "sluicegate"].into_iter().chain(user.split_whitespace()).collect();
    redis.run(&words).await;
    let mock = upstream().await;
    // One of those that are named is gone.
    let urls = format!("\"rediss://localhost:{}\", \"rediss://localhost:{port}\"", free_port());
    let login = "cluster = true, user = \"sluicegate\", password = { env = \"REDIS_PASSWORD\" }";
    let _child = start_with(&scratch, &mock, &format!("url = [{urls}], {login}"));
    until_members(&redis, 1).await;
}

#[tokio::test]
async fn over_tls_it_joins_and_when_it_ends_it_leaves() {
    let scratch = Scratch::new();
    let port = free_port();
    let redis = Redis::with(tls(&scratch, port)).await;
    let mock = upstream().await;
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
