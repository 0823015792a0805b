//! A server over HTTP/1.1 whose answers a test makes up, in memory or over sockets: an upstream, a receiver of webhooks, a collector.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sluicegate::connect::{Connect, Connected, Connecting};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::net::TcpListener;

use super::PIPE_BYTES;

/// What it says.
pub trait Answers: Send + Sync + 'static {
    /// To this request; its body is `None` where it broke off.
    fn answer(self: Arc<Self>, head: Parts, body: Option<Bytes>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// An answer without headers of its own.
pub fn says(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status.try_into().expect("a status");
    response
}

/// One connection, to its end.
pub fn serve(server: &Arc<impl Answers>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let server = Arc::clone(server);
    let service = service_fn(move |request: Request<Incoming>| {
        let server = Arc::clone(&server);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.ok().map(http_body_util::Collected::to_bytes);
            Ok::<_, Infallible>(server.answer(head, body).await)
        }
    });
    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(io), service));
}

/// A free port of this machine.
pub async fn free() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Over sockets, until the runtime ends.
pub fn serve_all(listener: TcpListener, server: Arc<impl Answers>) {
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.expect("a connection");
            tcp.set_nodelay(true).expect("a socket");
            serve(&server, tcp);
        }
    });
}

/// The same on a free port, which it returns.
pub async fn listen(server: &Arc<impl Answers>) -> SocketAddr {
    let (listener, address) = free().await;
    serve_all(listener, Arc::clone(server));
    address
}

/// The way to it in memory.
pub struct Way<S>(pub Arc<S>);

impl<S: Answers> Connect for Way<S> {
    fn connect(&self) -> Connecting<'_> {
        let (near, far) = duplex(PIPE_BYTES);
        serve(&self.0, far);
        Box::pin(async { Ok(Connected { io: Box::new(near), h2: false }) })
    }
}
