//! Credits as whole millionths: sums are exact.

use std::fmt;
use std::ops::{Add, AddAssign};

/// Millionths of a credit in a credit.
const MICRO: u64 = 1_000_000;

/// An amount of credits, in millionths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The most that a setting may say: a billion credits.
    pub const MOST: Self = Self(1_000_000_000 * MICRO);

    /// Whole credits.
    #[must_use]
    pub const fn whole(credits: u64) -> Self {
        Self(credits.saturating_mul(MICRO))
    }

    /// Of a fraction; `None` if it is negative, has more than six decimals or is beyond [`Amount::MOST`].
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number between 0 and 10^15, as was checked before"
    )]
    pub fn of(credits: f64) -> Option<Self> {
        let micro = credits * 1e6;
        let whole = micro.round();
        // Decimals are not exact in binary; what is meant is.
        ((0.0..=1e15).contains(&whole) && (micro - whole).abs() < 1e-3).then_some(Self(whole as u64))
    }

    /// What `tokens` cost at this price for a thousand; rounded up, at most [`Amount::MOST`].
    pub(crate) fn for_tokens(self, tokens: u64) -> Self {
        let micro = (u128::from(self.0) * u128::from(tokens)).div_ceil(1_000);
        Self(u64::try_from(micro).unwrap_or(u64::MAX)).min(Self::MOST)
    }

    pub(crate) const fn micro(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_micro(micro: u64) -> Self {
        Self(micro)
    }

    pub(crate) fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// For programs: a whole number where it is one.
    pub(crate) fn json(self) -> serde_json::Value {
        if self.0.is_multiple_of(MICRO) { (self.0 / MICRO).into() } else { self.float().into() }
    }

    /// For metrics.
    #[allow(clippy::cast_precision_loss, reason = "shown, not reckoned with")]
    pub(crate) fn float(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// `12`, `0.5`.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / MICRO, self.0 % MICRO);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        let sum = (0..10).fold(Amount::ZERO, |sum, _| sum + Amount::of(0.1).expect("a price"));
        assert_eq!((sum, sum.to_string()), (Amount::whole(1), "1".into()));
        assert_eq!(Amount::of(0.0025).expect("a price").to_string(), "0.0025");
        assert_eq!(Amount::of(12.340_001).expect("a price").to_string(), "12.340001");
        for wrong in [-1.0, 0.000_000_5, f64::NAN, f64::INFINITY, 1e10] {
            assert_eq!(Amount::of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tokens_are_rounded_up() {
        let price = Amount::of(2.0).expect("a price");
        assert_eq!(price.for_tokens(1_500), Amount::whole(3));
        assert_eq!(Amount::from_micro(1).for_tokens(1), Amount::from_micro(1));
        assert_eq!(Amount::MOST.for_tokens(u64::MAX), Amount::MOST);
    }
}
