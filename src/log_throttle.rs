//! Rate limits for log lines that peers can cause at will, per kind and source, with a count of the
//! lines that were suppressed.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::{Duration, Instant},
};

use crate::limits::{self, LogLimit};

/// How many log lines were suppressed before the one that is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LeftOut {
    /// Lines of the same kind about the same source.
    pub same: u64,
    /// Lines of the same kind about sources that have no line of their own.
    pub others: u64,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self { same: 0, others: 0 } => Ok(()),
            Self { same, others: 0 } => write!(f, " ({same} more were not logged)"),
            Self { same, others } => write!(f, " ({same} more were not logged, and {others} of others)"),
        }
    }
}

/// Limits log lines that peers can cause at will. In each window of [`limits::LOG_EVERY`] it allows
/// a number of lines of one kind about one source (a link, an address), and a number of lines of
/// one kind in total ([`LogLimit`]). Lines of one kind never suppress those of another.
#[derive(Debug, Default)]
pub struct LogThrottle {
    kinds: BTreeMap<&'static str, KindWindows>,
}

#[derive(Debug, Default)]
struct KindWindows {
    all: Window,
    sources: HashMap<Box<str>, Window>,
}

/// Lines since the start of a window, and lines suppressed since the last one that was written.
#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= limits::LOG_EVERY)
    }

    fn has_room(&self, now: Instant, max: u32) -> bool {
        self.is_over(now) || self.lines < max
    }

    fn add(&mut self, now: Instant) {
        if self.is_over(now) {
            (self.since, self.lines) = (Some(now), 0);
        }
        self.lines += 1;
    }
}

impl LogThrottle {
    /// Decides whether to write one more line of a kind about a source. Returns how many were
    /// suppressed before it, or `None` if this line is suppressed too.
    pub fn due(
        &mut self,
        now: Instant,
        kind: &'static str,
        source: &str,
        limit: LogLimit,
    ) -> Option<LeftOut> {
        let KindWindows { all, sources } = self.kinds.entry(kind).or_default();
        let room = all.has_room(now, limit.all);
        if let Some(window) = sources.get_mut(source) {
            if !room || !window.has_room(now, limit.source) {
                window.left_out += 1;
                return None;
            }
        } else if !room {
            all.left_out += 1;
            return None;
        } else if sources.len() >= limits::LOG_SOURCES {
            // The sources that stay had a line in this window, so they are few.
            let over = sources.extract_if(|_, window| window.is_over(now));
            all.left_out += over.map(|(_, window)| window.left_out).sum::<u64>();
        }
        all.add(now);
        let window = sources.entry(source.into()).or_default();
        window.add(now);
        Some(LeftOut {
            same: std::mem::take(&mut window.left_out),
            others: std::mem::take(&mut all.left_out),
        })
    }
}

/// A rate limit: a number of lines in each window of time.
#[derive(Debug)]
pub struct LineBudget {
    lines: u32,
    window: Duration,
    since: Option<Instant>,
    used: u32,
    dropped: u64,
}

impl LineBudget {
    /// Allows `lines` in each `window`.
    pub fn new(lines: u32, window: Duration) -> Self {
        Self { lines, window, since: None, used: 0, dropped: 0 }
    }

    /// Returns whether one more line may pass. When a new window begins, calls `report` with the
    /// number of lines that the old one dropped.
    pub fn spend(&mut self, now: Instant, report: impl FnOnce(u64)) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= self.window) {
            report(self.dropped());
            (self.since, self.used) = (Some(now), 0);
        }
        let passes = self.used < self.lines;
        if passes {
            self.used += 1;
        } else {
            self.dropped += 1;
        }
        passes
    }

    /// Returns the number of lines dropped since the last call.
    pub fn dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::LOG_WARNINGS;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn each_source_gets_its_burst_per_window() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        let mut same = |burst| {
            [0, 10, 999, 1000, 1001, 2500].map(|millis| {
                let (kind, limit) =
                    if burst == 1 { ("a", LOG_WARNINGS) } else { ("b", LogLimit { source: 2, all: 9 }) };
                let due = throttle.due(at(start, millis), kind, "x", limit);
                due.map(|left_out| left_out.same)
            })
        };
        assert_eq!(same(1), [Some(0), None, None, Some(2), None, Some(1)]);
        assert_eq!(same(2), [Some(0), Some(0), None, Some(1), Some(0), Some(0)]);
    }

    #[test]
    fn kinds_and_sources_are_throttled_separately() {
        let (mut throttle, now) = (LogThrottle::default(), Instant::now());
        let first = Some(LeftOut::default());
        assert_eq!(throttle.due(now, "dropped", "x", LOG_WARNINGS), first);
        for _ in 0..80 {
            assert_eq!(throttle.due(now, "dropped", "x", LOG_WARNINGS), None);
        }
        assert_eq!(throttle.due(now, "refused", "x", LOG_WARNINGS), first);
        assert_eq!(throttle.due(now, "dropped", "y", LOG_WARNINGS), first);
        assert_eq!(
            throttle.due(at(now, 1000), "refused", "x", LOG_WARNINGS),
            first,
            "it counts its own kind only"
        );
    }

    #[test]
    fn many_sources_are_bounded_in_lines_and_memory() {
        let (mut throttle, start) = (LogThrottle::default(), Instant::now());
        let flood = u64::from(LOG_WARNINGS.all) + 50;
        for second in 0..20 {
            let now = at(start, second * 1000);
            let said: Vec<LeftOut> = (0..flood)
                .filter_map(|number| throttle.due(now, "k", &format!("{second}-{number}"), LOG_WARNINGS))
                .collect();
            assert_eq!(said.len(), LOG_WARNINGS.all as usize);
            assert_eq!(said[0].others, if second == 0 { 0 } else { 50 });
            let bound = limits::LOG_SOURCES + LOG_WARNINGS.all as usize;
            assert!(throttle.kinds["k"].sources.len() <= bound);
        }
    }

    #[test]
    fn suppressed_log_lines_are_counted() {
        let told = [(0, 0), (3, 0), (0, 4)].map(|(same, others)| LeftOut { same, others }.to_string());
        assert_eq!(told, ["", " (3 more were not logged)", " (0 more were not logged, and 4 of others)"]);
    }

    #[test]
    fn a_line_budget_limits_each_window() {
        let start = Instant::now();
        let mut budget = LineBudget::new(2, Duration::from_secs(1));
        let mut reports = Vec::new();
        let passed: Vec<bool> = [0, 1, 2, 999, 1000, 1001, 1002, 5000]
            .map(|millis| {
                budget.spend(start + Duration::from_millis(millis), |dropped| reports.push(dropped))
            })
            .into();
        assert_eq!(passed, [true, true, false, false, true, true, false, true]);
        assert_eq!(reports, [0, 2, 1]);
        assert_eq!(budget.dropped(), 0);
    }
}
