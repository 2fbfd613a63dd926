//! However programs and servers end, no process stays behind.

use std::{
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::Signal;

use crate::harness::{Edge, Gateway, Program, eventually};

/// Various servers, as `--stdio`, and whether each of them survives the end of its stdin.
fn manners() -> Vec<(&'static str, String)> {
    let fake = crate::harness::fake_server();
    let fake = fake.display();
    vec![
        ("reads stdin", format!("'{fake}'")),
        ("ignores the end of stdin", format!("'{fake}' --ignore-eof")),
        ("ignores TERM as well", format!("'{fake}' --ignore-eof --ignore-term")),
        ("a shell with a job", "sleep 777 & sleep 777".into()),
        ("a shell that waits", format!("trap '' TERM; sleep 777 & '{fake}'; sleep 777")),
        ("a job whose shell is gone", format!("sleep 777 & exec '{fake}'")),
    ]
}

/// Runs `register` on a server, and waits until it runs.
#[track_caller]
fn started(url: &str, stdio: &str) -> Program {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let program =
        Program::start(&["register", "--stdio", stdio, "--gateway-url", url, "--server-name", &name]);
    program.wait_for("started, pid");
    eventually("the server runs", || !program.offspring().is_empty());
    program
}

#[test]
fn nothing_is_left_when_register_is_asked_to_end() {
    let gateway = Gateway::start(&[]);
    // All at once, because some take seconds to give up.
    let mut programs: Vec<_> =
        manners().into_iter().map(|(manner, stdio)| (manner, started(&gateway.url(), &stdio))).collect();
    for (_, program) in &programs {
        program.signal(Signal::TERM);
    }
    for (manner, program) in &mut programs {
        let end = program.ended();
        assert_eq!((end.code, program.offspring()), (Some(0), vec![]), "{manner}: {:?}", end.stderr);
    }
}

#[test]
fn nothing_is_left_after_two_signals() {
    let gateway = Gateway::start(&[]);
    for (manner, stdio) in manners() {
        let mut program = started(&gateway.url(), &stdio);
        program.signal(Signal::INT);
        program.wait_for("send it again");
        program.signal(Signal::INT);
        program.ended();
        eventually(manner, || program.offspring().is_empty());
    }
}

#[test]
fn nothing_is_left_when_register_is_killed() {
    let gateway = Gateway::start(&[]);
    // Then nobody can stop a server that ignores the end of its stdin.
    let (manner, stdio) = manners().remove(0);
    let mut program = started(&gateway.url(), &stdio);
    program.kill();
    eventually(manner, || program.offspring().is_empty());
}

#[test]
fn a_server_survives_its_gateway_and_not_its_edge() {
    let mut gateway = Gateway::start(&[]);
    let mut edge = gateway.edge("s");
    gateway.program.kill();
    edge.program.wait_for("reconnecting in");
    assert_eq!(edge.program.offspring(), [edge.server_pid()]);
    assert_eq!(edge.program.stop().code, Some(0));
    assert!(edge.program.offspring().is_empty());
}

#[test]
fn nothing_is_left_of_isolated_sessions() {
    for end in ["asked", "killed", "gateway killed"] {
        let mut gateway = Gateway::start(&["--resume-window", "0"]);
        let mut edge = gateway.edge_with("s", &[], &["--sessions", "isolated"]);
        let mut clients: Vec<_> = (0..3).map(|_| gateway.client()).collect();
        for client in &mut clients {
            client.call("s_echo", "{}");
        }
        assert!(edge.program.offspring().len() >= 3);
        match end {
            "asked" => assert_eq!(edge.program.stop().code, Some(0)),
            "killed" => edge.program.kill(),
            _ => gateway.program.kill(),
        }
        // The sessions end with the gateway; the one process that provides the list of tools may
        // stay.
        let max = usize::from(end == "gateway killed");
        eventually(end, || edge.program.offspring().len() <= max);
    }
}

#[test]
fn nothing_is_left_of_many_runs() {
    let gateway = Gateway::start(&[]);
    for round in 0..20 {
        let mut edge = gateway.edge(&format!("s{round}"));
        if round % 2 == 0 {
            assert_eq!(edge.program.stop().code, Some(0));
        } else {
            edge.program.kill();
        }
        eventually("its server ends", || edge.program.offspring().is_empty());
    }
    let mut client = gateway.client();
    client.tools_until(|tools| tools == ["list_servers"]);
}

#[test]
fn nothing_is_left_when_the_start_fails() {
    let gateway = Gateway::start(&["--auth-token", "t"]);
    for (manner, stdio) in manners().into_iter().take(2) {
        let mut program = Program::start(&["register", "--stdio", &stdio, "--gateway-url", &gateway.url()]);
        assert_eq!(program.ended().code, Some(1));
        assert!(program.offspring().is_empty(), "{manner}");
    }
}

#[test]
fn a_server_that_ignores_signals_and_stdin_is_killed() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2s"]);
    let mut edge: Edge = gateway.edge("s");
    let mut client = gateway.client();
    client.call("s_deaf", "{}");
    let big = "x".repeat(1 << 20);
    client.call("s_echo", &format!("{{\"text\":\"{big}\"}}"));
    assert_eq!(edge.program.stop().code, Some(0));
    assert!(edge.program.offspring().is_empty());
}

/// Returns the descendants of a process whose parent has ended: state and number.
fn adopted(parent: u32, but: u32) -> Vec<(char, u32)> {
    let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut rest = stat.rsplit_once(") ")?.1.split(' ');
        let (state, above) = (rest.next()?.chars().next()?, rest.next()?.parse::<u32>().ok()?);
        (above == parent && number != but).then_some((state, number))
    });
    stats.collect()
}

#[test]
fn helpers_that_left_the_session_end_with_the_server() {
    let gateway = Gateway::start(&[]);
    let fake = crate::harness::fake_server();
    let stdio = format!("setsid -f sleep 777; (setsid sleep 778 &); exec '{}'", fake.display());
    let mut program = started(&gateway.url(), &stdio);
    program.wait_for("registered: ");
    let line = program.wait_for("started, pid");
    let server: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    eventually("the helpers are ours", || adopted(program.pid(), server).len() == 2);
    assert_eq!(program.stop().code, Some(0));
    assert!(program.offspring().is_empty());
}

#[test]
fn helpers_that_left_the_session_end_at_a_second_signal() {
    let gateway = Gateway::start(&[]);
    let fake = crate::harness::fake_server();
    let server = format!("'{}' --ignore-eof --ignore-term", fake.display());
    // One helper is our child by then; the other becomes one when its parent ends.
    let stdio = format!("setsid -f sleep 777; (setsid sh -c 'sleep 778; :' &); exec {server}");
    let mut program = started(&gateway.url(), &stdio);
    program.wait_for("registered: ");
    program.signal(Signal::TERM);
    program.wait_for("send it again");
    program.signal(Signal::TERM);
    assert_eq!(program.ended().code, Some(1));
    assert!(program.offspring().is_empty());
}

#[test]
fn helpers_of_a_server_that_crashed_end_before_the_next_start() {
    let gateway = Gateway::start(&[]);
    let fake = crate::harness::fake_server();
    let stdio = format!("setsid -f sleep 777; exec '{}'", fake.display());
    let program = started(&gateway.url(), &stdio);
    program.wait_for("registered: ");
    let server = |nth| -> u32 {
        program.wait_for_nth("started, pid", nth).rsplit(' ').next().unwrap().parse().unwrap()
    };
    eventually("the helper is ours", || adopted(program.pid(), server(1)).len() == 1);
    let (_, helper) = adopted(program.pid(), server(1))[0];
    crate::harness::kill(server(1));
    program.wait_for(&format!("killing process {helper}: it outlived its server"));
    server(2);
    assert!(!program.offspring().contains(&helper));
}

/// A server that leaves eight orphans, each of which adds a line to the file as it ends.
fn leaves_orphans(file: &std::path::Path) -> String {
    let orphan = format!("(sh -c 'sleep 0.1; echo >>{}' &)", file.display());
    format!("for n in 1 2 3 4 5 6 7 8; do {orphan}; done; exec '{}'", crate::harness::fake_server().display())
}

fn lines(file: &std::path::Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

#[test]
fn orphans_that_end_are_reaped() {
    let gateway = Gateway::start(&[]);
    let file = crate::directory("orphans").join("ended");
    let program = started(&gateway.url(), &leaves_orphans(&file));
    program.wait_for("registered: ");
    let line = program.wait_for("started, pid");
    let server: u32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    eventually("all have ended", || lines(&file) == 8);
    eventually("no zombie is left", || adopted(program.pid(), server).is_empty());
}

#[test]
fn process_1_reaps_orphans() {
    let unshare = ["unshare", "--map-root-user", "--user", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let mut tried = Command::new(unshare[0]);
    tried.args(&unshare[1..]).arg("true").stdin(Stdio::null()).stderr(Stdio::null());
    if !tried.status().is_ok_and(|status| status.success()) {
        eprintln!("not run: this machine gives no pid namespace");
        return;
    }
    let gateway = Gateway::start(&[]);
    let file = crate::directory("orphans").join("ended");
    let (stdio, url) = (leaves_orphans(&file), gateway.url());
    let register = ["register", "--stdio", &stdio, "--gateway-url", &url];
    let mut program = Program::start_under(&unshare, &register, Stdio::null());
    program.wait_for("registered: ");
    let (_, register) = adopted(program.pid(), 0)[0];
    eventually("all have ended", || lines(&file) == 8);
    eventually("no zombie is left", || adopted(register, 0).iter().all(|(state, _)| *state != 'Z'));
    program.kill();
    eventually("register ends with its namespace", || !std::fs::exists(format!("/proc/{register}")).unwrap());
}
