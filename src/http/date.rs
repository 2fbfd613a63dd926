//! The `Date` field of responses (RFC 9110, sections 5.6.7 and 6.6.1).

use crate::util::{self, time::Moment};

/// A time in seconds as an IMF-fixdate: `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Date([u8; LENGTH]);

impl Date {
    /// Returns the date for a Unix time in seconds. Times after the year 9999, which the format
    /// cannot express, become the last second of that year.
    pub fn at(seconds: u64) -> Self {
        let Moment { date: (year, month, day), time: (hour, minute, second), weekday } =
            util::time::moment(seconds.min(LAST));
        let month = usize::try_from(month).unwrap_or_default().saturating_sub(1);
        let month = MONTHS.get(month).copied().unwrap_or_default();
        let weekday = WEEKDAYS.get(weekday).copied().unwrap_or_default();
        let line = format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT");
        let mut own = [b' '; LENGTH];
        for (own, byte) in own.iter_mut().zip(line.bytes()) {
            *own = byte;
        }
        Self(own)
    }

    /// Returns the value of the field.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

const LENGTH: usize = "Sun, 06 Nov 1994 08:49:37 GMT".len();

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

const WEEKDAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::Date;

    #[test]
    fn dates() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_709_251_199, "Thu, 29 Feb 2024 23:59:59 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let date = Date::at(seconds);
            assert_eq!(std::str::from_utf8(date.as_bytes()), Ok(expected), "{seconds}");
        }
    }
}
