//! Which day it is, for a budget that renews at midnight: no step of the clock opens a day early, and none opens one twice.
//!
//! The boot clock bounds how much time can have passed since the wall clock was believed: at the first start in this boot. A day begins
//! when both say so, and a day that has begun does not end by a step back. After a reboot there is only the wall clock to believe.

use std::time::Duration;

use crate::ledger::moment::Moment;

const DAY_MS: i64 = 86_400_000;
/// How far the two clocks drift apart without a step: corrections by NTP.
const SLACK_MS: i64 = 300_000;

/// The day that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Calendar {
    offset_ms: i64,
    /// Days since 1970, at the offset. Never goes back.
    pub(crate) day: i64,
    /// When the wall clock was believed.
    pub(crate) anchor: Moment,
}

impl Calendar {
    /// For the first time.
    pub(crate) fn new(offset: i32, now: Moment) -> Self {
        let offset_ms = i64::from(offset) * 1_000;
        Self { offset_ms, day: day_of(now.wall_ms, offset_ms), anchor: now }
    }

    /// From what an earlier process knew.
    pub(crate) fn resume(offset: i32, day: i64, anchor: Moment, now: &Moment) -> Self {
        let same_boot = anchor.boot == now.boot && !now.boot.is_empty();
        let mut calendar = Self::new(offset, if same_boot { anchor } else { now.clone() });
        calendar.day = day;
        calendar.turn(now);
        calendar
    }

    /// Turns to the day that it is now; true if that, or what is believed, has changed.
    pub(crate) fn turn(&mut self, now: &Moment) -> bool {
        let wall = day_of(now.wall_ms, self.offset_ms);
        let bound = day_of(self.believed_ms(now).saturating_add(SLACK_MS), self.offset_ms);
        if bound < self.day && wall >= self.day {
            // This day has been seen, so the clock was behind when it was believed.
            (self.day, self.anchor) = (wall, now.clone());
            return true;
        }
        let day = wall.min(bound);
        let turned = day > self.day;
        self.day = self.day.max(day);
        turned
    }

    /// How long this day lasts at most, as the clocks stand.
    pub(crate) fn ends_in(&self, now: &Moment) -> Duration {
        let end = (self.day + 1).saturating_mul(DAY_MS).saturating_sub(self.offset_ms);
        let by_wall = end.saturating_sub(now.wall_ms);
        let by_boot = end.saturating_sub(self.believed_ms(now)).saturating_sub(SLACK_MS);
        Duration::from_millis(u64::try_from(by_wall.max(by_boot)).unwrap_or_default())
    }

    fn believed_ms(&self, now: &Moment) -> i64 {
        self.anchor.wall_ms.saturating_add(now.boot_ms.saturating_sub(self.anchor.boot_ms))
    }
}

fn day_of(wall_ms: i64, offset_ms: i64) -> i64 {
    wall_ms.saturating_add(offset_ms).div_euclid(DAY_MS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    /// Noon of day 20,000, then `hours` later by the boot clock, with the wall clock `step` hours off.
    fn at(hours: i64, step: i64) -> Moment {
        let noon = 20_000 * DAY_MS + 12 * HOUR_MS;
        Moment { wall_ms: noon + (hours + step) * HOUR_MS, boot_ms: hours * HOUR_MS + 7, boot: "one".into() }
    }

    fn day(calendar: &mut Calendar, now: &Moment) -> i64 {
        calendar.turn(now);
        calendar.day - 20_000
    }

    #[test]
    fn a_day_ends_at_midnight_of_the_offset() {
        let mut utc = Calendar::new(0, at(0, 0));
        assert_eq!([11, 12, 35, 36].map(|hours| day(&mut utc, &at(hours, 0))), [0, 1, 1, 2]);
        let mut east = Calendar::new(2 * 3600, at(0, 0));
        assert_eq!([9, 10].map(|hours| day(&mut east, &at(hours, 0))), [0, 1]);
        assert_eq!(Calendar::new(0, at(0, 0)).ends_in(&at(1, 0)), Duration::from_secs(11 * 3600));
    }

    #[test]
    fn steps_of_a_day_open_no_budget() {
        let mut calendar = Calendar::new(0, at(0, 0));
        assert_eq!(day(&mut calendar, &at(1, 24)), 0, "forward");
        assert_eq!(day(&mut calendar, &at(2, 0)), 0, "and back");
        assert_eq!(day(&mut calendar, &at(3, -24)), 0, "back");
        assert_eq!(day(&mut calendar, &at(4, 0)), 0, "and forward");
        assert_eq!(day(&mut calendar, &at(12, 0)), 1, "the true midnight");
        assert_eq!(day(&mut calendar, &at(13, -24)), 1, "a day does not come back");
        assert!(calendar.ends_in(&at(13, -24)) > Duration::from_secs(24 * 3600));
        let mut late = Calendar::resume(0, calendar.day, calendar.anchor.clone(), &at(14, 24));
        assert_eq!(day(&mut late, &at(14, 24)), 1, "nor does a restart open one");
    }

    #[test]
    fn a_clock_that_was_wrong_at_boot_is_believed_again_once_it_is_right() {
        let seen = Calendar::new(0, at(0, 0));
        let after_reboot = |now: Moment| Moment { boot: "two".into(), ..now };
        let mut calendar = Calendar::resume(0, seen.day, seen.anchor, &after_reboot(at(0, -24 * 400)));
        assert_eq!(day(&mut calendar, &after_reboot(at(1, -24 * 400))), 0);
        assert_eq!(day(&mut calendar, &after_reboot(at(2, 0))), 0, "set right: the same day goes on");
        assert_eq!(day(&mut calendar, &after_reboot(at(12, 0))), 1);
    }

    proptest! {
        #[test]
        fn never_more_days_than_midnights_that_can_have_passed(
            steps in prop::collection::vec((0_i64..30, -60_i64..60), 1..40),
        ) {
            let mut calendar = Calendar::new(0, at(0, 0));
            let (mut hours, mut last, mut opened) = (0, 0, 0);
            for (passed, step) in steps {
                hours += passed;
                let now = day(&mut calendar, &at(hours, step));
                prop_assert!(now >= last);
                opened += i64::from(now > last);
                last = now;
            }
            prop_assert!(opened <= (hours + 12) / 24, "{opened} in {hours} h");
        }
    }
}
