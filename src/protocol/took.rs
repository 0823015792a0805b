//! How long a job took, as its last answer tells: a number of seconds, or the moments at which it began and ended.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::pointer::{self, Members, Pointer};

/// Moments this much finer than what lies between them are taken as exact: run times are not learned more finely.
const EXACT: u32 = 200;

/// The run time of a job, from its acceptance to its end, as the upstream's clock saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Took {
    /// No shorter, and no longer than `most`; the same where it is exact.
    pub(crate) least: Duration,
    pub(crate) most: Duration,
}

impl Took {
    pub(crate) fn exactly(took: Duration) -> Self {
        Self { least: took, most: took }
    }
}

/// Where a protocol's last answers tell it. What is not a number or a moment is passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TellsTime {
    /// Seconds.
    pub(crate) secs: Vec<Pointer>,
    /// When the job was accepted or, where that is not told, when it began to run.
    pub(crate) begun: Vec<Pointer>,
    /// When it ended.
    pub(crate) ended: Vec<Pointer>,
}

impl TellsTime {
    pub(crate) fn read(&self, members: &Members<'_>) -> Option<Took> {
        let secs = |value: &RawValue| Duration::try_from_secs_f64(value.get().parse().ok()?).ok();
        if let Some(took) = first(&self.secs, members, secs) {
            return Some(Took::exactly(took));
        }
        first(&self.begun, members, Moment::read)?.until(first(&self.ended, members, Moment::read)?)
    }
}

fn first<T>(places: &[Pointer], members: &Members<'_>, read: impl Fn(&RawValue) -> Option<T>) -> Option<T> {
    places.iter().find_map(|at| read(at.first(members)?))
}

/// A moment, cut to so many nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Moment {
    nanos: i128,
    cut: Duration,
}

impl Moment {
    /// A text as in RFC 3339, or a number of seconds, milliseconds or microseconds since 1970: they are told apart by their size.
    fn read(value: &RawValue) -> Option<Self> {
        let Some(text) = pointer::text(value) else { return Self::epoch(value.get()) };
        let nanos = text.parse::<Timestamp>().ok()?.as_nanosecond();
        let fraction = text.split_once(['.', ',']).map_or("", |(_, rest)| rest);
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        Some(Self { nanos, cut: Duration::from_nanos(1_000_000_000 / 10_u64.pow(u32::try_from(digits).ok()?.min(9))) })
    }

    fn epoch(number: &str) -> Option<Self> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: u64 = whole.parse().ok()?;
        // As seconds these would be the years 5138 and three million.
        let unit: u64 = match whole {
            0..100_000_000_000 => 1_000_000_000,
            100_000_000_000..100_000_000_000_000 => 1_000_000,
            100_000_000_000_000..100_000_000_000_000_000 => 1_000,
            _ => return None,
        };
        // Nanoseconds and what is finer change nothing.
        let fraction = &fraction[..fraction.len().min(9)];
        let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
        let part = if fraction.is_empty() { 0 } else { u128::from(fraction.parse::<u64>().ok()?) };
        let nanos = u128::from(whole) * u128::from(unit) + part * u128::from(unit) / u128::from(scale);
        Some(Self { nanos: i128::try_from(nanos).ok()?, cut: Duration::from_nanos(unit / scale) })
    }

    /// `None` where the other is earlier.
    fn until(self, other: Self) -> Option<Took> {
        let between = Duration::from_nanos(u64::try_from(other.nanos - self.nanos).ok()?);
        let cut = self.cut.max(other.cut);
        if cut * EXACT <= between {
            return Some(Took::exactly(between));
        }
        Some(Took { least: between.saturating_sub(cut), most: between + cut })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn between(begun: &str, ended: &str) -> Option<(f64, f64)> {
        let places = |text: &str| vec![Pointer::parse(text).expect("a pointer")];
        let tells = TellsTime { secs: Vec::new(), begun: places("/from"), ended: places("/to") };
        let body = format!(r#"{{"from": {begun}, "to": {ended}}}"#);
        let took = tells.read(&Members::of(body.as_bytes()).expect("an object"))?;
        Some((took.least.as_secs_f64(), took.most.as_secs_f64()))
    }

    #[test]
    fn two_moments_tell_a_run_time_as_exactly_as_they_are_given() {
        let exact = Some((3.25, 3.25));
        assert_eq!(between(r#""2026-03-01T09:00:00.100Z""#, r#""2026-03-01T09:00:03.350000Z""#), exact);
        assert_eq!(between(r#""2026-03-01T09:00:00.100+09:00""#, r#""2026-03-01t00:00:03.350z""#), exact, "time zones");
        assert_eq!(between("1772355600.100", "1772355603.350"), exact);
        assert_eq!(between("1772355600100", "1772355603350"), exact, "milliseconds");
        assert_eq!(between("1772355600100000", r#""2026-03-01T09:00:03.350Z""#), exact, "microseconds and a text");
        let whole = Some((2.0, 4.0));
        assert_eq!(between(r#""2026-03-01T09:00:00Z""#, r#""2026-03-01T09:00:03Z""#), whole);
        assert_eq!(between("1772355600", "1772355603"), whole);
        assert_eq!(between("1772355600", "1772355600"), Some((0.0, 1.0)), "within one second");
        assert_eq!(between("1772355600", "1772355900"), Some((300.0, 300.0)), "as fine as anything is learned");
    }

    #[test]
    fn what_cannot_be_is_no_run_time() {
        let good = r#""2026-03-01T09:00:03Z""#;
        assert_eq!(between(good, r#""2026-03-01T09:00:02Z""#), None, "it ends before it begins");
        assert_eq!(between("0", "9000000000"), Some((9e9, 9e9)), "no look will agree");
        assert_eq!(between("0", "99999999999"), None);
        assert_eq!(between("-1", good), None);
        for odd in
            ["null", "true", "{}", "[]", "\"\"", "\"soon\"", "\"2026-03-01\"", "1e9", "1.5e9", "99999999999999999999"]
        {
            let (from, to) = (between(odd, good), between("1", odd));
            assert!(from.is_none() && to.is_none(), "{odd}: {from:?} {to:?}");
        }
        assert_eq!(between(r#""9999-12-30T21:00:00Z""#, r#""9999-12-30T21:00:01Z""#), Some((0.0, 2.0)));
        assert_eq!(
            between(r#""-009999-01-02T01:59:59Z""#, r#""9999-12-30T21:00:00Z""#),
            None,
            "more than can be counted"
        );
    }

    #[test]
    fn seconds_go_before_moments_and_the_first_place_that_has_one_counts() {
        let places = |texts: &[&str]| texts.iter().map(|text| Pointer::parse(text).expect("a pointer")).collect();
        let tells = TellsTime {
            secs: places(&["/metrics/total_time"]),
            begun: places(&["/created_at", "/started_at"]),
            ended: places(&["/completed_at", "/finished_at"]),
        };
        let read = |body: &str| tells.read(&Members::of(body.as_bytes()).expect("an object")).map(|took| took.most);
        let body = r#"{"metrics": {"total_time": 9.5}, "created_at": 10.00, "started_at": 14.00, "completed_at": null,
            "finished_at": 20.25}"#;
        assert_eq!(read(body), Some(Duration::from_secs_f64(9.5)));
        assert_eq!(read(&body.replace("9.5", "-9.5")), Some(Duration::from_secs_f64(10.25)));
        assert_eq!(read(&body.replace("metrics", "m").replace("created", "c")), Some(Duration::from_secs_f64(6.25)));
        assert_eq!(read(&body.replace("metrics", "m").replace("finished", "f")), None, "half a pair");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_passed_over(from in ".{0,40}", to in "[0-9.:TZ+-]{0,40}") {
            let text = |text: &str| serde_json::to_string(text).expect("JSON");
            let _ = between(&text(&from), &text(&to));
        }

        #[test]
        fn whatever_the_cut_the_true_run_time_lies_within(begun in 0_u64..4_000_000_000_000, took in 0_u64..10_000_000) {
            let (took_secs, ended) = (Duration::from_millis(took).as_secs_f64(), begun + took);
            let (least, most) = between(&(begun / 1000).to_string(), &(ended / 1000).to_string()).expect("read");
            prop_assert!(least <= took_secs + 1.0 && took_secs <= most + 1.0, "{} {} {}", least, took_secs, most);
            if most > least {
                prop_assert!(least <= took_secs && took_secs <= most);
            }
        }
    }
}
