//! Whatever ends, and however: no process stays behind.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::Signal;

use crate::world::{Edge, Gateway, Program, eventually};

/// Servers of all manners, as `--stdio`; the second: whether it lives on when its stdin ends.
fn manners() -> Vec<(&'static str, String)> {
    let fake = crate::world::fake_server();
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

/// Runs `register` on a server, until it runs.
#[track_caller]
fn started(url: &str, stdio: &str) -> Program {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("s{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let program =
        Program::start(&["register", "--stdio", stdio, "--gateway-url", url, "--server-name", &name]);
    program.wait_for("runs as process");
    eventually("the server runs", || !program.offspring().is_empty());
    program
}

#[test]
fn nothing_is_left_when_register_is_asked_to_end() {
    let gateway = Gateway::start(&[]);
    // All at once: some take seconds to give up.
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
fn nothing_is_left_when_register_is_asked_twice() {
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
    // Nobody can end a server then that does not mind the end of its stdin.
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
    edge.program.wait_for("next try in");
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
        // With the gateway go the sessions; the one process that the list of tools comes from may stay.
        let most = usize::from(end == "gateway killed");
        eventually(end, || edge.program.offspring().len() <= most);
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
fn a_server_that_is_deaf_and_full_is_ended_as_well() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2s"]);
    let mut edge: Edge = gateway.edge("s");
    let mut client = gateway.client();
    client.call("s_deaf", "{}");
    let big = "x".repeat(1 << 20);
    client.call("s_echo", &format!("{{\"text\":\"{big}\"}}"));
    assert_eq!(edge.program.stop().code, Some(0));
    assert!(edge.program.offspring().is_empty());
}
