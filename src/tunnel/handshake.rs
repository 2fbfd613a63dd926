//! The first frames of a link: who registers, and what the gateway says to it.
//!
//! The wire is described in [`crate::tunnel`].

use std::borrow::Cow;

use crate::{
    jsonrpc::{find, object, quote, unquote},
    limits::SERVER_ID,
    text,
};

/// What an edge asked for in its first frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// Identity, if the edge has one.
    pub id: Option<String>,
    /// Name that clients see, if the edge gave one.
    pub name: Option<String>,
    /// The edge offered `mcpport`: status frames may follow.
    pub ours: bool,
    /// The edge can give so many client sessions a process of their own.
    pub sessions: Option<u32>,
}

/// Why a first frame is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// Not a registration at all.
    NotRegister,
    /// The identity is no string, or too long, or has control characters.
    BadId,
    /// The name is not allowed.
    BadName,
}

impl Refused {
    /// The reason in words, for the edge's user.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadId => "the server id is not a plain text of at most 128 characters (--server-id)",
            Self::BadName => {
                "the server name has other characters than A-Z a-z 0-9 _ . - or is longer than 64 (--server-name)"
            }
            Self::NotRegister => "the first frame is not a registration",
        }
    }
}

impl Registration {
    /// Reads the first frame of a link. `longest_name` bounds the name, in characters.
    ///
    /// # Errors
    /// [`Refused`], with a reason for the edge's user.
    pub fn read(frame: &str, longest_name: usize) -> Result<Self, Refused> {
        let whole = object(frame).ok_or(Refused::NotRegister)?;
        // A member that stands twice could be read in two ways.
        let at = |path: &[&str]| match find(frame, whole.clone(), path) {
            Ok(found) => Ok(found.map(|span| &frame[span])),
            Err(_) => Err(Refused::NotRegister),
        };
        let (id, method) = (at(&["id"])?, at(&["method"])?);
        let call = match method {
            Some(method) if unquote(method).as_deref() == Some("register") => true,
            None => false,
            Some(_) => return Err(Refused::NotRegister),
        };
        let name = if call { at(&["params", "name"])? } else { at(&["name"])? };
        if !call && name.is_none() && id.is_none() {
            return Err(Refused::NotRegister);
        }
        let ours =
            call && at(&["params", "capabilities", "mcpport"])?.is_some_and(|value| value.starts_with('{'));
        let sessions = at(&["params", "capabilities", "mcpport", "sessions", "max"])?;
        let sessions = sessions.filter(|_| ours).and_then(|most| most.parse().ok()).filter(|most| *most > 0);
        Ok(Self { id: read_id(id)?, name: read_name(name, longest_name)?, ours, sessions })
    }

    /// The first frame that our edge sends. `sessions`: that many clients can have a process of their own.
    pub fn frame(id: &str, name: &str, sessions: Option<u32>) -> String {
        let offer = sessions.map_or_else(String::new, |most| format!("\"sessions\":{{\"max\":{most}}}"));
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"register\",\"params\":{{\"name\":{},\"version\":\"{}\",\"capabilities\":{{\"mcpport\":{{{offer}}}}}}}}}",
            quote(id),
            quote(name),
            env!("CARGO_PKG_VERSION"),
        )
    }
}

fn read_id(raw: Option<&str>) -> Result<Option<String>, Refused> {
    let id = match raw {
        None | Some("null" | "\"\"") => return Ok(None),
        Some(raw) if raw.starts_with('"') => unquote(raw).ok_or(Refused::BadId)?,
        // The original takes any value; numbers are what people do give.
        Some(raw) if raw.bytes().all(|byte| byte.is_ascii_digit()) => Cow::Borrowed(raw),
        Some(_) => return Err(Refused::BadId),
    };
    if id.len() > SERVER_ID || id.chars().any(char::is_control) {
        return Err(Refused::BadId);
    }
    Ok(Some(id.into_owned()))
}

fn read_name(raw: Option<&str>, longest: usize) -> Result<Option<String>, Refused> {
    match raw {
        None | Some("null") => Ok(None),
        Some(raw) => {
            let name = unquote(raw).ok_or(Refused::BadName)?;
            if text::is_name(&name, longest) { Ok(Some(name.into_owned())) } else { Err(Refused::BadName) }
        }
    }
}

/// A frame by which the gateway and the edge program speak to each other.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// `received`, `registered` or `error`; from the edge `restarted`.
    pub status: String,
    /// In words.
    pub message: String,
    /// The gateway answered the `mcpport` offer.
    pub ours: bool,
    /// The gateway will give client sessions a process of their own.
    pub sessions: bool,
}

impl Status {
    /// Reads a status frame; `None` when the frame is something else.
    pub fn read(frame: &str) -> Option<Self> {
        let whole = object(frame)?;
        let at = |path: &[&str]| Some(find(frame, whole.clone(), path).ok()?.map(|span| &frame[span]));
        let text = |path: &[&str]| Some(at(path)?.and_then(unquote).map(Cow::into_owned));
        for member in ["method", "result", "error"] {
            if at(&[member])?.is_some() {
                return None;
            }
        }
        let ours = at(&["capabilities", "mcpport"])?.is_some();
        let sessions = at(&["capabilities", "mcpport", "sessions"])?.is_some();
        let (status, message) = (text(&["status"])??, text(&["message"])?.unwrap_or_default());
        Some(Self { status, message, ours, sessions })
    }

    /// The gateway has read the registration.
    pub fn received(id: &str, ours: bool, sessions: bool) -> String {
        let capabilities = match (ours, sessions) {
            (true, true) => ",\"capabilities\":{\"mcpport\":{\"sessions\":{}}}",
            (true, false) => ",\"capabilities\":{\"mcpport\":{}}",
            (false, _) => "",
        };
        let message = quote(&format!("registration received, server id {id}"));
        format!("{{\"status\":\"received\",\"id\":{},\"message\":{message}{capabilities}}}", quote(id))
    }

    /// The server's tools are listed.
    pub fn registered(id: &str, tools: usize) -> String {
        let message = quote(&format!("registration complete, {tools} tools listed"));
        format!("{{\"status\":\"registered\",\"id\":{},\"message\":{message}}}", quote(id))
    }

    /// To the gateway: the server was started anew, and all that was known of it may have changed.
    pub fn restarted() -> String {
        "{\"status\":\"restarted\"}".to_owned()
    }

    /// The registration failed.
    pub fn error(message: &str) -> String {
        format!("{{\"status\":\"error\",\"message\":{}}}", quote(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frame: &str) -> Result<(Option<String>, Option<String>, bool), Refused> {
        Registration::read(frame, 64).map(|r| (r.id, r.name, r.ours))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn registrations_of_all_ages() {
        assert_eq!(read(&Registration::frame("i", "file", None)), Ok((some("i"), some("file"), true)));
        let original = r#"{"jsonrpc": "2.0", "id": "u", "method": "register", "params": {"name": "f", "capabilities": {}}}"#;
        assert_eq!(read(original), Ok((some("u"), some("f"), false)));
        assert_eq!(read(r#"{"name":"f","id":"u"}"#), Ok((some("u"), some("f"), false)));
        assert_eq!(read(r#"{"method":"register","params":{}}"#), Ok((None, None, false)));
        assert_eq!(read(r#" {"id":7,"method":"register"}"#), Ok((some("7"), None, false)));
    }

    #[test]
    fn refusals() {
        for frame in ["", "[]", "x", "{}", "{\"method\":\"tools/call\",\"id\":1}", "{\"a\":", "{\"id\":1} {}"]
        {
            assert_eq!(read(frame), Err(Refused::NotRegister), "{frame}");
        }
        let deep =
            format!("{{\"x\":{}{},\"id\":1,\"method\":\"register\"}}", "[".repeat(128), "]".repeat(128));
        assert_eq!(read(&deep), Err(Refused::NotRegister), "what cannot be read whole is not read in part");
        for twice in [
            r#"{"method":"register","method":"tools/call","id":1}"#,
            r#"{"method":"register","params":{"name":"a","n\u0061me":"b"}}"#,
            r#"{"id":1,"id":2,"name":"a"}"#,
        ] {
            assert_eq!(read(twice), Err(Refused::NotRegister), "{twice}");
        }
        for name in ["\"\"", "\"a b\"", "1", "\"a\\u000ab\"", &format!("\"{}\"", "x".repeat(65))] {
            let frame = format!("{{\"method\":\"register\",\"params\":{{\"name\":{name}}}}}");
            assert_eq!(read(&frame), Err(Refused::BadName), "{name}");
        }
        for id in ["{}", "1.5", "\"a\\nb\"", &format!("\"{}\"", "x".repeat(129))] {
            assert_eq!(
                read(&format!("{{\"method\":\"register\",\"id\":{id}}}")),
                Err(Refused::BadId),
                "{id}"
            );
        }
    }

    #[test]
    fn status_frames() {
        let received = Status::read(&Status::received("i", true, false)).unwrap();
        assert_eq!((received.status.as_str(), received.ours), ("received", true));
        assert!(!Status::read(&Status::received("i", false, false)).unwrap().ours);
        assert_eq!(Status::read(&Status::error("no \"x\"")).unwrap().message, "no \"x\"");
        assert_eq!(Status::read(&Status::registered("i", 3)).unwrap().status, "registered");
        assert_eq!(Status::read(&Status::restarted()).unwrap().status, "restarted");
        assert_eq!(Status::read(r#"{"jsonrpc":"2.0","id":1,"result":{},"status":"error"}"#), None);
        assert_eq!(Status::read(r#"{"status":"error","method":"a","method":"b"}"#), None);
        assert_eq!(Status::read("hello"), None);
    }

    #[test]
    fn sessions_are_offered_and_taken() {
        let read = |frame: &str| Registration::read(frame, 64).unwrap().sessions;
        assert_eq!(read(&Registration::frame("i", "file", Some(9))), Some(9));
        assert_eq!(read(&Registration::frame("i", "file", None)), None);
        for wrong in ["0", "-1", "1.5", "\"9\"", "99999999999", "null"] {
            assert_eq!(
                read(&Registration::frame("i", "file", Some(9)).replace(":9", &format!(":{wrong}"))),
                None
            );
        }
        assert!(Status::read(&Status::received("i", true, true)).unwrap().sessions);
        assert!(!Status::read(&Status::received("i", true, false)).unwrap().sessions);
    }
}
