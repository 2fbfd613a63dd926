//! Restart policy: whether and when to restart a server that has ended.
//!
//! Pure; `edge::supervisor` does the waiting and starting.
//!
//! | `--restart` | exit status 0 | any other end |
//! |---|---|---|
//! | `on-failure` (default) | `register` exits | the server is restarted |
//! | `always` | the server is restarted | the server is restarted |
//! | `never` | `register` exits | `register` exits |
//!
//! A command that cannot be started at first ends `register` if a terminal is attached; without
//! one it is retried in the same way, because what it needs (a disk, a network) may not be there
//! yet. The processes of isolated sessions are not restarted.
//!
//! A server that exits at `server/discover`, because it knows no first message but `initialize`, is
//! started again at once, whatever the policy says, but once only: the gateway then sends
//! `initialize`.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{mem, time::Duration};

use crate::{config::Restart, limits::ChildLimits, util::backoff};

/// How a run of the server ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// It exited with status 0: it reports success.
    Done,
    /// It exited in any other way, the edge had to stop it, or it could not be started.
    Failed,
}

/// Computes the delays between starts.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    failures: u32,
    /// The server has exited at `server/discover` before.
    has_probed: bool,
}

impl Restarts {
    /// Returns the delay before the next start, or `None` if the server is not to be restarted.
    /// `alive` is the duration of the last run; `random` is any random number.
    ///
    /// The delay doubles from `restart_base` to `restart_cap`, less a random part of up to a
    /// quarter, so that edges whose servers fail for the same cause do not restart them in step.
    pub fn next(
        &mut self,
        policy: Restart,
        ending: Ending,
        alive: Duration,
        random: u32,
        limits: &ChildLimits,
    ) -> Option<Duration> {
        match (policy, ending) {
            (Restart::Never, _) | (Restart::OnFailure, Ending::Done) => return None,
            (Restart::OnFailure, Ending::Failed) | (Restart::Always, _) => {}
        }
        if alive >= limits.restart_reset {
            self.failures = 0;
        }
        let whole = backoff::doubled(limits.restart_base, self.failures, limits.restart_cap);
        self.failures = self.failures.saturating_add(1);
        Some(backoff::less_random(whole, 0.25, random))
    }

    /// Whether a server that exited after it got nothing but `server/discover` is started again at
    /// once. It does not count as a failure.
    pub fn after_probe(&mut self) -> bool {
        !mem::replace(&mut self.has_probed, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(
        restarts: &mut Restarts,
        policy: Restart,
        ending: Ending,
        alive: u64,
        random: u32,
    ) -> Option<f64> {
        let alive = Duration::from_secs(alive);
        let delay = restarts.next(policy, ending, alive, random, &ChildLimits::default());
        delay.map(|delay| delay.as_secs_f64())
    }

    #[test]
    fn restart_depends_on_policy_and_exit() {
        for (policy, ending, again) in [
            (Restart::Never, Ending::Done, false),
            (Restart::Never, Ending::Failed, false),
            (Restart::OnFailure, Ending::Done, false),
            (Restart::OnFailure, Ending::Failed, true),
            (Restart::Always, Ending::Done, true),
            (Restart::Always, Ending::Failed, true),
        ] {
            let delay = next(&mut Restarts::default(), policy, ending, 0, 0);
            assert_eq!(delay.is_some(), again, "{policy:?} {ending:?}");
        }
    }

    #[test]
    fn the_exit_at_a_probe_is_forgiven_once() {
        let mut restarts = Restarts::default();
        next(&mut restarts, Restart::Always, Ending::Failed, 0, 0);
        assert!(restarts.after_probe());
        assert!(!restarts.after_probe());
        assert_eq!(next(&mut restarts, Restart::Always, Ending::Failed, 0, 0), Some(2.0), "it did not count");
        assert!(!restarts.after_probe());
    }

    #[test]
    fn delays_double_to_a_minute_and_begin_anew_after_a_healthy_one() {
        let mut restarts = Restarts::default();
        let mut crash = |alive| next(&mut restarts, Restart::OnFailure, Ending::Failed, alive, 0).unwrap();
        let delays: Vec<f64> = [0, 0, 5, 0, 0, 59, 0, 0].map(&mut crash).into();
        assert_eq!(delays, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!([60, 0, 3600, 0].map(&mut crash), [1.0, 2.0, 1.0, 2.0]);
    }

    #[test]
    fn jitter_shortens_the_delay_by_up_to_a_quarter() {
        let mut restarts = Restarts::default();
        for step in 0..1000 {
            let whole = next(&mut restarts.clone(), Restart::Always, Ending::Failed, 0, 0).unwrap();
            let least = next(&mut restarts.clone(), Restart::Always, Ending::Failed, 0, u32::MAX).unwrap();
            let some = next(&mut restarts, Restart::Always, Ending::Failed, 0, u32::MAX / 2).unwrap();
            assert!((least - whole * 0.75).abs() < 1e-6 && least < some && some < whole, "start {step}");
            assert!((0.75..=60.0).contains(&least) && whole <= 60.0);
        }
    }
}
