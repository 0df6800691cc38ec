//! Days and months, in UTC: what a budget is for, and what the ledger counts by.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::Date;

const SECONDS: u64 = 86_400;
/// 1970-01-01 as a Julian day.
const EPOCH: i32 = 2_440_588;

/// A day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(u32);

impl Day {
    /// The day so many days after 1970-01-01.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The day of this moment.
    pub fn of(at: SystemTime) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u32::try_from(since.as_secs() / SECONDS).unwrap_or(u32::MAX))
    }

    /// Days since 1970-01-01.
    pub fn number(self) -> u32 {
        self.0
    }

    /// When it begins.
    pub fn start(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(u64::from(self.0) * SECONDS)
    }

    /// So many days before.
    #[must_use]
    pub fn before(self, days: u32) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// The day after.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The first day of its month.
    #[must_use]
    pub fn month(self) -> Self {
        self.before(u32::from(self.date().day()) - 1)
    }

    /// The first day of the month after.
    #[must_use]
    pub fn next_month(self) -> Self {
        // No month has more than 31 days, and each has more than 28.
        Self(self.month().0.saturating_add(31)).month()
    }

    fn date(self) -> Date {
        let julian = i32::try_from(self.0)
            .ok()
            .and_then(|day| day.checked_add(EPOCH));
        julian
            .and_then(|day| Date::from_julian_day(day).ok())
            .unwrap_or(Date::MAX)
    }
}

/// `2026-11-26`.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = self.date();
        let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        let day = Day::of(UNIX_EPOCH + Duration::from_secs(1_772_323_199));
        assert_eq!(day.to_string(), "2026-02-28");
        assert_eq!(day.next().to_string(), "2026-03-01");
        assert_eq!(day.month().to_string(), "2026-02-01");
        assert_eq!(day.next_month().to_string(), "2026-03-01");
        assert_eq!(
            Day::of(day.next().start() - Duration::from_nanos(1)),
            day,
            "to its last moment"
        );
        let december = Day::of(UNIX_EPOCH + Duration::from_secs(1_798_675_200));
        assert_eq!(december.to_string(), "2026-12-31");
        assert_eq!(december.next_month().to_string(), "2027-01-01");
        assert_eq!(Day::new(0).month(), Day::new(0));
        assert_eq!(Day::new(u32::MAX).to_string(), "9999-12-31");
    }
}
