//! The timers of one connection of a link: the heartbeat, and the limits on a peer that does not
//! read, does not acknowledge, or sends a message too slowly.
//!
//! Pure: `net::ws_link` reports what happens on its socket, and asks what is due. The time limits
//! are in [`LinkLimits`].

use std::time::{Duration, Instant};

use super::{
    close::{CloseReason, LinkEnd},
    heartbeat::{CONTROL_FLOOD, Heartbeat, HeartbeatAction},
};
use crate::limits::{LinkLimits, STALL_RETRIES};

/// The timers of one connection, from the end of the registration on.
#[derive(Debug)]
pub struct LinkTimers {
    heartbeat: Heartbeat,
    blocked_write: Option<BlockedWrite>,
    /// Since when sending is blocked because the peer acknowledges nothing.
    blocked_on_acks_since: Option<Instant>,
    partial: Option<PartialMessage>,
}

/// A write that makes no progress.
#[derive(Clone, Copy, Debug)]
struct BlockedWrite {
    since: Instant,
    /// Bytes written to the connection by then.
    written: u64,
    /// When to try again.
    retry_at: Instant,
}

/// A message that is not complete.
#[derive(Clone, Copy, Debug)]
struct PartialMessage {
    since: Instant,
    /// Bytes received of it.
    bytes: usize,
}

/// What the driver of the link knows at this moment and the timers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Observed {
    /// Size in bytes of the sent frames that the peer has not acknowledged.
    pub unacknowledged_bytes: usize,
    /// Whether frames are written but not flushed. A ping would only wait behind them.
    pub has_unflushed: bool,
}

/// What to do when a timer has fired.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimerAction {
    /// Nothing.
    Nothing,
    /// Send a ping.
    Ping,
}

impl LinkTimers {
    /// Creates the timers of a connection that carries frames from `now` on.
    pub fn new(now: Instant) -> Self {
        Self {
            heartbeat: Heartbeat::new(now),
            blocked_write: None,
            blocked_on_acks_since: None,
            partial: None,
        }
    }

    /// Records the end of a message, of any kind.
    pub fn on_message(&mut self) {
        self.partial = None;
    }

    /// Records a text frame.
    pub fn on_text(&mut self, now: Instant) {
        self.heartbeat.heard(now);
    }

    /// Records a control frame.
    ///
    /// # Errors
    /// The peer sends more than [`LinkLimits::control_frames`] per [`LinkLimits::control_window`].
    pub fn on_control(&mut self, now: Instant, limits: &LinkLimits) -> Result<(), CloseReason> {
        if self.heartbeat.control(now, limits) { Ok(()) } else { Err(CloseReason::new(1008, CONTROL_FLOOD)) }
    }

    /// Returns the number of bytes received of an incomplete message, at the last
    /// [`LinkTimers::on_bytes`].
    pub fn partial_bytes(&self) -> usize {
        self.partial.map_or(0, |partial| partial.bytes)
    }

    /// Records that `bytes` bytes of an incomplete message were received in all. Part of a large
    /// message over a slow connection is a sign of life long before the message is complete.
    pub fn on_bytes(&mut self, now: Instant, bytes: usize) {
        self.heartbeat.heard(now);
        self.partial.get_or_insert(PartialMessage { since: now, bytes }).bytes = bytes;
    }

    /// Records that a write waits for the peer; `written` is the number of bytes written to the
    /// connection so far. The write is stalled only as long as that number does not grow.
    pub fn on_write_blocked(&mut self, now: Instant, written: u64, limits: &LinkLimits) {
        match &mut self.blocked_write {
            Some(blocked) if blocked.written == written => {}
            Some(blocked) => {
                // Waiting bytes were accepted: the peer is alive, and busy with a message larger
                // than its buffers.
                self.heartbeat.heard(now);
                (blocked.since, blocked.written) = (now, written);
            }
            None => {
                let retry_at = now + retry_interval(limits);
                self.blocked_write = Some(BlockedWrite { since: now, written, retry_at });
            }
        }
    }

    /// Whether a write waits for the peer.
    pub fn is_write_blocked(&self) -> bool {
        self.blocked_write.is_some()
    }

    /// Records that everything is written.
    pub fn on_flushed(&mut self) {
        self.blocked_write = None;
    }

    /// Records that messages wait for an acknowledgement. Further calls change nothing.
    pub fn on_blocked_on_acks(&mut self, now: Instant) {
        self.blocked_on_acks_since.get_or_insert(now);
    }

    /// Whether messages wait for an acknowledgement.
    pub fn is_blocked_on_acks(&self) -> bool {
        self.blocked_on_acks_since.is_some()
    }

    /// Records an acknowledgement.
    pub fn on_acknowledged(&mut self) {
        self.blocked_on_acks_since = None;
    }

    /// Records that this end reads nothing because it has no memory. The peer is not silent then.
    pub fn on_waits_for_memory(&mut self, now: Instant) {
        self.heartbeat.heard(now);
    }

    /// Returns what to do at `now`. Call it at [`LinkTimers::deadline`].
    ///
    /// # Errors
    /// Why the link ends: a limit is exceeded.
    pub fn tick(
        &mut self,
        now: Instant,
        observed: Observed,
        limits: &LinkLimits,
    ) -> Result<TimerAction, LinkEnd> {
        if let Some(blocked) = &mut self.blocked_write {
            if now >= blocked.since + limits.write_stall {
                return Err(LinkEnd::Lost("the peer does not read".into()));
            }
            blocked.retry_at = now + retry_interval(limits);
        }
        if self.acks_due(observed, limits).is_some_and(|due| now >= due) {
            return Err(LinkEnd::Lost("the peer does not acknowledge frames".into()));
        }
        if self.message_due(limits).is_some_and(|due| now >= due) {
            return Err(LinkEnd::ByUs(CloseReason::new(1008, "a message was received too slowly")));
        }
        match self.heartbeat.tick(now, limits) {
            HeartbeatAction::Dead => Err(LinkEnd::Silent(limits.dead_after)),
            HeartbeatAction::Ping if !observed.has_unflushed => Ok(TimerAction::Ping),
            HeartbeatAction::Ping | HeartbeatAction::Fine => Ok(TimerAction::Nothing),
        }
    }

    /// Returns when to call [`LinkTimers::tick`], and to try a blocked write again.
    pub fn deadline(&self, observed: Observed, limits: &LinkLimits) -> Instant {
        // A blocked write is tried again before its limit: otherwise progress made right after one
        // try would be dated to the next.
        let write =
            self.blocked_write.map(|blocked| blocked.retry_at.min(blocked.since + limits.write_stall));
        [write, self.acks_due(observed, limits), self.message_due(limits)]
            .into_iter()
            .flatten()
            .fold(self.heartbeat.deadline(limits), Instant::min)
    }

    /// Returns until when the peer may take to acknowledge something. It acknowledges a message
    /// when it is complete, and that message may be large and the connection slow.
    fn acks_due(&self, observed: Observed, limits: &LinkLimits) -> Option<Instant> {
        let time = || limits.write_stall + transfer_time(observed.unacknowledged_bytes, limits);
        self.blocked_on_acks_since.map(|since| since + time())
    }

    /// Returns until when the incomplete message may take, given the bytes received so far.
    fn message_due(&self, limits: &LinkLimits) -> Option<Instant> {
        let time = |bytes| limits.message_time + transfer_time(bytes, limits);
        self.partial.map(|partial| partial.since + time(partial.bytes))
    }
}

/// Returns the time between two tries of a blocked write.
fn retry_interval(limits: &LinkLimits) -> Duration {
    limits.write_stall / STALL_RETRIES
}

/// Returns how long `bytes` may take, at [`LinkLimits::message_floor`] bytes per second.
fn transfer_time(bytes: usize, limits: &LinkLimits) -> Duration {
    let millis = (bytes as u64 * 1000).checked_div(limits.message_floor as u64);
    Duration::from_millis(millis.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One thing that happens to a link.
    enum Step {
        Message,
        Text,
        Control,
        Bytes(usize),
        WriteBlocked(u64),
        Flushed,
        BlockedOnAcks,
        Acknowledged,
        WaitsForMemory,
        Tick(Result<TimerAction, LinkEnd>),
    }
    use Step::*;

    fn limits() -> LinkLimits {
        let seconds = Duration::from_secs;
        LinkLimits {
            ping_every: seconds(15),
            dead_after: seconds(45),
            write_stall: seconds(20),
            message_time: seconds(30),
            message_floor: 100,
            control_frames: 3,
            control_window: seconds(10),
            ..LinkLimits::default()
        }
    }

    const IDLE: Observed = Observed { unacknowledged_bytes: 0, has_unflushed: false };

    /// Runs steps at their times in milliseconds; each is followed by the expected deadline.
    #[track_caller]
    fn run(observed: Observed, steps: Vec<(u64, Step, u64)>) {
        let (limits, start) = (limits(), Instant::now());
        let mut timers = LinkTimers::new(start);
        for (number, (at, step, deadline)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_millis(at);
            match step {
                Message => timers.on_message(),
                Text => timers.on_text(now),
                Control => timers.on_control(now, &limits).unwrap(),
                Bytes(bytes) => timers.on_bytes(now, bytes),
                WriteBlocked(written) => timers.on_write_blocked(now, written, &limits),
                Flushed => timers.on_flushed(),
                BlockedOnAcks => timers.on_blocked_on_acks(now),
                Acknowledged => timers.on_acknowledged(),
                WaitsForMemory => timers.on_waits_for_memory(now),
                Tick(expected) => {
                    assert_eq!(timers.tick(now, observed, &limits), expected, "step {number}");
                }
            }
            let due = timers.deadline(observed, &limits) - start;
            assert_eq!(due.as_millis(), u128::from(deadline), "the deadline after step {number}");
        }
    }

    fn lost(why: &str) -> Result<TimerAction, LinkEnd> {
        Err(LinkEnd::Lost(why.into()))
    }

    #[test]
    fn a_silent_link_is_pinged_and_ends() {
        let silent = Err(LinkEnd::Silent(Duration::from_secs(45)));
        let steps = vec![
            (0, Tick(Ok(TimerAction::Nothing)), 15_000),
            (14_999, Tick(Ok(TimerAction::Nothing)), 15_000),
            (15_000, Tick(Ok(TimerAction::Ping)), 30_000),
            (15_001, Tick(Ok(TimerAction::Nothing)), 30_000),
            (16_000, Control, 31_000),
            (31_000, Tick(Ok(TimerAction::Ping)), 46_000),
            (32_000, Text, 47_000),
            (47_000, Tick(Ok(TimerAction::Ping)), 62_000),
            (62_000, Tick(Ok(TimerAction::Ping)), 77_000),
            (77_000, Tick(silent), 77_000),
        ];
        run(IDLE, steps);
    }

    #[test]
    fn no_ping_waits_behind_unflushed_frames() {
        let unflushed = Observed { has_unflushed: true, ..IDLE };
        run(unflushed, vec![(15_000, Tick(Ok(TimerAction::Nothing)), 30_000)]);
    }

    #[test]
    fn a_blocked_write_is_retried_and_ends_the_link_unless_it_makes_progress() {
        let retry = |limits: &LinkLimits| u64::try_from(retry_interval(limits).as_millis()).unwrap();
        let (retry, nothing) = (retry(&limits()), || Tick(Ok(TimerAction::Nothing)));
        assert!(retry < 10_000, "the times below assume that a retry comes first");
        let steps = vec![
            (1000, WriteBlocked(7), 1000 + retry),
            // Further polls do not postpone the retry.
            (1500, WriteBlocked(7), 1000 + retry),
            (1000 + retry, nothing(), 1000 + 2 * retry),
            // Progress: the limit starts again, and the peer counts as alive.
            (9000, WriteBlocked(8), 1000 + 2 * retry),
            (9000, Flushed, 24_000),
            (10_000, WriteBlocked(8), 10_000 + retry),
            (29_999, nothing(), 30_000),
            (30_000, Tick(lost("the peer does not read")), 30_000),
        ];
        let unflushed = Observed { has_unflushed: true, ..IDLE };
        run(unflushed, steps);
    }

    #[test]
    fn a_peer_that_does_not_acknowledge_ends_the_link() {
        let steps = |end| {
            vec![
                (0, BlockedOnAcks, 15_000),
                (5000, Acknowledged, 15_000),
                (10_000, BlockedOnAcks, 15_000),
                (12_000, BlockedOnAcks, 15_000),
                (15_000, Tick(Ok(TimerAction::Ping)), end),
                (end, Tick(lost("the peer does not acknowledge frames")), end),
            ]
        };
        run(IDLE, steps(30_000));
        // 100 bytes per second: so much must have been received before it can be acknowledged.
        let steps = |end| {
            vec![
                (0, BlockedOnAcks, 15_000),
                (15_000, Text, 25_000),
                (end - 1, Tick(Ok(TimerAction::Nothing)), end),
                (end, Tick(lost("the peer does not acknowledge frames")), end),
            ]
        };
        run(Observed { unacknowledged_bytes: 500, ..IDLE }, steps(25_000));
    }

    #[test]
    fn a_message_may_take_its_time_but_not_more() {
        let slow = Err(LinkEnd::ByUs(CloseReason::new(1008, "a message was received too slowly")));
        let steps = vec![
            (1000, Bytes(10), 16_000),
            (2000, Message, 16_000),
            // Each byte is a sign of life, and extends the limit by the time it may take.
            (10_000, Bytes(100), 25_000),
            (24_000, Bytes(200), 39_000),
            (38_000, Bytes(300), 43_000),
            (42_999, Tick(Ok(TimerAction::Nothing)), 43_000),
            (43_000, Tick(slow), 43_000),
        ];
        run(IDLE, steps);
        let mut timers = LinkTimers::new(Instant::now());
        timers.on_bytes(Instant::now(), 10);
        assert_eq!(timers.partial_bytes(), 10);
        timers.on_message();
        assert_eq!(timers.partial_bytes(), 0);
    }

    #[test]
    fn a_peer_is_not_silent_while_this_end_waits_for_memory() {
        let steps = vec![
            (40_000, WaitsForMemory, 55_000),
            (55_000, Tick(Ok(TimerAction::Ping)), 70_000),
            (84_999, Tick(Ok(TimerAction::Ping)), 85_000),
        ];
        run(IDLE, steps);
    }

    #[test]
    fn a_flood_of_control_frames_ends_the_link() {
        let (limits, now) = (limits(), Instant::now());
        let mut timers = LinkTimers::new(now);
        for _ in 0..3 {
            assert_eq!(timers.on_control(now, &limits), Ok(()));
        }
        let flood = CloseReason::new(1008, "too many control frames");
        assert_eq!(timers.on_control(now, &limits), Err(flood));
    }

    #[test]
    fn without_a_floor_size_gives_no_extra_time() {
        let limits = LinkLimits { message_floor: 0, ..limits() };
        assert_eq!(transfer_time(1 << 20, &limits), Duration::ZERO);
    }
}
