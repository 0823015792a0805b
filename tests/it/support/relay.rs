//! A way to a server that can go silent, in one direction or both, as a network does when it is cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    All,
    Nothing,
}

/// The way. Bytes that do not pass wait, as they do in a network that drops them, until the connection is given up.
pub struct Relay {
    pub port: u16,
    passes: Arc<watch::Sender<Passes>>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let passes = Arc::new(watch::Sender::new(Passes::All));
        let state = Arc::clone(&passes);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((ask_in, answer_out), (answer_in, ask_out)) = (near.into_split(), far.into_split());
                    let questions = carry(ask_in, ask_out, state.subscribe(), |passes| passes == Passes::All);
                    let answers = carry(answer_in, answer_out, state.subscribe(), |passes| passes == Passes::All);
                    tokio::join!(questions, answers);
                });
            }
        });
        Self { port, passes }
    }

    pub fn let_pass(&self, passes: Passes) {
        self.passes.send_replace(passes);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<Passes>,
    open: impl Fn(Passes) -> bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|passes| open(*passes)).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
