//! Decides what follows an attempt to link to the gateway: another one after a delay, or the end of
//! the program.
//!
//! Pure. `edge::connect` and `edge::link` report the [`Outcome`], [`super::backoff`] computes the
//! delay, and `edge::keep_linked` waits.
//!
//! How the edge reacts to a failure before and after its first registration. Before it,
//! `--require-gateway` turns "retries" into "exits" in the first two rows:
//!
//! | failure | first, with a terminal | first, without one | later |
//! |---|---|---|---|
//! | no connection, 429, 503, 5xx | retries | retries | retries |
//! | 401, 403, 404 of a proxy; certificate not trusted; server too slow | exits | retries | retries |
//! | refusal by the gateway: HTTP with a `Mcpport-Refusal` field, or a link closed | exits | exits | retries, less often |
//! | too many takeovers of the server id | retries, less often | the same | the same |

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::time::{Duration, Instant};

use super::backoff::{Backoff, LinkFailure};
use crate::{error::FatalError, limits::LinkLimits};

/// How a connection attempt or a link ended.
#[derive(Debug)]
pub enum Outcome {
    /// The connection or the gateway was lost: try again.
    Lost(String),
    /// A failure that may pass without a change here: a refusal by a proxy or captive portal
    /// instead of our gateway, a certificate that is not trusted, or a server that was too slow.
    Transient(String),
    /// The gateway refuses this registration.
    Refused(String),
    /// The gateway refuses the registration for now: use the long delay, even on the first attempt.
    NotNow(String),
    /// The program is stopping.
    Stopped,
}

/// What the decision depends on besides the outcome.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The gateway has accepted a registration since the program started.
    pub was_registered: bool,
    /// The program is to end if the first attempt fails (`--require-gateway`).
    pub require_gateway: bool,
    /// A terminal is attached, so a person sees how the program ends.
    pub has_terminal: bool,
    /// The end of the resume window of a session that waits to be resumed.
    pub suspended_until: Option<Instant>,
}

/// What to do next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// Try again.
    Wait {
        /// After this delay.
        delay: Duration,
        /// The suspended session cannot be resumed any more.
        give_up: bool,
    },
    /// End, because the program is stopping.
    Stop,
    /// End the program with this error.
    Fail(FatalError),
}

/// The attempts so far.
#[derive(Debug, Default)]
pub struct Redial {
    backoff: Backoff,
}

impl Redial {
    /// Decides what follows an attempt, and logs why it ended. `alive` is its duration, including
    /// that of the link; `random` is any random number.
    pub fn after(
        &mut self,
        now: Instant,
        outcome: Outcome,
        facts: &Facts,
        alive: Duration,
        random: u32,
        limits: &LinkLimits,
    ) -> Next {
        let failure = match failure(outcome, facts) {
            Ok(failure) => failure,
            Err(end) => return end,
        };
        let is_late = |until| failure == LinkFailure::Refused || until <= now;
        let give_up = facts.suspended_until.is_some_and(is_late);
        let is_suspended = facts.suspended_until.is_some() && !give_up;
        let failure = if is_suspended { LinkFailure::Suspended } else { failure };
        Next::Wait { delay: self.backoff.next(failure, alive, random, limits), give_up }
    }
}

/// Returns why to try again, or the end. Only before the first registration can a failure end the
/// program: afterwards its cause may pass.
fn failure(outcome: Outcome, facts: &Facts) -> Result<LinkFailure, Next> {
    let is_first = !facts.was_registered;
    let fail = |why| Err(Next::Fail(FatalError::run(why)));
    match outcome {
        Outcome::Stopped => Err(Next::Stop),
        Outcome::Lost(why) if is_first && facts.require_gateway => {
            fail(format!("{why}; exiting because of --require-gateway"))
        }
        Outcome::Lost(why) => {
            log::warn!("{why}");
            Ok(LinkFailure::Lost)
        }
        // With a terminal, report the first failure to the user who typed the command. Without one,
        // keep trying: the gateway itself did not refuse, so the cause may pass, as with every
        // failure after the first registration.
        Outcome::Transient(why) if is_first && (facts.require_gateway || facts.has_terminal) => fail(why),
        Outcome::Transient(why) => {
            log::error!("{why}");
            Ok(LinkFailure::Lost)
        }
        Outcome::Refused(why) if is_first => fail(why),
        Outcome::Refused(why) | Outcome::NotNow(why) => {
            log::error!("{why}");
            Ok(LinkFailure::Refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts =
        Facts { was_registered: false, require_gateway: false, has_terminal: false, suspended_until: None };

    /// The decision about the first attempt with the largest delay.
    fn next(now: Instant, outcome: Outcome, facts: &Facts, limits: &LinkLimits) -> Next {
        Redial::default().after(now, outcome, facts, Duration::ZERO, u32::MAX, limits)
    }

    #[test]
    fn only_a_failure_before_the_first_registration_can_end_the_program() {
        let (now, limits) = (Instant::now(), LinkLimits::default());
        let outcomes: [fn(String) -> Outcome; 4] =
            [Outcome::Lost, Outcome::Transient, Outcome::Refused, Outcome::NotNow];
        // For each outcome, whether it ends the program.
        for (was_registered, require_gateway, has_terminal, ends) in [
            (false, false, false, [false, false, true, false]),
            (false, false, true, [false, true, true, false]),
            (false, true, false, [true, true, true, false]),
            (false, true, true, [true, true, true, false]),
            (true, false, false, [false; 4]),
            (true, false, true, [false; 4]),
            (true, true, false, [false; 4]),
            (true, true, true, [false; 4]),
        ] {
            let facts = Facts { was_registered, require_gateway, has_terminal, ..FACTS };
            for (outcome, ends) in outcomes.iter().zip(ends) {
                let outcome = outcome("x".to_owned());
                let case = format!("{outcome:?} {facts:?}");
                match next(now, outcome, &facts, &limits) {
                    Next::Fail(_) => assert!(ends, "{case}"),
                    Next::Wait { give_up, .. } => assert!(!ends && !give_up, "{case}"),
                    Next::Stop => panic!("{case}"),
                }
            }
            assert_eq!(next(now, Outcome::Stopped, &facts, &limits), Next::Stop);
        }
    }

    #[test]
    fn the_error_names_the_reason_and_the_flag() {
        let (now, limits) = (Instant::now(), LinkLimits::default());
        let facts = Facts { require_gateway: true, ..FACTS };
        let why = || "cannot reach the gateway".to_owned();
        let lost = FatalError::run("cannot reach the gateway; exiting because of --require-gateway");
        assert_eq!(next(now, Outcome::Lost(why()), &facts, &limits), Next::Fail(lost));
        for outcome in [Outcome::Transient(why()), Outcome::Refused(why())] {
            assert_eq!(next(now, outcome, &facts, &limits), Next::Fail(FatalError::run(why())));
        }
    }

    /// A refusal ends the wait to be resumed, and so does the end of the window.
    #[test]
    fn a_suspended_session_is_given_up_when_it_cannot_be_resumed() {
        let (now, limits) = (Instant::now(), LinkLimits::default());
        let second = Duration::from_secs(1);
        let lost = || Outcome::Lost(String::new());
        let refused = || Outcome::Refused(String::new());
        for (outcome, until, give_up) in [
            (lost(), None, false),
            (lost(), Some(now + second), false),
            (lost(), Some(now), true),
            (Outcome::Transient(String::new()), Some(now + second), false),
            (refused(), None, false),
            (refused(), Some(now + second), true),
            (Outcome::NotNow(String::new()), Some(now + second), true),
        ] {
            let facts = Facts { was_registered: true, suspended_until: until, ..FACTS };
            let case = format!("{outcome:?} {until:?}");
            let next = next(now, outcome, &facts, &limits);
            assert_eq!(next, Next::Wait { delay: limits.backoff_base, give_up }, "{case}");
        }
    }

    #[test]
    fn the_cap_of_the_delay_depends_on_the_reason() {
        let (now, limits) = (Instant::now(), LinkLimits::default());
        let suspended = Some(now + Duration::from_secs(1));
        for (outcome, suspended_until, cap) in [
            (Outcome::Lost as fn(String) -> Outcome, None, limits.backoff_cap),
            (Outcome::Lost, suspended, limits.resume_retry),
            (Outcome::NotNow, None, limits.backoff_refused),
            (Outcome::NotNow, suspended, limits.backoff_refused),
        ] {
            let facts = Facts { was_registered: true, suspended_until, ..FACTS };
            let mut redial = Redial::default();
            let delays = (0..20).map(|_| {
                redial.after(now, outcome(String::new()), &facts, Duration::ZERO, u32::MAX, &limits)
            });
            let Some(Next::Wait { delay, .. }) = delays.last() else { panic!("it goes on") };
            assert_eq!(delay, cap);
        }
    }
}
