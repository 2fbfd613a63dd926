//! Whether a thread that has nothing to do stays awake for a moment, or sleeps at once.
//!
//! To wake a sleeping thread on an idle processor costs more than all that a small call does itself (25 µs on a virtual
//! machine, six times a call). A thread that stays awake, and yields to whoever else wants to run, hears of the next step
//! without that: a third of the time of a call that comes alone, for less processor time. It pays only while the next step comes
//! at once, so each wait that was in vain counts against the next. `reactor` asks before it waits; no IO and no clock here.

use std::time::Duration;

use crate::limits;

/// What staying awake has been worth of late.
#[derive(Debug)]
pub struct BusyPoll {
    /// At nothing the thread sleeps.
    credit: u32,
    /// Waits asleep since there was credit.
    asleep: u32,
    /// Waits asleep before it is tried again.
    rest: u32,
}

/// What a wait that ended in time is worth, and what one in vain costs: two of three must be in time.
const GAIN: u32 = 1;
const LOSS: u32 = 2;
/// Enough to go on through a pause in a row of calls, little enough to stop soon after it.
const MOST: u32 = 16;
/// What a thread starts with that tries again.
const STAKE: u32 = 2 * LOSS;

impl Default for BusyPoll {
    fn default() -> Self {
        Self { credit: 0, asleep: 0, rest: limits::SPIN_REST }
    }
}

impl BusyPoll {
    /// Whether to stay awake this time, for at most [`limits::BUSY_POLL`].
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

    /// Such a wait ended after so long, with news or without. One that others have made long, when they were let run, has cost
    /// more than many are worth.
    pub fn ended(&mut self, after: Duration) {
        if after < limits::BUSY_POLL {
            self.credit = (self.credit + GAIN).min(MOST);
            self.rest = (self.rest - 1).max(limits::SPIN_REST);
            return;
        }
        self.credit = if after < limits::SPIN_STALL { self.credit.saturating_sub(LOSS) } else { 0 };
        if self.credit == 0 {
            self.rest = (self.rest * 4).min(limits::SPIN_REST_LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::ZERO;
    const IN_VAIN: Duration = limits::BUSY_POLL;

    /// How many of so many waits were spent awake, if each takes so long as is said of it.
    fn awake(spin: &mut BusyPoll, waits: u32, takes: impl Fn(u32) -> Duration) -> u32 {
        let mut awake = 0;
        for number in 0..waits {
            if spin.is_worthwhile() {
                awake += 1;
                spin.ended(takes(number));
            }
        }
        awake
    }

    /// One to which it has long been worth it.
    fn eager() -> BusyPoll {
        let mut spin = BusyPoll::default();
        awake(&mut spin, 1000, |_| SOON);
        spin
    }

    #[test]
    fn a_thread_sleeps_at_first() {
        assert_eq!(awake(&mut BusyPoll::default(), limits::SPIN_REST - 1, |_| SOON), 0);
        assert_eq!(awake(&mut BusyPoll::default(), limits::SPIN_REST + 100, |_| SOON), 101);
    }

    #[test]
    fn it_stays_awake_while_news_come_at_once() {
        // One pause in three changes nothing.
        assert_eq!(awake(&mut eager(), 999, |number| if number % 3 == 0 { IN_VAIN } else { SOON }), 999);
    }

    #[test]
    fn it_sleeps_soon_when_they_no_longer_do() {
        assert_eq!(awake(&mut eager(), limits::SPIN_REST, |_| IN_VAIN), MOST / LOSS);
    }

    #[test]
    fn it_sleeps_at_once_when_others_keep_it_from_the_processor() {
        let mut spin = eager();
        assert_eq!(awake(&mut spin, 100, |_| limits::SPIN_STALL), 1);
        // And is slow to trust them again: they take their turn now and then, and all is well in between.
        let stalled = |number| if number % 50 == 0 { limits::SPIN_STALL } else { SOON };
        let waits = 100 * limits::SPIN_REST_LONGEST;
        let tries = awake(&mut spin, waits, stalled);
        assert!(tries < waits / 50, "{tries} of {waits}");
        // But it does, when they are gone.
        assert!(awake(&mut spin, waits, |_| SOON) > waits / 2);
    }

    #[test]
    fn slow_input_is_parsed_in_linear_time() {
        let waits = 100 * limits::SPIN_REST_LONGEST;
        let tries = awake(&mut BusyPoll::default(), waits, |_| IN_VAIN);
        assert!(tries < waits / 1000, "{tries} of {waits}");
        // And so does a client that pauses between its calls.
        let tries =
            awake(&mut BusyPoll::default(), waits, |number| if number % 2 == 0 { IN_VAIN } else { SOON });
        assert!(tries < waits / 100, "{tries} of {waits}");
    }
}
