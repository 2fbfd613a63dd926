//! Calendar dates in UTC, and the RFC 3339 format.

use std::time::Duration;

/// A calendar date and time in UTC, to the second.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// Year, month from 1, day from 1.
    pub date: (u64, u64, u64),
    /// Hour, minute, second.
    pub time: (u64, u64, u64),
    /// Day of the week; 0 is Sunday.
    pub weekday: usize,
}

/// Converts seconds since 1970 (the Unix epoch) to a calendar date and time.
pub fn moment(seconds: u64) -> Moment {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counts years from March in cycles of 400 years (146 097 days), so that the leap day is the
    // last day of a year.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + carry;
    // 1970-01-01 was a Thursday.
    let weekday = ((days + 4) % 7) as usize;
    Moment { date: (year, month, day), time: (second / 3600, second / 60 % 60, second % 60), weekday }
}

/// Formats a time since the Unix epoch as `2026-01-31T12:00:00.000Z` (RFC 3339).
pub fn utc(since_epoch: Duration) -> String {
    let Moment { date: (year, month, day), time: (hour, minute, second), .. } = moment(since_epoch.as_secs());
    let milliseconds = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), expected);
        }
    }
}
