//! Refusals over the limit that follow each other: for a second they all say the same, but for their ids and the milliseconds to wait. What a
//! thread said last is kept whole; copying a map of fields takes half of what making one takes.

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Response, StatusCode};

use crate::protocol::Family;
use crate::proxy::headers::REQUEST_ID;
use crate::proxy::rejection::{RETRY_AFTER_MS, Rejection, millis_up, whole_seconds};
use crate::proxy::values::Values;

use super::{Told, limits};

/// All that the answer tells, but for its id and milliseconds.
#[derive(PartialEq, Eq)]
struct Said {
    family: Family,
    /// Its limit, its window, and whole seconds to wait.
    refused: (u32, Duration, u64),
    limits: Option<limits::Numbers>,
}

struct Last {
    said: Said,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

thread_local! {
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

/// The answer to a call over the limit that was not tried and costs nothing; `None` where it is another.
pub(super) fn answer(rejection: &Rejection, family: Family, told: &Told<'_>) -> Option<(Parts, Bytes)> {
    let Rejection::RateLimited { limit, window, retry_in } = *rejection else { return None };
    let priced = told.charge.is_some() || told.credits.is_some() || told.credits_left.is_some();
    if priced || retry_in.is_zero() || !told.is_untried() {
        return None;
    }
    let limits = told.view.map(|view| limits::Numbers::of(view, told.wall));
    let said = Said { family, refused: (limit, window, whole_seconds(retry_in)), limits };
    LAST.with_borrow_mut(|last| {
        let last = match last {
            Some(last) if last.said == said => last,
            _ => last.insert(Last::say(said, rejection, told)),
        };
        let (mut head, ()) = Response::new(()).into_parts();
        (head.status, head.headers) = (last.status, last.headers.clone());
        head.headers.insert(REQUEST_ID, told.request_id.clone());
        head.headers.insert(RETRY_AFTER_MS, Values::new().number(millis_up(retry_in)).take());
        Some((head, last.body.clone()))
    })
}

impl Last {
    fn say(said: Said, rejection: &Rejection, told: &Told<'_>) -> Self {
        let (head, body) = rejection.response(said.family).into_parts();
        let mut headers = head.headers;
        super::tell(&mut headers, told);
        Self { said, status: head.status, headers, body }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use http::HeaderValue;

    use crate::proxy::quota::View;

    use super::*;

    const W: Duration = Duration::from_secs(60);

    fn limited(limit: u32, millis: u64) -> Rejection {
        Rejection::RateLimited { limit, window: W, retry_in: Duration::from_millis(millis) }
    }

    /// What it says, with the fields in an order of their own.
    fn text(head: &HeaderMap, body: &Bytes) -> String {
        let mut fields: Vec<_> = head.iter().map(|field| format!("{field:?}")).collect();
        fields.sort();
        format!("{fields:?} {body:?}")
    }

    #[test]
    fn whatever_was_said_before_an_answer_is_what_it_would_be_alone() {
        let ids = [HeaderValue::from_static("a"), HeaderValue::from_static("b")];
        for (number, (limit, millis, remaining, family)) in [
            (60, 1_200, 0, Family::Native),
            (60, 1_100, 0, Family::Native),
            (60, 900, 0, Family::Native),
            (60, 900, 1, Family::Native),
            (300, 900, 1, Family::Native),
            (300, 900, 1, Family::OpenAi),
            (60, 1_200, 0, Family::Native),
        ]
        .into_iter()
        .enumerate()
        {
            let view = View { limit, window: W, remaining, reset_in: Duration::from_millis(millis) };
            let told = Told {
                request_id: &ids[number % 2],
                queued: Duration::ZERO,
                upstream: Duration::ZERO,
                attempts: 0,
                view: Some(view),
                charge: None,
                credits: None,
                credits_left: None,
                wall: UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            };
            let rejection = limited(limit, millis);
            let (head, body) = answer(&rejection, family, &told).expect("over the limit");
            let (mut alone, alone_body) = rejection.response(family).into_parts();
            super::super::tell(&mut alone.headers, &told);
            assert_eq!((head.status, text(&head.headers, &body)), (alone.status, text(&alone.headers, &alone_body)));
            let told = Told { attempts: 1, ..told };
            assert!(answer(&rejection, family, &told).is_none(), "it was tried");
        }
    }
}
