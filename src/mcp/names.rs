//! The names under which clients see the tools and prompts of all servers.
//!
//! A pure function of server and tool: it does not depend on who else is connected. Model APIs refuse other
//! characters than `[A-Za-z0-9_-]`, and more than 64 of them; so does this.

/// Length of the hash suffix with its separator.
const SUFFIX: usize = 9;

/// `<server>_<name>`, made fit; cut and given a hash when it is longer than `longest`.
pub fn exposed(server: &str, name: &str, longest: usize) -> String {
    let plain = plain(server, name);
    if plain.len() <= longest { plain } else { cut(plain, server, name, longest) }
}

/// The same with the hash in any case: for a name that collides with another.
pub fn exposed_with_hash(server: &str, name: &str, longest: usize) -> String {
    cut(plain(server, name), server, name, longest)
}

/// Whether a name ends as one with a hash does.
pub fn is_hashed(name: &str) -> bool {
    let hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match name.as_bytes().split_last_chunk::<SUFFIX>() {
        Some((_, [b'_', hash @ ..])) => hash.iter().all(hex),
        _ => false,
    }
}

fn plain(server: &str, name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    server.chars().chain(['_']).chain(name.chars()).map(fit).collect()
}

fn cut(mut plain: String, server: &str, name: &str, longest: usize) -> String {
    plain.truncate(longest.saturating_sub(SUFFIX));
    format!("{plain}_{:08x}", hash(server, name))
}

/// Stable for ever: clients remember tool names.
fn hash(server: &str, name: &str) -> u32 {
    short_hash(server.bytes().chain([0]).chain(name.bytes()))
}

/// FNV-1a, folded to 32 bits: to tell texts apart, not to prove anything.
pub fn short_hash(bytes: impl Iterator<Item = u8>) -> u32 {
    let wide = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (wide >> 32) as u32 ^ wide as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_where_they_can_be() {
        assert_eq!(exposed("file", "read_file", 64), "file_read_file");
        assert_eq!(exposed("cam.1", "é/x", 64), "cam_1___x");
        assert_eq!(exposed("a", &"b".repeat(62), 64).len(), 64);
    }

    #[test]
    fn long_names_keep_their_difference() {
        let long = "x".repeat(100);
        let (one, two) = (exposed("s", &format!("{long}1"), 64), exposed("s", &format!("{long}2"), 64));
        assert_eq!((one.len(), two.len()), (64, 64));
        assert_ne!(one, two);
        assert_eq!(exposed_with_hash("a", "b", 64), "a_b_".to_owned() + &format!("{:08x}", hash("a", "b")));
    }

    #[test]
    fn names_with_a_hash_are_recognized() {
        for (name, expected) in [
            ("a_b_0123abcd", true),
            ("_0123abcd", true),
            ("a_0123abcD", false),
            ("a_b", false),
            ("a0123abcd", false),
        ] {
            assert_eq!(is_hashed(name), expected, "{name}");
        }
        assert!(is_hashed(&exposed_with_hash("a", "b", 64)));
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(exposed_with_hash("file", "read", 64), format!("file_read_{:08x}", hash("file", "read")));
        assert_ne!(hash("a", "b_c"), hash("a_b", "c"));
        assert_eq!(hash("", ""), 0x2962_0a93);
    }
}
