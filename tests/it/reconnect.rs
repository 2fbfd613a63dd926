//! Real programs that are killed and stopped, and how soon service is restored: a gateway that is
//! killed under many edges, many edges that connect at once, an edge that is suspended.
//!
//! `MCPPORT_EDGES=50` is the documented number of edges (otherwise 4, with a shorter pause);
//! `MCPPORT_SLOW=1` adds the tests that wait for real timeouts.

use std::{
    env,
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use async_tungstenite::tungstenite::{self, Message, WebSocket};
use rustix::process::Signal;

use crate::{
    harness::{Edge, Gateway, eventually},
    wire::{Client, member, tcp},
};

/// Every tool is back within this time after its gateway has restarted.
const BACK: Duration = Duration::from_secs(35);
/// A peer that was silent for this time is dead.
const DEAD: Duration = Duration::from_secs(45);

/// The server of one edge among many.
fn name(number: usize) -> String {
    format!("s{number}")
}

/// Number of those servers that a client sees.
fn seen(tools: &[String]) -> usize {
    tools.iter().filter(|tool| tool.ends_with("_echo")).count()
}

#[test]
fn all_tools_are_back_after_a_gateway_was_killed() {
    let full: Option<usize> = env::var("MCPPORT_EDGES").ok().map(|number| number.parse().expect("a number"));
    let (count, pause) = (full.unwrap_or(4), Duration::from_secs(if full.is_some() { 5 } else { 1 }));
    let mut gateway = Gateway::start(&[]);
    let edges: Vec<Edge> =
        (0..count).map(|number| Edge::start(&gateway.url(), &name(number), &[], &[])).collect();
    gateway.client().tools_until(|tools| seen(tools) == count);
    gateway.program.kill();
    // The test measures their recovery after a time without a gateway.
    thread::sleep(pause);
    let gateway = gateway.again(&[]);
    let begun = Instant::now();
    let mut client = gateway.client();
    client.tools_until(|tools| seen(tools) == count);
    let back = begun.elapsed();
    println!("{count} edges, gateway gone for {pause:?}: every tool back {back:?} after it was there again");
    assert!(back < BACK, "{back:?}");
    for (number, edge) in edges.iter().enumerate() {
        let tool = format!("{}_pid", name(number));
        assert_eq!(client.call_text(&tool, "{}"), edge.server_pid().to_string(), "the same server as before");
    }
}

/// Handmade edges, any number at a time.
struct Herd(Vec<WebSocket<TcpStream>>);

impl Herd {
    /// All of them connect and register.
    #[track_caller]
    fn come(gateway: SocketAddr, count: usize) -> Self {
        let url = format!("ws://{gateway}/mcp/register");
        let come = |number| {
            let mut socket = tungstenite::client(&url, tcp(gateway)).unwrap().0;
            say(
                &mut socket,
                &format!(
                    r#"{{"jsonrpc":"2.0","id":"id-{number}","method":"register","params":{{"name":"{}","capabilities":{{"mcpport":{{}}}}}}}}"#,
                    name(number)
                ),
            );
            socket
        };
        Self((0..count).map(come).collect())
    }

    /// Each answers requests until it is told that it is registered.
    #[track_caller]
    fn are_taken(&mut self) {
        for socket in &mut self.0 {
            while !take(socket) {}
        }
    }
}

fn say(socket: &mut WebSocket<TcpStream>, text: &str) {
    socket.send(Message::text(text)).unwrap();
}

/// Answers one frame. Returns true if it says that the registration is complete.
#[track_caller]
fn take(socket: &mut WebSocket<TcpStream>) -> bool {
    let Message::Text(frame) = socket.read().unwrap() else { return false };
    let result = match member(&frame, "method").as_deref() {
        Some("\"initialize\"") => {
            r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{}},"serverInfo":{"name":"x","version":"1"}}"#
        }
        Some("\"tools/list\"") => r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#,
        Some(_) => return false,
        None => {
            let status = member(&frame, "status").unwrap();
            assert_ne!(status, "\"error\"", "{frame}");
            return status == "\"registered\"";
        }
    };
    let id = member(&frame, "id").unwrap();
    say(socket, &format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#));
    false
}

#[test]
fn two_hundred_edges_that_come_at_once_are_all_served() {
    const COUNT: usize = 200;
    let gateway = Gateway::start(&[]);
    let begun = Instant::now();
    let mut herd = Herd::come(gateway.address, COUNT);
    let came = begun.elapsed();
    herd.are_taken();
    println!("{COUNT} edges came within {came:?}; the last was registered after {:?}", begun.elapsed());
    assert_eq!(seen(&gateway.client().tools()), COUNT);
    // Again: all of them disconnect and reconnect.
    drop(herd);
    let mut client = gateway.client();
    client.tools_until(|tools| seen(tools) == 0);
    let begun = Instant::now();
    Herd::come(gateway.address, COUNT).are_taken();
    println!("and once more: {:?}", begun.elapsed());
}

#[test]
fn a_stopped_edge_is_detected() {
    if env::var_os("MCPPORT_SLOW").is_none() {
        println!("takes {DEAD:?}: MCPPORT_SLOW=1; the same in small is in `stalls`");
        return;
    }
    let gateway = Gateway::start(&["--timeout-run-tool", "10m", "--resume-window", "0"]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let held = client.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    edge.program.signal(Signal::STOP);
    let begun = Instant::now();
    eventually_slow("the gateway notices", || gateway.program.log().contains("server 's' removed"));
    let detected = begun.elapsed();
    client.notification("notifications/tools/list_changed");
    let answer = client.answer(&held);
    let told = begun.elapsed() - detected;
    assert!(answer.contains("server 's' disconnected"), "{answer}");
    println!("an edge that stands still: noticed after {detected:?}, its call told {told:?} later");
    assert!(detected <= DEAD + Duration::from_secs(1) && told < Duration::from_secs(1));
    assert_eq!(client.tools(), ["list_servers"]);
    edge.program.signal(Signal::CONT);
    edge.program.wait_for("reconnecting in");
    client.tools_until(|tools| seen(tools) == 1);
    assert_eq!(client.call_text("s_echo", r#"{"text":"back"}"#), "back");
}

/// Longer than other tests wait.
#[track_caller]
fn eventually_slow(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < DEAD / 2 && !condition() {
        thread::sleep(Duration::from_millis(20));
    }
    eventually(what, condition);
}

#[test]
fn many_registrations_do_not_cut_off_a_slow_client() {
    // The edges change the list two hundred times; a client that reads slowly must not be
    // disconnected for that.
    let gateway = Gateway::start(&[]);
    let mut client: Client = gateway.client();
    let mut herd = Herd::come(gateway.address, 100);
    herd.are_taken();
    client.tools_until(|tools| seen(tools) == 100);
}
