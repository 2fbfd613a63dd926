//! What hostile peers cost: memory of the real program, and the latency of a well-behaved client
//! during the attack and before it, in the same run. Small by default; `MCPPORT_FIGURES=1` uses the
//! published sizes.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::{
    calls, full_size, p99,
    raw::{PING, Raw, TEXT, frame},
};
use crate::{
    certs::{available, shared},
    harness::Gateway,
    secure::{dial, file},
    session::{BOTH, Session, call},
    wire::{Client, host, tcp, text},
};

/// The measured figures.
struct Row {
    name: String,
    peers: usize,
    /// Memory in KiB: before, and at its peak.
    memory: (u64, u64),
    /// 99th percentile of the latency of the well-behaved client.
    waits: (Duration, Duration),
}

impl Row {
    fn print(&self) {
        let (before, peak) = self.memory;
        let (calm, meanwhile) = self.waits;
        println!(
            "| {:<42} | {:>6} | {before:>7} | {peak:>7} | {:>7} | {:>8.2} | {:>8.2} | {:>5.1} |",
            self.name,
            self.peers,
            peak.saturating_sub(before),
            calm.as_secs_f64() * 1e3,
            meanwhile.as_secs_f64() * 1e3,
            meanwhile.as_secs_f64() / calm.as_secs_f64(),
        );
    }

    /// Bounds that hold on a busy machine too; the exact values are for reading.
    #[track_caller]
    fn check(&self, max_kib: u64) {
        self.print();
        let (before, peak) = self.memory;
        assert!(peak - before.min(peak) <= max_kib, "{}: {before} KiB, then {peak} KiB", self.name);
        let (calm, meanwhile) = self.waits;
        assert!(meanwhile <= calm * 2 + Duration::from_secs(1), "{}: {calm:?}, {meanwhile:?}", self.name);
    }
}

/// Returns a field of `/proc/PID/status`, in KiB.
pub fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap()
}

/// Measures a gateway and its well-behaved client before and during an attack. The attack reports
/// when it is running, and holds its resources until it is told to stop.
fn row(
    name: &str,
    peers: usize,
    gateway: &Gateway,
    good: &dyn Fn(usize) -> Vec<Duration>,
    attack: impl FnOnce(&mpsc::Sender<()>, &AtomicBool) + Send,
) -> Row {
    let count = if full_size() { 500 } else { 100 };
    let pid = gateway.program.pid();
    good(10);
    let calm = p99(good(count));
    let before = memory(pid, "VmRSS:");
    // Resets the peak.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    let (ready, under_way) = mpsc::channel();
    let stop = AtomicBool::new(false);
    let meanwhile = thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let (ready, stop) = (ready, &stop);
            attack(&ready, stop);
        });
        let begun = under_way.recv_timeout(crate::TIMEOUT);
        let meanwhile = begun.is_ok().then(|| p99(good(count)));
        stop.store(true, Ordering::Relaxed);
        attacker.join().unwrap();
        meanwhile.expect("the attack begins")
    });
    let peak = memory(pid, "VmHWM:");
    Row { name: name.into(), peers, memory: (before, peak), waits: (calm, meanwhile) }
}

fn wait_for(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// A tenth, unless the figures are to be published.
fn sized(full: usize) -> usize {
    if full_size() { full } else { full / 10 }
}

fn header() {
    println!(
        "\n| {:<42} | {:>6} | {:>7} | {:>7} | {:>7} | {:>8} | {:>8} | {:>5} |",
        "hostile peers", "peers", "KiB", "peak", "more", "p99 ms", "then ms", "times"
    );
}

/// All in one test, one after the other, because they measure.
#[test]
fn what_hostile_peers_cost() {
    allow_sockets();
    header();
    slow_readers();
    silent_over_tls();
    slow_heads();
    unread_pings();
    endless_lines();
    loud_server();
    deaf_server();
}

/// This process needs two thousand sockets.
fn allow_sockets() {
    let limits = getrlimit(Resource::Nofile);
    let wanted = limits.maximum.map_or(4096, |max| max.min(4096));
    if limits.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limits }).unwrap();
    }
}

/// Event streams that are never read, with 10 MB for each of them.
fn slow_readers() {
    let gateway = Gateway::start(&[]);
    let (_edge, _good) = (gateway.edge("s"), gateway.edge("good"));
    let good = Session::open(gateway.address, "/mcp");
    let peers = sized(100);
    let row = row(
        "event streams that are not read",
        peers,
        &gateway,
        &|count| calls(&good, "good_echo", count),
        |ready, stop| {
            let clients = (0..peers).map(|_| {
                let mut client = Client::open(gateway.address, "/servers/s/sse", &[]);
                client.initialize();
                client
            });
            let _held: Vec<Client> = clients.collect();
            let teller = Session::open(gateway.address, "/servers/s/mcp");
            ready.send(()).unwrap();
            let padding = "x".repeat(50_000);
            let mut told = 0;
            while !stop.load(Ordering::Relaxed) || told < 200 {
                let notice = json!({"method": "notifications/odd", "params": {"padding": padding}});
                teller.call_text("notify", notice);
                told += 1;
            }
        },
    );
    // At most one MiB for each, including its connection.
    row.check(100 * 1024);
}

fn silent_over_tls() {
    if !available() {
        return println!("| no openssl, so no certificate: nothing about TLS |");
    }
    let (key, certificate) = (file(shared(), "server.key"), file(shared(), "server.crt"));
    let gateway = Gateway::start(&["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate]);
    let peers = sized(500);
    let handshakes = |count| {
        let one = || {
            let begun = Instant::now();
            let mut wire = dial(gateway.address, shared(), None);
            wire.send(text("GET", "/health", &[&host(gateway.address)], ""));
            assert_eq!(wire.answer().status, 200);
            begun.elapsed()
        };
        (0..count).map(|_| one()).collect()
    };
    let row = row("TLS peers that say nothing", peers, &gateway, &handshakes, |ready, stop| {
        let _silent: Vec<TcpStream> = (0..peers).map(|_| tcp(gateway.address)).collect();
        ready.send(()).unwrap();
        wait_for(stop);
    });
    row.check(32 * 1024);
}

fn slow_heads() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("good");
    let good = Session::open(gateway.address, "/mcp");
    let peers = sized(1000);
    let row =
        row("heads that drip", peers, &gateway, &|count| calls(&good, "good_echo", count), |ready, stop| {
            let mut drips: Vec<TcpStream> = (0..peers).map(|_| tcp(gateway.address)).collect();
            let mut drip = |bytes: &[u8]| {
                for stream in &mut drips {
                    // It may have been closed by now.
                    let _ = stream.write(bytes);
                }
            };
            drip(b"GET / HTTP/1.1\r\nX: ");
            ready.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                drip(b"x");
                thread::sleep(Duration::from_millis(100));
            }
        });
    row.check(32 * 1024);
}

fn unread_pings() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("good");
    let good = Session::open(gateway.address, "/mcp");
    let pings = sized(100_000);
    let row = row(
        "pings of links that do not read",
        pings,
        &gateway,
        &|count| calls(&good, "good_echo", count),
        |ready, stop| {
            let many = frame(PING, &[b'?'; 100]).repeat(1000);
            let mut sent = 0;
            ready.send(()).unwrap();
            while sent < pings || !stop.load(Ordering::Relaxed) {
                // Each link is closed after its hundred; then the next one connects.
                let mut raw = Raw::upgraded(gateway.address);
                while raw.stream.write_all(&many).is_ok() {
                    sent += 1000;
                }
                sent += 1;
            }
        },
    );
    row.check(16 * 1024);
}

fn endless_lines() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("good");
    let good = Session::open(gateway.address, "/mcp");
    let peers = sized(50).max(10);
    let row = row(
        "lines without end",
        peers,
        &gateway,
        &|count| calls(&good, "good_echo", count),
        |ready, stop| {
            ready.send(()).unwrap();
            thread::scope(|scope| {
                for _ in 0..peers {
                    scope.spawn(|| {
                        let line = vec![b'A'; 1 << 20];
                        loop {
                            let mut stream = tcp(gateway.address);
                            let _ = stream.write_all(&line);
                            if stop.load(Ordering::Relaxed) {
                                return;
                            }
                            thread::sleep(Duration::from_millis(50));
                        }
                    });
                }
            });
        },
    );
    row.check(16 * 1024);
}

/// Bulkheads: a server that sends without end.
fn loud_server() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("good");
    let good = Session::open(gateway.address, "/mcp");
    let row =
        row("a server that floods", 1, &gateway, &|count| calls(&good, "good_echo", count), |ready, stop| {
            let mut raw = Raw::registered(gateway.address, "loud");
            let log =
                br#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}"#;
            let many = frame(TEXT, log).repeat(500);
            ready.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                raw.send(&many);
            }
        });
    row.check(16 * 1024);
}

/// Bulkheads: a server that reads nothing, and a client that keeps sending requests to it.
fn deaf_server() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("good");
    let good = Session::open(gateway.address, "/mcp");
    let row = row(
        "a server that does not read",
        1,
        &gateway,
        &|count| calls(&good, "good_echo", count),
        |ready, stop| {
            let _raw = Raw::registered(gateway.address, "deaf");
            let session = Session::open(gateway.address, "/servers/deaf/mcp");
            let text = "x".repeat(1 << 18);
            let mut waiting = Vec::new();
            ready.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let id = waiting.len() as i64;
                if id < 60 {
                    waiting.push(session.send("POST", &[BOTH], &call(id, "echo", json!({"text": text}))));
                } else {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        },
    );
    // What waits for the link is bounded by its queue, and the client's own messages by its calls.
    row.check(64 * 1024);
}
