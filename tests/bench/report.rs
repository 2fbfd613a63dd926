//! The table, the JSON document, and the comparison with the goals.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::{
    load::Shape,
    stage::{self, Kind, Stage, Subject},
    stats::{Round, Rounds, tidy},
};

/// One path with one shape.
pub struct Cell {
    pub subject: usize,
    pub shape: Shape,
    pub rounds: Rounds,
}

/// All measurements.
#[derive(Default)]
pub struct Report {
    pub cells: Vec<Cell>,
    pub memory: Map<String, Value>,
    pub soak: Map<String, Value>,
    pub times: Map<String, Value>,
    pub syscalls: Map<String, Value>,
}

/// A goal: the measured value and its bound.
struct Goal {
    name: String,
    found: f64,
    bound: f64,
    at_least: bool,
}

impl Goal {
    fn is_met(&self) -> bool {
        if self.at_least { self.found >= self.bound } else { self.found <= self.bound }
    }
}

impl Report {
    fn rounds(&self, stage: &Stage, subject: &str, shape: &str) -> Option<&Rounds> {
        let found = self
            .cells
            .iter()
            .find(|cell| stage.subjects[cell.subject].name == subject && cell.shape.name() == shape);
        found.map(|cell| &cell.rounds)
    }

    fn median(&self, stage: &Stage, way: &str, shape: &str, figure: fn(&Round) -> f64) -> Option<f64> {
        self.rounds(stage, way, shape)?.median(figure)
    }

    fn number(&self, map: &Map<String, Value>, name: &str) -> Option<f64> {
        map.get(name)?.as_f64()
    }

    /// Returns the goals for which all figures were measured.
    fn goals(&self, stage: &Stage) -> Vec<Goal> {
        let mut goals = Vec::new();
        let mut goal = |name: &str, found: Option<f64>, bound, at_least| {
            goals.extend(found.map(|found| Goal { name: name.to_owned(), found, bound, at_least }));
        };
        let p50 = |way: &str, shape: &str| self.median(stage, way, shape, |round| round.p50);
        let cpu = |way: &str, shape: &str| self.median(stage, way, shape, Round::cpu_total);
        let rate = |way: &str, shape: &str| self.median(stage, way, shape, |round| round.calls_per_second);
        let ratio = |above: Option<f64>, below: Option<f64>| Some(above? / below?);
        let sum = p50("pipe", "1x1").zip(p50("http", "1x1")).zip(p50("link", "1x1"));
        let sum = sum.map(|((pipe, http), link)| pipe + http + link);
        goal("p50 of /mcp at 1x1, by the sum of the floors", ratio(p50("/mcp", "1x1"), sum), 3.0, false);
        let (ours, floor) = (cpu("/mcp", "32x4"), cpu("bridge", "32x4"));
        goal("CPU per call of /mcp at 32x4, by the bridge", ratio(ours, floor), 4.0, false);
        let (ours, floor) = (rate("/mcp", "32x4"), rate("bridge", "32x4"));
        goal("calls/s of /mcp at 32x4, by the bridge", ratio(ours, floor), 1.0 / 3.0, true);
        let (ours, plain) = (cpu("/mcp TLS", "32x4"), cpu("/mcp", "32x4"));
        goal("CPU per call of /mcp with TLS at 32x4, by plain", ratio(ours, plain), 1.3, false);
        let (ours, floor) = (p50("/mcp", "1 MiB"), p50("bridge", "1 MiB"));
        goal("p50 of 1 MiB results at /mcp, by the bridge", ratio(ours, floor), 3.0, false);
        let tail = self.rounds(stage, "/mcp", "8x1");
        let tail = tail.and_then(|rounds| rounds.lowest(|round| round.p99 / round.p50));
        goal("p99 by p50 of /mcp at 8x1, quietest round", tail, 3.0, false);
        for (name, key, bound) in [
            ("gateway idle, KiB", "gateway_idle_kib", 4096.0),
            ("register idle, KiB", "register_idle_kib", 4096.0),
            ("each idle SSE client, KiB", "idle_client_kib", 12.0),
            ("each idle link, KiB", "idle_link_kib", 24.0),
        ] {
            goal(name, self.number(&self.memory, key), bound, false);
        }
        goal("gateway ready, ms", self.number(&self.times, "gateway_ready_ms"), 10.0, false);
        let listed =
            self.number(&self.times, "tool_listed_ms").zip(self.number(&self.times, "child_start_ms"));
        goal("tool listed, ms beside the child's start", listed.map(|(all, child)| all - child), 50.0, false);
        for peer in stage.subjects.iter().filter(|subject| subject.kind == Kind::Peer) {
            let name = &peer.name;
            // One peer has a tunnel too; the others do less work per call.
            let (faster, lighter) = if name == stage::TUNNEL { (20.0, 1.0 / 25.0) } else { (1.0, 1.0) };
            let title = |what: &str| format!("{what}, by {name}");
            goal(&title("p50 of /mcp at 1x1"), ratio(p50("/mcp", "1x1"), p50(name, "1x1")), 1.0, false);
            let (ours, theirs) = (rate("/mcp", "32x4"), rate(name, "32x4"));
            goal(&title("calls/s of /mcp at 32x4"), ratio(ours, theirs), faster, true);
            let (ours, theirs) = (cpu("/mcp", "32x4"), cpu(name, "32x4"));
            goal(&title("CPU per call of /mcp at 32x4"), ratio(ours, theirs), lighter, false);
        }
        goals
    }

    /// Returns the JSON document.
    pub fn json(&self, stage: &Stage, machine: Value) -> Value {
        let mut ways = Map::new();
        for cell in &self.cells {
            let subject = &stage.subjects[cell.subject];
            let programs: Vec<String> = subject.watched.iter().map(|(name, _)| name.clone()).collect();
            ways.insert(format!("{} {}", subject.name, cell.shape.name()), cell.rounds.json(&programs));
        }
        let goals = self.goals(stage).into_iter().map(|goal| {
            json!({"name": goal.name, "found": tidy(goal.found), "bound": tidy(goal.bound), "met": goal.is_met()})
        });
        json!({
            "machine": machine,
            "ways": ways,
            "memory": self.memory,
            "soak": self.soak,
            "times": self.times,
            "syscalls": self.syscalls,
            "goals": goals.collect::<Vec<_>>(),
        })
    }

    /// Returns the table.
    pub fn table(&self, stage: &Stage) -> String {
        let mut out = String::new();
        // Writing to a `String` cannot fail.
        let _ = self.write_ways(stage, &mut out);
        for (title, map) in [
            ("memory", &self.memory),
            ("memory under load, early and late", &self.soak),
            ("times", &self.times),
            ("system calls for each call", &self.syscalls),
        ] {
            if !map.is_empty() {
                let _ = writeln!(out, "\n{title}");
            }
            for (name, value) in map {
                let _ = writeln!(out, "  {name:<36} {value}");
            }
        }
        let _ = writeln!(out, "\ngoals");
        for goal in self.goals(stage) {
            let (sign, verdict) =
                (if goal.at_least { ">=" } else { "<=" }, if goal.is_met() { "met" } else { "NOT MET" });
            let _ =
                writeln!(out, "  {:<48} {:>9.2} {sign} {:<8.2} {verdict}", goal.name, goal.found, goal.bound);
        }
        out
    }

    fn write_ways(&self, stage: &Stage, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "{:<24} {:>9} {:>9} {:>9} {:>9} {:>9}  CPU µs per call: user + system",
            "way", "shape", "calls/s", "p50 µs", "p99 µs", "CPU µs"
        )?;
        for shape in self.shapes() {
            for cell in self.cells.iter().filter(|cell| cell.shape == shape) {
                write_cell(&stage.subjects[cell.subject], cell, out)?;
            }
        }
        Ok(())
    }

    fn shapes(&self) -> Vec<Shape> {
        let mut shapes: Vec<Shape> = Vec::new();
        for cell in &self.cells {
            if !shapes.contains(&cell.shape) {
                shapes.push(cell.shape);
            }
        }
        shapes.sort_by_key(|shape| (shape.bytes, shape.clients));
        shapes
    }
}

fn write_cell(subject: &Subject, cell: &Cell, out: &mut String) -> std::fmt::Result {
    write!(out, "{:<24} {:>9}", subject.name, cell.shape.name())?;
    let rounds = &cell.rounds;
    let figures = rounds
        .median(|round| round.calls_per_second)
        .zip(rounds.median(|round| round.p50))
        .zip(rounds.median(|round| round.p99));
    let Some(((rate, p50), p99)) = figures else {
        return writeln!(out, " failed: {}", rounds.failure.as_deref().unwrap_or("no answer"));
    };
    write!(out, " {rate:>9.0} {p50:>9.1} {p99:>9.1}")?;
    if !subject.watched.is_empty() {
        write!(out, " {:>9.1} ", rounds.median(Round::cpu_total).unwrap_or_default())?;
    }
    for (place, (name, _)) in subject.watched.iter().enumerate() {
        let of = |round: &Round| round.cpu.get(place).copied().unwrap_or_default();
        let user = rounds.median(|round| of(round).0).unwrap_or_default();
        let system = rounds.median(|round| of(round).1).unwrap_or_default();
        write!(out, " {name} {user:.1} + {system:.1}")?;
    }
    match &rounds.failure {
        Some(why) => writeln!(out, "  (a round failed: {why})"),
        None => writeln!(out),
    }
}
