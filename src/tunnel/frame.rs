//! Channels: multiple sessions on one link, one for each client session with its own process.
//!
//! | frame | meaning |
//! |---|---|
//! | `{…}` | a message of the shared process, or a status frame |
//! | `#N {…}` | a message of channel N, in either direction |
//! | `+N` | gateway to edge: open channel N with its own process |
//! | `-N TEXT` | either direction: channel N is closed for this reason |
//!
//! N is a decimal number from 1, greater than that of every earlier channel of the link; otherwise
//! the edge ends the link (close code 1008). Either end does the same on a channel frame if
//! channels were not agreed on. A message for a channel that is not open is dropped, since the
//! other end may not know yet that it was closed. No JSON text begins with `#`, `+` or `-` followed
//! by such a number and a space or the end, except a negative number, which is not a valid frame
//! anyway.

use crate::util::parse::digits;

/// A parsed frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// A frame that belongs to no channel.
    Plain(&'a str),
    /// A message of a channel.
    Message(u32, &'a str),
    /// Opens a channel.
    Open(u32),
    /// Closes a channel, with the reason.
    Close(u32, &'a str),
}

/// Parses a frame. A frame in none of the channel forms is plain, and the caller validates it.
pub fn read(frame: &str) -> Frame<'_> {
    let Some((kind, rest)) = frame.split_at_checked(1) else { return Frame::Plain(frame) };
    // Check the first byte before searching for a space: a plain frame may be a megabyte without
    // one.
    if !matches!(kind, "#" | "+" | "-") {
        return Frame::Plain(frame);
    }
    let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
    // Channels count from 1, and each has only one spelling.
    let number = digits(number).and_then(|number| u32::try_from(number).ok()).filter(|number| *number > 0);
    match (kind, number) {
        ("#", Some(channel)) => Frame::Message(channel, text),
        ("+", Some(channel)) if text.is_empty() => Frame::Open(channel),
        ("-", Some(channel)) => Frame::Close(channel, text),
        _ => Frame::Plain(frame),
    }
}

/// Returns the frame for a message of a channel.
pub fn message(channel: u32, text: &str) -> String {
    let number = channel.to_string();
    let mut frame = String::with_capacity(number.len() + text.len() + 2);
    frame.push('#');
    frame.push_str(&number);
    frame.push(' ');
    frame.push_str(text);
    frame
}

/// Returns how many bytes [`message`] adds to the text of a message.
pub fn overhead(channel: u32) -> usize {
    "# ".len() + channel.checked_ilog10().unwrap_or_default() as usize + 1
}

/// Returns the frame that opens a channel.
pub fn open(channel: u32) -> String {
    format!("+{channel}")
}

/// Returns the frame that closes a channel.
pub fn close(channel: u32, reason: &str) -> String {
    format!("-{channel} {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        assert_eq!(read(&message(7, "{\"a\": 1}")), Frame::Message(7, "{\"a\": 1}"));
        for number in [0, 1, 9, 10, 99, 100, u32::MAX] {
            assert_eq!(message(number, "{}").len(), overhead(number) + 2);
        }
        assert_eq!(read(&open(1)), Frame::Open(1));
        assert_eq!(read(&close(3, "exit status 1")), Frame::Close(3, "exit status 1"));
        assert_eq!(read("-3"), Frame::Close(3, ""));
    }

    #[test]
    fn frames_without_a_channel_prefix_are_plain() {
        for plain in [
            "",
            "{}",
            "{\"#1\":2}",
            "#",
            "#x {}",
            "#-1 {}",
            "+",
            "+1 x",
            "#99999999999 {}",
            "é",
            "-",
            "*1",
            "+0",
            "#01 {}",
        ] {
            assert_eq!(read(plain), Frame::Plain(plain), "{plain}");
        }
    }
}
