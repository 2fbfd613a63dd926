//! Text rules shared by all rooms: which names are allowed, and how foreign text is shown in a log.

use std::fmt::{self, Write};

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
    use super::{is_name, show, show_up_to, uuid};

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
