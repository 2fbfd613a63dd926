//! Tool `system`: name, kernel, uptime, load, memory, processors, temperatures.
//!
//! Reads `/proc` and `/sys/class/{thermal,hwmon}`. Facts that a machine does not provide are
//! `null`, or missing from the list.

use serde_json::{Value, json};

use super::machine::Machine;
use super::report::Report;
use super::{
    format::{bytes, bytes_or_unknown, span},
    schema::{field, list, maybe, object},
};
use crate::util::escape::show;

/// Description of the tool.
pub const DESCRIPTION: &str = "Host name, kernel, architecture, uptime in seconds, load over 1, 5 and 15 minutes, number of \
     processors, memory and swap in bytes, and temperatures of the host that this server runs on.";

/// Returns the output schema.
pub fn schema() -> Value {
    let memory = object([
        ("total_bytes", maybe("integer", "Total memory")),
        ("available_bytes", maybe("integer", "Memory available without swapping")),
        ("swap_total_bytes", maybe("integer", "Total swap")),
        ("swap_free_bytes", maybe("integer", "Free swap")),
    ]);
    let temperature = object([
        ("sensor", field("string", "Sensor name")),
        ("celsius", field("number", "Temperature in degrees Celsius")),
    ]);
    object([
        ("host", maybe("string", "Host name")),
        ("kernel", maybe("string", "Release of the Linux kernel")),
        ("architecture", field("string", "Architecture as reported by uname")),
        ("uptime_seconds", maybe("number", "Time since boot")),
        ("load_1", maybe("number", "Load average over 1 minute")),
        ("load_5", maybe("number", "Load average over 5 minutes")),
        ("load_15", maybe("number", "Load average over 15 minutes")),
        ("cpus", maybe("integer", "Online processors")),
        ("memory", memory),
        ("temperatures", list(temperature, "Empty if the host has no sensor")),
    ])
}

/// Reads the facts.
pub fn report(machine: &Machine) -> Report {
    let system = System::read(machine);
    Report { lines: system.lines(), data: system.data() }
}

/// The facts that were found.
struct System {
    host: Option<String>,
    kernel: Option<String>,
    architecture: String,
    /// In seconds.
    uptime: Option<f64>,
    load: Option<[f64; 3]>,
    cpus: Option<u64>,
    memory: MemoryReport,
    temperatures: Vec<Temperature>,
}

impl System {
    fn read(machine: &Machine) -> Self {
        Self {
            host: machine.line("proc/sys/kernel/hostname"),
            kernel: machine.line("proc/sys/kernel/osrelease"),
            architecture: machine.kernel().architecture(),
            uptime: machine.line("proc/uptime").and_then(|text| parse_uptime(&text)),
            load: machine.line("proc/loadavg").and_then(|text| parse_load(&text)),
            cpus: cpus(machine),
            memory: parse_memory(&machine.text("proc/meminfo").unwrap_or_default()),
            temperatures: temperatures(machine),
        }
    }

    fn lines(&self) -> Vec<String> {
        let unknown = || "unknown".to_owned();
        let name =
            |text: &Option<String>| text.as_deref().map_or_else(unknown, |text| show(text).to_string());
        let load = self.load.map_or_else(unknown, |[one, five, fifteen]| {
            format!("{one:.2} over 1 minute, {five:.2} over 5, {fifteen:.2} over 15")
        });
        let mut lines = vec![
            format!("host: {}, Linux {}, {}", name(&self.host), name(&self.kernel), show(&self.architecture)),
            format!("uptime: {}", self.uptime.map_or_else(unknown, span)),
            format!("load: {load}"),
            format!("processors: {}", self.cpus.map_or_else(unknown, |count| count.to_string())),
            self.memory.line(),
            self.memory.swap_line(),
        ];
        lines.extend(self.temperatures.iter().map(|Temperature { sensor, celsius }| {
            format!("temperature of {}: {celsius:.1} °C", show(sensor))
        }));
        lines
    }

    fn data(self) -> Value {
        let [load_1, load_5, load_15] = self.load.map_or([None; 3], |load| load.map(Some));
        let temperature = |Temperature { sensor, celsius }| json!({ "sensor": sensor, "celsius": celsius });
        let temperatures: Vec<Value> = self.temperatures.into_iter().map(temperature).collect();
        json!({
            "host": self.host, "kernel": self.kernel, "architecture": self.architecture,
            "uptime_seconds": self.uptime, "load_1": load_1, "load_5": load_5, "load_15": load_15,
            "cpus": self.cpus,
            "memory": {
                "total_bytes": self.memory.total, "available_bytes": self.memory.available,
                "swap_total_bytes": self.memory.swap_total, "swap_free_bytes": self.memory.swap_free,
            },
            "temperatures": temperatures,
        })
    }
}

/// Returns the number of online processors; without `/sys`, the number in `/proc/stat`.
fn cpus(machine: &Machine) -> Option<u64> {
    let online = machine.line("sys/devices/system/cpu/online").and_then(|text| parse_cpu_list(&text));
    online.or_else(|| parse_cpu_lines(&machine.text("proc/stat")?))
}

/// One temperature reading.
struct Temperature {
    sensor: String,
    celsius: f64,
}

/// Reads all sensors. The kernel shows a thermal zone a second time under hwmon; that copy is
/// omitted.
fn temperatures(machine: &Machine) -> Vec<Temperature> {
    let mut found = Vec::new();
    let mut zones = Vec::new();
    for zone in machine.names("sys/class/thermal") {
        if !zone.starts_with("thermal_zone") {
            continue;
        }
        let sensor = machine.line(&format!("sys/class/thermal/{zone}/type")).unwrap_or_else(|| zone.clone());
        zones.push(sensor.replace('-', "_"));
        if let Some(celsius) = celsius(machine, &format!("sys/class/thermal/{zone}/temp")) {
            found.push(Temperature { sensor, celsius });
        }
    }
    for chip in machine.names("sys/class/hwmon") {
        let folder = format!("sys/class/hwmon/{chip}");
        let name = machine.line(&format!("{folder}/name")).unwrap_or_else(|| chip.clone());
        if zones.contains(&name.replace('-', "_")) {
            continue;
        }
        for input in machine.names(&folder) {
            let Some(number) = input.strip_prefix("temp").and_then(|rest| rest.strip_suffix("_input")) else {
                continue;
            };
            let label = machine.line(&format!("{folder}/temp{number}_label"));
            let sensor = format!("{name} {}", label.as_deref().unwrap_or(number));
            if let Some(celsius) = celsius(machine, &format!("{folder}/{input}")) {
                found.push(Temperature { sensor, celsius });
            }
        }
    }
    found.truncate(machine.limits().entries);
    found
}

fn celsius(machine: &Machine, path: &str) -> Option<f64> {
    machine.line(path).and_then(|text| parse_millidegrees(&text))
}

/// Sizes in bytes.
#[derive(Debug, Default, Eq, PartialEq)]
struct MemoryReport {
    total: Option<u64>,
    available: Option<u64>,
    swap_total: Option<u64>,
    swap_free: Option<u64>,
}

impl MemoryReport {
    fn line(&self) -> String {
        format!("memory: {}, available {}", bytes_or_unknown(self.total), bytes_or_unknown(self.available))
    }

    fn swap_line(&self) -> String {
        match self.swap_total {
            Some(0) => "swap: none".to_owned(),
            Some(total) => format!("swap: {}, free {}", bytes(total), bytes_or_unknown(self.swap_free)),
            None => "swap: unknown".to_owned(),
        }
    }
}

/// Parses `/proc/meminfo`. Kernels before 3.14 do not report available memory; then it is the sum
/// of free memory and caches.
fn parse_memory(text: &str) -> MemoryReport {
    let find = |wanted: &str| {
        let mut values = text.lines().filter_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'));
        let kib: u64 = values.next()?.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
        Some(kib.saturating_mul(1024))
    };
    let old_estimate = || {
        let parts = [find("MemFree")?, find("Buffers")?, find("Cached")?];
        Some(parts.into_iter().fold(0, u64::saturating_add))
    };
    MemoryReport {
        total: find("MemTotal"),
        available: find("MemAvailable").or_else(old_estimate),
        swap_total: find("SwapTotal"),
        swap_free: find("SwapFree"),
    }
}

/// Parses `/proc/uptime`: seconds, then idle time.
fn parse_uptime(text: &str) -> Option<f64> {
    amount(text.split_ascii_whitespace().next()?)
}

/// Parses `/proc/loadavg`: three averages, then counts.
fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut words = text.split_ascii_whitespace().map(amount);
    Some([words.next()??, words.next()??, words.next()??])
}

/// Parses a finite number that is not negative.
fn amount(word: &str) -> Option<f64> {
    word.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)
}

/// Parses `/sys/devices/system/cpu/online`: ranges such as `0-3,5`.
fn parse_cpu_list(text: &str) -> Option<u64> {
    let mut count: u64 = 0;
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Counts the `cpuN` lines in `/proc/stat`, one for each processor.
fn parse_cpu_lines(text: &str) -> Option<u64> {
    let numbered = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let count = text.lines().filter(numbered).count();
    (count > 0).then_some(count as u64)
}

/// Parses a sensor's `temp` file. Rejects impossible values; a sensor without a value reports one
/// below absolute zero.
fn parse_millidegrees(text: &str) -> Option<f64> {
    let millidegrees: i64 = text.parse().ok()?;
    (-273_150..=1_000_000).contains(&millidegrees).then(|| millidegrees as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime() {
        let cases = [
            ("350735.47 234388.90", Some(350_735.47)),
            ("0.00 0.00", Some(0.0)),
            ("", None),
            ("x y", None),
            ("inf 1", None),
            ("nan 1", None),
            ("-5 1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_uptime(text), expected, "{text:?}");
        }
    }

    #[test]
    fn load() {
        let cases = [
            ("0.20 0.18 0.12 1/80 11206", Some([0.20, 0.18, 0.12])),
            ("4096.00 1 2", Some([4096.0, 1.0, 2.0])),
            ("0.20 0.18", None),
            ("0.20 inf 0.1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_load(text), expected, "{text:?}");
        }
    }

    #[test]
    fn memory() {
        let new = "MemTotal:        1000 kB\nMemFree:          10 kB\nMemAvailable:    500 kB\nBuffers: 1 kB\nCached: 2 kB\nSwapCached: 9 kB\nSwapTotal:         0 kB\nSwapFree:          0 kB\n";
        let old =
            "MemTotal: 1000 kB\nMemFree: 10 kB\nBuffers: 1 kB\nCached: 2 kB\nSwapTotal: 4 kB\nSwapFree: 3 kB";
        let odd = "MemTotal: 99999999999999999999999 kB\nMemAvailable: 18446744073709551615 kB\nSwapTotal: 5 pages\nSwapFree: -1 kB";
        let kib = |count: u64| Some(count * 1024);
        let cases = [
            (new, kib(1000), kib(500), kib(0), kib(0)),
            (old, kib(1000), kib(13), kib(4), kib(3)),
            (odd, None, Some(u64::MAX), None, None),
            ("", None, None, None, None),
        ];
        for (text, total, available, swap_total, swap_free) in cases {
            assert_eq!(
                parse_memory(text),
                MemoryReport { total, available, swap_total, swap_free },
                "{text:?}"
            );
        }
    }

    #[test]
    fn processors() {
        let cases = [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-3,5, 7-8", Some(7)),
            ("3-0", None),
            ("0-18446744073709551615", None),
            ("", None),
            ("a-b", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_cpu_list(text), expected, "{text:?}");
        }
        assert_eq!(parse_cpu_lines("cpu  1 2\ncpu0 1\ncpu1 1\ncpufreq 2\nintr 5\n"), Some(2));
        assert_eq!(parse_cpu_lines("cpu 1 2\n"), None);
    }

    #[test]
    fn temperatures_in_range() {
        let cases = [
            ("48312", Some(48.312)),
            ("-5000", Some(-5.0)),
            ("-274000", None),
            ("2147483647", None),
            ("N/A", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_millidegrees(text), expected, "{text:?}");
        }
    }
}
