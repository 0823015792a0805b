//! Callers and their habits, and what each heard.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::Full;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::plan::{Caller, Habit};
use super::world::World;
use crate::support::client::{self, Answer, With, get, request};
use crate::support::{create_with, poll};

/// Names a logical create upstream, whoever repeats it.
pub const CALL: &str = "x-sim-call";
/// Nobody follows a job for longer.
const FOLLOWED_FOR: Duration = Duration::from_secs(3600);

/// What became of one create, as its caller knows it.
#[derive(Debug, Clone)]
pub struct Heard {
    pub call: String,
    pub at: Instant,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Whatever the answer was, it was all there.
    Answer { status: u16, code: String, charge: String, job: Option<String>, credits: String },
    /// The connection broke: the proxy died.
    Broke,
    /// The caller hung up.
    Left,
}

/// A caller's whole life. Every wrong thing it hears is noted as one.
pub async fn live(world: Arc<World>, index: usize, caller: Caller) {
    sleep(caller.starts).await;
    let rng = Rng::with_seed(world.plan.seed ^ (index as u64) << 32);
    let one = One { world, index, caller, rng: Arc::new(Mutex::new(rng)) };
    match one.caller.habit {
        Habit::Follows { wait, fails, cancel } => one.follow(wait, fails, cancel).await,
        Habit::Leaves(after) => one.leave(after).await,
        Habit::Keyed { twins, tries } => one.keyed(twins, tries).await,
        Habit::Uploads { bytes } => one.upload(bytes).await,
        Habit::Chats => one.chat().await,
        Habit::Echo => {
            one.ask("echo", get("/v1/echo")).await;
        }
        Habit::Stranger => {
            one.ask("stranger", poll("nobody-s")).await;
        }
    }
}

#[derive(Clone)]
struct One {
    world: Arc<World>,
    index: usize,
    caller: Caller,
    rng: Arc<Mutex<Rng>>,
}

impl One {
    fn fork(&self) -> Rng {
        self.rng.lock().expect("no panics").fork()
    }

    fn dressed(&self, mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
        if let Some(token) = self.caller.token {
            request = request.with("sluicegate-token", token);
        }
        if let Some(most) = self.caller.max_wait {
            request = request.with("sluicegate-max-wait", &format!("{most}s"));
        }
        request
    }

    /// Asks a proxy that lives. `None`: it died before the answer was whole.
    async fn ask(&self, what: &str, request: Request<Full<Bytes>>) -> Option<Answer> {
        let request = self.dressed(request);
        let (io, life) = self.world.connect(self.fork()).await;
        let answer = if self.caller.http2 {
            client::try_exchange_h2(io, request).await
        } else {
            client::try_exchange(io, request).await
        };
        // What streams through is cut where the upstream cuts it; answers about jobs are whole or none.
        let answer = answer.filter(|answer| answer.whole || ["echo", "chat"].contains(&what));
        let (trace, index) = (&self.world.trace, self.index);
        if let Some(answer) = &answer {
            trace.note(format!("caller {index}: {what} -> {} {}", answer.status.as_u16(), answer.code()));
            if answer.code() == "internal" {
                self.world.wrong(format!("caller {index}: {what} was answered `internal`"));
            }
        } else {
            trace.note(format!("caller {index}: {what} -> broke"));
            if !life.is_cancelled() {
                self.world.wrong(format!("caller {index}: {what} got no answer, and the proxy lives"));
            }
        }
        answer
    }

    fn heard(&self, call: &str, answer: Option<&Answer>) {
        let what = match answer {
            None => What::Broke,
            Some(answer) => {
                let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                What::Answer {
                    status: answer.status.as_u16(),
                    code: answer.code(),
                    charge: answer.header("sluicegate-charge").to_owned(),
                    job: json["job_id"].as_str().map(str::to_owned),
                    credits: answer.header("sluicegate-credits-charged").to_owned(),
                }
            }
        };
        self.world.heard(Heard { call: call.to_owned(), at: Instant::now(), what });
    }

    async fn follow(&self, wait: Option<u32>, fails: bool, cancel: Option<Duration>) {
        let call = format!("c{}", self.index);
        let mut create = create(&call, fails);
        if let Some(secs) = wait {
            create = create.with("prefer", &format!("wait={secs}"));
        }
        let answer = self.ask("create", create).await;
        self.heard(&call, answer.as_ref());
        let Some(id) = answer.filter(|answer| answer.status.is_success()).and_then(|answer| job_of(&answer)) else {
            return;
        };
        if let Some(after) = cancel {
            sleep(after).await;
            let cancel = request("DELETE", &format!("/v1/predictions/{id}"), Bytes::new());
            self.ask(&format!("cancel {id}"), cancel).await;
        }
        self.until_the_end(&id, wait).await;
    }

    async fn upload(&self, bytes: usize) {
        let call = format!("u{}", self.index);
        let part = |name: &str, value: &str| {
            format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let (model, input) = (part("model", "flux-schnell"), part("input", "{\"prompt\":\"a boat\"}"));
        let file = part("file:image\"; filename=\"boat.png", &"y".repeat(bytes));
        let form = format!("{model}{input}{file}--x--\r\n");
        let create = request("POST", "/v1/predictions/upload", form)
            .with("content-type", "multipart/form-data; boundary=x")
            .with(CALL, &call);
        let answer = self.ask("upload", create).await;
        self.heard(&call, answer.as_ref());
        if let Some(id) = answer.filter(|answer| answer.status.is_success()).and_then(|answer| job_of(&answer)) {
            self.until_the_end(&id, None).await;
        }
    }

    /// What passes as whole is whole, and comes once.
    async fn chat(&self) {
        let asks = json!({"model": "gpt-5.1", "stream": true, "messages": [{"role": "user", "content": "a boat"}]});
        let chat = request("POST", "/llm/openai/v1/chat/completions", asks.to_string())
            .with("content-type", "application/json")
            .with(CALL, &format!("l{}", self.index));
        let Some(answer) = self.ask("chat", chat).await else { return };
        let ends = answer.body.windows(6).filter(|six| six == b"[DONE]").count();
        // A stream of the upstream's own has no length; what a fault put into its place has one.
        let streamed = answer.status == 200 && answer.header("content-length").is_empty();
        if streamed && answer.whole && ends != 1 {
            self.world.wrong(format!("caller {}: a chat that is whole ends {ends} times", self.index));
        }
    }

    /// Polls as the vendor's examples do. What was accepted must never be unknown, and must come to an end.
    async fn until_the_end(&self, id: &str, wait: Option<u32>) {
        let begun = Instant::now();
        let mut pause = Duration::from_secs(1);
        while begun.elapsed() < FOLLOWED_FOR {
            sleep(pause).await;
            pause = pause.mul_f64(1.5).min(Duration::from_secs(10));
            let mut asks = poll(id);
            if let Some(secs) = wait {
                asks = asks.with("prefer", &format!("wait={secs}"));
            }
            let Some(answer) = self.ask(&format!("poll {id}"), asks).await else { continue };
            if answer.status == 404 {
                return self.world.wrong(format!("caller {}: its job {id} is unknown", self.index));
            }
            let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            if matches!(json["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
                return;
            }
        }
        self.world.wrong(format!("caller {}: its job {id} never ended", self.index));
    }

    async fn leave(&self, after: Duration) {
        let call = format!("c{}", self.index);
        let create = create(&call, false);
        tokio::select! {
            biased;
            answer = self.ask("create", create) => self.heard(&call, answer.as_ref()),
            () = sleep(after) => {
                self.world.trace.note(format!("caller {}: hangs up", self.index));
                self.world.heard(Heard { call, at: Instant::now(), what: What::Left });
            }
        }
    }

    async fn keyed(&self, twins: u32, tries: u32) {
        let twins: Vec<_> = (0..twins)
            .map(|twin| {
                let one = Self { rng: Arc::new(Mutex::new(self.fork())), ..self.clone() };
                tokio::spawn(async move { one.one_key(twin, tries).await })
            })
            .collect();
        for twin in twins {
            twin.await.expect("no caller panics");
        }
    }

    async fn one_key(&self, twin: u32, tries: u32) {
        let call = format!("k{}", self.index);
        for turn in 0..tries {
            let create = create(&call, false).with("idempotency-key", &call);
            let answer = self.ask(&format!("keyed create, twin {twin}, try {turn}"), create).await;
            self.heard(&call, answer.as_ref());
            if let Some(id) = answer.filter(|answer| answer.status.is_success()).and_then(|answer| job_of(&answer)) {
                return self.until_the_end(&id, None).await;
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}

fn job_of(answer: &Answer) -> Option<String> {
    let json: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    json["job_id"].as_str().map(str::to_owned)
}

fn create(call: &str, fails: bool) -> Request<Full<Bytes>> {
    let input = json!({"prompt": call, "fail": fails});
    create_with(&json!({"model": "flux-schnell", "input": input})).with(CALL, call)
}
