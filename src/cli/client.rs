//! The smallest HTTP client that does: one request, one connection, one whole answer. For `healthcheck` and `demo`.

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Answers to us are short, but for lists of jobs.
const LONGEST: usize = 16 << 20;

/// What went wrong, for people.
pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// Sends a request to `authority` (host and port) over plain HTTP/1.1. `body` is JSON.
pub(super) async fn send(
    authority: &str,
    method: Method,
    target: &str,
    body: Option<Bytes>,
) -> Result<Response<Bytes>, Error> {
    let tcp = TcpStream::connect(authority).await?;
    tcp.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, authority)
        .header(header::CONNECTION, "close");
    if body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    let request = request.body(Full::new(body.unwrap_or_default()))?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LONGEST).collect().await?;
        Ok::<_, Error>(Response::from_parts(head, body.to_bytes()))
    };
    // The connection only moves while it is polled, and ends with the answer.
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
