//! Frames of servers, parsed before any table is looked at.
//!
//! [`Incoming`] says which process a frame belongs to; [`parts`] splits its text into messages,
//! since other edge programs forward whatever their server prints. [`Notice`] says what a
//! notification is about.

use super::request::{Named, string_param};
use crate::{
    jsonrpc::{
        Kind, Malformed, Message, Span, decimal,
        tolerant::{self, MessagePart, Unusable},
    },
    mcp::{listen_filter::Filter, log_level::Level, stateless::listen},
    tunnel::{
        frame::{self, Frame},
        handshake::Status,
    },
};

/// A frame of a link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Incoming<'f> {
    /// Text of the process that all sessions share.
    Shared(&'f str),
    /// Text of the isolated instance on a channel.
    Instance(u32, &'f str),
    /// The edge has closed a channel, with the reason.
    Closed(u32, &'f str),
}

/// A channel frame on a link for which channels were not agreed on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnexpectedChannel;

impl<'f> Incoming<'f> {
    /// Parses a frame. `isolated`: the server can have isolated instances. `ours`: the edge is
    /// mcpport's own.
    ///
    /// # Errors
    /// [`UnexpectedChannel`], if an edge of ours uses channels that were not agreed on.
    pub fn read(frame: &'f str, isolated: bool, ours: bool) -> Result<Self, UnexpectedChannel> {
        match frame::read(frame) {
            Frame::Plain(text) => Ok(Self::Shared(text)),
            Frame::Message(channel, text) if isolated => Ok(Self::Instance(channel, text)),
            Frame::Close(channel, reason) if isolated => Ok(Self::Closed(channel, reason)),
            _ if ours => Err(UnexpectedChannel),
            // An edge that is the original program forwards whatever its server prints.
            _ => Ok(Self::Shared(frame)),
        }
    }
}

/// A part of the text of a frame.
#[derive(Debug)]
pub enum Part<'a> {
    /// A message that can be passed on as it is.
    Message(&'a Message<'a>),
    /// A response that cannot be used: its request fails.
    Unusable(&'a Unusable),
    /// Text that is not a message, with the defect if the whole text has one.
    Noise(Option<Malformed>),
    /// The next message had a member whose name differs only in case from a JSON-RPC member. It was
    /// removed, because some parsers ignore case.
    Twin,
    /// The edge has restarted the server.
    Restarted,
}

/// Calls `each` for every part of a text. `status`: the edge is mcpport's own, and sends status
/// frames.
///
/// # Errors
/// The first error of `each`; the parts after it are left out.
pub fn parts<E>(text: &str, status: bool, mut each: impl FnMut(Part<'_>) -> Result<(), E>) -> Result<(), E> {
    let malformed = match Message::read(text) {
        Ok(message) if message.is_clean() => return each(Part::Message(&message)),
        Ok(message) => {
            if message.has_twin() {
                each(Part::Twin)?;
            }
            None
        }
        Err(_) if status && is_restart(text) => return each(Part::Restarted),
        Err(why) => Some(why),
    };
    for part in tolerant::parts(text.as_bytes()) {
        match part {
            MessagePart::Message(text) => {
                // A part that was repaired can always be read.
                if let Ok(message) = Message::read(&text) {
                    each(Part::Message(&message))?;
                }
            }
            MessagePart::Unusable(answer) => each(Part::Unusable(&answer))?,
            MessagePart::Noise => each(Part::Noise(malformed))?,
        }
    }
    Ok(())
}

/// What a notification of a server is about.
#[derive(Debug, Eq, PartialEq)]
pub enum Notice {
    /// The progress of a request; the position of its token, unless that is missing or ambiguous.
    Progress(Option<Span>),
    /// The cancellation of a request; the position of its id likewise.
    Cancelled(Option<Span>),
    /// A log message, of this level if that is known.
    Log(Option<Level>),
    /// The update of a resource, with the server's own URI, if that is known, and the listen that
    /// it names.
    Updated(Option<Named>, Option<u64>),
    /// The status of a task, with its id if there is one.
    Task(Option<String>),
    /// A task whose id is ambiguous or not a string.
    UnknownTask,
    /// The change of a list, and the listen that it names.
    ListChanged(Option<u64>),
    /// The acknowledgement of a listen: its id, and what it covers. `None` if that is invalid.
    Acknowledged(Option<(u64, Filter)>),
    /// Anything else, or no notification.
    Other,
}

impl Notice {
    /// Parses a message of a server.
    pub fn read(message: &Message<'_>) -> Self {
        if message.kind() != Kind::Notification {
            return Self::Other;
        }
        match message.method() {
            "notifications/progress" => Self::Progress(message.param(&["progressToken"]).ok().flatten()),
            "notifications/cancelled" => Self::Cancelled(message.param(&["requestId"]).ok().flatten()),
            "notifications/message" => Self::Log(Level::of(message)),
            "notifications/resources/updated" => {
                Self::Updated(string_param(message, &["uri"]).ok().flatten(), listen_of(message))
            }
            "notifications/tasks/status" => match string_param(message, &["taskId"]) {
                Ok(id) => Self::Task(id.map(|(_, id)| id)),
                Err(_) => Self::UnknownTask,
            },
            "notifications/subscriptions/acknowledged" => {
                Self::Acknowledged(listen_of(message).zip(listen::honoured(message)))
            }
            method if method.ends_with("/list_changed") => Self::ListChanged(listen_of(message)),
            _ => Self::Other,
        }
    }
}

/// Returns the id of the gateway's listen that a notification names.
fn listen_of(message: &Message<'_>) -> Option<u64> {
    decimal(&message.text()[listen::subscription(message)?])
}

fn is_restart(text: &str) -> bool {
    Status::read(text).is_some_and(|status| status.status == "restarted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_routed_by_channel() {
        use Incoming::*;
        for (frame, isolated, ours, expected) in [
            ("{}", false, false, Some(Shared("{}"))),
            ("{}", true, true, Some(Shared("{}"))),
            ("#3 {}", true, true, Some(Instance(3, "{}"))),
            ("#3 {}", true, false, Some(Instance(3, "{}"))),
            ("-3 why", true, true, Some(Closed(3, "why"))),
            ("#0 {}", true, true, Some(Shared("#0 {}"))),
            ("#3 {}", false, false, Some(Shared("#3 {}"))),
            ("-3 why", false, false, Some(Shared("-3 why"))),
            ("+3", true, false, Some(Shared("+3"))),
            ("+3", true, true, None),
            ("#3 {}", false, true, None),
            ("-3 why", false, true, None),
        ] {
            let read = Incoming::read(frame, isolated, ours);
            assert_eq!(read, expected.ok_or(UnexpectedChannel), "{frame}");
        }
    }

    /// Returns a description of all parts.
    fn all(text: &str, status: bool) -> Vec<String> {
        let mut all = Vec::new();
        let each = |part: Part<'_>| {
            all.push(match part {
                Part::Message(message) => {
                    assert!(message.is_clean(), "{}", message.text());
                    message.text().to_owned()
                }
                other => format!("{other:?}"),
            });
            Ok::<(), ()>(())
        };
        assert_eq!(parts(text, status, each), Ok(()));
        all
    }

    #[test]
    fn every_odd_frame_gives_its_parts() {
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        let unusable = |id: &str, why: &str| format!(r#"Unusable(Unusable {{ id: {id}, why: "{why}" }})"#);
        for (text, expected) in [
            (answer.to_owned(), vec![answer.to_owned()]),
            (
                "{\"jsonrpc\":\"2.0\",\n\"id\":1,\"result\":{}}".into(),
                vec![r#"{"jsonrpc":"2.0", "id":1,"result":{}}"#.to_owned()],
            ),
            (format!("\u{feff}{answer}"), vec![answer.into()]),
            (format!("[{answer},{answer}]"), vec![answer.into(), answer.into()]),
            (format!("[{answer},7]"), vec![answer.into(), "Noise(Some(Batch))".into()]),
            (r#"{"jsonrpc":"2.0","ID":2,"id":1,"result":{}}"#.into(), vec!["Twin".into(), answer.into()]),
            (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":null}"#.into(), vec![answer.into()]),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{"#.into(),
                vec![unusable(r#"Some("1")"#, "invalid or truncated JSON")],
            ),
            ("listening on port 3".into(), vec!["Noise(Some(Syntax))".into()]),
            ("{}".into(), vec!["Noise(Some(Envelope))".into()]),
            ("7".into(), vec!["Noise(Some(NotObject))".into()]),
            ("[]".into(), vec![]),
        ] {
            assert_eq!(all(&text, false), expected, "{text}");
            assert_eq!(all(&text, true), expected, "{text}");
        }
    }

    #[test]
    fn only_an_edge_of_ours_reports_a_restart() {
        let restarted = r#"{"status":"restarted","id":"s","message":"m"}"#;
        assert_eq!(all(restarted, true), ["Restarted"]);
        assert_eq!(all(restarted, false), ["Noise(Some(Envelope))"]);
        assert_eq!(all(&restarted.replace("restarted", "other"), true), ["Noise(Some(Envelope))"]);
    }

    #[test]
    fn an_error_ends_the_parts() {
        let answer = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        let mut seen = 0;
        let ended = parts(&format!("[{answer},{answer}]"), false, |_| {
            seen += 1;
            Err(seen)
        });
        assert_eq!((ended, seen), (Err(1), 1));
    }
}
