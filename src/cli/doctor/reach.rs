//! The way to the upstream, step by step: name, TCP, TLS, and one request that creates nothing.

use std::error::Error as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Http2, Upstream};
use crate::proxy::upstream::connect::{Stream, tls_config};
use crate::proxy::upstream::target::Target;

use super::finding::Finding;

/// For each step.
const PATIENCE: Duration = Duration::from_secs(5);
/// For the answer: such a request is a small one, but the API may be far away and busy.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection of our own to the upstream.
pub(super) struct Reached {
    io: Box<dyn Stream>,
    h2: bool,
}

/// An answer's head.
pub(super) type Head = (StatusCode, HeaderMap);

/// Goes as far as it gets; adds a finding a step.
pub(super) async fn reach(upstream: &Upstream, findings: &mut Vec<Finding>) -> Option<Reached> {
    let url = &upstream.url;
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let secure = url.scheme_str() == Some("https");
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let addresses = found(resolve(&host, port).await, findings)?;
    let tcp = found(connect(&addresses, upstream.connect_timeout.min(PATIENCE)).await, findings)?;
    if !secure {
        findings.push(Finding::skip("tls", format!("{url} is plain HTTP")));
        return Some(Reached { io: Box::new(tcp), h2: upstream.http2 == Http2::Always });
    }
    found(handshake(tcp, &host, upstream.http2).await, findings)
}

/// Keeps what was found out, and goes on where it was good.
fn found<T>(outcome: Result<(T, Finding), Finding>, findings: &mut Vec<Finding>) -> Option<T> {
    match outcome {
        Ok((value, finding)) => {
            findings.push(finding);
            Some(value)
        }
        Err(finding) => {
            findings.push(finding);
            None
        }
    }
}

async fn resolve(host: &str, port: u16) -> Result<(Vec<SocketAddr>, Finding), Finding> {
    let way_out = format!(
        "is upstream.url right? Can this machine resolve {host} (`getent hosts {host}`), or does it need a VPN?"
    );
    let addresses: Vec<SocketAddr> = match tokio::time::timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(Finding::fail("dns", format!("{host} has no address: {error}"), way_out)),
        Err(_) => {
            return Err(Finding::fail(
                "dns",
                format!("{host} is not resolved within {} s", PATIENCE.as_secs()),
                way_out,
            ));
        }
    };
    if addresses.is_empty() {
        return Err(Finding::fail("dns", format!("{host} has no address"), way_out));
    }
    let said = match host.parse::<IpAddr>() {
        Ok(address) => format!("{address} is an address already"),
        Err(_) => format!("{host} is {}", list(&addresses)),
    };
    Ok((addresses, Finding::ok("dns", said)))
}

fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    texts.join(", ")
}

/// Tries every address: one that swallows everything costs each call time.
async fn connect(addresses: &[SocketAddr], patience: Duration) -> Result<(TcpStream, Finding), Finding> {
    let share = patience / u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let (mut reached, mut failed) = (None, Vec::new());
    for address in addresses {
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => reached = reached.or(Some((tcp, *address))),
            Ok(Err(error)) => failed.push(format!("{address}: {error}")),
            Err(_) => failed.push(format!("{address}: no answer within {} ms", share.as_millis())),
        }
    }
    let failed = failed.join("; ");
    let Some((tcp, address)) = reached else {
        let way_out = "is upstream.url right, and may this machine reach it (firewall, VPN)? \
                       The proxy connects directly: HTTPS_PROXY is not used";
        return Err(Finding::fail("connect", failed, way_out));
    };
    let finding = if failed.is_empty() {
        Finding::ok("connect", format!("{address} answers"))
    } else {
        let said = format!("{address} answers, but not all of the name's addresses do ({failed})");
        Finding::warn("connect", said, "mend the route to it: new connections may lose time there")
    };
    Ok((tcp, finding))
}

async fn handshake(tcp: TcpStream, host: &str, http2: Http2) -> Result<(Reached, Finding), Finding> {
    let broken = |error: io::Error| Finding::fail("tls", format!("no TLS with {host}: {error}"), "see upstream.url");
    let name = ServerName::try_from(host.to_owned()).map_err(|error| broken(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::new(tls_config(http2).map_err(broken)?));
    let tls = match tokio::time::timeout(PATIENCE, connector.connect(name, tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(Finding::fail("tls", format!("no TLS with {host}: {error}"), advice(&error))),
        Err(_) => {
            let said = format!("{host} does not answer the TLS handshake within {} s", PATIENCE.as_secs());
            return Err(Finding::fail("tls", said, "is it HTTPS that is served on this port?"));
        }
    };
    let (_, session) = tls.get_ref();
    let version =
        session.protocol_version().and_then(|version| version.as_str().map(str::to_owned)).unwrap_or_default();
    let h2 = session.alpn_protocol() == Some(b"h2");
    let said = format!("{version}, {}; the certificate is good for {host}", if h2 { "HTTP/2" } else { "HTTP/1.1" });
    Ok((Reached { io: Box::new(tls), h2 }, Finding::ok("tls", said)))
}

/// What a failed handshake is likely to need.
fn advice(error: &io::Error) -> &'static str {
    use rustls::CertificateError as Wrong;
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match told {
        Some(rustls::Error::InvalidCertificate(Wrong::UnknownIssuer)) => {
            "its authority is not among the system's: name a file that has it in SSL_CERT_FILE (a company's proxy in between has one of its own)"
        }
        Some(rustls::Error::InvalidCertificate(Wrong::Expired | Wrong::ExpiredContext { .. })) => {
            "its certificate has run out, or this machine's clock is wrong"
        }
        Some(rustls::Error::InvalidCertificate(Wrong::NotValidYet | Wrong::NotValidYetContext { .. })) => {
            "this machine's clock is likely to be behind"
        }
        Some(rustls::Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. })) => {
            "the certificate is for another name: see upstream.url"
        }
        Some(rustls::Error::InvalidCertificate(_)) => {
            "it is not a certificate that a server may show: whoever runs the upstream has to mend it"
        }
        _ => "is it HTTPS that is served on this port? See upstream.url",
    }
}

/// Sends the one request. Over a connection of its own, which ends with it.
pub(super) async fn ask(
    reached: Reached,
    target: &Target,
    method: Method,
    path: &str,
    (name, key): (HeaderName, HeaderValue),
) -> Result<Head, String> {
    let uri: Uri = target.origin_form(path, None).ok_or("upstream.url has a prefix that no request can have")?;
    let uri = if reached.h2 { target.absolute(&uri) } else { uri };
    let mut request = Request::builder().method(method).uri(uri).header(name, key);
    if !reached.h2 {
        request = request.header(header::HOST, target.host.clone());
    }
    let agent = concat!("sluicegate-doctor/", env!("CARGO_PKG_VERSION"));
    let request = request.header(header::USER_AGENT, agent).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(ANSWER, exchange(reached, request)).await;
    answer.map_err(|_| format!("no answer within {} s", ANSWER.as_secs()))?
}

async fn exchange(reached: Reached, request: Request<Empty<Bytes>>) -> Result<Head, String> {
    let io = TokioIo::new(reached.io);
    // With its cause: "connection error" alone helps nobody.
    let text = |error: hyper::Error| error.source().map_or_else(|| error.to_string(), |why| format!("{error}: {why}"));
    let response = if reached.h2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(text)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let (head, _) = response.map_err(text)?.into_parts();
    Ok((head.status, head.headers))
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError, Error};

    use super::*;

    #[test]
    fn a_bad_certificate_is_not_taken_for_a_port_without_tls() {
        let advice = |error| advice(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert!(advice(Error::InvalidCertificate(CertificateError::NotValidYet)).contains("clock"));
        assert!(advice(Error::InvalidCertificate(CertificateError::Revoked)).contains("a server may show"));
        assert!(advice(Error::DecryptError).contains("is it HTTPS"));
    }
}
