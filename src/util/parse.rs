//! Parses numbers: decimal digits from the network, and durations and sizes in the form used for
//! flags.

use std::time::Duration;

/// Parses a number in its only canonical spelling: ASCII digits, without a sign (which `str::parse`
/// accepts) or leading zeros. `None` for anything else and for values above `u64::MAX`.
pub fn digits(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let plain = canonical && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// Parses a duration: `10` (seconds), `10s`, `500ms`, `2m`, `1h`.
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

/// Parses a size in bytes: a number with an optional unit K (1024) or M (1024²), also written KB,
/// KiB, MB, MiB, in any case.
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

/// Formats a size for [`bytes`], in the largest unit that divides it.
pub fn size(bytes: usize) -> String {
    let units = [("M", 1024 * 1024), ("K", 1024)];
    let unit = units.into_iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or_else(|| bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_have_one_spelling() {
        for (text, number) in [("0", 0), ("7", 7), ("120", 120), ("18446744073709551615", u64::MAX)] {
            assert_eq!(digits(text), Some(number), "{text}");
        }
        for text in [
            "",
            "00",
            "01",
            "+1",
            "-0",
            "-1",
            " 1",
            "1 ",
            "1.0",
            "1e3",
            "0x1",
            "\u{661}",
            "18446744073709551616",
        ] {
            assert_eq!(digits(text), None, "{text}");
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
}
