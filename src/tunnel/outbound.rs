//! The frames that one end of a link sends: their order, and what a resumable link adds.
//!
//! A link that can be resumed counts its messages, and stops sending while too many of them are not
//! acknowledged. [`resume`] holds the counters and defines the frames on the wire.
//!
//! Pure. `net::outbound` adds the queue, and the memory charged for unacknowledged frames.

use std::{collections::VecDeque, time::Instant};

use super::{
    close::CloseReason,
    resume::{self, CannotResume, Resume},
};
use crate::limits::LinkLimits;

/// The frames to be sent, over one or more connections. `F` is a frame that is cheap to clone.
#[derive(Debug)]
pub struct OutboundFrames<F> {
    /// Sent before all messages, and not counted: acknowledgements, and frames that are sent again.
    first: VecDeque<F>,
    messages: VecDeque<String>,
    resume: Option<Resume<F>>,
}

/// A request for memory to keep sent frames until they are acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retain {
    /// The frame is sent only if this many bytes in total can be kept.
    IfFree(usize),
    /// The frame is sent in any case: no other frame is kept, so no acknowledgement will free
    /// memory.
    Anyway(usize),
}

/// The kinds of text frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TextFrame {
    /// An acknowledgement of sent frames.
    Acknowledgement,
    /// A message for the program at this end.
    Message,
}

impl<F> Default for OutboundFrames<F> {
    fn default() -> Self {
        Self { first: VecDeque::new(), messages: VecDeque::new(), resume: None }
    }
}

impl<F: AsRef<str> + Clone + From<String>> OutboundFrames<F> {
    /// Starts counting frames in both directions, which makes the link resumable.
    pub fn count(&mut self) {
        self.resume = Some(Resume::new());
    }

    /// Returns the messages to be sent. Add new ones at the end.
    pub fn messages(&mut self) -> &mut VecDeque<String> {
        &mut self.messages
    }

    /// Returns the messages to be sent, in order.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.messages.iter().map(String::as_str)
    }

    /// Whether a frame is to be sent, now or after an acknowledgement.
    pub fn has_frame(&self) -> bool {
        !self.first.is_empty() || !self.messages.is_empty()
    }

    /// Returns the next frame that may be sent. `retain` is asked for memory if the frame is to be
    /// kept; if it returns false, the frame waits.
    pub fn next(&mut self, limits: &LinkLimits, retain: impl FnOnce(Retain) -> bool) -> Option<F> {
        if let Some(frame) = self.first.pop_front() {
            return Some(frame);
        }
        let Some(resume) = &mut self.resume else { return self.messages.pop_front().map(F::from) };
        if !resume.has_room(limits) {
            return None;
        }
        let bytes = self.messages.front()?.len();
        let retained = match resume.unacknowledged_bytes() {
            0 => retain(Retain::Anyway(bytes)),
            kept => retain(Retain::IfFree(kept + bytes)),
        };
        if !retained {
            return None;
        }
        let frame = F::from(self.messages.pop_front()?);
        resume.sent(frame.clone(), bytes);
        Some(frame)
    }

    /// Whether messages wait that cannot be sent before the peer acknowledges earlier ones.
    pub fn is_blocked_on_acks(&self, limits: &LinkLimits) -> bool {
        let full = self.resume.as_ref().is_some_and(|resume| !resume.has_room(limits));
        full && self.first.is_empty() && !self.messages.is_empty()
    }

    /// Handles a received text frame: an acknowledgement, or a message, which is passed to `handle`
    /// and then counted. Queues an acknowledgement if enough was received.
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
        let Some(resume) = &mut self.resume else {
            handle(text)?;
            return Ok(TextFrame::Message);
        };
        if let Some(count) = resume::read(text) {
            let invalid = |CannotResume| CloseReason::new(1008, "invalid acknowledgement");
            resume.acknowledge(count).map_err(invalid)?;
            return Ok(TextFrame::Acknowledgement);
        }
        handle(text)?;
        resume.received(now, text.len());
        self.first.extend(resume.due_acknowledgement(limits).map(F::from));
        Ok(TextFrame::Message)
    }

    /// Returns when an acknowledgement is to be sent. `None` if nothing is to be acknowledged.
    pub fn deadline(&self, limits: &LinkLimits) -> Option<Instant> {
        self.resume.as_ref().and_then(|resume| resume.due(limits))
    }

    /// Queues an acknowledgement if it is due.
    pub fn tick(&mut self, now: Instant, limits: &LinkLimits) {
        if let Some(resume) = &mut self.resume
            && resume.due(limits).is_some_and(|due| now >= due)
        {
            self.first.push_back(resume.acknowledgement().into());
        }
    }

    /// Returns the number of messages received, if they are counted.
    pub fn received(&self) -> Option<u64> {
        self.resume.as_ref().map(Resume::count)
    }

    /// Returns the number of messages that are sent and not acknowledged. 0 if they are not
    /// counted.
    pub fn unacknowledged(&self) -> usize {
        self.resume.as_ref().map_or(0, Resume::unacknowledged)
    }

    /// Returns the size in bytes of the messages that are sent and not acknowledged.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.resume.as_ref().map_or(0, Resume::unacknowledged_bytes)
    }

    /// Whether the peer has acknowledged more than `received` messages. A claim to have received
    /// only that many is then outdated.
    pub fn is_past(&self, received: u64) -> bool {
        self.resume.as_ref().is_some_and(|resume| received < resume.acknowledged())
    }

    /// Resumes over another connection, where the peer has reported `received` messages. Queues the
    /// frames that it lacks again.
    ///
    /// # Errors
    /// [`CannotResume`] if the link cannot be resumed.
    pub fn resume(&mut self, received: u64) -> Result<(), CannotResume> {
        let resume = self.resume.as_mut().ok_or(CannotResume)?;
        self.first = resume.resume(received)?.into();
        Ok(())
    }

    /// Takes the messages that were never sent.
    pub fn take_messages(&mut self) -> VecDeque<String> {
        std::mem::take(&mut self.messages)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    type Frames = OutboundFrames<String>;

    fn limits() -> LinkLimits {
        LinkLimits { ack_every: 2, resume_messages: 3, resume_bytes: 100, ..LinkLimits::default() }
    }

    fn counted(messages: &[&str]) -> Frames {
        let mut frames = Frames::default();
        frames.count();
        frames.messages().extend(messages.iter().map(|text| (*text).to_owned()));
        frames
    }

    /// Sends all frames that may be sent, with memory for all of them.
    fn sent(frames: &mut Frames) -> Vec<String> {
        std::iter::from_fn(|| frames.next(&limits(), |_| true)).collect()
    }

    fn receive(frames: &mut Frames, text: &str) -> Result<TextFrame, CloseReason> {
        frames.on_text(Instant::now(), text, &limits(), |_| Ok(()))
    }

    #[test]
    fn a_link_that_does_not_count_sends_and_receives_everything_as_it_is() {
        let mut frames = Frames::default();
        frames.messages().extend(["a".to_owned(), "*1".to_owned(), "b".to_owned()]);
        assert_eq!(sent(&mut frames), ["a", "*1", "b"]);
        let mut heard = None;
        let handled = frames.on_text(Instant::now(), "*1", &limits(), |text| {
            heard = Some(text.to_owned());
            Ok(())
        });
        assert_eq!((handled, heard.as_deref()), (Ok(TextFrame::Message), Some("*1")));
        assert_eq!((frames.received(), frames.unacknowledged(), frames.is_past(0)), (None, 0, false));
        assert_eq!((frames.resume(0), frames.deadline(&limits())), (Err(CannotResume), None));
    }

    #[test]
    fn too_many_unacknowledged_messages_block_until_an_acknowledgement() {
        let mut frames = counted(&["a", "b", "c", "d", "e"]);
        assert_eq!(sent(&mut frames), ["a", "b", "c"]);
        assert!(frames.is_blocked_on_acks(&limits()) && frames.has_frame());
        assert_eq!(receive(&mut frames, "*2"), Ok(TextFrame::Acknowledgement));
        assert!(!frames.is_blocked_on_acks(&limits()));
        assert_eq!(sent(&mut frames), ["d", "e"]);
        assert!(!frames.is_blocked_on_acks(&limits()) && !frames.has_frame());
        assert_eq!((frames.unacknowledged(), frames.unacknowledged_bytes()), (3, 3));
        assert!(frames.is_past(1) && !frames.is_past(2));
    }

    #[test]
    fn acknowledgements_are_sent_first_and_are_not_counted() {
        let mut frames = counted(&["a"]);
        assert_eq!(receive(&mut frames, "x"), Ok(TextFrame::Message));
        assert_eq!(receive(&mut frames, "y"), Ok(TextFrame::Message));
        assert_eq!(sent(&mut frames), ["*2", "a"]);
        assert_eq!((frames.received(), frames.unacknowledged()), (Some(2), 1));
    }

    #[test]
    fn a_lone_message_is_acknowledged_when_it_is_due() {
        let (mut frames, now, limits) = (counted(&[]), Instant::now(), limits());
        frames.on_text(now, "x", &limits, |_| Ok(())).unwrap();
        let due = now + limits.ack_after;
        assert_eq!(frames.deadline(&limits), Some(due));
        frames.tick(due - Duration::from_millis(1), &limits);
        assert!(!frames.has_frame());
        frames.tick(due, &limits);
        assert_eq!((sent(&mut frames), frames.deadline(&limits)), (vec!["*1".to_owned()], None));
    }

    #[test]
    fn a_message_that_ends_the_link_is_not_counted() {
        let mut frames = counted(&[]);
        let why = CloseReason::new(1008, "no");
        let handled = frames.on_text(Instant::now(), "x", &limits(), |_| Err(why.clone()));
        assert_eq!((handled, frames.received()), (Err(why), Some(0)));
    }

    #[test]
    fn an_impossible_acknowledgement_ends_the_link() {
        let mut frames = counted(&["a"]);
        sent(&mut frames);
        let invalid = CloseReason::new(1008, "invalid acknowledgement");
        assert_eq!(receive(&mut frames, "*2"), Err(invalid));
        assert_eq!(
            (receive(&mut frames, "*1"), frames.unacknowledged()),
            (Ok(TextFrame::Acknowledgement), 0)
        );
    }

    #[test]
    fn without_memory_one_frame_is_sent_and_the_next_waits() {
        let mut frames = counted(&["aaaa", "bb"]);
        let mut asked = Vec::new();
        let mut next = |frames: &mut Frames, free: bool| {
            frames.next(&limits(), |retain| {
                asked.push(retain);
                free || matches!(retain, Retain::Anyway(_))
            })
        };
        assert_eq!(next(&mut frames, false).as_deref(), Some("aaaa"));
        assert_eq!(next(&mut frames, false), None);
        assert!(!frames.is_blocked_on_acks(&limits()), "memory may become free without an acknowledgement");
        assert_eq!(next(&mut frames, true).as_deref(), Some("bb"));
        assert_eq!(next(&mut frames, true), None);
        assert_eq!(asked, [Retain::Anyway(4), Retain::IfFree(6), Retain::IfFree(6)]);
    }

    #[test]
    fn messages_that_were_never_sent_can_be_taken() {
        let mut frames = counted(&["a", "b", "c", "d"]);
        sent(&mut frames);
        assert_eq!(frames.take_messages(), ["d"]);
        assert!(!frames.has_frame());
    }

    /// Two ends and the frames in flight towards each; the messages that each has received.
    struct Pair {
        ends: [Frames; 2],
        wires: [VecDeque<String>; 2],
        queued: [u32; 2],
        received: [Vec<String>; 2],
        now: Instant,
    }

    impl Pair {
        fn new() -> Self {
            let (wires, queued, received) = Default::default();
            Self { ends: [counted(&[]), counted(&[])], wires, queued, received, now: Instant::now() }
        }

        fn queue(&mut self, end: usize) {
            self.queued[end] += 1;
            let text = self.queued[end].to_string();
            self.ends[end].messages().push_back(text);
        }

        fn send(&mut self, end: usize) {
            let frame = self.ends[end].next(&limits(), |_| true);
            self.wires[1 - end].extend(frame);
        }

        fn receive(&mut self, end: usize) {
            let Some(frame) = self.wires[end].pop_front() else { return };
            let received = &mut self.received[end];
            let handled = self.ends[end].on_text(self.now, &frame, &limits(), |text| {
                received.push(text.to_owned());
                Ok(())
            });
            handled.expect("an honest peer");
        }

        /// Loses all frames in flight, and resumes at both ends.
        fn cut(&mut self) {
            self.wires = Default::default();
            for end in [0, 1] {
                let received = self.ends[1 - end].received().unwrap();
                assert!(!self.ends[end].is_past(received));
                self.ends[end].resume(received).unwrap();
            }
        }

        fn check(&self) {
            for end in [0, 1] {
                let expected: Vec<String> =
                    (1..=self.received[end].len()).map(|number| number.to_string()).collect();
                assert_eq!(self.received[end], expected, "each message once, in order");
                assert!(self.ends[end].unacknowledged() <= limits().resume_messages);
            }
        }
    }

    #[test]
    fn each_message_arrives_once_and_in_order_over_many_connections() {
        for seed in 1..=300_u64 {
            let mut state = seed;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let mut pair = Pair::new();
            for _ in 0..300 {
                match random(17) {
                    step @ 0..4 => pair.queue(step as usize % 2),
                    step @ 4..10 => pair.send(step as usize % 2),
                    step @ 10..16 => pair.receive(step as usize % 2),
                    _ => pair.cut(),
                }
                pair.check();
            }
            let all = |pair: &Pair| {
                pair.ends.iter().all(|end| !end.has_frame() && end.unacknowledged() == 0)
                    && pair.wires.iter().all(VecDeque::is_empty)
            };
            for _ in 0..2000 {
                for end in [0, 1] {
                    pair.send(end);
                    pair.receive(end);
                    pair.now += limits().ack_after;
                    pair.ends[end].tick(pair.now, &limits());
                }
            }
            pair.check();
            assert!(all(&pair), "something is left");
            assert_eq!([pair.received[1].len() as u32, pair.received[0].len() as u32], pair.queued);
        }
    }
}
