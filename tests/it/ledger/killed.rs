//! `kill -9` at random moments of a run in which everything happens at once: creates, ends, settlements, deliveries.
//!
//! What must hold is counted by the upstream and by the receiver of webhooks. A create whose answer never was on our disk is the only thing
//! that may be unknown; it is shown as such and counts as paid, once.

use http::Response;
use http::request::Parts;

use super::*;
use crate::support::server::{self, Answers, says};

/// What came of some points.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    points: u64,
    accepted: u64,
    /// Accepted, and no process of ours knows.
    unknown: u64,
    /// Not accepted, and no process of ours knows.
    unsent: u64,
    failed: u64,
    deliveries: u64,
    repeated: u64,
}

/// With `SLUICEGATE_KILL_POINTS=200` and `--no-capture` it tells its figures.
#[tokio::test]
async fn killed_at_any_point_jobs_slots_credits_and_webhooks_are_exact() {
    let (mut points, mut all) = (JoinSet::new(), Tally::default());
    let mut add = |point: Tally| {
        all.points += 1;
        all.accepted += point.accepted;
        all.unknown += point.unknown;
        all.unsent += point.unsent;
        all.failed += point.failed;
        all.deliveries += point.deliveries;
        all.repeated += point.repeated;
    };
    for point in 0..kill_points(12) {
        if points.len() == 4 {
            add(points.join_next().await.expect("four run").expect("it holds"));
        }
        points.spawn(everything_killed_at(point));
    }
    while let Some(point) = points.join_next().await {
        add(point.expect("it holds"));
    }
    println!("{all:?}");
}

/// Runs, is killed at a moment that `point` chooses, goes on until all is done, and is judged.
async fn everything_killed_at(point: u64) -> Tally {
    let mut chance = Rng::with_seed(point ^ 0xdead);
    let (receiver, hook) = Receiver::listen(chance.u64(0..15)).await;
    let place = Home::with(&tables(point));
    let mock = Arc::new(imitate(chance.u64(0..10), chance.u64(0..10)).await);
    let mut program = place.start(&mock).await;
    let told: Arc<Mutex<HashMap<String, String>>> = Arc::default();
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let rng = Rng::with_seed(chance.u64(..));
        callers.spawn(call(format!("{caller}"), rng, program.data, hook.clone(), Arc::clone(&told), u32::MAX));
    }
    sleep(Duration::from_millis(chance.u64(20..600))).await;
    program.running.kill().await;
    while let Some(caller) = callers.join_next().await {
        caller.expect("no caller panics");
    }
    quiet(&mock).await;

    // Life goes on, for some creates more, until nothing is left to do.
    let mut program = place.start(&mock).await;
    for caller in 0..3 {
        let rng = Rng::with_seed(chance.u64(..));
        callers.spawn(call(format!("again-{caller}"), rng, program.data, hook.clone(), Arc::clone(&told), 3));
    }
    while let Some(caller) = callers.join_next().await {
        caller.expect("no caller panics");
    }
    program.idle(point).await;
    program.owes_nothing(point).await;
    let usage = program.admin("/api/v1/usage").await;
    program.running.kill().await;

    // Jobs: what the file says is what the next process would know.
    let accepted: HashSet<String> = mock.job_ids().into_iter().collect();
    let known: HashSet<String> = place.rows().into_iter().filter_map(|(id, _)| id).collect();
    assert!(known.is_subset(&accepted), "point {point}: {:?}", known.difference(&accepted));
    let told = told.lock().expect("no panics").clone();
    assert!(told.values().all(|id| known.contains(id)), "point {point}: told of a job that is not known");
    // Slots: the upstream, whose limit is the plan's, never had to refuse.
    let stats = mock.stats();
    assert_eq!((stats.refused_job_429, stats.jobs_live_now), (0, 0), "point {point}");
    assert!(stats.jobs_live_peak <= JOBS as usize, "point {point}: {}", stats.jobs_live_peak);

    // Credits: one for each job that is known and did not fail, and at most one for each create that nobody knows of.
    let line = &usage["today"][0];
    let amount = |what: &str| line[what].as_u64().unwrap_or_else(|| panic!("point {point}: whole credits in {usage}"));
    let failed = known.iter().filter(|id| receiver.failed(id)).count() as u64;
    let (jobs, sure) = (known.len() as u64, amount("charged") + amount("refunded") - amount("unknown"));
    assert_eq!((sure, amount("refunded"), amount("reserved")), (jobs, failed, 0), "point {point}: {usage}");
    let lost = accepted.len() as u64 - jobs;
    assert!(lost <= amount("unknown") && amount("unknown") <= CALLERS as u64, "point {point}: {lost} of {usage}");

    // Webhooks: each at least once, repetitions under the same id.
    let (deliveries, ids) = receiver.counts();
    for id in &known {
        assert_eq!(ids.get(id).map(HashSet::len), Some(1), "point {point}: {id} under one id");
    }
    assert!(ids.keys().all(|id| accepted.contains(id)), "point {point}");
    let distinct: HashSet<&String> = ids.values().flatten().collect();
    assert_eq!(distinct.len(), ids.len(), "point {point}: no two jobs share an id");
    // No create went up twice.
    let mut sent = HashSet::new();
    for seen in mock.requests().iter().filter(|seen| seen.method == Method::POST) {
        assert!(sent.insert(seen.headers["idempotency-key"].clone()), "point {point}: sent twice");
    }
    let repeated = deliveries - ids.len() as u64;
    let unsent = amount("unknown") - lost;
    Tally { points: 1, accepted: accepted.len() as u64, unknown: lost, unsent, failed, deliveries, repeated }
}

/// Every other point relays the upstream's own webhooks. An address for each, so that nobody else has its port.
fn tables(point: u64) -> String {
    let address = format!("127.{}.{}.1:7777", 100 + point / 250, point % 250);
    let inbound = format!("listen = \"{address}\"\npublic_url = \"http://{address}/in\"\n");
    format!(
        "[models.\"flux-schnell\"]\ncredits = 1\npoll = \"100ms\"\n\
         [webhooks]\nsecret = {{ env = \"WEBHOOK_SECRET\" }}\nallow = [\"127.0.0.1:*\"]\n{}",
        if point.is_multiple_of(2) { "" } else { &inbound }
    )
}

async fn imitate(count_delay_ms: u64, answer_delay_ms: u64) -> Mock {
    mock(Options {
        requests: None,
        concurrent_jobs: Some(JOBS),
        count_delay: Duration::from_millis(count_delay_ms),
        answer_delay: Duration::from_millis(answer_delay_ms),
        webhook_secret: Some(WEBHOOK_SECRET.to_owned()),
        ..Options::default()
    })
    .await
}

/// Creates jobs of random length, one in four of which fails, and asks for them now and then; until the proxy is gone or `most` are made.
async fn call(
    caller: String,
    mut chance: Rng,
    address: SocketAddr,
    hook: String,
    told: Arc<Mutex<HashMap<String, String>>>,
    most: u32,
) {
    for n in 0..most {
        let key = format!("{caller}-{n}");
        let input = json!({"run_time_ms": chance.u64(5..250), "fail": chance.u64(0..4) == 0});
        let create = create_with(&json!({"model": "flux-schnell", "input": input, "webhook": hook}));
        let Some(answer) = send(address, create.with("idempotency-key", &key)).await else { return };
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let id = answer.job_id();
        told.lock().expect("no panics").insert(key, id.clone());
        sleep(Duration::from_millis(chance.u64(0..120))).await;
        if chance.bool() && send(address, poll(&id)).await.is_none() {
            return;
        }
    }
}

impl Program {
    /// Waits until no webhook is due, or waits for a job that has an id.
    async fn owes_nothing(&self, point: u64) {
        until(format!("even at point {point}"), || async {
            let list = self.admin("/api/v1/webhooks").await;
            let mut rows = list["webhooks"].as_array().expect("a list").iter();
            let owed = rows.any(|row| row["state"] == "due" || (row["state"] == "waiting" && !row["job"].is_null()));
            (!owed, list)
        })
        .await;
    }
}

/// Takes webhooks, and counts.
struct Receiver {
    /// Job, `webhook-id`, whether it failed.
    hits: Mutex<Vec<(String, String, bool)>>,
    delay: Duration,
}

impl Receiver {
    /// With the URL where it takes them.
    async fn listen(delay_ms: u64) -> (Arc<Self>, String) {
        let receiver = Arc::new(Self { hits: Mutex::default(), delay: Duration::from_millis(delay_ms) });
        let address = server::listen(&receiver).await;
        (receiver, format!("http://{address}/hook"))
    }

    fn failed(&self, job: &str) -> bool {
        self.hits.lock().expect("no panics").iter().any(|(of, _, failed)| of == job && *failed)
    }

    /// Deliveries, and the ids that each job had.
    fn counts(&self) -> (u64, HashMap<String, HashSet<String>>) {
        let hits = self.hits.lock().expect("no panics");
        let mut ids: HashMap<String, HashSet<String>> = HashMap::new();
        for (job, id, _) in hits.iter() {
            ids.entry(job.clone()).or_default().insert(id.clone());
        }
        (hits.len() as u64, ids)
    }
}

impl Answers for Receiver {
    async fn answer(self: Arc<Self>, head: Parts, body: Option<Bytes>) -> Response<Full<Bytes>> {
        // What a killed process did not send whole was not delivered.
        if let Some(body) = body {
            let said: Value = serde_json::from_slice(&body).expect("JSON");
            let job = said["job_id"].as_str().expect("an id");
            let id = head.headers["webhook-id"].to_str().expect("text");
            let hit = (job.to_owned(), id.to_owned(), said["status"] == "failed");
            self.hits.lock().expect("no panics").push(hit);
        }
        sleep(self.delay).await;
        says(200, "")
    }
}
