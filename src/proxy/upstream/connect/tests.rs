//! Connections that come to nothing, over real sockets of this machine.

use std::net::SocketAddr;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// What the upstream does with a connection.
#[derive(Clone)]
enum Behaviour {
    Tls(Arc<ServerConfig>),
    Says(&'static [u8]),
    Closes,
    Hangs,
}

async fn upstream(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let Ok((mut tcp, _)) = listener.accept().await else { return };
            let behaviour = behaviour.clone();
            tokio::spawn(async move {
                match behaviour {
                    Behaviour::Tls(config) => {
                        if let Ok(tls) = TlsAcceptor::from(config).accept(tcp).await {
                            std::future::pending::<()>().await;
                            drop(tls);
                        }
                    }
                    Behaviour::Says(bytes) => drop(tcp.write_all(bytes).await),
                    Behaviour::Closes => {}
                    Behaviour::Hangs => std::future::pending().await,
                }
            });
        }
    });
    address
}

/// An authority of our own.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { params, key: KeyPair::generate().expect("a key") }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.params.self_signed(&self.key).expect("a certificate").der().clone()).expect("a root");
        roots
    }

    /// For this name, until the end of this year.
    fn server(&self, name: &str, until: i32) -> Behaviour {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(until, 12, 31));
        let key = KeyPair::generate().expect("a key");
        let issuer = Issuer::from_params(&self.params, &self.key);
        let cert: CertificateDer<'static> = params.signed_by(&key, &issuer).expect("signed").der().clone();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert], PrivateKeyDer::Pkcs8(key.serialize_der().into()));
        Behaviour::Tls(Arc::new(config.expect("a key")))
    }
}

async fn connect(url: &str, roots: RootCertStore, timeout: Duration) -> Result<(), Unreachable> {
    let url = url.parse().expect("a URL");
    let network = Network::with_roots(&url, Http2::Auto, timeout, || roots).expect("a network");
    network.connect().await.map(drop).map_err(|failure| failure.0)
}

const SOON: Duration = Duration::from_millis(300);
const PLENTY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn only_a_certificate_for_this_name_of_a_known_authority_and_of_today_will_do() {
    let (known, unknown) = (Authority::new(), Authority::new());
    let cases = [
        ("good", known.server("localhost", 4000), Ok(())),
        ("another name", known.server("evil.test", 4000), Err(Unreachable::Tls)),
        ("expired", known.server("localhost", 2020), Err(Unreachable::Tls)),
        ("unknown authority", unknown.server("localhost", 4000), Err(Unreachable::Tls)),
    ];
    for (case, server, expected) in cases {
        let port = upstream(server).await.port();
        let url = format!("https://localhost:{port}");
        assert_eq!(connect(&url, known.roots(), PLENTY).await, expected, "{case}");
    }
}

#[tokio::test]
async fn what_is_no_tls_or_no_answer_at_all_is_told_apart() {
    let roots = Authority::new().roots();
    let cases = [
        ("plain HTTP", Behaviour::Says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), PLENTY, Unreachable::Tls),
        ("closes", Behaviour::Closes, PLENTY, Unreachable::Tls),
        ("says nothing", Behaviour::Hangs, SOON, Unreachable::Timeout),
    ];
    for (case, behaviour, timeout, expected) in cases {
        let port = upstream(behaviour).await.port();
        assert_eq!(
            connect(&format!("https://localhost:{port}"), roots.clone(), timeout).await,
            Err(expected),
            "{case}"
        );
    }
}

#[tokio::test]
async fn no_port_and_no_name() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let roots = RootCertStore::empty();
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://127.0.0.1:{}", closed.port());
        assert_eq!(connect(&url, roots.clone(), PLENTY).await, Err(Unreachable::Refused), "{scheme}");
    }
    // `.invalid` never resolves (RFC 6761 §6.4); a machine without any resolver may take its time.
    let nowhere = connect("http://nowhere.invalid", roots, Duration::from_secs(2)).await;
    assert!(matches!(nowhere, Err(Unreachable::Dns | Unreachable::Timeout)), "{nowhere:?}");
}

/// The first address swallows everything: the second still gets its share of the time.
#[tokio::test]
async fn an_address_that_swallows_everything_leaves_time_for_the_next() {
    // A full backlog: the system drops what comes beyond it, without a word.
    let full = tokio::net::TcpSocket::new_v4().expect("a socket");
    full.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let full = full.listen(0).expect("listening");
    let address = full.local_addr().expect("an address");
    let mut crowd = Vec::new();
    for _ in 0..8 {
        crowd.push(tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(address)).await);
    }
    let good = upstream(Behaviour::Hangs).await;
    let roots = RootCertStore::empty;
    let network = Network::with_roots(&"http://localhost".parse().expect("a URL"), Http2::Auto, PLENTY, roots);
    let network = Network { timeout: SOON, ..network.expect("a network") };
    let (alone, both) = (network.dial(&[address]).await, network.dial(&[address, good]).await);
    assert!(matches!(alone, Err(Failure(Unreachable::Timeout))), "nobody answers there");
    assert_eq!(both.expect("the second").peer_addr().expect("open"), good);
}
