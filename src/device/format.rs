//! Human-readable sizes and times.

/// Formats a number of bytes: `3.7 GiB`.
pub fn bytes(count: u64) -> String {
    const STEP: f64 = 1024.0;
    let mut amount = count as f64;
    let mut unit = "bytes";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if amount < STEP {
            break;
        }
        amount /= STEP;
        unit = next;
    }
    if unit == "bytes" { format!("{count} bytes") } else { format!("{amount:.1} {unit}") }
}

/// Same as [`bytes`], or `unknown`.
pub fn bytes_or_unknown(count: Option<u64>) -> String {
    count.map_or_else(|| "unknown".to_owned(), bytes)
}

/// Formats a time in seconds: `3 d 4 h 12 min`.
pub fn span(seconds: f64) -> String {
    let minutes = (seconds / 60.0) as u64;
    let (days, hours, minutes) = (minutes / 1440, minutes / 60 % 24, minutes % 60);
    match (days, hours) {
        (0, 0) if minutes == 0 => format!("{seconds:.0} s"),
        (0, 0) => format!("{minutes} min"),
        (0, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB"),
            (3_972_844_544, "3.7 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn times() {
        let cases = [
            (0.0, "0 s"),
            (59.4, "59 s"),
            (61.0, "1 min"),
            (7260.0, "2 h 1 min"),
            (273_120.9, "3 d 3 h 52 min"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }
}
