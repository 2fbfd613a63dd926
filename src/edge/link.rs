//! The edge's session on a link: registers with the gateway, and handles its frames until the link
//! ends. A session may outlive its link if the gateway supports resuming.
//!
//! `edge::state` passes on a message for the shared server, and `edge::instances` one for the process
//! of a session. `tunnel::resume` defines how a link is resumed.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use super::{
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
        ws_link::{self, WebSocket},
    },
    runtime::shutdown::Shutdown,
    tunnel::{
        CLOSE_LATER, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_TOO_OFTEN,
        close::{CloseReason, LinkEnd},
        frame::{self, Frame},
        handler::LinkHandler,
        handshake::{Claim, Registration, ResumeGrant, Status},
    },
    util,
};

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
    let child_ended = !state.is_served() || state.run() != session.run;
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
    (LinkSession::new(state, config, Uplink::new(sender, accepts, state.log().clone())), outbound)
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
    /// The run of the server when the session began.
    run: Run,
}

impl LinkHandler for LinkSession<'_> {
    fn frame(&mut self, now: Instant, frame: &str) -> Result<(), CloseReason> {
        let frame = match frame::read(frame) {
            Frame::Plain(frame) => frame,
            _ if !self.isolated => {
                return Err(CloseReason::new(1008, "channel frame without negotiated sessions"));
            }
            Frame::Message(number, text) => {
                return self.state.instances().message(number, text).map_err(does_not_read);
            }
            Frame::Open(number) if number <= self.opened => {
                return Err(CloseReason::new(1008, "channel number used before"));
            }
            Frame::Open(number) => {
                self.opened = number;
                return self.state.instances().start(number, &self.link).map_err(does_not_read);
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
        let (state, run) = (state.clone(), state.run());
        Self { state, link, sends_status_frames, isolated, opened: 0, config, complete, refusal: None, run }
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
        self.state.registered();
    }

    fn status(&mut self, status: &Status) {
        self.sends_status_frames |= status.accepts_mcpport;
        if status.accepts_mcpport {
            self.state.gateway_reads_status_frames();
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
