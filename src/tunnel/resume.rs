//! Resuming a link session over another connection. Each end counts the frames of both directions,
//! and keeps the frames that it sent until the other end has acknowledged them.
//!
//! | on the wire | meaning |
//! |---|---|
//! | `"resume":{}` in the registration | the edge can resume |
//! | `"resume":{"token":T,"window":S}` in the answer | so can the gateway, up to S seconds after a drop |
//! | `"resume":{"token":T,"received":N}` in a later registration | the edge reconnects, and has received N frames |
//! | `"resume":{"token":T,"window":S,"received":M}` in its answer | resumed: the gateway has received M frames |
//! | `*N` | the sender has received N frames in all |
//!
//! Text frames are counted from 1 in each direction, except the registration, its answer and `*N`
//! itself. After a resumed registration each end first resends the frames that the other has not
//! received, in order, and continues from there. Without `received` in the answer the gateway begins
//! a new session and nothing is resent.
//!
//! An end acknowledges at least every [`ack_every`](LinkLimits::ack_every) frames or
//! [`ack_bytes`](LinkLimits::ack_bytes) bytes, and no later than
//! [`ack_after`](LinkLimits::ack_after). An end with
//! [`resume_messages`](LinkLimits::resume_messages) unacknowledged frames or
//! [`resume_bytes`](LinkLimits::resume_bytes) bytes of them stops sending until it gets an
//! acknowledgement ([`Resume::has_room`]). The token is a secret, bound to the server's id and to
//! the owner of the token that the edge presents.
//!
//! Pure; `net::ws_link` drives it.

use std::{collections::VecDeque, time::Instant};

use crate::{limits::LinkLimits, util};

/// The state needed to resume a link session over another connection. `F` is a frame that is cheap
/// to clone.
#[derive(Debug)]
pub struct Resume<F> {
    /// Sent and not acknowledged frames, with their sizes in bytes.
    unacknowledged_frames: VecDeque<(F, usize)>,
    kept_bytes: usize,
    /// Number of frames that the peer has acknowledged.
    acknowledged: u64,
    /// Number of frames received.
    received: u64,
    /// Number of frames received at our last acknowledgement.
    told: u64,
    /// Bytes received since then.
    unreported_bytes: usize,
    /// When the first frame since then was received.
    unreported_since: Option<Instant>,
}

/// The peer acknowledged frames that were never sent, or fewer than before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CannotResume;

impl<F: Clone> Resume<F> {
    /// Creates the state of a new session.
    pub fn new() -> Self {
        Self {
            unacknowledged_frames: VecDeque::new(),
            kept_bytes: 0,
            acknowledged: 0,
            received: 0,
            told: 0,
            unreported_bytes: 0,
            unreported_since: None,
        }
    }

    /// Whether another frame may be sent before the peer acknowledges some.
    pub fn has_room(&self, limits: &LinkLimits) -> bool {
        self.unacknowledged_frames.is_empty()
            || (self.unacknowledged_frames.len() < limits.resume_messages
                && self.kept_bytes < limits.resume_bytes)
    }

    /// Records a sent frame of `bytes` bytes.
    pub fn sent(&mut self, frame: F, bytes: usize) {
        self.unacknowledged_frames.push_back((frame, bytes));
        self.kept_bytes += bytes;
    }

    /// Records a received frame of `bytes` bytes.
    pub fn received(&mut self, now: Instant, bytes: usize) {
        self.received += 1;
        self.unreported_bytes += bytes;
        self.unreported_since.get_or_insert(now);
    }

    /// Returns the number of frames received.
    pub fn count(&self) -> u64 {
        self.received
    }

    /// Returns the number of sent frames that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged_frames.len()
    }

    /// Returns the size in bytes of the sent frames that are not acknowledged.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.kept_bytes
    }

    /// Returns the number of frames that the peer has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Handles an acknowledgement: the peer has received `count` frames in all.
    ///
    /// # Errors
    /// [`CannotResume`]; nothing is changed then.
    pub fn acknowledge(&mut self, count: u64) -> Result<(), CannotResume> {
        let count_new = count.checked_sub(self.acknowledged).ok_or(CannotResume)?;
        let count_new = usize::try_from(count_new)
            .ok()
            .filter(|count_new| *count_new <= self.unacknowledged_frames.len())
            .ok_or(CannotResume)?;
        let bytes: usize = self.unacknowledged_frames.drain(..count_new).map(|(_, bytes)| bytes).sum();
        self.kept_bytes -= bytes;
        self.acknowledged = count;
        if self.unacknowledged_frames.is_empty() {
            // Free the memory of a burst instead of holding it for as long as the link lasts.
            self.unacknowledged_frames.shrink_to(0);
        }
        Ok(())
    }

    /// Returns an acknowledgement frame if `ack_every` frames or `ack_bytes` bytes were received
    /// since the last one.
    pub fn due_acknowledgement(&mut self, limits: &LinkLimits) -> Option<String> {
        let frames = self.received - self.told;
        let enough = frames >= limits.ack_every || self.unreported_bytes >= limits.ack_bytes;
        enough.then(|| self.acknowledgement())
    }

    /// Returns when an acknowledgement is due regardless of the amount received. `None` if nothing
    /// is to be acknowledged.
    pub fn due(&self, limits: &LinkLimits) -> Option<Instant> {
        self.unreported_since.map(|since| since + limits.ack_after)
    }

    /// Returns a frame that acknowledges everything received so far.
    pub fn acknowledgement(&mut self) -> String {
        self.told = self.received;
        self.unreported_bytes = 0;
        self.unreported_since = None;
        format!("*{}", self.received)
    }

    /// Resumes the session over another connection; the peer has received `count` frames. Returns
    /// the frames to resend, in order.
    ///
    /// # Errors
    /// [`CannotResume`] if the missing frames are no longer kept, or the peer claims more than was
    /// sent. Begin a new session then.
    pub fn resume(&mut self, count: u64) -> Result<Vec<F>, CannotResume> {
        self.acknowledge(count)?;
        // The registration or its answer carries the count.
        self.acknowledgement();
        Ok(self.unacknowledged_frames.iter().map(|(frame, _)| frame.clone()).collect())
    }
}

impl<F: Clone> Default for Resume<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// Parses an acknowledgement frame. Returns `None` for any other frame; no JSON text begins with
/// `*`.
pub fn read(frame: &str) -> Option<u64> {
    frame.strip_prefix('*').and_then(util::parse::digits)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Two ends and the frames in flight between them. Records the frames that arrive.
    struct Pair {
        ends: [Resume<u32>; 2],
        /// Frames in flight towards each end.
        wires: [VecDeque<Wire>; 2],
        said: [u32; 2],
        heard: [Vec<u32>; 2],
        limits: LinkLimits,
        now: Instant,
    }

    enum Wire {
        Frame(u32),
        Ack(String),
    }

    impl Pair {
        fn new(ack_every: u64) -> Self {
            let limits = LinkLimits { ack_every, resume_messages: 5, ..LinkLimits::default() };
            let now = Instant::now();
            Self {
                ends: Default::default(),
                wires: Default::default(),
                said: [0; 2],
                heard: Default::default(),
                limits,
                now,
            }
        }

        fn say(&mut self, end: usize) {
            if self.ends[end].has_room(&self.limits) {
                self.said[end] += 1;
                self.ends[end].sent(self.said[end], 1);
                self.wires[1 - end].push_back(Wire::Frame(self.said[end]));
            }
        }

        fn hear(&mut self, end: usize) {
            match self.wires[end].pop_front() {
                Some(Wire::Frame(frame)) => {
                    self.heard[end].push(frame);
                    self.ends[end].received(self.now, 1);
                    if let Some(ack) = self.ends[end].due_acknowledgement(&self.limits) {
                        self.wires[1 - end].push_back(Wire::Ack(ack));
                    }
                }
                Some(Wire::Ack(ack)) => self.ends[end].acknowledge(read(&ack).unwrap()).unwrap(),
                None => {}
            }
        }

        /// Drops all frames in flight and resumes at both ends.
        fn cut(&mut self) {
            self.wires = Default::default();
            for end in [0, 1] {
                let count = self.ends[1 - end].count();
                let again = self.ends[end].resume(count).unwrap();
                self.wires[1 - end].extend(again.into_iter().map(Wire::Frame));
            }
        }

        fn check(&self) {
            for end in [0, 1] {
                let expected: Vec<u32> = (1..=self.heard[end].len() as u32).collect();
                assert_eq!(self.heard[end], expected, "each frame once, in order");
                assert!(self.ends[end].unacknowledged() <= self.limits.resume_messages);
            }
        }

        fn finish(mut self) {
            while self.wires.iter().any(|wire| !wire.is_empty()) {
                self.hear(0);
                self.hear(1);
                self.check();
            }
            assert_eq!([self.heard[1].len() as u32, self.heard[0].len() as u32], self.said);
        }
    }

    /// Cuts at every step of every short history: no frame is lost or repeated.
    #[test]
    fn a_cut_at_every_frame_boundary() {
        const STEPS: u32 = 6;
        for ack_every in [1, 2, 3] {
            for history in 0..4_u32.pow(STEPS) {
                for cut in 0..=STEPS {
                    let mut pair = Pair::new(ack_every);
                    for step in 0..=STEPS {
                        if step == cut {
                            pair.cut();
                        }
                        match (history >> (2 * step)) & 3 {
                            0 => pair.say(0),
                            1 => pair.say(1),
                            2 => pair.hear(0),
                            _ => pair.hear(1),
                        }
                        pair.check();
                    }
                    pair.finish();
                }
            }
        }
    }

    #[test]
    fn many_cuts_in_long_histories() {
        for seed in 1..=500_u64 {
            let mut state = seed;
            let mut random = move |below: u64| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) % below
            };
            let mut pair = Pair::new(1 + random(4));
            for _ in 0..400 {
                match random(9) {
                    0..2 => pair.say(0),
                    2..4 => pair.say(1),
                    4..6 => pair.hear(0),
                    6..8 => pair.hear(1),
                    _ => pair.cut(),
                }
                pair.check();
            }
            pair.finish();
        }
    }

    #[test]
    fn impossible_acknowledgements_are_refused() {
        let mut end = Resume::new();
        for frame in 1..=4 {
            end.sent(frame, 10);
        }
        assert_eq!(end.acknowledge(5), Err(CannotResume));
        assert_eq!(end.acknowledge(2), Ok(()));
        assert_eq!(end.acknowledge(2), Ok(()));
        assert_eq!(end.acknowledge(1), Err(CannotResume));
        assert_eq!(end.resume(1), Err(CannotResume));
        assert_eq!(end.resume(u64::MAX), Err(CannotResume));
        assert_eq!(end.resume(3), Ok(vec![4]));
        assert_eq!(end.unacknowledged(), 1);
    }

    #[test]
    fn capacity_is_bounded_in_frames_and_bytes() {
        let limits = LinkLimits { resume_messages: 3, resume_bytes: 100, ..LinkLimits::default() };
        let mut end = Resume::new();
        end.sent((), 1000);
        assert!(!end.has_room(&limits), "one large frame fills it");
        end.acknowledge(1).unwrap();
        for _ in 0..3 {
            assert!(end.has_room(&limits));
            end.sent((), 1);
        }
        assert!(!end.has_room(&limits));
    }

    #[test]
    fn acknowledgements_are_due_by_count_bytes_and_time() {
        let limits = LinkLimits { ack_every: 3, ack_bytes: 100, ..LinkLimits::default() };
        let (mut end, now) = (Resume::<()>::new(), Instant::now());
        assert_eq!(end.due(&limits), None);
        end.received(now, 1);
        end.received(now + Duration::from_millis(5), 1);
        assert_eq!(
            (end.due_acknowledgement(&limits), end.due(&limits)),
            (None, Some(now + limits.ack_after))
        );
        end.received(now, 1);
        assert_eq!(end.due_acknowledgement(&limits).as_deref(), Some("*3"));
        assert_eq!((end.due_acknowledgement(&limits), end.due(&limits)), (None, None));
        end.received(now, 100);
        assert_eq!(end.due_acknowledgement(&limits).as_deref(), Some("*4"));
    }

    #[test]
    fn acknowledgements_are_read_as_they_are_written() {
        assert_eq!(read("*0"), Some(0));
        assert_eq!(read("*18446744073709551615"), Some(u64::MAX));
        for other in
            ["", "*", "*x", "*-1", "*+1", "*01", "*1 ", " *1", "*18446744073709551616", "{}", "#1 {}"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
