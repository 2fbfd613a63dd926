//! The event streams of one Streamable session: those attached to a connection, those parked until
//! their client resumes them, and the sent events kept for replay.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    budget::{Account, Charge, Evict, Idle},
    limits::SessionLimits,
    net::{
        outbox::{Parked, Receiver},
        timeout,
    },
    runtime::{
        lock::Lock,
        shutdown::{Shutdown, ShutdownTrigger},
    },
    session::Replay,
};

/// The id of the standalone stream, which no request opened: it carries what belongs to no request.
pub const STANDALONE: u32 = 0;

/// A stream attached to a connection.
#[derive(Debug)]
pub struct Attached {
    /// Its number in the session.
    pub id: u32,
    /// Queue of its messages. `None`: the stream has ended, and its sent events can only be
    /// replayed.
    pub queue: Option<Receiver<()>>,
    /// Number of the last event that was sent.
    pub sent: u64,
    /// Triggered when another connection wants the stream.
    pub wanted: Shutdown,
}

/// Why a stream cannot be attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotAttached {
    /// Another connection holds it, or took it first.
    Taken,
    /// There is no such stream, or its messages were dropped while it was parked.
    Unknown,
}

#[derive(Debug)]
struct ParkedStream {
    /// `None`: the stream has ended.
    queue: Option<Receiver<()>>,
    sent: u64,
    /// Registers the queue for eviction: its messages may be dropped to free bytes for active
    /// clients.
    _idle: Option<Idle>,
}

impl ParkedStream {
    /// Parks a stream that no connection reads. On eviction the standalone stream only loses its
    /// messages; any other is closed, as nothing of it remains.
    fn new(id: u32, queue: Option<Receiver<()>>, sent: u64) -> Self {
        let parked = if id == STANDALONE { Parked::Emptied } else { Parked::Closed };
        let idle = queue.as_ref().and_then(|queue| queue.park(parked));
        Self { queue, sent, _idle: idle }
    }

    /// Makes the stream readable again.
    ///
    /// # Errors
    /// [`NotAttached::Unknown`] if its messages were dropped meanwhile.
    fn wake(self) -> Result<Self, NotAttached> {
        match &self.queue {
            Some(queue) if !queue.unpark() => Err(NotAttached::Unknown),
            _ => Ok(self),
        }
    }
}

/// Sent events kept for replay, and the memory charge for them.
#[derive(Debug)]
struct ReplayBuffer {
    replay: Replay,
    charge: Charge,
}

impl ReplayBuffer {
    fn trim(&mut self, bytes: usize) {
        self.replay.trim(bytes);
        // Shrinking a charge never fails.
        let _ = self.charge.resize(self.replay.bytes());
    }
}

impl Evict for Lock<ReplayBuffer> {
    fn evict(&self) {
        if let Some(mut buffer) = self.try_lock() {
            buffer.trim(0);
        }
    }
}

#[derive(Debug)]
struct AttachedStream {
    /// Dropped to signal the connection that holds the stream that another one wants it.
    _wanted: Option<ShutdownTrigger>,
    /// Where to send the stream: to the connection that wants it next.
    handoff: Option<async_channel::Sender<ParkedStream>>,
}

#[derive(Debug, Default)]
struct StreamTable {
    held: HashMap<u32, AttachedStream>,
    /// Parked streams, in the order in which they were parked.
    parked: Vec<(u32, ParkedStream)>,
    /// Registered while no connection holds any stream: the sent events may then be evicted.
    idle: Option<Idle>,
    /// Whether the client has ever opened the standalone stream.
    listened: bool,
    closed: bool,
}

impl StreamTable {
    fn take(&mut self, id: u32) -> Option<ParkedStream> {
        let position = self.parked.iter().position(|(other, _)| *other == id)?;
        Some(self.parked.remove(position).1)
    }

    fn hold(&mut self, id: u32, parked: ParkedStream) -> Attached {
        let (trigger, wanted) = crate::runtime::shutdown::shutdown();
        self.idle = None;
        self.listened |= id == STANDALONE;
        // Another connection may have asked for it during the handover.
        let handoff = self.held.remove(&id).and_then(|held| held.handoff);
        self.held.insert(id, AttachedStream { _wanted: handoff.is_none().then_some(trigger), handoff });
        Attached { id, queue: parked.queue, sent: parked.sent, wanted }
    }

    /// Makes room to park one more stream: removes ended streams first, then the oldest, but never
    /// the standalone stream.
    fn make_room(&mut self, max: usize) {
        while self.parked.len() >= max {
            let ended = self.parked.iter().position(|(_, parked)| parked.queue.is_none());
            let oldest = || self.parked.iter().position(|(id, _)| *id != STANDALONE);
            let Some(position) = ended.or_else(oldest) else { break };
            self.parked.remove(position);
        }
    }
}

/// The event streams of one Streamable session.
#[derive(Debug)]
pub struct Streams {
    last: AtomicU32,
    table: Lock<StreamTable>,
    replay_buffer: Arc<Lock<ReplayBuffer>>,
    max: usize,
}

impl Streams {
    /// Creates the table of a new session, without streams.
    pub fn new(limits: &SessionLimits, account: &Account) -> Self {
        let buffer = ReplayBuffer { replay: Replay::new(limits), charge: account.charge() };
        Self {
            last: AtomicU32::new(STANDALONE),
            table: Lock::default(),
            replay_buffer: Arc::new(Lock::new(buffer)),
            max: limits.parked,
        }
    }

    /// Adds the standalone stream, parked until the client opens it.
    pub fn give_standalone(&self, queue: Receiver<()>) {
        self.table.lock().parked.push((STANDALONE, ParkedStream::new(STANDALONE, Some(queue), 0)));
    }

    /// Keeps a sent event for replay, as far as the budget allows; drops the oldest events first.
    pub fn keep(&self, stream: u32, number: u64, text: String) {
        let mut buffer = self.replay_buffer.lock();
        buffer.replay.keep(stream, number, text);
        let bytes = buffer.replay.bytes();
        if !buffer.charge.resize_spare(bytes) {
            let had = buffer.charge.bytes();
            buffer.trim(had);
        }
    }

    /// Returns the events sent on a stream after an event; see [`Replay::after`].
    pub fn after(&self, stream: u32, seen: u64, last: u64) -> Option<(Vec<(u64, String)>, bool)> {
        self.replay_buffer.lock().replay.after(stream, seen, last)
    }

    /// Creates a stream for the response to a request, attached to the caller's connection.
    pub fn begin(&self, queue: Receiver<()>) -> Attached {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table.lock().hold(id, ParkedStream { queue: Some(queue), sent: 0, _idle: None })
    }

    /// Attaches a stream even if another connection holds it: that connection may be dead without
    /// the gateway having noticed. Waits up to [`SessionLimits::retry`] for it to let go.
    ///
    /// # Errors
    /// [`NotAttached`], with the reason.
    pub async fn take_over(&self, id: u32, limits: &SessionLimits) -> Result<Attached, NotAttached> {
        let receiver = {
            let mut table = self.table.lock();
            if let Some(parked) = table.take(id) {
                return Ok(table.hold(id, parked.wake()?));
            }
            let held = table.held.get_mut(&id).ok_or(NotAttached::Unknown)?;
            let (handoff, receiver) = async_channel::bounded(1);
            *held = AttachedStream { _wanted: None, handoff: Some(handoff) };
            receiver
        };
        let parked = match timeout::within(limits.retry, receiver.recv()).await {
            Ok(Ok(parked)) => Some(parked),
            _ => {
                // The stream may have arrived at the last moment. From `close` on it is parked
                // instead.
                receiver.close();
                receiver.try_recv().ok()
            }
        };
        let parked = parked.ok_or(NotAttached::Taken)?;
        Ok(self.table.lock().hold(id, parked.wake()?))
    }

    /// Detaches a stream from its connection: hands it to the connection that wants it, or parks it
    /// until its client resumes it.
    pub fn detach(&self, attached: Attached) {
        let Attached { id, queue, sent, .. } = attached;
        let mut parked = ParkedStream::new(id, queue, sent);
        let mut table = self.table.lock();
        let held = table.held.remove(&id);
        if table.closed {
            return;
        }
        if let Some(handoff) = held.and_then(|held| held.handoff) {
            match handoff.try_send(parked) {
                Ok(()) => {
                    // Keep an entry until the next connection attaches it, so that others still
                    // find the stream.
                    table.held.insert(id, AttachedStream { _wanted: None, handoff: None });
                    return;
                }
                Err(error) => parked = error.into_inner(),
            }
        }
        table.make_room(self.max);
        table.parked.push((id, parked));
        if table.held.is_empty() {
            let buffer: Weak<Lock<ReplayBuffer>> = Arc::downgrade(&self.replay_buffer);
            table.idle = Some(self.replay_buffer.lock().charge.account().idle(buffer));
        }
    }

    /// Ends all streams, since the session has ended.
    pub fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        table.parked.clear();
        table.held.clear();
        table.idle = None;
        // Free the sent events now: the session may still be referenced, but its streams cannot be
        // resumed.
        self.replay_buffer.lock().trim(0);
    }

    /// Returns whether the client has ever opened the standalone stream.
    pub fn was_listened_to(&self) -> bool {
        self.table.lock().listened
    }

    /// Returns the number of streams attached to connections.
    pub fn attached(&self) -> usize {
        self.table.lock().held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;
    use crate::{budget::Budget, net::outbox};

    /// If a client reconnects twice while the old connection still holds the stream, the latest
    /// connection gets it, and the one before fails at once.
    #[test]
    fn the_latest_waiting_connection_gets_the_stream() {
        let (limits, account) = (SessionLimits::default(), Budget::new(1 << 20).account());
        let streams = Streams::new(&limits, &account);
        let (_sender, queue) = outbox::with_account(1, 1, None);
        streams.give_standalone(queue);
        let first = smol::block_on(streams.take_over(STANDALONE, &limits)).unwrap();
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut second = pin!(streams.take_over(STANDALONE, &limits));
        assert!(second.as_mut().poll(&mut context).is_pending());
        let mut third = pin!(streams.take_over(STANDALONE, &limits));
        assert!(third.as_mut().poll(&mut context).is_pending());
        assert_eq!(smol::block_on(second).map(|attached| attached.id), Err(NotAttached::Taken));
        streams.detach(first);
        assert_eq!(smol::block_on(third).map(|attached| attached.id), Ok(STANDALONE));
    }
}
