//! The event streams of one Streamable session: which are attached to a connection, which wait for their client to come
//! back, and what they sent.

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

/// The stream of what belongs to no request.
pub const STANDALONE: u32 = 0;

/// A stream that a connection has in hand.
#[derive(Debug)]
pub struct Attached {
    /// Its number in the session.
    pub id: u32,
    /// Where its messages come from. `None`: it has ended, and only what was sent can be sent again.
    pub queue: Option<Receiver<()>>,
    /// Number of the last event that was sent.
    pub sent: u64,
    /// Thrown when another connection wants the stream.
    pub wanted: Shutdown,
}

/// Why a stream cannot be attached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotAttached {
    /// Another connection has it.
    Taken,
    /// There is no such stream.
    Unknown,
}

#[derive(Debug)]
struct Resting {
    /// `None`: it has ended.
    queue: Option<Receiver<()>>,
    sent: u64,
    /// Its messages may be dropped for the sake of those who read.
    _idle: Option<Idle>,
}

impl Resting {
    /// Nobody reads the stream for now. The one that is not opened by a request outlives the loss of its messages; of
    /// another there is nothing left then.
    fn new(id: u32, queue: Option<Receiver<()>>, sent: u64) -> Self {
        let parked = if id == STANDALONE { Parked::Emptied } else { Parked::Closed };
        let idle = queue.as_ref().and_then(|queue| queue.park(parked));
        Self { queue, sent, _idle: idle }
    }

    /// Somebody reads it again.
    ///
    /// # Errors
    /// Its messages were dropped meanwhile.
    fn wake(self) -> Result<Self, NotAttached> {
        match &self.queue {
            Some(queue) if !queue.unpark() => Err(NotAttached::Unknown),
            _ => Ok(self),
        }
    }
}

/// Events that were sent, and what they take.
#[derive(Debug)]
struct ReplayBuffer {
    replay: Replay,
    charge: Charge,
}

impl ReplayBuffer {
    fn trim(&mut self, bytes: usize) {
        self.replay.trim(bytes);
        // Less is always granted.
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
    /// Dropped to tell the holder that another wants the stream.
    _wanted: Option<ShutdownTrigger>,
    /// Who wants it next.
    heir: Option<async_channel::Sender<Resting>>,
}

#[derive(Debug, Default)]
struct StreamTable {
    held: HashMap<u32, AttachedStream>,
    /// In the order in which they came to rest.
    resting: Vec<(u32, Resting)>,
    /// No connection has any of them, so that what was sent may be forgotten for the sake of those who read.
    idle: Option<Idle>,
    /// The client has asked for the stream that is not opened by a request.
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
        // Somebody may have asked for it while it was handed over.
        let heir = self.held.remove(&id).and_then(|held| held.heir);
        self.held.insert(id, AttachedStream { _wanted: heir.is_none().then_some(switch), heir });
        Attached { id, queue: resting.queue, sent: resting.sent, wanted }
    }

    /// Makes room for one more that rests: what has ended goes first, then the oldest, but never the one that is not
    /// opened by a request.
    fn make_room(&mut self, most: usize) {
        while self.resting.len() >= most {
            let ended = self.resting.iter().position(|(_, resting)| resting.queue.is_none());
            let oldest = || self.resting.iter().position(|(id, _)| *id != STANDALONE);
            let Some(place) = ended.or_else(oldest) else { break };
            self.resting.remove(place);
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Streams {
    last: AtomicU32,
    table: Mutex<StreamTable>,
    kept: Arc<Mutex<ReplayBuffer>>,
    max: usize,
}

impl Streams {
    /// The streams of a new session: none.
    pub fn new(limits: &SessionLimits, account: &Account) -> Self {
        let kept = ReplayBuffer { replay: Replay::new(limits), charge: account.charge() };
        Self {
            last: AtomicU32::new(STANDALONE),
            table: Mutex::default(),
            kept: Arc::new(Mutex::new(kept)),
            max: limits.parked,
        }
    }

    /// The stream that is not opened by a request.
    pub fn give_standalone(&self, queue: Receiver<()>) {
        self.table().resting.push((STANDALONE, Resting::new(STANDALONE, Some(queue), 0)));
    }

    fn table(&self) -> MutexGuard<'_, StreamTable> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, ReplayBuffer> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an event that is sent, as far as there is memory for it; the oldest ones go first.
    pub fn keep(&self, stream: u32, number: u64, text: String) {
        let mut kept = self.kept();
        kept.replay.keep(stream, number, text);
        let bytes = kept.replay.bytes();
        if !kept.charge.resize_spare(bytes) {
            let had = kept.charge.bytes();
            kept.trim(had);
        }
    }

    /// What was sent on a stream after an event; see [`Replay::after`].
    pub fn after(&self, stream: u32, seen: u64, last: u64) -> Option<(Vec<(u64, String)>, bool)> {
        self.kept().replay.after(stream, seen, last)
    }

    /// A stream for the answer to a request.
    pub fn begin(&self, queue: Receiver<()>) -> Attached {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table().hold(id, Resting { queue: Some(queue), sent: 0, _idle: None })
    }

    /// Attaches a stream even if another connection has it: that one may be dead without having noticed.
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
                // It may have come at the last moment; after this it comes no more, and rests instead.
                handed.close();
                handed.try_recv().ok()
            }
        };
        let resting = resting.ok_or(NotAttached::Taken)?;
        Ok(self.table().hold(id, resting.wake()?))
    }

    /// A connection lets go of a stream, which may go on: for who wants it, or to wait for its client.
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
                    // Until the heir holds it others find that it is there.
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

    /// The session has ended.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.resting.clear();
        table.held.clear();
        table.idle = None;
        // Whoever still knows the session can come back to none of its streams.
        self.kept().trim(0);
    }

    /// Whether the client has ever asked for the stream that is not opened by a request.
    pub fn was_listened_to(&self) -> bool {
        self.table().listened
    }

    /// How many streams connections have in hand.
    pub fn attached(&self) -> usize {
        self.table().held.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;
    use crate::net::{budget::Budget, outbox};

    /// A client that came twice more while an old connection had not let go: the last of them has the stream, and the one
    /// before hears that at once.
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
