//! The event streams of one Streamable session: which are attached to a connection, which wait for their client to come
//! back, and what they sent.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    limits::SessionLimits,
    net::{
        deadline,
        exec::{self, Switch, Thrown},
        queue::Receiver,
    },
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
    pub wanted: Thrown,
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
}

#[derive(Debug)]
struct Held {
    /// Dropped to tell the holder that another wants the stream.
    _wanted: Option<Switch>,
    /// Who wants it next.
    heir: Option<async_channel::Sender<Resting>>,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<u32, Held>,
    /// In the order in which they came to rest.
    resting: Vec<(u32, Resting)>,
    /// The client has asked for the stream that is not opened by a request.
    listened: bool,
    closed: bool,
}

impl Table {
    fn take(&mut self, id: u32) -> Option<Resting> {
        let place = self.resting.iter().position(|(other, _)| *other == id)?;
        Some(self.resting.remove(place).1)
    }

    fn hold(&mut self, id: u32, resting: Resting) -> Attached {
        let (switch, wanted) = exec::switch();
        self.listened |= id == STANDALONE;
        // Somebody may have asked for it while it was handed over.
        let heir = self.held.remove(&id).and_then(|held| held.heir);
        self.held.insert(id, Held { _wanted: heir.is_none().then_some(switch), heir });
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
    table: Mutex<Table>,
    replay: Mutex<Replay>,
    most: usize,
}

impl Streams {
    /// The streams of a new session: none.
    pub fn new(limits: &SessionLimits) -> Self {
        Self {
            last: AtomicU32::new(STANDALONE),
            table: Mutex::default(),
            replay: Mutex::new(Replay::new(limits)),
            most: limits.parked,
        }
    }

    /// The stream that is not opened by a request.
    pub fn give_standalone(&self, queue: Receiver<()>) {
        self.table().resting.push((STANDALONE, Resting { queue: Some(queue), sent: 0 }));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was sent.
    pub fn replay(&self) -> MutexGuard<'_, Replay> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream for the answer to a request.
    pub fn begin(&self, queue: Receiver<()>) -> Attached {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.table().hold(id, Resting { queue: Some(queue), sent: 0 })
    }

    /// Attaches a stream even if another connection has it: that one may be dead without having noticed.
    ///
    /// # Errors
    /// [`NotAttached`], with the reason.
    pub async fn take_over(&self, id: u32, limits: &SessionLimits) -> Result<Attached, NotAttached> {
        let handed = {
            let mut table = self.table();
            if let Some(resting) = table.take(id) {
                return Ok(table.hold(id, resting));
            }
            let held = table.held.get_mut(&id).ok_or(NotAttached::Unknown)?;
            let (heir, handed) = async_channel::bounded(1);
            *held = Held { _wanted: None, heir: Some(heir) };
            handed
        };
        let resting = match deadline::within(limits.retry, handed.recv()).await {
            Ok(Ok(resting)) => Some(resting),
            _ => {
                // It may have come at the last moment; after this it comes no more, and rests instead.
                handed.close();
                handed.try_recv().ok()
            }
        };
        let resting = resting.ok_or(NotAttached::Taken)?;
        Ok(self.table().hold(id, resting))
    }

    /// A connection lets go of a stream, which may go on: for who wants it, or to wait for its client.
    pub fn rest(&self, attached: Attached) {
        let Attached { id, queue, sent, .. } = attached;
        let mut resting = Resting { queue, sent };
        let mut table = self.table();
        let held = table.held.remove(&id);
        if table.closed {
            return;
        }
        if let Some(heir) = held.and_then(|held| held.heir) {
            match heir.try_send(resting) {
                Ok(()) => {
                    // Until the heir holds it others find that it is there.
                    table.held.insert(id, Held { _wanted: None, heir: None });
                    return;
                }
                Err(error) => resting = error.into_inner(),
            }
        }
        table.make_room(self.most);
        table.resting.push((id, resting));
    }

    /// The session has ended.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.resting.clear();
        table.held.clear();
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
