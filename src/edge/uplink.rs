//! The queue towards the gateway: for the shared server, or for one channel of the link. It knows
//! the size of the largest frame that the gateway accepts.

use std::sync::Arc;

use super::throttled_log::ThrottledLog;
use crate::{
    jsonrpc::Message,
    limits::LOG_WARNINGS,
    net::outbox::{SendError, Sender},
    tunnel::{close::CloseReason, frame, oversize::Oversize},
};

/// The queue of one link, or of a chain of links that each resume the one before.
#[derive(Clone, Debug)]
pub struct Uplink {
    queue: Sender<CloseReason>,
    /// Largest frame that the gateway accepts, in bytes.
    accepts: usize,
    /// The channel that messages are sent on; `None`: as plain frames, for the shared server.
    channel: Option<u32>,
    log: Arc<ThrottledLog>,
}

impl Uplink {
    /// Wraps `queue`, without a channel. `accepts` is the largest frame in bytes that the gateway
    /// accepts, if it announced one.
    pub fn new(queue: Sender<CloseReason>, accepts: Option<usize>, log: Arc<ThrottledLog>) -> Self {
        Self { queue, accepts: accepts.unwrap_or(usize::MAX), channel: None, log }
    }

    /// Returns the same queue for the messages of channel `number`.
    pub fn on_channel(&self, number: u32) -> Self {
        Self { channel: Some(number), ..self.clone() }
    }

    /// Returns the queue.
    pub fn queue(&self) -> &Sender<CloseReason> {
        &self.queue
    }

    /// Builds the frame for a message of the server. A response larger than the gateway accepts is
    /// replaced by an error response.
    ///
    /// # Errors
    /// The message is larger than the gateway accepts and no error response can replace it. For a
    /// request, the error holds the error response for the server.
    pub fn frame(&self, text: String) -> Result<String, Option<String>> {
        let bytes = text.len() + self.channel.map_or(0, frame::overhead);
        let text = if bytes <= self.accepts { text } else { self.replace(bytes, &text)? };
        Ok(self.wrap(text))
    }

    /// Sends an error response of the edge itself, which is small. It has reserved capacity, see
    /// [`Sender::send_reserved`].
    ///
    /// # Errors
    /// The queue is full beyond that capacity, or closed.
    pub fn send_error(&self, response: String) -> Result<(), SendError> {
        self.queue.send_reserved(self.wrap(response))
    }

    fn wrap(&self, text: String) -> String {
        match self.channel {
            Some(number) => frame::message(number, &text),
            None => text,
        }
    }

    /// Returns the error response to send in place of a message that is too large.
    fn replace(&self, bytes: usize, text: &str) -> Result<String, Option<String>> {
        let why = format!(
            "the server's message has {bytes} bytes, and the gateway accepts at most {} (see --max-message-bytes at the gateway)",
            self.accepts
        );
        self.log.line(log::Level::Warn, "oversize", LOG_WARNINGS, &why);
        match Message::read(text).map(|message| Oversize::of(&message, &why)) {
            Ok(Oversize::Response(error)) => Ok(error),
            Ok(Oversize::Refusal(error)) => Err(Some(error)),
            Ok(Oversize::Dropped) | Err(_) => Err(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{jsonrpc, net::outbox};

    #[test]
    fn a_message_larger_than_the_gateway_accepts_is_replaced() {
        let (queue, _frames) = outbox::bounded(8, 1 << 20);
        let plain = Uplink::new(queue, Some(500), Arc::default());
        let channel = plain.on_channel(7);
        let message = |head: &str, bytes: usize| {
            let rest = bytes - head.len() - "\"}".len();
            format!("{head}{}\"}}", "x".repeat(rest))
        };
        let answer = |bytes| message(r#"{"jsonrpc":"2.0","id":1,"result":""#, bytes);
        let request = |bytes| message(r#"{"jsonrpc":"2.0","id":2,"method":"ping","x":""#, bytes);
        let note = |bytes| message(r#"{"jsonrpc":"2.0","method":"note","x":""#, bytes);
        assert_eq!(plain.frame(answer(500)), Ok(answer(500)));
        let fits = 500 - frame::overhead(7);
        assert_eq!(channel.frame(answer(fits)), Ok(frame::message(7, &answer(fits))));
        for (uplink, bytes) in [(&plain, 501), (&channel, fits + 1)] {
            let replaced = uplink.frame(answer(bytes)).unwrap();
            assert!(replaced.contains("has 501 bytes, and the gateway accepts at most 500"), "{replaced}");
            assert!(replaced.len() <= 500 && replaced.contains(r#""id":1"#), "{replaced}");
            let refusal = uplink.frame(request(bytes)).unwrap_err().unwrap();
            assert!(refusal.contains(r#""id":2"#) && Message::read(&refusal).is_ok(), "{refusal}");
            assert_eq!(uplink.frame(note(bytes)), Err(None));
        }
    }

    #[test]
    fn messages_go_out_on_the_channel_of_the_uplink() {
        let (queue, mut frames) = outbox::bounded::<CloseReason>(8, 1 << 20);
        let plain = Uplink::new(queue, None, Arc::default());
        let error = jsonrpc::error("1", jsonrpc::BUSY, "x");
        plain.send_error(error.clone()).unwrap();
        plain.on_channel(7).send_error(error.clone()).unwrap();
        let mut sent = std::collections::VecDeque::new();
        assert_eq!(smol::block_on(frames.take(&mut sent)), outbox::Received::Some);
        assert_eq!(sent, [error.clone(), frame::message(7, &error)]);
    }
}
