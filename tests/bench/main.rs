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
//!
//! # Results
//!
//! One run of `scripts/bench-peers.sh` on 22 November 2026, with load generator and all programs on
//! two cores of a shared cloud machine. Its speed changes by the hour, so the ratios say more than
//! the figures.
//!
//! | trivial call | 1 at a time: p50 | CPU per call then | 8 clients: calls/s | 32 clients, 4 each: calls/s | CPU per call then |
//! |---|---|---|---|---|---|
//! | baseline: the server's own pipes | 43 µs | | | 922 000 | |
//! | baseline: an HTTP round trip | 27 µs | 27 µs | 132 000 | 136 000 | 7 µs |
//! | baseline: a WebSocket round trip | 12 µs | | | 160 000 | |
//! | baseline: the minimal bridge, without a tunnel | 77 µs | 31 µs | 67 600 | 132 000 | 7 µs |
//! | `/mcp`, through gateway, link and register | 57 µs | 108 µs | 36 200 | 64 200 | 17 µs |
//! | the same, with TLS for client and link | 54 µs | 98 µs | 40 800 | 50 000 | 20 µs |
//! | `/servers/<name>/mcp` | 59 µs | 102 µs | 41 700 | 66 500 | 17 µs |
//! | `/sse` | 70 µs | 120 µs | 30 400 | 62 700 | 17 µs |
//! | Python mcpport (SSE), with a tunnel | 1 583 µs | 1 753 µs | 930 | 1 010 | 1 204 µs |
//! | mcpway (SSE), a Rust bridge, without a tunnel | 108 µs | 76 µs | 12 700 | 13 000 | 83 µs |
//! | rmcp-proxy (SSE), a Rust bridge, without a tunnel | 177 µs | 138 µs | 13 400 | 11 400 | 95 µs |
//! | supergateway (SSE), without a tunnel | 370 µs | 599 µs | 3 400 | 3 600 | 328 µs |
//! | mcp-proxy (PyPI), without a tunnel | 859 µs | 885 µs | 1 050 | 980 | 1 017 µs |
//! | mcp-proxy (npm), without a tunnel | 889 µs | 1 433 µs | 1 360 | 1 870 | 842 µs |
//!
//! Most of the processor time of a single call is busy polling, which the latency gains from: see
//! `mcpport::runtime::busy_poll`.
//!
//! In the same run, a result of 1 MiB takes 4.3 ms (the minimal bridge: 3.1 ms); the gateway is
//! ready 2 ms after its start, and a tool is listed 3 ms after its server has started. Measured on
//! 29 November: 10.2 KiB of memory for each idle SSE client and 27.2 KiB for each idle link, with
//! 1 000 of each.
//!
//! With `--scale 10000` (10 tools per server, one client for two links), the gateway's processor
//! time per event at 1 000 and at 10 000 links is 180 and 177 µs to register a link, 94 and 50 µs to
//! open a client, and 2.7 and 2.3 ms for one server that leaves while another joins, with all
//! clients notified (a tenth of all servers within 10 s). While half of the links are lost at once,
//! and given up at once when the resume window ends, `/health` answers within 6 and 36 ms.
//!
//! Resident memory at rest, and the program's own part of it (the memory part of
//! `cargo bench -- --quick --binary FILE`, x86-64, 29 November):
//!
//! | | gateway | register, without its server |
//! |---|---|---|
//! | static binary (`scripts/cross-build.sh`) | 3.4 to 3.6 MB, 0.2 MB | 3.6 MB, 0.4 MB |
//! | ordinary build (`cargo build --release`, glibc) | 4.3 MB, 0.3 MB | 4.5 to 4.9 MB, 0.5 MB |
//!
//! The rest is the program's file and, in the second row, 1.7 MB of glibc and its loader: pages that
//! all processes share and that the kernel reclaims when memory is short. How many of them count
//! depends on where the kernel maps the program: the second row varies by 0.2 MB and more between
//! starts.

#![allow(
    clippy::disallowed_methods,
    clippy::exit,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "lints for the program; a test may stop"
)]

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
