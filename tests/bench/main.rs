//! The benchmark: `cargo bench`, or `cargo bench -- --help`.
//!
//! It measures several paths to one trivial stdio server (`echo`), and the baselines for them. A
//! run has several rounds that measure each path once, so that other activity on the machine
//! affects all paths alike. Figures of two runs are only comparable as ratios to their own
//! baselines.
//!
//! - `floors`, `bridge`: baselines without a tunnel. `peers`: other programs.
//! - `stage`: the programs and the paths. `process`: a program, its processor time and its memory.
//! - `load`, `wire`, `poll`: the load generator. It runs in this process; the measured programs run
//!   in others, and gateway and register are the real binary.
//! - `scale`: whether the cost per event grows with the number of servers and clients (`--scale`).
//! - `memory`, `links`, `times`, `syscalls`: figures other than calls. `stats`, `report`:
//!   statistics and output.

mod args;
mod bridge;
mod echo;
mod floors;
mod links;
mod load;
mod memory;
mod peers;
mod poll;
mod process;
mod report;
mod scale;
mod stage;
mod stats;
mod syscalls;
mod times;
mod wire;

use std::{env, error::Error, fs, process::ExitCode, thread, time::Instant};

use serde_json::{Value, json};

use self::{
    args::Args,
    report::{Cell, Report},
    stage::{Stage, Tls},
    stats::{Round, Rounds},
};

/// A result whose error is printed.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let done = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["echo"] => echo::run(),
        ["bridge", port] => number(port).and_then(bridge::run),
        ["floor", port] => number(port).and_then(floors::serve),
        ["--help", ..] => {
            println!("{}", args::HELP);
            Ok(())
        }
        _ => Args::read(words.into_iter()).and_then(|args| match args.scale {
            Some(max) => scale::run(&args.binary, max),
            None => run(&args),
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(port: &str) -> Outcome<u16> {
    Ok(port.parse()?)
}

fn run(args: &Args) -> Outcome<()> {
    let begun = Instant::now();
    process::raise_limits()?;
    let tls = Tls::new()?;
    if tls.is_none() {
        eprintln!("without TLS: scripts/generate-certs.sh does not work here (it needs openssl)");
    }
    let stage = Stage::set(&args.binary, tls.as_ref(), args.peers.as_deref())?;
    let mut report = Report { cells: cells(&stage, args), ..Report::default() };
    for number in 1..=args.rounds {
        eprint!("\rround {number} of {} ({} s)", args.rounds, begun.elapsed().as_secs());
        for cell in &mut report.cells {
            let subject = &stage.subjects[cell.subject];
            let sample = stage.measure(subject, cell.shape, args.window);
            match sample.map(|sample| Round::of(&sample)) {
                Ok(Some(round)) => cell.rounds.rounds.push(round),
                // On a busy machine, a short window may pass without a response. This is not an
                // error.
                Ok(None) => {}
                Err(why) => cell.rounds.failure = Some(why.to_string()),
            }
        }
    }
    eprintln!();
    if args.syscalls {
        report.syscalls = syscalls::measure(&stage)?;
    }
    if args.only.is_none() {
        report.soak = memory::soak(&stage, args.soak)?;
        report.memory = memory::measure(args)?;
        report.times = times::measure(args)?;
    }
    print!("{}", report.table(&stage));
    let document = serde_json::to_string_pretty(&report.json(&stage, machine(args)))?;
    process::directory("")?;
    fs::write(&args.output, document + "\n")?;
    println!("\n{} s; {}", begun.elapsed().as_secs(), args.output.display());
    failures(&report, &stage)
}

/// Returns every path with each of its shapes.
fn cells(stage: &Stage, args: &Args) -> Vec<Cell> {
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let subjects = stage.subjects.iter().enumerate().filter(|(_, subject)| wanted(&subject.name));
    let each = subjects.flat_map(|(place, subject)| {
        subject.shapes.iter().map(move |shape| Cell {
            subject: place,
            shape: *shape,
            rounds: Rounds::default(),
        })
    });
    each.collect()
}

/// Describes the machine and the binary.
fn machine(args: &Args) -> Value {
    let size = fs::metadata(&args.binary).map(|file| file.len()).unwrap_or_default();
    json!({
        "cores": thread::available_parallelism().map_or(0, usize::from),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "architecture": env::consts::ARCH,
        "binary_bytes": size,
        "rounds": args.rounds,
        "window_ms": u64::try_from(args.window.time.as_millis()).unwrap_or(u64::MAX),
    })
}

/// Returns an error if a path of our own gave a wrong response or none. Peers may fail.
fn failures(report: &Report, stage: &Stage) -> Outcome<()> {
    for cell in &report.cells {
        let subject = &stage.subjects[cell.subject];
        if let Some(why) = cell.rounds.failure.as_ref().filter(|_| subject.kind != stage::Kind::Peer) {
            return Err(format!("{} {}: {why}", subject.name, cell.shape.name()).into());
        }
    }
    Ok(())
}
