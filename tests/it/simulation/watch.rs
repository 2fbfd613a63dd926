//! What an observer of one edge knows: the gateway's requests and the edge's frames on the current
//! link, and what must follow from them.

use std::collections::{BTreeMap, BTreeSet};

use mcpport::{
    jsonrpc::{Kind, Message},
    net::outbound::Unacknowledged,
    tunnel::{
        frame::{self, Frame},
        handshake::Status,
    },
};

use super::{child, line::Books};

/// What was seen since the last link that did not resume an earlier one.
#[derive(Default)]
pub struct Watch {
    pub books: Books,
    /// There is a link, or one that may be resumed.
    is_linked: bool,
    /// The token with which the link can be resumed.
    token: Option<String>,
    /// The frames that the edge keeps until they are acknowledged.
    kept: Unacknowledged,
    /// Ids of the gateway's requests that have no response: `initialize`, and others that are not
    /// cancelled either.
    initializes: BTreeSet<String>,
    open: BTreeSet<String>,
    /// Those of `open` that were lost with a child, and must get an error.
    owed: BTreeSet<String>,
    /// Ids of the requests without a response on each channel of a session.
    channels: BTreeMap<u32, BTreeSet<String>>,
    /// The gateway reads status frames.
    is_ours: bool,
    /// The gateway must be told that there is a new child: that the lists have changed, and by a status
    /// frame.
    is_new: bool,
    is_restarted: bool,
    /// It was told with a status frame, and has not listed the tools.
    announced: bool,
    /// How often the gateway listed the tools of a new child on the link on which it was told.
    pub relisted: usize,
}

impl Watch {
    /// All is lost: the link cannot be resumed, or the program has ended.
    pub fn forget(&mut self) {
        *self = Self { relisted: self.relisted, ..Self::default() };
    }

    /// A link begins, or is resumed.
    pub fn begins(&mut self, answer: &Status, kept: Unacknowledged) {
        (self.is_linked, self.is_ours) = (true, answer.accepts_mcpport);
        self.token = answer.resume.as_ref().map(|grant| grant.token.expose().to_owned());
        self.kept = kept;
    }

    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The gateway sends a frame.
    pub fn asked(&mut self, text: &str) {
        let text = match frame::read(text) {
            Frame::Plain(text) => text,
            frame => return self.asked_on_channel(&frame),
        };
        let Ok(message) = Message::read(text) else { return check_status(text) };
        let id = message.id().unwrap_or_default().to_owned();
        match (message.kind(), message.method()) {
            (Kind::Request, "initialize") => assert!(self.initializes.insert(id)),
            (Kind::Request, _) => assert!(self.open.insert(id)),
            (Kind::Notification, "notifications/cancelled") => {
                let id = message.param(&["requestId"]).unwrap().expect("our gateway names the request");
                self.open.remove(&text[id.clone()]);
                self.owed.remove(&text[id]);
            }
            _ => {}
        }
    }

    /// The edge takes a frame from its queue, to send it.
    pub fn said(&mut self, text: &str) {
        self.books.said(text);
        let text = match frame::read(text) {
            Frame::Plain(text) => text,
            frame => return self.said_on_channel(&frame),
        };
        let Ok(message) = Message::read(text) else {
            let status = Status::read(text).expect("the edge sends messages and status frames");
            assert_eq!(status.status, "restarted", "{text}");
            assert!(self.is_ours, "an original gateway gets {text}");
            (self.announced, self.is_restarted) = (true, false);
            return;
        };
        match (message.kind(), message.id()) {
            (Kind::Response, Some(id)) => {
                let asked = self.initializes.remove(id);
                let initialized = text.contains(child::INITIALIZED);
                assert!(asked || !initialized, "this link did not ask for {text}");
                if initialized {
                    (self.is_new, self.is_restarted) = (false, false);
                }
                self.open.remove(id);
                self.owed.remove(id);
            }
            (Kind::Notification, _) if message.method() == "notifications/tools/list_changed" => {
                self.is_new = false;
            }
            _ => {}
        }
    }

    fn asked_on_channel(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Plain(_) => {}
            Frame::Open(number) => assert!(self.channels.insert(*number, BTreeSet::new()).is_none()),
            Frame::Close(number, _) => {
                self.channels.remove(number);
            }
            Frame::Message(number, text) => {
                let Some(open) = self.channels.get_mut(number) else { return };
                let message = Message::read(text).expect("sessions send messages");
                match (message.kind(), message.id()) {
                    (Kind::Request, Some(id)) => assert!(open.insert(id.to_owned())),
                    (Kind::Notification, _) if message.method() == "notifications/cancelled" => {
                        let id = message.param(&["requestId"]).unwrap().expect("it names the request");
                        open.remove(&text[id]);
                    }
                    _ => {}
                }
            }
        }
    }

    fn said_on_channel(&mut self, frame: &Frame<'_>) {
        match frame {
            Frame::Plain(_) => {}
            Frame::Open(_) => panic!("an edge opens no channel"),
            Frame::Close(number, _) => {
                self.channels.remove(number);
            }
            Frame::Message(number, text) => {
                let message = Message::read(text).expect("servers send messages");
                if let (Some(open), Kind::Response, Some(id)) =
                    (self.channels.get_mut(number), message.kind(), message.id())
                {
                    open.remove(id);
                }
            }
        }
    }

    /// The edge notices that the child is gone: each open request must get an error, even if
    /// another child is started soon.
    pub fn child_is_gone(&mut self) {
        self.announced = false;
        self.owed = self.open.clone();
    }

    /// A restarted child is initialized. The gateway must list its tools: after the response to
    /// `initialize`, or because it is told that they changed.
    pub fn child_is_new(&mut self) {
        (self.is_new, self.is_restarted) = (self.is_linked, self.is_linked && self.is_ours);
    }

    /// The child reads a line.
    pub fn child_reads(&mut self, line: &str) {
        if self.announced && line.contains("\"tools/list\"") {
            self.announced = false;
            self.relisted += 1;
        }
    }

    /// Checks what holds at any time.
    pub fn check(&self, resume_messages: usize) {
        let kept = self.kept.count();
        assert!(kept <= resume_messages, "{kept} frames are kept");
    }

    /// Checks what holds when nothing waits to be sent. `running`: how many requests the edge
    /// counts as open, at the shared server and on the channels.
    pub fn check_idle(&self, place: usize, running: Option<usize>, on_channels: usize) {
        assert!(self.owed.is_empty(), "the child of box {place} was lost, and {:?} get no error", self.owed);
        assert!(!self.is_new && !self.is_restarted, "nobody hears of the new child of box {place}");
        let open: usize = self.channels.values().map(BTreeSet::len).sum();
        assert_eq!(on_channels, open, "box {place} counts other requests than {:?}", self.channels);
        let open = self.open.len();
        assert_eq!(running.unwrap_or(open), open, "box {place} counts other requests than {:?}", self.open);
    }

    /// Checks that each request got a response.
    pub fn check_answered(&self) {
        assert!(self.channels.values().all(BTreeSet::is_empty), "{:?} have no answer", self.channels);
        assert!(self.open.is_empty(), "the edge stops, and {:?} have no answer", self.open);
    }
}

/// Why an honest gateway may end a registration.
const EXCUSES: [&str; 7] =
    ["refused", "crashed", "down", "timed out", "exited", "does not read its input", "the edge is stopping"];

/// Checks the reason in a status frame of the gateway.
fn check_status(text: &str) {
    let status = Status::read(text).expect("the gateway sends messages and status frames");
    let excused = EXCUSES.iter().any(|excuse| status.message.contains(excuse));
    assert!(status.status != "error" || excused, "{text}");
}
