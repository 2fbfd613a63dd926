//! Other programs under the same load, described by a file that `scripts/bench-peers.sh` writes.
//!
//! It has lines of the form `peer NAME DOOR PATH PREFIX` (door: `mcp` or `sse`; prefix of the tool
//! names, `-` for none), each followed by `run COMMAND` once for each of the peer's programs, in
//! order. In a command, `{port}` stands for a free port and `{echo}` for the command of the echo
//! server.

use std::process::Command;

use crate::{
    Outcome,
    load::{self, Shape, Target, Transport, Window},
    process::{self, Program},
    stage::{self, How, Kind, Subject},
};

/// The programs of one peer.
pub struct Peer {
    pub name: String,
    transport: Transport,
    path: String,
    prefix: String,
    commands: Vec<String>,
}

/// Parses the description.
pub fn read(text: &str) -> Outcome<Vec<Peer>> {
    let mut peers: Vec<Peer> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        match line.split_once(' ') {
            Some(("peer", rest)) => {
                let [name, transport, path, prefix] = rest.split_whitespace().collect::<Vec<_>>()[..] else {
                    return Err(format!("peer NAME DOOR PATH PREFIX: {line}").into());
                };
                let transport = match transport {
                    "mcp" => Transport::Mcp,
                    "sse" => Transport::Sse,
                    other => return Err(format!("no such door: {other}").into()),
                };
                let prefix = if prefix == "-" { String::new() } else { prefix.to_owned() };
                let (name, path) = (name.to_owned(), path.to_owned());
                peers.push(Peer { name, transport, path, prefix, commands: Vec::new() });
            }
            Some(("run", command)) => {
                peers.last_mut().ok_or("a command before its peer")?.commands.push(command.to_owned());
            }
            _ => return Err(format!("neither peer nor run: {line}").into()),
        }
    }
    Ok(peers)
}

impl Peer {
    /// Starts the programs, and waits until a call works.
    pub fn start(&self, programs: &mut Vec<Program>) -> Outcome<Subject> {
        let (port, echo, first) = (process::free_port()?, stage::echo_command()?, programs.len());
        let mut watched = Vec::new();
        for (number, command) in self.commands.iter().enumerate() {
            let text = command.replace("{port}", &port.to_string()).replace("{echo}", &echo);
            let log = format!("{}-{number}", self.name);
            programs.push(Program::start(&log, Command::new("bash").arg("-c").arg(format!("exec {text}")))?);
            watched.push((format!("program {}", number + 1), first + number));
            process::listening(port)?;
        }
        let target = Target {
            address: process::local(port),
            tls: None,
            transport: self.transport,
            path: self.path.clone(),
            prefix: self.prefix.clone(),
        };
        let one = Shape { clients: 1, in_flight: 1, bytes: 0 };
        let moment = std::time::Duration::from_millis(20);
        let mut last = String::new();
        process::eventually("a call works", || {
            let tried = load::run(&target, one, Window { warm: moment, time: moment }, &[]);
            tried.inspect_err(|why| last = why.to_string()).ok().filter(|sample| sample.calls > 0)
        })
        .map_err(|error| format!("{error}: {last}"))?;
        Ok(Subject {
            name: self.name.clone(),
            kind: Kind::Peer,
            how: How::Http(target),
            shapes: stage::SMALL.to_vec(),
            watched,
        })
    }
}
