//! The life of a registration: frames from the gateway to the child, and what both ends say about it. It may outlive its
//! link, where the gateway agrees.
//!
//! What becomes of a frame or a line is decided by `proxy::proxy`; the rules of coming back are in `tunnel::resume`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use smol::Timer;

use super::{
    backend::stdio::LineOutcome,
    instances::{Instances, unless_stopped},
    uplink::Uplink,
};
use crate::{
    config::RegisterConfig,
    edge::proxy::{ProxyState, ToChild, ToGateway},
    jsonrpc::{self, Kind, Message},
    limits::{self, LOG_WARNINGS},
    log_throttle::LogThrottle,
    net::{
        outbox::{self, SendError, Sender},
        ws_link::{self, CloseReason, LinkEnd, LinkHandler, Outbound, Unacknowledged, WebSocket},
    },
    runtime::{shutdown::Shutdown, task_tracker::TaskTracker},
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        frame::{self, Frame},
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

/// How an attempt or a life ended.
#[derive(Debug)]
pub enum Outcome {
    /// The line or the gateway went away: try again.
    Lost(String),
    /// A refusal that may pass without a change here: not in the words of our gateway but of a front (proxy, captive
    /// portal), a certificate that is not trusted, a server that was too slow.
    Transient(String),
    /// The gateway will not have us as we are.
    Refused(String),
    /// The gateway will not have us now: wait for long, however new we are.
    NotNow(String),
    /// We are stopping.
    Stopped,
}

/// What the tasks of the edge share.
#[derive(Debug)]
pub struct EdgeState {
    tables: Mutex<EdgeTables>,
    /// One badge for each line of the child that waits for room in the queue of the link.
    delivering: TaskTracker,
    instances: Arc<Instances>,
    /// Limits how often odd messages of the server are logged.
    log_throttle: Mutex<LogThrottle>,
}

#[derive(Debug, Default)]
struct EdgeTables {
    proxy: ProxyState,
    /// What the child reads from.
    child: Option<Sender<()>>,
    /// How many children there were, this one counted.
    generation: u64,
    /// The queue towards the gateway: of the present link, or of one that may be resumed.
    link: Option<Uplink>,
    /// What of it the gateway has not acknowledged.
    unacknowledged: Unacknowledged,
    /// The present link is registered.
    registered: bool,
    /// Some link was.
    was_registered: bool,
    leaving: bool,
}

impl EdgeState {
    /// The state before there is a child or a link, and the sessions that have a process of their own.
    pub fn new(sessions: Arc<Instances>) -> Arc<Self> {
        let (edge, delivering, oddities) = (Mutex::default(), TaskTracker::new(), Mutex::default());
        Arc::new(Self { tables: edge, delivering, instances: sessions, log_throttle: oddities })
    }

    fn lock(&self) -> MutexGuard<'_, EdgeTables> {
        // The state is sound between any two statements, so a panic elsewhere does not spoil it.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs what is odd about the server: of one kind at most once a second, with a count.
    fn warn_throttled(&self, kind: &'static str, what: &str) {
        let mut oddities = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = oddities.due(Instant::now(), kind, "", LOG_WARNINGS) {
            log::warn!("{what}{left_out}");
        }
    }

    /// Whether the gateway has us at present.
    pub fn is_registered(&self) -> bool {
        self.lock().registered
    }

    /// Whether the gateway ever had us.
    pub fn was_registered(&self) -> bool {
        self.lock().was_registered
    }

    /// Whether the child takes requests at present.
    pub fn is_served(&self) -> bool {
        self.lock().proxy.is_up()
    }

    /// Whether this child still has to answer the `initialize` that it was started anew with.
    pub fn is_initializing(&self, generation: u64) -> bool {
        let shared = self.lock();
        shared.generation == generation && shared.proxy.is_initializing()
    }

    /// The number of the present child; another one than that of a moment ago means that it was started anew.
    fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// A child is started, and reads from this queue. Gives its number.
    pub fn child_up(&self, input: Sender<()>) -> u64 {
        let mut shared = self.lock();
        if let Some(hello) = shared.proxy.child_back() {
            // The queue is empty.
            let _ = input.send(hello);
        }
        shared.child = Some(input);
        shared.generation += 1;
        shared.generation
    }

    /// The child has ended: the gateway gets the answers that it left out. See [`ProxyState::child_gone`].
    pub fn child_down(&self, why: &str, due: Option<Instant>) {
        let mut shared = self.lock();
        shared.child = None;
        for frame in shared.proxy.child_gone(why, due) {
            // Small, no more than the gateway asked, and it must not lose them.
            if let Some(link) = &shared.link {
                let _ = link.queue().send_unbounded(frame);
            }
        }
    }

    /// A line came from a child: passes it on, as soon as the link has room.
    pub async fn on_child_line(&self, generation: u64, line: &str) -> LineOutcome {
        self.deliver(generation, |edge| edge.on_child_line(line)).await
    }

    /// A child wrote an answer that cannot be used: see [`ProxyState::unusable`].
    pub async fn unusable(&self, generation: u64, id: Option<&str>, words: &str) -> LineOutcome {
        self.deliver(generation, |edge| edge.unusable(id, words)).await
    }

    /// Passes on what becomes of something that a child wrote.
    async fn deliver(&self, generation: u64, read: impl FnOnce(&mut ProxyState) -> ToGateway) -> LineOutcome {
        let (up, link, _delivering) = {
            let mut shared = self.lock();
            if shared.generation != generation {
                log::debug!("a line of an earlier process is dropped");
                return LineOutcome::Message;
            }
            let mut up = read(&mut shared.proxy);
            if let (ToGateway::Ready { lines, .. }, Some(child)) = (&mut up, &shared.child) {
                for line in lines.drain(..) {
                    // Bounded by what may be held, and sent before anything can overtake it.
                    let _ = child.send_unbounded(line);
                }
            }
            (up, shared.link.clone(), self.delivering.track())
        };
        let frames = match up {
            ToGateway::Gateway(frame) => vec![frame],
            ToGateway::Stray(frame) => {
                self.warn_throttled("stray", "the server answered what it was not asked");
                vec![frame]
            }
            ToGateway::Ready { frames, .. } => {
                log::info!("the server is initialized again");
                frames
            }
            ToGateway::Stale => {
                log::debug!("an answer to an earlier link is dropped");
                Vec::new()
            }
            ToGateway::Refused => return LineOutcome::End("it refused to be initialized again"),
            ToGateway::Noise => return LineOutcome::Noise,
        };
        for frame in frames {
            let Some(link) = &link else {
                log::debug!("a message of the server found no link");
                break;
            };
            match link.frame(None, frame) {
                Ok(frame) => {
                    if link.queue().send_wait(frame).await.is_err() {
                        log::debug!("a message of the server came too late for its link");
                    }
                }
                Err(refusal) => refusal.into_iter().for_each(|refusal| self.refuse(generation, refusal)),
            }
        }
        LineOutcome::Message
    }

    /// Answers a request of a child in the place of the gateway.
    fn refuse(&self, generation: u64, refusal: String) {
        let shared = self.lock();
        if let Some(child) = shared.child.as_ref().filter(|_| shared.generation == generation) {
            // A server that asks so much may miss an answer.
            let _ = child.send(refusal);
        }
    }

    /// A frame came from the gateway. What is for the child is given to it (`None`), or answered when it takes nothing.
    fn on_gateway_frame(&self, now: Instant, frame: &str) -> Option<ToChild> {
        let mut shared = self.lock();
        let (line, child) = match (shared.proxy.on_gateway_frame(now, frame), &shared.child) {
            (ToChild::Child(line), Some(child)) => (line, child),
            (other, _) => return Some(other),
        };
        let begins = |line: &str| Message::read(line).is_ok_and(|message| message.method() == "initialize");
        let (code, why, line) = match child.try_send(line) {
            Ok(()) => return None,
            // That it has ended is about to be noticed; the next one is asked.
            Err((SendError::Closed, line)) if begins(&line) => {
                return Some(ToChild::Drop("a word to a dead child"));
            }
            Err((SendError::Full | SendError::Memory, line)) => {
                (jsonrpc::BUSY, "the server does not read its input", line)
            }
            Err((SendError::Closed, line)) => (jsonrpc::DOWN, "the server has ended", line),
        };
        self.warn_throttled(why, &format!("a message for the server is turned away: {why}"));
        let message = Message::read(&line).ok().filter(|message| message.kind() == Kind::Request)?;
        // The gateway knows the request under the id that it came with; the edge puts that back.
        match shared.proxy.on_child_line(&jsonrpc::error(message.id()?, code, why)) {
            ToGateway::Gateway(frame) | ToGateway::Stray(frame) => Some(ToChild::Gateway(frame)),
            _ => None,
        }
    }

    /// Refuses new calls from now on, those for processes of single sessions too.
    pub fn stop(&self) {
        self.lock().proxy.stop();
        self.instances.stop();
    }

    /// Number of calls without an answer.
    pub fn running(&self) -> usize {
        self.lock().proxy.running() + self.instances.running()
    }

    /// Waits until every running call is answered and the answers are handed to the link.
    pub async fn answered(&self) {
        // In this order: an answer is counted as being delivered before it stops counting as a running call.
        while self.running() > 0 || !self.delivering.is_empty() {
            Timer::after(limits::DRAIN_LOOK).await;
        }
    }

    /// Waits until the gateway has all that was handed to the link, as far as it acknowledges anything.
    pub async fn delivered(&self) {
        while !self.is_delivered() {
            Timer::after(limits::DRAIN_LOOK).await;
        }
    }

    /// Whether the gateway has all that was handed to the link; without a link there is nothing to wait for.
    pub fn is_delivered(&self) -> bool {
        let shared = self.lock();
        // In this order: a frame counts as unacknowledged before it leaves the queue.
        shared.link.as_ref().is_none_or(|link| link.queue().is_settled())
            && shared.unacknowledged.count() == 0
    }

    /// Ends the present link with a farewell, and all that would follow.
    pub fn leave(&self, reason: &str) {
        let mut shared = self.lock();
        shared.leaving = true;
        if let Some(link) = &shared.link {
            link.queue().end(CloseReason::new(1001, reason));
        }
    }

    /// A link comes up. False when we are leaving.
    fn link_up(&self, link: Uplink, unacknowledged: Unacknowledged) -> bool {
        let mut shared = self.lock();
        shared.link = Some(link);
        shared.unacknowledged = unacknowledged;
        !shared.leaving
    }

    /// The link is gone and may be resumed: all goes on as it was, but for the health check.
    fn suspend(&self) {
        let mut shared = self.lock();
        shared.registered = false;
    }

    /// The link is gone for good: the child need not go on with what nobody waits for, and sessions have nobody to serve.
    fn link_down(&self) {
        self.instances.close_all();
        let mut shared = self.lock();
        shared.link = None;
        shared.unacknowledged = Unacknowledged::default();
        shared.registered = false;
        for line in shared.proxy.disconnected() {
            // A child that does not read will not read this either.
            let _ = shared.child.as_ref().map(|child| child.send(line));
        }
    }
}

/// A registration whose link is lost, and which the gateway may take up again.
pub struct Suspended<'a> {
    life: LinkSession<'a>,
    line: Outbound,
    grant: ResumeGrant,
    /// When it is too late.
    until: Instant,
}

impl Suspended<'_> {
    /// When nobody waits for it any more. Then it has to be given up.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Nobody waits for it any more.
    pub fn give_up(self, state: &EdgeState) {
        log::warn!("the gateway waits no more for what was under way");
        state.link_down();
    }

    fn claim(&self) -> Claim {
        Claim { token: self.grant.token.clone(), received: self.line.received().unwrap_or_default() }
    }
}

/// Registers over a fresh connection, and carries frames until the link ends. `kept` is the registration that may be
/// taken up again: from before this link, and from this one when it is lost. `left`: we are stopping.
pub async fn run<'a>(
    mut socket: WebSocket,
    state: &Arc<EdgeState>,
    config: &'a RegisterConfig,
    kept: &mut Option<Suspended<'a>>,
    left: &Shutdown,
) -> Outcome {
    let limits = &config.limits.link;
    let introduced = unless_stopped(left, register(&mut socket, config, kept.as_ref())).await;
    // It may have us already, and its answer be under way.
    let stops = || Err(LinkEnd::ByUs(CloseReason::new(1001, "the edge stops")));
    let (frame, answer) = match introduced.unwrap_or_else(stops) {
        Ok(answered) => answered,
        Err(ended) => {
            // A gateway may have taken us back just now: to it a word of ours would be the end of what is kept.
            if kept.is_none() || left.is_triggered() {
                ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            }
            return outcome(ended, None, state, config);
        }
    };
    let grant = answer.as_ref().and_then(|status| status.resume.clone());
    let accepts = answer.as_ref().and_then(|status| status.message_bytes);
    let (mut life, mut line) = resume_or_begin(state, config, kept, grant.as_ref(), accepts);
    if !state.link_up(life.link.clone(), line.unacknowledged()) {
        return Outcome::Stopped;
    }
    let ended = match life.begin(answer, &frame) {
        Ok(()) => ws_link::drive(socket, &mut line, &mut life, limits).await,
        Err(why) => {
            let ended = LinkEnd::ByUs(why);
            ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            ended
        }
    };
    // What a server could not do that has ended since, the next one may.
    let excused = !state.is_served() || state.generation() != life.child;
    let refusal = match life.refusal.take() {
        Some(why) if excused => {
            log::warn!("the gateway gave the server up, which had ended: {}", util::escape::show(&why));
            None
        }
        refusal => refusal,
    };
    match grant.filter(|_| ended.is_accident()) {
        Some(grant) => {
            state.suspend();
            // The gateway may notice later than we do.
            let until = Instant::now() + grant.window + limits.resume_grace + limits.dead_after;
            *kept = Some(Suspended { life, line, grant, until });
        }
        None => state.link_down(),
    }
    outcome(ended, refusal, state, config)
}

/// Says who we are, and reads what the gateway says to that.
async fn register(
    socket: &mut WebSocket,
    config: &RegisterConfig,
    kept: Option<&Suspended<'_>>,
) -> Result<(String, Option<Status>), LinkEnd> {
    let limits = &config.limits.link;
    let claim = kept.map(Suspended::claim);
    let (most, sessions) = (limits.message_bytes, config.sessions);
    let hello = Registration::frame(&config.id, &config.name, most, sessions, claim.as_ref());
    ws_link::send_frame(socket, hello, limits).await?;
    let frame = ws_link::recv_frame(socket, limits.message_bytes, limits).await?.to_string();
    let status = Status::read(&frame);
    Ok((frame, status))
}

/// The registration that was kept, if the gateway goes on with it, or a new one. `accepts`: the largest frame that the
/// gateway accepts, if it told that.
fn resume_or_begin<'a>(
    state: &Arc<EdgeState>,
    config: &'a RegisterConfig,
    kept: &mut Option<Suspended<'a>>,
    grant: Option<&ResumeGrant>,
    accepts: Option<usize>,
) -> (LinkSession<'a>, Outbound) {
    if let Some(Suspended { life, mut line, .. }) = kept.take() {
        let received = grant.and_then(|grant| grant.received);
        if received.is_some_and(|received| line.resume(received).is_ok()) {
            log::info!("the link goes on where it was lost");
            return (life, line);
        }
        log::warn!("the gateway begins anew: what was under way when the link was lost is given up");
        state.link_down();
    }
    let limits = &config.limits.link;
    let (sender, receiver) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
    let mut line = Outbound::new(receiver);
    if grant.is_some() {
        line.count();
    }
    (LinkSession::new(state, config, Uplink::new(sender, accepts)), line)
}

/// Our end of the registration.
struct LinkSession<'a> {
    state: Arc<EdgeState>,
    link: Uplink,
    /// The gateway will say when the registration is complete.
    ours: bool,
    /// It gives client sessions a process of their own.
    isolated: bool,
    /// Number of the last channel.
    opened: u32,
    config: &'a RegisterConfig,
    /// The registration is complete.
    complete: bool,
    /// Why the gateway says it will not have us.
    refusal: Option<String>,
    /// The child that there was when it began.
    child: u64,
}

impl LinkHandler for LinkSession<'_> {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let frame = match frame::read(frame) {
            Frame::Plain(frame) => frame,
            _ if !self.isolated => return Err(CloseReason::new(1008, "a channel that was not agreed on")),
            Frame::Message(number, text) => {
                return self.state.instances.message(number, text, &self.link).map_err(does_not_read);
            }
            Frame::Open(number) if number <= self.opened => {
                return Err(CloseReason::new(1008, "the number of a channel was used before"));
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
            None | Some(ToChild::Child(_) | ToChild::Held) => self.spoken_for(),
            Some(ToChild::Gateway(frame)) => {
                // The server has asked nothing, so nothing is to be said to it.
                if let Ok(frame) = self.link.frame(None, frame) {
                    // What the gateway asks and does not read must not pile up here.
                    self.link.queue().send_reserved(frame).map_err(does_not_read)?;
                }
                self.spoken_for();
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
        let (ours, isolated, complete) = (false, false, false);
        let (state, child) = (state.clone(), state.generation());
        Self { state, link, ours, isolated, opened: 0, config, complete, refusal: None, child }
    }

    /// What the gateway said to the registration.
    fn begin(&mut self, answer: Option<Status>, frame: &str) -> Result<(), CloseReason> {
        if self.complete {
            self.registered();
        }
        match answer {
            Some(status) => self.status(&status),
            // The original takes any first frame for success; what it is, is not lost.
            None => self.frame(Instant::now(), frame)?,
        }
        Ok(())
    }

    /// A gateway that sends us MCP has taken us, as far as we can know; ours says it when it has.
    fn spoken_for(&mut self) {
        if !self.ours {
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
        self.ours |= status.ours;
        if status.ours {
            self.state.lock().proxy.gateway_is_ours();
        }
        let wanted = self.config.sessions.is_some();
        self.isolated |= wanted && status.sessions;
        if wanted && !self.isolated && status.status == "received" {
            log::warn!("the gateway does not know isolated sessions; all clients share one process");
        }
        let message = util::escape::show(&status.message);
        match status.status.as_str() {
            "error" => self.refusal = Some(status.message.clone()),
            "registered" => {
                self.registered();
                log::info!("server '{}' registered: {message}", self.config.name);
            }
            other => log::debug!("the gateway says {}: {message}", util::escape::show(other)),
        }
    }
}

/// What the end of a link means for the next try. `refusal`: why the gateway said that it will not have us.
fn outcome(ended: LinkEnd, refusal: Option<String>, state: &EdgeState, config: &RegisterConfig) -> Outcome {
    let gateway = config.gateway.authority();
    match (ended, refusal) {
        _ if state.lock().leaving => Outcome::Stopped,
        (LinkEnd::ByPeer(why), refusal) if why.code == CLOSE_REFUSED => {
            let reason = refusal.unwrap_or(why.reason);
            let reason = util::escape::show(&reason);
            Outcome::Refused(format!("the gateway at {gateway} refuses the registration: {reason}"))
        }
        (LinkEnd::ByPeer(why), refusal) if why.code == CLOSE_TOO_OFTEN => {
            let reason = refusal.unwrap_or(why.reason);
            Outcome::NotNow(format!("the gateway at {gateway} puts us off: {}", util::escape::show(&reason)))
        }
        (LinkEnd::ByPeer(why), _) if why.code == CLOSE_REPLACED => Outcome::Refused(format!(
            "another program registered at {gateway} with our id and took over; see --server-id"
        )),
        (LinkEnd::ByPeer(why), Some(reason)) if why.code == CLOSE_LATER => {
            let reason = util::escape::show(&reason);
            Outcome::Transient(format!("the gateway at {gateway} gave the server up: {reason}"))
        }
        (_, Some(reason)) => {
            let reason = util::escape::show(&reason);
            Outcome::Refused(format!("the gateway at {gateway} gave the server up: {reason}"))
        }
        (ended, None) => Outcome::Lost(format!("link to {gateway}: {ended}")),
    }
}
