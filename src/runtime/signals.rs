//! Stop requests: SIGTERM, SIGINT and SIGHUP as a future. The first request means "finish what
//! runs", the second "stop now".
//!
//! SIGHUP has two traditional meanings: the terminal was closed, and "reload your files". A program
//! with files to reload calls [`StopSignals::on_hangup`]; SIGHUP then means reload wherever no
//! terminal is attached.
//!
//! SIGPIPE needs no code here: Rust's start-up code ignores it, so that a write to a closed socket
//! or pipe is an ordinary error, and restores it in children. The integration tests check both.

use std::{
    fmt, fs,
    future::pending,
    io::{self, IsTerminal},
};

use async_signal::{Signal, Signals};
use futures_lite::StreamExt;

/// Listens for stop requests until dropped. Create it early: signals that arrive before have their
/// default effect.
pub struct StopSignals {
    /// The stream of signals that arrived.
    signals: Signals,
    /// Action for SIGHUP, in place of a stop request.
    hangup: Option<Box<dyn Fn() + Send>>,
}

impl fmt::Debug for StopSignals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopSignals").field("signals", &self.signals).finish_non_exhaustive()
    }
}

impl StopSignals {
    /// Starts listening.
    ///
    /// A terminal that closes sends SIGHUP, which is a stop request too, unless the user started
    /// the program with `nohup`: then SIGHUP is ignored at start.
    ///
    /// # Errors
    /// The system's error, if no descriptor is left for the signal pipe.
    pub fn new() -> io::Result<Self> {
        let mut signals = Signals::new([Signal::Term, Signal::Int])?;
        if !is_ignored(Signal::Hup) {
            signals.add_signals([Signal::Hup])?;
        }
        Ok(Self { signals, hangup: None })
    }

    /// Runs `act` on SIGHUP instead of stopping. Has no effect if a terminal is attached (stdin or
    /// stderr is one): SIGHUP then still means that the terminal was closed. It applies under
    /// `nohup` too, where SIGHUP was ignored so far.
    ///
    /// # Errors
    /// The system's error, if the signal handler cannot be installed.
    pub fn on_hangup(&mut self, act: impl Fn() + Send + 'static) -> io::Result<()> {
        if !has_terminal() {
            self.signals.add_signals([Signal::Hup])?;
            self.hangup = Some(Box::new(act));
        }
        Ok(())
    }

    /// Waits for the next stop request and returns the signal's name. Dropping the future loses no
    /// request.
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
                // The signal pipe is gone: no request can arrive, and polling again would spin.
                Some(Err(_)) | None => pending().await,
            }
        }
    }
}

/// Whether a terminal is attached (stdin or stderr is one), so that a person may be watching. A
/// systemd unit or a container has none.
pub fn has_terminal() -> bool {
    io::stdin().is_terminal() || io::stderr().is_terminal()
}

/// Returns whether this process ignores a signal, which it may have inherited. Returns false if
/// `/proc` cannot be read.
pub(crate) fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, signal as u32)
}

/// Looks up a signal in the `SigIgn` mask of a `/proc/PID/status` text: bit 0 is signal 1.
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
