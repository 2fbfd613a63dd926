//! The arguments of `cargo bench --`.

use std::{env, path::PathBuf, time::Duration};

use crate::{Outcome, load::Window};

pub const HELP: &str = "\
cargo bench -- [OPTIONS]

Measures mcpport against its floors in one run, prints a table, and writes one JSON document.

  --quick          a short run that shows that all of it works; its figures mean little
  --rounds N       rounds, in each of which every way is measured once (default 5)
  --window MS      time of one measurement (default 400)
  --soak SECONDS   time under load for the growth of memory (default 20; 300: from minute 1 to minute 5)
  --idle N         idle clients and links whose memory is measured (default 1000)
  --only TEXT      only ways whose name contains this, and no memory and times
  --scale N        only this: work at 1000 links and at N (to 12000), with half as many clients
  --syscalls       count system calls too (needs perf with rights, or strace)
  --peers FILE     put the load on other programs too; see scripts/bench-peers.sh
  --binary FILE    the program to measure (default: the one that cargo built)
  --output FILE    where the JSON document goes (default: target/bench/last.json)";

/// The parsed arguments.
pub struct Args {
    pub quick: bool,
    pub rounds: usize,
    pub window: Window,
    pub soak: Duration,
    pub idle: usize,
    pub only: Option<String>,
    pub scale: Option<usize>,
    pub syscalls: bool,
    pub peers: Option<PathBuf>,
    pub binary: PathBuf,
    pub output: PathBuf,
}

impl Args {
    /// Parses the arguments.
    pub fn read(mut words: impl Iterator<Item = String>) -> Outcome<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut args = Self {
            quick: false,
            rounds: 5,
            window: window(400),
            soak: Duration::from_secs(20),
            idle: 1000,
            only: None,
            scale: None,
            syscalls: false,
            peers: None,
            binary: env!("CARGO_BIN_EXE_mcpport").into(),
            output: root.join("target/bench/last.json"),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                // Added by Cargo.
                "--bench" => {}
                "--quick" => {
                    args.quick = true;
                    (args.rounds, args.window, args.soak, args.idle) =
                        (1, window(100), Duration::from_secs(2), 200);
                }
                "--rounds" => args.rounds = value()?.parse::<usize>()?.max(1),
                "--window" => args.window = window(value()?.parse()?),
                "--soak" => args.soak = Duration::from_secs(value()?.parse()?),
                "--idle" => args.idle = value()?.parse::<usize>()?.max(1),
                "--only" => args.only = Some(value()?),
                "--scale" => args.scale = Some(value()?.parse()?),
                "--syscalls" => args.syscalls = true,
                "--peers" => args.peers = Some(value()?.into()),
                "--binary" => args.binary = value()?.into(),
                "--output" => args.output = value()?.into(),
                _ => return Err(format!("{word} is not known\n\n{HELP}").into()),
            }
        }
        Ok(args)
    }
}

/// Returns a window of this length, after a warm-up of a quarter of it.
fn window(milliseconds: u64) -> Window {
    Window { warm: Duration::from_millis(milliseconds / 4), time: Duration::from_millis(milliseconds) }
}
