use std::num::NonZeroU32;

use super::*;

const W: Duration = Duration::from_secs(60);

fn plan_of(pacing: config::Pacing, limit: Option<u32>) -> config::Plan {
    let requests = limit.map(|limit| config::Requests {
        limit: NonZeroU32::new(limit).expect("not zero"),
        window: W,
        jitter: Duration::from_millis(1500),
    });
    config::Plan {
        name: "test".into(),
        requests,
        concurrent_jobs: None,
        pacing,
        llm: config::Llm::Shared,
        credits_per_day: None,
    }
}

fn quota(pacing: config::Pacing, limit: u32, now: Instant) -> Quota {
    Quota::new(&plan_of(pacing, Some(limit)), now)
}

fn send(quota: &mut Quota, now: Instant) -> (Claim, Option<Stamp>) {
    quota.ready(now).expect("ready");
    let mut claim = quota.reserve(now);
    let stamp = quota.sent(&mut claim, now);
    (claim, stamp)
}

fn remaining(left: u32, reset: u64) -> Feedback {
    Feedback { remaining: Some(left), reset_in: Some(Duration::from_secs(reset)), retry_after: None }
}

#[test]
fn the_pace_of_use_begins_anew_when_the_window_is_empty() {
    let start = Instant::now();
    let mut quota = quota(config::Pacing::Burst, 60, start);
    let secs = Duration::from_secs;
    let shown = |quota: &mut Quota, after| {
        let usage = quota.usage(start + secs(after)).expect("a rate");
        (usage.used, usage.since)
    };
    assert_eq!(shown(&mut quota, 0), (0.0, 0.0));
    for after in [0, 20] {
        let (claim, stamp) = send(&mut quota, start + secs(after));
        let _ = quota.answered(claim, stamp, Feedback::default(), None, start + secs(after));
    }
    assert_eq!(shown(&mut quota, 30), (2.0, 30.0));
    assert_eq!(shown(&mut quota, 61), (1.0, 41.0), "the first has left");
    assert_eq!(shown(&mut quota, 81), (0.0, 0.0));
}

#[test]
fn a_429_closes_the_gate_then_lets_one_probe_through() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 60, now);
    let (claim, stamp) = send(&mut q, now);
    let told = Feedback { retry_after: Some(Duration::from_secs(5)), ..Feedback::default() };
    assert!(q.answered(claim, stamp, told, Some(Refused::Window), now), "the account switches to pacing");
    let later = now + Duration::from_secs(5);
    assert_eq!(q.ready(now), Err(Wait::Until(later)));
    let (probe, stamp) = send(&mut q, later);
    assert!(probe.probe);
    assert_eq!(q.ready(later), Err(Wait::ForEvent(Some(later + PROBE_REFUSED_WITHIN))));
    assert!(!q.answered(probe, stamp, Feedback::default(), None, later));
    let Err(Wait::Until(paced)) = q.ready(later) else { panic!("paced now") };
    assert!(paced > later && paced < later + Duration::from_secs(2));
    assert!(q.ready(paced).is_ok());
}

#[test]
fn a_probe_that_is_lost_or_never_sent_passes_its_role_on() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Burst, 60, now);
    let (claim, stamp) = send(&mut q, now);
    let _ = q.answered(claim, stamp, Feedback::default(), Some(Refused::Window), now);
    let open = now + W;
    let (probe, _) = send(&mut q, open);
    q.lost(probe, open);
    assert!(q.ready(open).is_ok());
    let probe = q.reserve(open);
    q.release(probe, open);
    assert!(q.ready(open).is_ok());
}

#[test]
fn the_upstream_s_remaining_lowers_ours_and_never_raises_it() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 10, now);
    let (claim, stamp) = send(&mut q, now);
    let _ = q.answered(claim, stamp, remaining(1, 20), None, now);
    assert_eq!(q.drift(now), 8, "somebody else used eight places");
    assert_eq!(q.drift(now + Duration::from_secs(20)), 0, "they are theirs no longer");
    let (claim, stamp) = send(&mut q, now);
    assert_eq!(q.ready(now), Err(Wait::Until(now + Duration::from_secs(20))));
    let _ = q.answered(claim, stamp, remaining(500, 20), None, now);
    assert_eq!(q.drift(now), 0);
    assert_eq!(q.view(now).map(|view| view.remaining), Some(8));
}

/// Such as one that is told by a clock which is wrong by half an hour.
#[test]
fn a_reset_far_ahead_is_believed_for_a_window_only() {
    let now = Instant::now();
    let longest = W + quota(config::Pacing::Auto, 2, now).rate.expect("a rate").plan.jitter;
    let mut q = quota(config::Pacing::Auto, 10, now);
    let (claim, stamp) = send(&mut q, now);
    let _ = q.answered(claim, stamp, remaining(0, 1800), None, now);
    assert_eq!(q.ready(now), Err(Wait::Until(now + longest)));
    assert!(q.ready(now + longest).is_ok());

    let mut q = quota(config::Pacing::Auto, 10, now);
    let (claim, stamp) = send(&mut q, now);
    let _ = q.answered(claim, stamp, remaining(0, 1800), Some(Refused::Window), now);
    assert_eq!(q.ready(now), Err(Wait::Until(now + longest)));
}

#[test]
fn a_full_window_of_our_own_is_not_taken_for_foreign_use() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 3, now);
    let sent: Vec<_> = (0..3).map(|_| send(&mut q, now)).collect();
    for (claim, stamp) in sent {
        let _ = q.answered(claim, stamp, remaining(0, 60), None, now);
    }
    assert_eq!(q.drift(now), 0);
    assert_eq!(q.ready(now), Err(Wait::Until(now + W)));
    assert!(q.ready(now + W).is_ok());
}

#[test]
fn every_refusal_gives_everything_back() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Paced, 60, now);
    let claim = q.reserve(now);
    q.release(claim, now);
    let (mut claim, stamp) = send(&mut q, now);
    q.unsent(&mut claim, stamp);
    q.release(claim, now);
    assert_eq!(q.view(now).map(|view| (view.remaining, view.reset_in)), Some((2, Duration::ZERO)));
    assert_eq!(q.used(now), Some((0, 60)));
}

#[test]
fn earliest_counts_grants_that_may_come_back_as_free() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 1, now);
    let mut claim = q.reserve(now);
    assert_eq!(q.earliest(now), now);
    q.sent(&mut claim, now);
    assert_eq!(q.earliest(now), now + W);
    q.lost(claim, now);
}

#[test]
fn a_plan_that_gets_a_rate_counts_its_first_window_as_full() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 2, now);
    let limited = plan_of(config::Pacing::Auto, Some(2));
    q.replan(&plan_of(config::Pacing::Auto, None), now);
    let free = q.reserve(now);
    let (mut sent, stamp) = send(&mut q, now);
    assert_eq!(stamp, None, "there is no log");
    q.replan(&limited, now);
    let open = now + W + Duration::from_millis(1500);
    assert_eq!(q.ready(now), Err(Wait::Until(open)));
    // Claims of before give nothing back here, and take a place when they are sent now.
    q.release(free, now);
    assert!(q.ready(open).is_ok());
    let stamp = q.sent(&mut sent, open);
    assert_eq!(q.used(open), Some((1, 2)));
    q.unsent(&mut sent, stamp);
    q.release(sent, open);
    assert_eq!(q.used(open), Some((0, 2)));
}

#[test]
fn another_pacing_takes_effect_and_a_switch_to_pacing_outlives_a_reload() {
    let now = Instant::now();
    let mut q = quota(config::Pacing::Auto, 60, now);
    let (claim, stamp) = send(&mut q, now);
    assert!(q.answered(claim, stamp, Feedback::default(), Some(Refused::Window), now));
    q.replan(&plan_of(config::Pacing::Auto, Some(90)), now);
    assert!(q.paced(), "the upstream has proven stricter");
    q.replan(&plan_of(config::Pacing::Burst, Some(90)), now);
    assert!(!q.paced());
    q.replan(&plan_of(config::Pacing::Paced, Some(90)), now);
    assert!(q.paced());
    q.replan(&plan_of(config::Pacing::Auto, Some(90)), now);
    assert!(!q.paced());
}
