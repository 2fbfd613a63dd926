//! Logs a child's stderr line by line, clipped, escaped, and at a bounded rate. The pipe is always
//! read, so that a child that writes much never blocks on it.

use std::{fmt, time::Instant};

use futures_lite::{AsyncRead, AsyncReadExt, future};

use crate::{
    limits::{self, ChildLimits},
    log_throttle::LineBudget,
    util,
};

/// Logs stderr until the child closes it, each line after the server's `name`. Run it as a task of
/// its own. Dropping it closes the pipe, and a child that writes then gets SIGPIPE.
pub async fn log_stderr(mut stderr: impl AsyncRead + Unpin, name: &str, limits: &ChildLimits) {
    let mut clip = Clip::new(limits.stderr_line);
    let mut budget = LineBudget::new(limits.stderr_lines, limits::LOG_EVERY);
    let mut scratch = vec![0; limits::LINE_READ];
    while let Ok(count @ 1..) = stderr.read(&mut scratch).await {
        let now = Instant::now();
        let mut rest = scratch.get(..count).unwrap_or_default();
        while clip.line(&mut rest) {
            log_line(&mut budget, now, name, &mut clip);
        }
        // Without this, a child that writes without pause would keep this thread from other tasks.
        future::yield_now().await;
    }
    log_line(&mut budget, Instant::now(), name, &mut clip);
    log_dropped(name, budget.dropped());
}

/// Logs the line in `clip`, if it is not blank and the budget allows it, and clears it.
fn log_line(budget: &mut LineBudget, now: Instant, name: &str, clip: &mut Clip) {
    if !clip.is_blank() && budget.spend(now, |dropped| log_dropped(name, dropped)) {
        log::info!(target: "child", "{name}: {clip}");
    }
    clip.clear();
}

fn log_dropped(name: &str, dropped: u64) {
    if dropped > 0 {
        log::warn!(target: "child", "{name}: {dropped} more lines on stderr were not logged");
    }
}

/// Collects one line, up to `longest` bytes, and counts the bytes cut off.
struct Clip {
    line: Vec<u8>,
    longest: usize,
    cut: usize,
}

impl Clip {
    fn new(longest: usize) -> Self {
        Self { line: Vec::new(), longest, cut: 0 }
    }

    /// Takes bytes off the front of `input`, up to and including a line end. Returns whether the
    /// line is complete.
    fn line(&mut self, input: &mut &[u8]) -> bool {
        let end = input.iter().position(|byte| *byte == b'\n');
        let (part, rest) = input.split_at(end.unwrap_or(input.len()));
        let room = self.longest.saturating_sub(self.line.len()).min(part.len());
        self.line.extend(part.iter().take(room));
        self.cut += part.len() - room;
        *input = rest.get(1..).unwrap_or_default();
        end.is_some()
    }

    fn is_blank(&self) -> bool {
        self.line.trim_ascii().is_empty()
    }

    fn clear(&mut self) {
        self.line.clear();
        self.cut = 0;
    }
}

impl fmt::Display for Clip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = String::from_utf8_lossy(self.line.trim_ascii_end());
        write!(f, "{}", util::escape::show_up_to(&shown, shown.len()))?;
        if self.cut > 0 { write!(f, "… ({} bytes more)", self.cut) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::Clip;

    #[test]
    fn lines_are_clipped_and_escaped() {
        let mut clip = Clip::new(8);
        let mut shown = Vec::new();
        for piece in ["one\ntw", "o\r\n\n  \n", "\u{1b}[31mr\n", "12345678", "9ab\nend"] {
            let mut rest = piece.as_bytes();
            while clip.line(&mut rest) {
                if !clip.is_blank() {
                    shown.push(clip.to_string());
                }
                clip.clear();
            }
        }
        assert_eq!(shown, ["one", "two", "\\u{1b}[31mr", "12345678… (3 bytes more)"]);
        assert_eq!(clip.to_string(), "end");
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        let mut clip = Clip::new(4);
        assert!(clip.line(&mut &b"\xff\xc3\xa9\xf0\x9f\n"[..]));
        assert_eq!(clip.to_string(), "\u{fffd}é\u{fffd}… (1 bytes more)");
    }
}
