//! Opening connections to the upstream: TCP or TLS, behind one trait so that tests can do without a network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::config::Http2;
use crate::proxy::rejection::Unreachable;

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An open connection and the protocol agreed on.
pub struct Connected {
    /// The bytes.
    pub io: Box<dyn Stream>,
    /// HTTP/2 was negotiated.
    pub h2: bool,
}

/// The future of a connection.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = Result<Connected, Failure>> + Send + 'a>>;

/// Opens connections to one upstream. Nothing of a request has been sent when it fails.
pub trait Connect: Send + Sync {
    /// Opens one more connection.
    fn connect(&self) -> Connecting<'_>;
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub(crate) Unreachable);

impl Failure {
    /// The connection was refused or broke: for connectors that tests bring.
    #[must_use]
    pub fn refused() -> Self {
        Self(Unreachable::Refused)
    }
}

/// TCP to a host, with TLS where the URL says `https`.
pub(crate) struct Network {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
    prior_knowledge: bool,
}

impl Network {
    /// For an `http` or `https` URL with a host.
    pub(crate) fn new(url: &http::Uri, http2: Http2, timeout: Duration) -> io::Result<Self> {
        Self::with_roots(url, http2, timeout, roots)
    }

    /// Trusting these authorities, which are asked for only where there is TLS.
    fn with_roots(
        url: &http::Uri,
        http2: Http2,
        timeout: Duration,
        roots: impl FnOnce() -> RootCertStore,
    ) -> io::Result<Self> {
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = url.scheme_str() == Some("https");
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
            Some((TlsConnector::from(Arc::new(trusting(roots(), http2)?)), name))
        } else {
            None
        };
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { host, port, tls, timeout, prior_knowledge: http2 == Http2::Always })
    }

    async fn open(&self) -> Result<Connected, Failure> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses: Vec<_> = addresses.map_err(|_| Failure(Unreachable::Dns))?.collect();
        self.secure(self.dial(&addresses).await?).await
    }

    /// The first address that answers. The time is shared out between them: one that swallows everything leaves some for the next.
    async fn dial(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Failure> {
        let end = Instant::now() + self.timeout;
        let mut why = Unreachable::Dns;
        for (tried, address) in addresses.iter().enumerate() {
            let others = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = end.saturating_duration_since(Instant::now()) / others;
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(tcp)) => return Ok(tcp),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => why = Unreachable::Refused,
                Ok(Err(_)) => why = Unreachable::Broken,
                Err(_) => why = Unreachable::Timeout,
            }
        }
        Err(Failure(why))
    }

    async fn secure(&self, tcp: TcpStream) -> Result<Connected, Failure> {
        // Without it, small writes wait for the peer's delayed acknowledgement: 41 ms a server-sent event.
        tcp.set_nodelay(true).map_err(|_| Failure(Unreachable::Broken))?;
        let Some((connector, name)) = &self.tls else {
            return Ok(Connected { io: Box::new(tcp), h2: self.prior_knowledge });
        };
        let tls = connector.connect(name.clone(), tcp).await.map_err(|error| {
            tracing::warn!(%error, host = self.host, "TLS handshake with the upstream failed");
            Failure(Unreachable::Tls)
        })?;
        let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok(Connected { io: Box::new(tls), h2 })
    }
}

impl Connect for Network {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            tokio::time::timeout(self.timeout, self.open()).await.unwrap_or(Err(Failure(Unreachable::Timeout)))
        })
    }
}

/// With the system's authorities.
pub(crate) fn tls_config(http2: Http2) -> io::Result<ClientConfig> {
    trusting(roots(), http2)
}

fn trusting(roots: RootCertStore, http2: Http2) -> io::Result<ClientConfig> {
    // Always named: with two providers in the build, rustls' implicit default panics.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = match http2 {
        Http2::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Http2::Never => vec![b"http/1.1".to_vec()],
        Http2::Always => vec![b"h2".to_vec()],
    };
    Ok(config)
}

/// The system's certificates (`SSL_CERT_FILE` is honoured); in an image without any, Mozilla's as compiled in.
fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(system.certs);
    if added == 0 {
        tracing::warn!("no system certificates found: using the ones compiled in");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

#[cfg(test)]
mod tests;
