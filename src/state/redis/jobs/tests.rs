//! The script in a real redis-server, by the server's own clock.

use tokio::time::sleep;

use crate::state::redis::store::{Member, Store, doctored};

use super::*;

/// One replica.
struct Replica {
    link: JobsLink,
    jobs: config::Jobs,
}

impl Replica {
    async fn call(&self, asks: &[Ask], answers: &[Bytes]) -> Result<Vec<Heard>, Failure> {
        self.link.call(asks, answers, &self.jobs).await
    }
}

impl Store {
    /// What lives is known for a minute, what has ended for half a second.
    fn link(&self, me: &str) -> Replica {
        let second = Duration::from_secs(1);
        let link = JobsLink {
            server: self.server(),
            script: Script::new(RULES),
            keys: PARTS.map(|part| format!("{{x}}:{part}")),
            me: me.into(),
            hold: second,
            lease: second,
        };
        let jobs = config::Jobs {
            max_age: second * 59,
            uncertain: second,
            result_ttl: second / 2,
            hold: Duration::ZERO,
            shared: false,
        };
        Replica { link, jobs }
    }
}

async fn one(link: &Replica, ask: Ask) -> Heard {
    link.call(&[ask], &[]).await.expect("it answers").remove(0)
}

async fn put(link: &Replica, put: Put, answer: &[u8]) -> Heard {
    let put = Put { body: (!answer.is_empty()).then_some(2), code: Some(200), age: Some(0), ..put };
    let bodies: Vec<Bytes> = (!answer.is_empty()).then(|| answer.to_vec().into()).into_iter().collect();
    link.call(&[Ask::Put(put)], &bodies).await.expect("it answers").remove(0)
}

fn get(id: &str, v: u64) -> Ask {
    Ask::Get { id: id.into(), v, idle: false }
}

fn state(id: &str, status: &str) -> Put {
    let text = |text: &str| text.to_owned();
    Put {
        id: id.into(),
        account: text("main"),
        client: text("web"),
        model: text("m"),
        status: text(status),
        ..Put::default()
    }
}

fn own(id: &str, status: &str) -> Put {
    Put { own: true, ..state(id, status) }
}

fn end(id: &str, how: &str) -> Put {
    Put { end: Some(how.into()), ..state(id, how) }
}

#[tokio::test]
async fn the_owner_keeps_a_job_and_the_first_end_stands() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    let told = put(&a, own("j", "queued"), b"{\"\xff\":1}").await;
    assert_eq!((told.v, told.owner.as_deref()), (1, Some("a")));
    // "a" is no member: as if it had not been heard of for long.
    store.knows(Duration::ZERO, &[]).await;
    let heard = one(&b, get("j", 0)).await;
    assert_eq!((heard.status.as_str(), heard.client.as_str(), heard.gone), ("queued", "web", true));
    assert_eq!(heard.answer.as_deref(), Some(&b"{\"\xff\":1}"[..]), "byte for byte");
    assert!(one(&b, get("j", 1)).await.same);
    assert_eq!(one(&b, get("k", 0)).await, Heard::default());
    // A state without an answer keeps what is known; one with the same answer keeps that.
    put(&a, Put { same: true, ..own("j", "processing") }, b"").await;
    let heard = one(&b, get("j", 1)).await;
    assert_eq!((heard.v, heard.status.as_str(), heard.answer.is_some()), (2, "processing", true));
    let nothing = Put { code: None, age: None, ..own("j", "unknown") };
    let said = a.call(&[Ask::Put(nothing)], &[]).await.expect("it answers").remove(0);
    assert_eq!((said.v, one(&b, get("j", 0)).await.status.as_str()), (3, "processing"));
    put(&b, end("j", "cancelled"), b"").await;
    let late = put(&a, end("j", "succeeded"), b"{}").await;
    assert_eq!(late.end.as_deref(), Some("cancelled"));
    let heard = one(&a, get("j", 0)).await;
    assert_eq!((heard.end.as_deref(), heard.owner.as_deref(), heard.answer), (Some("cancelled"), Some("a"), None));
    sleep(Duration::from_millis(600)).await;
    put(&a, own("other", "queued"), b"{}").await;
    assert_eq!(one(&a, get("j", 0)).await, Heard::default(), "forgotten in time");
    assert_eq!(one(&a, get("other", 0)).await.v, 1);
}

#[tokio::test]
async fn an_end_may_be_known_before_its_job() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    put(&b, end("j", "succeeded"), b"{}").await;
    let told = put(&a, own("j", "queued"), b"{}").await;
    assert_eq!((told.end.as_deref(), told.owner.as_deref()), (Some("succeeded"), Some("a")));
}

#[tokio::test]
async fn answers_together_are_bounded() {
    let store = Store::start().await;
    let mut a = store.link("a");
    a.jobs.result_ttl = Duration::from_secs(60);
    let answer = vec![b'x'; LONGEST];
    let most = usize::try_from(MOST_BYTES).expect("small") / LONGEST;
    for n in 0..most + 3 {
        put(&a, end(&format!("j{n}"), "succeeded"), &answer).await;
        if n == 0 {
            put(&a, own("live", "queued"), b"{}").await;
        }
    }
    let last = one(&a, get(&format!("j{}", most + 2), 0)).await;
    assert_eq!(last.answer.map(|answer| answer.len()), Some(LONGEST));
    assert_eq!(one(&a, get("j0", 0)).await, Heard::default());
    assert_eq!(one(&a, get("live", 0)).await.v, 1);
}

#[tokio::test]
async fn answers_of_live_jobs_are_bounded_too_and_make_no_room_by_being_forgotten() {
    let store = Store::start().await;
    let a = store.link("a");
    let answer = vec![b'x'; LONGEST];
    let most = usize::try_from(MOST_BYTES).expect("small") / LONGEST;
    for n in 0..=most {
        put(&a, own(&format!("j{n}"), "queued"), &answer).await;
    }
    let first = one(&a, get("j0", 0)).await;
    assert_eq!((first.v, first.answer.map(|answer| answer.len())), (1, Some(LONGEST)));
    let last = one(&a, get(&format!("j{most}"), 0)).await;
    assert_eq!((last.v, last.status.as_str(), last.answer), (1, "queued", None), "its state is known");
    // Of one that was told before only the state is left too, and its room is another's.
    put(&a, own("j0", "processing"), b"{}").await;
    put(&a, own(&format!("j{most}"), "processing"), &vec![b'y'; LONGEST - 2]).await;
    let last = one(&a, get(&format!("j{most}"), 0)).await;
    assert_eq!(last.answer.map(|answer| answer.len()), Some(LONGEST - 2));
    put(&a, own("j1", "processing"), b"").await;
    put(&a, own("j2", "processing"), &vec![b'y'; LONGEST]).await;
    let second = one(&a, get("j2", 0)).await;
    assert_eq!((second.status.as_str(), second.answer.map(|answer| answer.len())), ("processing", Some(LONGEST)));
}

#[tokio::test]
async fn what_is_told_is_kept_for_as_long_as_the_configuration_says_then() {
    let store = Store::start().await;
    let mut a = store.link("a");
    a.jobs.result_ttl = Duration::from_millis(1);
    put(&a, end("short", "succeeded"), b"{}").await;
    // A reload.
    a.jobs.result_ttl = Duration::from_secs(60);
    put(&a, end("long", "succeeded"), b"{}").await;
    sleep(Duration::from_millis(10)).await;
    put(&a, own("other", "queued"), b"{}").await;
    assert_eq!(one(&a, get("short", 0)).await, Heard::default());
    assert_eq!(one(&a, get("long", 0)).await.v, 1);
}

#[tokio::test]
async fn one_at_a_time_delivers_and_once() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    let claim = |lease| Ask::Claim { message: "msg_1".into(), row: 1, lease };
    let tried = |done, lease| Ask::Tried { message: "msg_1".into(), row: 1, done, lease };
    let is_ours = |heard: Heard| !heard.done && heard.wait.is_none();
    assert!(is_ours(one(&a, claim(200)).await));
    assert!(is_ours(one(&a, claim(200)).await), "it is its own already");
    let second = Ask::Claim { message: "msg_1".into(), row: 2, lease: 200 };
    assert!(one(&a, second).await.wait.is_some(), "two rows of one replica deliver once");
    let wait = one(&b, claim(200)).await.wait.expect("another's");
    assert!((1..=200).contains(&wait), "{wait}");
    sleep(Duration::from_millis(wait + 50)).await;
    assert!(is_ours(one(&b, claim(60_000)).await), "who has it is gone");
    assert!(one(&a, claim(200)).await.wait.is_some());
    one(&b, tried(false, 100)).await;
    assert!(one(&a, claim(200)).await.wait.is_some(), "it rests until its next attempt");
    one(&b, tried(true, 0)).await;
    assert!(one(&a, claim(200)).await.done && one(&b, claim(200)).await.done);
    one(&a, tried(false, 200)).await;
    assert!(one(&b, claim(200)).await.done, "a word that comes late undoes nothing");
    one(&a, tried(false, 0)).await;
    assert!(is_ours(one(&b, claim(200)).await), "replayed");
}

#[tokio::test]
async fn what_its_replica_does_not_deliver_goes_to_one_who_asks() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    let hook = Hook { target: "http://app/".into(), completed: true, ..Hook::default() };
    let due = |message: &str, body: Option<usize>| Ask::Due {
        message: message.into(),
        job: "j".into(),
        end: "succeeded".into(),
        hook: hook.clone(),
        lease: 300,
        body,
        text: Bytes::new(),
    };
    let orphan = || Ask::Orphan { lease: 60_000 };
    let claim = |lease| Ask::Claim { message: "m1".into(), row: 1, lease };
    let tried = |done, lease| Ask::Tried { message: "m1".into(), row: 1, done, lease };
    a.call(&[due("m1", Some(2))], &[Bytes::from_static(b"{\"\xff\":1}")]).await.expect("it answers");
    assert_eq!(one(&b, orphan()).await, Heard::default(), "its replica has a while to claim it");
    one(&a, claim(200)).await;
    one(&a, tried(false, 400)).await;
    sleep(Duration::from_millis(320)).await;
    assert_eq!(one(&b, orphan()).await, Heard::default(), "it rests with its replica");
    sleep(Duration::from_millis(150)).await;
    let left = one(&b, orphan()).await;
    assert_eq!((left.message.as_deref(), left.job.as_str(), left.end.as_deref()), (Some("m1"), "j", Some("succeeded")));
    assert_eq!((left.answer.as_deref(), &left.hooks[..]), (Some(&b"{\"\xff\":1}"[..]), std::slice::from_ref(&hook)));
    assert_eq!(one(&a, orphan()).await, Heard::default(), "one replica has it");
    one(&b, tried(true, 0)).await;
    // What was delivered is not due again, whoever says so late, and nothing of it is left.
    one(&a, due("m1", None)).await;
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:hooks", "mm1"]).await, None);
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:hooks", "bm1"]).await, None);
    assert_eq!(store.asked::<Option<String>>(&["ZSCORE", "{x}:lapses", "mm1"]).await, None);
    one(&a, due("m2", None)).await;
    sleep(Duration::from_millis(320)).await;
    store.knows(Duration::ZERO, &[Member::called("a", "life")]).await;
    let theirs = one(&b, Ask::Orphan { lease: 100 }).await;
    assert_eq!(theirs, Heard::default(), "only its replica has its body, and that one is about");
    store.knows(Duration::ZERO, &[]).await;
    sleep(Duration::from_millis(150)).await;
    let left = one(&b, orphan()).await;
    assert_eq!((left.message.as_deref(), left.answer), (Some("m2"), None), "m1 is not there any more");
}

#[tokio::test]
async fn a_token_tells_what_is_owed() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    let hook = Hook { target: "http://app/".into(), completed: true, ..Hook::default() };
    one(&a, Ask::Owe { token: "t".into(), hook: hook.clone() }).await;
    let token = |token: &str, job: Option<&str>| Ask::Token { token: token.into(), job: job.map(str::to_owned) };
    assert_eq!(one(&b, token("t", None)).await.hooks.first(), Some(&hook));
    assert!(one(&b, token("u", Some("j"))).await.unsure, "nothing is known of the account: it may be told again");
    store.knows(Duration::ZERO, &[]).await;
    assert_eq!(one(&b, token("u", Some("j"))).await, Heard::default());
    let bound = Hook { job: Some("j".into()), ..hook.clone() };
    assert_eq!(one(&b, token("t", Some("j"))).await.hooks.first(), Some(&bound));
    assert_eq!(one(&b, token("t", Some("k"))).await.hooks.first(), Some(&bound), "the first stands");
    assert_eq!(one(&a, token("t", None)).await.hooks.first(), Some(&bound));
    one(&a, Ask::Owe { token: "t".into(), hook: hook.clone() }).await;
    assert_eq!(one(&b, token("t", None)).await.hooks.first(), Some(&bound), "told again, its job stays");
    let hook = Hook { token: Some("t".into()), ..hook };
    put(&a, Put { hooks: vec![hook.clone()], ..own("j", "queued") }, b"{}").await;
    put(&a, own("j", "processing"), b"{}").await;
    assert_eq!(one(&b, get("j", 0)).await.hooks, std::slice::from_ref(&hook));
    // All is lost, and the job told again.
    store.run(&["DEL", "{x}:jobs", "{x}:hooks"]).await;
    put(&a, Put { hooks: vec![hook.clone()], ..own("j", "processing") }, b"{}").await;
    let bound = Hook { job: Some("j".into()), ..hook };
    assert_eq!(one(&b, token("t", None)).await.hooks.first(), Some(&bound));
}

#[tokio::test]
async fn what_nobody_waits_for_comes_in_parts() {
    let store = Store::start().await;
    let a = store.link("a");
    let ids: Vec<String> = (0..20).map(|n| format!("j{n}")).collect();
    for id in &ids {
        put(&a, own(id, "queued"), &vec![b'x'; LONGEST]).await;
    }
    let mut known = vec![0; ids.len()];
    for most in [17, 3, 0] {
        let asks: Vec<Ask> =
            ids.iter().zip(&known).map(|(id, v)| Ask::Get { id: id.clone(), v: *v, idle: true }).collect();
        let heard = a.call(&asks, &[]).await.expect("it answers");
        assert_eq!(heard.iter().filter(|heard| heard.answer.is_some()).count(), most);
        known = heard.iter().map(|heard| heard.v).collect();
    }
    assert!(one(&a, get("j19", 0)).await.answer.is_some(), "who waits is answered");
}

#[tokio::test]
async fn a_step_of_the_server_s_clock_takes_no_job_from_its_replica() {
    let store = Store::start().await;
    let (a, b) = (store.link("a"), store.link("b"));
    let hour = Duration::from_secs(3_600);
    store.knows(hour, &[Member { silent: hour, ..Member::called("a", "life") }]).await;
    put(&a, own("j", "queued"), b"{}").await;
    let heard = one(&b, get("j", 0)).await;
    assert_eq!((heard.owner.as_deref(), heard.gone), (Some("a"), false));
    assert_eq!(put(&b, own("j", "queued"), b"{}").await.owner.as_deref(), Some("a"));
    // Silent for seven leases, as those who called have seen, though the clock was set back meanwhile.
    let silent = Member { silent: Duration::ZERO, aged: Duration::from_secs(7), ..Member::called("a", "life") };
    store.knows(Duration::ZERO, &[silent]).await;
    assert!(one(&b, get("j", 0)).await.gone);
    assert_eq!(put(&b, own("j", "queued"), b"{}").await.owner.as_deref(), Some("b"));
}

#[tokio::test]
async fn scripts_of_several_versions_tell_each_other_of_jobs() {
    let store = Store::start().await;
    let mut newer = store.link("a");
    newer.link.script = Script::new(&doctored(
        RULES,
        &[
            ("    job.account, job.client", "    job.weight = { 7 }\n    job.account, job.client"),
            ("    local r = {\n", "    local r = { weight = job.weight,\n"),
            ("    local r = { owner = job.owner }", "    local r = { owner = job.owner, weight = 7 }"),
        ],
    ));
    let mut older = store.link("b");
    older.link.script = Script::new(&doctored(
        RULES,
        &[
            ("if newer then return newer end", ""),
            ("            if hook.token then owe(hook.token, hook, o.id) end\n", ""),
            ("redis.call('HSET', hooks, 'd' .. message, by", "redis.call('HSET', hooks, 'd' .. message, q.me"),
        ],
    ));
    let this = store.link("c");
    let hook = Hook { target: "http://app/".into(), token: Some("t".into()), ..Hook::default() };
    put(&newer, Put { hooks: vec![hook.clone()], ..own("j", "queued") }, b"{}").await;
    for replica in [&older, &this] {
        let heard = one(replica, get("j", 0)).await;
        assert_eq!((heard.status.as_str(), heard.answer.as_deref()), ("queued", Some(&b"{}"[..])));
        assert_eq!(heard.hooks, std::slice::from_ref(&hook));
    }
    // Taken over by the oldest: what the newest has added is left where it is.
    put(&older, Put { take: true, ..state("j", "processing") }, b"{}").await;
    assert!(store.asked::<Option<String>>(&["HGET", "{x}:jobs", "j"]).await.expect("known").contains("\"weight\":[7]"));
    let heard = one(&newer, get("j", 1)).await;
    assert_eq!((heard.v, heard.owner.as_deref()), (2, Some("b")));
    // A claim in the words of before stands too.
    let claim = || Ask::Claim { message: "msg_1".into(), row: 1, lease: 60_000 };
    assert_eq!(one(&older, claim()).await.wait, None);
    assert!(one(&this, claim()).await.wait.is_some());
}

#[tokio::test]
async fn an_account_that_a_newer_version_keeps_is_left_alone() {
    let store = Store::start().await;
    let a = store.link("a");
    store.run(&["HSET", "{x}:account", "version", "2"]).await;
    let refused = a.call(&[Ask::Put(own("j", "queued"))], &[]).await.expect_err("refused");
    assert!(refused.to_string().contains("newer version"), "{refused}");
    assert_eq!(store.asked::<Option<String>>(&["HGET", "{x}:jobs", "j"]).await, None);
}
