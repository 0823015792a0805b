//! Scripts of several versions on one server, as in a rolling update: each replica brings its own. What one has added the others pass over,
//! and leave as it is; what they would misread they leave alone.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use crate::config::Amount;

use super::server::Server;
use super::store::{Store, doctored};
use super::wire::{Lines, Reply, SlotEntry};
use super::*;

const CALL: &str = include_str!("call.lua");
const PARTS: [&str; 7] = ["account", "places", "members", "slots", "turns", "purse", "weights"];

fn terms() -> Terms {
    let plan = config::Plan {
        name: "small".into(),
        requests: None,
        concurrent_jobs: NonZeroU32::new(5),
        pacing: Pacing::Auto,
        llm: config::Llm::Shared,
        credits_per_day: Some(Amount::from_micro(100)),
    };
    let minute = Duration::from_secs(60);
    let jobs =
        config::Jobs { max_age: minute, uncertain: minute, result_ttl: minute, hold: Duration::ZERO, shared: false };
    Terms {
        limit: Some(10),
        window: Duration::from_millis(200),
        jitter: Duration::from_millis(10),
        grant: Duration::from_millis(50),
        lease: Duration::from_millis(400),
        ..Terms::new(&plan, 3, &jobs, 0)
    }
}

/// One replica with a script of some version.
struct Replica {
    server: Server,
    script: Script,
    /// What a request of that version says beside what is known here.
    more: Value,
    id: &'static str,
    seq: u64,
    spent: u64,
    slots: Vec<SlotEntry>,
}

impl Replica {
    fn new(store: &Store, id: &'static str, script: &str) -> Self {
        let (server, script) = (store.server(), Script::new(script));
        Self { server, script, more: json!({}), id, seq: 0, spent: 0, slots: Vec::new() }
    }

    /// This version, and one to come: it keeps more, tells more, and hears more.
    fn newer(store: &Store, id: &'static str) -> Self {
        let script = doctored(
            CALL,
            &[
                ("local r = { now = text(now) }", "local r = { now = text(now), news = { 1, 2 }, weight = q.weight }"),
                ("    keep('last', text(now))", "    keep('last', text(now)) keep('weight', q.weight)"),
                ("account = ask[4] }", "account = ask[4], weight = q.weight }"),
            ],
        );
        Self { more: json!({"weight": 7}), ..Self::new(store, id, &script) }
    }

    /// One from before: it knows nothing of versions, and does not tell who else is there.
    fn older(store: &Store, id: &'static str) -> Self {
        let script = doctored(
            CALL,
            &[
                (
                    "if stored('version') > VERSION then return cjson.encode({ now = text(now), refused = 'newer' }) end",
                    "",
                ),
                ("    keep('version', VERSION)\n", ""),
                ("    if next(others) then r.others = others end\n", ""),
            ],
        );
        Self::new(store, id, &script)
    }

    /// Says who calls, and this.
    async fn call(&mut self, op: &str, said: Value) -> Reply {
        self.seq += 1;
        let (budget, day) = ("100", today());
        let mut request = json!({
            "op": op, "id": self.id, "life": format!("life-of-{}", self.id), "seq": self.seq, "ack": self.seq - 1,
            "purse": { "budget": budget, "offset": 0, "day": day, "spent": self.spent.to_string(), "of": day },
        });
        let terms = serde_json::to_value(Lines::new(&terms())).expect("JSON");
        for more in [terms, self.more.clone(), said] {
            merge(&mut request, more);
        }
        let keys = PARTS.map(|part| format!("{{x}}:{part}"));
        let answer: String = self.server.run(&self.script, &keys, request.to_string()).await.expect("it answers");
        serde_json::from_str(&answer).expect("an answer")
    }

    async fn join(&mut self) -> Reply {
        let slots = serde_json::to_value(&self.slots).expect("JSON");
        self.call("join", json!({ "slots": slots })).await
    }

    /// Asks for a create that costs one.
    async fn start_job(&mut self, job: &str) -> bool {
        let name = format!("life-of-{}:{job}", self.id);
        let ask = json!({ "asks": [[name, name, "local", "main", "1"]] });
        let granted = self.call("call", ask).await.granted == [1];
        if granted {
            self.spent += 1;
            let text = |text: &str| text.to_owned();
            let (client, account, model) = (text("local"), text("main"), text("m"));
            let entry = SlotEntry { slot: name, fence: 1, job: job.into(), model, client, account, paid: None };
            let told = json!({ "slots": [serde_json::to_value(&entry).expect("JSON")] });
            assert_eq!(self.call("call", told).await.refused, None);
            self.slots.push(entry);
        }
        granted
    }

    async fn beat(&mut self) -> Reply {
        let held = self.slots.len();
        self.call("call", json!({ "adopt": held })).await
    }
}

/// Objects into each other.
fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn today() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(since.as_secs() / 86_400).expect("a day")
}

/// Past the hold of a store that was new.
async fn settled() {
    tokio::time::sleep(terms().full() + Duration::from_millis(20)).await;
}

#[tokio::test]
async fn replicas_of_several_versions_keep_one_plan() {
    let store = Store::start().await;
    let mut fleet = [Replica::older(&store, "a"), Replica::new(&store, "b", CALL), Replica::newer(&store, "c")];
    for replica in &mut fleet {
        assert!(replica.join().await.joined);
    }
    settled().await;
    let mut started = 0;
    for n in 0..7 {
        for replica in &mut fleet {
            started += usize::from(replica.start_job(&format!("job-{n}-{}", replica.id)).await);
        }
    }
    assert_eq!(started, 5, "five slots");
    for replica in &mut fleet {
        let reply = replica.beat().await;
        assert_eq!((reply.live, reply.members, reply.odd), (5, 3, false), "{}: {reply:?}", replica.id);
        let purse = reply.purse.expect("a budget");
        assert_eq!((purse.used, purse.frozen), (5, false), "{}", replica.id);
    }
    // What the newest has added is still there after calls of the others.
    let field = ["HGET", "{x}:account", "weight"];
    assert_eq!(store.asked::<Option<String>>(&field).await.as_deref(), Some("7"));
    // The newest is gone, and the oldest takes its jobs over.
    let [older, this, newer] = &mut fleet;
    let mut adopted = 0;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for replica in [&mut *older, &mut *this] {
            let taken = replica.beat().await.adopted;
            adopted += taken.len();
            replica.slots.extend(taken);
        }
    }
    assert_eq!(adopted, newer.slots.len());
    // One is updated, and one is put back to the version before: all of them go on with what is there.
    let [older, this, _] = fleet;
    let mut updated = Replica { slots: older.slots, spent: older.spent, seq: older.seq, ..Replica::newer(&store, "a") };
    let mut put_back = Replica { slots: this.slots, spent: this.spent, seq: this.seq, ..Replica::older(&store, "b") };
    for replica in [&mut updated, &mut put_back] {
        assert_eq!(replica.join().await.refused, None);
        assert_eq!(replica.beat().await.live, 5);
        assert!(!replica.start_job("one-more").await, "no slot is free");
    }
}

#[tokio::test]
async fn what_an_older_version_would_misread_it_leaves_alone_and_says_so() {
    let store = Store::start().await;
    let mut this = Replica::new(&store, "a", CALL);
    assert!(this.join().await.joined);
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:account", "version"]).await.as_deref(), Some("1"));
    let next = doctored(CALL, &[("local VERSION = 1", "local VERSION = 2")]);
    let mut newer = Replica::new(&store, "b", &next);
    assert!(newer.join().await.joined, "an update may read what is there");
    settled().await;
    let before = store.asked::<Option<String>>(&["HGET", "{x}:account", "age"]).await;
    assert_eq!(this.beat().await.refused.as_deref(), Some("newer"));
    assert_eq!(this.join().await.refused.as_deref(), Some("newer"));
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:account", "age"]).await, before, "nothing was changed");
    assert!(newer.start_job("job").await);
    assert_eq!(newer.beat().await.live, 1);
}

#[tokio::test]
async fn the_part_of_a_day_that_is_over_freezes_none_that_begins() {
    for (days_ago, frozen) in [(0, true), (1, false)] {
        let store = Store::start().await;
        let mut replica = Replica::new(&store, "a", CALL);
        // Of one that is gone, and that may have taken more than was heard of.
        let others = json!({ "purse": { "others": { "gone": [today() - days_ago, "99", false] } } });
        let purse = replica.call("join", others).await.purse.expect("a budget");
        assert_eq!((purse.frozen, purse.used), (frozen, if frozen { 99 } else { 0 }), "{days_ago} days ago");
        settled().await;
        assert_eq!(replica.start_job("job").await, !frozen, "{days_ago} days ago");
    }
}
