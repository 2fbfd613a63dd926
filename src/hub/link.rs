//! What all processes behind one link share: the server's name, its transport, and the throttle of
//! log lines about it.

use std::{sync::Arc, time::Instant};

use super::{effect::Effects, error::Declined, peers::Transport};
use crate::{
    jsonrpc::{Kind, Malformed, Message, tolerant::Unusable},
    limits::{LOG_GROUPS, LOG_WARNINGS},
    log_throttle::LogThrottle,
    metrics::Stats,
    queue::{Room, SendError},
    tunnel::{close::CloseReason, frame},
    util::escape::show,
};

/// The link of a server, as its processes use it.
#[derive(Debug)]
pub struct Link {
    name: Arc<str>,
    transport: Arc<dyn Transport>,
    /// Largest frame that the edge accepts, in bytes.
    accepts: usize,
    /// Throttles log lines about odd messages.
    throttle: LogThrottle,
}

impl Link {
    /// Creates the link of the server `name`. `accepts`: the largest frame that its edge accepts,
    /// if it declared one.
    pub fn new(name: &str, transport: Arc<dyn Transport>, accepts: Option<usize>) -> Self {
        let (accepts, throttle) = (accepts.unwrap_or(usize::MAX), LogThrottle::default());
        Self { name: name.into(), transport, accepts, throttle }
    }

    /// Returns the name that the server registered with.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns whether the link takes no more frames.
    pub fn is_closed(&self) -> bool {
        self.transport.is_closed()
    }

    /// Closes the link after the queued frames.
    pub fn close(&self, reason: CloseReason) {
        self.transport.close(reason);
    }

    /// Returns [`Declined::TooLarge`] if a message in its frame is larger than the edge accepts.
    pub fn excess(&self, channel: Option<u32>, text: &str) -> Option<Declined> {
        let bytes = text.len() + channel.map_or(0, frame::overhead);
        (bytes > self.accepts).then_some(Declined::TooLarge(bytes, self.accepts))
    }

    /// Returns whether a message is too large for the edge, and logs that. For messages without a
    /// caller that could be answered with an error.
    pub fn is_too_large(
        &mut self,
        now: Instant,
        channel: Option<u32>,
        text: &str,
        fx: &mut Effects<'_>,
    ) -> bool {
        let Some(Declined::TooLarge(bytes, max)) = self.excess(channel, text) else { return false };
        self.warn(now, "too_large", fx, || {
            format!(
                "was not sent a message of {bytes} bytes: its edge accepts at most {max} (see --max-message-bytes at register)"
            )
        });
        true
    }

    /// Sends a message to a process of the server. A message that is too large for the edge is
    /// dropped, with a log line.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn send(
        &mut self,
        now: Instant,
        channel: Option<u32>,
        text: String,
        fx: &mut Effects<'_>,
    ) -> Result<(), SendError> {
        if self.is_too_large(now, channel, &text, fx) {
            Ok(())
        } else {
            self.queue(channel, text, Room::Normal, fx)
        }
    }

    /// Queues a message to a process of the server, whatever its size.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn queue(
        &self,
        channel: Option<u32>,
        text: String,
        room: Room,
        fx: &mut Effects<'_>,
    ) -> Result<(), SendError> {
        let frame = match channel {
            Some(channel) => frame::message(channel, &text),
            None => text,
        };
        self.queue_frame(frame, room, fx)
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// [`SendError`]: the link does not keep up or is gone, or memory is used up.
    pub fn queue_frame(&self, frame: String, room: Room, fx: &mut Effects<'_>) -> Result<(), SendError> {
        self.transport.send(frame, room, fx.wakers())
    }

    /// Logs an odd message: at most one line per kind and second, with a count of those left out.
    pub fn warn(
        &mut self,
        now: Instant,
        kind: &'static str,
        fx: &mut Effects<'_>,
        what: impl FnOnce() -> String,
    ) {
        if let Some(left_out) = self.throttle.due(now, kind, "", LOG_WARNINGS) {
            fx.log(log::Level::Warn, || format!("server '{}' {}{left_out}", self.name, what()));
        }
    }

    /// Logs a response or progress notification without a pending request.
    pub fn log_unmatched(&mut self, now: Instant, message: &Message<'_>, fx: &mut Effects<'_>) {
        match message.id() {
            Some(id) => self.warn(now, "stray_answer", fx, || {
                format!("sent a response to an unknown request: id {}", show(id))
            }),
            None if message.kind() == Kind::Response => {
                self.warn(now, "stray_error", fx, || "sent an error response without an id".into());
            }
            None => self.warn(now, "stray_progress", fx, || "sent progress for an unknown request".into()),
        }
    }

    /// Logs a response that cannot be used.
    pub fn log_unusable(&mut self, now: Instant, answer: &Unusable, fx: &mut Effects<'_>) {
        self.warn(now, "unusable", fx, || format!("sent an invalid response: {}", answer.why));
    }

    /// Logs a message with a member whose name differs only in case from a JSON-RPC member.
    pub fn log_twin(&mut self, now: Instant, fx: &mut Effects<'_>) {
        self.warn(now, "twin", fx, || {
            "sent a member whose name differs only in case from a JSON-RPC member; removed it".into()
        });
    }

    /// Counts and logs text that is not a message. Text with a duplicate member was probably meant
    /// to be a message, so it gets a warning.
    pub fn on_noise(
        &mut self,
        now: Instant,
        malformed: Option<Malformed>,
        stats: &Stats,
        fx: &mut Effects<'_>,
    ) {
        stats.unmatched.add();
        match malformed {
            Some(why @ Malformed::Duplicate) => {
                self.warn(now, "duplicate", fx, || format!("sent an invalid message: {}", why.reason()));
            }
            _ => fx.log(log::Level::Debug, || {
                format!("server '{}' sent a frame that is not a message", self.name)
            }),
        }
    }

    /// Logs a request that timed out: throttled, with a count of those left out.
    pub fn log_expired(&mut self, now: Instant, method: &str, seconds: f64, fx: &mut Effects<'_>) {
        if let Some(left_out) = self.throttle.due(now, "no_answer", "", LOG_GROUPS) {
            fx.log(log::Level::Info, || {
                let method = show(method);
                format!("server '{}' did not respond to {method} within {seconds} s{left_out}", self.name)
            });
        }
    }
}
