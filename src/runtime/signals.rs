//! Requests to stop: SIGTERM, SIGINT and SIGHUP as a future. The first means "finish what runs", the second "now".
//!
//! SIGHUP has two meanings by tradition: the terminal was closed, and "read your files again". A program that has files
//! to read says so ([`StopSignals::on_hangup`]); then the second holds wherever no terminal is attached.
//!
//! SIGPIPE needs nothing here: Rust's start-up code ignores it, so that a write to a closed socket or pipe is an ordinary
//! error, and restores it in children. The integration tests check both.

use std::{
    fmt, fs,
    future::pending,
    io::{self, IsTerminal},
};

use async_signal::{Signal, Signals};
use futures_lite::StreamExt;

/// Listens for requests to stop for as long as it lives. Make one, early: signals before that have their default effect.
pub struct StopSignals {
    signals: Signals,
    /// What SIGHUP does instead.
    hangup: Option<Box<dyn Fn() + Send>>,
}

impl fmt::Debug for StopSignals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop").field("signals", &self.signals).finish_non_exhaustive()
    }
}

impl StopSignals {
    /// Starts to listen.
    ///
    /// A terminal that closes sends SIGHUP; that is a request to stop too, unless the user said otherwise by `nohup`, which
    /// shows as SIGHUP being ignored when we start.
    ///
    /// # Errors
    /// The system's, when no descriptor is left for the signal pipe.
    pub fn new() -> io::Result<Self> {
        let mut signals = Signals::new([Signal::Term, Signal::Int])?;
        if !is_ignored(Signal::Hup) {
            signals.add_signals([Signal::Hup])?;
        }
        Ok(Self { signals, hangup: None })
    }

    /// Makes SIGHUP do this instead, unless a terminal is attached (stdin or stderr is one): then it still means that the
    /// terminal was closed. Under `nohup` too, where there was nothing else for it to do.
    ///
    /// # Errors
    /// The system's, when the signal cannot be listened to.
    pub fn on_hangup(&mut self, act: impl Fn() + Send + 'static) -> io::Result<()> {
        if !has_terminal() {
            self.signals.add_signals([Signal::Hup])?;
            self.hangup = Some(Box::new(act));
        }
        Ok(())
    }

    /// Waits for the next request and names it. Dropping the future loses no request.
    pub async fn requested(&mut self) -> &'static str {
        loop {
            match self.signals.next().await {
                Some(Ok(Signal::Term)) => return "SIGTERM",
                Some(Ok(Signal::Int)) => return "SIGINT",
                Some(Ok(Signal::Hup)) => match &self.hangup {
                    Some(act) => act(),
                    None => return "SIGHUP",
                },
                Some(Ok(_)) => {}
                // The pipe is gone: without it no request can come, and polling it again would spin.
                Some(Err(_)) | None => pending().await,
            }
        }
    }
}

/// Whether a person may be watching: stdin or stderr is a terminal. A unit or a container has none.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() || io::stderr().is_terminal()
}

/// Whether this process ignores a signal, which it may have inherited. Where that cannot be known, it does not.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, signal as u32)
}

/// Looks a signal up in the `SigIgn` mask of a process's status: bit 0 is signal 1.
fn is_in_mask(status: &str, number: u32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    number.checked_sub(1).and_then(|bit| mask.checked_shr(bit)).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::is_in_mask;

    #[test]
    fn masks() {
        let status = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000440\n";
        for (number, expected) in [(1, true), (13, true), (2, false), (15, false), (0, false), (65, false)] {
            assert_eq!(is_in_mask(status, number), expected, "{number}");
        }
        assert!(!is_in_mask("", 1));
        assert!(!is_in_mask("SigIgn:\tzz\n", 1));
    }
}
