//! The edge's session on a link: the registration, the gateway's answer, its frames, and the end of
//! the link. A session may outlive its link if the gateway supports resuming.
//!
//! Without a socket, tasks or a clock: `edge::run_link` reads and writes the frames. `edge::state`
//! passes on a message for the shared server, and `edge::instances` one for the process of a session.
//! `tunnel::resume` defines how a link is resumed.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "time is an argument"))]

use std::{sync::Arc, time::Instant};

use super::{
    instances::Spawn,
    redial::Outcome,
    state::{EdgeState, Run},
    uplink::Uplink,
};
use crate::{
    config::RegisterConfig,
    edge::proxy::ToChild,
    net::{
        outbound::Outbound,
        outbox::{self, SendError},
    },
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::{CloseReason, LinkEnd},
        frame::{self, Frame},
        handler::LinkHandler,
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

/// Builds the registration, the first frame of a link. It claims the suspended session, if there is
/// one.
pub fn registration(config: &RegisterConfig, suspended: Option<&Suspended>) -> String {
    let (max, claim) = (config.limits.link.message_bytes, suspended.map(Suspended::claim));
    Registration::frame(&config.id, &config.name, max, config.sessions, config.era, claim.as_ref())
}

/// Handles the first frame of the gateway: resumes the suspended session, or begins a new one.
/// `spawn` starts the processes of client sessions.
pub fn begin(
    state: &Arc<EdgeState>,
    config: &Arc<RegisterConfig>,
    spawn: &Spawn,
    suspended: Option<Suspended>,
    now: Instant,
    frame: &str,
) -> Begun {
    let answer = Status::read(frame);
    let grant = answer.as_ref().and_then(|status| status.resume.clone());
    let resumed = suspended.and_then(|suspended| suspended.resume(state, grant.as_ref()));
    let (session, outbound) = resumed.unwrap_or_else(|| {
        let accepts = answer.as_ref().and_then(|status| status.message_bytes);
        LinkSession::new(state, config, spawn, accepts, grant.is_some())
    });
    if !state.link_up(session.link.clone(), outbound.unacknowledged()) {
        return Begun::Stopped;
    }
    let mut link = Box::new(RunningLink { session, outbound, grant });
    match link.session.begin(answer, now, frame) {
        Ok(()) => Begun::Running(link),
        Err(why) => Begun::Ended(link, why),
    }
}

/// What follows the first frame of the gateway.
pub enum Begun {
    /// The link carries frames.
    Running(Box<RunningLink>),
    /// The link has to be closed for this reason.
    Ended(Box<RunningLink>, CloseReason),
    /// The program is stopping.
    Stopped,
}

/// A session and its current link.
pub struct RunningLink {
    /// Handles the frames of the gateway.
    pub session: LinkSession,
    /// The frames for the gateway.
    pub outbound: Outbound,
    grant: Option<ResumeGrant>,
}

impl RunningLink {
    /// Handles the end of the link: suspends the session, or gives it up. Returns the outcome of the
    /// link, and the suspended session.
    pub fn end(self, now: Instant, ended: LinkEnd) -> (Outcome, Option<Suspended>) {
        let Self { mut session, outbound, grant } = self;
        let refusal = session.take_refusal();
        let (state, config) = (session.state.clone(), session.config.clone());
        let suspended = match grant.filter(|_| ended.is_accident()) {
            Some(grant) => {
                state.suspend();
                let limits = &config.limits.link;
                // The gateway may detect the loss later than the edge, by up to `dead_after`.
                let until = now + grant.window + limits.resume_grace + limits.dead_after;
                Some(Suspended { session, outbound, grant, until })
            }
            None => {
                state.link_down();
                None
            }
        };
        (outcome(ended, refusal, &state, &config), suspended)
    }
}

/// A session whose link is lost and which the gateway may resume.
pub struct Suspended {
    session: LinkSession,
    outbound: Outbound,
    grant: ResumeGrant,
    /// When the gateway stops waiting for it.
    until: Instant,
}

impl Suspended {
    /// Returns the time at which the gateway stops waiting; the session must be given up then.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Gives the session up: its open requests are cancelled.
    pub fn give_up(self) {
        log::warn!("resume window expired: cancelled the open requests");
        self.session.state.link_down();
    }

    fn claim(&self) -> Claim {
        Claim { token: self.grant.token.clone(), received: self.outbound.received().unwrap_or_default() }
    }

    /// Resumes the session if the gateway agrees, or gives it up.
    fn resume(mut self, state: &EdgeState, grant: Option<&ResumeGrant>) -> Option<(LinkSession, Outbound)> {
        let received = grant.and_then(|grant| grant.received);
        if received.is_some_and(|received| self.outbound.resume(received).is_ok()) {
            log::info!("link resumed");
            return Some((self.session, self.outbound));
        }
        log::warn!("the gateway did not resume the link: cancelled the open requests");
        state.link_down();
        None
    }
}

/// The edge's session on a link.
pub struct LinkSession {
    state: Arc<EdgeState>,
    link: Uplink,
    /// Starts the process of a client session.
    spawn: Spawn,
    /// The gateway sends status frames, so it reports when the registration is complete.
    sends_status_frames: bool,
    /// The gateway opens a channel for each client session.
    isolated: bool,
    /// Number of the last channel that was opened.
    opened: u32,
    config: Arc<RegisterConfig>,
    /// The registration is complete.
    complete: bool,
    /// The reason from the gateway's error status.
    refusal: Option<String>,
    /// The run of the server when the session began.
    run: Run,
}

impl LinkHandler for LinkSession {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let frame = match frame::read(frame) {
            Frame::Plain(frame) => frame,
            _ if !self.isolated => {
                return Err(CloseReason::new(1008, "channel frame without negotiated sessions"));
            }
            Frame::Message(number, text) => {
                return queued(self.state.instances().message(number, text));
            }
            Frame::Open(number) if number <= self.opened => {
                return Err(CloseReason::new(1008, "channel number used before"));
            }
            Frame::Open(number) => {
                self.opened = number;
                return queued(self.state.instances().open(number, &self.link).map(|opened| {
                    opened.into_iter().for_each(|instance| (self.spawn)(instance));
                }));
            }
            Frame::Close(number, _) => {
                self.state.instances().close(number);
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
                    queued(self.link.queue().send_reserved(frame))?;
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

/// Ends the link if the gateway does not read what the edge sends on its own behalf.
fn queued(sent: Result<(), SendError>) -> Result<(), CloseReason> {
    match sent {
        // A closed queue has its own reason, with which the link ends.
        Ok(()) | Err(SendError::Closed) => Ok(()),
        Err(SendError::Full | SendError::Memory) => Err(CloseReason::new(1013, "the gateway does not read")),
    }
}

impl LinkSession {
    /// Creates a session with its queue. `accepts` is the largest frame in bytes that the gateway
    /// accepts, if it announced one. `counted`: the gateway can resume it.
    fn new(
        state: &Arc<EdgeState>,
        config: &Arc<RegisterConfig>,
        spawn: &Spawn,
        accepts: Option<usize>,
        counted: bool,
    ) -> (Self, Outbound) {
        let limits = &config.limits.link;
        let (sender, receiver) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
        let mut outbound = Outbound::new(receiver);
        if counted {
            outbound.count();
        }
        let session = Self {
            state: state.clone(),
            link: Uplink::new(sender, accepts, state.log().clone()),
            spawn: spawn.clone(),
            sends_status_frames: false,
            isolated: false,
            opened: 0,
            config: config.clone(),
            complete: false,
            refusal: None,
            run: state.run(),
        };
        (session, outbound)
    }

    /// Handles the gateway's first frame.
    fn begin(&mut self, answer: Option<Status>, now: Instant, frame: &str) -> Result<(), CloseReason> {
        if self.complete {
            self.registered();
        }
        match answer {
            Some(status) => self.status(&status),
            // The original edge program takes any first frame as success. Handle it as a message,
            // so that it is not lost.
            None => self.frame(now, frame)?,
        }
        Ok(())
    }

    /// Returns the reason from the gateway's error status, if it still applies.
    fn take_refusal(&mut self) -> Option<String> {
        let why = self.refusal.take()?;
        // An error about a child that has exited since does not apply to the next one.
        if self.state.is_served() && self.state.run() == self.run {
            return Some(why);
        }
        log::warn!("the gateway dropped the server, which had already exited: {}", util::escape::show(&why));
        None
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
        self.state.registered();
    }

    fn status(&mut self, status: &Status) {
        self.sends_status_frames |= status.accepts_mcpport;
        if status.accepts_mcpport {
            self.state.gateway_reads_status_frames();
        }
        if status.era {
            self.state.gateway_finds_era();
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

/// Returns the outcome of a connection that ended before the first frame of the gateway.
pub fn failed(ended: LinkEnd, state: &EdgeState, config: &RegisterConfig) -> Outcome {
    outcome(ended, None, state, config)
}

/// Maps the end of a link to the outcome that decides about the next attempt. `refusal` is the
/// reason from the gateway's error status.
fn outcome(ended: LinkEnd, refusal: Option<String>, state: &EdgeState, config: &RegisterConfig) -> Outcome {
    let gateway = config.gateway.authority();
    match (ended, refusal) {
        _ if state.is_leaving() => Outcome::Stopped,
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

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::Mutex,
        task::{Context, Waker},
        time::Duration,
    };

    use futures_lite::future;

    use super::*;
    use crate::{
        edge::{
            instances::{Instance, Instances},
            tests::{FakeServers, config},
        },
        jsonrpc,
        limits::RESERVED_MESSAGES,
        net::outbox::Receiver,
        secret::Secret,
    };

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;

    /// An edge whose server runs.
    struct Edge {
        config: Arc<RegisterConfig>,
        state: Arc<EdgeState>,
        spawn: Spawn,
        spawned: Arc<Mutex<Vec<Instance>>>,
        /// What the server gets.
        messages: Receiver<()>,
        now: Instant,
    }

    impl Edge {
        fn new() -> Self {
            let config = Arc::new(RegisterConfig { sessions: Some(2), ..config() });
            let instances = Instances::new(&config, FakeServers::new([]).start(), Arc::default());
            let state = EdgeState::new(instances, Arc::default());
            let (input, messages) = outbox::bounded(8, 1 << 20);
            state.started(input);
            let spawned = Arc::new(Mutex::new(Vec::new()));
            let into = spawned.clone();
            let spawn: Spawn = Arc::new(move |instance| into.lock().unwrap().push(instance));
            Self { config, state, spawn, spawned, messages, now: Instant::now() }
        }

        fn begin(&self, suspended: Option<Suspended>, frame: &str) -> Begun {
            begin(&self.state, &self.config, &self.spawn, suspended, self.now, frame)
        }

        fn running(&self, suspended: Option<Suspended>, frame: &str) -> Box<RunningLink> {
            match self.begin(suspended, frame) {
                Begun::Running(link) => link,
                Begun::Ended(_, why) => panic!("{why:?}"),
                Begun::Stopped => panic!("nobody stops it"),
            }
        }

        /// Returns what the server got since the last call.
        fn taken(&mut self) -> VecDeque<String> {
            let mut taken = VecDeque::new();
            let _ = smol::block_on(future::poll_once(self.messages.take(&mut taken)));
            taken
        }

        /// The server exits, and is restarted.
        fn restart_server(&self) {
            self.state.ended("it exited", None);
            self.state.started(outbox::bounded(8, 1 << 20).0);
        }
    }

    /// The gateway's answer to a registration. `received`: it resumes the session.
    fn received(sessions: bool, received: Option<u64>) -> String {
        let grant = ResumeGrant { token: Secret::new("t"), window: Duration::from_secs(30), received };
        Status::received("id", true, 1000, sessions, false, Some(&grant))
    }

    fn close(code: u16) -> LinkEnd {
        LinkEnd::ByPeer(CloseReason::new(code, "why"))
    }

    fn lost() -> LinkEnd {
        LinkEnd::Lost("reset".into())
    }

    #[test]
    fn the_outcome_depends_on_the_end_and_on_the_error_of_the_gateway() {
        use Outcome::{Lost, NotNow, Refused, Transient};
        let dropped = "the gateway at 127.0.0.1:1 dropped the server: no";
        let rejected = "the gateway at 127.0.0.1:1 rejected the registration: ";
        let not_now = "the gateway at 127.0.0.1:1 rejected the registration for now: ";
        let replaced = "replaced at 127.0.0.1:1 by another program with the same server id; see --server-id";
        let plain = "link to 127.0.0.1:1: ";
        let closed = |code| format!("{plain}{}", close(code));
        for (ended, without, with) in [
            (close(CLOSE_REFUSED), Refused(format!("{rejected}why")), Refused(format!("{rejected}no"))),
            (close(CLOSE_TOO_OFTEN), NotNow(format!("{not_now}why")), NotNow(format!("{not_now}no"))),
            (close(CLOSE_REPLACED), Refused(replaced.into()), Refused(replaced.into())),
            (close(CLOSE_LATER), Lost(closed(CLOSE_LATER)), Transient(dropped.into())),
            (close(1000), Lost(closed(1000)), Refused(dropped.into())),
            (lost(), Lost(format!("{plain}{}", lost())), Refused(dropped.into())),
        ] {
            for (error, expected) in [(false, &without), (true, &with)] {
                let edge = Edge::new();
                let mut link = edge.running(None, &received(false, None));
                if error {
                    link.session.frame(edge.now, &Status::error("no")).unwrap();
                }
                let (outcome, _) = link.end(edge.now, ended.clone());
                assert_eq!(format!("{outcome:?}"), format!("{expected:?}"), "{ended:?}, error: {error}");
            }
            let edge = Edge::new();
            let link = edge.running(None, &received(false, None));
            edge.state.leave("the edge is stopping");
            assert!(matches!(link.end(edge.now, ended).0, Outcome::Stopped));
        }
    }

    /// The gateway drops a server that has exited, and tells so. The next run may be fine.
    #[test]
    fn an_error_about_a_server_that_has_exited_is_excused() {
        let refused = |exited: &dyn Fn(&Edge)| {
            let edge = Edge::new();
            let mut link = edge.running(None, &received(false, None));
            link.session.frame(edge.now, &Status::error("no")).unwrap();
            exited(&edge);
            match link.end(edge.now, close(1000)).0 {
                Outcome::Refused(_) => true,
                Outcome::Lost(_) => false,
                other => panic!("{other:?}"),
            }
        };
        assert!(refused(&|_| {}));
        assert!(!refused(&|edge| edge.state.ended("it exited", None)));
        assert!(!refused(&Edge::restart_server));
    }

    #[test]
    fn only_an_accident_suspends_a_session_that_the_gateway_may_resume() {
        let ours = LinkEnd::ByUs(CloseReason::new(1013, "the gateway does not read"));
        let silent = LinkEnd::Silent(Duration::from_secs(45));
        let without = Status::received("id", true, 1000, false, false, None);
        for (answer, ended, is_suspended) in [
            (&received(false, None), lost(), true),
            (&received(false, None), silent, true),
            (&received(false, None), close(1001), false),
            (&received(false, None), ours, false),
            (&without, lost(), false),
        ] {
            let mut edge = Edge::new();
            let mut link = edge.running(None, answer);
            link.session.frame(edge.now, CALL).unwrap();
            assert_eq!(edge.taken(), [CALL]);
            let (_, suspended) = link.end(edge.now, ended.clone());
            assert_eq!(suspended.is_some(), is_suspended, "{ended:?}");
            assert_eq!(
                (edge.state.running(), edge.taken().len()),
                if is_suspended { (1, 0) } else { (0, 1) }
            );
            if let Some(suspended) = suspended {
                let limits = &edge.config.limits.link;
                let window = Duration::from_secs(30) + limits.resume_grace + limits.dead_after;
                assert_eq!(suspended.until(), edge.now + window);
                suspended.give_up();
                assert_eq!((edge.state.running(), edge.taken().len()), (0, 1), "it is cancelled");
            }
        }
    }

    #[test]
    fn a_session_is_resumed_or_given_up() {
        for (answer, resumes) in [
            (received(false, Some(0)), true),
            (received(false, None), false),
            // The gateway claims to have received more than was sent.
            (received(false, Some(1)), false),
            (Status::received("id", true, 1000, false, false, None), false),
        ] {
            let mut edge = Edge::new();
            assert!(!registration(&edge.config, None).contains("token"));
            let mut link = edge.running(None, &received(false, None));
            let counted = link
                .outbound
                .on_text(edge.now, CALL, &edge.config.limits.link, |text| link.session.frame(edge.now, text));
            assert!(counted.is_ok());
            let (_, suspended) = link.end(edge.now, lost());
            let claim = registration(&edge.config, suspended.as_ref());
            assert!(claim.contains(r#""token":"t","received":1"#), "{claim}");
            let link = edge.running(suspended, &answer);
            let (running, received) = if resumes { (1, 1) } else { (0, 0) };
            assert_eq!(edge.state.running(), running, "{answer}");
            assert_eq!(link.outbound.received().unwrap_or_default(), received, "{answer}");
            assert_eq!(edge.taken().len(), 2 - running, "the call, and its cancellation");
        }
    }

    #[test]
    fn a_gateway_without_status_frames_registers_by_its_first_message() {
        let edge = Edge::new();
        let original = r#"{"status":"received","message":"ok"}"#;
        let mut link = edge.running(None, original);
        assert!(!edge.state.is_registered());
        link.session.frame(edge.now, CALL).unwrap();
        assert!(edge.state.is_registered());
        // Its first frame may be a message already.
        let mut edge = Edge::new();
        let _link = edge.running(None, CALL);
        assert!(edge.state.is_registered());
        assert_eq!(edge.taken(), [CALL]);
        // Ours says when.
        let edge = Edge::new();
        let mut link = edge.running(None, &received(false, None));
        link.session.frame(edge.now, CALL).unwrap();
        assert!(!edge.state.is_registered());
        link.session.frame(edge.now, &Status::registered("id", 1)).unwrap();
        assert!(edge.state.is_registered());
        drop(link.end(edge.now, lost()).1.unwrap());
        assert!(!edge.state.is_registered() && edge.state.was_registered());
    }

    #[test]
    fn a_program_that_stops_begins_no_session() {
        let edge = Edge::new();
        edge.state.leave("the edge is stopping");
        assert!(matches!(edge.begin(None, &received(false, None)), Begun::Stopped));
        assert!(matches!(failed(lost(), &edge.state, &edge.config), Outcome::Stopped));
    }

    #[test]
    fn channels_are_opened_only_for_sessions_and_in_order() {
        let edge = Edge::new();
        let close = |reason| Err(CloseReason::new(1008, reason));
        let mut link = edge.running(None, &received(false, None));
        let frame = |link: &mut RunningLink, frame: String| link.session.frame(edge.now, &frame);
        let unwanted = close("channel frame without negotiated sessions");
        assert_eq!(frame(&mut link, frame::open(1)), unwanted);
        let mut link = edge.running(None, &received(true, None));
        assert_eq!(frame(&mut link, frame::open(2)), Ok(()));
        assert_eq!(frame(&mut link, frame::open(2)), close("channel number used before"));
        assert_eq!(frame(&mut link, frame::open(1)), close("channel number used before"));
        assert_eq!(frame(&mut link, frame::open(3)), Ok(()));
        assert_eq!(frame(&mut link, frame::open(4)), Ok(()), "closed with the reason");
        assert_eq!(edge.spawned.lock().unwrap().len(), 2, "--max-sessions");
        let frames = smol::block_on(link.outbound.rest());
        assert!(frames.len() == 1 && frames[0].contains("--max-sessions"), "{frames:?}");
    }

    /// The gateway must not be told that it does not read.
    #[test]
    fn a_frame_after_the_stop_does_not_change_the_reason_of_the_end() {
        let edge = Edge::new();
        let mut link = edge.running(None, &received(true, None));
        edge.state.stop();
        edge.state.leave("the edge is stopping");
        for text in [CALL.to_owned(), frame::open(1)] {
            assert_eq!(link.session.frame(edge.now, &text), Ok(()));
        }
        let reason = link.outbound.poll_fill(&mut Context::from_waker(Waker::noop()));
        assert_eq!(reason, Some(CloseReason::new(1001, "the edge is stopping")));
    }

    #[test]
    fn a_gateway_that_does_not_read_ends_the_link() {
        let mut edge = Edge::new();
        let limits = &mut Arc::get_mut(&mut edge.config).unwrap().limits.link;
        limits.queue_messages = 1;
        let mut link = edge.running(None, &received(false, None));
        edge.state.stop();
        let refused =
            (0..RESERVED_MESSAGES + 2).map(|_| link.session.frame(edge.now, CALL)).find(Result::is_err);
        assert_eq!(refused, Some(Err(CloseReason::new(1013, "the gateway does not read"))));
        let error = jsonrpc::error("1", jsonrpc::DOWN, "the edge is stopping");
        assert_eq!(smol::block_on(link.outbound.rest())[0], error);
    }
}
