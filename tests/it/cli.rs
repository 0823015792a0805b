//! The program as its users meet it: arguments in, lines and exit codes out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sluicegate::mock::Options;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::support::patience::PATIENCE;
use crate::support::program::{KEY, PROGRAM, Place, Running, ended, free_port, mock, send, send_signal};

const CREATE: &str =
    "POST /v1/predictions HTTP/1.1\nContent-Type: application/json\n\n{\"model\": \"flux\", \"input\": {}}";

// ---- Words ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn help_names_every_command_and_no_more() {
    let place = Place::new();
    let help = place.run(&["--help"]).await;
    assert_eq!(help.code, Some(0));
    let commands = help.out.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let names: Vec<&str> = commands
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let expected = "run check init demo mock env exec healthcheck doctor webhooks status jobs usage forecast explain completions schema help";
    assert_eq!(names.join(" "), expected);
    for flag in ["--config <FILE>", "--account <NAME>", "--listen <ADDR>", "--upstream <URL>"] {
        assert!(help.out.contains(flag), "{flag}\n{}", help.out);
    }
    let version = place.run(&["--version"]).await;
    assert_eq!(version.out, format!("sluicegate {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_wrong_command_line_ends_with_2() {
    let place = Place::new();
    for arguments in
        [&["frobnicate"][..], &["--colour"], &["exec"], &["--config", "x.toml", "mock"], &["demo", "--n", "0"]]
    {
        let run = place.run(arguments).await;
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{arguments:?}: {}", run.err);
    }
}

#[tokio::test]
async fn explain_prints_a_section_lists_all_and_suggests() {
    let place = Place::new();
    let one = place.run(&["explain", "queue_timeout"]).await;
    assert_eq!(one.code, Some(0));
    assert!(one.out.starts_with("## queue_timeout\n\n429 "), "{}", one.out);
    assert_eq!(one.out.matches("## ").count(), 1, "{}", one.out);
    let all = place.run(&["explain"]).await;
    assert_eq!(all.code, Some(0));
    assert!(all.out.lines().count() > 15 && all.out.contains("outcome_unknown        502 "), "{}", all.out);
    let near = place.run(&["explain", "queue_timout"]).await;
    assert_eq!(near.code, Some(2));
    assert!(near.err.contains("did you mean queue_timeout?"), "{}", near.err);
}

#[tokio::test]
async fn completions_are_made_for_shells() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let run = place.run(&["completions", shell]).await;
        assert_eq!(run.code, Some(0));
        assert!(run.out.contains("healthcheck"), "{shell}");
    }
}

#[tokio::test]
async fn env_is_read_by_a_shell() {
    let place = Place::new();
    let run = place.run(&["env", "--listen", "127.0.0.1:9999"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    fs::write(place.join("env.sh"), &run.out).unwrap();
    let script =
        ". ./env.sh; echo $OPENAI_BASE_URL $ANTHROPIC_BASE_URL $GOOGLE_GEMINI_BASE_URL $CORE_API_BASE $OPENAI_API_KEY";
    let mut shell = Command::new("sh");
    let shell = ended(shell.args(["-c", script]).current_dir(place.path()).env_clear()).await;
    let base = "http://127.0.0.1:9999";
    let expected = format!("{base}/llm/openai/v1 {base}/llm/anthropic {base}/llm/gemini {base} sluicegate\n");
    assert_eq!((shell.out, shell.err.as_str()), (expected, ""));
    assert!(run.out.contains("v1beta"), "{}", run.out);
    let fish = place.run(&["env", "--shell", "fish"]).await;
    assert!(fish.out.contains("set -gx OPENAI_BASE_URL http://127.0.0.1:8787/llm/openai/v1\n"), "{}", fish.out);
}

// ---- Configuration ----------------------------------------------------------------------------------------------------

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

// ---- Running ----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_key_alone_starts_the_free_plan() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
    let address = proxy.ready().await;
    let answer = send(address, "GET /v1/echo HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("\r\nx-ratelimit-limit: 60\r\n"), "{answer}");
    proxy.signal(Signal::INT);
    assert_eq!(proxy.exit_code().await, Some(0));
    let log = proxy.stderr().await;
    assert!(!log.contains(KEY));
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).expect("the log is JSON away from terminals");
        assert!(event["message"].is_string(), "{line}");
    }
    assert!(log.contains("\"signal\":\"SIGINT\""), "{log}");
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let place = Place::new();
    let mock = mock(Options { answer_delay: Duration::from_millis(700), ..Options::default() }).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &["run"]));
    let address = proxy.ready().await;
    let answer = tokio::spawn(send(address, CREATE));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(proxy.exit_code().await, Some(0), "{}", proxy.stderr().await);
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
}

#[tokio::test]
async fn what_outlasts_the_drain_timeout_ends_it_with_1() {
    let place = Place::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut command = place.proxy(&mock, &["run"]);
    let mut proxy = Running::start(command.env("SLUICEGATE_SERVER_DRAIN_TIMEOUT", "100ms"));
    let address = proxy.ready().await;
    let request = tokio::spawn(send(address, "GET /v1/echo HTTP/1.1"));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(1));
    assert!(proxy.stderr().await.contains("server.drain_timeout"));
    request.abort();
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let place = Place::new();
    let mock = mock(Options { answer_delay: PATIENCE * 2, ..Options::default() }).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &["run"]));
    let address = proxy.ready().await;
    let request = tokio::spawn(send(address, "GET /v1/echo HTTP/1.1"));
    mock.wait_until(|stats| stats.attempts == 1).await;
    proxy.signal(Signal::TERM);
    proxy.logs("draining").await;
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(143));
    request.abort();
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_harms_no_request() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
    let address = proxy.ready().await;
    let mut proxy = proxy.stop_listening();
    for _ in 0..3 {
        let answer = send(address, "GET /v1/echo HTTP/1.1").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    send_signal(&proxy, Signal::TERM);
    let status = tokio::time::timeout(PATIENCE, proxy.wait()).await.expect("ends");
    assert_eq!(status.unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_way_out() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = place.bare(&["--listen", &address]);
    let run = ended(command.env("CORE_API_KEY", KEY)).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    for part in [address.as_str(), "--listen or server.listen"] {
        assert!(run.err.contains(part), "{}", run.err);
    }
    let run = ended(&mut place.bare(&["mock", "--listen", &address])).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains(&address) && run.err.contains("--listen"), "{}", run.err);
}

#[tokio::test]
async fn a_second_proxy_on_the_same_state_is_refused() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut first = Running::start(&mut place.proxy(&mock, &[]));
    first.ready().await;
    let second = ended(&mut place.proxy(&mock, &[])).await;
    assert_eq!((second.code, second.out.as_str()), (Some(1), ""));
    assert!(second.err.contains("state.path"), "{}", second.err);
}

#[tokio::test]
async fn mock_has_a_ready_line_and_ends_by_signal() {
    let place = Place::new();
    let mut mock = Running::start(&mut place.bare(&["mock", "--listen", "127.0.0.1:0", "--requests", "1"]));
    let address = mock.line("sluicegate mock ready on http://").await.parse().unwrap();
    let answer = send(address, "GET /v1/echo HTTP/1.1\nX-API-Key: any").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    mock.signal(Signal::TERM);
    assert_eq!(mock.line("1 requests").await, ", 0 jobs; refused 0 for the rate, 0 for the job limit");
    assert_eq!(mock.exit_code().await, Some(0));
}

#[tokio::test]
async fn healthcheck_needs_no_key() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let admin = free_port().to_string();
    let check = || {
        let mut command = place.bare(&["healthcheck"]);
        command.env("SLUICEGATE_ADMIN_LISTEN", &admin);
        command
    };
    let before = ended(&mut check()).await;
    assert_eq!(before.code, Some(1));
    assert!(before.err.contains(&admin), "{}", before.err);

    let mut proxy = Running::start(place.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    let data = proxy.ready().await;
    let during = ended(&mut check()).await;
    assert_eq!((during.code, during.out.as_str()), (Some(0), "ready\n"), "{}", during.err);
    let url = format!("http://{admin}");
    assert_eq!(place.run(&["healthcheck", "--url", &url]).await.code, Some(0));
    let wrong = format!("http://{data}/nothing/here");
    let other = place.run(&["healthcheck", "--url", &wrong]).await;
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("404"), "{}", other.err);
}

#[tokio::test]
async fn usage_asks_the_running_proxy() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let admin = free_port().to_string();
    let url = format!("http://{admin}");
    assert_eq!(place.run(&["usage", "--url", &url]).await.code, Some(1));
    let mut proxy = Running::start(place.proxy(&mock, &[]).env("SLUICEGATE_ADMIN_LISTEN", &admin));
    proxy.ready().await;
    let shown = place.run(&["usage", "--url", &url]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert!(shown.out.contains("budgets renew in") && shown.out.contains("account"), "{}", shown.out);
    let json = place.run(&["usage", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"last_30_days\":[]"), "{}", json.out);

    let forecast = place.run(&["forecast", "--model", "new one", "-n", "3", "--url", &url]).await;
    assert_eq!(forecast.code, Some(0), "{}", forecast.err);
    assert!(forecast.out.starts_with("3 jobs of new one on"), "{}", forecast.out);
    let json = place.run(&["forecast", "--model", "new one", "-n", "3", "--json", "--url", &url]).await;
    assert!(json.out.contains("\"known\":false"), "{}", json.out);
    let nobody = ["forecast", "--model", "m", "-n", "3", "--account", "nobody", "--url", &url];
    let nobody = place.run(&nobody).await;
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("there is no account \"nobody\""), "{}", nobody.err);
    assert_eq!(place.run(&["forecast", "--model", "m", "-n", "0", "--url", &url]).await.code, Some(2));
}

#[tokio::test]
async fn healthcheck_gives_up_on_a_port_that_never_answers() {
    let place = Place::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let begun = tokio::time::Instant::now();
    let run = place.run(&["healthcheck", "--url", &url]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("within 2 s"), "{}", run.err);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn exec_gives_the_command_everything_but_the_key() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut command = place.proxy(&mock, &["exec", "--", "sh", "-c", "env; exit 7"]);
    command
        .env("CORE_STAGING_API_KEY", "another-key-of-the-file")
        .env("HIDDEN", format!("Bearer {KEY}"))
        .env("OPENAI_API_KEY", KEY)
        .env("OTHER", "kept");
    let run = ended(&mut command).await;
    assert_eq!(run.code, Some(7), "{}", run.err);
    assert!(!run.out.contains(KEY) && !run.out.contains("another-key-of-the-file"), "{}", run.out);
    let value = |name: &str| {
        let beginning = format!("{name}=");
        run.out.lines().find_map(|line| line.strip_prefix(&beginning).map(str::to_owned))
    };
    assert_eq!(value("OTHER").as_deref(), Some("kept"));
    assert_eq!(value("HIDDEN"), None);
    assert_eq!(value("OPENAI_API_KEY").as_deref(), Some("sluicegate"));
    assert_eq!(value("CORE_API_KEY").as_deref(), Some("sluicegate"));
    let base = value("CORE_API_BASE").unwrap();
    assert!(base.starts_with("http://127.0.0.1:") && !base.ends_with(":0"), "{base}");
    assert_eq!(value("OPENAI_BASE_URL").unwrap(), format!("{base}/llm/openai/v1"));
    assert!(!run.out.contains("sluicegate ready"), "stdout is the command's");
}

/// Of a process, soft and hard.
#[cfg(target_os = "linux")]
fn core_limit(pid: &str) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn no_core_of_the_proxy_is_dumped_and_a_command_keeps_its_right_to_one() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let mut proxy = Running::start(&mut place.proxy(&mock, &[]));
    proxy.ready().await;
    assert_eq!(core_limit(&proxy.child.id().unwrap().to_string()), "0 0");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.exit_code().await, Some(0));
    let run = ended(&mut place.proxy(&mock, &["exec", "--", "cat", "/proc/self/limits"])).await;
    let line = run.out.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let inherited = line.split_whitespace().skip(4).take(2).collect::<Vec<_>>().join(" ");
    assert_eq!(inherited, core_limit("self"));
}

/// The environment has the key; the kernel keeps it from other processes of the same user, but for root's.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn others_of_the_same_user_cannot_read_the_proxy_s_environment() {
    const NOBODY: u32 = 65_534;
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let program = place.join("sluicegate");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let as_somebody = |command: &mut Command| {
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
    };
    let mut command = Command::new(&program);
    command.current_dir("/").env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).env("CORE_API_KEY", KEY).env("SLUICEGATE_STATE_STORE", "memory");
    command.env("SLUICEGATE_ADMIN_LISTEN", "off").env("SLUICEGATE_UPSTREAM_URL", mock.url());
    command.env("SLUICEGATE_SERVER_LISTEN", "127.0.0.1:0");
    as_somebody(&mut command);
    let mut proxy = Running::start(&mut command);
    proxy.ready().await;
    let mut plain = Command::new("sleep");
    plain.arg("60").env_clear().env("CORE_API_KEY", KEY).kill_on_drop(true);
    as_somebody(&mut plain);
    let plain = plain.spawn().unwrap();
    let read = async |pid: Option<u32>| {
        let mut command = Command::new("cat");
        command.arg(format!("/proc/{}/environ", pid.unwrap()));
        as_somebody(&mut command);
        ended(&mut command).await.out.contains(KEY)
    };
    while !read(plain.id()).await {
        tokio::task::yield_now().await; // it has not become `sleep` yet
    }
    assert!(!read(proxy.child.id()).await, "the proxy's is closed");
}

#[tokio::test]
async fn exec_serves_its_command_and_passes_signals_on() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let script = "trap 'echo got it; exit 5' TERM; echo base $CORE_API_BASE; while :; do sleep 0.05; done";
    let mut run = Running::start(&mut place.proxy(&mock, &["exec", "sh", "-c", script]));
    let base = run.line("base http://").await;
    let answer = send(base.parse().unwrap(), CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    run.signal(Signal::TERM);
    run.line("got it").await;
    assert_eq!(run.exit_code().await, Some(5));
}

#[tokio::test]
async fn exec_of_a_missing_command_ends_with_127() {
    let place = Place::new();
    let mock = mock(Options::default()).await;
    let run = ended(&mut place.proxy(&mock, &["exec", "--", "no-such-command"])).await;
    assert_eq!(run.code, Some(127));
    assert!(run.err.contains("no-such-command cannot be run"), "{}", run.err);
}

#[tokio::test]
async fn the_demo_loses_nothing_and_is_never_refused() {
    let place = Place::new();
    // The demo takes the usual ports if it can, and others if it cannot.
    let run = place.run(&["demo", "--once"]).await;
    assert_eq!(run.code, Some(0), "{}\n{}", run.out, run.err);
    for part in [
        "ten times the real speed",
        "sluicegate ready on http://127.0.0.1:",
        "50 predictions done, 0 lost",
        "the best possible is 7.0 s",
        "0 answers 429",
    ] {
        assert!(run.out.contains(part), "{part}\n{}", run.out);
    }
    let time = run.out.lines().find_map(|line| line.trim().strip_prefix("time")).unwrap();
    let seconds: f64 = time.split_whitespace().next().unwrap().parse().unwrap();
    assert!(seconds < 30.0, "{time}");
    assert!(!place.join(".local").exists(), "it keeps no state");
}

#[tokio::test]
async fn the_demo_stays_up_until_it_is_ended() {
    let place = Place::new();
    let mut demo = Running::start(&mut place.bare(&["demo", "--n", "2"]));
    let address = demo.ready().await;
    demo.line("it stays up").await;
    let answer = send(address, CREATE).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    demo.signal(Signal::INT);
    assert_eq!(demo.exit_code().await, Some(0));
}
