//! Callers with the habits of the vendor's examples: create, poll at once, then less and less often.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::cli::client::{self, Error};

/// 1 s, ×1.5, up to 10 s, as documented; at ten times the speed.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The work that callers share.
pub(super) struct Work {
    total: u32,
    /// Relaxed everywhere: independent counts, read for show and after all callers have ended.
    taken: AtomicU32,
    done: AtomicU32,
    lost: AtomicU32,
    /// Locked once per lost prediction.
    error: Mutex<Option<String>>,
}

impl Work {
    pub(super) fn new(total: u32) -> Self {
        Self {
            total,
            taken: AtomicU32::new(0),
            done: AtomicU32::new(0),
            lost: AtomicU32::new(0),
            error: Mutex::new(None),
        }
    }

    /// Done and lost so far.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.done.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }

    pub(super) fn first_error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the next prediction, if there is one.
    fn take(&self) -> Option<u32> {
        Some(self.taken.fetch_add(1, Ordering::Relaxed)).filter(|&number| number < self.total)
    }

    fn count(&self, result: Result<(), Error>) {
        match result {
            Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| error.to_string());
            }
        }
    }
}

/// One caller of the proxy.
pub(super) struct Caller {
    authority: String,
    work: Arc<Work>,
}

impl Caller {
    pub(super) fn new(authority: String, work: Arc<Work>) -> Self {
        Self { authority, work }
    }

    /// Makes predictions until none is left.
    pub(super) async fn run(self) {
        while let Some(number) = self.work.take() {
            self.work.count(self.predict(number).await);
        }
    }

    async fn predict(&self, number: u32) -> Result<(), Error> {
        let body = json!({"model": "flux-schnell", "input": {"prompt": format!("paper boat {number}")}});
        let job = self.send(Method::POST, "/v1/predictions", Some(body.to_string().into())).await?;
        let id = job["job_id"].as_str().or(job["id"].as_str()).ok_or("an answer without a job id")?;
        let target = format!("/v1/predictions/{id}");
        let mut pause = FIRST_PAUSE;
        loop {
            let job = self.send(Method::GET, &target, None).await?;
            match job["status"].as_str() {
                Some("completed" | "succeeded") => return Ok(()),
                Some("failed" | "cancelled") | None => return Err(format!("{id} ended as {}", job["status"]).into()),
                Some(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
        }
    }

    async fn send(&self, method: Method, target: &str, body: Option<Bytes>) -> Result<Value, Error> {
        let answer = client::send(&self.authority, method, target, body).await?;
        if answer.status().is_success() {
            Ok(serde_json::from_slice(answer.body())?)
        } else {
            let text = String::from_utf8_lossy(answer.body());
            Err(format!("{}: {text}", answer.status()).into())
        }
    }
}
