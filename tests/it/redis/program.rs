//! The program itself as a replica: TLS to the store, and how it goes.

use std::fs;

use rustix::process::Signal;
use sluicegate::mock::{Mock, Options};

use super::faults::ACL;
use crate::support::cluster::settings;
use crate::support::patience::until;
use crate::support::program::{Place, Running, mock};
use crate::support::redis::{Redis, free_port};

/// How many members the store knows.
async fn members(redis: &Redis) -> usize {
    let found = redis.run(&["KEYS", "sluicegate:*:members"]).await;
    let keys: Vec<String> = redis::from_redis_value(found).expect("names");
    let Some(key) = keys.first() else { return 0 };
    redis::from_redis_value(redis.run(&["HLEN", key]).await).expect("a number")
}

async fn until_members(redis: &Redis, count: usize) {
    until(format!("{count} members"), || async {
        let found = members(redis).await;
        (found == count, found)
    })
    .await;
}

fn start(place: &Place, mock: &Mock, url: &str) -> Running {
    start_with(place, mock, &format!("url = \"{url}\""))
}

fn start_with(place: &Place, mock: &Mock, store: &str) -> Running {
    let text = format!(
        "[accounts.main]\nplan = \"main\"\nkey = {{ env = \"CORE_API_KEY\" }}\n[plans.main]\nrequests_per_minute = 60\n\
         [state]\nstore = \"redis\"\nredis = {{ {store}, replicas = 2 }}\n"
    );
    place.write("proxy.toml", &text);
    let mut command = place.proxy(mock, &["--config", "proxy.toml"]);
    command.env("REDIS_PASSWORD", "cdt_second_key").env("SSL_CERT_FILE", place.join("ca.pem"));
    Running::start(&mut command)
}

/// The settings of a server with a certificate, which the program will find too.
fn tls(place: &Place, port: u16) -> Vec<String> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    fs::write(place.join("ca.pem"), made.cert.pem()).expect("written");
    fs::write(place.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let file = |name: &str| place.join(name).display().to_string();
    let settings = ["--tls-port", &port.to_string(), "--tls-auth-clients", "no"].map(str::to_owned);
    let files = ["--tls-cert-file".to_owned(), file("ca.pem"), "--tls-key-file".to_owned(), file("key.pem")];
    let files = files.into_iter().chain(["--tls-ca-cert-file".to_owned(), file("ca.pem")]);
    settings.into_iter().chain(files).collect()
}

/// A cluster of one node, which is enough for its dialect: what the user may do, and that nodes are reached by TLS too.
#[tokio::test]
async fn it_joins_a_cluster_over_tls_as_a_user() {
    let place = Place::new();
    let port = free_port();
    let redis = Redis::with(settings(&["--tls-cluster", "yes"]).into_iter().chain(tls(&place, port)).collect()).await;
    redis.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let user = format!("{ACL} +cluster|slots +ping");
    let words: Vec<&str> = ["ACL", "SETUSER", "sluicegate"].into_iter().chain(user.split_whitespace()).collect();
    redis.run(&words).await;
    let mock = mock(Options::default()).await;
    // One of those that are named is gone.
    let urls = format!("\"rediss://localhost:{}\", \"rediss://localhost:{port}\"", free_port());
    let login = "cluster = true, user = \"sluicegate\", password = { env = \"REDIS_PASSWORD\" }";
    let _child = start_with(&place, &mock, &format!("url = [{urls}], {login}"));
    until_members(&redis, 1).await;
}

#[tokio::test]
async fn over_tls_it_joins_and_when_it_ends_it_leaves() {
    let place = Place::new();
    let port = free_port();
    let redis = Redis::with(tls(&place, port)).await;
    let mock = mock(Options::default()).await;
    let mut child = start(&place, &mock, &format!("rediss://localhost:{port}"));
    child.ready().await;
    until_members(&redis, 1).await;
    child.signal(Signal::TERM);
    assert_eq!(child.exit_code().await, Some(0));
    assert_eq!(members(&redis).await, 0, "it has taken its leave");

    // A certificate of somebody else: it never joins.
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    fs::write(place.join("ca.pem"), other.cert.pem()).expect("written");
    let mut stranger = start(&place, &mock, &format!("rediss://localhost:{port}"));
    stranger.logs("certificate").await;
    assert_eq!(members(&redis).await, 0);
}
