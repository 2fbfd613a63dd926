//! Many cycles of connect, call and disconnect, with cut connections, edges that come and go, and
//! clients that leave during a call. Afterwards nothing is left: no descriptor, memory, process or
//! table entry.
//!
//! `MCPPORT_SOAK=600` runs for this many seconds (otherwise 3, and no edge is killed, because that
//! takes time); `scripts/soak.sh` does it with release binaries. Cycles run in rounds: between two
//! of them everything is idle, and the resources of the programs are compared.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{Edge, Gateway, Program, eventually},
    relay::{Relay, Way},
    session::{BOTH, call, initialize_request, value},
    wire::{Client, Wire, ask, get, host},
};

/// Concurrent clients.
const CLIENTS: usize = 8;
/// Rounds of a run; the first one warms up.
const ROUNDS: u32 = 6;
/// Minimum number of cycles in a run of ten minutes.
const CYCLES: usize = 10_000;
/// Descriptors that may come and go: a timer, a name lookup.
const DESCRIPTORS: usize = 2;
/// Allowed growth of memory, in KiB.
const DRIFT: i64 = 1024;

/// Counts of one run.
#[derive(Default)]
struct Counts {
    cycles: AtomicUsize,
    cuts: AtomicUsize,
    edges: AtomicUsize,
    rest: AtomicBool,
    /// Some edges are killed, and waited for at the end of each round.
    kills: bool,
}

impl Counts {
    fn add(counter: &AtomicUsize) -> usize {
        counter.fetch_add(1, Ordering::SeqCst)
    }

    fn works(&self) -> bool {
        !self.rest.load(Ordering::SeqCst)
    }
}

/// Ends all activity when dropped, also after a failed check.
struct Rest<'a>(&'a Counts);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        self.0.rest.store(true, Ordering::SeqCst);
    }
}

/// One client of the Streamable HTTP transport, from beginning to end.
fn post(address: SocketAddr, tool: &str, number: usize) {
    let (mut wire, own) = (Wire::connect(address), host(address));
    let begun = ask(&mut wire, "POST", "/mcp", &[&own, BOTH], &initialize_request("2025-11-25"));
    assert_eq!(begun.status, 200, "{begun:?}");
    let id = format!("Mcp-Session-Id: {}", begun.field("mcp-session-id").expect("a session has an id"));
    let lines = [own.as_str(), BOTH, &id, "MCP-Protocol-Version: 2025-11-25"];
    let told = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(ask(&mut wire, "POST", "/mcp", &lines, told).status, 202);
    let text = format!("cycle {number}");
    let answer = ask(&mut wire, "POST", "/mcp", &lines, &call(1, tool, json!({"text": text})));
    check(&answer.body, &text);
    assert_eq!(ask(&mut wire, "DELETE", "/mcp", &lines, "").status, 204);
}

/// One client of the older transport. It may leave during its call.
fn stream(address: SocketAddr, tool: &str, number: usize) {
    let mut client = Client::open(address, "/sse", &[]);
    let (mut posts, own, text) = (Wire::connect(address), host(address), format!("cycle {number}"));
    let mut say = |message: &str| {
        assert_eq!(ask(&mut posts, "POST", &client.endpoint, &[&own], message).status, 202);
    };
    say(&initialize_request("2024-11-05"));
    say(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    say(&call(1, tool, json!({"text": text})));
    if number % 8 > 1 {
        check(&client.find(|message| value(message)["id"] == 1), &text);
    }
}

#[track_caller]
fn check(answer: &str, text: &str) {
    assert_eq!(value(answer)["result"]["content"][0]["text"], text, "{answer}");
}

/// An edge that connects, is used and leaves, gracefully or not.
fn register_and_leave(gateway: &Gateway, number: usize, kills: bool) {
    let name = format!("visitor{number}");
    let mut edge = Edge::start(&gateway.url(), &name, &[], &[]);
    edge.program.wait_for("registered: ");
    post(gateway.address, &format!("{name}_echo"), number);
    if !number.is_multiple_of(4) || !kills {
        assert_eq!(edge.program.stop().code, Some(0));
    } else {
        edge.program.kill();
    }
    eventually("its server ends", || edge.program.offspring().is_empty());
}

/// Disturbs the connection now and then; the link comes back each time.
fn cut(relay: &Relay, counts: &Counts) {
    while counts.works() {
        match Counts::add(&counts.cuts) % 4 {
            0 => relay.cut(),
            1 => relay.close(Way::Up),
            2 => {
                Way::BOTH.iter().for_each(|way| relay.freeze(*way));
                thread::sleep(Duration::from_millis(100));
                relay.cut();
            }
            _ => relay.close(Way::Down),
        }
        relay.restore();
        // There is traffic between two cuts.
        let next = Instant::now() + Duration::from_secs(3);
        eventually("it is time for the next cut", || !counts.works() || Instant::now() > next);
    }
}

/// Runs everything at once, for this time.
fn round(gateway: &Gateway, relay: &Relay, counts: &Counts, time: Duration) {
    counts.rest.store(false, Ordering::SeqCst);
    let address = gateway.address;
    thread::scope(|scope| {
        let _rest = Rest(counts);
        for client in 0..CLIENTS {
            scope.spawn(move || {
                while counts.works() {
                    let number = Counts::add(&counts.cycles);
                    let tool = ["cut_echo", "near_echo"][number / 2 % 2];
                    if client % 2 == 0 { post(address, tool, number) } else { stream(address, tool, number) }
                }
            });
        }
        scope.spawn(|| cut(relay, counts));
        scope.spawn(|| {
            while counts.works() {
                register_and_leave(gateway, Counts::add(&counts.edges), counts.kills);
                // The session of a killed one is kept for a while: many of them would be a peak,
                // and not a leak.
                thread::sleep(Duration::from_millis(150));
            }
        });
        let end = Instant::now() + time;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// Returns the sizes of the gateway's tables, without the connection of this request.
fn tables(address: SocketAddr) -> BTreeMap<String, u64> {
    let answer = get(address, "/status");
    assert_eq!(answer.status, 200, "{answer:?}");
    let mut sizes: BTreeMap<String, u64> =
        serde_json::from_value(value(&answer.body)["tables"].clone()).expect("sizes of tables");
    for own in ["connections", "addresses"] {
        if let Some(size) = sizes.get_mut(own) {
            *size -= 1;
        }
    }
    sizes
}

/// The resources of a process: descriptors, and memory in KiB.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    memory: i64,
}

fn held(program: &Program) -> Held {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().count();
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    Held { descriptors, memory: line.split_whitespace().next().unwrap().parse().unwrap() }
}

/// Waits until everything is idle: only the links of the permanent edges and the bytes of their
/// lists are left.
#[track_caller]
fn rest(gateway: &Gateway, edges: u64, lists: u64) {
    let last = Mutex::new(BTreeMap::new());
    let calm = || {
        let sizes = tables(gateway.address);
        let calm = sizes.iter().all(|(name, size)| match name.as_str() {
            "links" | "servers" | "connections" => *size == edges,
            "addresses" => *size <= 1,
            "bytes" => *size <= lists,
            _ => *size == 0,
        });
        *last.lock().unwrap() = sizes;
        calm
    };
    let begun = Instant::now();
    // A second request might see the connection of the last one, which is about to end.
    let mut rests = calm();
    while begun.elapsed() < crate::harness::TIMEOUT && !rests {
        thread::sleep(Duration::from_millis(20));
        rests = calm();
    }
    assert!(rests, "it does not come to rest (bytes at the start: {lists}): {:?}", last.lock().unwrap());
}

#[test]
fn nothing_is_left_after_many_cycles() {
    let asked: Option<u32> = env::var("MCPPORT_SOAK").ok().map(|text| text.parse().expect("seconds"));
    let seconds = asked.unwrap_or(3);
    // The session of a killed edge ends in this time, and a cut edge is back.
    let mut gateway = Gateway::start(&["--resume-window", "4"]);
    let relay = Relay::to(gateway.address);
    let mut edges = [(relay.url(), "cut"), (gateway.url(), "near")].map(|(url, name)| {
        let edge = Edge::start(&url, name, &[], &[]);
        edge.program.wait_for("registered: ");
        edge
    });
    // The registration is logged after the lists are read; a few frames may not be acknowledged
    // yet.
    let lists = tables(gateway.address)["bytes"];
    let (counts, begun) = (Counts { kills: asked.is_some(), ..Counts::default() }, Instant::now());
    let mut series = Vec::new();
    for number in 0..ROUNDS {
        round(&gateway, &relay, &counts, Duration::from_secs(seconds.into()) / ROUNDS);
        rest(&gateway, 2, lists);
        series.push([&gateway.program, &edges[0].program, &edges[1].program].map(held));
        println!(
            "round {number}, {:.0} s: {}",
            begun.elapsed().as_secs_f64(),
            shown(&series[series.len() - 1])
        );
    }
    let [cycles, cuts, visits] =
        [&counts.cycles, &counts.cuts, &counts.edges].map(|count| count.load(Ordering::SeqCst));
    println!(
        "{cycles} cycles, {cuts} cuts, {visits} edges came and went, in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    compare(&series, asked.is_some());
    for edge in &mut edges {
        assert_eq!(edge.program.stop().code, Some(0));
        assert!(edge.program.offspring().is_empty());
    }
    rest(&gateway, 0, 0);
    println!("tables at the end: {:?}", tables(gateway.address));
    assert_eq!(gateway.program.stop().code, Some(0));
    assert!(cycles >= CYCLES * seconds as usize / 600, "{cycles} cycles in {seconds} s");
}

fn shown(held: &[Held; 3]) -> String {
    let names = ["gateway", "edge behind the relay", "edge beside it"];
    let each = names.iter().zip(held);
    let each =
        each.map(|(name, held)| format!("{name} {} descriptors, {} KiB", held.descriptors, held.memory));
    each.collect::<Vec<_>>().join("; ")
}

/// Compares the end with the state after the first round. `full`: the run was long enough for
/// memory to settle.
fn compare(series: &[[Held; 3]], full: bool) {
    let (first, last) = (series[0], series[series.len() - 1]);
    for place in 0..first.len() {
        let (before, after) = (first[place], last[place]);
        let drift = after.memory - before.memory;
        println!(
            "{}: {} descriptors more, {drift} KiB more",
            ["gateway", "edge", "edge"][place],
            after.descriptors as i64 - before.descriptors as i64
        );
        assert!(after.descriptors.abs_diff(before.descriptors) <= DESCRIPTORS, "{before:?}, then {after:?}");
        assert!(!full || drift < DRIFT, "{before:?}, then {after:?}");
    }
}
