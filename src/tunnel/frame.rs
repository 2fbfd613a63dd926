//! Channels: several conversations on one link, one for each client session that has a process of its own.
//!
//! | frame | meaning |
//! |---|---|
//! | `{…}` | a message of the shared process, or a status frame |
//! | `#N {…}` | a message of channel N, either way |
//! | `+N` | gateway to edge: open channel N with a process of its own |
//! | `-N TEXT` | either way: channel N is closed, and why |
//!
//! N is a decimal number from 1, and each channel of a link has a larger one than all before it: an edge ends the link
//! otherwise (close code 1008), and so does either end when channels were not agreed on. What comes for a channel that
//! is not open is dropped, since the other end may not know yet that it was closed. A JSON text never begins with `#`, `+` or `-`
//! followed by such a number and its end or a space, except for a negative number, which is no frame anyway.

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame<'a> {
    /// It belongs to no channel.
    Plain(&'a str),
    /// A message of a channel.
    Message(u32, &'a str),
    /// A channel is to be opened.
    Open(u32),
    /// A channel is closed.
    Close(u32, &'a str),
}

/// Sorts a frame. What has none of the forms is plain, and for others to judge.
pub fn read(frame: &str) -> Frame<'_> {
    let Some((kind, rest)) = frame.split_at_checked(1) else { return Frame::Plain(frame) };
    // Looked at first: a plain frame is not searched for a space, of which it may have none in a megabyte.
    if !matches!(kind, "#" | "+" | "-") {
        return Frame::Plain(frame);
    }
    let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let number = Some(number).filter(|number| is_number(number)).and_then(|number| number.parse().ok());
    match (kind, number) {
        ("#", Some(channel)) => Frame::Message(channel, text),
        ("+", Some(channel)) if text.is_empty() => Frame::Open(channel),
        ("-", Some(channel)) => Frame::Close(channel, text),
        _ => Frame::Plain(frame),
    }
}

/// Whether it is written as we write it, so that no channel has two names.
fn is_number(text: &str) -> bool {
    text.starts_with(|first: char| first != '0') && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A message of a channel.
pub fn message(channel: u32, text: &str) -> String {
    let number = channel.to_string();
    let mut frame = String::with_capacity(number.len() + text.len() + 2);
    frame.push('#');
    frame.push_str(&number);
    frame.push(' ');
    frame.push_str(text);
    frame
}

/// Bytes that the frame of a message of a channel has beside the message.
pub fn overhead(channel: u32) -> usize {
    "# ".len() + channel.checked_ilog10().unwrap_or_default() as usize + 1
}

/// The frame that opens a channel.
pub fn open(channel: u32) -> String {
    format!("+{channel}")
}

/// The frame that closes a channel.
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
    fn anything_else_is_plain() {
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
