//! A connected client, as the rest of the gateway sees it: a queue of messages towards it, and its calls.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::upstream::Upstream;
use crate::{
    limits::SessionLimits,
    net::queue::{self, Receiver, Sender},
    session::Calls,
    stats::Stats,
    text,
};

/// One client session.
#[derive(Debug)]
pub struct Client {
    id: String,
    outbox: Sender<()>,
    calls: Mutex<Calls<Arc<Upstream>>>,
    initialized: AtomicBool,
}

impl Client {
    /// A client, and the queue from which its event stream is written.
    pub fn new(id: String, limits: &SessionLimits) -> (Arc<Self>, Receiver<()>) {
        let (outbox, queue) = queue::bounded(limits.queue_messages, limits.queue_bytes);
        let calls = Mutex::new(Calls::new(limits));
        (Arc::new(Self { id, outbox, calls, initialized: AtomicBool::new(false) }), queue)
    }

    /// The session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Queues a message for the client. One that does not read is cut off: its stream ends, so that it notices,
    /// instead of losing messages silently.
    pub fn send(&self, message: String, stats: &Stats) {
        if self.outbox.send(message) == Err(queue::Refused::Full) {
            stats.slow_clients.add();
            log::warn!("client {} does not read; its stream ends", self.name());
            self.outbox.end(());
        }
    }

    /// Ends the client's event stream, after what is queued.
    pub fn end(&self) {
        self.outbox.end(());
    }

    /// The calls under way.
    pub fn calls(&self) -> MutexGuard<'_, Calls<Arc<Upstream>>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the session as initialized. False when it was.
    pub fn initialize(&self) -> bool {
        !self.initialized.swap(true, Ordering::Relaxed)
    }

    /// Whether notifications may be sent to it.
    pub fn is_initialized(&self) -> bool {
        self.initialized.load(Ordering::Relaxed)
    }

    /// The session's name in a log: a part of the id, since the whole of it is a secret.
    pub fn name(&self) -> text::Shown<'_> {
        text::show(self.id.get(..6).unwrap_or_default())
    }
}
