//! Text rules shared by all modules: which names are allowed, and how foreign text is shown in a log.

use std::{
    fmt::{self, Write},
    time::Duration,
};

use crate::limits;

/// Whether `name` may be the name of a server: `[A-Za-z0-9_.-]`, 1 to `longest` characters.
pub fn is_name(name: &str, longest: usize) -> bool {
    !name.is_empty() && name.len() <= longest && name.bytes().all(is_name_byte)
}

/// Whether a byte may stand in a name.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// A random UUID (RFC 9562, version 4) from 16 random bytes.
pub fn uuid(mut random: [u8; 16]) -> String {
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(random));
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]).join("-")
}

/// A time as people type it: `10`, `10s`, `500ms`, `2m`, `1h`.
pub fn duration(typed: &str) -> Option<Duration> {
    let digits = typed.find(|c: char| !c.is_ascii_digit()).unwrap_or(typed.len());
    let (number, unit) = typed.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u32>().ok().map(|number| Duration::from_millis(u64::from(number) * milliseconds))
}

/// A second of the calendar, in UTC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Moment {
    /// Year, month from 1, day from 1.
    pub date: (u64, u64, u64),
    /// Hour, minute, second.
    pub time: (u64, u64, u64),
    /// Day of the week; 0 is Sunday.
    pub weekday: usize,
}

/// The moment so many seconds after the beginning of 1970.
pub fn moment(seconds: u64) -> Moment {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, in cycles of 400 years (146 097 days), so that the leap day is the last of a year.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + carry;
    // The first day was a Thursday.
    let weekday = ((days + 4) % 7) as usize;
    Moment { date: (year, month, day), time: (second / 3600, second / 60 % 60, second % 60), weekday }
}

/// A point in time, given as what has passed since 1970, in the form `2026-01-31T12:00:00.000Z` (RFC 3339).
pub fn utc(since_epoch: Duration) -> String {
    let Moment { date: (year, month, day), time: (hour, minute, second), .. } = moment(since_epoch.as_secs());
    let milliseconds = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// A size in bytes: digits, and perhaps K or M for 1024 of something (with `iB` or `B` behind, as people write it).
pub fn bytes(typed: &str) -> Option<usize> {
    let typed = typed.trim();
    let end = typed.find(|c: char| !c.is_ascii_digit()).unwrap_or(typed.len());
    let (digits, unit) = typed.split_at(end);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1024,
        "m" | "mb" | "mib" => 1024 * 1024,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(factor)
}

/// A size as [`bytes`] reads it, in the largest unit that leaves no rest.
pub fn size(bytes: usize) -> String {
    let units = [("M", 1024 * 1024), ("K", 1024)];
    let unit = units.into_iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

/// The Levenshtein distance of two texts: bytes to insert, remove or replace to make one the other.
pub fn distance(one: &str, two: &str) -> usize {
    // A row of the table for each byte of `one`: what its beginning costs against each beginning of `two`.
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (place, byte) in one.bytes().enumerate() {
        let mut left = place + 1;
        let mut diagonal = std::mem::replace(&mut row[0], left);
        for (above, other) in row.iter_mut().skip(1).zip(two.bytes()) {
            let cost = (diagonal + usize::from(byte != other)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, cost);
            left = cost;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Foreign text made fit for one log line: control and direction characters escaped, length bounded.
pub fn show(text: &str) -> Shown<'_> {
    show_up_to(text, limits::LOG_TEXT)
}

/// As [`show`], with a bound of its own, in bytes.
pub fn show_up_to(text: &str, longest: usize) -> Shown<'_> {
    Shown { text, longest }
}

/// See [`show`].
pub struct Shown<'a> {
    text: &'a str,
    longest: usize,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = self.longest;
        for (place, character) in self.text.char_indices() {
            let width = character.len_utf8();
            if width > room {
                return write!(f, "… ({} bytes more)", self.text.len() - place);
            }
            room -= width;
            if is_plain(character) {
                f.write_char(character)?;
            } else {
                write!(f, "{}", character.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Neither a control character nor one that reorders or hides what follows.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (one, two, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("AUTH_TOKENS", "AUTH_TOKEN", 1),
            ("abc", "abc", 0),
            ("ba", "ab", 2),
        ] {
            assert_eq!(distance(one, two), expected, "{one} {two}");
        }
    }

    #[test]
    fn sizes() {
        for (typed, expected) in
            [("4096", 4096), ("64K", 65536), ("4m", 4 << 20), ("4 MiB", 4 << 20), ("1kB", 1024)]
        {
            assert_eq!(bytes(typed), Some(expected), "{typed}");
            assert_eq!(bytes(&size(expected)), Some(expected));
        }
        for typed in ["", "M", "-1", "1G", "1.5M", "99999999999999999999", "18446744073709551615K"] {
            assert_eq!(bytes(typed), None, "{typed}");
        }
        assert_eq!([size(4 << 20), size(65536), size(1000)], ["4M", "64K", "1000"]);
    }

    #[test]
    fn names() {
        for good in ["a", "file", "cam-1.front_door", &"x".repeat(64)] {
            assert!(is_name(good, 64), "{good}");
        }
        for bad in ["", "a b", "a/b", "é", "a\n", "a:b", &"x".repeat(65)] {
            assert!(!is_name(bad, 64), "{bad}");
        }
    }

    #[test]
    fn durations() {
        let milliseconds = |typed| duration(typed).map(|time| time.as_millis());
        for (typed, expected) in
            [("10", 10_000), ("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(milliseconds(typed), Some(expected), "{typed}");
        }
        for typed in ["", "s", "1.5s", "-1", "10 s", "1d", "99999999999"] {
            assert_eq!(milliseconds(typed), None, "{typed}");
        }
    }

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

    #[test]
    fn uuids() {
        assert_eq!(uuid([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid([255; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }

    #[test]
    fn shown_text_is_one_line() {
        assert_eq!(show("a\nb\r\u{1b}[31m").to_string(), "a\\nb\\r\\u{1b}[31m");
        assert_eq!(show("x\u{202e}y").to_string(), "x\\u{202e}y");
        assert_eq!(show("héllo").to_string(), "héllo");
    }

    #[test]
    fn shown_text_is_bounded() {
        let long = "é".repeat(200);
        let shown = show_up_to(&long, 11).to_string();
        assert_eq!(shown, format!("{}… (390 bytes more)", "é".repeat(5)));
    }
}
