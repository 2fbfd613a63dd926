//! A simulated edge: the real proxy state, backoff and heartbeat, with a child and a program that
//! may both crash.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mcpport::{
    config::Restart,
    edge::{
        backoff::{Backoff, LinkFailure},
        proxy::{ProxyState, ToChild, ToGateway},
        restart::{Ending, Restarts},
    },
    jsonrpc::{Kind, Message},
    secret::Secret,
    tunnel::{
        handshake::{Claim, Registration, ResumeGrant, Status},
        outbound::TextFrame,
        oversize::Oversize,
    },
};

use super::{
    Event, Frame, Net, TOO_LARGE, Way,
    child::{self, Child},
    line::{Line, Queue},
};

/// A suspended registration that may be resumed.
struct Suspended {
    line: Line,
    token: Secret,
    until: Instant,
}

/// The current connection, after the gateway's answer to the registration.
struct Live {
    line: Line,
    grant: Option<ResumeGrant>,
}

pub struct EdgeBox {
    place: usize,
    edge: ProxyState,
    child: Child,
    /// Number of the current child; lines of earlier children are dropped.
    births: u64,
    started: Instant,
    restarts: Restarts,
    /// Maximum frame size in bytes that the gateway accepts.
    accepts: usize,
    /// The current connection.
    wire: Option<usize>,
    live: Option<Live>,
    /// The queue of the current line, or of the suspended one.
    queue: Option<Queue>,
    suspended: Option<Suspended>,
    /// Ids of the gateway's requests on the current line, or the suspended one, that have no
    /// response: `initialize`, and others that are not cancelled either.
    initializes: BTreeSet<String>,
    open: BTreeSet<String>,
    /// The gateway is told that there is a new child, and has not listed its tools.
    announced: bool,
    /// How often the gateway listed the tools of a new child on the line on which it was told.
    pub relisted: usize,
    backoff: Backoff,
    dialed_at: Instant,
    /// Number of the latest planned connection attempt; earlier ones are void.
    dials: u32,
}

impl EdgeBox {
    pub fn new(net: &mut Net, place: usize) -> Self {
        let mut edge_box = Self {
            place,
            edge: ProxyState::default(),
            child: Child::new(place),
            births: 0,
            started: net.now,
            restarts: Restarts::default(),
            accepts: usize::MAX,
            wire: None,
            live: None,
            queue: None,
            suspended: None,
            initializes: BTreeSet::new(),
            open: BTreeSet::new(),
            announced: false,
            relisted: 0,
            backoff: Backoff::default(),
            dialed_at: net.now,
            dials: 0,
        };
        edge_box.plan_dial(net, Duration::ZERO);
        edge_box
    }

    pub fn wire(&self) -> Option<usize> {
        self.wire
    }

    /// Whether there is a suspended registration.
    pub fn keeps(&self) -> bool {
        self.suspended.is_some()
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
            return self.lost(net, after);
        }
        if !held.is_zero() {
            return self.plan_dial(net, held);
        }
        let wire = net.connect(self.place);
        self.wire = Some(wire);
        let claim = self.suspended.as_ref().map(|suspended| Claim {
            token: suspended.token.clone(),
            received: suspended.line.outbound.received().expect("what is kept is counted"),
        });
        let (id, name) = (format!("id-{}", self.place), child::name(self.place));
        let max = net.limits.link.message_bytes;
        net.send(wire, Way::Up, Frame::Text(Registration::frame(&id, &name, max, None, claim.as_ref())));
    }

    /// Plans the next attempt after a failed attempt or a lost connection.
    fn lost(&mut self, net: &mut Net, after: Duration) {
        if self.suspended.take_if(|suspended| suspended.until <= net.now).is_some() {
            self.link_down(net);
        }
        let failure = if self.suspended.is_some() { LinkFailure::Suspended } else { LinkFailure::Lost };
        let (alive, random) = (net.now - self.dialed_at, net.random.number());
        let delay = self.backoff.next(failure, alive, random, &net.limits.link);
        self.plan_dial(net, after + delay);
    }

    /// The connection has ended at this end. `accident`: without a close frame.
    pub fn wire_down(&mut self, net: &mut Net, accident: bool) {
        self.wire = None;
        if let Some(live) = self.live.take() {
            let limits = &net.limits.link;
            match live.grant.filter(|_| accident) {
                Some(ResumeGrant { token, window, .. }) => {
                    let until = net.now + window + limits.resume_grace + limits.dead_after;
                    self.suspended = Some(Suspended { line: live.line, token, until });
                }
                None => self.link_down(net),
            }
        }
        self.lost(net, Duration::ZERO);
    }

    /// Gives up the calls in flight. The child is told about each of them.
    fn link_down(&mut self, net: &mut Net) {
        self.forget_line();
        let open = if self.child.has_ended() { 0 } else { self.child.open() };
        let lines = self.edge.disconnected();
        assert_eq!(lines.len(), open, "not every open request is cancelled, and nothing else");
        lines.iter().for_each(|line| self.hand_down(net, line));
        assert!(self.child.has_ended() || self.child.open() == 0, "another request is cancelled");
    }

    /// The line and all requests on it are gone.
    fn forget_line(&mut self) {
        self.queue = None;
        self.initializes.clear();
        self.open.clear();
        self.announced = false;
    }

    /// Handles a text frame from the gateway.
    pub fn frame(&mut self, net: &mut Net, wire: usize, text: &str) {
        match self.live.take() {
            None => self.answered(net, text),
            Some(mut live) => {
                let (now, limits) = (net.now, net.limits.link.clone());
                let kind = live.line.on_text(now, text, &limits, |text| self.message(net, text));
                self.live = Some(live);
                if kind == TextFrame::Acknowledgement {
                    net.timers(wire, Way::Down).on_acknowledged();
                }
            }
        }
        self.pump(net);
    }

    fn message(&mut self, net: &mut Net, text: &str) {
        self.record(text);
        match self.edge.on_gateway_frame(net.now, text) {
            ToChild::Child(line) => self.hand_down(net, &line),
            ToChild::Gateway(frame) => self.send(frame),
            ToChild::Status(status) => {
                let honest = ["crashed", "down", "timed out"].iter().any(|why| status.message.contains(why));
                assert!(status.status != "error" || honest, "{}", status.message);
            }
            ToChild::Held | ToChild::Drop(_) => {}
        }
    }

    /// Records a request of the gateway, or its cancellation.
    fn record(&mut self, text: &str) {
        let Ok(message) = Message::read(text) else { return };
        let id = message.id().unwrap_or_default().to_owned();
        match (message.kind(), message.method()) {
            (Kind::Request, "initialize") => assert!(self.initializes.insert(id)),
            (Kind::Request, _) => assert!(self.open.insert(id)),
            (Kind::Notification, "notifications/cancelled") => {
                let id = message.param(&["requestId"]).unwrap().expect("our gateway names the request");
                self.open.remove(&text[id]);
            }
            _ => {}
        }
    }

    /// Handles the gateway's first frame: the registration is resumed or new.
    fn answered(&mut self, net: &mut Net, text: &str) {
        let status = Status::read(text).expect("the gateway answers a registration");
        assert_eq!(status.status, "received", "{}", status.message);
        self.accepts = status.message_bytes.expect("our gateway tells it");
        let received = status.resume.as_ref().and_then(|grant| grant.received);
        if let Some(mut suspended) = self.suspended.take() {
            if let Some(received) = received {
                let resumed = suspended.line.outbound.resume(received);
                assert_eq!(resumed, Ok(()), "what the gateway has not, we have");
                self.live = Some(Live { line: suspended.line, grant: status.resume });
                return;
            }
            self.link_down(net);
        }
        assert_eq!(received, None, "there is nothing to go on with");
        let line = Line::new(status.resume.is_some(), &net.limits.link);
        self.queue = Some(line.queue.clone());
        self.live = Some(Live { line, grant: status.resume });
        self.edge.gateway_reads_status_frames();
    }

    /// Sends all frames that may be sent now.
    fn pump(&mut self, net: &mut Net) {
        if let (Some(wire), Some(live)) = (self.wire, &mut self.live) {
            live.line.pump(net, wire, Way::Up);
        }
    }

    pub fn deadline(&self, net: &Net) -> Option<Instant> {
        self.live.as_ref().and_then(|live| live.line.outbound.deadline(&net.limits.link))
    }

    pub fn tick(&mut self, net: &mut Net) {
        if let Some(live) = &mut self.live {
            live.line.outbound.tick(net.now, &net.limits.link);
        }
        self.pump(net);
    }

    /// Returns the line of the current connection, if the gateway has answered on it.
    pub fn line(&self) -> Option<&Line> {
        self.live.as_ref().map(|live| &live.line)
    }

    /// Returns the line of a resumable registration, and its token.
    pub fn counted(&self) -> Option<(&Line, &str)> {
        let live =
            self.live.as_ref().and_then(|live| Some((&live.line, live.grant.as_ref()?.token.expose())));
        live.or_else(|| self.suspended.as_ref().map(|suspended| (&suspended.line, suspended.token.expose())))
    }

    pub fn check(&self, net: &Net) {
        if let Some((line, _)) = self.counted() {
            line.check(&net.limits.link);
        }
        assert!(self.live.is_none() || self.wire.is_some());
        let waits = self.child.has_ended() && !self.open.is_empty();
        assert!(!waits, "the child of box {} is down, and {:?} have no answer", self.place, self.open);
    }

    // ---- the child

    fn hand_down(&mut self, net: &mut Net, line: &str) {
        if line.contains("\"tools/list\"") && std::mem::take(&mut self.announced) {
            self.relisted += 1;
        }
        for (after, line) in self.child.read(line, &mut net.random) {
            net.plan(after, Event::Line(self.place, self.births, line));
        }
    }

    /// Handles a line written by a child.
    pub fn said(&mut self, net: &mut Net, birth: u64, line: &str) {
        if birth != self.births {
            return;
        }
        self.child.wrote(line);
        match self.edge.on_child_line(line) {
            ToGateway::Gateway(frame) | ToGateway::Unmatched(frame) => self.fit(net, frame),
            ToGateway::Ready { lines, frames } => {
                self.check_ready(&frames);
                lines.iter().for_each(|line| self.hand_down(net, line));
                frames.into_iter().for_each(|frame| self.send(frame));
            }
            ToGateway::Refused => panic!("an honest child refuses"),
            ToGateway::Stale | ToGateway::Noise => {}
        }
        self.pump(net);
    }

    /// Checks that the gateway lists the tools of a new child: after the response to `initialize`,
    /// or because it is told that they changed.
    fn check_ready(&mut self, frames: &[String]) {
        if frames.iter().any(|frame| frame.contains(child::INITIALIZED)) {
            return;
        }
        let changed = frames.iter().any(|frame| frame.contains("notifications/tools/list_changed"));
        assert!(changed, "nobody hears of the new child of box {}", self.place);
        if self.queue.is_some() {
            let status = frames.first().and_then(|frame| Status::read(frame));
            assert!(status.is_some_and(|status| status.status == "restarted"), "{frames:?}");
            self.announced = true;
        }
    }

    /// Sends a frame, or replaces one that is too large for the gateway.
    fn fit(&mut self, net: &mut Net, frame: String) {
        if frame.len() <= self.accepts {
            return self.send(frame);
        }
        match Oversize::of(&Message::read(&frame).expect("a message"), TOO_LARGE) {
            Oversize::Response(error) => self.send(error),
            Oversize::Refusal(error) => self.hand_down(net, &error),
            Oversize::Dropped => {}
        }
    }

    /// Queues a frame for the current connection, or for the resumed one.
    fn send(&mut self, frame: String) {
        let message = Message::read(&frame).ok().filter(|message| message.kind() == Kind::Response);
        if let Some(id) = message.as_ref().and_then(Message::id) {
            let asked = self.initializes.remove(id);
            assert!(asked || !frame.contains(child::INITIALIZED), "this line did not ask for {frame}");
            self.open.remove(id);
        }
        if let Some(queue) = &self.queue {
            // Beyond the limits: the real sender waits for space.
            queue.send_unbounded(frame);
        }
    }

    /// Crashes the child; a new one starts after a delay.
    pub fn crash(&mut self, net: &mut Net) {
        if !self.child.end() {
            return;
        }
        let (alive, random) = (net.now - self.started, net.random.number());
        let (policy, limits) = (Restart::OnFailure, &net.limits.child);
        let delay = self.restarts.next(policy, Ending::Failed, alive, random, limits).unwrap();
        self.announced = false;
        for frame in self.edge.child_gone("the server crashed", Some(net.now + delay)) {
            self.send(frame);
        }
        net.plan(delay, Event::Start(self.place, self.births));
        self.pump(net);
    }

    /// Starts the next child, unless the whole program was restarted meanwhile.
    pub fn start(&mut self, net: &mut Net, birth: u64) {
        if birth != self.births {
            return;
        }
        self.births += 1;
        self.child.begin_again();
        self.started = net.now;
        if let Some(line) = self.edge.child_back() {
            self.hand_down(net, &line);
        }
    }

    /// Kills and restarts the program and its child. It loses all state; the connection ends
    /// without a close frame.
    pub fn restart(&mut self, net: &mut Net) {
        self.births += 1;
        self.child.begin_again();
        (self.edge, self.live, self.suspended, self.wire) = (ProxyState::default(), None, None, None);
        self.forget_line();
        (self.backoff, self.restarts, self.started) = (Backoff::default(), Restarts::default(), net.now);
        let after = net.random.millis(100, 4000);
        self.plan_dial(net, after);
    }
}
