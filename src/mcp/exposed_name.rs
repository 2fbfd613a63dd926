//! The names under which clients see the tools and prompts of all servers.
//!
//! The exposed name is a pure function of server and tool. It does not depend on which other
//! servers are connected or in which order they connected, so a name never leads to a different
//! tool than the one that a user approved. Model APIs reject characters other than `[A-Za-z0-9_-]`
//! and names of more than 64 characters; exposed names keep to both.
//!
//! - `<server>_<tool>`, or `<server>__<tool>` if the server's name itself contains a `_`.
//! - With a hash of both at the end, if the first form is ambiguous, contains other characters or
//!   is too long: `_` and 16 hexadecimal digits. Other characters become `_`, and a long name is
//!   cut.
//!
//! A call by the other form of a name fails with an error that gives the right one.

use crate::secret::Digest;

/// Length of the hash suffix, including the separator. The hash has 64 bits, so that a second pair
/// with the same hash is hard to find.
const SUFFIX: usize = 17;

/// Returns the exposed name of a tool or prompt, in at most `longest` characters.
pub fn exposed(server: &str, name: &str, longest: usize) -> String {
    let plain = plain(server, name).filter(|plain| plain.len() <= longest && !is_hashed(plain));
    plain.unwrap_or_else(|| exposed_with_hash(server, name, longest))
}

/// Returns the exposed name with a hash in every case, for a plain name that is contested or is the
/// gateway's own.
pub fn exposed_with_hash(server: &str, name: &str, longest: usize) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let shown = server.chars().chain(['_']).chain(name.chars()).map(fit);
    let shown: String = shown.take(longest.saturating_sub(SUFFIX)).collect();
    format!("{shown}_{:016x}", hash(server, name))
}

/// Whether a name ends like one with a hash.
pub fn is_hashed(name: &str) -> bool {
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match name.as_bytes().split_last_chunk::<SUFFIX>() {
        Some((_, [b'_', hash @ ..])) => hash.iter().all(hex),
        _ => false,
    }
}

/// Returns the name without a hash, if it can only be read as this pair.
fn plain(server: &str, name: &str) -> Option<String> {
    let separator = if server.contains('_') { "__" } else { "_" };
    let plain = format!("{server}{separator}{name}");
    let is_fit = plain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    (is_fit && split(&plain) == Some((server, name))).then_some(plain)
}

/// Splits a name without a hash into server and tool.
fn split(plain: &str) -> Option<(&str, &str)> {
    let double = plain.split_once("__").filter(|(server, _)| server.contains('_'));
    double.or_else(|| plain.split_once('_'))
}

/// Hashes the pair. The result must never change, because clients remember tool names.
fn hash(server: &str, name: &str) -> u64 {
    let digest = Digest::of(&[server.as_bytes(), &[0], name.as_bytes()].concat());
    digest.bytes().iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// Returns the FNV-1a hash, folded to 32 bits. It distinguishes texts; it is not cryptographic.
pub fn short_hash(bytes: impl Iterator<Item = u8>) -> u32 {
    let wide = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (wide >> 32) as u32 ^ wide as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn unambiguous_names_have_no_hash() {
        for (server, name, expected) in [
            ("file", "read_file", "file_read_file"),
            ("file", "_read", "file__read"),
            ("cam-1", "b-c", "cam-1_b-c"),
            ("home_assistant", "turn_on", "home_assistant__turn_on"),
            ("_home", "x", "_home__x"),
            ("home_assistant", "_x__y", "home_assistant___x__y"),
        ] {
            assert_eq!(exposed(server, name, 64), expected);
        }
        assert_eq!(exposed("a", &"b".repeat(62), 64).len(), 64);
    }

    #[test]
    fn ambiguous_or_sanitized_names_have_a_hash() {
        for (server, name, shown) in [
            ("home", "assistant__turn_on", "home_assistant__turn_on"),
            ("home_", "x", "home__x"),
            ("a__b", "c", "a__b_c"),
            ("cam.1", "é/x", "cam_1___x"),
            ("a", "b.c", "a_b_c"),
            ("a", "b_0123456789abcdef", "a_b_0123456789abcdef"),
        ] {
            let name = exposed(server, name, 64);
            assert!(is_hashed(&name) && name.starts_with(shown), "{name}");
        }
    }

    /// Tries all pairs of short names with the relevant characters: no two get the same name, even
    /// at a low length limit.
    #[test]
    fn no_two_pairs_have_the_same_name() {
        let all = |letters: &[&str]| -> Vec<String> {
            let (mut all, mut last) = (Vec::new(), vec![String::new()]);
            for _ in 0..4 {
                last = last.iter().flat_map(|a| letters.iter().map(move |b| format!("{a}{b}"))).collect();
                all.extend(last.iter().cloned());
            }
            all
        };
        let (servers, tools) = (all(&["a", "_", ".", "-"]), all(&["a", "_", "."]));
        for longest in [64, 20] {
            let mut known = HashMap::new();
            for pair in servers.iter().flat_map(|server| tools.iter().map(move |tool| (server, tool))) {
                let name = exposed(pair.0, pair.1, longest);
                assert!(name.len() <= longest, "{name}");
                let other = known.insert(name, pair);
                assert_eq!(other, None, "{pair:?}");
            }
        }
    }

    #[test]
    fn long_names_stay_distinct() {
        let long = "x".repeat(100);
        let (one, two) = (exposed("s", &format!("{long}1"), 64), exposed("s", &format!("{long}2"), 64));
        assert_eq!((one.len(), two.len()), (64, 64));
        assert_ne!(one, two);
    }

    #[test]
    fn names_with_a_hash_are_recognized() {
        for (name, expected) in [
            ("a_b_0123456789abcdef", true),
            ("_0123456789abcdef", true),
            ("a_0123456789abcdeF", false),
            ("a_b", false),
            ("a0123456789abcdef", false),
        ] {
            assert_eq!(is_hashed(name), expected, "{name}");
        }
        assert!(is_hashed(&exposed_with_hash("a", "b", 64)));
    }

    #[test]
    fn the_name_hash_is_stable() {
        assert_ne!(hash("a", "b_c"), hash("a_b", "c"));
        // printf 'file\0read' | sha256sum
        assert_eq!(exposed_with_hash("file", "read", 64), "file_read_c82f89f2cdfce938");
        assert_eq!(short_hash([].into_iter()), 0xcbf2_9ce4 ^ 0x8422_2325);
    }
}
