//! System calls for each call, counted by `strace`, which slows the programs down: no time is taken meanwhile.

use std::{
    fs,
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

/// Calls under `strace` take a hundred times as long, and have to be many.
const WINDOW: Window = Window { warm: Duration::ZERO, time: Duration::from_millis(1500) };

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
    let pid = stage.programs.get(watched.1).map(Program::pid).ok_or("no such program")?;
    let file = process::directory("logs")?.join("strace");
    let mut strace = Command::new("strace")
        .args(["-c", "-f", "-U", "name,calls", "-p", &pid.to_string(), "-o"])
        .arg(&file)
        .stderr(Stdio::null())
        .spawn()?;
    // There is no sign of when it has taken hold.
    thread::sleep(Duration::from_millis(300));
    let sample = stage.measure(subject, shape, WINDOW);
    if let Some(pid) = i32::try_from(strace.id()).ok().and_then(Pid::from_raw) {
        kill_process(pid, Signal::INT)?;
    }
    strace.wait()?;
    let calls = sample?.all as f64;
    let mut counted = Map::new();
    for line in fs::read_to_string(&file)?.lines() {
        let Some((name, count)) = line.split_once(char::is_whitespace) else { continue };
        if let Ok(count) = count.trim().parse::<f64>()
            && count / calls >= 0.01
        {
            counted.insert(name.into(), json!(tidy(count / calls)));
        }
    }
    Ok(Value::Object(counted))
}
