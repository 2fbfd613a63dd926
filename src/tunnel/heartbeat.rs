//! Heartbeat of a link: when to ping the peer, when it is dead, and how many control frames it may
//! send.

use std::time::Instant;

use crate::limits::LinkLimits;

/// Why a link is closed whose peer sends too many control frames.
pub const CONTROL_FLOOD: &str = "too many control frames";

/// What to do about the peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HeartbeatAction {
    /// Nothing for now.
    Fine,
    /// Send a ping.
    Ping,
    /// Nothing was received for `dead_after`: close the link.
    Dead,
}

/// The heartbeat state of one link. Any received data counts as a sign of life.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    heard: Instant,
    pinged: Option<Instant>,
    window: Instant,
    control: u32,
}

impl Heartbeat {
    /// Creates the state of a link that was opened at `now`.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, pinged: None, window: now, control: 0 }
    }

    /// Records that data was received.
    pub fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged = None;
    }

    /// Records a control frame. Returns false if the peer sends more of them than `control_frames`
    /// per `control_window`.
    pub fn control(&mut self, now: Instant, limits: &LinkLimits) -> bool {
        self.heard(now);
        if now.duration_since(self.window) >= limits.control_window {
            self.window = now;
            self.control = 0;
        }
        self.control += 1;
        self.control <= limits.control_frames
    }

    /// Returns what to do at `now`.
    pub fn tick(&mut self, now: Instant, limits: &LinkLimits) -> HeartbeatAction {
        if now >= self.heard + limits.dead_after {
            return HeartbeatAction::Dead;
        }
        if now >= self.next_ping(limits) {
            self.pinged = Some(now);
            return HeartbeatAction::Ping;
        }
        HeartbeatAction::Fine
    }

    /// Returns when to call [`Heartbeat::tick`] next.
    pub fn deadline(&self, limits: &LinkLimits) -> Instant {
        self.next_ping(limits).min(self.heard + limits.dead_after)
    }

    fn next_ping(&self, limits: &LinkLimits) -> Instant {
        self.pinged.unwrap_or(self.heard) + limits.ping_every
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_silent_peer_is_pinged_and_then_dead() {
        let limits = LinkLimits::default();
        let start = Instant::now();
        let mut heartbeat = Heartbeat::new(start);
        let mut events = Vec::new();
        loop {
            let now = heartbeat.deadline(&limits);
            let verdict = heartbeat.tick(now, &limits);
            events.push(((now - start).as_secs(), verdict));
            if verdict == HeartbeatAction::Dead {
                break;
            }
        }
        assert_eq!(
            events,
            [(15, HeartbeatAction::Ping), (30, HeartbeatAction::Ping), (45, HeartbeatAction::Dead)]
        );
    }

    #[test]
    fn a_peer_that_answers_pings_stays_alive() {
        let limits = LinkLimits::default();
        let mut heartbeat = Heartbeat::new(Instant::now());
        for _ in 0..1000 {
            let now = heartbeat.deadline(&limits);
            assert_eq!(heartbeat.tick(now, &limits), HeartbeatAction::Ping);
            heartbeat.control(now + Duration::from_millis(50), &limits);
        }
    }

    #[test]
    fn a_flood_of_control_frames_is_noticed() {
        let limits = LinkLimits::default();
        let now = Instant::now();
        let mut heartbeat = Heartbeat::new(now);
        for _ in 0..limits.control_frames {
            assert!(heartbeat.control(now, &limits));
        }
        assert!(!heartbeat.control(now, &limits));
        assert!(heartbeat.control(now + limits.control_window, &limits));
    }
}
