//! Reconnect delays: exponential with full jitter, so that many edges do not reconnect at once.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::time::Duration;

use crate::{limits::LinkLimits, util::backoff};

/// Why the last link, or the attempt to open one, ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkFailure {
    /// The connection or the gateway was lost.
    Lost,
    /// The connection was lost and the session waits to be resumed: long delays would miss the
    /// window.
    Suspended,
    /// The gateway refused the registration; someone has to change the configuration.
    Refused,
}

/// Computes the delays between connection attempts.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Returns the delay before the next attempt. `alive` is the duration of the last attempt and
    /// its link; `random` is any random number.
    ///
    /// The delay is uniformly distributed between 0 and `base * 2^attempts`, capped. The cap is
    /// larger after a refusal and smaller while a session waits to be resumed.
    pub fn next(
        &mut self,
        failure: LinkFailure,
        alive: Duration,
        random: u32,
        limits: &LinkLimits,
    ) -> Duration {
        if alive >= limits.backoff_reset {
            self.attempts = 0;
        }
        let cap = match failure {
            LinkFailure::Lost => limits.backoff_cap,
            LinkFailure::Suspended => limits.resume_retry.min(limits.backoff_cap),
            LinkFailure::Refused => limits.backoff_refused,
        };
        let ceiling = backoff::doubled(limits.backoff_base, self.attempts, cap);
        self.attempts = self.attempts.saturating_add(1);
        backoff::less_random(ceiling, 1.0, u32::MAX - random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_cap_and_resets() {
        let limits = LinkLimits::default();
        let mut backoff = Backoff::default();
        let mut next = |failure, alive| backoff.next(failure, Duration::from_secs(alive), u32::MAX, &limits);
        let lost: Vec<_> = (0..8).map(|_| next(LinkFailure::Lost, 0).as_secs_f64()).collect();
        assert_eq!(lost, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(next(LinkFailure::Suspended, 0), limits.resume_retry);
        assert_eq!(next(LinkFailure::Refused, 0), Duration::from_secs(256));
        assert_eq!(next(LinkFailure::Refused, 0), limits.backoff_refused);
        assert_eq!(next(LinkFailure::Lost, 30), Duration::from_millis(500));
    }

    #[test]
    fn many_attempts_do_not_overflow() {
        let limits = LinkLimits::default();
        let mut backoff = Backoff::default();
        for random in [0, 1, u32::MAX].into_iter().cycle().take(200) {
            let delay = backoff.next(LinkFailure::Lost, Duration::ZERO, random, &limits);
            assert!(delay <= limits.backoff_cap);
        }
    }

    /// Many edges reconnect spread out: at most 30 of 200 in any second, none later than 90 s.
    #[test]
    fn reconnects_are_spread_out() {
        let limits = LinkLimits::default();
        for seed in 1..=1000u64 {
            let mut state = seed;
            let mut random = move || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 32) as u32
            };
            let mut buckets = [0; 100];
            for _ in 0..200 {
                let mut backoff = Backoff::default();
                let mut at = Duration::ZERO;
                while at < Duration::from_secs(60) {
                    at += backoff.next(LinkFailure::Lost, Duration::ZERO, random(), &limits);
                }
                assert!(at <= Duration::from_secs(90));
                buckets[at.as_secs() as usize] += 1;
            }
            let max = buckets.iter().max().copied().unwrap_or(0);
            assert!(max <= 30, "seed {seed}: {max} of 200 in one second");
        }
    }
}
