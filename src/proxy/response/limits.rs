//! The fields of every answer that tell limits. Answers that follow each other tell mostly the same, and a storm of refusals for a second
//! the very same: what a thread wrote last is kept.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::proxy::quota::View;
use crate::proxy::quota::feedback::{LIMIT, REMAINING, RESET};
use crate::proxy::values::Values;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Values, and what they tell.
type Written<K, const N: usize> = Option<(K, [HeaderValue; N])>;

#[derive(Default)]
struct Last {
    /// Limit and window in seconds: limit, policy.
    plan: Written<(u32, u64), 2>,
    /// Free places, seconds and epoch second until there are more: remaining, reset, both for the draft's field.
    left: Written<(u32, u64, u64), 3>,
}

thread_local! {
    static LAST: RefCell<Last> = const { RefCell::new(Last { plan: None, left: None }) };
}

/// The numbers that a view comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    limit: u32,
    window: u64,
    remaining: u32,
    until: u64,
    reset: u64,
}

impl Numbers {
    /// At this time.
    pub(super) fn of(view: View, wall: SystemTime) -> Self {
        Self {
            limit: view.limit,
            window: seconds_up(view.window),
            remaining: view.remaining,
            until: seconds_up(view.reset_in),
            reset: seconds_up((wall + view.reset_in).duration_since(UNIX_EPOCH).unwrap_or_default()),
        }
    }
}

/// Adds what this view tells at this time. draft-ietf-httpapi-ratelimit-headers-10: quota and window in seconds; what is left and until when.
pub(super) fn tell(headers: &mut HeaderMap, view: View, wall: SystemTime) {
    let Numbers { limit, window, remaining, until, reset } = Numbers::of(view, wall);
    let ([limit, policy], [remaining, reset, left]) = LAST.with_borrow_mut(|last| {
        let plan = written(&mut last.plan, (limit, window), |values| {
            let limits = values.number(limit).take();
            [limits, values.text("\"requests\";q=").number(limit).text(";w=").number(window).take()]
        });
        let left = written(&mut last.left, (remaining, until, reset), |values| {
            let (count, reset) = (values.number(remaining).take(), values.number(reset).take());
            [count, reset, values.text("\"requests\";r=").number(remaining).text(";t=").number(until).take()]
        });
        (plan, left)
    });
    headers.insert(LIMIT, limit);
    headers.insert(REMAINING, remaining);
    headers.insert(RESET, reset);
    headers.insert(RATE_LIMIT_POLICY, policy);
    headers.insert(RATE_LIMIT, left);
}

fn written<K: Copy + PartialEq, const N: usize>(
    last: &mut Written<K, N>,
    told: K,
    write: impl FnOnce(&mut Values) -> [HeaderValue; N],
) -> [HeaderValue; N] {
    match last {
        Some((of, values)) if *of == told => values.clone(),
        _ => last.insert((told, write(&mut Values::new()))).1.clone(),
    }
}

/// Whole seconds, rounded up.
fn seconds_up(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_told_only_while_it_is_true() {
        let told = |limit, remaining, reset_ms, wall_ms| {
            let mut headers = HeaderMap::new();
            let view =
                View { limit, window: Duration::from_secs(60), remaining, reset_in: Duration::from_millis(reset_ms) };
            tell(&mut headers, view, UNIX_EPOCH + Duration::from_millis(wall_ms));
            [LIMIT, REMAINING, RESET, RATE_LIMIT_POLICY, RATE_LIMIT]
                .map(|name| headers[name].to_str().expect("text").to_owned())
        };
        let cases = [
            ((60, 3, 1500, 1000), ["60", "3", "3", "\"requests\";q=60;w=60", "\"requests\";r=3;t=2"]),
            ((60, 3, 1400, 1600), ["60", "3", "3", "\"requests\";q=60;w=60", "\"requests\";r=3;t=2"]),
            ((60, 2, 1400, 1600), ["60", "2", "3", "\"requests\";q=60;w=60", "\"requests\";r=2;t=2"]),
            ((60, 2, 900, 1600), ["60", "2", "3", "\"requests\";q=60;w=60", "\"requests\";r=2;t=1"]),
            ((60, 2, 900, 2600), ["60", "2", "4", "\"requests\";q=60;w=60", "\"requests\";r=2;t=1"]),
            ((61, 2, 900, 2600), ["61", "2", "4", "\"requests\";q=61;w=60", "\"requests\";r=2;t=1"]),
        ];
        for ((limit, remaining, reset, wall), expected) in cases {
            assert_eq!(told(limit, remaining, reset, wall), expected);
        }
    }
}
