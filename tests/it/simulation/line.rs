//! One end of a simulated link: the real outgoing side and the real timers, without a socket.

use std::{
    cell::RefCell,
    hash::{DefaultHasher, Hash, Hasher},
    rc::Rc,
    task::{Context, Waker},
    time::Instant,
};

use mcpport::{
    limits::LinkLimits,
    net::{
        outbound::Outbound,
        outbox::{self, Sender},
    },
    tunnel::{
        close::CloseReason,
        first_frame::FirstFrame,
        link_timers::{LinkTimers, Observed},
        outbound::TextFrame,
    },
};

use super::{Frame, Net, Way};

/// The frames sent and received by one end, over one or more connections.
pub struct Line {
    pub outbound: Outbound,
    pub queue: Queue,
    /// The counted frames that were received.
    heard: Book,
}

/// The queue of an outgoing side. It records each frame that it takes, so that what the other end
/// receives is compared with what the program wanted to send, and not with what the link says that
/// it sent.
#[derive(Clone)]
pub struct Queue {
    sender: Sender<CloseReason>,
    said: Rc<RefCell<Book>>,
}

/// Running hashes of frames, each including all earlier frames.
type Book = Vec<u64>;

/// Appends the running hash for a frame.
fn note(book: &mut Book, frame: &str) {
    let mut hasher = DefaultHasher::new();
    (book.last(), frame).hash(&mut hasher);
    book.push(hasher.finish());
}

impl Queue {
    /// Queues a frame. Returns false if the queue is full.
    pub fn send(&self, frame: String) -> bool {
        self.noted(frame, |frame| self.sender.send(frame).is_ok())
    }

    /// Like [`Queue::send`], for a frame of the program itself.
    pub fn send_reserved(&self, frame: String) -> bool {
        self.noted(frame, |frame| self.sender.send_reserved(frame).is_ok())
    }

    /// Queues a frame beyond the limits.
    pub fn send_unbounded(&self, frame: String) {
        let taken = self.noted(frame, |frame| self.sender.send_unbounded(frame).is_ok());
        assert!(taken, "nobody ends this queue");
    }

    fn noted(&self, frame: String, send: impl FnOnce(String) -> bool) -> bool {
        let text = frame.clone();
        let taken = send(frame);
        if taken {
            note(&mut self.said.borrow_mut(), &text);
        }
        taken
    }
}

impl Line {
    /// Creates a line. `counted`: it can be resumed over another connection.
    pub fn new(counted: bool, limits: &LinkLimits) -> Self {
        let (sender, receiver) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
        let mut outbound = Outbound::new(receiver);
        if counted {
            outbound.count();
        }
        Self { outbound, queue: Queue { sender, said: Rc::default() }, heard: Book::new() }
    }

    /// Sends all frames that may be sent now over a connection.
    pub fn pump(&mut self, net: &mut Net, wire: usize, way: Way) {
        loop {
            let ended = self.outbound.poll_fill(&mut Context::from_waker(Waker::noop()));
            assert_eq!(ended, None, "nobody ends a queue here");
            let Some(frame) = self.outbound.next(&net.limits.link) else { break };
            net.send(wire, way, Frame::Text(frame.to_string()));
        }
        if self.outbound.is_blocked_on_acks(&net.limits.link) {
            let now = net.now;
            net.timers(wire, way.back()).on_blocked_on_acks(now);
        }
    }

    /// Handles a text frame: an acknowledgement, or a message for `handle`.
    pub fn on_text(
        &mut self,
        now: Instant,
        text: &str,
        limits: &LinkLimits,
        handle: impl FnOnce(&str),
    ) -> TextFrame {
        let handle = |text: &str| {
            handle(text);
            Ok(())
        };
        let kind = self.outbound.on_text(now, text, limits, handle);
        let kind = kind.expect("an honest peer acknowledges what it received");
        if kind == TextFrame::Message && self.outbound.received().is_some() {
            note(&mut self.heard, text);
        }
        kind
    }

    pub fn observed(&self) -> Observed {
        Observed { unacknowledged_bytes: self.outbound.unacknowledged_bytes(), has_unflushed: false }
    }

    /// Checks that each end received the frames that the other queued, from the first on, in order
    /// and exactly once.
    pub fn check_against(&self, other: &Self) {
        for (near, far) in [(self, other), (other, self)] {
            let (heard, said) = (&near.heard, far.queue.said.borrow());
            assert!(heard.len() <= said.len(), "{} frames came, and {} were queued", heard.len(), said.len());
            assert_eq!(heard.last(), heard.len().checked_sub(1).and_then(|last| said.get(last)));
        }
    }

    pub fn check(&self, limits: &LinkLimits) {
        let kept = self.outbound.unacknowledged().count();
        assert!(kept <= limits.resume_messages, "{kept} frames are kept");
    }
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
