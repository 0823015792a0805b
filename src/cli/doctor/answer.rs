//! What one answer of the upstream tells: of the key, the clocks and the limits. Pure.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::config::{Account, Plan};

use super::finding::Finding;

/// Beyond it, dates in logs and the day of credits are off.
const NOTICED: Duration = Duration::from_secs(30);
/// Beyond it, receivers refuse signed webhooks (Standard Webhooks), and certificates may seem out of date.
const TOO_FAR: Duration = Duration::from_secs(300);

/// An answer's head, and how it was come by.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Between the request and the answer, by our clock.
    pub(super) wall: SystemTime,
    /// Sent by a running proxy, with its key and in its books.
    pub(super) relayed: bool,
}

impl Answer {
    fn number(&self, names: [&str; 2]) -> Option<u64> {
        let name = if self.relayed { names[1] } else { names[0] };
        self.headers.get(name)?.to_str().ok()?.trim().parse().ok()
    }

    fn limit(&self) -> Option<u64> {
        self.number(["x-ratelimit-limit", "sluicegate-upstream-ratelimit-limit"])
    }

    fn remaining(&self) -> Option<u64> {
        self.number(["x-ratelimit-remaining", "sluicegate-upstream-ratelimit-remaining"])
    }

    /// Written by the running proxy itself (RFC 9209): the upstream was not asked, or did not answer.
    fn refused_here(&self) -> bool {
        let told = self.headers.get("proxy-status").is_some_and(|value| value.as_bytes().starts_with(b"sluicegate"));
        self.relayed && told
    }
}

/// Everything that an answer tells.
pub(super) fn read(account: &Account, answer: &Answer) -> Vec<Finding> {
    if answer.refused_here() {
        let said = format!("account {}: the running proxy answered {} itself", account.name, answer.status);
        return vec![Finding::warn("key", said, "look at its log and `sluicegate usage`, then ask again")];
    }
    let mut findings = vec![key(account, answer)];
    findings.extend(clock(answer));
    // Who is not let in is told nothing of the account's limits.
    if answer.status != StatusCode::UNAUTHORIZED {
        findings.extend(limits(account, answer));
    }
    findings
}

fn key(account: &Account, answer: &Answer) -> Finding {
    let name = &account.name;
    let origin = &account.key_origin;
    let status = answer.status;
    match status.as_u16() {
        401 => {
            let said = format!("account {name}: the upstream refuses the key from {origin} ({status})");
            Finding::fail(
                "key",
                said,
                "make a new key in the API's console, and put it there; is it another environment's?",
            )
        }
        402 => {
            let said =
                format!("account {name}: the key from {origin} is known, but its credits are used up ({status})");
            Finding::warn("key", said, "buy credits, or use another account")
        }
        403 => {
            let said = format!("account {name}: the key from {origin} is known, but may not read jobs ({status})");
            Finding::fail("key", said, "give the key the rights to create and read jobs, or take another")
        }
        429 => {
            let said = format!("account {name}: the upstream refuses for its limits, not for the key ({status})");
            Finding::warn("key", said, "who else uses this key? Wait a minute and ask again")
        }
        300..=399 => {
            let said =
                format!("account {name}: the upstream redirects ({status}), which the proxy never follows with a key");
            Finding::fail("key", said, "write the API's own address into upstream.url")
        }
        500..=599 => {
            let said = format!("account {name}: the upstream is in trouble ({status}); nothing is known of the key");
            Finding::warn("key", said, "ask again later; calls are retried meanwhile")
        }
        _ => Finding::ok("key", format!("account {name}: the key from {origin} is let in (answer {status})")),
    }
}

/// By the upstream's `Date` (RFC 9110 §6.6.1), which has whole seconds.
fn clock(answer: &Answer) -> Option<Finding> {
    let date = answer.headers.get(header::DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let (off, side) = match answer.wall.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let seconds = off.as_secs();
    let said = format!("this machine's clock is {seconds} s {side} the upstream's");
    let way_out = "set the clock by NTP: timedatectl set-ntp true";
    Some(match off {
        off if off > TOO_FAR => {
            Finding::fail("clock", format!("{said}: signed webhooks and certificates may be refused"), way_out)
        }
        off if off > NOTICED => Finding::warn("clock", said, way_out),
        _ => Finding::ok("clock", "agrees with the upstream's, as far as its Date tells"),
    })
}

fn limits(account: &Account, answer: &Answer) -> Option<Finding> {
    let plan: &Plan = &account.plan;
    let (name, limit, remaining) = (&account.name, answer.limit(), answer.remaining());
    let left = remaining.map(|left| format!("{left} left")).unwrap_or_default();
    let Some(requests) = &plan.requests else {
        let told = limit.map(|limit| format!("{limit} a window")).or(remaining.map(|_| left))?;
        let said =
            format!("account {name}: plan {} has no limit of requests, the upstream has one ({told})", plan.name);
        return Some(Finding::warn("limits", said, format!("set plans.{}.requests_per_minute", plan.name)));
    };
    let ours = u64::from(requests.limit.get());
    let (what, window) = (format!("account {name}: plan {}", plan.name), requests.window.as_secs_f64());
    let change = |limit: u64| format!("set plans.{}.requests_per_minute = {limit}", plan.name);
    Some(match (limit, remaining) {
        (Some(limit), _) if limit < ours => {
            let said =
                format!("{what} says {ours} requests in {window} s, the upstream says {limit}: it would answer 429");
            Finding::fail("limits", said, format!("{}, if its window is a minute too", change(limit)))
        }
        (Some(limit), _) if limit > ours => {
            let said = format!("{what} says {ours} requests in {window} s, the upstream {limit}: some are never used");
            Finding::warn(
                "limits",
                said,
                format!("{}, if its window is a minute too, and nobody else uses the key", change(limit)),
            )
        }
        (None, Some(remaining)) if remaining >= ours => {
            let said = format!(
                "{what} says {ours} requests in {window} s, the upstream has {remaining} left: some are never used"
            );
            Finding::warn("limits", said, "is it another plan's key? See the API's console")
        }
        (Some(_), _) => {
            Finding::ok("limits", format!("{what}, {ours} requests in {window} s, as the upstream says; {left}"))
        }
        (None, Some(_)) => {
            Finding::ok("limits", format!("{what} allows {ours} requests in {window} s; the upstream has {left}"))
        }
        (None, None) => Finding::skip("limits", format!("{what}: the upstream does not tell its limits")),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use http::{HeaderName, HeaderValue};

    use super::super::finding::Verdict;
    use super::*;
    use crate::config;

    fn account(plan: &str) -> Account {
        let text = format!("[accounts.a]\nplan = \"p\"\nkey = {{ env = \"KEY\" }}\n[plans.p]\n{plan}\n");
        let env = [("KEY", "cdt_canary"), ("HOME", "/h")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut config = config::load_text(&text, &env.into()).expect("valid");
        let account = config.accounts.remove(0);
        Account { plan: Arc::clone(&account.plan), ..account }
    }

    fn answer(status: u16, relayed: bool, headers: &[(&'static str, &'static str)]) -> Answer {
        let headers =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Answer {
            status: StatusCode::from_u16(status).expect("a status"),
            headers: headers.collect(),
            wall: UNIX_EPOCH + Duration::from_secs(784_111_777),
            relayed,
        }
    }

    fn verdicts(plan: &str, answer: &Answer) -> Vec<(&'static str, Verdict)> {
        read(&account(plan), answer).iter().map(|finding| (finding.check, finding.verdict)).collect()
    }

    const FREE: &str = "requests_per_minute = 60";

    #[test]
    fn a_status_tells_of_the_key() {
        for (status, verdict) in [
            (200, Verdict::Ok),
            (404, Verdict::Ok),
            (410, Verdict::Ok),
            (401, Verdict::Fail),
            (402, Verdict::Warn),
            (403, Verdict::Fail),
            (429, Verdict::Warn),
            (302, Verdict::Fail),
            (503, Verdict::Warn),
        ] {
            assert_eq!(verdicts(FREE, &answer(status, false, &[]))[0], ("key", verdict), "{status}");
        }
    }

    #[test]
    fn a_refusal_of_the_running_proxy_is_not_taken_for_the_upstream_s() {
        let own = answer(401, true, &[("proxy-status", "sluicegate; error=http_request_denied")]);
        assert_eq!(verdicts(FREE, &own), [("key", Verdict::Warn)]);
        let theirs = answer(401, true, &[]);
        assert_eq!(verdicts(FREE, &theirs), [("key", Verdict::Fail)]);
    }

    #[test]
    fn a_date_tells_of_the_clock() {
        let at = |date| verdicts(FREE, &answer(404, false, &[("date", date)]))[1];
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT"), ("clock", Verdict::Ok));
        assert_eq!(at("Sun, 06 Nov 1994 08:48:37 GMT"), ("clock", Verdict::Warn));
        assert_eq!(at("Sun, 06 Nov 1994 08:50:37 GMT"), ("clock", Verdict::Warn));
        assert_eq!(at("Sun, 06 Nov 1994 07:49:37 GMT"), ("clock", Verdict::Fail));
        assert_eq!(at("yesterday").0, "limits", "nothing is said of a date that is none");
    }

    #[test]
    fn limits_are_compared_with_the_plan() {
        let told = |plan, relayed, headers: &[(&'static str, &'static str)]| {
            verdicts(plan, &answer(404, relayed, headers)).last().copied()
        };
        assert_eq!(told(FREE, false, &[("x-ratelimit-limit", "60")]), Some(("limits", Verdict::Ok)));
        assert_eq!(told(FREE, false, &[("x-ratelimit-limit", "30")]), Some(("limits", Verdict::Fail)));
        assert_eq!(told(FREE, false, &[("x-ratelimit-limit", "300")]), Some(("limits", Verdict::Warn)));
        assert_eq!(told(FREE, false, &[("x-ratelimit-remaining", "59")]), Some(("limits", Verdict::Ok)));
        assert_eq!(told(FREE, false, &[("x-ratelimit-remaining", "299")]), Some(("limits", Verdict::Warn)));
        assert_eq!(told("concurrent_jobs = 1", false, &[("x-ratelimit-limit", "9")]), Some(("limits", Verdict::Warn)));
        assert_eq!(told("concurrent_jobs = 1", false, &[]), Some(("key", Verdict::Ok)));
        // Through a proxy, its own limits are not the upstream's.
        let both = [("x-ratelimit-limit", "60"), ("sluicegate-upstream-ratelimit-limit", "10")];
        assert_eq!(told(FREE, true, &both), Some(("limits", Verdict::Fail)));
    }
}
