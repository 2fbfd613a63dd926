//! A link that is cut again and again under 64 concurrent calls. The server counts its calls, and
//! each call is unique, so a call that is lost, repeated or answered with another's result is
//! noticed.
//!
//! `MCPPORT_CUTS=1000` sets the number of cuts (otherwise 16). Gateway and edge run in this
//! process, with a short backoff; the server is a process, and the connection is a relay.

use std::{
    collections::BTreeSet,
    env,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mcpport::{jsonrpc, limits::Limits};
use serde_json::{Value, json};

use crate::{
    harness::{eventually, fake_server},
    in_process,
    relay::{Relay, Way},
    session::{BOTH, Session, call, value},
    wire::{Client, Wire, ask, host},
};

/// Sessions of each transport, and concurrent calls of each: 64 in total.
const SESSIONS: usize = 4;
const EACH: usize = 8;
/// A waiting call gets the error that its link is lost within this time.
const TOLD: Duration = Duration::from_secs(1);
/// A call that waits for the link is answered within this time; it only keeps the test from waiting
/// forever.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The ways to disturb the connection. Each of them ends the link.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing moves in these directions for a while; then the connection is reset.
    Freeze(&'static [Way]),
    Reset,
    /// The connection is reset, and again while the edge reconnects.
    Twice,
    /// One direction ends.
    Close(Way),
    /// One direction is slow for a while; then the connection is reset.
    Drip(Way),
}

const FAULTS: [Fault; 9] = [
    Fault::Reset,
    Fault::Twice,
    Fault::Freeze(&[Way::Up]),
    Fault::Close(Way::Up),
    Fault::Drip(Way::Down),
    Fault::Freeze(&Way::BOTH),
    Fault::Close(Way::Down),
    Fault::Freeze(&[Way::Down]),
    Fault::Drip(Way::Up),
];

/// Results of the calls of all clients.
#[derive(Default)]
struct Board {
    last: AtomicU64,
    waiting: Mutex<BTreeSet<u64>>,
    answered: AtomicU64,
    /// The error said that the link is lost.
    failed: AtomicU64,
    /// The error said that the server is not connected.
    absent: AtomicU64,
    wrong: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Board {
    /// Starts a new call, for a worker that was not told to stop: its number and the message.
    fn begin(&self) -> Option<(u64, String)> {
        if self.over.load(Ordering::SeqCst) {
            return None;
        }
        let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        self.waiting.lock().unwrap().insert(number);
        Some((number, call(number, "s_count", json!({"text": text(number), "ms": number * 7 % 31}))))
    }

    /// The response to a call.
    fn end(&self, message: &Value) {
        let number = message["id"].as_u64().unwrap_or_default();
        let known = self.waiting.lock().unwrap().remove(&number);
        let right = format!("{} 1", text(number));
        let said = message["error"]["message"].as_str().unwrap_or_default();
        match message["error"]["code"].as_i64() {
            _ if !known => self.complain(format!("nobody waits for {message}")),
            None if message["result"]["content"][0]["text"] == *right => {
                self.answered.fetch_add(1, Ordering::SeqCst);
            }
            None => self.complain(format!("call {number} is answered with {message}")),
            Some(jsonrpc::INTERNAL_ERROR) if said.contains("disconnected") => {
                self.failed.fetch_add(1, Ordering::SeqCst);
            }
            Some(jsonrpc::INVALID_PARAMS) => {
                self.absent.fetch_add(1, Ordering::SeqCst);
                // The link is back soon, and sooner without constant requests.
                thread::sleep(Duration::from_millis(20));
            }
            Some(_) => self.complain(format!("call {number} failed: {message}")),
        }
    }

    fn complain(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    #[track_caller]
    fn check(&self) {
        let wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(
            wrong.is_empty(),
            "{} are wrong, among them {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }

    /// Waits until none of these calls is pending.
    #[track_caller]
    fn until_done(&self, calls: &BTreeSet<u64>) {
        eventually("all calls that waited at the cut have ended", || {
            self.waiting.lock().unwrap().is_disjoint(calls)
        });
    }

    /// Waits for some more correct results: the link is back.
    #[track_caller]
    fn until_answered(&self, more: u64) {
        let wanted = self.answered() + more;
        eventually("calls are answered again", || {
            self.check();
            self.answered() >= wanted
        });
    }
}

/// Workers end with the test, also if it fails.
struct Whistle<'a>(&'a Board);

impl Drop for Whistle<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// The unique text of a call.
fn text(number: u64) -> String {
    format!("call-{number}")
}

/// One call after another on a session that others use as well.
fn post(board: &Board, session: &Session) {
    let lines = session.lines();
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain([BOTH]).collect();
    let mut wire = Wire::connect(session.address);
    while let Some((number, message)) = board.begin() {
        let answer = ask(&mut wire, "POST", &session.path, &lines, &message);
        assert_eq!(answer.status, 200, "call {number}: {answer:?}");
        board.end(&value(&answer.body));
        if answer.field("connection").is_some_and(|word| word.eq_ignore_ascii_case("close")) {
            wire = Wire::connect(session.address);
        }
    }
}

/// This many concurrent calls over one event stream.
fn stream(board: &Board, mut client: Client, address: std::net::SocketAddr) {
    let mut posts = Wire::connect(address);
    let own = host(address);
    let mut open = 0;
    loop {
        while open < EACH
            && let Some((number, message)) = board.begin()
        {
            let answer = ask(&mut posts, "POST", &client.endpoint, &[&own], &message);
            assert_eq!(answer.status, 202, "call {number}: {answer:?}");
            if answer.field("connection").is_some_and(|word| word.eq_ignore_ascii_case("close")) {
                posts = Wire::connect(address);
            }
            open += 1;
        }
        if open == 0 {
            return;
        }
        let message = value(&client.message());
        // The lists change with each cut that is noticed.
        if message.get("id").is_some() {
            board.end(&message);
            open -= 1;
        }
    }
}

/// A gateway, a relay, and an edge behind it that reconnects soon.
struct World {
    gateway: in_process::Gateway,
    relay: Relay,
    _edge: in_process::Edge,
}

impl World {
    #[track_caller]
    fn new(flags: &[&str]) -> Self {
        let gateway = in_process::Gateway::start(flags, |_| {});
        let relay = Relay::to(gateway.address);
        let server = format!("'{}' --tool count --tool tally", fake_server().display());
        let edge = in_process::Edge::start(&relay.url(), "s", &server, &[], soon);
        Client::ready(gateway.address, &[]).tools_until(|tools| tools.iter().any(|tool| tool == "s_count"));
        Self { gateway, relay, _edge: edge }
    }

    /// Ends the link in this way.
    fn inflict(&self, fault: Fault, time: Duration) {
        match fault {
            Fault::Freeze(ways) => {
                ways.iter().for_each(|way| self.relay.freeze(*way));
                thread::sleep(time);
            }
            Fault::Drip(way) => {
                self.relay.drip(way, Duration::from_millis(1));
                thread::sleep(time);
            }
            Fault::Close(way) => return self.relay.close(way),
            Fault::Reset => {}
            Fault::Twice => {
                let taken = self.relay.taken();
                self.relay.cut();
                eventually("the edge comes back", || self.relay.taken() > taken);
                thread::sleep(time / 8);
            }
        }
        self.relay.cut();
        self.relay.restore();
    }
}

/// So that a cut costs milliseconds.
fn soon(limits: &mut Limits) {
    limits.link.backoff_base = Duration::from_millis(2);
    limits.link.backoff_cap = Duration::from_millis(20);
    limits.link.backoff_refused = Duration::from_millis(20);
}

/// The cost of the cuts.
#[derive(Default)]
struct Figures {
    told: Vec<Duration>,
    back: Vec<Duration>,
}

impl Figures {
    fn print(&mut self, what: &str, board: &Board, all: Duration) {
        let percentile = |times: &mut Vec<Duration>, part: usize| {
            times.sort_unstable();
            times
                .get((times.len() * part / 100).min(times.len().saturating_sub(1)))
                .map_or(0, Duration::as_millis)
        };
        let [failed, absent] = [&board.failed, &board.absent].map(|count| count.load(Ordering::SeqCst));
        println!(
            "{what}: {} cuts in {:.1} s; {} calls answered, {failed} told that the link is gone, {absent} that there is \
             no server; waiting calls ended p50 {} ms, max {} ms after the cut; calls answered again p50 {} ms, max {} ms",
            self.told.len(),
            all.as_secs_f64(),
            board.answered(),
            percentile(&mut self.told, 50),
            percentile(&mut self.told, 100),
            percentile(&mut self.back, 50),
            percentile(&mut self.back, 100),
        );
    }
}

/// Runs the calls and the cuts. Every call that waits at a cut has ended within `bound`.
fn cut(world: &World, bound: Duration) -> (Board, Figures) {
    let cuts: usize = env::var("MCPPORT_CUTS").map_or(16, |number| number.parse().expect("a number"));
    let (board, address) = (Board::default(), world.gateway.address);
    let sessions: Vec<Session> = (0..SESSIONS).map(|_| Session::open(address, "/mcp")).collect();
    let mut figures = Figures::default();
    thread::scope(|scope| {
        let _whistle = Whistle(&board);
        for session in &sessions {
            (0..EACH).for_each(|_| drop(scope.spawn(|| post(&board, session))));
            scope.spawn(|| stream(&board, Client::ready(address, &[]), address));
        }
        board.until_answered(64);
        for number in 0..cuts {
            let taken = world.relay.taken();
            world.inflict(FAULTS[number % FAULTS.len()], Duration::from_millis(number as u64 * 13 % 41));
            let (at, waiting) = (Instant::now(), board.waiting.lock().unwrap().clone());
            board.until_done(&waiting);
            figures.told.push(at.elapsed());
            eventually("the edge comes back", || world.relay.taken() > taken);
            board.until_answered(32);
            figures.back.push(at.elapsed());
            let fault = FAULTS[number % FAULTS.len()];
            assert!(figures.told[number] < bound, "cut {number} ({fault:?}): {:?}", figures.told[number]);
            // Not always at the same point of the traffic.
            thread::sleep(Duration::from_millis(number as u64 * 7 % 19));
        }
    });
    (board, figures)
}

/// Checks that nothing is wrong, and that the server got no call twice. Returns the number of its
/// calls.
#[track_caller]
fn judge(world: &World, board: &Board) -> u64 {
    board.check();
    assert!(board.waiting.lock().unwrap().is_empty(), "a call is lost");
    let [failed, absent] = [&board.failed, &board.absent].map(|count| count.load(Ordering::SeqCst));
    assert_eq!(board.last.load(Ordering::SeqCst), board.answered() + failed + absent);
    let tally = Client::ready(world.gateway.address, &[]).call_text("s_tally", "{}");
    let (got, repeated) = tally.split_once(' ').unwrap();
    assert_eq!(repeated, "0", "calls were made more than once");
    got.parse().unwrap()
}

#[test]
fn resume_delivers_each_call_once() {
    let begun = Instant::now();
    let world = World::new(&[]);
    let (board, mut figures) = cut(&world, TIMEOUT);
    figures.print("window of 30 s", &board, begun.elapsed());
    let got = judge(&world, &board);
    let [failed, absent] = [&board.failed, &board.absent].map(|count| count.load(Ordering::SeqCst));
    assert_eq!([failed, absent], [0, 0], "calls that failed, calls that found no server");
    assert_eq!(got, board.answered(), "calls received and calls answered");
}

#[test]
fn without_resume_a_cut_fails_pending_calls_only() {
    let begun = Instant::now();
    let world = World::new(&["--resume-window", "0"]);
    let (board, mut figures) = cut(&world, TOLD);
    figures.print("no window", &board, begun.elapsed());
    let got = judge(&world, &board);
    let failed = board.failed.load(Ordering::SeqCst);
    assert!(failed > 0, "no call waited at any cut");
    assert!((board.answered()..=board.answered() + failed).contains(&got), "{got} calls arrived");
}
