//! What an entry into the hub leaves to be done after it, without the lock: responses, messages to
//! sessions, log lines, and the drop of what was removed.
//!
//! Frames to servers are not among them: they are queued inside the hub, because their order must
//! be that of the changes, and because the hub must know whether the link took them.

use std::{any::Any, sync::Arc};

use super::peers::{Responder, SessionStream, Wakers};
use crate::{
    jsonrpc::{Message, Span},
    mcp::stateless::listen,
    metrics::Stats,
};

/// The text of a message to a client.
#[derive(Clone, Debug)]
pub enum Text<'m> {
    /// A text of the gateway's own.
    Own(String),
    /// A server's message, with these edits.
    Of(&'m Message<'m>, Vec<(Span, String)>),
    /// A server's notification for the listen with this id. The last is the position of the URI, and
    /// the client's form of it.
    Tagged(&'m Message<'m>, Box<str>, Option<(Span, String)>),
    /// A modern server's notification for a session, likewise.
    Untagged(&'m Message<'m>, Option<(Span, String)>),
}

impl Text<'_> {
    fn into_text(self) -> String {
        match self {
            Self::Own(text) => text,
            _ => self.to_text(),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Own(text) => text.clone(),
            Self::Of(message, edits) => {
                let edits: Vec<(Span, &str)> =
                    edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
                message.splice(&edits)
            }
            Self::Tagged(message, id, uri) => listen::tagged(message, id, borrowed(uri)),
            Self::Untagged(message, uri) => listen::untagged(message, borrowed(uri)),
        }
    }
}

fn borrowed(uri: &Option<(Span, String)>) -> Option<(Span, &str)> {
    uri.as_ref().map(|(span, uri)| (span.clone(), uri.as_str()))
}

/// One thing to do after an entry.
#[derive(Debug)]
enum Effect<'m> {
    Finish(Arc<dyn Responder>, String),
    Fail(Arc<dyn Responder>, i64, String),
    Cancelled(Arc<dyn Responder>, String),
    Related(Arc<dyn Responder>, Text<'m>),
    Deliver(Vec<Arc<dyn SessionStream>>, Text<'m>),
    Notice(Vec<Arc<dyn SessionStream>>, String),
    End(Arc<dyn SessionStream>),
    Close(Arc<dyn SessionStream>),
    Log(log::Level, String),
}

/// What is to be done after an entry, in this order.
#[derive(Debug, Default)]
pub struct Effects<'m> {
    wakers: Wakers,
    list: Vec<Effect<'m>>,
    /// What was removed. Dropped after the entry: it may hold megabytes.
    removed: Vec<Box<dyn Any + Send>>,
    /// A list changed: the caller wakes the task that notifies the clients.
    pub lists_changed: bool,
    /// The next deadline is now earlier: the caller wakes the task that waits for it.
    pub deadline_changed: bool,
}

impl<'m> Effects<'m> {
    /// Responds to a request.
    pub fn finish(&mut self, responder: Arc<dyn Responder>, response: String) {
        self.list.push(Effect::Finish(responder, response));
    }

    /// Responds to a request with an error of this code.
    pub fn fail(&mut self, responder: Arc<dyn Responder>, code: i64, response: String) {
        self.list.push(Effect::Fail(responder, code, response));
    }

    /// Ends a request that was cancelled; `id` is the client's own, as raw JSON.
    pub fn cancelled(&mut self, responder: Arc<dyn Responder>, id: &str) {
        self.list.push(Effect::Cancelled(responder, id.to_owned()));
    }

    /// Sends a message that belongs to a request to the client that sent the request.
    pub fn send(&mut self, responder: Arc<dyn Responder>, text: Text<'m>) {
        self.list.push(Effect::Related(responder, text));
    }

    /// Sends a message to sessions.
    pub fn deliver(&mut self, streams: Vec<Arc<dyn SessionStream>>, text: Text<'m>) {
        self.list.push(Effect::Deliver(streams, text));
    }

    /// Sends a notification to sessions, unless an identical one is queued there.
    pub fn notice(&mut self, streams: Vec<Arc<dyn SessionStream>>, notice: String) {
        self.list.push(Effect::Notice(streams, notice));
    }

    /// Ends the stream of a session for messages that belong to no request.
    pub fn end(&mut self, stream: Arc<dyn SessionStream>) {
        self.list.push(Effect::End(stream));
    }

    /// Closes all streams of a session that has ended.
    pub fn close(&mut self, stream: Arc<dyn SessionStream>) {
        self.list.push(Effect::Close(stream));
    }

    /// Writes a log line.
    pub fn log(&mut self, level: log::Level, line: impl FnOnce() -> String) {
        if log::log_enabled!(level) {
            self.list.push(Effect::Log(level, line()));
        }
    }

    /// Drops a removed value after the entry.
    pub fn drop_later(&mut self, removed: impl Any + Send) {
        self.removed.push(Box::new(removed));
    }

    /// Returns the tasks to wake after the entry.
    pub fn wakers(&mut self) -> &mut Wakers {
        &mut self.wakers
    }

    /// Applies all effects in order. The two flags are left to the caller. The hub must not be
    /// locked.
    pub fn apply(self, stats: &Stats) {
        self.wakers.wake();
        for effect in self.list {
            effect.apply(stats);
        }
    }
}

impl Effect<'_> {
    fn apply(self, stats: &Stats) {
        match self {
            Self::Finish(responder, response) => responder.finish(response, stats),
            Self::Fail(responder, code, response) => responder.fail(code, response, stats),
            Self::Cancelled(responder, id) => responder.cancelled(&id, stats),
            Self::Related(responder, text) => responder.send(text.into_text(), stats),
            Self::Deliver(streams, text) => {
                streams.iter().for_each(|stream| stream.send(text.to_text(), stats));
            }
            Self::Notice(streams, notice) => {
                streams.iter().for_each(|stream| stream.notice(&notice, stats));
            }
            Self::End(stream) => stream.end(),
            Self::Close(stream) => stream.close(),
            Self::Log(level, line) => log::log!(level, "{line}"),
        }
    }
}
