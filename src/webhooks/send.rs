//! One attempt: resolve once, connect to what was resolved, post, read the status.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Http2;
use crate::ledger::outbox::Message;
use crate::proxy::rejection::Unreachable;
use crate::proxy::upstream::connect::{Connected, Connecting, Failure, tls_config};

use super::Webhooks;
use super::target::{Place, Target, is_ours, is_public};

/// How long a receiver may take, all in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens connections to receivers.
pub trait Dial: Send + Sync {
    /// Connects to the first of these addresses that answers, with TLS for this name if there is one. Nothing else may be connected to.
    fn dial<'a>(&'a self, addresses: &'a [SocketAddr], tls_name: Option<&'a str>) -> Connecting<'a>;
}

/// TCP, with TLS by the system's certificates.
#[derive(Default)]
pub(crate) struct Outward(OnceLock<TlsConnector>);

impl Outward {
    fn tls(&self) -> io::Result<&TlsConnector> {
        if let Some(tls) = self.0.get() {
            return Ok(tls);
        }
        let tls = TlsConnector::from(Arc::new(tls_config(Http2::Never)?));
        Ok(self.0.get_or_init(|| tls))
    }

    async fn connect(&self, addresses: &[SocketAddr], tls_name: Option<&str>) -> Result<Connected, Failure> {
        let tcp = TcpStream::connect(addresses).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure(Unreachable::Refused),
            _ => Failure(Unreachable::Broken),
        })?;
        let Some(name) = tls_name else { return Ok(Connected { io: Box::new(tcp), h2: false }) };
        let name = ServerName::try_from(name.to_owned()).map_err(|_| Failure(Unreachable::Tls))?;
        let tls = self.tls().map_err(|_| Failure(Unreachable::Tls))?;
        let tls = tls.connect(name, tcp).await.map_err(|error| {
            tracing::debug!(%error, "TLS handshake with a webhook's receiver failed");
            Failure(Unreachable::Tls)
        })?;
        Ok(Connected { io: Box::new(tls), h2: false })
    }
}

impl Dial for Outward {
    fn dial<'a>(&'a self, addresses: &'a [SocketAddr], tls_name: Option<&'a str>) -> Connecting<'a> {
        Box::pin(self.connect(addresses, tls_name))
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attempt {
    Delivered,
    /// It may work later.
    Failed(String),
    /// It never will.
    Hopeless(String),
}

impl Webhooks {
    /// Makes one attempt.
    pub(crate) async fn attempt(&self, message: &Message, dial: &dyn Dial) -> Attempt {
        match tokio::time::timeout(PATIENCE, self.post(message, dial)).await {
            Ok(Ok(status)) => judge(status),
            Ok(Err(failed)) => failed,
            Err(_) => Attempt::Failed(format!("no answer in {} s", PATIENCE.as_secs())),
        }
    }

    async fn post(&self, message: &Message, dial: &dyn Dial) -> Result<StatusCode, Attempt> {
        let failed = |error: &dyn std::fmt::Display| Attempt::Failed(error.to_string());
        let target =
            Target::parse(&message.target).ok_or_else(|| Attempt::Hopeless("the target is no URL".to_owned()))?;
        let addresses = self.resolve(&target).await?;
        let tls_name = target.https.then_some(target.host.as_str());
        let connected = dial.dial(&addresses, tls_name).await.map_err(|failure| match failure.0 {
            Unreachable::Timeout => failed(&"no connection in time"),
            reason => failed(&reason),
        })?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(connected.io)).await.map_err(|error| failed(&error))?;
        let request = self.request(&target, message).map_err(|error| Attempt::Hopeless(error.to_string()))?;
        // The connection only moves while it is polled, and ends with the answer's head: what a receiver says beyond it is not read.
        let mut answer = std::pin::pin!(sender.send_request(request));
        let answer = tokio::select! {
            answer = answer.as_mut() => answer,
            _ = connection => answer.await,
        };
        answer.map(|answer| answer.status()).map_err(|error| failed(&error))
    }

    fn request(&self, target: &Target, message: &Message) -> http::Result<Request<Full<bytes::Bytes>>> {
        let authority = target.uri.authority().map_or("", |authority| authority.as_str());
        let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let mut request = Request::post(path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("sluicegate/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header(header::CONNECTION, HeaderValue::from_static("close"))
            .body(Full::new(message.body.clone()))?;
        if let Some(keys) = &self.terms.load().keys {
            keys.sign(request.headers_mut(), &message.id, self.clock.wall(), &message.body);
        }
        Ok(request)
    }

    /// The addresses that may be connected to: resolved now, and used as they are, so that a name cannot lead elsewhere in between.
    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, Attempt> {
        let may_be_private = match target.place(&self.terms.load().allow) {
            Place::Allowed => true,
            Place::Public => false,
            Place::Local => return Err(Attempt::Hopeless("the target is no longer in webhooks.allow".to_owned())),
        };
        let found = tokio::net::lookup_host((target.host.as_str(), target.port)).await;
        let found: Vec<SocketAddr> =
            found.map_err(|_| Attempt::Failed("its name cannot be resolved".to_owned()))?.collect();
        if found.iter().any(|address| is_ours(*address, &self.ours)) {
            return Err(Attempt::Hopeless("the target is a port of this proxy".to_owned()));
        }
        let fit: Vec<SocketAddr> =
            found.into_iter().filter(|address| may_be_private || is_public(address.ip())).collect();
        if fit.is_empty() {
            return Err(Attempt::Failed(
                "its name leads into a private network, which webhooks.allow does not name".to_owned(),
            ));
        }
        Ok(fit)
    }
}

fn judge(status: StatusCode) -> Attempt {
    if status.is_success() {
        Attempt::Delivered
    } else if status == StatusCode::GONE {
        Attempt::Hopeless("answered 410: the receiver wants no more".to_owned())
    } else if status.is_redirection() {
        Attempt::Failed(format!("answered {}: redirects are not followed", status.as_u16()))
    } else {
        Attempt::Failed(format!("answered {}", status.as_u16()))
    }
}
