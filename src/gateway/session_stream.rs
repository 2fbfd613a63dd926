//! The streams of a client session, for messages that belong to no request. Implements the
//! [`SessionStream`] of the hub; the endpoints attach connections to it.

use std::sync::Arc;

use super::{responder::StreamResponder, streams::Streams};
use crate::{
    budget::Account,
    hub::peers::{Responder, SessionStream},
    limits::SessionLimits,
    metrics::Stats,
    net::outbox::SendError,
    util,
};

/// The queue of what belongs to no request, and the event streams of a Streamable session.
#[derive(Debug)]
pub struct SessionStreams {
    /// The session's name for logs.
    name: String,
    /// Whether it uses the 2024-11-05 transport, with one event stream for everything. Otherwise
    /// responses go to the POST that carried the request.
    legacy: bool,
    /// Where messages that belong to no request go, and in the 2024-11-05 transport everything
    /// else too.
    outbox: Arc<StreamResponder>,
    streams: Streams,
}

impl SessionStreams {
    /// Creates the streams of a session that is named `name` in logs. `legacy`: it uses the
    /// 2024-11-05 transport.
    pub fn new(
        name: &str,
        legacy: bool,
        outbox: StreamResponder,
        account: &Account,
        limits: &SessionLimits,
    ) -> Self {
        let (name, outbox) = (name.to_owned(), Arc::new(outbox));
        Self { name, legacy, outbox, streams: Streams::new(limits, account) }
    }

    /// Returns whether the session uses the 2024-11-05 transport.
    pub fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// Returns where the responses to its requests go in the 2024-11-05 transport.
    pub fn responder(&self) -> Arc<dyn Responder> {
        self.outbox.clone()
    }

    /// Returns the event streams, for the Streamable transport.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }
}

impl SessionStream for SessionStreams {
    fn open_streams(&self) -> usize {
        if self.legacy { 1 } else { self.streams.attached() }
    }

    /// In the Streamable transport the message is dropped unless the client has opened the
    /// standalone stream.
    fn send(&self, message: String, stats: &Stats) {
        if (self.legacy || self.streams.was_listened_to()) && !self.request(message, stats) {
            // The stream is parked or not read; the session continues without this message.
            let name = util::escape::show(&self.name);
            log::debug!("client {name}: dropped a message: its stream is full");
        }
    }

    fn notice(&self, notice: &str, stats: &Stats) {
        if !self.outbox.queue().has(notice) {
            self.send(notice.to_owned(), stats);
        }
    }

    /// On the 2024-11-05 transport the stream ends if there is no room.
    fn request(&self, message: String, stats: &Stats) -> bool {
        if self.legacy {
            self.outbox.send(message, stats);
            return true;
        }
        !matches!(self.outbox.queue().send(message), Err(SendError::Full | SendError::Memory))
    }

    fn end(&self) {
        self.outbox.queue().end(());
    }

    fn close(&self) {
        self.streams.close();
    }
}
