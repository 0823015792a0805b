//! What the servers under test forward to: fixed answers, events on a schedule, the same over TLS; and the plain TCP relay.

use std::convert::Infallible;
use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluicegate::mock::{Mock, Options, RunTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::party::{DIRECTORY, LISTEN, ROLE, UPSTREAM};

/// The length of a small answer.
pub(crate) const SMALL_BYTES: usize = 700;
/// The length of the answer to `GET /v1/large`.
pub(crate) const LARGE_BYTES: usize = 1024 * 1024;
/// Events of one stream (`GET /v1/events`), and the time between two.
pub(crate) const EVENTS: usize = 100;
/// How long a job of the role `jobs` runs, and the model whose jobs do not end.
const JOBS_LAST: Duration = Duration::from_millis(300);
pub(crate) const ENDLESS: &str = "flux-dev";
const EVENT_EVERY: Duration = Duration::from_millis(4);

/// Plays the role that this process was started for, and ends. Comes back where there is none.
pub(crate) fn play() {
    let Ok(role) = env::var(ROLE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let played = runtime.block_on(async {
        if role == "jobs" {
            return jobs().await;
        }
        let listener = TcpListener::bind(variable(LISTEN)).await?;
        match role.as_str() {
            "upstream" => plain(listener).await,
            "upstream-tls" => over_tls(listener, &[b"http/1.1"]).await,
            "upstream-h2" => over_tls(listener, &[b"h2"]).await,
            "relay" => relay(listener).await,
            other => panic!("no role {other}"),
        }
    });
    played.expect("served until killed");
    std::process::exit(0);
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is set by the parent"))
}

type Body = Either<Full<Bytes>, Events>;

/// One stream's events, on time.
struct Events {
    ticks: tokio::time::Interval,
    sent: usize,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.sent == EVENTS {
            return Poll::Ready(None);
        }
        ready!(self.ticks.poll_tick(cx));
        self.sent += 1;
        let event = b"data: {\"choices\":[{\"delta\":{\"content\":\"a few more words\"}}]}\n\n";
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(event)))))
    }
}

/// The answers, made once.
#[derive(Clone)]
struct Answers {
    small: Bytes,
    large: Bytes,
}

impl Answers {
    fn new() -> Self {
        Self { small: vec![b'y'; SMALL_BYTES].into(), large: vec![b'z'; LARGE_BYTES].into() }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let _ = body.collect().await;
        Ok(match head.uri.path() {
            "/v1/large" => Response::new(Either::Left(Full::new(self.large))),
            "/v1/events" => {
                let events = Events { ticks: tokio::time::interval(EVENT_EVERY), sent: 0 };
                let response = Response::builder().header("content-type", "text/event-stream");
                response.body(Either::Right(events)).expect("a response")
            }
            // An accepted job that has already ended.
            "/v1/predictions" => {
                let id = fastrand::u64(..);
                let job = format!("{{\"id\":\"pred_{id:016x}\",\"status\":\"succeeded\",\"output\":[]}}");
                let response = Response::builder().header("content-type", "application/json");
                response.body(Either::Left(Full::new(job.into()))).expect("a response")
            }
            _ => Response::new(Either::Left(Full::new(self.small))),
        })
    }
}

async fn plain(listener: TcpListener) -> io::Result<()> {
    let answers = Answers::new();
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        tokio::spawn(serve(tcp, answers.clone(), false));
    }
}

async fn serve<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(io: I, answers: Answers, http2: bool) {
    let service = service_fn(move |request| answers.clone().answer(request));
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(io), service).await;
    } else {
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
    }
}

/// The imitated API without limits, whose jobs run for [`JOBS_LAST`], or without an end.
async fn jobs() -> io::Result<()> {
    let run_time = RunTime::Fixed(JOBS_LAST);
    let model_run_times = vec![(ENDLESS.to_owned(), RunTime::Fixed(Duration::from_secs(3600)))];
    let options = Options { requests: None, concurrent_jobs: None, run_time, model_run_times, ..Options::default() };
    let _mock = Mock::start(options, variable(LISTEN).parse().expect("an address")).await?;
    std::future::pending().await
}

/// A certificate of its own authority, which is left where [`super::party::Party::sluicegate`] looks for it.
async fn over_tls(listener: TcpListener, protocols: &[&[u8]]) -> io::Result<()> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
        .map_err(io::Error::other)?;
    fs::write(format!("{}/../ca.pem", variable(DIRECTORY)), key.cert.pem())?;
    let private =
        rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private))
        .map_err(io::Error::other)?;
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let http2 = protocols.contains(&b"h2".as_slice());
    let answers = Answers::new();
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let (acceptor, answers) = (acceptor.clone(), answers.clone());
        tokio::spawn(async move {
            if let Ok(tls) = acceptor.accept(tcp).await {
                serve(tls, answers, http2).await;
            }
        });
    }
}

/// Copies bytes both ways and understands none of them: the floor of this design.
async fn relay(listener: TcpListener) -> io::Result<()> {
    let upstream: SocketAddr = variable(UPSTREAM).parse().expect("an address");
    loop {
        let (mut down, _) = listener.accept().await?;
        down.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut up = TcpStream::connect(upstream).await?;
            up.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut down, &mut up).await
        });
    }
}
