//! The outgoing side of a link: its queue, and what is kept to resume over another connection.
//!
//! The order of the frames and the rules of acknowledgement are in [`tunnel::outbound`]. This adds
//! the queue, which other tasks fill, and the memory charged for frames that are kept until they
//! are acknowledged. It has neither a socket nor a clock: `net::ws_link` writes the frames.
//!
//! [`tunnel::outbound`]: crate::tunnel::outbound

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use async_tungstenite::tungstenite::Utf8Bytes;
use futures_lite::future;

use super::outbox::{Received, Receiver};
use crate::{
    budget::{Account, Charge},
    limits::LinkLimits,
    tunnel::{
        close::CloseReason,
        outbound::{OutboundFrames, Retain, TextFrame},
        resume::CannotResume,
    },
};

/// The outgoing side of a link: its queue, and the state needed to resume over another connection.
#[derive(Debug)]
pub struct Outbound {
    queue: Receiver<CloseReason>,
    frames: OutboundFrames<Utf8Bytes>,
    unacknowledged: Unacknowledged,
    /// Memory charged for the frames that are kept until the peer acknowledges them.
    charge: Option<Charge>,
}

/// The number of frames that were sent but not acknowledged by the peer, for tasks other than the
/// link's own. 0 if the link does not count frames.
#[derive(Clone, Debug, Default)]
pub struct Unacknowledged(Arc<AtomicUsize>);

impl Unacknowledged {
    /// Returns the number.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, count: usize) {
        self.0.store(count, Ordering::Release);
    }
}

impl Outbound {
    /// Creates the outgoing side for a queue. It cannot be resumed unless [`Outbound::count`] is
    /// called.
    pub fn new(queue: Receiver<CloseReason>) -> Self {
        let (frames, unacknowledged) = Default::default();
        Self { queue, frames, unacknowledged, charge: None }
    }

    /// Charges the frames that are kept for resumption to `account`.
    pub fn charge_to(&mut self, account: &Account) {
        self.charge = Some(account.charge());
    }

    /// Starts counting frames in both directions, which makes the link resumable.
    pub fn count(&mut self) {
        self.frames.count();
    }

    /// Returns a live view of the number of unacknowledged frames.
    pub fn unacknowledged(&self) -> Unacknowledged {
        self.unacknowledged.clone()
    }

    /// Returns the size in bytes of the frames that the peer has not acknowledged.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.frames.unacknowledged_bytes()
    }

    /// Returns the number of frames received, if they are counted.
    pub fn received(&self) -> Option<u64> {
        self.frames.received()
    }

    /// Whether the peer has acknowledged more than `received` frames. A claim to have received only
    /// that many is then outdated.
    pub fn is_past(&self, received: u64) -> bool {
        self.frames.is_past(received)
    }

    /// Resumes over another connection, where the peer has reported `received` frames. Queues the
    /// frames that it lacks again.
    ///
    /// # Errors
    /// [`CannotResume`] if the link cannot be resumed.
    pub fn resume(&mut self, received: u64) -> Result<(), CannotResume> {
        self.frames.resume(received)?;
        self.update_charge();
        Ok(())
    }

    /// Updates the counter and the charge after an acknowledgement.
    fn update_charge(&mut self) {
        self.unacknowledged.set(self.frames.unacknowledged());
        if let Some(charge) = &mut self.charge {
            charge.resize_anyway(self.frames.unacknowledged_bytes());
        }
    }

    /// Takes all messages from the queue if none waits here. Returns the reason if the queue has
    /// ended; otherwise the task is woken when a message is queued.
    pub fn poll_fill(&mut self, context: &mut Context<'_>) -> Option<CloseReason> {
        let messages = self.frames.messages();
        if !messages.is_empty() {
            return None;
        }
        match self.queue.poll_take(context, messages) {
            Poll::Ready(Received::Ended(why)) => Some(why),
            Poll::Ready(Received::Some) | Poll::Pending => None,
        }
    }

    /// Returns the messages that were taken from the queue and not sent yet.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.frames.waiting()
    }

    /// Whether a frame is to be sent, now or after an acknowledgement.
    pub fn has_frame(&self) -> bool {
        self.frames.has_frame()
    }

    /// Returns the next frame that may be sent.
    pub fn next(&mut self, limits: &LinkLimits) -> Option<Utf8Bytes> {
        let charge = &mut self.charge;
        let retain = |retain| match (charge, retain) {
            (None, _) => true,
            (Some(charge), Retain::IfFree(bytes)) => charge.resize(bytes),
            (Some(charge), Retain::Anyway(bytes)) => {
                charge.resize_anyway(bytes);
                true
            }
        };
        let frame = self.frames.next(limits, retain)?;
        self.unacknowledged.set(self.frames.unacknowledged());
        Some(frame)
    }

    /// Whether messages wait that cannot be sent before the peer acknowledges earlier ones.
    pub fn is_blocked_on_acks(&self, limits: &LinkLimits) -> bool {
        self.frames.is_blocked_on_acks(limits)
    }

    /// Handles a received text frame: an acknowledgement, or a message, which is passed to `handle`
    /// and then counted.
    ///
    /// # Errors
    /// The error of `handle`, or the acknowledgement is invalid.
    pub fn on_text(
        &mut self,
        now: Instant,
        text: &str,
        limits: &LinkLimits,
        handle: impl FnOnce(&str) -> Result<(), CloseReason>,
    ) -> Result<TextFrame, CloseReason> {
        let kind = self.frames.on_text(now, text, limits, handle)?;
        if kind == TextFrame::Acknowledgement {
            self.update_charge();
        }
        Ok(kind)
    }

    /// Returns when an acknowledgement is to be sent. `None` if nothing is to be acknowledged.
    pub fn deadline(&self, limits: &LinkLimits) -> Option<Instant> {
        self.frames.deadline(limits)
    }

    /// Queues an acknowledgement if it is due.
    pub fn tick(&mut self, now: Instant, limits: &LinkLimits) {
        self.frames.tick(now, limits);
    }

    /// Waits until the queue is ended, and returns the reason.
    pub async fn ended(&mut self) -> CloseReason {
        self.queue.ended().await
    }

    /// Takes all messages that were never sent.
    pub async fn rest(&mut self) -> VecDeque<String> {
        let mut rest = self.frames.take_messages();
        let _ = future::poll_once(self.queue.take(&mut rest)).await;
        rest
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::{budget::Budget, net::outbox};

    #[test]
    fn unacknowledged_frames_are_charged() {
        let (budget, limits) = (Budget::new(1000), LinkLimits::default());
        let (sender, receiver) = outbox::bounded(9, 1000);
        let mut outbound = Outbound::new(receiver);
        outbound.count();
        outbound.charge_to(&budget.account());
        let unacknowledged = outbound.unacknowledged();
        for text in ["aaaa", "bb"] {
            sender.send(text.into()).unwrap();
        }
        assert_eq!(outbound.poll_fill(&mut Context::from_waker(Waker::noop())), None);
        while outbound.next(&limits).is_some() {}
        assert_eq!((budget.used(), unacknowledged.count(), outbound.has_frame()), (6, 2, false));
        let acknowledged = outbound.on_text(Instant::now(), "*1", &limits, |_| Ok(()));
        assert_eq!(acknowledged, Ok(TextFrame::Acknowledgement));
        assert_eq!((budget.used(), unacknowledged.count()), (2, 1));
        outbound.resume(2).unwrap();
        assert_eq!((budget.used(), unacknowledged.count()), (0, 0));
    }

    #[test]
    fn messages_before_the_end_of_the_queue_are_sent() {
        let limits = LinkLimits::default();
        let (sender, receiver) = outbox::bounded(9, 1000);
        let (mut outbound, mut context) = (Outbound::new(receiver), Context::from_waker(Waker::noop()));
        sender.send("a".into()).unwrap();
        sender.end(CloseReason::new(1001, "gone"));
        assert_eq!(outbound.poll_fill(&mut context), None);
        assert_eq!(outbound.poll_fill(&mut context), None, "a message still waits");
        assert_eq!(outbound.next(&limits).as_deref(), Some("a"));
        assert_eq!(outbound.poll_fill(&mut context), Some(CloseReason::new(1001, "gone")));
    }
}
