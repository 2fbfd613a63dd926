//! Decides whether an idle thread busy-polls for a moment or sleeps at once.
//!
//! Waking a sleeping thread on an idle processor costs more than all the work of a small call (25
//! µs on a virtual machine, six times a call). A thread that stays awake, and yields to other
//! threads that want to run, sees the next event without that cost: a single call takes a third of
//! the time and uses less processor time. This pays only while the next event comes at once, so
//! each wait that timed out counts against the next one. `reactor` asks before it waits, unless
//! `--busy-poll off` forbids it. This module does no IO and reads no clock.
//!
//! # Cost
//!
//! CPU time of gateway and register together, in percent of one processor, with `--busy-poll` on
//! and off. Small `tools/call` requests; client, both programs and an echo server are bound to one
//! or to both processors of a virtual machine (x86-64, Linux 6.18, release build) and scheduled
//! before all other programs (`chrt -r 1`). Mean of two runs, which differ by up to 15 percent.
//!
//! | processors | load | on | off |
//! |---|---|---|---|
//! | 1 | idle | 0.00 % | 0.00 % |
//! | 1 | 100 calls/s | 2.1 %, median 340 µs | 2.0 %, median 340 µs |
//! | 1 | one client without pause | 69 %, 19 300 calls/s, median 47 µs | 66 %, 20 100 calls/s, median 45 µs |
//! | 1 | 16 clients without pause | 54 %, 38 000 calls/s | 55 %, 40 900 calls/s |
//! | 2 | idle | 0.00 % | 0.00 % |
//! | 2 | 100 calls/s | 3.7 %, median 435 µs | 3.5 %, median 415 µs |
//! | 2 | 180 calls/s (pauses of 5 ms) | 6.3 % | 5.7 % |
//! | 2 | 740 calls/s (pauses of 1 ms) | 19 % | 18 % |
//! | 2 | one client without pause | 155 %, 20 300 calls/s, median 43 µs | 88 %, 6 300 calls/s, median 150 µs |
//! | 2 | 16 clients without pause | 115 %, 54 800 calls/s | 113 %, 55 500 calls/s |
//!
//! So a client that sends one call after the other, as an agent does, is served three times as fast
//! on two processors, for 76 µs of CPU time per call instead of 140 µs; no processor sleeps
//! meanwhile, and that is the price. With one processor, many clients or pauses it changes little:
//! at most a tenth more CPU time. `off` is for a machine whose other programs must not compete with
//! a thread that stays awake.

use std::time::Duration;

use crate::limits;

/// Tracks whether busy polling has paid off recently.
#[derive(Debug, Eq, PartialEq)]
pub struct BusyPoll {
    /// Credit left; at zero the thread sleeps.
    credit: u32,
    /// Number of waits spent asleep since the credit ran out.
    asleep: u32,
    /// Number of waits to spend asleep before busy polling is tried again.
    rest: u32,
}

/// Credit for a wait that ended in time, and the cost of one that timed out: two of three waits
/// must end in time to keep the credit.
const GAIN: u32 = 1;
const LOSS: u32 = 2;
/// Largest credit: enough to keep polling through a pause in a series of calls, small enough to
/// stop soon after the last call.
const MAX_CREDIT: u32 = 16;
/// Credit at the start of a new try.
const STAKE: u32 = 2 * LOSS;

impl Default for BusyPoll {
    fn default() -> Self {
        Self { credit: 0, asleep: 0, rest: limits::BUSY_POLL_REST }
    }
}

impl BusyPoll {
    /// Returns whether to busy-poll this time, for at most [`limits::BUSY_POLL`].
    pub fn is_worthwhile(&mut self) -> bool {
        if self.credit > 0 {
            return true;
        }
        self.asleep += 1;
        if self.asleep < self.rest {
            return false;
        }
        (self.credit, self.asleep) = (STAKE, 0);
        true
    }

    /// Records how long a busy-poll wait took. A wait shorter than [`limits::BUSY_POLL`] earns
    /// credit and a longer one costs some. A wait of [`limits::BUSY_POLL_STALL`] or more takes all
    /// credit: other threads got the processor when this one yielded, and that delay outweighs many
    /// short waits.
    pub fn ended(&mut self, after: Duration) {
        if after < limits::BUSY_POLL {
            self.credit = (self.credit + GAIN).min(MAX_CREDIT);
            self.rest = (self.rest - 1).max(limits::BUSY_POLL_REST);
            return;
        }
        self.credit = if after < limits::BUSY_POLL_STALL { self.credit.saturating_sub(LOSS) } else { 0 };
        if self.credit == 0 {
            self.rest = (self.rest * 4).min(limits::BUSY_POLL_REST_LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::ZERO;
    const IN_VAIN: Duration = limits::BUSY_POLL;

    /// Returns how many of `waits` waits were busy-polled, if wait number `n` takes `takes(n)`.
    fn awake(busy_poll: &mut BusyPoll, waits: u32, takes: impl Fn(u32) -> Duration) -> u32 {
        let mut awake = 0;
        for number in 0..waits {
            if busy_poll.is_worthwhile() {
                awake += 1;
                busy_poll.ended(takes(number));
            }
        }
        awake
    }

    /// Returns a `BusyPoll` with full credit.
    fn eager() -> BusyPoll {
        let mut busy_poll = BusyPoll::default();
        awake(&mut busy_poll, 1000, |_| SOON);
        busy_poll
    }

    #[test]
    fn busy_polling_starts_after_the_first_waits() {
        assert_eq!(awake(&mut BusyPoll::default(), limits::BUSY_POLL_REST - 1, |_| SOON), 0);
        assert_eq!(awake(&mut BusyPoll::default(), limits::BUSY_POLL_REST + 100, |_| SOON), 101);
    }

    #[test]
    fn fast_events_keep_busy_polling() {
        // One wait in three that times out changes nothing.
        assert_eq!(awake(&mut eager(), 999, |number| if number % 3 == 0 { IN_VAIN } else { SOON }), 999);
    }

    #[test]
    fn slow_events_end_busy_polling() {
        assert_eq!(awake(&mut eager(), limits::BUSY_POLL_REST, |_| IN_VAIN), MAX_CREDIT / LOSS);
    }

    #[test]
    fn a_stall_ends_busy_polling_at_once() {
        let mut busy_poll = eager();
        assert_eq!(awake(&mut busy_poll, 100, |_| limits::BUSY_POLL_STALL), 1);
        // It tries again rarely, because stalls still happen between good waits.
        let stalled = |number| if number % 50 == 0 { limits::BUSY_POLL_STALL } else { SOON };
        let waits = 100 * limits::BUSY_POLL_REST_LONGEST;
        let tries = awake(&mut busy_poll, waits, stalled);
        assert!(tries < waits / 50, "{tries} of {waits}");
        // It recovers when the stalls stop.
        assert!(awake(&mut busy_poll, waits, |_| SOON) > waits / 2);
    }

    #[test]
    fn failed_busy_polls_are_retried_rarely() {
        let waits = 100 * limits::BUSY_POLL_REST_LONGEST;
        let tries = awake(&mut BusyPoll::default(), waits, |_| IN_VAIN);
        assert!(tries < waits / 1000, "{tries} of {waits}");
        // The same holds for a client that pauses between its calls.
        let tries =
            awake(&mut BusyPoll::default(), waits, |number| if number % 2 == 0 { IN_VAIN } else { SOON });
        assert!(tries < waits / 100, "{tries} of {waits}");
    }
}
