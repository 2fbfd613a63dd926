//! Escapes untrusted text for one log line.

use std::fmt::{self, Write};

use crate::limits;

/// Escapes control and direction characters in untrusted text and limits its length.
pub fn show(text: &str) -> Shown<'_> {
    show_up_to(text, limits::LOG_TEXT)
}

/// Same as [`show`], with a given limit in bytes.
pub fn show_up_to(text: &str, longest: usize) -> Shown<'_> {
    Shown { text, longest }
}

/// Displays untrusted text; returned by [`show`].
pub struct Shown<'a> {
    text: &'a str,
    longest: usize,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = self.longest;
        for (position, character) in self.text.char_indices() {
            let width = character.len_utf8();
            if width > room {
                return write!(f, "… ({} bytes more)", self.text.len() - position);
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

/// Whether a character is neither a control character nor one that hides or reorders text.
fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

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
