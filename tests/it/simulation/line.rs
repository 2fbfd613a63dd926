//! One end of a simulated link: the real outgoing side and the real timers, without a socket.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex},
    task::{Context, Waker},
    time::Instant,
};

use mcpport::{
    budget::Account,
    hub::peers::{Transport, Wakers},
    limits::LinkLimits,
    net::{
        outbound::Outbound,
        outbox::{self, Sender},
    },
    queue::{Room, SendError},
    tunnel::{
        close::CloseReason,
        first_frame::FirstFrame,
        link_timers::{LinkTimers, Observed},
        outbound::TextFrame,
    },
};

use super::{Frame, Net, Way};

/// The frames sent and received by the gateway's end, over one or more connections.
pub struct Line {
    pub outbound: Outbound,
    pub queue: Queue,
    books: Books,
}

/// The frames that one end has queued, and the counted ones that it has received.
#[derive(Default)]
pub struct Books {
    said: Arc<Mutex<Book>>,
    heard: Book,
}

/// The queue of an outgoing side. It records each frame that it takes, so that what the other end
/// receives is compared with what the program wanted to send, and not with what the link says that
/// it sent.
#[derive(Clone, Debug)]
pub struct Queue {
    sender: Sender<CloseReason>,
    said: Arc<Mutex<Book>>,
}

/// Running hashes of frames, each including all earlier frames.
type Book = Vec<u64>;

/// Appends the running hash for a frame.
fn note(book: &mut Book, frame: &str) {
    let mut hasher = DefaultHasher::new();
    (book.last(), frame).hash(&mut hasher);
    book.push(hasher.finish());
}

impl Books {
    /// Records a frame that is queued.
    pub fn said(&self, frame: &str) {
        note(&mut self.said.lock().unwrap(), frame);
    }

    /// Records a counted frame that is received.
    pub fn heard(&mut self, frame: &str) {
        note(&mut self.heard, frame);
    }

    /// Returns the number of counted frames that are received.
    pub fn received(&self) -> u64 {
        self.heard.len() as u64
    }

    /// Checks that each end received the frames that the other queued, from the first on, in order
    /// and exactly once.
    pub fn check_against(&self, other: &Self) {
        for (near, far) in [(self, other), (other, self)] {
            let (heard, said) = (&near.heard, far.said.lock().unwrap());
            assert!(heard.len() <= said.len(), "{} frames came, and {} were queued", heard.len(), said.len());
            assert_eq!(heard.last(), heard.len().checked_sub(1).and_then(|last| said.get(last)));
        }
    }
}

impl Queue {
    /// Whether the queue was ended.
    pub fn is_ended(&self) -> bool {
        self.sender.is_closed()
    }

    fn add(&self, frame: String, room: Room) -> Result<Option<Waker>, SendError> {
        // Two threads never queue frames of one server at the same time.
        let mut said = self.said.lock().unwrap();
        let text = frame.clone();
        let waker = self.sender.add(frame, room)?;
        note(&mut said, &text);
        Ok(waker)
    }
}

impl Transport for Queue {
    fn send(&self, frame: String, room: Room, wakers: &mut Wakers) -> Result<(), SendError> {
        wakers.add(self.add(frame, room)?);
        Ok(())
    }

    fn close(&self, reason: CloseReason) {
        self.sender.end(reason);
    }

    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl Line {
    /// Creates a line whose frames are charged to an account. `counted`: it can be resumed over
    /// another connection.
    pub fn new(counted: bool, limits: &LinkLimits, account: &Account) -> Self {
        let (sender, receiver) =
            outbox::with_account(limits.queue_messages, limits.queue_bytes, Some(account.clone()));
        let mut outbound = Outbound::new(receiver);
        outbound.charge_to(account);
        if counted {
            outbound.count();
        }
        let books = Books::default();
        Self { outbound, queue: Queue { sender, said: books.said.clone() }, books }
    }

    /// Sends all frames that may be sent now over a connection. Returns the reason if the queue has
    /// ended and nothing is left in it.
    pub fn pump(&mut self, net: &mut Net, wire: usize, way: Way) -> Option<CloseReason> {
        pump(&mut self.outbound, net, wire, way, |_| {})
    }

    /// Handles a text frame: an acknowledgement, or a message for `handle`. Fails if `handle` does.
    pub fn on_text(
        &mut self,
        now: Instant,
        text: &str,
        limits: &LinkLimits,
        handle: impl FnOnce(&str) -> Result<(), CloseReason>,
    ) -> Result<TextFrame, CloseReason> {
        let kind = self.outbound.on_text(now, text, limits, handle)?;
        if kind == TextFrame::Message && self.outbound.received().is_some() {
            self.books.heard(text);
        }
        Ok(kind)
    }

    pub fn observed(&self) -> Observed {
        observed(&self.outbound)
    }

    pub fn books(&self) -> &Books {
        &self.books
    }

    pub fn check(&self, limits: &LinkLimits) {
        let kept = self.outbound.unacknowledged().count();
        assert!(kept <= limits.resume_messages, "{kept} frames are kept");
    }
}

/// Does what `net::ws_link` does to write: sends all frames that may be sent now over a connection.
/// `taken` gets each frame of the queue, in order. Returns the reason if the queue has ended and
/// nothing is left in it.
pub fn pump(
    outbound: &mut Outbound,
    net: &mut Net,
    wire: usize,
    way: Way,
    mut taken: impl FnMut(&str),
) -> Option<CloseReason> {
    let ended = loop {
        let is_fresh = outbound.waiting().next().is_none();
        let ended = outbound.poll_fill(&mut Context::from_waker(Waker::noop()));
        if is_fresh {
            outbound.waiting().for_each(&mut taken);
        }
        match outbound.next(&net.limits.link) {
            Some(frame) => net.send(wire, way, Frame::Text(frame.to_string())),
            None => break ended,
        }
    };
    if outbound.is_blocked_on_acks(&net.limits.link) {
        let now = net.now;
        net.timers(wire, way.back()).on_blocked_on_acks(now);
    }
    ended
}

/// What the timers of a connection depend on.
pub fn observed(outbound: &Outbound) -> Observed {
    Observed { unacknowledged_bytes: outbound.unacknowledged_bytes(), has_unflushed: false }
}

/// The timers of one end of a connection.
pub enum Timers {
    /// The first frame is not received yet.
    First(FirstFrame),
    Open(LinkTimers),
}

impl Timers {
    /// Records a text frame.
    pub fn on_text(&mut self, now: Instant, bytes: usize) {
        match self {
            Self::First(first) => {
                assert_eq!(first.on_text(bytes), Ok(()));
                *self = Self::Open(LinkTimers::new(now));
            }
            Self::Open(timers) => {
                timers.on_message();
                timers.on_text(now);
            }
        }
    }

    /// Records a control frame.
    pub fn on_control(&mut self, now: Instant, limits: &LinkLimits) {
        let calm = match self {
            Self::First(first) => first.on_control(now, limits),
            Self::Open(timers) => {
                timers.on_message();
                timers.on_control(now, limits)
            }
        };
        assert_eq!(calm, Ok(()), "an honest peer floods");
    }
}
