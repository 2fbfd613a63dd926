//! `register` on a terminal: its server has none, and Ctrl-C still ends both.

use std::{fs::File, io::Write};

use crate::harness::{Gateway, Program, eventually, fake_server, terminal};

/// A program asks for a passphrase on `/dev/tty`, whatever its stdin is.
#[test]
fn a_server_that_asks_the_terminal_fails_at_once_and_ctrl_c_ends_both() {
    let gateway = Gateway::start(&[]);
    let (controller, terminal) = terminal();
    let stdio = format!("read answer </dev/tty; exec '{}'", fake_server().display());
    let url = gateway.url();
    let mut program = Program::start_under(
        &["setsid", "--ctty", "--wait"],
        &["register", "--stdio", &stdio, "--gateway-url", &url],
        terminal.into(),
    );
    program.wait_for("/dev/tty: No such device or address");
    program.wait_for("registered: ");
    gateway.program.wait_for("server 'local' offers");
    File::from(controller.try_clone().unwrap()).write_all(b"\x03").unwrap();
    program.wait_for("SIGINT: stopping");
    let end = program.ended();
    assert_eq!(end.code, Some(0), "{:?}", end.stderr);
    eventually("the server has ended", || program.offspring().is_empty());
}

#[test]
fn a_server_leads_a_session_of_its_own() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let number = |place| -> u32 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", edge.server_pid())).unwrap();
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(place).unwrap().parse().unwrap()
    };
    let (parent, group, session, terminal) = (number(1), number(2), number(3), number(4));
    assert_eq!((parent, terminal), (edge.program.pid(), 0));
    assert_eq!((group, session), (edge.server_pid(), edge.server_pid()));
}
