//! The whole hop: CPU time per request of the proxy's own process, against a plain TCP relay on the same work in the same run.
//!
//! Every party is a process of its own: the server under test on core 0, upstream and callers on core 1 (`taskset`, where there is one).
//! Rounds are interleaved; the figure is the median of CPU time per request with its spread. `cargo bench --bench forward`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream as AsyncStream};

const ROLE: &str = "SLUICEGATE_BENCH_ROLE";
const UPSTREAM: &str = "SLUICEGATE_BENCH_UPSTREAM";
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
const REQUESTS: usize = 6_000;
const BODY_BYTES: usize = 700;

/// What is sent, and to be counted.
struct Work {
    name: &'static str,
    request: Vec<u8>,
}

fn main() {
    match std::env::var(ROLE).as_deref() {
        Ok("upstream") => block_on(upstream()),
        Ok("relay") => block_on(relay()),
        Ok("proxy") => block_on(proxy()),
        Ok(other) => panic!("no role {other}"),
        // Under `cargo test --benches` nothing is measured.
        Err(_) if std::env::args().any(|arg| arg == "--bench") => compare(),
        Err(_) => {}
    }
}

fn compare() {
    let upstream = Server::start("upstream", None, 1);
    let relay = Server::start("relay", Some(upstream.address), 0);
    let proxy = Server::start("proxy", Some(upstream.address), 0);
    let post = vec![b'x'; 1024];
    let head = |line: &str, length: usize| {
        format!("{line} HTTP/1.1\r\nhost: localhost\r\nx-api-key: placeholder\r\ncontent-length: {length}\r\n\r\n")
    };
    let works = [
        Work { name: "GET 700 B", request: head("GET /v1/templates", 0).into_bytes() },
        Work { name: "POST 1 KiB", request: [head("POST /v1/mcp", post.len()).as_bytes(), &post].concat() },
    ];
    println!(
        "CPU of the server's own process per request, in µs: median [least - most] of {ROUNDS} interleaved rounds"
    );
    println!("{:<12} {:>22} {:>22} {:>8}", "", "TCP relay", "sluicegate", "ratio");
    for work in &works {
        let (mut of_relay, mut of_proxy) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            for (server, figures) in [(&relay, &mut of_relay), (&proxy, &mut of_proxy)] {
                let figure = server.cpu_per_request(work);
                // The first round warms up.
                if round > 0 {
                    figures.push(figure);
                }
            }
        }
        let ((a, a_text), (b, b_text)) = (summary(of_relay), summary(of_proxy));
        println!("{:<12} {a_text:>22} {b_text:>22} {:>8.2}", work.name, b / a);
    }
}

fn summary(mut figures: Vec<f64>) -> (f64, String) {
    figures.sort_by(f64::total_cmp);
    let median = figures[figures.len() / 2];
    (median, format!("{median:.1} [{:.1} - {:.1}]", figures[0], figures[figures.len() - 1]))
}

/// A party in a process of its own.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(role: &str, upstream: Option<SocketAddr>, core: usize) -> Self {
        let program = std::env::current_exe().expect("our own path");
        let has_taskset = Command::new("taskset").arg("--version").output().is_ok();
        let mut command = if has_taskset {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        } else {
            Command::new(program)
        };
        if let Some(upstream) = upstream {
            command.env(UPSTREAM, upstream.to_string());
        }
        let mut child = command.env(ROLE, role).stdout(Stdio::piped()).spawn().expect("a child");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("an address");
        Self { child, address: line.trim().parse().expect("an address") }
    }

    /// Sends the work from `CONNECTIONS` callers, each its next request when it has its answer.
    fn cpu_per_request(&self, work: &Work) -> f64 {
        let before = self.cpu();
        let address = self.address;
        std::thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(move || call(address, &work.request, REQUESTS / CONNECTIONS));
            }
        });
        let requests = REQUESTS / CONNECTIONS * CONNECTIONS;
        #[allow(clippy::cast_precision_loss)] // a few thousand
        let per_request = self.cpu().saturating_sub(before).as_secs_f64() * 1e6 / requests as f64;
        per_request
    }

    /// Time on a processor of all threads, from the kernel's accounting in nanoseconds.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("Linux");
        let nanos = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn call(address: SocketAddr, request: &[u8], times: usize) {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_nodelay(true).expect("an option");
    let mut answer = vec![0; 16 * 1024];
    for _ in 0..times {
        stream.write_all(request).expect("written");
        let mut filled = 0;
        // Answers differ only in their heads; the body's length is fixed.
        loop {
            filled += stream.read(&mut answer[filled..]).expect("an answer");
            let head = answer[..filled].windows(4).position(|end| end == b"\r\n\r\n");
            if head.is_some_and(|head| filled >= head + 4 + BODY_BYTES) {
                break;
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..filled.min(200)]));
    }
}

fn block_on(future: impl Future<Output = io::Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future).expect("served");
}

fn upstream_address() -> SocketAddr {
    std::env::var(UPSTREAM).expect("set by the parent").parse().expect("an address")
}

/// Answers everything with 700 bytes.
async fn upstream() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let body = Bytes::from(vec![b'y'; BODY_BYTES]);
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let body = body.clone();
                async move {
                    let _ = request.into_body().collect().await;
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(body)))
                }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
        });
    }
}

/// Copies bytes both ways and understands none of them: the floor of this design.
async fn relay() -> io::Result<()> {
    let upstream = upstream_address();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (mut down, _) = listener.accept().await?;
        down.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut up = AsyncStream::connect(upstream).await?;
            up.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut down, &mut up).await
        });
    }
}

/// The whole proxy with one worker, a plan that never binds, and its log off.
async fn proxy() -> io::Result<()> {
    let dir = std::env::temp_dir().join(format!("sluicegate-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let file = dir.join("proxy.toml");
    let toml = format!(
        "account = \"bench\"\n[server]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n[admin]\nlisten = \"off\"\n\
         [upstream]\nurl = \"http://{}\"\n[accounts.bench]\nplan = \"bench\"\nkey = {{ env = \"BENCH_KEY\" }}\n\
         [plans.bench]\nrequests_per_minute = 100000000\nconcurrent_jobs = 1000\n[state]\nstore = \"memory\"\n",
        upstream_address()
    );
    std::fs::write(&file, toml)?;
    let flags = sluicegate::config::Flags { config: Some(file), ..Default::default() };
    let env = [("BENCH_KEY".to_owned(), "bench-key".to_owned())].into();
    let sources = sluicegate::config::Sources { flags, env, cwd: dir.clone() };
    let loaded = sluicegate::config::load(&sources).map_err(|report| io::Error::other(report.to_string()))?;
    std::fs::remove_dir_all(&dir)?;
    let server = sluicegate::server::Server::start(&loaded.config).await.map_err(io::Error::other)?;
    println!("{}", server.listen[0]);
    std::future::pending::<()>().await;
    Ok(())
}
