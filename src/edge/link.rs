//! The edge's session on a link: passes frames from the gateway to the child and the child's lines
//! to the gateway. A session may outlive its link if the gateway supports resuming.
//!
//! `edge::proxy` decides what happens to each frame and line; `tunnel::resume` defines how a
//! session is resumed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use smol::Timer;

use super::{
    backend::{Delivery, LineOutcome, LineSink},
    instances::Instances,
    redial::Outcome,
    uplink::Uplink,
};
use crate::{
    config::RegisterConfig,
    edge::proxy::{ProxyState, ToChild, ToGateway},
    jsonrpc::{self, Kind, Message},
    limits::{self, LOG_WARNINGS},
    log_throttle::LogThrottle,
    net::{
        outbound::{Outbound, Unacknowledged},
        outbox::{self, SendError, Sender},
        ws_link::{self, WebSocket},
    },
    runtime::{shutdown::Shutdown, task_tracker::TaskTracker},
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::{CloseReason, LinkEnd},
        frame::{self, Frame},
        handler::LinkHandler,
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

/// State shared by the tasks of the edge.
pub struct EdgeState {
    tables: Mutex<EdgeTables>,
    /// One guard for each line of the child that waits for space in the queue of the link.
    delivering: TaskTracker,
    instances: Arc<Instances>,
    /// Limits how often warnings about unexpected messages of the server are logged.
    log_throttle: Mutex<LogThrottle>,
}

#[derive(Debug, Default)]
struct EdgeTables {
    proxy: ProxyState,
    /// The stdin queue of the child.
    child: Option<Sender<()>>,
    /// Number of child starts, including the current child.
    generation: u64,
    /// The queue towards the gateway, of the current link or of one that may be resumed.
    link: Option<Uplink>,
    /// Frames sent on that link that the gateway has not acknowledged.
    unacknowledged: Unacknowledged,
    /// The current link is registered.
    registered: bool,
    /// At least one link was registered since the program started.
    was_registered: bool,
    leaving: bool,
}

impl EdgeState {
    /// Creates the state without a child or a link. `instances` are the per-session processes.
    pub fn new(instances: Arc<Instances>) -> Arc<Self> {
        let (tables, delivering, throttle) = (Mutex::default(), TaskTracker::new(), Mutex::default());
        Arc::new(Self { tables, delivering, instances, log_throttle: throttle })
    }

    fn lock(&self) -> MutexGuard<'_, EdgeTables> {
        // Each change is atomic, so a poisoned lock leaves the state consistent.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a warning about the server, at most once a second per `kind`, with the number left out.
    fn warn_throttled(&self, kind: &'static str, what: &str) {
        let mut throttle = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = throttle.due(Instant::now(), kind, "", LOG_WARNINGS) {
            log::warn!("{what}{left_out}");
        }
    }

    /// Whether the gateway has accepted the current registration.
    pub fn is_registered(&self) -> bool {
        self.lock().registered
    }

    /// Whether the gateway has ever accepted a registration of this program.
    pub fn was_registered(&self) -> bool {
        self.lock().was_registered
    }

    /// Whether the child accepts requests.
    pub fn is_served(&self) -> bool {
        self.lock().proxy.is_up()
    }

    /// Whether the child of this generation was restarted and has not answered `initialize` yet.
    pub fn is_initializing(&self, generation: u64) -> bool {
        let shared = self.lock();
        shared.generation == generation && shared.proxy.is_initializing()
    }

    /// Returns the generation of the current child. It changes with every start.
    fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Installs a child that is being started and reads from `input`. Returns its generation.
    pub fn child_up(&self, input: Sender<()>) -> u64 {
        let mut shared = self.lock();
        if let Some(initialize) = shared.proxy.child_back() {
            // The queue is new, so it has space.
            let _ = input.send(initialize);
        }
        shared.child = Some(input);
        shared.generation += 1;
        shared.generation
    }

    /// Handles the exit of the child: sends error responses for its open requests to the gateway.
    /// See [`ProxyState::child_gone`].
    pub fn child_down(&self, why: &str, due: Option<Instant>) {
        let mut shared = self.lock();
        shared.child = None;
        for frame in shared.proxy.child_gone(why, due) {
            // The responses are small, at most one per open request, and must not be lost.
            if let Some(link) = &shared.link {
                let _ = link.queue().send_unbounded(frame);
            }
        }
    }

    /// Applies `read` to the proxy state and sends the resulting lines. Returns the frames to be
    /// delivered.
    fn deliver(&self, generation: u64, read: impl FnOnce(&mut ProxyState) -> ToGateway) -> LineOutcome {
        let (up, link, delivering) = {
            let mut shared = self.lock();
            if shared.generation != generation {
                log::debug!("dropped a line of an earlier process");
                return LineOutcome::Message(Delivery::none());
            }
            let mut up = read(&mut shared.proxy);
            if let (ToGateway::Ready { lines, .. }, Some(child)) = (&mut up, &shared.child) {
                for line in lines.drain(..) {
                    // At most the held frames; sent under the lock, so that no later message
                    // overtakes them.
                    let _ = child.send_unbounded(line);
                }
            }
            // Counts as being delivered before its call stops counting as running.
            (up, shared.link.clone(), self.delivering.track())
        };
        let (first, more) = match up {
            ToGateway::Gateway(frame) => (Some(frame), Vec::new()),
            ToGateway::Unmatched(frame) => {
                self.warn_throttled("stray", "the server sent a response without a matching request");
                (Some(frame), Vec::new())
            }
            ToGateway::Ready { frames, .. } => {
                log::info!("server reinitialized");
                (None, frames)
            }
            ToGateway::Stale => {
                log::debug!("dropped a response for an earlier link");
                (None, Vec::new())
            }
            ToGateway::Refused => return LineOutcome::End("it rejected reinitialization"),
            ToGateway::Noise => return LineOutcome::Noise,
        };
        let Some(link) = link else {
            if first.is_some() || !more.is_empty() {
                log::debug!("dropped a message of the server: no link");
            }
            return LineOutcome::Message(Delivery::none());
        };
        let mut delivery = Delivery::new(link, delivering);
        for frame in first.into_iter().chain(more) {
            if let Err(Some(refusal)) = delivery.add(frame) {
                self.refuse(generation, refusal);
            }
        }
        LineOutcome::Message(delivery)
    }

    /// Answers a request of the child on behalf of the gateway.
    fn refuse(&self, generation: u64, refusal: String) {
        let shared = self.lock();
        if let Some(child) = shared.child.as_ref().filter(|_| shared.generation == generation) {
            // Best effort: dropped if the server does not read its input.
            let _ = child.send(refusal);
        }
    }

    /// Handles a frame from the gateway. Returns `None` if the message was queued for the child. If
    /// the child's queue is full or closed, a request is answered with an error.
    fn on_gateway_frame(&self, now: Instant, frame: &str) -> Option<ToChild> {
        let mut shared = self.lock();
        let (line, child) = match (shared.proxy.on_gateway_frame(now, frame), &shared.child) {
            (ToChild::Child(line), Some(child)) => (line, child),
            (other, _) => return Some(other),
        };
        let begins = |line: &str| Message::read(line).is_ok_and(|message| message.method() == "initialize");
        let (code, why, line) = match child.try_send(line) {
            Ok(()) => return None,
            // The child has exited, and the supervisor is about to notice. The next child gets the
            // `initialize`.
            Err((SendError::Closed, line)) if begins(&line) => {
                return Some(ToChild::Drop("initialize for a child that has exited"));
            }
            Err((SendError::Full | SendError::Memory, line)) => {
                (jsonrpc::BUSY, "the server does not read its input", line)
            }
            Err((SendError::Closed, line)) => (jsonrpc::DOWN, "the server has exited", line),
        };
        self.warn_throttled(why, &format!("rejected a message for the server: {why}"));
        let message = Message::read(&line).ok().filter(|message| message.kind() == Kind::Request)?;
        // The proxy maps the id back to the one that the gateway uses.
        match shared.proxy.on_child_line(&jsonrpc::error(message.id()?, code, why)) {
            ToGateway::Gateway(frame) | ToGateway::Unmatched(frame) => Some(ToChild::Gateway(frame)),
            _ => None,
        }
    }

    /// Refuses new requests from now on, also for the per-session processes.
    pub fn stop(&self) {
        self.lock().proxy.stop();
        self.instances.stop();
    }

    /// Returns the number of unanswered requests.
    pub fn running(&self) -> usize {
        self.lock().proxy.running() + self.instances.running()
    }

    /// Waits until every running call is answered and the responses are queued on the link.
    pub async fn answered(&self) {
        // Check in this order: a response counts as being delivered before its call stops counting
        // as running.
        while self.running() > 0 || !self.delivering.is_empty() || self.instances.is_delivering() {
            Timer::after(limits::DRAIN_POLL).await;
        }
    }

    /// Waits until the gateway has received everything queued on the link, if it acknowledges
    /// frames.
    pub async fn delivered(&self) {
        while !self.is_delivered() {
            Timer::after(limits::DRAIN_POLL).await;
        }
    }

    /// Whether the gateway has received everything queued on the link. True without a link.
    pub fn is_delivered(&self) -> bool {
        let shared = self.lock();
        // Check in this order: a frame counts as unacknowledged before it leaves the queue.
        shared.link.as_ref().is_none_or(|link| link.queue().is_settled())
            && shared.unacknowledged.count() == 0
    }

    /// Closes the current link with code 1001 and prevents further ones.
    pub fn leave(&self, reason: &str) {
        let mut shared = self.lock();
        shared.leaving = true;
        if let Some(link) = &shared.link {
            link.queue().end(CloseReason::new(1001, reason));
        }
    }

    /// Installs a new link. Returns false if the program is stopping.
    fn link_up(&self, link: Uplink, unacknowledged: Unacknowledged) -> bool {
        let mut shared = self.lock();
        shared.link = Some(link);
        shared.unacknowledged = unacknowledged;
        !shared.leaving
    }

    /// Marks the link as lost but resumable. Only the health check changes; the rest goes on.
    fn suspend(&self) {
        let mut shared = self.lock();
        shared.registered = false;
    }

    /// Handles the final loss of a link: cancels the open requests at the child and closes all
    /// sessions.
    fn link_down(&self) {
        self.instances.close_all();
        let mut shared = self.lock();
        shared.link = None;
        shared.unacknowledged = Unacknowledged::default();
        shared.registered = false;
        for line in shared.proxy.disconnected() {
            // Best effort: a child that does not read its input misses the cancellations.
            let _ = shared.child.as_ref().map(|child| child.send(line));
        }
    }
}

/// Takes the messages of one run of the shared server.
pub struct SharedSink {
    state: Arc<EdgeState>,
    generation: u64,
}

impl SharedSink {
    /// Creates the sink for the run with this generation, see [`EdgeState::child_up`].
    pub fn new(state: Arc<EdgeState>, generation: u64) -> Self {
        Self { state, generation }
    }
}

impl LineSink for SharedSink {
    fn message(&self, text: &str) -> LineOutcome {
        self.state.deliver(self.generation, |proxy| proxy.on_child_line(text))
    }

    fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome {
        self.state.deliver(self.generation, |proxy| proxy.unusable(id, why))
    }
}

/// A session whose link is lost and which the gateway may resume.
pub struct Suspended<'a> {
    session: LinkSession<'a>,
    outbound: Outbound,
    grant: ResumeGrant,
    /// When the gateway stops waiting for it.
    until: Instant,
}

impl Suspended<'_> {
    /// Returns the time at which the gateway stops waiting; the session must be given up then.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Gives the session up: its open requests are cancelled.
    pub fn give_up(self, state: &EdgeState) {
        log::warn!("resume window expired: cancelled the open requests");
        state.link_down();
    }

    fn claim(&self) -> Claim {
        Claim { token: self.grant.token.clone(), received: self.outbound.received().unwrap_or_default() }
    }
}

/// Registers over a new connection and carries frames until the link ends.
///
/// `suspended` is the suspended session: the caller's from an earlier link, and afterwards this
/// one's if its link was lost and can be resumed. `left` is triggered when the program stops.
pub async fn run<'a>(
    mut socket: WebSocket,
    state: &Arc<EdgeState>,
    config: &'a RegisterConfig,
    suspended: &mut Option<Suspended<'a>>,
    left: &Shutdown,
) -> Outcome {
    let limits = &config.limits.link;
    let registered = left.race(register(&mut socket, config, suspended.as_ref())).await;
    // Stopped while registering. Send a close frame: the gateway may have accepted the
    // registration.
    let stops = || Err(LinkEnd::ByUs(CloseReason::new(1001, "the edge is stopping")));
    let (frame, answer) = match registered.unwrap_or_else(stops) {
        Ok(answered) => answered,
        Err(ended) => {
            // With a suspended session, send no close frame: the gateway may have just resumed it,
            // and the frame would end it.
            if suspended.is_none() || left.is_triggered() {
                ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            }
            return outcome(ended, None, state, config);
        }
    };
    let grant = answer.as_ref().and_then(|status| status.resume.clone());
    let accepts = answer.as_ref().and_then(|status| status.message_bytes);
    let (mut session, mut outbound) = resume_or_begin(state, config, suspended, grant.as_ref(), accepts);
    if !state.link_up(session.link.clone(), outbound.unacknowledged()) {
        return Outcome::Stopped;
    }
    let ended = match session.begin(answer, &frame) {
        Ok(()) => ws_link::drive(socket, &mut outbound, &mut session, None, limits).await,
        Err(why) => {
            let ended = LinkEnd::ByUs(why);
            ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            ended
        }
    };
    // An error about a child that has exited since does not apply to the next one.
    let child_ended = !state.is_served() || state.generation() != session.child;
    let refusal = match session.refusal.take() {
        Some(why) if child_ended => {
            log::warn!(
                "the gateway dropped the server, which had already exited: {}",
                util::escape::show(&why)
            );
            None
        }
        refusal => refusal,
    };
    match grant.filter(|_| ended.is_accident()) {
        Some(grant) => {
            state.suspend();
            // The gateway may detect the loss later than the edge, by up to `dead_after`.
            let until = Instant::now() + grant.window + limits.resume_grace + limits.dead_after;
            *suspended = Some(Suspended { session, outbound, grant, until });
        }
        None => state.link_down(),
    }
    outcome(ended, refusal, state, config)
}

/// Sends the registration and reads the first frame of the gateway.
async fn register(
    socket: &mut WebSocket,
    config: &RegisterConfig,
    suspended: Option<&Suspended<'_>>,
) -> Result<(String, Option<Status>), LinkEnd> {
    let limits = &config.limits.link;
    let claim = suspended.map(Suspended::claim);
    let (max, sessions) = (limits.message_bytes, config.sessions);
    let registration = Registration::frame(&config.id, &config.name, max, sessions, claim.as_ref());
    ws_link::send_frame(socket, registration, limits).await?;
    let frame = ws_link::recv_frame(socket, limits.message_bytes, limits).await?.to_string();
    let status = Status::read(&frame);
    Ok((frame, status))
}

/// Resumes the suspended session if the gateway agrees, or begins a new one. `accepts` is the
/// largest frame in bytes that the gateway accepts, if it announced one.
fn resume_or_begin<'a>(
    state: &Arc<EdgeState>,
    config: &'a RegisterConfig,
    suspended: &mut Option<Suspended<'a>>,
    grant: Option<&ResumeGrant>,
    accepts: Option<usize>,
) -> (LinkSession<'a>, Outbound) {
    if let Some(Suspended { session, mut outbound, .. }) = suspended.take() {
        let received = grant.and_then(|grant| grant.received);
        if received.is_some_and(|received| outbound.resume(received).is_ok()) {
            log::info!("link resumed");
            return (session, outbound);
        }
        log::warn!("the gateway did not resume the link: cancelled the open requests");
        state.link_down();
    }
    let limits = &config.limits.link;
    let (sender, receiver) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
    let mut outbound = Outbound::new(receiver);
    if grant.is_some() {
        outbound.count();
    }
    (LinkSession::new(state, config, Uplink::new(sender, accepts)), outbound)
}

/// The edge's session on a link.
struct LinkSession<'a> {
    state: Arc<EdgeState>,
    link: Uplink,
    /// The gateway sends status frames, so it reports when the registration is complete.
    sends_status_frames: bool,
    /// The gateway opens a channel for each client session.
    isolated: bool,
    /// Number of the last channel that was opened.
    opened: u32,
    config: &'a RegisterConfig,
    /// The registration is complete.
    complete: bool,
    /// The reason from the gateway's error status.
    refusal: Option<String>,
    /// Generation of the child when the session began.
    child: u64,
}

impl LinkHandler for LinkSession<'_> {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let frame = match frame::read(frame) {
            Frame::Plain(frame) => frame,
            _ if !self.isolated => {
                return Err(CloseReason::new(1008, "channel frame without negotiated sessions"));
            }
            Frame::Message(number, text) => {
                return self.state.instances.message(number, text).map_err(does_not_read);
            }
            Frame::Open(number) if number <= self.opened => {
                return Err(CloseReason::new(1008, "channel number used before"));
            }
            Frame::Open(number) => {
                self.opened = number;
                return self.state.instances.start(number, &self.link).map_err(does_not_read);
            }
            Frame::Close(number, _) => {
                self.state.instances.close(number);
                return Ok(());
            }
        };
        match self.state.on_gateway_frame(now, frame) {
            None | Some(ToChild::Child(_) | ToChild::Held) => self.on_first_message(),
            Some(ToChild::Gateway(frame)) => {
                // The frame is a response, so there is no refusal to send to the server.
                if let Ok(frame) = self.link.frame(frame) {
                    // Bounded: a gateway that sends requests and does not read must not fill the
                    // memory.
                    self.link.queue().send_reserved(frame).map_err(does_not_read)?;
                }
                self.on_first_message();
            }
            Some(ToChild::Status(status)) => self.status(&status),
            Some(ToChild::Drop(why)) => log::debug!("dropped {why}"),
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _now: Instant) -> Result<(), CloseReason> {
        Ok(())
    }
}

fn does_not_read(_: SendError) -> CloseReason {
    CloseReason::new(1013, "the gateway does not read")
}

impl<'a> LinkSession<'a> {
    fn new(state: &Arc<EdgeState>, config: &'a RegisterConfig, link: Uplink) -> Self {
        let (sends_status_frames, isolated, complete) = (false, false, false);
        let (state, child) = (state.clone(), state.generation());
        Self { state, link, sends_status_frames, isolated, opened: 0, config, complete, refusal: None, child }
    }

    /// Handles the gateway's first frame.
    fn begin(&mut self, answer: Option<Status>, frame: &str) -> Result<(), CloseReason> {
        if self.complete {
            self.registered();
        }
        match answer {
            Some(status) => self.status(&status),
            // The original edge program takes any first frame as success. Handle it as a message,
            // so that it is not lost.
            None => self.frame(Instant::now(), frame)?,
        }
        Ok(())
    }

    /// Completes the registration on the first MCP message, if the gateway sends no status frames.
    /// Our gateway sends `registered`.
    fn on_first_message(&mut self) {
        if !self.sends_status_frames {
            self.registered();
        }
    }

    fn registered(&mut self) {
        self.complete = true;
        let mut shared = self.state.lock();
        shared.registered = true;
        shared.was_registered = true;
    }

    fn status(&mut self, status: &Status) {
        self.sends_status_frames |= status.accepts_mcpport;
        if status.accepts_mcpport {
            self.state.lock().proxy.gateway_reads_status_frames();
        }
        let wanted = self.config.sessions.is_some();
        self.isolated |= wanted && status.sessions;
        if wanted && !self.isolated && status.status == "received" {
            log::warn!("the gateway does not support isolated sessions; all clients share one process");
        }
        let message = util::escape::show(&status.message);
        match status.status.as_str() {
            "error" => self.refusal = Some(status.message.clone()),
            "registered" => {
                self.registered();
                log::info!("server '{}' registered: {message}", self.config.name);
            }
            other => log::debug!("gateway status {}: {message}", util::escape::show(other)),
        }
    }
}

/// Maps the end of a link to the outcome that decides about the next attempt. `refusal` is the
/// reason from the gateway's error status.
fn outcome(ended: LinkEnd, refusal: Option<String>, state: &EdgeState, config: &RegisterConfig) -> Outcome {
    let gateway = config.gateway.authority();
    match (ended, refusal) {
        _ if state.lock().leaving => Outcome::Stopped,
        (LinkEnd::ByPeer(why), refusal) if why.code == CLOSE_REFUSED => {
            let reason = refusal.unwrap_or(why.reason);
            let reason = util::escape::show(&reason);
            Outcome::Refused(format!("the gateway at {gateway} rejected the registration: {reason}"))
        }
        (LinkEnd::ByPeer(why), refusal) if why.code == CLOSE_TOO_OFTEN => {
            let reason = refusal.unwrap_or(why.reason);
            Outcome::NotNow(format!(
                "the gateway at {gateway} rejected the registration for now: {}",
                util::escape::show(&reason)
            ))
        }
        (LinkEnd::ByPeer(why), _) if why.code == CLOSE_REPLACED => Outcome::Refused(format!(
            "replaced at {gateway} by another program with the same server id; see --server-id"
        )),
        (LinkEnd::ByPeer(why), Some(reason)) if why.code == CLOSE_LATER => {
            let reason = util::escape::show(&reason);
            Outcome::Transient(format!("the gateway at {gateway} dropped the server: {reason}"))
        }
        (_, Some(reason)) => {
            let reason = util::escape::show(&reason);
            Outcome::Refused(format!("the gateway at {gateway} dropped the server: {reason}"))
        }
        (ended, None) => Outcome::Lost(format!("link to {gateway}: {ended}")),
    }
}
