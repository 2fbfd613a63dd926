//! System calls for each call, counted by `perf` where that may count them, otherwise by `strace`, which slows the programs
//! down and so makes them do more at a time. No time is taken meanwhile.

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

/// The opening of sessions is counted too, so calls have to be many.
const WINDOW: Window = Window { warm: Duration::ZERO, time: Duration::from_millis(1000) };

/// What `perf` counts one by one.
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

/// Counts for the ways through mcpport and the bridge.
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
    // There is no sign of when it has taken hold.
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

/// What counts the system calls of a process.
fn counter(pid: &str, file: &Path) -> Command {
    // Each event costs the kernel a while to set up, so those that matter and the sum of all.
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

/// A line of either: a name and a number.
fn line(line: &str) -> Option<(String, f64)> {
    let words: Vec<&str> = line.split([',', ' ']).filter(|word| !word.is_empty()).collect();
    match words[..] {
        // The one calls the sum so, the other so.
        [count, "raw_syscalls:sys_enter", ..] => Some(("total".into(), count.parse().ok()?)),
        [name, count] => Some((name.to_owned(), count.parse().ok()?)),
        [count, name, ..] => {
            Some((name.strip_prefix("syscalls:sys_enter_")?.to_owned(), count.parse().ok()?))
        }
        _ => None,
    }
}
