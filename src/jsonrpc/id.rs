//! Numeric ids in the forms in which servers return them.
//!
//! JSON-RPC requires a response to carry the id unchanged. Some servers turn `1` into `"1"`, `1.0`
//! or `1e0`.

use super::text::unquote;
use crate::{limits::ID_BYTES, util};

/// Returns the non-negative integer that an id or a progress token represents: a JSON number, or a
/// string that contains one. `None` for anything else, for values above `u64::MAX`, and for raw
/// text longer than [`ID_BYTES`].
pub fn decimal(raw: &str) -> Option<u64> {
    if raw.len() > ID_BYTES {
        return None;
    }
    match raw.starts_with('"') {
        true => whole(&unquote(raw)?),
        false => whole(raw),
    }
}

/// Whether two ids are written the same or represent the same number.
pub fn is_same(one: &str, other: &str) -> bool {
    one == other || decimal(one).is_some_and(|number| decimal(other) == Some(number))
}

/// Parses a JSON number (RFC 8259, section 6) that is a non-negative integer.
fn whole(text: &str) -> Option<u64> {
    let is_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if is_digits(text) {
        return util::parse::digits(text);
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    if !is_digits(before) || !is_digits(after) || (before.len() > 1 && before.starts_with('0')) {
        return None;
    }
    let exponent: i64 = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
    let mut digits = [before, after].concat();
    let shift = exponent.checked_sub(after.len() as i64)?;
    if digits.bytes().all(|digit| digit == b'0') {
        return Some(0);
    }
    if shift < 0 {
        let cut = digits.len().checked_sub(usize::try_from(shift.unsigned_abs()).ok()?)?;
        if !digits.split_off(cut).bytes().all(|digit| digit == b'0') {
            return None;
        }
    } else {
        // A number with more than ID_BYTES zeros overflows `u64` anyway.
        digits.extend(std::iter::repeat_n('0', usize::try_from(shift).ok()?.min(ID_BYTES)));
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_a_number_are_read() {
        for one in ["1", "\"1\"", "1.0", "1e0", "1E+0", "1.000", "10e-1", "0.1e1", "\"1.0\"", "\"\\u0031\""] {
            assert_eq!(decimal(one), Some(1), "{one}");
            assert!(is_same(one, "1") && is_same("\"1\"", one), "{one}");
        }
        for (raw, value) in [("0", 0), ("0.0", 0), ("0e99", 0), ("120", 120), ("1.2e2", 120), ("12e+1", 120)]
        {
            assert_eq!(decimal(raw), Some(value), "{raw}");
        }
        assert_eq!(decimal("18446744073709551615"), Some(u64::MAX));
    }

    #[test]
    fn non_canonical_ids_are_not_numbers() {
        for raw in [
            "\"x\"",
            "\"\"",
            "-1",
            "1.5",
            "1e-1",
            "\"01\"",
            "\"1 \"",
            "\" 1\"",
            "\"+1\"",
            "1e99",
            "1e9999999999999999999",
            "18446744073709551616",
            "null",
            "true",
            "{}",
            "",
            "\"",
            ".5",
            "1.",
            "1e",
            "0x1",
            "\"1\\u0000\"",
        ] {
            assert_eq!(decimal(raw), None, "{raw}");
        }
        assert_eq!(decimal(&format!("1.{}", "0".repeat(ID_BYTES))), None);
        assert!(is_same("\"x\"", "\"x\"") && !is_same("\"x\"", "\"y\"") && !is_same("null", "true"));
    }
}
