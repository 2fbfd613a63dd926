//! The log lines of the edge that the gateway or the server can cause at will: their rate is
//! limited.
//!
//! One for the program, shared by `edge::state`, `edge::instances` and `edge::uplink`.

use std::{fmt::Display, time::Instant};

use crate::{limits::LogLimit, log_throttle::LogThrottle, runtime::lock::Lock};

/// Writes log lines at a limited rate per kind. Its lock is taken for one line, and no other lock
/// while it is held.
#[derive(Debug, Default)]
pub struct ThrottledLog(Lock<LogThrottle>);

impl ThrottledLog {
    /// Writes a line, with the number of lines of this kind that were left out before it, or leaves
    /// it out. Lines of one kind never suppress those of another.
    pub fn line(&self, level: log::Level, kind: &'static str, limit: LogLimit, line: impl Display) {
        let due = self.0.lock().due(Instant::now(), kind, "", limit);
        if let Some(left_out) = due {
            log::log!(level, "{line}{left_out}");
        }
    }
}
