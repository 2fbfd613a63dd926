//! The clients and links that the hub sends to, as traits. The gateway implements them over queues
//! of sockets, tests over plain lists.

use std::{any::Any, fmt::Debug, sync::Arc, task::Waker};

use crate::{
    metrics::Stats,
    queue::{Room, SendError},
    tunnel::close::CloseReason,
};

/// Where the response to a request goes, and the messages that belong to the request.
///
/// Each request is announced by [`begin`](Self::begin), and then either
/// [finished](Self::finish) or [cancelled](Self::cancelled), once. None of the methods blocks or
/// waits. Messages that find no room or no memory are counted in [`Stats`].
pub trait Responder: Debug + Send + Sync {
    /// Counts one more request as running, until it is answered.
    fn begin(&self);

    /// Returns the key of the stream on which the request is answered: the same for all requests
    /// that are answered there, and different from that of the session's other streams.
    fn stream_key(&self) -> usize;

    /// Returns whether the client no longer reads.
    fn is_closed(&self) -> bool;

    /// Queues a message that belongs to a request, before its response. The message is lost if
    /// there is no room for it.
    fn send(&self, message: String, stats: &Stats);

    /// Queues a server's request to the client. The server waits for the answer, so it has more
    /// room than other messages. Returns false if the client does not read and too much is queued
    /// already.
    fn request(&self, request: String) -> bool;

    /// Queues the response to a request.
    fn finish(&self, response: String, stats: &Stats);

    /// Queues an error response of this code, on which the status of the HTTP response may depend.
    fn fail(&self, code: i64, response: String, stats: &Stats) {
        let _ = code;
        self.finish(response, stats);
    }

    /// Ends a request that the client cancelled; `id` is the client's own, as raw JSON.
    fn cancelled(&self, id: &str, stats: &Stats);
}

/// The streams of a session, for messages that belong to no request. None of the methods blocks or
/// waits.
pub trait SessionStream: Debug + Send + Sync {
    /// Returns the number of streams that a client reads.
    fn open_streams(&self) -> usize;

    /// Queues a message. It is lost if the client reads no stream that takes it, or if there is no
    /// room for it.
    fn send(&self, message: String, stats: &Stats);

    /// Queues a notification as [`send`](Self::send) does, unless an identical one is already
    /// queued.
    fn notice(&self, notice: &str, stats: &Stats);

    /// Queues a server's request even if no client reads yet, since the server waits for the
    /// answer. Returns false if there is no room for it.
    fn request(&self, message: String, stats: &Stats) -> bool;

    /// Ends the stream after the queued messages.
    fn end(&self);

    /// Ends all streams, since the session has ended. Streams that are read still carry what was
    /// queued before.
    fn close(&self);

    /// Returns the streams as [`Any`], so that the program that created them can downcast them.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// Tasks to wake when the hub is no longer locked: a wake-up may be a system call.
#[derive(Debug, Default)]
pub struct Wakers {
    /// The first; most entries wake one task at most.
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Wakers {
    /// Adds a task.
    pub fn add(&mut self, waker: Option<Waker>) {
        let Some(waker) = waker else { return };
        match &self.first {
            None => self.first = Some(waker),
            Some(_) => self.more.push(waker),
        }
    }

    /// Wakes all of them.
    pub fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}

/// Carries frames to an edge. None of the methods blocks or waits.
pub trait Transport: Debug + Send + Sync {
    /// Queues a frame. The task that writes it is added to `wakers`.
    ///
    /// # Errors
    /// [`SendError`], with the reason. With [`Room::Unbounded`] only [`SendError::Closed`].
    fn send(&self, frame: String, room: Room, wakers: &mut Wakers) -> Result<(), SendError>;

    /// Closes the link after the queued frames. Only the first reason counts.
    fn close(&self, reason: CloseReason);

    /// Returns whether the link takes no more frames.
    fn is_closed(&self) -> bool;
}
