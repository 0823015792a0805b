//! `sluicegate doctor` before planted faults: each is named, with the way out, and nothing else is blamed.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use sluicegate::mock::{Dialect, Mock, Options};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_rustls::TlsAcceptor;

use crate::support::program::{Ended, KEY, Place, Running, ended, free_port, mock};

/// What it found, by its JSON.
struct Told {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Told {
    /// The checks that ended so.
    fn with(&self, verdict: &str) -> Vec<&str> {
        let so = self.findings.iter().filter(|finding| finding["verdict"] == verdict);
        so.map(|finding| finding["check"].as_str().expect("text")).collect()
    }

    /// What one check said, all of it.
    fn said(&self, check: &str) -> String {
        let of = self.findings.iter().filter(|finding| finding["check"] == check);
        of.map(Value::to_string).collect::<Vec<_>>().join("\n")
    }

    /// Exactly this is wrong, and it is said how to mend it.
    fn blames(&self, verdict: &str, check: &str, parts: &[&str]) {
        let all = format!("{:#?}", self.findings);
        let (failed, warned) = (self.with("fail"), self.with("warn"));
        let expected = if verdict == "fail" { (vec![check], vec![]) } else { (vec![], vec![check]) };
        assert_eq!((failed, warned), expected, "{all}");
        assert_eq!(self.code, Some(i32::from(verdict == "fail")), "{all}");
        let said = self.said(check);
        for part in parts {
            assert!(said.contains(part), "{part}\n{all}");
        }
        let wrong = self.findings.iter().find(|finding| finding["verdict"] == verdict);
        assert!(wrong.is_some_and(|finding| finding["way_out"].is_string()), "{all}");
    }
}

async fn told(command: &mut Command) -> Told {
    let Ended { code, out, err } = ended(command).await;
    assert!(!out.contains(KEY) && !err.contains(KEY), "{out}{err}");
    let all: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}\n{out}{err}"));
    assert_eq!(all["healthy"], code == Some(0));
    Told { code, findings: all["findings"].as_array().expect("a list").clone() }
}

/// With the key in its variable, before this upstream.
fn doctor(place: &Place, upstream: &str) -> Command {
    let mut command = place.sluicegate(&["doctor", "--json"]);
    command.env("SLUICEGATE_UPSTREAM_URL", upstream);
    command
}

/// An upstream that answers every request with this head, and counts nothing.
async fn upstream(head: impl Fn() -> String + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let Ok((tcp, _)) = listener.accept().await else { return };
            let mut tcp = BufReader::new(tcp);
            let mut line = String::new();
            while tcp.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                line.clear();
            }
            let answer = format!("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n{}\r\n", head());
            let _ = tcp.write_all(answer.as_bytes()).await;
        }
    });
    address
}

/// TLS before a server of this machine, or before nothing.
struct Tls {
    address: SocketAddr,
    /// The certificate of the authority, in PEM.
    authority: String,
}

impl Tls {
    /// For this name, until the end of that year; `h2` is what it negotiates.
    async fn start(name: &str, until: i32, h2: bool, inner: Option<SocketAddr>) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::from_params(&params, &key);
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(until, 12, 31));
        let key = KeyPair::generate().expect("a key");
        let cert: CertificateDer<'static> = params.signed_by(&key, &issuer).expect("signed").der().clone();
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a key");
        config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve_tls(listener, TlsAcceptor::from(Arc::new(config)), inner));
        Self { address, authority }
    }

    /// `doctor` before it, trusting its authority.
    async fn told(&self, place: &Place) -> Told {
        let trusted = place.write("authority.pem", &self.authority);
        let mut command = doctor(place, &format!("https://localhost:{}", self.address.port()));
        told(command.env("SSL_CERT_FILE", trusted)).await
    }
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, inner: Option<SocketAddr>) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else { return };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut tls) = acceptor.accept(tcp).await else { return };
            let Some(inner) = inner else { return };
            let mut inner = tokio::net::TcpStream::connect(inner).await.expect("it is there");
            let _ = tokio::io::copy_bidirectional(&mut tls, &mut inner).await;
        });
    }
}

async fn api() -> Mock {
    mock(Options::default()).await
}

// ---- Nothing is wrong --------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_healthy_place_costs_one_request_and_no_job() {
    let (place, api) = (Place::new(), api().await);
    let told = told(&mut doctor(&place, &api.url())).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert_eq!((told.with("fail"), told.with("warn")), (vec![], vec![]), "{:#?}", told.findings);
    for check in
        ["configuration", "ports", "state", "permissions", "dns", "connect", "key", "clock", "limits", "cost", "apps"]
    {
        assert!(!told.said(check).is_empty(), "{check}\n{:#?}", told.findings);
    }
    let stats = api.stats();
    assert_eq!((stats.attempts, stats.creates_accepted), (1, 0));
    assert!(told.said("limits").contains("59 left"), "{}", told.said("limits"));
    assert!(told.said("cost").contains("does not know of"), "{}", told.said("cost"));
    assert_eq!(fs::read_dir(place.path()).expect("there").count(), 0, "nothing is made");
}

#[tokio::test]
async fn what_it_spends_is_in_the_books_of_the_next_start() {
    let (place, api) = (Place::new(), api().await);
    let url = api.url();
    let run = || {
        let mut command = place.sluicegate(&["run"]);
        command.env("SLUICEGATE_UPSTREAM_URL", &url);
        command
    };
    let stop = async |mut proxy: Running| {
        proxy.signal(rustix::process::Signal::TERM);
        assert_eq!(proxy.exit_code().await, Some(0));
    };
    let mut first = Running::start(&mut run());
    first.ready().await;
    stop(first).await;
    let told = told(&mut doctor(&place, &url)).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert!(told.said("cost").contains("in the books of the next start"), "{}", told.said("cost"));

    let admin = free_port();
    let mut second = Running::start(run().env("SLUICEGATE_ADMIN_LISTEN", admin.to_string()));
    second.ready().await;
    assert_eq!(used(admin).await, 1);
    stop(second).await;
}

/// Requests in the window of the only account, as a running proxy tells.
async fn used(admin: SocketAddr) -> u64 {
    let tcp = tokio::net::TcpStream::connect(admin).await.expect("open");
    let answer = crate::support::client::exchange(tcp, crate::support::get("/api/v1/status")).await;
    answer.json()["accounts"][0]["requests"]["used"].as_u64().expect("a number")
}

#[tokio::test]
async fn beside_a_running_proxy_it_asks_through_it() {
    let (place, api) = (Place::new(), api().await);
    let (data, admin) = (free_port().to_string(), free_port());
    let url = api.url();
    let ports = |mut command: Command| {
        command
            .env("SLUICEGATE_UPSTREAM_URL", &url)
            .env("SLUICEGATE_SERVER_LISTEN", &data)
            .env("SLUICEGATE_ADMIN_LISTEN", admin.to_string());
        command
    };
    let mut proxy = Running::start(&mut ports(place.sluicegate(&["run"])));
    proxy.ready().await;
    let told = told(&mut ports(place.sluicegate(&["doctor", "--json"]))).await;
    assert_eq!((told.with("fail"), told.with("warn")), (vec![], vec![]), "{:#?}", told.findings);
    assert!(told.said("ports").contains("is a running sluicegate's"), "{}", told.said("ports"));
    assert!(told.said("state").contains("is the running sluicegate's"), "{}", told.said("state"));
    assert!(told.said("cost").contains("counted by the running proxy"), "{}", told.said("cost"));
    assert!(told.said("limits").contains("59 left"), "{}", told.said("limits"));
    assert_eq!((api.stats().attempts, used(admin).await), (1, 1));
}

#[tokio::test]
async fn it_asks_over_tls_in_both_versions_of_http() {
    for h2 in [false, true] {
        let (place, api) = (Place::new(), api().await);
        let inner = api.url().trim_start_matches("http://").parse().expect("an address");
        let told = Tls::start("localhost", 2099, h2, Some(inner)).await.told(&place).await;
        assert_eq!((told.with("fail"), told.with("warn")), (vec![], vec![]), "{:#?}", told.findings);
        let version = if h2 { "HTTP/2" } else { "HTTP/1.1" };
        assert!(told.said("tls").contains(version), "{}", told.said("tls"));
        assert_eq!((api.stats().attempts, api.stats().unauthorized), (1, 0));
    }
}

#[tokio::test]
async fn other_protocols_are_asked_in_their_own_words() {
    let (place, api) = (Place::new(), mock(Options { dialect: Dialect::Replicate, ..Options::default() }).await);
    let told = told(doctor(&place, &api.url()).env("SLUICEGATE_UPSTREAM_PROTOCOL", "replicate")).await;
    assert_eq!((told.with("fail"), told.with("warn")), (vec![], vec![]), "{:#?}", told.findings);
    assert_eq!((api.stats().attempts, api.stats().creates_accepted), (1, 0));
}

#[tokio::test]
async fn every_account_in_use_is_asked_once_for_each_key() {
    let (place, api) = (Place::new(), api().await);
    let more = "[accounts.twin]\nplan = \"free\"\nkey = { env = \"CORE_API_KEY\" }\n\
                [accounts.other]\nplan = \"free\"\nkey = { env = \"OTHER_KEY\" }\n\
                [accounts.unused]\nplan = \"free\"\nkey = { env = \"UNSET\" }\n\
                [[clients]]\nname = \"a\"\ntoken = { env = \"TOKEN_A\" }\naccount = \"twin\"\n\
                [[clients]]\nname = \"b\"\ntoken = { env = \"TOKEN_B\" }\naccount = \"other\"\n";
    place.write("proxy.toml", &format!("{CONFIG}{more}"));
    let mut command = doctor(&place, &api.url());
    command.env("OTHER_KEY", "cdt_unknown_key_of_other").env("TOKEN_A", "token-a").env("TOKEN_B", "token-b");
    let told = told(&mut command).await;
    told.blames("fail", "key", &["account other", "401"]);
    assert!(told.said("key").contains("account main: the key from environment variable CORE_API_KEY is let in"));
    let stats = api.stats();
    assert_eq!((stats.attempts, stats.unauthorized), (1, 1));
}

#[tokio::test]
async fn offline_nothing_is_sent() {
    let (place, api) = (Place::new(), api().await);
    let told = told(doctor(&place, &api.url()).arg("--offline")).await;
    assert_eq!(told.code, Some(0), "{:#?}", told.findings);
    assert_eq!(told.with("skip"), ["upstream"]);
    assert_eq!(api.stats().attempts, 0);
}

#[tokio::test]
async fn people_read_a_line_a_check() {
    let (place, api) = (Place::new(), api().await);
    let mut command = place.sluicegate(&["doctor"]);
    command.env("SLUICEGATE_UPSTREAM_URL", api.url()).env("OPENAI_BASE_URL", "https://api.openai.example");
    let Ended { code, out, err } = ended(&mut command).await;
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.starts_with("ok    configuration "), "{out}");
    assert!(out.contains("\nwarn  apps          OPENAI_BASE_URL leads to api.openai.example"), "{out}");
    assert!(out.contains("\n                    -> export OPENAI_BASE_URL=http://127.0.0.1:"), "{out}");
    assert!(out.ends_with("ok, 1 to mend, 0 failed\n"), "{out}");
    assert!(!out.contains('\x1b'), "no colours without a terminal");
}

// ---- Planted faults ----------------------------------------------------------------------------------------------------

const CONFIG: &str = "account = \"main\"\n[accounts.main]\nplan = \"free\"\nkey = { env = \"CORE_API_KEY\" }\n\
                      [plans.free]\nrequests_per_minute = 60\n";

#[tokio::test]
async fn fault_1_a_misspelled_key_of_the_configuration() {
    let (place, api) = (Place::new(), api().await);
    place.write("proxy.toml", &format!("{CONFIG}[queue]\nmax_wate = \"1s\"\n"));
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("fail", "configuration", &["max_wate is not a known key", "max_wait", "proxy.toml:8"]);
    assert_eq!(api.stats().attempts, 0);
}

#[tokio::test]
async fn fault_2_a_configuration_that_others_can_write() {
    let (place, api) = (Place::new(), api().await);
    let file = place.write("proxy.toml", CONFIG);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("ours");
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("fail", "configuration", &["can be written by other users", "chmod go-w"]);
}

#[tokio::test]
async fn fault_3_no_key() {
    let (place, api) = (Place::new(), api().await);
    place.write("proxy.toml", CONFIG);
    let told = told(doctor(&place, &api.url()).env_remove("CORE_API_KEY")).await;
    told.blames("fail", "configuration", &["CORE_API_KEY, which is not set", "export CORE_API_KEY"]);
}

#[tokio::test]
async fn fault_4_a_key_that_others_can_read() {
    let (place, api) = (Place::new(), api().await);
    let secret = place.write("key", KEY);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("ours");
    // What is root's may be open, as mounted secrets are; another user's own is another's already.
    let _ = std::os::unix::fs::chown(&secret, Some(1234), None);
    place.write("proxy.toml", &CONFIG.replace("{ env = \"CORE_API_KEY\" }", "{ file = \"key\" }"));
    let told = told(doctor(&place, &api.url()).env_remove("CORE_API_KEY")).await;
    told.blames("warn", "configuration", &["can be read by other users", "chmod 600"]);
    assert!(told.said("key").contains("is let in"), "the way upstream goes on");
}

#[tokio::test]
async fn fault_5_a_name_that_does_not_resolve() {
    let place = Place::new();
    place.write("proxy.toml", CONFIG);
    let mut command = doctor(&place, "https://api.sluicegate.invalid");
    let told = told(command.args(["--config", "proxy.toml"])).await;
    told.blames("fail", "dns", &["api.sluicegate.invalid", "getent hosts"]);
    assert!(told.with("skip").contains(&"key"));
}

#[tokio::test]
async fn fault_6_nobody_answers_there() {
    let (place, nobody) = (Place::new(), free_port());
    let told = told(&mut doctor(&place, &format!("http://{nobody}"))).await;
    told.blames("fail", "connect", &[&nobody.to_string(), "refused", "HTTPS_PROXY is not used"]);
}

#[tokio::test]
async fn fault_7_a_certificate_of_nobody_s() {
    let (place, tls) = (Place::new(), Tls::start("localhost", 2099, false, None).await);
    let told = told(&mut doctor(&place, &format!("https://localhost:{}", tls.address.port()))).await;
    told.blames("fail", "tls", &["localhost", "SSL_CERT_FILE"]);
}

#[tokio::test]
async fn fault_8_a_key_that_the_upstream_does_not_know() {
    let (place, api) = (Place::new(), api().await);
    let wrong = "cdt_another_key_of_another_day";
    let told = told(doctor(&place, &api.url()).env("CORE_API_KEY", wrong)).await;
    told.blames("fail", "key", &["401", "environment variable CORE_API_KEY", "make a new key"]);
    assert!(!format!("{:?}", told.findings).contains(wrong));
    assert_eq!(api.stats().unauthorized, 1);
}

#[tokio::test]
async fn fault_9_a_clock_that_is_an_hour_off() {
    let date = || httpdate::fmt_http_date(SystemTime::now() - Duration::from_secs(3600));
    let (place, api) = (Place::new(), upstream(move || format!("Date: {}\r\n", date())).await);
    let told = told(&mut doctor(&place, &format!("http://{api}"))).await;
    told.blames("fail", "clock", &["s ahead of the upstream's", "NTP"]);
}

#[tokio::test]
async fn fault_10_a_plan_that_promises_more_than_the_upstream_gives() {
    let (place, api) = (Place::new(), upstream(|| "X-RateLimit-Limit: 30\r\n".to_owned()).await);
    let told = told(&mut doctor(&place, &format!("http://{api}"))).await;
    told.blames("fail", "limits", &["says 60 requests", "says 30", "plans.free.requests_per_minute = 30"]);
}

#[tokio::test]
async fn fault_11_another_program_on_the_port() {
    let (place, api) = (Place::new(), api().await);
    let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let taken = other.local_addr().expect("an address").to_string();
    let told = told(doctor(&place, &api.url()).env("SLUICEGATE_SERVER_LISTEN", &taken)).await;
    told.blames("fail", "ports", &[&format!("{taken} is taken by another program"), "server.listen"]);
}

#[tokio::test]
async fn fault_12_a_state_directory_that_cannot_be_made() {
    let (place, api) = (Place::new(), api().await);
    place.write("in-the-way", "");
    let path = place.join("in-the-way/state").display().to_string();
    let told = told(doctor(&place, &api.url()).env("SLUICEGATE_STATE_PATH", path)).await;
    told.blames("fail", "state", &["in-the-way/state cannot be created", "state.path"]);
}

#[tokio::test]
async fn fault_13_another_proxy_on_the_state_directory() {
    let (place, api) = (Place::new(), api().await);
    let mut other = Running::start(place.sluicegate(&["run"]).env("SLUICEGATE_UPSTREAM_URL", api.url()));
    other.ready().await;
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("fail", "state", &["in use by another sluicegate", "state.path"]);
}

#[tokio::test]
async fn fault_14_an_app_s_variable_that_leads_past_the_proxy() {
    let (place, api) = (Place::new(), api().await);
    let mut command = doctor(&place, &api.url());
    let told = told(command.env("OPENAI_BASE_URL", "https://user:hunter2@api.openai.example/v1")).await;
    told.blames("warn", "apps", &["OPENAI_BASE_URL leads to api.openai.example", "sluicegate env"]);
    assert!(!format!("{:?}", told.findings).contains("hunter2"));
}

#[tokio::test]
async fn fault_15_a_web_proxy_that_takes_local_calls_too() {
    let (place, api) = (Place::new(), api().await);
    let told = told(doctor(&place, &api.url()).env("http_proxy", "http://corporate.example:3128")).await;
    told.blames("warn", "apps", &["http_proxy is set", "NO_PROXY=localhost"]);
}

#[tokio::test]
async fn fault_16_a_certificate_that_has_run_out() {
    let (place, tls) = (Place::new(), Tls::start("localhost", 2002, false, None).await);
    tls.told(&place).await.blames("fail", "tls", &["has run out"]);
}

#[tokio::test]
async fn fault_17_a_certificate_of_another_name() {
    let (place, tls) = (Place::new(), Tls::start("other.example", 2099, false, None).await);
    tls.told(&place).await.blames("fail", "tls", &["for another name", "upstream.url"]);
}

#[tokio::test]
async fn fault_18_a_port_that_does_not_speak_tls() {
    let (place, api) = (Place::new(), api().await);
    let told = told(&mut doctor(&place, &api.url().replace("http://", "https://"))).await;
    told.blames("fail", "tls", &["is it HTTPS"]);
}

#[tokio::test]
async fn fault_19_a_ledger_that_is_none() {
    let (place, api) = (Place::new(), api().await);
    let state = place.join(".local/state/sluicegate");
    fs::create_dir_all(&state).expect("made");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).expect("ours");
    fs::write(state.join("ledger.sqlite"), "all zeroes and ones").expect("written");
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("fail", "state", &["ledger.sqlite is damaged", "mv "]);
}

#[tokio::test]
async fn fault_20_a_state_directory_that_others_look_into() {
    let (place, api) = (Place::new(), api().await);
    let state = place.join(".local/state/sluicegate");
    fs::create_dir_all(&state).expect("made");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o755)).expect("ours");
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("warn", "permissions", &["is open to other users (mode 755)", "chmod 700"]);
}

#[tokio::test]
async fn fault_21_a_directory_in_which_others_can_replace_the_configuration() {
    let (place, api) = (Place::new(), api().await);
    place.write("proxy.toml", CONFIG);
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let told = told(&mut doctor(&place, &api.url())).await;
    told.blames("warn", "permissions", &["they could replace the configuration", "chmod go-w"]);
}

/// Nothing that does not answer may hold it up for long.
#[tokio::test]
async fn an_upstream_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = silent.local_addr().expect("an address");
    let place = Place::new();
    let begun = tokio::time::Instant::now();
    let told = told(&mut doctor(&place, &format!("http://{address}"))).await;
    told.blames("fail", "key", &["no answer within 10 s"]);
    assert!(begun.elapsed() < Duration::from_secs(25));
}
