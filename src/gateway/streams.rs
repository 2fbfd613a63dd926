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
    _wanted: Switch,
    /// Who wants it next.
    heir: Option<async_channel::Sender<Resting>>,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<u32, Held>,
    /// In the order in which they came to rest.
    resting: Vec<(u32, Resting)>,
    closed: bool,
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
        self.hold(id, Resting { queue: Some(queue), sent: 0 })
    }

    /// Attaches a stream that rests.
    ///
    /// # Errors
    /// [`NotAttached`], with the reason.
    pub fn attach(&self, id: u32) -> Result<Attached, NotAttached> {
        let resting = {
            let mut table = self.table();
            let Some(place) = table.resting.iter().position(|(other, _)| *other == id) else {
                let taken = table.held.contains_key(&id);
                return Err(if taken { NotAttached::Taken } else { NotAttached::Unknown });
            };
            table.resting.remove(place).1
        };
        Ok(self.hold(id, resting))
    }

    /// Attaches a stream even if another connection has it: that one may be dead without having noticed.
    ///
    /// # Errors
    /// [`NotAttached`], with the reason.
    pub async fn take_over(&self, id: u32, limits: &SessionLimits) -> Result<Attached, NotAttached> {
        match self.attach(id) {
            Err(NotAttached::Taken) => {}
            other => return other,
        }
        let (heir, handed) = async_channel::bounded(1);
        if let Some(held) = self.table().held.get_mut(&id) {
            let (switch, _) = exec::switch();
            *held = Held { _wanted: switch, heir: Some(heir) };
        }
        let resting = deadline::within(limits.retry, handed.recv()).await;
        match resting {
            Ok(Ok(resting)) => Ok(self.hold(id, resting)),
            _ => Err(NotAttached::Taken),
        }
    }

    fn hold(&self, id: u32, resting: Resting) -> Attached {
        let (switch, wanted) = exec::switch();
        self.table().held.insert(id, Held { _wanted: switch, heir: None });
        Attached { id, queue: resting.queue, sent: resting.sent, wanted }
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
                Ok(()) => return,
                Err(error) => resting = error.into_inner(),
            }
        }
        // The oldest goes first, but never the one that is not opened by a request.
        while table.resting.len() >= self.most {
            let Some(place) = table.resting.iter().position(|(id, _)| *id != STANDALONE) else { break };
            table.resting.remove(place);
        }
        table.resting.push((id, resting));
    }

    /// The session has ended.
    pub fn close(&self) {
        let mut table = self.table();
        table.closed = true;
        table.resting.clear();
        table.held.clear();
    }

    /// Whether a connection has a stream in hand.
    pub fn is_attached(&self) -> bool {
        !self.table().held.is_empty()
    }
}
