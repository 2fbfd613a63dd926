//! Connections that go silent, connections that are only idle, and peers that do not read. The
//! programs run in this process, with short timeouts; `reconnect` tests the same with real
//! processes and real timeouts.

use std::{
    thread,
    time::{Duration, Instant},
};

use mcpport::limits::Limits;
use serde_json::Value;

use crate::{
    harness::{eventually, fake_server},
    in_process,
    relay::{Relay, Way},
    session::value,
    wire::Client,
};

/// Time after which a silent peer is dead, here. On a busy machine a live one may need some of it.
const DEAD: Duration = Duration::from_millis(800);
/// Everybody gets an error within this time.
const TOLD: Duration = Duration::from_secs(1);

/// The heartbeat with short times, in the proportions of the default.
fn quick(limits: &mut Limits) {
    limits.link.ping_every = DEAD / 3;
    limits.link.dead_after = DEAD;
    limits.link.backoff_base = Duration::from_millis(20);
    limits.link.backoff_cap = Duration::from_millis(100);
}

fn server() -> String {
    format!("'{}'", fake_server().display())
}

fn has(tools: &[String], server: &str) -> bool {
    tools.contains(&format!("{server}_echo"))
}

#[track_caller]
fn error(answer: &str) -> String {
    value(answer)["error"]["message"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Freezes the connection in these directions, with running calls.
#[track_caller]
fn freeze(ways: &[Way]) {
    let gateway = in_process::Gateway::start(&["--resume-window", "0"], quick);
    let relay = Relay::to(gateway.address);
    let _edge = in_process::Edge::start(&relay.url(), "s", &server(), &[], quick);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| has(tools, "s"));
    let held: Vec<String> =
        (0..8).map(|key| client.begin_call("s_hold", &format!("{{\"key\":\"{key}\"}}"))).collect();
    client.call("s_echo", "{}");
    let begun = Instant::now();
    ways.iter().for_each(|way| relay.freeze(*way));
    client.rest();
    client.notification("notifications/tools/list_changed");
    let detected = begun.elapsed();
    for id in &held {
        let why = error(&client.answer(id));
        assert!(why.contains("server 's' disconnected"), "{why}");
    }
    let told = begun.elapsed() - detected;
    println!("frozen {ways:?}: seen after {detected:?} (bound {DEAD:?}), all calls told {told:?} later");
    // An end that receives nothing tells the other one, which may notice only then.
    assert!(detected < DEAD + TOLD && told < TOLD, "{detected:?}, {told:?}");
    assert!(!has(&client.tools(), "s"));
    relay.restore();
    client.tools_until(|tools| has(tools, "s"));
    assert_eq!(client.call_text("s_echo", r#"{"text":"back"}"#), "back");
    assert!(relay.taken() > 1, "the edge reconnected over a new connection");
}

#[test]
fn a_frozen_connection_is_detected() {
    freeze(&Way::BOTH);
}

#[test]
fn the_gateway_detects_a_silent_edge() {
    freeze(&[Way::Up]);
}

#[test]
fn the_edge_detects_a_silent_gateway() {
    freeze(&[Way::Down]);
}

#[test]
fn an_idle_link_stays_up() {
    let gateway = in_process::Gateway::start(&[], quick);
    let relay = Relay::to(gateway.address);
    let _edge = in_process::Edge::start(&relay.url(), "s", &server(), &[], quick);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| has(tools, "s"));
    // The response to a call arrives after the notification of the list, which may arrive after the
    // list itself.
    client.call_text("s_echo", r#"{"text":"here"}"#);
    client.rest();
    let before = Way::BOTH.map(|way| relay.passed(way));
    // The test is about idle links: nothing but the heartbeat happens meanwhile.
    thread::sleep(DEAD * 10);
    let after = Way::BOTH.map(|way| relay.passed(way));
    assert!(after[0] > before[0] && after[1] > before[1], "pings and answers: {before:?}, {after:?}");
    assert_eq!((relay.taken(), relay.open()), (1, 1), "the link was not replaced");
    assert_eq!(client.call_text("s_echo", r#"{"text":"still here"}"#), "still here");
    assert_eq!(client.rest(), [""; 0]);
}

/// Times of this many calls.
fn times(client: &mut Client, tool: &str, count: usize) -> Vec<Duration> {
    let call = |_| {
        let begun = Instant::now();
        assert_eq!(client.call_text(tool, r#"{"text":"x"}"#), "x");
        begun.elapsed()
    };
    let mut times: Vec<Duration> = (0..count).map(call).collect();
    times.sort_unstable();
    times
}

fn shown(times: &[Duration]) -> String {
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}

#[test]
fn an_edge_that_does_not_read_slows_no_other() {
    const QUEUE: usize = 1 << 20;
    let stall = Duration::from_secs(4);
    let gateway = in_process::Gateway::start(&["--resume-window", "0"], |limits| {
        (limits.link.queue_bytes, limits.link.write_stall) = (QUEUE, stall);
    });
    let relay = Relay::narrow(gateway.address, 4096);
    let _slow = in_process::Edge::start(&relay.url(), "slow", &server(), &[], quick_return);
    let direct = format!("ws://{}/mcp/register", gateway.address);
    let _good = in_process::Edge::start(&direct, "good", &server(), &[], |_| {});
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| has(tools, "slow") && has(tools, "good"));
    let mut good = Client::ready(gateway.address, &[]);
    let before = times(&mut good, "good_echo", 200);

    relay.freeze(Way::Down);
    let passed = relay.passed(Way::Down);
    let text = format!("{{\"text\":\"{}\"}}", "x".repeat(QUEUE / 8));
    let mut open: Vec<String> = (0..48).map(|_| client.begin_call("slow_echo", &text)).collect();
    let begun = Instant::now();
    let during = times(&mut good, "good_echo", 200);
    println!("calls to another server: before {}; beside a full link {}", shown(&before), shown(&during));

    let mut errors: Vec<(String, Duration)> = Vec::new();
    while let Some(id) = open.pop() {
        let answer = client.answer(&id);
        errors.push((error(&answer), begun.elapsed()));
    }
    assert_eq!(relay.passed(Way::Down), passed);
    let (busy, gone): (Vec<_>, Vec<_>) = errors.iter().partition(|(why, _)| why.contains("is congested"));
    assert!(gone.iter().all(|(why, _)| why.contains("does not read")), "{errors:?}");
    // The system buffers a few megabytes of a connection at most; we buffer the queue and the
    // message being written.
    assert!(busy.len() >= 8 && gone.len() >= 8, "{} busy, {} gone", busy.len(), gone.len());
    let last = gone.iter().map(|(_, after)| *after).max().unwrap_or_default();
    println!(
        "{} calls were turned away at once, {} failed after {last:?} (stall {stall:?})",
        busy.len(),
        gone.len()
    );
    assert!(last < stall + stall / 4 + TOLD, "{last:?}");
    relay.restore();
    client.tools_until(|tools| has(tools, "slow"));
    assert_eq!(client.call_text("slow_echo", r#"{"text":"back"}"#), "back");
}

fn quick_return(limits: &mut Limits) {
    limits.link.backoff_base = Duration::from_millis(20);
    limits.link.backoff_cap = Duration::from_millis(100);
}

#[test]
fn an_edge_leaves_a_gateway_that_does_not_read() {
    let stall = Duration::from_secs(4);
    let gateway = in_process::Gateway::start(&[], |_| {});
    let relay = Relay::narrow(gateway.address, 4096);
    let _edge = in_process::Edge::start(&relay.url(), "s", &server(), &[], |limits| {
        quick_return(limits);
        (limits.link.queue_bytes, limits.link.write_stall) = (1 << 20, stall);
    });
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| has(tools, "s"));
    relay.freeze(Way::Up);
    let begun = Instant::now();
    let open: Vec<String> = (0..16).map(|_| client.begin_call("s_big", r#"{"bytes":1000000}"#)).collect();
    eventually("the edge tries another connection", || relay.taken() > 1);
    let left = begun.elapsed();
    println!("an edge whose gateway does not read left it after {left:?} (stall {stall:?})");
    // A quarter of it passes between two checks, and the buffers have to be full first.
    assert!(left < stall + stall / 4 + 2 * TOLD, "{left:?}");
    relay.restore();
    // Responses that were in transit on the old link arrive over the new one, in one burst, and the
    // client has time to read them.
    for id in &open {
        let answer = client.answer(id);
        assert!(answer.contains("xxx"), "{answer}");
    }
    client.tools_until(|tools| has(tools, "s"));
    assert_eq!(client.call_text("s_echo", r#"{"text":"back"}"#), "back");
}

#[test]
fn a_slow_connection_is_kept() {
    let gateway = in_process::Gateway::start(&[], quick);
    let relay = Relay::to(gateway.address);
    let _edge = in_process::Edge::start(&relay.url(), "s", &server(), &[], quick);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| has(tools, "s"));
    Way::BOTH.iter().for_each(|way| relay.drip(*way, Duration::from_millis(2)));
    let answer: Value = value(&client.call("s_echo", r#"{"text":"drop by drop"}"#));
    assert_eq!(answer["result"]["content"][0]["text"], "drop by drop");
    relay.restore();
    eventually("the line is the first one", || relay.open() == 1);
    assert_eq!(relay.taken(), 1);
}
