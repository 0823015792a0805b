//! `status`, `jobs` and `usage`: a running proxy on a terminal, and through a pipe.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sluicegate::mock::{Options, RunTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::support::client::With;
use crate::support::patience::PATIENCE;
use crate::support::program::{Ended, PROGRAM, Place, ended, send_signal};
use crate::support::{Live, Setup, create_with, get};

async fn live() -> Live {
    let setup = Setup {
        mock: Options { run_time: RunTime::Fixed(Duration::from_secs(600)), ..Options::default() },
        plan: "requests_per_minute = 60\nconcurrent_jobs = 5\ncredits_per_day = 50",
        toml: "[models.flux]\ncredits = 2",
        ..Setup::default()
    };
    let live = setup.loopback().await;
    for model in ["flux", "\u{1b}[2Jevil"] {
        live.send(create_with(&json!({"model": model, "input": {"prompt": "my secret wish"}}))).await.job_id();
    }
    assert_eq!(live.send(get("/v1/echo").with("host", "evil.test")).await.status, 421);
    live
}

fn url(live: &Live) -> String {
    format!("http://{}", live.server.admin.expect("a port"))
}

/// What a command prints; it must succeed.
async fn printed(arguments: &[&str]) -> String {
    let place = Place::new();
    let Ended { code, out, err } = ended(place.bare(arguments).env("SLUICEGATE_CONFIG", "/nowhere.toml")).await;
    assert_eq!(code, Some(0), "{err}");
    out
}

#[tokio::test]
async fn they_show_what_the_upstream_counted() {
    let live = live().await;
    let url = url(&live);
    // The proxy looks at the jobs in between: compared is where none of its looks came between.
    let (attempts, shown, status) = loop {
        let before = live.mock.stats().attempts;
        let shown = printed(&["status", "--url", &url]).await;
        let status = printed(&["status", "--json", "--url", &url]).await;
        if live.mock.stats().attempts == before {
            break (before, shown, status);
        }
    };
    let account = shown.lines().find(|line| line.starts_with("main")).expect("an account");
    let cells: Vec<_> = account.split_whitespace().collect();
    let (used, free) = (format!("{attempts}/60"), (60 - attempts).to_string());
    assert_eq!((cells[2].len(), cells[3], cells[4]), (12, used.as_str(), free.as_str()), "{shown}");
    assert_eq!(cells[cells.len() - 5..], ["2/5", "0", "2/50", "0", "0"], "{shown}");
    assert!(shown.ends_with("\nrefused here: 1 misdirected_host\n"), "{shown}");
    let jobs = printed(&["jobs", "--url", &url]).await;
    assert_eq!(jobs.lines().count(), 3);
    for id in live.mock.job_ids() {
        assert!(jobs.contains(&id), "{jobs}");
    }
    assert!(jobs.contains("\u{fffd}[2Jevil") && !jobs.contains('\u{1b}') && !jobs.contains("secret wish"), "{jobs:?}");
    let usage = printed(&["usage", "--url", &url]).await;
    assert!(usage.contains("main        2     50         48") && !usage.contains('\u{1b}'), "{usage:?}");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let told = (&status["accounts"][0]["attempts"], &status["credits"]["accounts"][0]["used"]);
    assert_eq!(told, (&json!(attempts), &json!(2)));
    live.stop().await;
}

/// A program that goes on.
struct Watching {
    child: Child,
    out: ChildStdout,
    heard: String,
}

impl Watching {
    fn start(program: &str, arguments: &[&str], colours: bool) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.env("TERM", "xterm").env("SHELL", "/bin/sh").env_remove("NO_COLOR");
        if !colours {
            command.env("NO_COLOR", "1");
        }
        let mut child = command.spawn().expect("runs");
        let out = child.stdout.take().expect("piped");
        Self { child, out, heard: String::new() }
    }

    /// Reads until this has come so often.
    async fn hears(&mut self, text: &str, times: usize) {
        while self.heard.matches(text).count() < times {
            let mut piece = vec![0; 4096];
            let read = timeout(PATIENCE, self.out.read(&mut piece)).await;
            let read = read.unwrap_or_else(|_| panic!("never: {text}: {:?}", self.heard)).expect("open");
            assert!(read > 0, "it ended: {:?}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }

    async fn exit_code(&mut self) -> Option<i32> {
        timeout(PATIENCE, self.child.wait()).await.expect("ends").expect("known").code()
    }
}

#[tokio::test]
async fn through_a_pipe_pictures_follow_each_other_and_an_interrupt_ends_it_well() {
    let live = live().await;
    let url = url(&live);
    let mut watching = Watching::start(PROGRAM, &["status", "--watch", "--url", &url], true);
    watching.hears("sluicegate 0.1.0 on ", 2).await;
    assert!(!watching.heard.contains('\u{1b}'), "{:?}", watching.heard);
    send_signal(&watching.child, Signal::INT);
    assert_eq!(watching.exit_code().await, Some(0));

    let mut watching = Watching::start(PROGRAM, &["jobs", "--watch", "--json", "--url", &url], true);
    watching.hears("\n", 2).await;
    for line in watching.heard.lines().take(2) {
        let told: Value = serde_json::from_str(line).expect("JSON in each line");
        assert_eq!(told["jobs"].as_array().map(Vec::len), Some(2));
    }
    // The reader leaves, as `head` does.
    drop(watching.out);
    assert_eq!(timeout(PATIENCE, watching.child.wait()).await.expect("ends").expect("known").code(), Some(0));
    live.stop().await;
}

#[tokio::test]
async fn on_a_terminal_it_is_redrawn_in_place_within_the_width() {
    let live = live().await;
    for (columns, colours) in [(120, true), (44, false)] {
        let command = format!("stty cols {columns} rows 9; exec {PROGRAM} status --watch --url {}", url(&live));
        let mut watching = Watching::start("script", &["-qfec", &command, "/dev/null"], colours);
        watching.hears("\u{1b}[8A\r", 2).await;
        let input = watching.child.stdin.as_mut().expect("piped");
        input.write_all(b"\x03").await.expect("Ctrl-C");
        assert_eq!(watching.exit_code().await, Some(0), "{:?}", watching.heard);
        assert_eq!(watching.heard.contains("\u{1b}[2m"), colours, "{:?}", watching.heard);
        for line in watching.heard.split("\r\n") {
            let plain = ["\u{1b}[8A\r", "\u{1b}[K", "\u{1b}[J", "\u{1b}[2m", "\u{1b}[33m", "\u{1b}[0m", "^C"];
            let plain = plain.iter().fold(line.to_owned(), |line, code| line.replace(code, ""));
            assert!(plain.chars().count() <= columns && !plain.contains('\u{1b}'), "{plain:?}");
        }
        let stacked = watching.heard.contains("  jobs 2/5  waiting 0");
        assert_eq!(stacked, columns == 44, "{:?}", watching.heard);
        assert!(watching.heard.contains(" more lines"), "{:?}", watching.heard);
    }
    live.stop().await;
}

#[tokio::test]
async fn a_proxy_that_goes_away_is_waited_for() {
    let live = live().await;
    let admin = live.server.admin.expect("a port");
    // A way to the proxy that can be closed and opened.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let forward = move |listener: tokio::net::TcpListener| {
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(admin).await.expect("open");
                tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
            }
        })
    };
    let url = format!("http://{address}");
    let way = forward(listener);
    let mut watching = Watching::start(PROGRAM, &["status", "--watch", "--url", &url], true);
    watching.hears("sluicegate 0.1.0 on ", 1).await;
    way.abort();
    watching.hears("does not answer", 1).await;
    watching.hears("these numbers are old, trying again\n", 1).await;
    watching.heard.clear();
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a socket");
    socket.bind(address).expect("free again");
    forward(socket.listen(16).expect("free again"));
    watching.hears("main", 3).await;
    let last = watching.heard.rsplit("\n\n").find(|picture| picture.contains("sluicegate 0.1.0")).expect("a picture");
    assert!(!last.contains("trying again"), "{last}");
    live.stop().await;
}
