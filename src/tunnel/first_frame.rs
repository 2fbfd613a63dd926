//! The wait for the first frame of a link: its size, its time, and the control frames before it.
//!
//! Pure: `net::ws_link` reads the frames. Afterwards `tunnel::link_timers` applies.

use std::time::Instant;

use super::{
    close::CloseReason,
    heartbeat::{CONTROL_FLOOD, Heartbeat},
};
use crate::limits::LinkLimits;

/// The limits on the first frame of one connection.
#[derive(Debug)]
pub struct FirstFrame {
    heartbeat: Heartbeat,
    max: usize,
    due: Instant,
}

impl FirstFrame {
    /// Begins to wait at `now` for a frame of at most `max` bytes, for
    /// [`LinkLimits::register_time`].
    pub fn new(now: Instant, max: usize, limits: &LinkLimits) -> Self {
        Self { heartbeat: Heartbeat::new(now), max, due: now + limits.register_time }
    }

    /// Checks the size of the first frame.
    ///
    /// # Errors
    /// It is too large.
    pub fn on_text(&self, bytes: usize) -> Result<(), CloseReason> {
        if bytes > self.max {
            return Err(CloseReason::new(1009, "the first frame is too large"));
        }
        Ok(())
    }

    /// Records a control frame.
    ///
    /// # Errors
    /// The peer sends more than [`LinkLimits::control_frames`] per [`LinkLimits::control_window`].
    pub fn on_control(&mut self, now: Instant, limits: &LinkLimits) -> Result<(), CloseReason> {
        if self.heartbeat.control(now, limits) { Ok(()) } else { Err(CloseReason::new(1008, CONTROL_FLOOD)) }
    }

    /// Returns until when the frame must be received.
    pub fn deadline(&self) -> Instant {
        self.due
    }

    /// Checks the time.
    ///
    /// # Errors
    /// The time is over.
    pub fn tick(&self, now: Instant) -> Result<(), CloseReason> {
        if now >= self.due { Err(Self::timed_out()) } else { Ok(()) }
    }

    /// Returns the reason to close a link whose first frame is not received in time.
    pub fn timed_out() -> CloseReason {
        CloseReason::new(1008, "timed out waiting for the first frame")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_frame_is_limited_in_size_and_time() {
        let (limits, now) = (LinkLimits::default(), Instant::now());
        let first = FirstFrame::new(now, 100, &limits);
        assert_eq!(first.on_text(100), Ok(()));
        assert_eq!(first.on_text(101).map_err(|why| why.code), Err(1009));
        let due = first.deadline();
        assert_eq!(due, now + limits.register_time);
        assert_eq!(first.tick(due - Duration::from_millis(1)), Ok(()));
        assert_eq!(first.tick(due), Err(FirstFrame::timed_out()));
    }

    #[test]
    fn a_flood_before_the_first_frame_ends_the_link() {
        let (limits, now) = (LinkLimits::default(), Instant::now());
        let mut first = FirstFrame::new(now, 100, &limits);
        for _ in 0..limits.control_frames {
            assert_eq!(first.on_control(now, &limits), Ok(()));
        }
        let flood = CloseReason::new(1008, "too many control frames");
        assert_eq!(first.on_control(now, &limits), Err(flood));
        assert_eq!(first.on_control(now + limits.control_window, &limits), Ok(()));
    }
}
