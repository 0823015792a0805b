//! Apps that take webhooks, in memory or over sockets, each in its own manner.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response};
use http_body_util::Full;
use serde_json::Value;
use sluicegate::connect::{Connected, Connecting, Dial, Failure};
use tokio::io::duplex;
use tokio::time::{Instant, sleep};

use crate::support::PIPE_BYTES;
use crate::support::patience::until;
use crate::support::server::{Answers, free, says, serve, serve_all};

/// How a receiver behaves.
#[derive(Debug, Clone, Copy)]
pub enum Manner {
    Answer(u16),
    /// 500 this often, then 204.
    Fail(u32),
    Hang,
    /// 204 after a while.
    Slow(Duration),
    Refuse,
}

/// What arrived at a receiver.
#[derive(Debug, Clone)]
pub struct Hit {
    pub at: Instant,
    pub port: u16,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Hit {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().expect("text")
    }

    pub fn job(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).expect("JSON");
        json["job_id"].as_str().expect("an id").to_owned()
    }
}

/// Receivers by port, in memory; 204 where nothing else is said.
#[derive(Clone, Default)]
pub struct Receivers {
    manners: Arc<Mutex<HashMap<u16, Manner>>>,
    hits: Arc<Mutex<Vec<Hit>>>,
    /// Ports of slow receivers, for each answer.
    pub answered: Arc<Mutex<Vec<u16>>>,
}

impl Receivers {
    pub fn set(&self, port: u16, manner: Manner) {
        self.manners.lock().expect("no panics").insert(port, manner);
    }

    pub fn hits(&self) -> Vec<Hit> {
        self.hits.lock().expect("no panics").clone()
    }

    pub fn on(&self, port: u16) -> Vec<Hit> {
        self.hits().into_iter().filter(|hit| hit.port == port).collect()
    }

    fn manner(&self, port: u16) -> Manner {
        let mut manners = self.manners.lock().expect("no panics");
        match manners.get_mut(&port) {
            Some(Manner::Fail(0)) | None => Manner::Answer(204),
            Some(Manner::Fail(left)) => {
                *left -= 1;
                Manner::Answer(500)
            }
            Some(manner) => *manner,
        }
    }

    fn at(&self, port: u16) -> Arc<Receiver> {
        Arc::new(Receiver { receivers: self.clone(), port })
    }

    /// The same over sockets.
    pub async fn listen(&self) -> SocketAddr {
        let (listener, address) = free().await;
        serve_all(listener, self.at(address.port()));
        address
    }

    pub async fn wait_for(&self, count: usize) -> Vec<Hit> {
        until(format!("{count} deliveries"), || async {
            let hits = self.hits();
            (hits.len() >= count, hits)
        })
        .await
    }
}

impl Dial for Receivers {
    fn dial<'a>(&'a self, addresses: &'a [SocketAddr], tls_name: Option<&'a str>) -> Connecting<'a> {
        Box::pin(async move {
            assert!(addresses.iter().all(|address| address.ip().is_loopback()) && tls_name.is_none());
            let port = addresses[0].port();
            let refuses = matches!(self.manners.lock().expect("no panics").get(&port), Some(Manner::Refuse));
            if refuses {
                return Err(Failure::refused());
            }
            let (near, far) = duplex(PIPE_BYTES);
            serve(&self.at(port), far);
            Ok(Connected { io: Box::new(near), h2: false })
        })
    }
}

/// The one on a port.
struct Receiver {
    receivers: Receivers,
    port: u16,
}

impl Answers for Receiver {
    async fn answer(self: Arc<Self>, head: Parts, body: Option<Bytes>) -> Response<Full<Bytes>> {
        let Self { receivers, port } = &*self;
        let target = format!("{} {}", head.method, head.uri);
        let body = body.expect("a whole body");
        let hit = Hit { at: Instant::now(), port: *port, target, headers: head.headers, body };
        receivers.hits.lock().expect("no panics").push(hit);
        let status = match receivers.manner(*port) {
            Manner::Answer(status) => status,
            Manner::Slow(delay) => {
                sleep(delay).await;
                receivers.answered.lock().expect("no panics").push(*port);
                204
            }
            _ => std::future::pending().await,
        };
        let mut answer = says(status, "noted");
        if status == 302 {
            answer.headers_mut().insert("location", "http://localhost:3999/elsewhere".parse().expect("text"));
        }
        answer
    }
}
