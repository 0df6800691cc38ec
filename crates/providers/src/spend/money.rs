//! Money: whole billionths of a US dollar, so that no sum depends on its order.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// What one US dollar is.
const DOLLAR: u64 = 1_000_000_000;
/// The most: what a database's signed number holds, nine billion dollars.
const MOST: u64 = i64::MAX as u64;

/// An amount of US dollars in billionths. It stops at nine billion dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(u64);

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many billionths.
    pub fn new(nanos: u64) -> Self {
        Self(nanos.min(MOST))
    }

    /// Dollars from a setting, to the nearest billionth. What is no number, or less than nothing, is nothing.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and NaN becomes 0"
    )]
    pub fn from_dollars(dollars: f64) -> Self {
        Self::new((dollars * 1e9).round() as u64)
    }

    /// From trillionths, to the nearest billionth.
    pub(super) fn from_picos(picos: u128) -> Self {
        Self::new(u64::try_from(picos.saturating_add(500) / 1000).unwrap_or(MOST))
    }

    /// In billionths.
    pub fn get(self) -> u64 {
        self.0
    }

    /// What is left of it after `other`.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Add for NanoUsd {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::new(self.0.saturating_add(other.0))
    }
}

impl Sum for NanoUsd {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::ZERO, Add::add)
    }
}

/// `$12.50`, and `$0.000123` where two places would show nothing.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dollars, rest) = (self.0 / DOLLAR, self.0 % DOLLAR);
        if self.0 == 0 || self.0 >= DOLLAR {
            return write!(f, "${dollars}.{:02}", rest / 10_000_000);
        }
        let text = format!("{rest:09}");
        let text = text.trim_end_matches('0');
        // At least two places, and no more than three digits that mean something after the first six.
        let places = text.len().clamp(2, if rest < 1000 { 9 } else { 6 });
        write!(f, "$0.{}", &format!("{rest:09}")[..places])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        for (nanos, text) in [
            (0, "$0.00"),
            (1, "$0.000000001"),
            (123_456, "$0.000123"),
            (100_000_000, "$0.10"),
            (12_500_000_000, "$12.50"),
            (u64::MAX, "$9223372036.85"),
        ] {
            assert_eq!(NanoUsd::new(nanos).to_string(), text);
        }
    }

    #[test]
    fn amounts_are_whole_and_bounded() {
        assert_eq!(NanoUsd::from_dollars(0.1).get(), 100_000_000);
        assert_eq!(NanoUsd::from_dollars(-1.0), NanoUsd::ZERO);
        assert_eq!(NanoUsd::from_dollars(f64::NAN), NanoUsd::ZERO);
        assert_eq!(NanoUsd::from_picos(1_499).get(), 1);
        assert_eq!(NanoUsd::from_picos(1_500).get(), 2);
        let most = NanoUsd::from_picos(u128::MAX);
        assert_eq!(most + most, most);
        assert!(i64::try_from(most.get()).is_ok());
    }
}
