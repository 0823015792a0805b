//! The answer on its way down: an upstream's, cleaned, or our own; both with the fields that every answer has.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};

use crate::credits::Receipt;
use crate::credits::amount::Amount;
use crate::protocol::auth::KeyHeaders;
use crate::protocol::{Family, Meaning, Protocol};

use super::App;
use super::cors;
use super::dispatch::{Passed, Refusal};
use super::finish::{Finish, Record};
use super::headers::{CHARGE, REQUEST_ID, remove_where, strip_hop_by_hop};
use super::jobs::Charge;
use super::queue::Class;
use super::quota::View;
use super::quota::feedback::{LIMIT, REMAINING, RESET};
use super::rejection::{LIMIT_SOURCE, Rejection, SHOULD_RETRY};
use super::retry::{Reply, ReplyBody};
use super::values::Values;

pub(crate) use self::relay::RelayBody;

/// Whether an upstream's answer can be passed on at all.
pub(crate) mod framing;

/// The fields that tell limits.
mod limits;

/// Refusals over the limit, many a second.
mod storm;

/// The body.
mod relay;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// What the call cost.
const CREDITS_CHARGED: HeaderName = HeaderName::from_static("sluicegate-credits-charged");
/// What it costs unless its tokens come to something else.
const CREDITS_RESERVED: HeaderName = HeaderName::from_static("sluicegate-credits-reserved");
/// What is left of today's budget.
const CREDITS_REMAINING: HeaderName = HeaderName::from_static("sluicegate-credits-remaining");

/// The upstream's own limits and its name for the request, under names that cannot be taken for ours.
const UPSTREAM_OWN: [(HeaderName, HeaderName); 4] = [
    (REQUEST_ID, HeaderName::from_static("sluicegate-upstream-request-id")),
    (LIMIT, HeaderName::from_static("sluicegate-upstream-ratelimit-limit")),
    (REMAINING, HeaderName::from_static("sluicegate-upstream-ratelimit-remaining")),
    (RESET, HeaderName::from_static("sluicegate-upstream-ratelimit-reset")),
];

impl App {
    /// Passes on what the upstream answered.
    pub(crate) fn relay(&self, passed: Passed, mut finish: Box<Finish>) -> Response<RelayBody> {
        let Passed { reply: Reply { mut head, body, attempts, upstream }, charge, queued, credits, meter, .. } = passed;
        let record = &mut finish.record;
        (record.status, record.attempts, record.queued, record.upstream) = (head.status, attempts, queued, upstream);
        (record.charge, record.credits) = (charge, credits);
        finish.meter = meter;
        clean(&mut head.headers);
        if let Some(account) = record.account {
            keep_secret(&mut head.headers, &self.accounts[account].key);
        }
        // Our own answer to OPTIONS is for browsers, and took no attempt.
        if attempts > 0 || record.method != Method::OPTIONS {
            remove_where(&mut head.headers, cors::is_theirs);
        }
        if self.retry.statuses.contains(&head.status) {
            // We have tried as often as it makes sense: SDKs must not multiply that.
            head.headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if head.status == StatusCode::TOO_MANY_REQUESTS {
            head.headers.insert(LIMIT_SOURCE, HeaderValue::from_static("upstream"));
        }
        tell(&mut head.headers, &self.told(&finish.record));
        tell_more(&mut head.headers, &finish.record);
        let body = match body {
            ReplyBody::Whole(bytes) => {
                // Whole is what was read, as it is about jobs, or a refusal.
                let turned = finish.record.reached().and_then(|host| self.turned(&bytes, &host));
                if turned.is_some() {
                    fit(&mut head.headers);
                }
                whole(turned.unwrap_or(bytes), &mut head.headers, finish)
            }
            ReplyBody::Stream { prefix, rest } => RelayBody::stream(prefix, rest, self.idle_timeout, finish),
        };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// An answer about a job with the upstream's URLs as ours at `host`; `None` where there are none.
    fn turned(&self, body: &[u8], host: &Authority) -> Option<Bytes> {
        self.protocol.rewrite(body, |url| Some(format!("http://{host}{}", self.target.path_of(url)?)))
    }

    /// Answers by ourselves, in the error form of the API family that was called.
    pub(crate) fn reject(&self, refusal: &Refusal, family: Family, mut finish: Box<Finish>) -> Response<RelayBody> {
        let Refusal { rejection, charge, spent } = refusal;
        let record = &mut finish.record;
        // It may have been refused before anybody asked whose it is, and what.
        record.client = record.client.or_else(|| self.clients.everyone());
        record.account = record.account.or_else(|| Some(self.account_of[record.client?]));
        if record.class.is_none()
            && matches!(self.protocol.meaning(&record.method, record.uri.path()), Meaning::Create(_))
        {
            record.class = Some(Class::Create);
        }
        (record.status, record.code) = (rejection.status(), Some(rejection.code()));
        (record.attempts, record.queued, record.upstream) = (spent.attempts, spent.queued, spent.upstream);
        record.charge = (record.class == Some(Class::Create)).then_some(*charge);
        record.credits = spent.credits;
        let told = self.told(&finish.record);
        if let Some((mut head, body)) = storm::answer(rejection, family, &told) {
            tell_more(&mut head.headers, &finish.record);
            let body = whole(body, &mut head.headers, finish);
            return Response::from_parts(head, body);
        }
        let (mut head, mut body) = rejection.response(family).into_parts();
        if matches!(rejection, Rejection::NotYours) {
            body = self.protocol.not_found.clone().into();
        }
        tell(&mut head.headers, &told);
        tell_more(&mut head.headers, &finish.record);
        let body = whole(body, &mut head.headers, finish);
        Response::from_parts(head, body)
    }

    /// What is told of a call that has come to its end.
    fn told<'a>(&self, record: &'a Record) -> Told<'a> {
        let owner = record.client.zip(record.account);
        Told {
            request_id: &record.request_id,
            queued: record.queued,
            upstream: record.upstream,
            attempts: record.attempts,
            view: owner.and_then(|(client, account)| self.accounts[account].queue.view(client)),
            charge: record.charge,
            credits: record.credits,
            credits_left: owner.and_then(|(client, account)| self.credits.remaining(account, client)),
            wall: self.clock.wall(),
        }
    }
}

/// For pages of another origin, and what rules of the account have changed.
fn tell_more(headers: &mut HeaderMap, record: &Record) {
    if let Some(origin) = &record.origin {
        cors::allow(headers, origin);
    }
    for (name, value) in &record.applied {
        headers.append(name, value.clone());
    }
}

/// What is told with every answer.
struct Told<'a> {
    request_id: &'a HeaderValue,
    queued: Duration,
    upstream: Duration,
    attempts: u32,
    view: Option<View>,
    charge: Option<Charge>,
    credits: Option<Receipt>,
    credits_left: Option<Amount>,
    wall: SystemTime,
}

impl Told<'_> {
    /// It has taken no time worth showing.
    fn is_untried(&self) -> bool {
        const SHOWN: Duration = Duration::from_micros(50);
        self.attempts == 0 && self.queued < SHOWN && self.upstream < SHOWN
    }
}

/// The authority by which the caller reached us, where URLs in answers are turned to it. The guard checks the name.
pub(crate) fn reached(protocol: &Protocol, headers: &HeaderMap) -> Option<HeaderValue> {
    if protocol.rewrite.is_empty() { None } else { headers.get(header::HOST).cloned() }
}

/// Fields that were true of the body before URLs in it were turned.
fn fit(headers: &mut HeaderMap) {
    for name in ["content-length", "content-md5", "digest", "content-digest", "repr-digest"] {
        headers.remove(name);
    }
}

/// Cleans an upstream answer's fields.
fn clean(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    // Most answers have none: a look-up of each would hash each.
    if !headers.keys().any(|name| name == REQUEST_ID || name.as_str().starts_with("x-ratelimit-")) {
        return;
    }
    for (theirs, kept) in &UPSTREAM_OWN {
        if let Some(value) = headers.remove(theirs) {
            headers.insert(kept, value);
        }
    }
}

/// A body held whole; HEAD is answered without it, which nobody else sees to over HTTP/2 (RFC 9110 §9.3.2).
fn whole(bytes: Bytes, headers: &mut HeaderMap, finish: Box<Finish>) -> RelayBody {
    if finish.record.method != Method::HEAD {
        return RelayBody::whole(bytes, finish);
    }
    if !bytes.is_empty() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
    }
    RelayBody::whole(Bytes::new(), finish)
}

/// Removes fields in which the upstream tells us our key.
pub(crate) fn keep_secret(headers: &mut HeaderMap, key: &KeyHeaders) {
    while let Some(name) = headers.iter().find(|(_, value)| key.is_in(value)).map(|(name, _)| name.clone()) {
        tracing::warn!(
            field = name.as_str(),
            "the upstream's answer has the account's key in a field, which was removed"
        );
        headers.remove(name);
    }
}

/// Adds our fields to an answer, whoever made it.
fn tell(headers: &mut HeaderMap, told: &Told<'_>) {
    headers.reserve(8);
    headers.insert(REQUEST_ID, told.request_id.clone());
    headers.append(SERVER_TIMING, timing(told));
    if let Some(charge) = told.charge {
        headers.insert(CHARGE, HeaderValue::from_static(charge.name()));
    }
    match told.credits {
        Some(Receipt::Charged(amount)) => {
            drop(headers.insert(CREDITS_CHARGED, credits(amount)));
        }
        Some(Receipt::Reserved(amount)) => {
            headers.insert(CREDITS_RESERVED, credits(amount));
        }
        None => {}
    }
    if let Some(left) = told.credits_left {
        headers.insert(CREDITS_REMAINING, credits(left));
    }
    let Some(view) = told.view else { return };
    limits::tell(headers, view, told.wall);
}

fn credits(amount: Amount) -> HeaderValue {
    Values::new().text(&amount.to_string()).take()
}

/// How long the call waited here, and there.
fn timing(told: &Told<'_>) -> HeaderValue {
    if told.is_untried() {
        return HeaderValue::from_static("queue;dur=0.0, upstream;dur=0.0, attempts;desc=\"0\"");
    }
    let mut values = Values::new();
    values.text("queue;dur=").millis(told.queued).text(", upstream;dur=").millis(told.upstream);
    values.text(", attempts;desc=\"").number(told.attempts).text("\"").take()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn every_answer_tells_limits_and_timings() {
        let mut headers = HeaderMap::new();
        headers.insert(REMAINING, HeaderValue::from_static("7"));
        headers.insert(REQUEST_ID, HeaderValue::from_static("theirs"));
        headers.insert("keep-alive", HeaderValue::from_static("timeout=5"));
        clean(&mut headers);
        let view =
            View { limit: 60, window: Duration::from_secs(60), remaining: 3, reset_in: Duration::from_millis(1500) };
        let told = Told {
            request_id: &HeaderValue::from_static("r1"),
            queued: Duration::from_millis(12),
            upstream: Duration::from_millis(340),
            attempts: 2,
            view: Some(view),
            charge: Some(Charge::Accepted),
            credits: Some(Receipt::Charged(Amount::whole(2))),
            credits_left: Amount::of(47.5),
            wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        };
        tell(&mut headers, &told);
        let expected = [
            ("sluicegate-upstream-ratelimit-remaining", "7"),
            ("sluicegate-upstream-request-id", "theirs"),
            ("x-request-id", "r1"),
            ("server-timing", "queue;dur=12.0, upstream;dur=340.0, attempts;desc=\"2\""),
            ("sluicegate-charge", "accepted"),
            ("sluicegate-credits-charged", "2"),
            ("sluicegate-credits-remaining", "47.5"),
            ("x-ratelimit-limit", "60"),
            ("x-ratelimit-remaining", "3"),
            ("x-ratelimit-reset", "1800000002"),
            ("ratelimit-policy", "\"requests\";q=60;w=60"),
            ("ratelimit", "\"requests\";r=3;t=2"),
        ];
        assert_eq!(headers.len(), expected.len());
        for (name, value) in expected {
            assert_eq!(headers[name], value, "{name}");
        }
    }
}
