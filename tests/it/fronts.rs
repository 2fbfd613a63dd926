//! `register` behind a reverse proxy that refuses for a while, and during the start of a machine:
//! without a terminal, it waits for what is not there yet.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    directory,
    harness::{Edge, Gateway, Program, eventually, terminal},
};

/// A proxy in front of a gateway. While it has a response of its own, it forwards nothing.
struct Front {
    address: SocketAddr,
    own: Arc<Mutex<Option<String>>>,
    refused: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Front {
    fn start(gateway: SocketAddr, answer: Option<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = Self {
            address: listener.local_addr().unwrap(),
            own: Arc::new(Mutex::new(answer)),
            refused: Arc::default(),
            open: Arc::default(),
        };
        let (own, refused, open) = (front.own.clone(), front.refused.clone(), front.open.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let mut near = near.unwrap();
                let answer = own.lock().unwrap().clone();
                if let Some(answer) = answer {
                    let _ = near.read(&mut [0; 2048]);
                    let _ = near.write_all(answer.as_bytes());
                    refused.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                let Ok(far) = TcpStream::connect(gateway) else { continue };
                open.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                for (mut from, mut to) in [
                    (near.try_clone().unwrap(), far.try_clone().unwrap()),
                    (far.try_clone().unwrap(), near.try_clone().unwrap()),
                ] {
                    thread::spawn(move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        front
    }

    fn url(&self) -> String {
        format!("ws://{}/mcp/register", self.address)
    }

    /// Forwards (`None`), or responds with this itself; open connections are cut.
    fn answer(&self, answer: Option<String>) {
        *self.own.lock().unwrap() = answer;
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn refusals(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }
}

fn refusal(status: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
}

const REFUSALS: [&str; 6] = [
    "404 Not Found",
    "403 Forbidden",
    "401 Unauthorized",
    "301 Moved Permanently\r\nLocation: https://x/",
    "502 Bad Gateway",
    "200 OK",
];

/// Returns the delays that a log names, in seconds.
fn delays(log: &str) -> Vec<f64> {
    let seconds = |line: &str| line.split("reconnecting in ").nth(1)?.trim_end_matches(" s").parse().ok();
    log.lines().filter_map(seconds).collect()
}

#[test]
fn the_first_refusal_of_a_front_is_not_final() {
    let gateway = Gateway::start(&[]);
    for (number, status) in REFUSALS.into_iter().enumerate() {
        let front = Front::start(gateway.address, refusal(status));
        let edge = Edge::start(&front.url(), &format!("s{number}"), &[], &[]);
        eventually("it is refused twice", || front.refusals() >= 2);
        front.answer(None);
        edge.program.wait_for("registered: ");
    }
}

#[test]
fn the_first_refusal_is_final_on_a_terminal_and_with_require_gateway() {
    let gateway = Gateway::start(&[]);
    let front = Front::start(gateway.address, refusal("404 Not Found"));
    let (_controller, terminal) = terminal();
    let url = front.url();
    let plain = ["register", "--stdio", "cat", "--gateway-url", &url];
    let strict = [&plain[..], &["--require-gateway"]].concat();
    for mut program in [Program::start_on(&plain, terminal.into()), Program::start(&strict)] {
        let end = program.ended();
        assert_eq!(end.code, Some(1), "{:?}", end.stderr);
        assert!(end.complaint()[0].contains("no registration endpoint"), "{:?}", end.stderr);
    }
}

#[test]
fn a_refusal_of_our_gateway_is_marked_and_final_at_the_start() {
    let gateway = Gateway::start(&["--auth-token", "right"]);
    let front = Front::start(gateway.address, None);
    let mut edge = Edge::start(&front.url(), "s", &[], &[]);
    let end = edge.program.ended();
    assert_eq!(end.code, Some(1), "{:?}", end.stderr);
    assert!(end.complaint()[0].contains("requires a token (401)"), "{:?}", end.stderr);
    let upgrade =
        "GET /mcp/register HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.write_all(upgrade.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("\r\nMcpport-Refusal: unauthorized\r\n"));
}

#[test]
fn refusals_of_a_proxy_keep_the_suspended_link() {
    let gateway = Gateway::start(&[]);
    let front = Front::start(gateway.address, None);
    let edge = Edge::start(&front.url(), "s", &[], &[]);
    edge.program.wait_for("registered: ");
    let mut client = gateway.client();
    let id = client.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    for status in REFUSALS {
        let before = front.refusals();
        front.answer(refusal(status));
        eventually("it is refused", || front.refusals() > before);
    }
    front.answer(None);
    gateway.program.wait_for("server 's' resumed from");
    client.call("s_release", r#"{"key":"k"}"#);
    assert!(!client.answer(&id).contains("\"error\""));
    let log = edge.program.log();
    assert!(!log.contains("resume window expired"), "{log}");
    assert!(delays(&log).iter().all(|delay| *delay <= 30.0), "{log}");
}

#[test]
fn a_server_that_is_slower_than_the_gateway_waits_is_registered_later() {
    let gateway = Gateway::start(&["--timeout-run-tool", "1s"]);
    let gate = directory("gate").join("open");
    let server = ["--session", "--gate", gate.to_str().unwrap()];
    let edge = gateway_edge(&gateway, &server);
    edge.program.wait_for("initialize timed out after 1 s");
    std::fs::write(&gate, "").unwrap();
    edge.program.wait_for("registered: ");
    assert_eq!(edge.count("\"initialize\""), 1, "the server keeps running");
}

fn gateway_edge(gateway: &Gateway, server: &[&str]) -> Edge {
    Edge::start(&gateway.url(), "s", server, &[])
}

#[test]
fn a_command_that_is_not_there_yet_is_started_later() {
    let gateway = Gateway::start(&[]);
    let directory = directory("late");
    let (script, log) = (directory.join("server"), directory.join("log"));
    let stdio = format!("'{}'", script.display());
    let url = gateway.url();
    let program =
        Program::start(&["register", "--stdio", &stdio, "--gateway-url", &url, "--server-name", "s"]);
    program.wait_for("command not found");
    program.wait_for("restarting in");
    let text = format!("#!/bin/sh\nexec {}\n", crate::harness::command(&log, &[]));
    // Written in one step: otherwise half a script could be started.
    let draft = directory.join("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::set_permissions(&draft, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&draft, &script).unwrap();
    program.wait_for("registered: ");
}
