//! A seeded simulation in virtual time: clients, the gateway's real hub, links, the real edges and
//! their servers, without sockets, clocks or threads. The seed decides delays, losses, duplicates, cuts,
//! partitions, restarts of the gateway, edges and servers, cancellations, the end of each session, and
//! what another thread does between two entries into the hub. The tables of the hub are checked after
//! each step. Some worlds are gentle: links are cut as often as in others, but no program restarts, and
//! no call may fail because of a lost link. In some worlds, the gateway and the edges use none of our
//! extensions.
//!
//! `MCPPORT_SEEDS=10000` runs this many seeds (otherwise 2 000); `MCPPORT_SEED=7` runs that one and
//! prints its events.
//!
//! `gateway` and `entry` are the transports around the hub, in place of queues and sockets; `client`
//! checks what clients receive. `edge` and `server` drive the state, link session, queues and readers of
//! the edge, and `processes` its instances of isolated sessions, in place of sockets, processes and
//! timers; `watch` checks what the edges do.

mod child;
mod client;
mod edge;
mod entry;
mod gateway;
mod line;
mod names;
mod peers;
mod processes;
mod server;
mod watch;

use std::{
    collections::BTreeMap,
    env, thread,
    time::{Duration, Instant},
};

use mcpport::{
    limits::{ChildLimits, Limits, LinkLimits, SessionLimits},
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::{CloseReason, LinkEnd},
        first_frame::FirstFrame,
        handshake::Status,
        link_timers::{LinkTimers, Observed, TimerAction},
    },
};

use self::{
    edge::{EdgeBox, Ends},
    gateway::Gateway,
    line::Timers,
    processes::ProcessEvent,
};

/// A random number generator with a seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn number(&mut self) -> u32 {
        self.next() as u32
    }

    /// Returns a number below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Returns true with this probability in percent.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

/// Data in transit on a connection.
#[derive(Debug)]
pub enum Frame {
    Text(String),
    Ping,
    Pong,
    /// A close frame.
    Farewell(CloseReason),
    /// The end without a close frame.
    End,
}

#[derive(Debug)]
enum Event {
    /// A client performs an action.
    Act(usize),
    /// A frame arrives at the edge.
    Down(usize, Frame),
    /// A frame arrives at the gateway.
    Up(usize, Frame),
    /// The child with this number writes a line.
    Line(usize, u64, String),
    /// The child with this number reads its stdin.
    Read(usize, u64),
    /// Something happens to the process of an isolated session.
    Process(usize, usize, ProcessEvent),
    /// A child ends.
    Crash(usize),
    /// The edge notices that the child with this number has ended.
    Exit(usize, u64),
    /// The successor of the child with this number starts.
    Start(usize, u64),
    /// An edge connects, unless its attempt with this number was replaced.
    Dial(usize, u32),
    /// The attempt of an edge with this number fails.
    Unreachable(usize, u32),
    /// A fault of an edge, its connection or its program.
    Fault(usize, Fault),
    /// The gateway is killed.
    Kill,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The connection is reset: both ends notice, or only the edge, or neither.
    Reset { edge: bool, gateway: bool },
    /// The connection ends for the edge only; its sent frames still arrive.
    Leave,
    /// Frames in one direction are lost silently.
    Deaf(Way),
    /// Frames in these directions are delayed for a while.
    Partition(&'static [Way]),
    /// The program at the edge is killed and restarted.
    Restart,
    /// The program at the edge is stopped and restarted.
    Stop,
}

/// A direction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    Up,
    Down,
}

impl Way {
    pub fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// Faults that also happen in gentle worlds.
const FAULTS: [Fault; 9] = [
    Fault::Leave,
    Fault::Reset { edge: true, gateway: true },
    Fault::Reset { edge: true, gateway: false },
    Fault::Reset { edge: false, gateway: false },
    Fault::Deaf(Way::Up),
    Fault::Deaf(Way::Down),
    Fault::Partition(&[Way::Up, Way::Down]),
    Fault::Partition(&[Way::Up]),
    Fault::Partition(&[Way::Down]),
];

/// Maximum frame size in bytes at each end.
const MESSAGE_BYTES: usize = 4500;

/// Padding that makes a message larger than that.
fn padding() -> String {
    "x".repeat(MESSAGE_BYTES)
}

/// One end of a connection.
struct End {
    up: bool,
    timers: Timers,
    /// Arrival time of the last frame towards this end: frames stay in order.
    last: Instant,
    /// Frames sent to it are lost.
    lost: bool,
}

/// A connection of an edge.
pub struct Wire {
    place: usize,
    /// The state of the connection at the gateway.
    pub talk: Option<usize>,
    /// The receiving ends of both directions.
    ends: [End; 2],
}

/// The network: everything but the programs and the clients.
pub struct Net {
    pub now: Instant,
    pub random: Random,
    pub limits: Limits,
    start: Instant,
    agenda: BTreeMap<(Instant, u64), Event>,
    number: u64,
    pub wires: Vec<Wire>,
    /// The connections that are up at an end.
    live: Vec<usize>,
    /// End of the present delay, by edge and direction.
    held: Vec<[Instant; 2]>,
    /// Neither the gateway nor the edges use our extensions.
    pub original: bool,
    loud: bool,
}

impl Net {
    fn plan(&mut self, after: Duration, event: Event) {
        self.number += 1;
        self.agenda.insert((self.now + after, self.number), event);
    }

    pub fn say(&self, what: impl FnOnce() -> String) {
        if self.loud {
            println!("{:>8} ms  {}", (self.now - self.start).as_millis(), what());
        }
    }

    /// Returns when an edge can be reached in both directions.
    fn held_until(&self, place: usize) -> Instant {
        self.held[place][0].max(self.held[place][1])
    }

    /// Opens a connection from an edge.
    fn connect(&mut self, place: usize) -> usize {
        let (now, limits) = (self.now, &self.limits.link);
        let end = |max| {
            let timers = Timers::First(FirstFrame::new(now, max, limits));
            End { up: true, timers, last: now, lost: false }
        };
        let ends = [end(limits.register_bytes), end(limits.message_bytes)];
        self.wires.push(Wire { place, talk: None, ends });
        self.live.push(self.wires.len() - 1);
        self.wires.len() - 1
    }

    /// Sends a frame in this direction.
    pub fn send(&mut self, wire: usize, way: Way, frame: Frame) {
        let end = &self.wires[wire].ends[way as usize];
        // A gateway that refuses a registration has not said what it accepts.
        if end.up || !end.lost {
            self.check_size(&frame);
        }
        if let Some(after) = self.travel(wire, way) {
            let event = match way {
                Way::Up => Event::Up(wire, frame),
                Way::Down => Event::Down(wire, frame),
            };
            self.plan(after, event);
        }
    }

    /// The timers of the end that receives in this direction, once its first frame has come.
    pub fn timers(&mut self, wire: usize, way: Way) -> &mut LinkTimers {
        match &mut self.wires[wire].ends[way as usize].timers {
            Timers::Open(timers) => timers,
            Timers::First(_) => panic!("connection {wire} carries messages before its first frame"),
        }
    }

    /// Asserts that the other end accepts the size of a frame, which would end the link otherwise.
    fn check_size(&self, frame: &Frame) {
        if let Frame::Text(text) = frame {
            assert!(text.len() <= self.limits.link.message_bytes, "a frame of {} bytes", text.len());
        }
    }

    fn travel(&mut self, wire: usize, way: Way) -> Option<Duration> {
        let delay =
            if self.random.chance(5) { self.random.millis(0, 3000) } else { self.random.millis(0, 80) };
        let (now, wire) = (self.now, &mut self.wires[wire]);
        let (from, end) = (now.max(self.held[wire.place][way as usize]), &mut wire.ends[way as usize]);
        if end.lost {
            return None;
        }
        end.last = end.last.max(from + delay);
        Some(end.last - now)
    }

    /// The gateway's end is gone. The edge gets no close frame.
    pub fn hang_up(&mut self, wire: usize) {
        if std::mem::replace(&mut self.wires[wire].ends[Way::Up as usize].up, false) {
            self.send(wire, Way::Down, Frame::End);
        }
    }

    /// The gateway closes a connection, with the reason.
    pub fn close_with_frame(&mut self, wire: usize) {
        if std::mem::replace(&mut self.wires[wire].ends[Way::Up as usize].up, false) {
            self.send(wire, Way::Down, Frame::Farewell(CloseReason::new(1001, "the gateway closes it")));
        }
    }
}

struct World {
    net: Net,
    gateway: Gateway,
    boxes: Vec<EdgeBox>,
    gentle: bool,
    /// An edge gives each session its own process.
    isolates: bool,
}

/// Returns the limits of a world.
fn limits(random: &mut Random, gentle: bool) -> Limits {
    let window = Duration::from_secs([0, 5, 30][random.below(3)]);
    let link = LinkLimits {
        message_bytes: MESSAGE_BYTES,
        ping_every: Duration::from_secs(4),
        dead_after: Duration::from_secs(12),
        in_flight: 3 + random.below(6),
        backoff_cap: Duration::from_secs(4),
        resume_window: if gentle { Duration::from_secs(3600) } else { window },
        resume_messages: 2 + random.below(8),
        ack_every: 1 + random.below(4) as u64,
        queue_messages: if gentle { 256 } else { 2 + random.below(12) },
        ..LinkLimits::default()
    };
    let session =
        SessionLimits { in_flight: 2 + random.below(4), subscriptions: 3, ..SessionLimits::default() };
    let child = ChildLimits {
        restart_base: Duration::from_millis(800),
        restart_cap: Duration::from_secs(3),
        restart_reset: Duration::from_secs(5),
        ..ChildLimits::default()
    };
    let queue_messages = if gentle { child.queue_messages } else { 2 + random.below(4) };
    let child = ChildLimits { queue_messages, ..child };
    Limits { link, session, child, ..Limits::default() }
}

impl World {
    fn new(seed: u64, loud: bool) -> Self {
        let (mut random, start, gentle) = (Random(seed), Instant::now(), seed.is_multiple_of(3));
        let limits = limits(&mut random, gentle);
        let (clients, servers) = (1 + random.below(5), 1 + random.below(4));
        let (agenda, wires, live) = Default::default();
        let held = vec![[start; 2]; servers];
        let original = !gentle && random.chance(12);
        let mut net =
            Net { now: start, random, limits, start, agenda, number: 0, wires, live, held, original, loud };
        for place in 0..servers {
            for _ in 0..net.random.below(6) {
                let (at, fault) = (net.random.millis(500, 30_000), FAULTS[net.random.below(FAULTS.len())]);
                let fault = match net.random.below(100) {
                    0..15 if !gentle => Fault::Restart,
                    15..45 if !gentle => Fault::Stop,
                    _ => fault,
                };
                net.plan(at, Event::Fault(place, fault));
            }
            for _ in 0..net.random.below(if gentle { 1 } else { 4 }) {
                let at = net.random.millis(100, 30_000);
                net.plan(at, Event::Crash(place));
            }
        }
        if !gentle && net.random.chance(30) {
            let at = net.random.millis(3000, 20_000);
            net.plan(at, Event::Kill);
        }
        for place in 0..clients {
            let at = net.random.millis(500, 4000);
            net.plan(at, Event::Act(place));
        }
        // Just enough for each client: a principal has half of them. One that begins a new session may
        // wait until its earlier process has stopped.
        let most = clients.next_multiple_of(2) as u32;
        let sessions = |net: &mut Net, place| {
            let isolates = !child::has_more(place) && net.random.chance(40);
            isolates.then(|| most + net.random.below(2) as u32)
        };
        let sessions: Vec<_> = (0..servers).map(|place| sessions(&mut net, place)).collect();
        let isolates = sessions.iter().any(Option::is_some);
        let gateway = Gateway::new(&mut net, clients, servers, (gentle, isolates));
        let boxes = sessions.into_iter().enumerate().map(|(place, sessions)| {
            let is_slow = !gentle && net.random.chance(60);
            EdgeBox::new(&mut net, place, is_slow, sessions, gentle)
        });
        let boxes = boxes.collect();
        Self { net, gateway, boxes, gentle, isolates }
    }

    /// Runs until every client has all its responses, then ends everything. Returns counts of the
    /// events.
    fn run(mut self) -> (u64, Vec<String>) {
        while !self.gateway.is_done() {
            assert!(
                self.net.now < self.net.start + Duration::from_secs(600),
                "the world does not come to rest"
            );
            self.step();
            self.timers();
            self.edges_end();
            self.check();
        }
        let mut history = self.gateway.histories();
        let failed = |line: &str| {
            line.contains("\"code\":-32603,") && line.contains("disconnected") && !line.contains("timed out")
        };
        let unlisted = |line: &str| UNLISTED.iter().any(|end| line.contains(end));
        let lost = |line: &str| failed(line) && !(self.isolates && unlisted(line));
        let failed = history.iter().find_map(|history| history.lines().find(|line| lost(line)));
        assert!(!self.gentle || failed.is_none(), "{failed:?} is lost although nothing but lines was");
        for edge_box in &self.boxes {
            history.push(format!("{RELISTED}\n").repeat(edge_box.watch.relisted));
            history.push(format!("{PROCESS}\n").repeat(edge_box.processes.started()));
        }
        self.gateway.end(&mut self.net);
        self.check();
        self.gateway.check_empty(&self.net);
        (self.net.number, history)
    }

    fn check(&mut self) {
        self.gateway.check(&self.net);
        for edge_box in &mut self.boxes {
            edge_box.check(&self.net);
            let both =
                edge_box.counted().and_then(|(line, token)| Some((line, self.gateway.counted(token)?)));
            if let Some((near, far)) = both {
                near.check_against(far.books());
            }
        }
    }

    fn step(&mut self) {
        let now = self.net.now;
        let wires = self.net.live.iter().filter_map(|wire| {
            let due = self.deadline(*wire)?;
            assert!(due > now, "a deadline of connection {wire} is past");
            Some(due)
        });
        let boxes = self.boxes.iter().filter_map(|edge_box| edge_box.deadline(&self.net));
        let wake = wires.chain(boxes).chain(self.gateway.deadline(&self.net)).min();
        let Some(next) = self.net.agenda.first_entry() else {
            self.net.now = wake.expect("somebody waits, so something has a deadline");
            return;
        };
        let at = next.key().0;
        if let Some(wake) = wake.filter(|wake| *wake < at) {
            self.net.now = wake;
            return;
        }
        let event = next.remove();
        self.net.now = at;
        self.net.say(|| format!("{event:?}"));
        self.happen(event);
    }

    fn happen(&mut self, event: Event) {
        let net = &mut self.net;
        match event {
            Event::Act(client) => {
                if let Some(after) = self.gateway.act(net, client) {
                    net.plan(after, Event::Act(client));
                }
            }
            Event::Up(wire, frame) => self.at_gateway(wire, frame),
            Event::Down(wire, frame) => self.at_edge(wire, frame),
            Event::Line(place, birth, line) => self.boxes[place].wrote(net, birth, line),
            Event::Read(place, birth) => self.boxes[place].reads(net, birth),
            Event::Process(place, number, event) => self.boxes[place].process(net, number, event),
            Event::Crash(place) => self.boxes[place].crash(net),
            Event::Exit(place, birth) => self.boxes[place].exited(net, birth),
            Event::Start(place, birth) => self.boxes[place].start(net, birth),
            Event::Dial(place, number) => {
                let there = net.now >= self.gateway.there;
                self.boxes[place].dial(net, number, there);
            }
            Event::Unreachable(place, number) => self.boxes[place].unreachable(net, number),
            Event::Fault(place, fault) => self.fault(place, fault),
            Event::Kill => self.gateway.restart(net),
        }
    }

    /// What the timers of an open connection depend on, at the end that receives in this direction. A
    /// connection whose edge is still to answer a ping carries no line.
    fn observed(&self, wire: usize, way: Way) -> Observed {
        let Wire { talk, place, .. } = self.net.wires[wire];
        let nothing = Observed { unacknowledged_bytes: 0, has_unflushed: false };
        match way {
            Way::Up => talk.map_or(nothing, |talk| self.gateway.line(talk).observed()),
            Way::Down => self.boxes[place].observed().expect("an open connection carries frames"),
        }
    }

    /// Returns the timers of a connection at both ends: heartbeat, and before that the first frame.
    fn deadline(&self, wire: usize) -> Option<Instant> {
        let limits = &self.net.limits.link;
        let due = |way: Way| match &self.net.wires[wire].ends[way as usize] {
            End { up: false, .. } => None,
            End { timers: Timers::First(first), .. } => Some(first.deadline()),
            End { timers: Timers::Open(timers), .. } => {
                Some(timers.deadline(self.observed(wire, way), limits))
            }
        };
        due(Way::Up).into_iter().chain(due(Way::Down)).min()
    }

    /// Runs the due timers.
    fn timers(&mut self) {
        let wires = &self.net.wires;
        self.net.live.retain(|wire| wires[*wire].ends.iter().any(|end| end.up));
        for wire in self.net.live.clone() {
            self.timer(wire, Way::Up);
            self.timer(wire, Way::Down);
        }
        self.gateway.tick(&mut self.net);
        for edge_box in &mut self.boxes {
            edge_box.tick(&mut self.net);
        }
    }

    /// What is due at the end of a connection that receives in this direction.
    fn timer(&mut self, wire: usize, way: Way) {
        let now = self.net.now;
        if !self.net.wires[wire].ends[way as usize].up {
            return;
        }
        let observed = match &self.net.wires[wire].ends[way as usize].timers {
            Timers::First(_) => None,
            Timers::Open(_) => Some(self.observed(wire, way)),
        };
        let limits = &self.net.limits.link;
        let action = match &mut self.net.wires[wire].ends[way as usize].timers {
            Timers::First(first) => match first.tick(now) {
                Ok(()) => Ok(TimerAction::Nothing),
                Err(why) => Err(LinkEnd::ByUs(why)),
            },
            Timers::Open(timers) => timers.tick(now, observed.expect("just observed"), limits),
        };
        match (action, way) {
            (Ok(TimerAction::Nothing), _) => {}
            (Ok(TimerAction::Ping), way) => self.net.send(wire, way.back(), Frame::Ping),
            (Err(end), Way::Up) => self.gateway_down(wire, end.is_accident(), &end.to_string()),
            (Err(end), Way::Down) => self.edge_down(wire, end),
        }
    }

    fn at_gateway(&mut self, wire: usize, frame: Frame) {
        let (now, end) = (self.net.now, &mut self.net.wires[wire].ends[Way::Up as usize]);
        if end.lost || !end.up {
            return;
        }
        match frame {
            Frame::Text(text) => {
                let is_first = matches!(end.timers, Timers::First(_));
                end.timers.on_text(now, text.len());
                if is_first && !self.gentle && self.net.random.chance(6) {
                    return self.refuse(wire);
                }
                self.gateway.frame(&mut self.net, wire, &text);
            }
            Frame::Ping | Frame::Pong => {
                end.timers.on_control(now, &self.net.limits.link);
                if matches!(frame, Frame::Ping) {
                    self.net.send(wire, Way::Down, Frame::Pong);
                } else {
                    self.gateway.pong(&mut self.net, wire);
                }
            }
            Frame::Farewell(why) => self.gateway_down(wire, false, &why.reason),
            Frame::End => self.gateway_down(wire, true, "lost"),
        }
    }

    fn at_edge(&mut self, wire: usize, frame: Frame) {
        let (now, place) = (self.net.now, self.net.wires[wire].place);
        let end = &mut self.net.wires[wire].ends[Way::Down as usize];
        if end.lost || !end.up {
            return;
        }
        match frame {
            Frame::Text(text) => {
                end.timers.on_text(now, text.len());
                self.boxes[place].frame(&mut self.net, wire, &text);
            }
            Frame::Ping | Frame::Pong => {
                end.timers.on_control(now, &self.net.limits.link);
                if matches!(frame, Frame::Ping) {
                    self.net.send(wire, Way::Up, Frame::Pong);
                }
            }
            Frame::Farewell(why) => self.edge_down(wire, LinkEnd::ByPeer(why)),
            Frame::End => self.edge_down(wire, LinkEnd::Lost("it ended".into())),
        }
    }

    /// The gateway refuses a registration, for any of its reasons.
    fn refuse(&mut self, wire: usize) {
        let codes = [CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN];
        let code = codes[self.net.random.below(codes.len())];
        if self.net.random.chance(50) {
            self.net.send(wire, Way::Down, Frame::Text(Status::error("refused")));
        }
        let end = &mut self.net.wires[wire].ends[Way::Up as usize];
        (end.up, end.lost) = (false, true);
        self.net.send(wire, Way::Down, Frame::Farewell(CloseReason::new(code, "refused")));
    }

    /// A connection has ended for the gateway. `accident`: without a close frame.
    fn gateway_down(&mut self, wire: usize, accident: bool, why: &str) {
        match accident {
            true => self.net.hang_up(wire),
            false => self.net.close_with_frame(wire),
        }
        self.gateway.wire_down(&mut self.net, wire, accident, why);
    }

    /// A connection has ended for its edge.
    fn edge_down(&mut self, wire: usize, end: LinkEnd) {
        if !std::mem::replace(&mut self.net.wires[wire].ends[Way::Down as usize].up, false) {
            return;
        }
        let edge_box = &mut self.boxes[self.net.wires[wire].place];
        assert_eq!(edge_box.wire(), Some(wire), "an edge has one connection at a time");
        let frame = match &end {
            LinkEnd::ByUs(why) | LinkEnd::ByPeer(why) if !edge_box.leaves_silently() => {
                Frame::Farewell(why.clone())
            }
            _ => Frame::End,
        };
        self.net.send(wire, Way::Up, frame);
        edge_box.wire_down(&mut self.net, end);
    }

    /// Ends what edges have to end.
    fn edges_end(&mut self) {
        for place in 0..self.boxes.len() {
            while let Some(ends) = self.boxes[place].ends.take() {
                match ends {
                    Ends::Close(wire, why) => self.edge_down(wire, LinkEnd::ByUs(why)),
                    Ends::Program => self.restart(place),
                }
            }
        }
    }

    /// The program of an edge ends at once, and is started again.
    fn restart(&mut self, place: usize) {
        if let Some(wire) = self.boxes[place].wire() {
            self.net.wires[wire].ends[Way::Down as usize].up = false;
            self.net.send(wire, Way::Up, Frame::End);
        }
        self.boxes[place].restart(&mut self.net);
    }

    fn fault(&mut self, place: usize, fault: Fault) {
        let wire = self.boxes[place].wire();
        self.net.say(|| format!("{fault:?} of box {place}, connection {wire:?}"));
        if self.net.random.chance(30) {
            // Faults often come in pairs: the second may hit an edge that is reconnecting.
            let (after, next) = (self.net.random.millis(0, 400), self.net.random.below(2 * FAULTS.len()));
            let next = FAULTS.get(next).copied().unwrap_or(Fault::Leave);
            self.net.plan(after, Event::Fault(place, next));
        }
        match fault {
            Fault::Partition(ways) => {
                let until = self.net.now + self.net.random.millis(500, 20_000);
                for way in ways {
                    let held = &mut self.net.held[place][*way as usize];
                    *held = until.max(*held);
                }
            }
            Fault::Leave => {
                wire.into_iter().for_each(|wire| self.edge_down(wire, LinkEnd::Lost("it ended".into())));
            }
            Fault::Deaf(way) => {
                wire.into_iter().for_each(|wire| self.net.wires[wire].ends[way as usize].lost = true);
            }
            Fault::Reset { edge, gateway } => {
                let Some(wire) = wire else { return };
                // Frames in transit are lost.
                self.net.wires[wire].ends.iter_mut().for_each(|end| end.lost = true);
                if edge {
                    self.edge_down(wire, LinkEnd::Lost("reset".into()));
                }
                if gateway && self.net.wires[wire].ends[Way::Up as usize].up {
                    self.gateway_down(wire, true, "reset");
                }
            }
            Fault::Restart => self.restart(place),
            Fault::Stop => self.boxes[place].stop(&self.net),
        }
    }
}

/// Prints the seed if a check fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "seed {0} failed; alone: MCPPORT_SEED={0} cargo test --test it simulation -- --nocapture",
                self.0
            );
        }
    }
}

fn one(seed: u64, loud: bool) -> (u64, Vec<String>) {
    let _named = Named(seed);
    World::new(seed, loud).run()
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_call_is_answered_once_and_to_its_caller() {
    if let Some(seed) = number("MCPPORT_SEED") {
        one(seed, true);
        return;
    }
    let seeds = number("MCPPORT_SEEDS").unwrap_or(2000);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let work = |first: u64| {
        let mut seen = [0; SIGHTS.len()];
        for seed in (first..seeds).step_by(threads as usize) {
            let history = one(seed, false).1.concat();
            seen.iter_mut()
                .zip(SIGHTS)
                .for_each(|(count, sight)| *count += history.matches(sight).count() as u64);
        }
        seen
    };
    let seen = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|first| scope.spawn(move || work(first))).collect();
        running.into_iter().map(|thread| thread.join().expect("a seed failed")).collect::<Vec<_>>()
    });
    for (place, sight) in SIGHTS.iter().enumerate() {
        let count: u64 = seen.iter().map(|seen| seen[place]).sum();
        println!("{count:>8}  {sight}");
        let least = if *sight == NO_TASK { seeds / 2000 } else { seeds / 10 + 1 };
        assert!(count >= least, "the world is too quiet: {sight} came {count} times in {seeds} seeds");
    }
}

/// Part of the error for a response that the gateway would not accept.
const TOO_LARGE: &str = "the gateway accepts at most";

/// Part of the gateway's error for a task that belongs to another principal. It is rare.
const NO_TASK: &str = "\"task not found\"";

/// How a call of an isolated session may fail in a gentle world. It may be made before the server is
/// listed, when the gateway does not wait for a lost link, and the edge may not know yet that it is
/// registered.
const UNLISTED: [&str; 3] =
    ["disconnected\"", "disconnected: taken", "it registered again over another link"];

/// A line for each new child whose tools the gateway listed because it was told to.
const RELISTED: &str = "a new child is listed";

/// A line for each process of an isolated session.
const PROCESS: &str = "a process of a session is started";

/// Parts of messages that clients must receive, and other events, which must happen often enough
/// for the checks to be meaningful.
const SIGHTS: [&str; 20] = [
    "\"result\":{\"nonce\"",
    "\"code\":7,",
    "\"code\":-32000,",
    "\"code\":-32001,",
    "\"code\":-31002,",
    "\"code\":-32603,",
    "\"code\":-32600,",
    TOO_LARGE,
    "the server does not read its input",
    "the edge is stopping",
    "unknown tool",
    "notifications/progress",
    "list_changed",
    "resources/updated",
    "notifications/message",
    NO_TASK,
    "the session ended",
    RELISTED,
    PROCESS,
    "it crashed",
];

#[test]
fn the_same_seed_gives_the_same_world() {
    for seed in 0..20 {
        assert_eq!(one(seed, false), one(seed, false), "seed {seed}");
    }
}
