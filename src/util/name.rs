//! Valid names, and the edit distance of two words.

/// Whether `name` is a valid server name: `[A-Za-z0-9_.-]`, 1 to `longest` characters.
pub fn is_name(name: &str, longest: usize) -> bool {
    !name.is_empty() && name.len() <= longest && name.bytes().all(is_name_byte)
}

/// Whether a byte is allowed in a name.
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// Returns the Levenshtein distance of two texts: the number of bytes to insert, remove or replace.
pub fn distance(one: &str, two: &str) -> usize {
    // One row of the table: the distance of a prefix of `one` to each prefix of `two`.
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (position, byte) in one.bytes().enumerate() {
        let mut left = position + 1;
        let mut diagonal = std::mem::replace(&mut row[0], left);
        for (above, other) in row.iter_mut().skip(1).zip(two.bytes()) {
            let cost = (diagonal + usize::from(byte != other)).min(left + 1).min(*above + 1);
            diagonal = std::mem::replace(above, cost);
            left = cost;
        }
    }
    row.last().copied().unwrap_or_default()
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
    fn names() {
        for good in ["a", "file", "cam-1.front_door", &"x".repeat(64)] {
            assert!(is_name(good, 64), "{good}");
        }
        for bad in ["", "a b", "a/b", "é", "a\n", "a:b", &"x".repeat(65)] {
            assert!(!is_name(bad, 64), "{bad}");
        }
    }
}
