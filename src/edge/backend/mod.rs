//! Backends run an MCP server for the edge. One kind so far: [`stdio`], a child process.
//!
//! `edge::supervisor` and `edge::instances` start a [`Backend`] by a [`StartBackend`] and know
//! nothing of its kind; `edge::serve` chooses it.
//!
//! A backend gives the messages of its server to a [`LineSink`], which forwards them: those of the
//! shared server in `edge::state`, those of a session's own process in `edge::instances`. [`lines`]
//! finds the messages in a line of output.

pub mod lines;
pub mod stdio;

use std::{pin::Pin, sync::Arc};

use super::{restart::Ending, uplink::Uplink};
use crate::{
    error::FatalError,
    limits::Limits,
    net::outbox::{self, Receiver, Sender},
    runtime::task_tracker::TaskGuard,
};

/// The future of a method of a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One run of an MCP server. Messages for it come from the queue that it was started with, and its
/// own go to a [`LineSink`].
///
/// Dropping it ends the server without reading its last messages.
pub trait Backend: Send {
    /// Waits until the server can serve no more. The future may be dropped before it completes, and
    /// the method called again.
    fn ended(&mut self) -> BoxFuture<'_, BackendEnd>;

    /// Ends the server, and reads its last messages. Takes a bounded time, see
    /// [`crate::limits::ChildLimits`].
    fn stop(self: Box<Self>) -> BoxFuture<'static, BackendExit>;
}

/// Why a server can serve no more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BackendEnd {
    /// It ended by itself.
    Exited,
    /// It has to be stopped, for this reason.
    Unusable(String),
}

/// How a run of a server ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BackendExit {
    /// What the restart policy needs to know.
    pub ending: Ending,
    /// The server could not be run at all, so a restart would fail too.
    pub is_not_run: bool,
    /// The end of a sentence that begins with the name of the server: `exited with status 3`.
    pub told: String,
    /// The same as a noun: `exit status 3`.
    pub brief: String,
    /// What to do about it, to follow either of them; may be empty.
    pub hint: String,
}

/// The input and output of a run of a server.
pub struct BackendIo {
    /// The writing side of the queue of messages for the server, which the backend ends when it is
    /// stopped.
    pub input: Sender<()>,
    /// Its reading side.
    pub messages: Receiver<()>,
    /// Takes the messages of the server.
    pub sink: Arc<dyn LineSink>,
}

/// Starts a run of a server. The error is one line that names the flag.
pub type StartBackend = Arc<dyn Fn(BackendIo) -> Result<Box<dyn Backend>, FatalError> + Send + Sync>;

/// Creates the queue of messages for a server. It exists before the server, so that messages can
/// wait for the start.
pub fn queue(limits: &Limits) -> (Sender<()>, Receiver<()>) {
    outbox::bounded(limits.child.queue_messages, limits.link.queue_bytes)
}

/// Takes the messages of one run of a server.
///
/// It decides at once and never waits, so that a call needs no boxed future. Where the reader has
/// to wait for space on the link, it gets a [`Delivery`].
pub trait LineSink: Send + Sync {
    /// Takes one message.
    fn message(&self, text: &str) -> LineOutcome;

    /// Fails a request whose response cannot be used, with the error message `why`. Without an id,
    /// fails the only open request, if there is exactly one.
    fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome;
}

/// The outcome of one message or line.
#[derive(Debug)]
pub enum LineOutcome {
    /// It was a message. Finish the delivery before reading the next one, so that a full link slows
    /// the server down.
    Message(Delivery),
    /// It was not a message, but a banner or debug output. It is logged and not forwarded.
    Noise,
    /// The server has to be stopped, for this reason.
    End(&'static str),
}

/// Frames that are to be put on the queue of the link. The drain at shutdown waits until it is
/// finished or dropped.
#[derive(Debug, Default)]
#[must_use = "the frames are lost unless it is finished"]
pub struct Delivery {
    uplink: Option<Uplink>,
    /// The first frame, so that the usual single frame needs no vector.
    first: Option<String>,
    more: Vec<String>,
    guard: Option<TaskGuard>,
}

impl Delivery {
    /// Creates a delivery without frames.
    pub fn none() -> Self {
        Self::default()
    }

    /// Creates a delivery to `uplink`. `guard` counts it.
    pub fn new(uplink: Uplink, guard: TaskGuard) -> Self {
        Self { uplink: Some(uplink), first: None, more: Vec::new(), guard: Some(guard) }
    }

    /// Adds a message of the server, as [`Uplink::frame`] builds its frame.
    ///
    /// # Errors
    /// It is larger than the gateway accepts. For a request, the error holds the error response for
    /// the server.
    pub fn add(&mut self, text: String) -> Result<(), Option<String>> {
        let Some(uplink) = &self.uplink else { return Ok(()) };
        let frame = uplink.frame(text)?;
        match self.first {
            None => self.first = Some(frame),
            Some(_) => self.more.push(frame),
        }
        Ok(())
    }

    /// Puts the frames on the queue, each as soon as there is space. If the link is gone, they are
    /// dropped.
    pub async fn finish(self) {
        let Self { uplink, first, more, guard: _guard } = self;
        let Some(uplink) = uplink else { return };
        for frame in first.into_iter().chain(more) {
            if uplink.queue().send_wait(frame).await.is_err() {
                log::debug!("dropped a message of the server: its link was closed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, pin::pin};

    use futures_lite::future;

    use super::*;
    use crate::{
        net::outbox::{self, Received},
        runtime::task_tracker::TaskTracker,
        tunnel::close::CloseReason,
    };

    #[test]
    fn a_delivery_counts_until_all_its_frames_are_queued() {
        let (queue, mut frames) = outbox::bounded::<CloseReason>(2, 1 << 10);
        let delivering = TaskTracker::new();
        let mut delivery = Delivery::new(Uplink::new(queue, None, Arc::default()), delivering.track());
        for frame in ["a", "b", "c"] {
            delivery.add(frame.to_owned()).unwrap();
        }
        smol::block_on(async {
            let mut delivered = pin!(delivery.finish());
            assert!(future::poll_once(delivered.as_mut()).await.is_none());
            assert_eq!(delivering.len(), 1, "the queue has space for two");
            let mut sent = VecDeque::new();
            assert_eq!(frames.take(&mut sent).await, Received::Some);
            delivered.await;
            assert!(delivering.is_empty());
            assert_eq!(frames.take(&mut sent).await, Received::Some);
            assert_eq!(sent, ["a", "b", "c"]);
        });
    }

    #[test]
    fn a_delivery_to_a_closed_link_ends() {
        let (queue, frames) = outbox::bounded::<CloseReason>(1, 1 << 10);
        let delivering = TaskTracker::new();
        let mut delivery = Delivery::new(Uplink::new(queue, None, Arc::default()), delivering.track());
        delivery.add("a".to_owned()).unwrap();
        delivery.add("b".to_owned()).unwrap();
        drop(frames);
        smol::block_on(delivery.finish());
        smol::block_on(Delivery::none().finish());
        assert!(delivering.is_empty());
    }
}
