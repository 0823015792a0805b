//! The client side: requests, and one exchange over one connection.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body ended as announced.
    pub whole: bool,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header as text; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// A header as a number.
    pub fn number(&self, name: &str) -> u64 {
        self.header(name).parse().unwrap_or_else(|_| panic!("{name} in {self:?}"))
    }

    /// The `code` of an answer of the proxy's own; empty in answers of the upstream.
    pub fn code(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The id of the job that was created.
    pub fn job_id(&self) -> String {
        let json = self.json();
        let id = json.get("job_id").or(json.get("id"));
        id.and_then(Value::as_str).expect("a job id").to_owned()
    }

    /// How many attempts the answer says that it took.
    pub fn attempts(&self) -> u64 {
        let timings = self.headers.get_all("server-timing").iter();
        let mut ours = timings.filter_map(|value| value.to_str().ok()?.split("attempts;desc=\"").nth(1));
        let count = ours.next_back().and_then(|rest| rest.trim_end_matches('"').parse().ok());
        count.unwrap_or_else(|| panic!("no attempts in {self:?}"))
    }
}

pub fn get(path: &str) -> Request<Full<Bytes>> {
    request("GET", path, Bytes::new())
}

pub fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let mut request = request("POST", path, body);
    let json = http::HeaderValue::from_static("application/json");
    request.headers_mut().insert("content-type", json);
    request
}

pub fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "localhost:8787");
    request.body(Full::new(body.into())).expect("a request")
}

/// Adds a header.
pub trait With {
    fn with(self, name: &'static str, value: &str) -> Self;
}

impl<B> With for Request<B> {
    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut().insert(name, value.parse().expect("a header value"));
        self
    }
}

/// Sends one request over HTTP/1.1 and reads the answer to its end. A connection that breaks before the answer's head panics.
pub async fn exchange<B>(io: impl AsyncRead + AsyncWrite + Unpin, request: Request<B>) -> Answer
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    try_exchange(io, request).await.expect("an answer")
}

/// The same; `None` where the connection breaks before the answer's head.
pub async fn try_exchange<B>(io: impl AsyncRead + AsyncWrite + Unpin, request: Request<B>) -> Option<Answer>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.ok()?;
    let exchange = async {
        let response = sender.send_request(request).await.ok()?;
        Some(read(response).await)
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    tokio::select! {
        answer = &mut exchange => return answer,
        _ = &mut connection => {}
    }
    exchange.await
}

/// As `try_exchange`, over HTTP/2.
pub async fn try_exchange_h2<B>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<B>,
) -> Option<Answer>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut head, body) = request.into_parts();
    // What HTTP/1.1 says in the Host field is said here by the target.
    let host = head.headers.remove(header::HOST)?;
    let target = format!("http://{}{}", host.to_str().ok()?, head.uri);
    head.uri = target.parse().ok()?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.ok()?;
    let connection = tokio::spawn(connection);
    let answer = match sender.send_request(Request::from_parts(head, body)).await {
        Ok(response) => Some(read(response).await),
        Err(_) => None,
    };
    connection.abort();
    answer
}

/// Reads an answer to its end.
pub async fn read(response: http::Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut whole) = (BytesMut::new(), true);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            whole = false;
            break;
        };
        bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
    }
    Answer { status: head.status, headers: head.headers, body: bytes.freeze(), whole }
}
