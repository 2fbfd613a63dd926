//! The queue towards the gateway, with the size of the largest frame that the gateway accepts.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::{
    jsonrpc::Message,
    limits::LOG_WARNINGS,
    log_throttle::LogThrottle,
    net::{outbox::Sender, ws_link::CloseReason},
    tunnel::{frame, oversize::Oversize},
};

/// The queue of one link, or of a chain of links that each resume the one before.
#[derive(Clone, Debug)]
pub struct Uplink {
    queue: Sender<CloseReason>,
    /// Largest frame that the gateway accepts, in bytes.
    accepts: usize,
    /// Limits how often messages that are too large are logged.
    oversized: Arc<Mutex<LogThrottle>>,
}

impl Uplink {
    /// Wraps `queue`. `accepts` is the largest frame in bytes that the gateway accepts, if it
    /// announced one.
    pub fn new(queue: Sender<CloseReason>, accepts: Option<usize>) -> Self {
        Self { queue, accepts: accepts.unwrap_or(usize::MAX), oversized: Arc::default() }
    }

    /// Returns the queue.
    pub fn queue(&self) -> &Sender<CloseReason> {
        &self.queue
    }

    /// Builds the frame for a message of the server, on channel `number` if given. A response
    /// larger than the gateway accepts is replaced by an error response.
    ///
    /// # Errors
    /// The message is larger than the gateway accepts and no error response can replace it. For a
    /// request, the error holds the error response for the server.
    pub fn frame(&self, number: Option<u32>, text: String) -> Result<String, Option<String>> {
        let bytes = text.len() + number.map_or(0, frame::overhead);
        let text = if bytes <= self.accepts { text } else { self.replace(bytes, &text)? };
        Ok(match number {
            Some(number) => frame::message(number, &text),
            None => text,
        })
    }

    /// Returns the error response to send in place of a message that is too large.
    fn replace(&self, bytes: usize, text: &str) -> Result<String, Option<String>> {
        let why = format!(
            "the server's message has {bytes} bytes, and the gateway accepts at most {} (see --max-message-bytes at the gateway)",
            self.accepts
        );
        let mut oversized = self.oversized.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = oversized.due(Instant::now(), "oversize", "", LOG_WARNINGS) {
            log::warn!("{why}{left_out}");
        }
        match Message::read(text).map(|message| Oversize::of(&message, &why)) {
            Ok(Oversize::Response(error)) => Ok(error),
            Ok(Oversize::Refusal(error)) => Err(Some(error)),
            Ok(Oversize::Dropped) | Err(_) => Err(None),
        }
    }
}
