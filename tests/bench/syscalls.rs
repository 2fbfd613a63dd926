//! System calls per call, counted by `perf` if permitted, otherwise by `strace`. `strace` slows the
//! programs down, so that they handle more at a time. No times are measured meanwhile.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};

use crate::{
    Outcome,
    load::{Shape, Window},
    process::{self, Program},
    stage::{Kind, Stage, Subject},
    stats::tidy,
};

/// The window must contain many calls, because opening the sessions is counted too.
const WINDOW: Window = Window { warm: Duration::ZERO, time: Duration::from_millis(1000) };

/// System calls that `perf` counts individually.
const CALLS: [&str; 15] = [
    "recvfrom",
    "sendto",
    "read",
    "readv",
    "write",
    "writev",
    "sendmsg",
    "epoll_wait",
    "epoll_pwait",
    "epoll_ctl",
    "timerfd_settime",
    "futex",
    "sched_yield",
    "mmap",
    "munmap",
];

/// Counts for the paths through mcpport and for the bridge.
pub fn measure(stage: &Stage) -> Outcome<Map<String, Value>> {
    let mut found = Map::new();
    for subject in stage.subjects.iter().filter(|subject| !subject.watched.is_empty()) {
        if subject.kind == Kind::Peer {
            continue;
        }
        for shape in subject.shapes.iter().filter(|shape| shape.bytes == 0 && shape.clients != 8) {
            for watched in &subject.watched {
                let counted = count(stage, subject, *shape, watched)?;
                found.insert(format!("{} {} {}", subject.name, shape.name(), watched.0), counted);
            }
        }
    }
    Ok(found)
}

fn count(stage: &Stage, subject: &Subject, shape: Shape, watched: &(String, usize)) -> Outcome<Value> {
    let pid = stage.programs.get(watched.1).map(Program::pid).ok_or("no such program")?.to_string();
    let file = process::directory("logs")?.join("syscalls");
    let mut counter = counter(&pid, &file).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    // The counter does not signal when it is attached.
    thread::sleep(Duration::from_millis(500));
    let sample = stage.measure(subject, shape, WINDOW);
    if let Some(pid) = i32::try_from(counter.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::INT)?;
    }
    counter.wait()?;
    let calls = sample?.all as f64;
    let mut counted = Map::new();
    for (name, count) in fs::read_to_string(&file)?.lines().filter_map(line) {
        if count / calls >= 0.01 {
            counted.insert(name, json!(tidy(count / calls)));
        }
    }
    Ok(Value::Object(counted))
}

/// Returns the command that counts the system calls of a process.
fn counter(pid: &str, file: &Path) -> Command {
    // Setting up each event takes time, so count only the relevant calls and the total.
    let names = CALLS.map(|name| format!("syscalls:sys_enter_{name}")).join(",");
    let events = format!("raw_syscalls:sys_enter,{names}");
    let tried = Command::new("perf").args(["stat", "-e", &events, "true"]).output();
    let mut command;
    if tried.is_ok_and(|tried| tried.status.success()) {
        command = Command::new("perf");
        command.args(["stat", "-x,", "-e", &events, "-p", pid, "-o"]);
    } else {
        command = Command::new("strace");
        command.args(["-c", "-f", "-U", "name,calls", "-p", pid, "-o"]);
    }
    command.arg(file);
    command
}

/// Parses a line of either program: a name and a count.
fn line(line: &str) -> Option<(String, f64)> {
    let words: Vec<&str> = line.split([',', ' ']).filter(|word| !word.is_empty()).collect();
    match words[..] {
        // `perf` and `strace` name the total differently.
        [count, "raw_syscalls:sys_enter", ..] => Some(("total".into(), count.parse().ok()?)),
        [name, count] => Some((name.to_owned(), count.parse().ok()?)),
        [count, name, ..] => {
            Some((name.strip_prefix("syscalls:sys_enter_")?.to_owned(), count.parse().ok()?))
        }
        _ => None,
    }
}
