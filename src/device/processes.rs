//! Tool `processes`: the processes that use the most memory or processor time now.
//!
//! Processor use is measured: every process is read twice, half a second apart. Command lines are
//! not shown, because they may contain secrets.

use std::cmp::Reverse;
use std::time::Duration;

use serde_json::{Value, json};

use super::machine::Machine;
use super::report::{Arguments, Report, ToolError};
use super::{
    format::{bytes, span},
    schema::{field, list, object},
};
use crate::limits::DeviceLimits;
use crate::util::escape::show;

/// Description of the tool.
pub const DESCRIPTION: &str = "The processes that use the most memory or processor time. Processor use is measured over half a \
     second, in percent of one processor (a process with several threads can exceed 100). Only command \
     names are shown, never arguments.";

/// Returns the input schema.
pub fn arguments(limits: &DeviceLimits) -> Value {
    json!({
        "type": "object",
        "properties": {
            "by": {
                "type": "string", "enum": ["memory", "cpu"], "default": "memory",
                "description": "Sort key, largest first",
            },
            "count": {
                "type": "integer", "minimum": 1, "maximum": limits.top, "default": limits.top_default,
                "description": "Number of processes to show",
            },
        },
        "additionalProperties": false,
    })
}

/// Returns the output schema.
pub fn schema() -> Value {
    let process = object([
        ("pid", field("integer", "Process id")),
        ("name", field("string", "Command name")),
        (
            "state",
            field("string", "R running, S sleeping, D uninterruptible sleep, Z zombie, T stopped, I idle"),
        ),
        ("uid", field("integer", "Effective user id")),
        ("rss_bytes", field("integer", "Resident memory in bytes; 0 for kernel threads")),
        ("cpu_percent", field("number", "Processor use during the measurement, in percent of one processor")),
        ("cpu_seconds", field("number", "Total processor time")),
    ]);
    object([
        ("by", field("string", "Sort key of the list")),
        ("total", field("integer", "Number of processes examined")),
        ("processes", list(process, "Largest first")),
    ])
}

/// Measures and sorts the processes.
///
/// # Errors
/// If the arguments are invalid.
pub fn report(machine: &Machine, arguments: &Arguments<'_>) -> Result<Report, ToolError> {
    let limits = machine.limits();
    arguments.only(&["by", "count"])?;
    let by = arguments.choice("by", &["memory", "cpu"])?.unwrap_or("memory");
    let count = arguments.whole("count", 1..=limits.top)?.unwrap_or(limits.top_default);
    let mut found = measure(machine);
    let total = found.len();
    if by == "cpu" {
        found.sort_by(|one, other| {
            other
                .percent
                .total_cmp(&one.percent)
                .then(other.ticks.cmp(&one.ticks))
                .then(one.pid.cmp(&other.pid))
        });
    } else {
        found.sort_by_key(|process| (Reverse(process.rss), process.pid));
    }
    found.truncate(usize::try_from(count).unwrap_or(usize::MAX));

    let mut lines = vec![format!("{} of {total} processes, by {by}", found.len())];
    lines.extend(found.iter().map(|process| process.line(limits)));
    let data: Vec<Value> = found.into_iter().map(|process| process.data(limits)).collect();
    Ok(Report { lines, data: json!({ "by": by, "total": total, "processes": data }) })
}

/// Reads every process twice. Processes that exit in between are omitted.
fn measure(machine: &Machine) -> Vec<Process> {
    let stat = |pid: u32| parse_stat(&machine.text(&format!("proc/{pid}/stat"))?);
    let mut before: Vec<(u32, u64, u64)> = machine
        .processes()
        .into_iter()
        .filter_map(|pid| stat(pid).map(|found| (pid, found.started, found.ticks)))
        .collect();
    before.sort_unstable();
    let window = machine.kernel().pause(machine.limits().cpu_window);

    let look = |pid: u32| {
        let Stat { name, state, ticks, started } = stat(pid)?;
        // If the process is new or its id was reused, all its processor time is within the window.
        let earlier =
            match before.binary_search_by_key(&pid, |(pid, _, _)| *pid).ok().and_then(|at| before.get(at)) {
                Some((_, then, ticks)) if *then == started => *ticks,
                _ => 0,
            };
        let percent = percent(ticks.saturating_sub(earlier), window, machine.limits().cpu_ticks);
        let (uid, rss) = parse_status(&machine.text(&format!("proc/{pid}/status"))?)?;
        Some(Process { pid, uid, name, state, rss, ticks, percent })
    };
    machine.processes().into_iter().filter_map(look).collect()
}

/// One process.
struct Process {
    pid: u32,
    uid: u32,
    name: String,
    state: char,
    /// Resident memory in bytes.
    rss: u64,
    /// Processor time since its start, in clock ticks.
    ticks: u64,
    /// Processor use during the measurement, in percent of one processor.
    percent: f64,
}

impl Process {
    fn seconds(&self, limits: &DeviceLimits) -> f64 {
        self.ticks as f64 / f64::from(limits.cpu_ticks)
    }

    fn line(&self, limits: &DeviceLimits) -> String {
        let Self { pid, uid, name, state, rss, percent, .. } = self;
        let seconds = span(self.seconds(limits));
        format!(
            "{pid} {} (user {uid}, state {state}): {}, {percent:.1} % CPU, {seconds} CPU time",
            show(name),
            bytes(*rss)
        )
    }

    fn data(self, limits: &DeviceLimits) -> Value {
        let seconds = self.seconds(limits);
        json!({
            "pid": self.pid, "name": self.name, "state": self.state.to_string(), "uid": self.uid,
            "rss_bytes": self.rss, "cpu_percent": self.percent, "cpu_seconds": seconds,
        })
    }
}

/// Converts ticks in a window to percent of one processor, with one decimal.
fn percent(ticks: u64, window: Duration, per_second: u32) -> f64 {
    let whole = window.as_secs_f64() * f64::from(per_second);
    if whole > 0.0 { (ticks as f64 * 1000.0 / whole).round() / 10.0 } else { 0.0 }
}

/// The used fields of `/proc/<pid>/stat`. Times in clock ticks.
#[derive(Debug, Eq, PartialEq)]
struct Stat {
    name: String,
    state: char,
    ticks: u64,
    /// Start time since boot; with the process id it identifies one process.
    started: u64,
}

/// Parses `/proc/<pid>/stat` (proc_pid_stat(5)). The name is in parentheses and may contain any
/// character, even `)` and line feeds, so the last `)` ends it.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The manual counts fields from 1, and the state is field 3.
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let mut fields = fields.map(|word| word.parse::<u64>().ok());
    let user = fields.nth(14 - 4)??;
    let system = fields.next()??;
    let started = fields.nth(22 - 16)??;
    Some(Stat { name: name.to_owned(), state, ticks: user.saturating_add(system), started })
}

/// Parses `/proc/<pid>/status`: the effective user, and the resident memory in bytes (0 for kernel
/// threads).
fn parse_status(text: &str) -> Option<(u32, u64)> {
    let find = |wanted: &str| text.lines().find_map(|line| line.strip_prefix(wanted));
    let uid = find("Uid:")?.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let rss = find("VmRSS:").and_then(|rest| rest.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok());
    Some((uid, rss.unwrap_or(0).saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat() {
        let tail = "S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0 4711 1000 200 18446744073709551615 1 1";
        let expected =
            |name: &str| Some(Stat { name: name.to_owned(), state: 'S', ticks: 200, started: 4711 });
        for name in ["init", "a b", "a) S 1 (b", "((", "))", "", "x\ny\n"] {
            assert_eq!(parse_stat(&format!("7 ({name}) {tail}\n")), expected(name), "{name:?}");
        }
        for bad in
            ["", "7", "7 (x", "7 (x)", "7 (x) S 1 2 3", "7 x S 1 7 7 0 -1 4 1 2 3 4 150 50 9 9 20 0 1 0 4711"]
        {
            assert_eq!(parse_stat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn status() {
        let cases = [
            ("Name:\tx\nUid:\t1000\t1001\t1002\t1003\nVmRSS:\t    2048 kB\n", Some((1001, 2_097_152))),
            ("Name:\tkthreadd\nUid:\t0\t0\t0\t0\n", Some((0, 0))),
            ("Uid: 0 0 0 0\nVmRSS: 18446744073709551615 kB", Some((0, u64::MAX))),
            ("Uid: 0 4294967295 0 0\nVmRSS: -1 kB", Some((u32::MAX, 0))),
            ("Name: x\nVmRSS: 5 kB", None),
            ("Uid: 0", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_status(text), expected, "{text:?}");
        }
    }

    #[test]
    fn processor_use() {
        let half = Duration::from_millis(500);
        let cases =
            [(0, half, 0.0), (50, half, 100.0), (1, half, 2.0), (200, half, 400.0), (7, Duration::ZERO, 0.0)];
        for (ticks, window, expected) in cases {
            assert_eq!(percent(ticks, window, 100), expected, "{ticks} {window:?}");
        }
    }
}
