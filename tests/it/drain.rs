//! The end: nothing new is taken, nothing that was taken is lost.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use sluicegate::mock::{Fault, Options, RunTime};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::client::{self, Answer};
use crate::support::program::{Place, Running, mock, run_by};
use crate::support::{Setup, create, get};

/// Callers that keep creating while the signal comes.
const CALLERS: usize = 8;

fn unlimited() -> Options {
    Options {
        requests: None,
        concurrent_jobs: None,
        run_time: RunTime::Fixed(Duration::from_secs(60)),
        ..Options::default()
    }
}

#[tokio::test]
async fn who_comes_during_the_drain_is_told_so() {
    let setup = Setup { mock: unlimited(), plan: "concurrent_jobs = 100", ..Setup::default() };
    let live = setup.loopback().await;
    let (address, admin) = (live.server.listen[0], live.server.admin.expect("an admin port"));
    let connect = || async move { TcpStream::connect(address).await.expect("the port is open") };
    assert_eq!(live.admin("/readyz").await.status, 200);
    let stream = tokio::spawn(client::exchange(connect().await, get("/v1/sse?events=50&gap_ms=30")));
    // Has asked nothing yet when the drain begins.
    let early = connect().await;
    live.mock.wait_until(|stats| stats.attempts == 1).await;
    let drain = tokio::spawn(live.server.drain());
    let ready = || async move {
        let stream = TcpStream::connect(admin).await.expect("the port is open");
        client::exchange(stream, get("/readyz")).await.status
    };
    while ready().await != 503 {
        tokio::task::yield_now().await;
    }
    assert_eq!(client::exchange(early, create()).await.code(), "draining");
    let refused = client::exchange(connect().await, create()).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (503, "draining"));
    assert_eq!(refused.header("connection"), "close");
    let streamed = stream.await.expect("no panic");
    assert_eq!(events(&streamed), 50);
    assert!(drain.await.expect("no panic"), "all was finished");
    assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    assert_eq!(live.mock.stats().creates_accepted, 0);
}

/// What a create came to.
#[derive(Debug, Default)]
struct Count {
    accepted: u64,
    draining: u64,
    /// The port was closed, or closed before anything was said.
    unheard: u64,
}

/// Creates over new connections until the proxy is gone.
async fn keep_creating(to: SocketAddr) -> Count {
    let mut count = Count::default();
    loop {
        let Ok(stream) = TcpStream::connect(to).await else {
            count.unheard += 1;
            return count;
        };
        match client::try_exchange(stream, create()).await {
            Some(answer) if answer.status == 201 => count.accepted += 1,
            Some(answer) if answer.code() == "draining" => {
                assert!(answer.whole);
                count.draining += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Some(answer) => panic!("{answer:?}"),
            None => count.unheard += 1,
        }
    }
}

/// The events of a stream that ended as it should.
fn events(answer: &Answer) -> usize {
    assert!(answer.status == 200 && answer.whole, "{answer:?}");
    String::from_utf8_lossy(&answer.body).matches("\n\n").count()
}

/// `SLUICEGATE_STREAMS=50` for the full size.
#[tokio::test]
async fn sigterm_under_load_loses_nothing() {
    let streams: u32 = std::env::var("SLUICEGATE_STREAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let place = Place::new();
    let upstream = mock(unlimited()).await;
    let config = "[accounts.main]\nplan = \"main\"\nkey = { env = \"CORE_API_KEY\" }\n[plans.main]\nconcurrent_jobs = 1000000\n[log]\nlevel = \"warn\"\n";
    place.write("proxy.toml", config);
    let mut proxy = Running::start(&mut place.proxy(&upstream, &["run", "--config", "proxy.toml"]));
    let address = proxy.ready().await;
    // They end 1 to 3 s after the signal, each at its own time.
    let mut streaming = JoinSet::new();
    for number in 0..streams {
        let events = 50 + 100 * number / streams;
        streaming.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("open");
            (events, client::exchange(stream, get(&format!("/v1/sse?events={events}&gap_ms=20"))).await)
        });
    }
    upstream.wait_until(|stats| stats.attempts >= u64::from(streams)).await;
    // One that is slow to answer is in flight, too.
    upstream.fault_next("GET", "/v1/echo", Fault::SlowHead { delay: Duration::from_millis(800) });
    let before = upstream.stats().attempts;
    let slow = tokio::spawn(async move {
        client::exchange(TcpStream::connect(address).await.expect("open"), get("/v1/echo")).await
    });
    upstream.wait_until(|stats| stats.attempts > before).await;
    let mut callers = JoinSet::new();
    (0..CALLERS).for_each(|_| drop(callers.spawn(keep_creating(address))));
    upstream.wait_until(|stats| stats.creates_accepted >= 50).await;
    proxy.signal(Signal::TERM);
    assert_eq!(slow.await.expect("no panic").status, 200);
    let mut ended = 0;
    while let Some(streamed) = streaming.join_next().await {
        let (sent, answer) = streamed.expect("no panic");
        assert_eq!(events(&answer), sent as usize, "every event of it");
        ended += 1;
    }
    let mut all = Count::default();
    while let Some(count) = callers.join_next().await {
        let Count { accepted, draining, unheard } = count.expect("no other answer");
        all = Count {
            accepted: all.accepted + accepted,
            draining: all.draining + draining,
            unheard: all.unheard + unheard,
        };
    }
    let code = proxy.exit_code().await;
    let stats = upstream.stats();
    println!(
        "{ended} streams whole; {all:?}; the upstream took {} creates; exit code {code:?}",
        stats.creates_accepted
    );
    assert_eq!(code, Some(0), "{}", proxy.stderr().await);
    assert_eq!(all.accepted, stats.creates_accepted, "every job that was made was told to its caller");
    assert!(all.draining > 0, "{all:?}");
    assert_eq!(stats.streams_aborted, 0);
}

/// Started in a terminal that is then closed, it ends as by Ctrl-C. Without a terminal the same signal reads the configuration again.
#[tokio::test]
async fn a_closed_terminal_ends_it() {
    const SCRIPT: &str = "
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said = b''
while b'sluicegate ready' not in said:
    said += os.read(terminal, 4096)
os.close(terminal)
print('ended', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
";
    let place = Place::new();
    let upstream = mock(unlimited()).await;
    let proxy = place.proxy(&upstream, &["run"]);
    let mut python = tokio::process::Command::new("python3");
    run_by(python.args(["-c", SCRIPT]), &proxy);
    let mut python = Running::start(&mut python);
    assert_eq!(python.line("ended ").await, "0", "{}", python.stderr().await);
}
