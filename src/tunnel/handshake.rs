//! The first frames of a link: the edge's registration and the gateway's status frames.
//!
//! [`crate::tunnel`] describes the wire format.

use std::{borrow::Cow, time::Duration};

use crate::{
    config::EraPin,
    jsonrpc::{self, find, object, quote, unquote},
    limits::{RESUME_LONGEST, SERVER_ID},
    secret::Secret,
    util::{self, parse::digits},
};

/// A registration: the first frame of an edge.
#[derive(Clone, Debug)]
pub struct Registration {
    /// The server's id, if the edge sent one.
    pub id: Option<String>,
    /// The name shown to clients, if the edge sent one.
    pub name: Option<String>,
    /// The edge offered the `mcpport` capability: it reads status frames.
    pub reads_status_frames: bool,
    /// The number of client sessions to which the edge can give their own process.
    pub sessions: Option<u32>,
    /// The edge can resume a session over another link.
    pub resumes: bool,
    /// The session that the edge wants to resume.
    pub claim: Option<Claim>,
    /// The largest frame that the edge accepts, in bytes, if it announced one.
    pub message_bytes: Option<usize>,
    /// The era of the server's processes (`register --era`), if the edge can be asked to find it
    /// out. `None`: the edge cannot report the restart of a server that has got no `initialize`, so
    /// the gateway begins with that. So it is with a pin that we do not know.
    pub era: Option<EraPin>,
}

/// An edge's request to resume a session.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The token from an earlier answer of the gateway.
    pub token: Secret,
    /// The number of frames that the edge has received in the session.
    pub received: u64,
}

/// The gateway's offer to resume the session after a drop.
#[derive(Clone, Debug)]
pub struct ResumeGrant {
    /// The token to present when resuming.
    pub token: Secret,
    /// How long after a drop the session can be resumed.
    pub window: Duration,
    /// The number of frames that the gateway has received, if the session is resumed now. `None` if
    /// it is new.
    pub received: Option<u64>,
}

/// Why a first frame is rejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InvalidRegistration {
    /// It is not a registration.
    NotRegister,
    /// The id is not a string or a whole number, is too long, or has control characters.
    BadId,
    /// The name is not allowed.
    BadName,
}

impl InvalidRegistration {
    /// Returns the reason as text for the edge's user.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadId => "the server id must be plain text of at most 128 characters (--server-id)",
            Self::BadName => {
                "the server name must be at most 64 characters of A-Z a-z 0-9 _ . - (--server-name)"
            }
            Self::NotRegister => "the first frame is not a registration",
        }
    }
}

impl Registration {
    /// Parses the first frame of a link. `longest_name` is the maximum length of the name, in
    /// characters.
    ///
    /// # Errors
    /// [`InvalidRegistration`], with a reason for the edge's user.
    pub fn read(frame: &str, longest_name: usize) -> Result<Self, InvalidRegistration> {
        let whole = object(frame).ok_or(InvalidRegistration::NotRegister)?;
        // Reject duplicate members: two parsers could read different values.
        let at = |path: &[&str]| match find(frame, whole.clone(), path) {
            Ok(found) => Ok(found.map(|span| &frame[span])),
            Err(_) => Err(InvalidRegistration::NotRegister),
        };
        let (id, method) = (at(&["id"])?, at(&["method"])?);
        let call = match method {
            Some(method) if unquote(method).as_deref() == Some("register") => true,
            None => false,
            Some(_) => return Err(InvalidRegistration::NotRegister),
        };
        let name = if call { at(&["params", "name"])? } else { at(&["name"])? };
        let answer = at(&["result"])?.is_some() || at(&["error"])?.is_some();
        if !call && (answer || (name.is_none() && id.is_none())) {
            return Err(InvalidRegistration::NotRegister);
        }
        let ours =
            call && at(&["params", "capabilities", "mcpport"])?.is_some_and(|value| value.starts_with('{'));
        let sessions = at(&["params", "capabilities", "mcpport", "sessions", "max"])?;
        let sessions = sessions.filter(|_| ours).and_then(digits).and_then(|max| u32::try_from(max).ok());
        let sessions = sessions.filter(|max| *max > 0);
        let (id, name) = (read_id(id)?, read_name(name, longest_name)?);
        let resume = |member| at(&["params", "capabilities", "mcpport", "resume", member]);
        let resumes =
            at(&["params", "capabilities", "mcpport", "resume"])?.is_some_and(|value| value.starts_with('{'));
        let token = resume("token")?.and_then(unquote).map(|token| Secret::new(token.as_ref()));
        let received = resume("received")?.and_then(digits);
        let claim = token.zip(received).map(|(token, received)| Claim { token, received });
        let message_bytes = at(&["params", "capabilities", "mcpport", "message_bytes"])?;
        let message_bytes = message_bytes.filter(|_| ours).and_then(read_size);
        let (resumes, claim) = (ours && resumes, claim.filter(|_| ours));
        let era = at(&["params", "capabilities", "mcpport", "era"])?.filter(|_| ours);
        let era = era.and_then(unquote).and_then(|word| EraPin::read(&word));
        Ok(Self { id, name, reads_status_frames: ours, sessions, resumes, claim, message_bytes, era })
    }

    /// Builds the registration that our edge sends. `message_bytes` is the largest frame that it
    /// accepts; `sessions` is the number of client sessions that can have their own process; `era`
    /// is the one of `--era`; `claim` resumes a session.
    pub fn frame(
        id: &str,
        name: &str,
        message_bytes: usize,
        sessions: Option<u32>,
        era: EraPin,
        claim: Option<&Claim>,
    ) -> String {
        let sessions = sessions.map_or_else(String::new, |max| format!(",\"sessions\":{{\"max\":{max}}}"));
        let resume = claim.map_or_else(String::new, |claim| {
            format!("\"token\":{},\"received\":{}", quote(claim.token.expose()), claim.received)
        });
        let params = format!(
            "{{\"name\":{},\"version\":\"{}\",\"capabilities\":{{\"mcpport\":{{\"message_bytes\":{message_bytes},\"resume\":{{{resume}}},\"era\":\"{}\"{sessions}}}}}}}",
            quote(name),
            env!("CARGO_PKG_VERSION"),
            era.word(),
        );
        jsonrpc::request(&quote(id), "register", &params)
    }
}

impl ResumeGrant {
    fn member(&self) -> String {
        let received = self.received.map_or_else(String::new, |count| format!(",\"received\":{count}"));
        let (token, window) = (quote(self.token.expose()), self.window.as_secs());
        format!("\"resume\":{{\"token\":{token},\"window\":{window}{received}}}")
    }
}

fn read_id(raw: Option<&str>) -> Result<Option<String>, InvalidRegistration> {
    let id = match raw {
        None | Some("null" | "\"\"") => return Ok(None),
        Some(raw) if raw.starts_with('"') => unquote(raw).ok_or(InvalidRegistration::BadId)?,
        // The original gateway accepts any value; in practice people use strings or numbers.
        Some(raw) if raw.bytes().all(|byte| byte.is_ascii_digit()) => Cow::Borrowed(raw),
        Some(_) => return Err(InvalidRegistration::BadId),
    };
    if id.len() > SERVER_ID || id.chars().any(char::is_control) {
        return Err(InvalidRegistration::BadId);
    }
    Ok(Some(id.into_owned()))
}

fn read_name(raw: Option<&str>, longest: usize) -> Result<Option<String>, InvalidRegistration> {
    match raw {
        None | Some("null") => Ok(None),
        Some(raw) => {
            let name = unquote(raw).ok_or(InvalidRegistration::BadName)?;
            if util::name::is_name(&name, longest) {
                Ok(Some(name.into_owned()))
            } else {
                Err(InvalidRegistration::BadName)
            }
        }
    }
}

/// Parses a size in bytes: a whole number from 1. Any other value means no limit.
fn read_size(raw: &str) -> Option<usize> {
    digits(raw).and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
}

/// A status frame: a message between the gateway and the edge program itself.
#[derive(Clone, Debug)]
pub struct Status {
    /// `received`, `registered` or `error` from the gateway; `restarted` from the edge.
    pub status: String,
    /// The text for the user.
    pub message: String,
    /// The gateway accepted the `mcpport` capability.
    pub accepts_mcpport: bool,
    /// The gateway opens a channel for each client session.
    pub sessions: bool,
    /// The session can be resumed, or is resumed.
    pub resume: Option<ResumeGrant>,
    /// The largest frame that the gateway accepts, in bytes, if it announced one.
    pub message_bytes: Option<usize>,
    /// The gateway finds out the era of the server's processes: the edge has to report each restart.
    pub era: bool,
}

/// Compares the content except the grant, of which only the presence counts.
impl PartialEq for Status {
    fn eq(&self, other: &Self) -> bool {
        let said = |status: &Self| {
            let resumes = status.resume.is_some();
            (status.accepts_mcpport, status.sessions, resumes, status.message_bytes, status.era)
        };
        self.status == other.status && self.message == other.message && said(self) == said(other)
    }
}

impl Eq for Status {}

impl Status {
    /// Parses a status frame. Returns `None` for any other frame.
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
        let resume = |member| at(&["capabilities", "mcpport", "resume", member]);
        let token = resume("token")?.and_then(unquote).map(|token| Secret::new(token.as_ref()));
        let window = resume("window")?.and_then(digits).map(Duration::from_secs);
        // Bound the value: adding a huge window to an `Instant` would panic.
        let window = window.map(|window| window.min(RESUME_LONGEST));
        let received = resume("received")?.and_then(digits);
        let resume = token.zip(window).map(|(token, window)| ResumeGrant { token, window, received });
        let (status, message) = (text(&["status"])??, text(&["message"])?.unwrap_or_default());
        let message_bytes = at(&["capabilities", "mcpport", "message_bytes"])?.and_then(read_size);
        let era = at(&["capabilities", "mcpport", "era"])?.is_some();
        Some(Self { status, message, accepts_mcpport: ours, sessions, resume, message_bytes, era })
    }

    /// Builds the answer to a registration. `message_bytes` is the largest frame that the gateway
    /// accepts; `era`: it accepts the edge's offer of that name.
    pub fn received(
        id: &str,
        ours: bool,
        message_bytes: usize,
        sessions: bool,
        era: bool,
        resume: Option<&ResumeGrant>,
    ) -> String {
        let sessions = if sessions { ",\"sessions\":{}" } else { "" };
        let era = if era { ",\"era\":{}" } else { "" };
        let resume = resume.map_or_else(String::new, |grant| format!(",{}", grant.member()));
        let own = format!("\"message_bytes\":{message_bytes}{sessions}{era}{resume}");
        let capabilities = match ours {
            true => format!(",\"capabilities\":{{\"mcpport\":{{{own}}}}}"),
            false => String::new(),
        };
        let message = quote(&format!("registration received, server id {id}"));
        format!("{{\"status\":\"received\",\"id\":{},\"message\":{message}{capabilities}}}", quote(id))
    }

    /// Builds the frame sent when the server's tools are listed.
    pub fn registered(id: &str, tools: usize) -> String {
        let message = quote(&format!("registration complete, {tools} tools listed"));
        format!("{{\"status\":\"registered\",\"id\":{},\"message\":{message}}}", quote(id))
    }

    /// Builds the frame that tells the gateway that the server was restarted, so that everything
    /// known about it may have changed.
    pub fn restarted() -> String {
        "{\"status\":\"restarted\"}".to_owned()
    }

    /// Builds the frame sent when the registration failed.
    pub fn error(message: &str) -> String {
        format!("{{\"status\":\"error\",\"message\":{}}}", quote(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(frame: &str) -> Result<(Option<String>, Option<String>, bool), InvalidRegistration> {
        Registration::read(frame, 64).map(|r| (r.id, r.name, r.reads_status_frames))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn registrations_of_all_ages() {
        assert_eq!(
            read(&Registration::frame("i", "file", 9000, None, EraPin::Auto, None)),
            Ok((some("i"), some("file"), true))
        );
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
            assert_eq!(read(frame), Err(InvalidRegistration::NotRegister), "{frame}");
        }
        let deep =
            format!("{{\"x\":{}{},\"id\":1,\"method\":\"register\"}}", "[".repeat(128), "]".repeat(128));
        assert_eq!(
            read(&deep),
            Err(InvalidRegistration::NotRegister),
            "what cannot be read whole is not read in part"
        );
        for twice in [
            r#"{"method":"register","method":"tools/call","id":1}"#,
            r#"{"method":"register","params":{"name":"a","n\u0061me":"b"}}"#,
            r#"{"id":1,"id":2,"name":"a"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"id":1,"name":"a","error":{}}"#,
        ] {
            assert_eq!(read(twice), Err(InvalidRegistration::NotRegister), "{twice}");
        }
        for name in ["\"\"", "\"a b\"", "1", "\"a\\u000ab\"", &format!("\"{}\"", "x".repeat(65))] {
            let frame = format!("{{\"method\":\"register\",\"params\":{{\"name\":{name}}}}}");
            assert_eq!(read(&frame), Err(InvalidRegistration::BadName), "{name}");
        }
        for id in ["{}", "1.5", "\"a\\nb\"", &format!("\"{}\"", "x".repeat(129))] {
            assert_eq!(
                read(&format!("{{\"method\":\"register\",\"id\":{id}}}")),
                Err(InvalidRegistration::BadId),
                "{id}"
            );
        }
    }

    #[test]
    fn status_frames() {
        let received = Status::read(&Status::received("i", true, 9000, false, false, None)).unwrap();
        assert_eq!((received.status.as_str(), received.accepts_mcpport), ("received", true));
        assert!(
            !Status::read(&Status::received("i", false, 9000, false, false, None)).unwrap().accepts_mcpport
        );
        assert_eq!(Status::read(&Status::error("no \"x\"")).unwrap().message, "no \"x\"");
        assert_eq!(Status::read(&Status::registered("i", 3)).unwrap().status, "registered");
        assert_eq!(Status::read(&Status::restarted()).unwrap().status, "restarted");
        assert_eq!(Status::read(r#"{"jsonrpc":"2.0","id":1,"result":{},"status":"error"}"#), None);
        assert_eq!(Status::read(r#"{"status":"error","method":"a","method":"b"}"#), None);
        assert_eq!(Status::read("hello"), None);
    }

    #[test]
    fn the_session_limit_is_announced_and_read() {
        let read = |frame: &str| Registration::read(frame, 64).unwrap().sessions;
        assert_eq!(read(&Registration::frame("i", "file", 8000, Some(9), EraPin::Auto, None)), Some(9));
        assert_eq!(read(&Registration::frame("i", "file", 9000, None, EraPin::Auto, None)), None);
        for wrong in ["0", "-1", "1.5", "\"9\"", "99999999999", "null"] {
            assert_eq!(
                read(
                    &Registration::frame("i", "file", 8000, Some(9), EraPin::Auto, None)
                        .replace(":9", &format!(":{wrong}"))
                ),
                None
            );
        }
        assert!(Status::read(&Status::received("i", true, 9000, true, false, None)).unwrap().sessions);
        assert!(!Status::read(&Status::received("i", true, 9000, false, false, None)).unwrap().sessions);
    }

    #[test]
    fn message_sizes_are_told_and_read_strictly() {
        let edge = |frame: &str| Registration::read(frame, 64).map(|read| read.message_bytes);
        let gateway = |frame: &str| Status::read(frame).map(|status| status.message_bytes);
        let registration = Registration::frame("i", "file", 131_072, Some(9), EraPin::Auto, None);
        let received = Status::received("i", true, 4_259_840, true, false, None);
        assert_eq!(edge(&registration), Ok(Some(131_072)));
        assert_eq!(gateway(&received), Some(Some(4_259_840)));
        let changed = |value: &str| {
            let registration = registration.replace("131072", value);
            let received = received.replace("4259840", value);
            (edge(&registration).unwrap(), gateway(&received).unwrap())
        };
        for wrong in [
            "0",
            "-1",
            "1.5",
            "1e6",
            "\"131072\"",
            "null",
            "true",
            "{}",
            "[131072]",
            "99999999999999999999999999",
            "-99999999999999999999999999",
        ] {
            assert_eq!(changed(wrong), (None, None), "{wrong}");
        }
        assert_eq!(changed("1"), (Some(1), Some(1)));
        assert_eq!(changed("18446744073709551615").0, usize::try_from(u64::MAX).ok(), "compared only");
        // Absent, as in registrations of older versions.
        let without = |text: &str, told: &str| text.replace(&format!("\"message_bytes\":{told},"), "");
        assert_eq!(edge(&without(&registration, "131072")), Ok(None));
        assert_eq!(gateway(&without(&received, "4259840")), Some(None));
        // Duplicate members are rejected.
        assert_eq!(
            edge(&registration.replace("131072", "1,\"message_bytes\":2")),
            Err(InvalidRegistration::NotRegister)
        );
        assert_eq!(gateway(&received.replace("4259840", "1,\"message_bytes\":2")), None);
        // The member counts only inside the `mcpport` capability.
        let elsewhere = r#"{"method":"register","params":{"name":"a","message_bytes":9,"capabilities":{"message_bytes":9}}}"#;
        assert_eq!(edge(elsewhere), Ok(None));
        assert!(
            !Status::received("i", false, 9000, false, false, None).contains("message_bytes"),
            "the original"
        );
    }

    #[test]
    fn resume_claims_and_grants_round_trip() {
        let read = |frame: &str| Registration::read(frame, 64).unwrap();
        let fresh = read(&Registration::frame("i", "file", 9000, None, EraPin::Auto, None));
        assert!(fresh.resumes && fresh.claim.is_none());
        let claim = Claim { token: Secret::new("t\"1"), received: 7 };
        let frame = Registration::frame("i", "file", 9000, Some(3), EraPin::Auto, Some(&claim));
        let back = read(&frame).claim.unwrap();
        assert_eq!((back.token.expose(), back.received), ("t\"1", 7));
        for wrong in ["-7", "1.5", "\"7\"", "18446744073709551616", "null"] {
            let frame = frame.replace("\"received\":7", &format!("\"received\":{wrong}"));
            let back = read(&frame);
            assert!(back.resumes && back.claim.is_none(), "{wrong}");
        }
        assert!(!read(r#"{"method":"register","params":{"name":"a","capabilities":{}}}"#).resumes);

        let mut grant =
            ResumeGrant { token: Secret::new("t"), window: Duration::from_secs(30), received: None };
        let granted = |grant: &ResumeGrant| {
            Status::read(&Status::received("i", true, 9000, true, false, Some(grant)))
                .unwrap()
                .resume
                .unwrap()
        };
        assert_eq!((granted(&grant).window.as_secs(), granted(&grant).received), (30, None));
        grant.received = Some(0);
        assert_eq!((granted(&grant).token.expose(), granted(&grant).received), ("t", Some(0)));
        assert!(
            !Status::received("i", false, 9000, false, false, Some(&grant)).contains("resume"),
            "not to the original"
        );
    }

    #[test]
    fn the_era_is_offered_and_accepted_by_both_ends_of_this_age() {
        for pin in EraPin::ALL {
            let registration = Registration::frame("i", "file", 9000, Some(3), pin, None);
            assert_eq!(Registration::read(&registration, 64).unwrap().era, Some(pin));
            // An edge of before, a pin that we do not know, and offers outside the capability.
            let word = format!("\"era\":\"{}\"", pin.word());
            for other in ["\"x\":1", "\"era\":\"next\"", "\"era\":{}", "\"era\":null", "\"era\":true"] {
                let read = Registration::read(&registration.replace(&word, other), 64).unwrap();
                assert_eq!((read.era, read.sessions, read.resumes), (None, Some(3), true), "{other}");
            }
            let twice = registration.replace(&word, &format!("{word},{word}"));
            assert_eq!(Registration::read(&twice, 64).err(), Some(InvalidRegistration::NotRegister));
        }
        let elsewhere =
            r#"{"method":"register","params":{"name":"a","era":"modern","capabilities":{"era":"modern"}}}"#;
        assert_eq!(Registration::read(elsewhere, 64).unwrap().era, None);
        for (accepts_mcpport, era) in [(true, true), (true, false), (false, true), (false, false)] {
            let received = Status::received("i", accepts_mcpport, 9000, true, era, None);
            let read = Status::read(&received).unwrap();
            assert_eq!(read.era, accepts_mcpport && era, "{received}");
            assert_eq!(received.contains("era"), accepts_mcpport && era, "nothing new to the original");
        }
        let (with, without) = [true, false].map(|era| Status::received("i", true, 9, true, era, None)).into();
        assert_ne!(Status::read(&with), Status::read(&without));
    }
}
