//! What the upstream's answer says about its own books: `X-RateLimit-*` and `Retry-After`.
//!
//! Pure parsing. Units are not documented, so they are told apart by size: a reset under 10^9 is a delta in seconds, up to 10^11 epoch
//! seconds, above that epoch milliseconds. Resets in the past or more than an hour ahead are discarded. Points in time are the upstream's:
//! they are compared with the answer's own `Date` where it has one (RFC 9110 §6.6.1), not with our clock, which may differ from it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, HeaderValue};

/// Header of the places left in the upstream's window.
pub(crate) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
/// Header of the end of the upstream's window.
pub(crate) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// Header of the upstream's limit.
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");

const LONGEST: Duration = Duration::from_secs(3600);

/// The limits an answer tells of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Feedback {
    /// Requests left in the upstream's window.
    pub(crate) remaining: Option<u32>,
    /// Until the upstream's window ends.
    pub(crate) reset_in: Option<Duration>,
    /// How long the upstream asks us to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Feedback {
    /// Reads the headers of an answer received at `wall` by our clock, which few answers need.
    pub(crate) fn read(headers: &HeaderMap, wall: impl FnOnce() -> SystemTime) -> Self {
        // In one pass: a look-up of each would hash each. Of those that come more than once, the first.
        let (mut remaining, mut reset, mut after, mut date) = (None, None, None, None);
        for (name, value) in headers {
            let field = match name.as_str() {
                "x-ratelimit-remaining" => &mut remaining,
                "x-ratelimit-reset" => &mut reset,
                "retry-after" => &mut after,
                "date" => &mut date,
                _ => continue,
            };
            field.get_or_insert(value);
        }
        let remaining = text(remaining).and_then(|value| value.parse().ok());
        if (reset, after) == (None, None) {
            return Self { remaining, ..Self::default() };
        }
        let wall = text(date).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or_else(wall);
        Self {
            remaining,
            reset_in: text(reset).and_then(|value| reset_in(value, wall)),
            retry_after: text(after).and_then(|value| retry_after(value, wall)),
        }
    }
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok()).map(str::trim)
}

fn reset_in(value: &str, wall: SystemTime) -> Option<Duration> {
    const DELTA_BELOW: f64 = 1e9;
    const SECONDS_UP_TO: f64 = 1e11;
    let value: f64 = value.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
    if value < DELTA_BELOW {
        return Duration::try_from_secs_f64(value).ok().filter(|delta| *delta <= LONGEST);
    }
    let seconds = if value <= SECONDS_UP_TO { value } else { value / 1000.0 };
    let at = UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
    at.duration_since(wall).ok().filter(|delta| *delta <= LONGEST)
}

/// RFC 9110 §10.2.3: whole seconds or an HTTP date. Longer than a day is taken as a day.
fn retry_after(value: &str, wall: SystemTime) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)).min(DAY));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(wall).unwrap_or_default().min(DAY))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn read(pairs: &[(&'static str, &str)]) -> Feedback {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_str(value).expect("a header value"));
        }
        Feedback::read(&headers, wall)
    }

    #[test]
    fn reset_is_understood_in_all_three_units() {
        let delta = Some(Duration::from_secs(30));
        assert_eq!(read(&[("x-ratelimit-reset", "30")]).reset_in, delta);
        assert_eq!(read(&[("x-ratelimit-reset", "1800000030")]).reset_in, delta);
        assert_eq!(read(&[("x-ratelimit-reset", "1800000030000")]).reset_in, delta);
    }

    #[test]
    fn resets_past_or_far_ahead_are_discarded() {
        for value in ["1799999999", "1800003601", "3601", "-5", "soon", "NaN", "inf", ""] {
            assert_eq!(read(&[("x-ratelimit-reset", value)]).reset_in, None, "{value}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(read(&[("retry-after", "7")]).retry_after, Some(Duration::from_secs(7)));
        assert_eq!(read(&[("retry-after", "99999999999999999999")]).retry_after, Some(Duration::from_secs(86_400)));
        let date = httpdate::fmt_http_date(wall() + Duration::from_secs(9));
        assert_eq!(read(&[("retry-after", &date)]).retry_after, Some(Duration::from_secs(9)));
        assert_eq!(read(&[("retry-after", "later")]).retry_after, None);
    }

    #[test]
    fn points_in_time_are_compared_with_the_upstream_s_own_clock() {
        for skewed in [wall() - Duration::from_secs(1800), wall() + Duration::from_secs(1800)] {
            let at = skewed + Duration::from_secs(20);
            let epoch = at.duration_since(UNIX_EPOCH).expect("after it").as_secs().to_string();
            let (date, later) = (httpdate::fmt_http_date(skewed), httpdate::fmt_http_date(at));
            let told = read(&[("date", &date), ("x-ratelimit-reset", &epoch), ("retry-after", &later)]);
            let expected = Some(Duration::from_secs(20));
            assert_eq!((told.reset_in, told.retry_after), (expected, expected), "{date}");
        }
        let told = read(&[("date", "yesterday"), ("x-ratelimit-reset", "1800000030")]);
        assert_eq!(told.reset_in, Some(Duration::from_secs(30)), "a Date that is none does not count");
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic_or_wait_beyond_a_day(value in "[ -~]{0,40}") {
            let seen = read(&[("date", &value), ("retry-after", &value), ("x-ratelimit-reset", &value), ("x-ratelimit-remaining", &value)]);
            prop_assert!(seen.retry_after.unwrap_or_default() <= Duration::from_secs(86_400));
            prop_assert!(seen.reset_in.unwrap_or_default() <= LONGEST);
        }
    }
}
