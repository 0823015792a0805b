//! An upstream whose keys change: one customer, one book for all of its keys, counted by its own clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use http_body_util::Full;
use tokio::time::{Instant, sleep};

use super::server::{self, Answers, says};

/// Keys, and what was done with them.
pub struct Vault {
    window: Duration,
    delay: Duration,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    keys: BTreeSet<String>,
    sent: VecDeque<Instant>,
    seen: Seen,
    jobs: BTreeSet<String>,
    /// The most requests in any window that begins from then on.
    bound: Option<(usize, Instant)>,
}

/// What was seen.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Requests, refused ones included.
    pub attempts: u64,
    /// Refused with 401.
    pub unauthorized: u64,
    /// Created jobs.
    pub created: u64,
    /// By key: accepted requests.
    pub by_key: BTreeMap<String, u64>,
    /// The most requests in any window, refused ones included.
    pub most_in_window: usize,
    /// Requests over the bound of their time.
    pub over_bound: u64,
    /// The most jobs alive.
    pub most_jobs: usize,
}

impl Vault {
    /// Counts in windows of this length; answers come after `delay`.
    pub fn new(keys: &[&str], window: Duration, delay: Duration) -> Arc<Self> {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        Arc::new(Self { window, delay, inner: Mutex::new(Inner { keys, ..Inner::default() }) })
    }

    /// Another key is good, too.
    pub fn add(&self, key: &str) {
        self.inner.lock().expect("no panics").keys.insert(key.to_owned());
    }

    /// From now on, no window that begins later has more requests than these.
    pub fn bound(&self, most: usize) {
        self.inner.lock().expect("no panics").bound = Some((most, Instant::now()));
    }

    /// A key is good no longer.
    pub fn revoke(&self, key: &str) {
        self.inner.lock().expect("no panics").keys.remove(key);
    }

    pub fn seen(&self) -> Seen {
        self.inner.lock().expect("no panics").seen.clone()
    }

    /// A job ends.
    pub fn finish(&self, job: &str) {
        assert!(self.inner.lock().expect("no panics").jobs.remove(job), "{job} is alive");
    }

    /// The jobs that live.
    pub fn jobs(&self) -> Vec<String> {
        self.inner.lock().expect("no panics").jobs.iter().cloned().collect()
    }

    /// Serves over sockets until the runtime ends; the URL.
    pub async fn listen(self: &Arc<Self>) -> String {
        format!("http://{}", server::listen(self).await)
    }

    fn decide(&self, method: &Method, path: &str, key: &str) -> (u16, String) {
        let now = Instant::now();
        let mut inner = self.inner.lock().expect("no panics");
        let inner = &mut *inner;
        inner.seen.attempts += 1;
        inner.sent.push_back(now);
        while inner.sent.front().is_some_and(|first| now - *first >= self.window) {
            inner.sent.pop_front();
        }
        inner.seen.most_in_window = inner.seen.most_in_window.max(inner.sent.len());
        if let Some((most, since)) = inner.bound
            && now - since >= self.window
        {
            inner.seen.over_bound += u64::from(inner.sent.len() > most);
        }
        if !inner.keys.contains(key) {
            inner.seen.unauthorized += 1;
            return (401, r#"{"error":"unknown key"}"#.to_owned());
        }
        *inner.seen.by_key.entry(key.to_owned()).or_default() += 1;
        match (method, path.strip_prefix("/v1/predictions/")) {
            (&Method::POST, None) if path == "/v1/predictions" => {
                inner.seen.created += 1;
                let id = format!("job-{}", inner.seen.created);
                inner.jobs.insert(id.clone());
                inner.seen.most_jobs = inner.seen.most_jobs.max(inner.jobs.len());
                (201, format!(r#"{{"job_id":"{id}","status":"pending"}}"#))
            }
            (&Method::GET, Some(id)) => {
                let status = if inner.jobs.contains(id) { "processing" } else { "completed" };
                (200, format!(r#"{{"job_id":"{id}","status":"{status}"}}"#))
            }
            _ => (200, format!(r#"{{"path":"{path}"}}"#)),
        }
    }
}

impl Answers for Vault {
    async fn answer(self: Arc<Self>, head: Parts, _body: Option<Bytes>) -> Response<Full<Bytes>> {
        let key = head.headers.get("x-api-key").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (status, body) = self.decide(&head.method, head.uri.path(), key);
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        says(status, body)
    }
}
