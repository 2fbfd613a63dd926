//! The event streams of one Streamable session: those attached to a connection, those parked until
//! their client resumes them, and the sent events kept for replay.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    limits::SessionLimits,
    net::{
        budget::{Account, Charge, Evict, Idle},
        outbox::{Parked, Receiver},
        timeout,
    },
    runtime::shutdown::{Shutdown, ShutdownTrigger},
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
struct Resting {
    /// `None`: the stream has ended.
    queue: Option<Receiver<()>>,
    sent: u64,
    /// Registers the queue for eviction: its messages may be dropped to free bytes for active
    /// clients.
    _idle: Option<Idle>,
}

impl Resting {
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

impl Evict for Mutex<ReplayBuffer> {
    fn evict(&self) {
        match self.try_lock() {
            Ok(mut kept) => kept.trim(0),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().trim(0),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

#[derive(Debug)]
struct AttachedStream {
    /// Dropped to signal the connection that holds the stream that another one wants it.
    _wanted: Option<ShutdownTrigger>,
    /// Where to send the stream: to the connection that wants it next.
    heir: Option<async_channel::Sender<Resting>>,
}

#[derive(Debug, Default)]
struct StreamTable {
    held: HashMap<u32, AttachedStream>,
    /// Parked streams, in the order in which they were parked.
    resting: Vec<(u32, Resting)>,
    /// Registered while no connection holds any stream: the sent events may then be evicted.
    idle: Option<Idle>,
    /// Whether the client has ever opened the standalone stream.
    listened: bool,
    closed: bool,
}

impl StreamTable {
    fn take(&mut self, id: u32) -> Option<Resting> {
        let place = self.resting.iter().position(|(other, _)| *other == id)?;
        Some(self.resting.remove(place).1)
    }

    fn hold(&mut self, id: u32, resting: Resting) -> Attached {
        let (switch, wanted) = crate::runtime::shutdown::shutdown();
        self.idle = None;
        self.listened |= id == STANDALONE;
        // Another connection may have asked for it during the handover.
        let heir = self.held.remove(&id).and_then(|held| held.heir);
        self.held.insert(id, AttachedStream { _wanted: heir.is_none().then_some(switch), heir });
        Attached { id, queue: resting.queue, sent: resting.sent, wanted }
    }

    /// Makes room to park one more stream: removes ended streams first, then the oldest, but never
    /// the standalone stream.
    fn make_room(&mut self, most: usize) {
        while self.resting.len() >= most {
            let ended = self.resting.iter().position(|(_, resting)| resting.queue.is_none());
            let oldest = || self.resting.iter().position(|(id, _)| *id != STANDALONE);
            let Some(place) = ended.or_else(oldest) else { break };
            self.resting.remove(place);
        }
    }
}

/// The event streams of one Streamable session.
#[derive(Debug)]
pub struct Streams {
    last: AtomicU32,
    table: Mutex<StreamTable>,
    kept: Arc<Mutex<ReplayBuffer>>,
    max: usize,
}

impl Streams {
    /// Creates the table of a new session, without streams.
    pub fn new(limits: &SessionLimits, account: &Account) -> Self {
        let kept = ReplayBuffer { replay: Replay::new(limits), charge: account.charge() };
        Self {
            last: AtomicU32::new(STANDALONE),
            table: Mutex::default(),
            kept: Arc::new(Mutex::new(kept)),
            max: limits.parked,
        }
    }

    /// Adds the standalone stream, parked until the client opens it.
    pub fn give_standalone(&self, queue: Receiver<()>) {
        self.table().resting.push((STANDALONE, Resting::new(STANDALONE, Some(queue), 0)));
    }

    fn table(&self) -> MutexGuard<'_, StreamTable> {
        // Each change of the table is complete in itself, so a panic elsewhere does not corrupt it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, ReplayBuffer> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a sent event for replay, as far as the budget allows; drops the oldest events first.
    pub fn keep(&self, stream: u32, number: u64, text: String) {
        let mut kept = self.kept();
        kept.replay.keep(stream, number, text);
        let bytes = kept.replay.bytes();
        if !kept.charge.resize_spare(bytes) {
            let had = kept.charge.bytes();
            kept.trim(had);
        }
    }

    /// Returns the events sent on a stream after an event; see [`Replay::after`].
    pub fn after(&self, stream: u32, seen: u64, last: u64) -> Option<(Vec<(u64, String)>, bool)> {
        self.kept().replay.after(stream, seen, last)
    }

    /// Creates a stream for the response to a request, attached to the caller's connection.
    pub fn begin(&self, queue: Receiver<()>) -> Attached {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table().hold(id, Resting { queue: Some(queue), sent: 0, _idle: None })
    }

    /// Attaches a stream even if another connection holds it: that connection may be dead without
    /// the gateway having noticed. Waits up to [`SessionLimits::retry`] for it to let go.
    ///
    /// # Errors
    /// [`NotAttached`], with the reason.
    pub async fn take_over(&self, id: u32, limits: &SessionLimits) -> Result<Attached, NotAttached> {
        let handed = {
            let mut table = self.table();
            if let Some(resting) = table.take(id) {
                return Ok(table.hold(id, resting.wake()?));
            }
            let held = table.held.get_mut(&id).ok_or(NotAttached::Unknown)?;
            let (heir, handed) = async_channel::bounded(1);
            *held = AttachedStream { _wanted: None, heir: Some(heir) };
            handed
        };
        let resting = match timeout::within(limits.retry, handed.recv()).await {
            Ok(Ok(resting)) => Some(resting),
            _ => {
                // The stream may have arrived at the last moment. From `close` on it is parked
                // instead.
                handed.close();
                handed.try_recv().ok()
            }
        };
        let resting = resting.ok_or(NotAttached::Taken)?;
        Ok(self.table().hold(id, resting.wake()?))
    }

    /// Detaches a stream from its connection: hands it to the connection that wants it, or parks it
    /// until its client resumes it.
    pub fn rest(&self, attached: Attached) {
        let Attached { id, queue, sent, .. } = attached;
        let mut resting = Resting::new(id, queue, sent);
        let mut table = self.table();
        let held = table.held.remove(&id);
        if table.closed {
            return;
        }
        if let Some(heir) = held.and_then(|held| held.heir) {
            match heir.try_send(resting) {
                Ok(()) => {
                    // Keep an entry until the next connection attaches it, so that others still
                    // find the stream.
                    table.held.insert(id, AttachedStream { _wanted: None, heir: None });
                    return;
                }
                Err(error) => resting = error.into_inner(),
            }
        }
        table.make_room(self.max);
        table.resting.push((id, resting));
        if table.held.is_empty() {
            let kept: Weak<Mutex<ReplayBuffer>> = Arc::downgrade(&self.kept);
            table.idle = Some(self.kept().charge.account().idle(kept));
        }
    }

    /// Ends all streams, since the session has ended.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.resting.clear();
        table.held.clear();
        table.idle = None;
        // Free the sent events now: the session may still be referenced, but its streams cannot be
        // resumed.
        self.kept().trim(0);
    }

    /// Returns whether the client has ever opened the standalone stream.
    pub fn was_listened_to(&self) -> bool {
        self.table().listened
    }

    /// Returns the number of streams attached to connections.
    pub fn attached(&self) -> usize {
        self.table().held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;
    use crate::net::{budget::Budget, outbox};

    /// If a client reconnects twice while the old connection still holds the stream, the latest
    /// connection gets it, and the one before fails at once.
    #[test]
    fn the_newest_of_those_who_wait_has_the_stream() {
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
        streams.rest(first);
        assert_eq!(smol::block_on(third).map(|attached| attached.id), Ok(STANDALONE));
    }
}
