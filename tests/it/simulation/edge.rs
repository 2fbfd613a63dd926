//! A simulated edge: the real state, link session and redial, with a server that may crash. Does what
//! `edge::serve` does with sockets, tasks and timers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mcpport::{
    command::CommandLine,
    config::{ClientTls, EraPin, GatewayUrl, RegisterConfig, Restart},
    edge::{
        instances::Instances,
        link::{self, Begun, RunningLink, Suspended},
        redial::{Facts, Next, Outcome, Redial},
        state::EdgeState,
    },
    limits::{self, Limits},
    tunnel::{
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
        handshake::Status,
        link_timers::Observed,
        outbound::TextFrame,
    },
};

use super::{
    Event, Frame, Net, Way, child,
    line::{self, Books},
    processes::{ProcessEvent, Processes},
    server::Server,
    watch::Watch,
};

/// The current connection.
enum EdgeLink {
    None,
    /// The gateway has not answered the registration.
    Registering(usize),
    Running(usize, Box<RunningLink>),
}

/// How a program stops.
#[derive(Clone, Copy)]
enum Stopping {
    No,
    /// It waits for the running calls, until this time.
    Draining(Instant),
    /// It closes the link, until this time.
    Leaving(Instant),
}

/// Something that the edge does to its own connection.
pub enum Ends {
    /// It closes the connection.
    Close(usize, CloseReason),
    /// The program ends, and is started again later.
    Program,
}

pub struct EdgeBox {
    place: usize,
    config: Arc<RegisterConfig>,
    state: Arc<EdgeState>,
    server: Server,
    /// Those of isolated sessions.
    pub processes: Processes,
    link: EdgeLink,
    suspended: Option<Suspended>,
    redial: Redial,
    stopping: Stopping,
    pub ends: Option<Ends>,
    pub watch: Watch,
    /// Something happened since the last check.
    has_changed: bool,
    dialed_at: Instant,
    /// Number of the latest planned connection attempt; earlier ones are void.
    dials: u32,
}

fn config(place: usize, sessions: Option<u32>, limits: &Limits) -> RegisterConfig {
    RegisterConfig {
        command: CommandLine::Shell(String::new()),
        gateway: GatewayUrl { tls: false, host: "gateway".into(), port: 1, target: "/".into() },
        name: child::name(place),
        id: format!("id-{place}"),
        headers: Vec::new(),
        header_file: None,
        tls: ClientTls::default(),
        sessions,
        era: EraPin::Auto,
        restart: Restart::OnFailure,
        require_gateway: false,
        port: 0,
        cors: false,
        health_paths: Vec::new(),
        threads: 1,
        busy_poll: false,
        limits: limits.clone(),
    }
}

/// Creates the state of a program that starts.
fn state(config: &RegisterConfig, processes: &Processes) -> Arc<EdgeState> {
    EdgeState::new(Instances::new(config, processes.start(), Arc::default()), Arc::default())
}

impl EdgeBox {
    /// `sessions`: the number of isolated sessions, if each has its own process. `gentle`: their
    /// processes do not fail.
    pub fn new(net: &mut Net, place: usize, is_slow: bool, sessions: Option<u32>, gentle: bool) -> Self {
        let config = Arc::new(config(place, sessions, &net.limits));
        let processes = Processes::new(place, gentle);
        let mut edge_box = Self {
            place,
            state: state(&config, &processes),
            processes,
            config,
            server: Server::new(net, place, is_slow),
            link: EdgeLink::None,
            suspended: None,
            redial: Redial::default(),
            stopping: Stopping::No,
            ends: None,
            watch: Watch::default(),
            has_changed: true,
            dialed_at: net.now,
            dials: 0,
        };
        edge_box.server.begin_again(net, &edge_box.state);
        edge_box.plan_dial(net, Duration::ZERO);
        edge_box
    }

    // ---- connections

    pub fn wire(&self) -> Option<usize> {
        match self.link {
            EdgeLink::None => None,
            EdgeLink::Registering(wire) | EdgeLink::Running(wire, _) => Some(wire),
        }
    }

    fn plan_dial(&mut self, net: &mut Net, after: Duration) {
        self.dials += 1;
        net.plan(after, Event::Dial(self.place, self.dials));
    }

    /// Attempts to connect. `there`: the gateway is listening.
    pub fn dial(&mut self, net: &mut Net, number: u32, there: bool) {
        if number != self.dials {
            return;
        }
        self.dialed_at = net.now;
        let held = net.held_until(self.place).saturating_duration_since(net.now);
        if !there || held > net.limits.link.connect_time {
            let after = if there { net.limits.link.connect_time } else { Duration::ZERO };
            return net.plan(after, Event::Unreachable(self.place, number));
        }
        if !held.is_zero() {
            return self.plan_dial(net, held);
        }
        let wire = net.connect(self.place);
        self.link = EdgeLink::Registering(wire);
        let registration = link::registration(&self.config, self.suspended.as_ref());
        net.send(wire, Way::Up, Frame::Text(registration));
    }

    /// A connection attempt fails.
    pub fn unreachable(&mut self, net: &mut Net, number: u32) {
        if number == self.dials {
            self.redial(net, Outcome::Lost("cannot connect".into()));
        }
    }

    /// Plans what follows an attempt.
    fn redial(&mut self, net: &mut Net, outcome: Outcome) {
        let facts = Facts {
            was_registered: self.state.was_registered(),
            require_gateway: self.config.require_gateway,
            has_terminal: false,
            suspended_until: self.suspended.as_ref().map(Suspended::until),
        };
        let (alive, random) = (net.now - self.dialed_at, net.random.number());
        match self.redial.after(net.now, outcome, &facts, alive, random, &net.limits.link) {
            Next::Wait { delay, give_up } => {
                if let Some(late) = self.suspended.take_if(|_| give_up) {
                    self.gives_up(net, |_| late.give_up());
                }
                self.plan_dial(net, delay);
            }
            Next::Stop | Next::Fail(_) => self.ends = Some(Ends::Program),
        }
    }

    /// Runs `give_up`, which gives up the session on a link. The child is told about each open
    /// request, as far as its queue has space. A slow one may also have missed earlier cancellations.
    fn gives_up<T>(&mut self, net: &mut Net, give_up: impl FnOnce(&mut Self) -> T) -> T {
        self.server.read(net, &mut self.watch);
        let open = self.server.child.open.len();
        let done = give_up(self);
        self.watch.forget();
        self.processes.settle(net);
        assert_eq!(self.state.running(), 0, "a request is still open");
        assert_eq!(self.processes.wanted(), 0, "a session outlives its link");
        if !self.server.child.has_ended() {
            self.server.read(net, &mut self.watch);
            let missed = open.saturating_sub(net.limits.child.queue_messages);
            let left = self.server.child.open.len();
            assert!(left == missed || self.server.is_slow, "{left} open requests are not cancelled");
            self.server.child.open.clear();
        }
        done
    }

    /// The connection has ended at this end.
    pub fn wire_down(&mut self, net: &mut Net, end: LinkEnd) {
        let outcome = match std::mem::replace(&mut self.link, EdgeLink::None) {
            EdgeLink::None => panic!("box {} has no connection", self.place),
            EdgeLink::Registering(_) => link::failed(end, &self.state, &self.config),
            EdgeLink::Running(_, running) => self.running_down(net, *running, end),
        };
        self.redial(net, outcome);
    }

    fn running_down(&mut self, net: &mut Net, running: RunningLink, end: LinkEnd) -> Outcome {
        if end.is_accident() && self.watch.token().is_some() {
            let (outcome, suspended) = running.end(net.now, end);
            assert!(suspended.is_some(), "the session can be resumed");
            self.suspended = suspended;
            return outcome;
        }
        let now = net.now;
        self.gives_up(net, |_| {
            let (outcome, suspended) = running.end(now, end);
            assert!(suspended.is_none(), "the session cannot be resumed");
            outcome
        })
    }

    /// Whether a close frame would end a session that the gateway may have just resumed.
    pub fn leaves_silently(&self) -> bool {
        self.suspended.is_some() && !self.state.is_leaving()
    }

    // ---- frames

    /// Handles a text frame from the gateway.
    pub fn frame(&mut self, net: &mut Net, wire: usize, text: &str) {
        match &mut self.link {
            EdgeLink::None => panic!("box {} has no connection", self.place),
            EdgeLink::Registering(_) => self.begin(net, wire, text),
            EdgeLink::Running(_, running) => {
                let (outbound, session, watch) =
                    (&mut running.outbound, &mut running.session, &mut self.watch);
                let handle = |text: &str| {
                    watch.asked(text);
                    session.frame(net.now, text)
                };
                let kind = outbound.on_text(net.now, text, &self.config.limits.link, handle);
                match kind.expect("an honest gateway breaks no rule") {
                    TextFrame::Acknowledgement => net.timers(wire, Way::Down).on_acknowledged(),
                    TextFrame::Message if outbound.received().is_some() => self.watch.books.heard(text),
                    TextFrame::Message => {}
                }
            }
        }
        self.settle(net);
    }

    /// Handles the gateway's first frame: the registration is resumed or new.
    fn begin(&mut self, net: &mut Net, wire: usize, text: &str) {
        let answer = Status::read(text).expect("the gateway answers a registration");
        let received = answer.resume.as_ref().and_then(|grant| grant.received);
        let suspended = self.suspended.take();
        assert!(received.is_none() || suspended.is_some(), "there is nothing to resume");
        let is_new = suspended.is_some() && received.is_none();
        let (now, spawn) = (net.now, self.processes.spawn());
        let begin = |edge_box: &mut Self| {
            link::begin(&edge_box.state, &edge_box.config, &spawn, suspended, now, text)
        };
        let begun = if is_new { self.gives_up(net, begin) } else { begin(self) };
        match begun {
            Begun::Running(running) => {
                let counted = answer.resume.as_ref().map(|_| self.watch.books.received());
                assert_eq!(running.outbound.received(), counted, "what the gateway has not, we have");
                self.watch.begins(&answer, running.outbound.unacknowledged());
                self.link = EdgeLink::Running(wire, running);
            }
            Begun::Ended(_, why) => panic!("an honest gateway breaks no rule: {why:?}"),
            Begun::Stopped => self.ends = Some(Ends::Program),
        }
    }

    /// Sends and reads all that can be sent and read now.
    fn settle(&mut self, net: &mut Net) {
        self.has_changed = true;
        loop {
            self.pump(net);
            let forwarded = self.server.forward(&self.state, &mut self.watch);
            if !self.processes.settle(net) && !forwarded {
                break;
            }
        }
        self.server.plan_read(net, &mut self.watch);
    }

    fn pump(&mut self, net: &mut Net) {
        let EdgeLink::Running(wire, running) = &mut self.link else { return };
        let watch = &mut self.watch;
        let Some(why) = line::pump(&mut running.outbound, net, *wire, Way::Up, |frame| watch.said(frame))
        else {
            return;
        };
        self.ends = Some(Ends::Close(*wire, why));
    }

    pub fn deadline(&self, net: &Net) -> Option<Instant> {
        let owed = match &self.link {
            EdgeLink::Running(_, running) => running.outbound.deadline(&net.limits.link),
            EdgeLink::None | EdgeLink::Registering(_) => None,
        };
        let stop = match self.stopping {
            Stopping::No => None,
            Stopping::Draining(until) | Stopping::Leaving(until) => Some(until),
        };
        owed.into_iter().chain(stop).min()
    }

    pub fn tick(&mut self, net: &mut Net) {
        if let EdgeLink::Running(_, running) = &mut self.link
            && running.outbound.deadline(&net.limits.link).is_some_and(|due| due <= net.now)
        {
            running.outbound.tick(net.now, &net.limits.link);
            self.settle(net);
        }
        self.stop_on(net);
    }

    /// Returns what the timers of the current connection depend on, if the gateway has answered.
    pub fn observed(&self) -> Option<Observed> {
        match &self.link {
            EdgeLink::Running(_, running) => Some(line::observed(&running.outbound)),
            EdgeLink::None | EdgeLink::Registering(_) => None,
        }
    }

    /// Returns the frames of a resumable registration, and its token.
    pub fn counted(&self) -> Option<(&Books, &str)> {
        self.watch.token().map(|token| (&self.watch.books, token))
    }

    pub fn check(&mut self, net: &Net) {
        if !std::mem::take(&mut self.has_changed) {
            return;
        }
        self.watch.check(net.limits.link.resume_messages);
        let sessions = self.config.sessions.unwrap_or_default() as usize;
        assert!(self.processes.count() <= sessions, "too many processes of sessions");
        let EdgeLink::Running(_, running) = &self.link else { return };
        if !running.outbound.has_frame() && !self.server.is_delivering() && !self.processes.is_delivering() {
            // Held notifications count as running.
            let holds = self.state.is_initializing(self.state.run());
            let on_channels = self.state.instances().running();
            let running = (!holds).then(|| self.state.running() - on_channels);
            self.watch.check_idle(self.place, running, on_channels);
        }
    }

    // ---- the server

    /// A child writes a line.
    pub fn wrote(&mut self, net: &mut Net, birth: u64, line: String) {
        self.server.wrote(birth, line);
        self.settle(net);
    }

    pub fn reads(&mut self, net: &mut Net, birth: u64) {
        self.server.reads(net, &mut self.watch, birth);
        self.settle(net);
    }

    pub fn crash(&mut self, net: &mut Net) {
        self.server.crash(net);
    }

    pub fn exited(&mut self, net: &mut Net, birth: u64) {
        if self.server.exited(net, &self.state, birth) {
            self.watch.child_is_gone();
            self.settle(net);
        }
    }

    pub fn start(&mut self, net: &mut Net, birth: u64) {
        self.server.start(net, &self.state, birth);
        self.settle(net);
    }

    /// Something happens to the process of a session.
    pub fn process(&mut self, net: &mut Net, number: usize, event: ProcessEvent) {
        self.processes.happens(number, event);
        self.settle(net);
    }

    // ---- the program

    /// The program gets SIGTERM.
    pub fn stop(&mut self, net: &Net) {
        if let Stopping::No = self.stopping {
            self.state.stop();
            self.stopping = Stopping::Draining(net.now + limits::DRAIN_CALLS);
        }
    }

    /// Goes on with a stop.
    fn stop_on(&mut self, net: &mut Net) {
        match self.stopping {
            Stopping::Draining(until) => {
                let is_drained = self.state.is_answered() && self.state.is_delivered();
                if is_drained {
                    self.watch.check_answered();
                } else if net.now < until {
                    return;
                }
                self.stopping = Stopping::Leaving(net.now + limits::CLOSE);
                let why = "the edge is stopping";
                self.state.leave(why);
                match self.link {
                    EdgeLink::None => self.ends = Some(Ends::Program),
                    EdgeLink::Registering(wire) => {
                        self.ends = Some(Ends::Close(wire, CloseReason::new(1001, why)));
                    }
                    // The end of the queue closes it.
                    EdgeLink::Running(..) => self.settle(net),
                }
            }
            Stopping::Leaving(until) if net.now >= until => self.ends = Some(Ends::Program),
            Stopping::No | Stopping::Leaving(_) => {}
        }
    }

    /// The program and its child end at once, and are started again. All state is lost; the
    /// connection ends without a close frame.
    pub fn restart(&mut self, net: &mut Net) {
        self.processes.end();
        self.state = state(&self.config, &self.processes);
        (self.link, self.suspended, self.redial) = (EdgeLink::None, None, Redial::default());
        (self.stopping, self.ends) = (Stopping::No, None);
        self.watch.forget();
        self.server.begin_again(net, &self.state);
        let after = net.random.millis(100, 4000);
        self.plan_dial(net, after);
    }
}
