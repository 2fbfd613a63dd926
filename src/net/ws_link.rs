//! One link: a WebSocket driven by one task.
//!
//! The task owns the socket, so no send is ever cancelled half-way. It writes the frames of its
//! queue, several in one write; passes each incoming frame to its [`LinkHandler`]; keeps the
//! heartbeat; and ends with one reason. The state that must outlive the socket, so that the link
//! can resume over another connection, is in [`Outbound`]. The meaning of the frames is defined in
//! `tunnel`.

mod metered;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::CapacityError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use futures_lite::{Stream as _, StreamExt, future};
use futures_sink::Sink;
use smol::Timer;

pub use self::metered::Metered;
use super::{
    budget::{Account, Charge},
    outbox::{Received, Receiver},
    stream::Stream,
    timeout,
};
use crate::{
    limits::{LINK_BURST, LinkLimits, STALL_RETRIES},
    runtime::pacer::Pacer,
    tunnel::{
        CLOSE_LATER,
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
        heartbeat::{Heartbeat, HeartbeatAction},
        resume::{self, CannotResume, Resume},
    },
};

/// The outgoing side of a link: its queue, and the state needed to resume over another connection.
#[derive(Debug)]
pub struct Outbound {
    queue: Receiver<CloseReason>,
    /// Sent before all other frames, and not counted: acknowledgements, and frames that are sent
    /// again.
    first: VecDeque<Utf8Bytes>,
    /// Messages taken from the queue.
    outgoing: VecDeque<String>,
    resume: Option<Resume<Utf8Bytes>>,
    unacknowledged: Unacknowledged,
    /// Memory charged for the frames that are kept until the peer acknowledges them.
    charge: Option<Charge>,
}

/// The number of frames that were sent but not acknowledged by the peer, for tasks other than the
/// link's own. 0 if the link does not count frames.
#[derive(Clone, Debug, Default)]
pub struct Unacknowledged(Arc<AtomicUsize>);

impl Unacknowledged {
    /// Returns the number.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, count: usize) {
        self.0.store(count, Ordering::Release);
    }
}

impl Outbound {
    /// Creates the outgoing side for a queue. It cannot be resumed unless [`Outbound::count`] is
    /// called.
    pub fn new(queue: Receiver<CloseReason>) -> Self {
        let (first, outgoing, unacknowledged) = Default::default();
        Self { queue, first, outgoing, resume: None, unacknowledged, charge: None }
    }

    /// Charges the frames that are kept for resumption to `account`.
    pub fn charge_to(&mut self, account: &Account) {
        self.charge = Some(account.charge());
    }

    /// Starts counting frames in both directions, which makes the link resumable.
    pub fn count(&mut self) {
        self.resume = Some(Resume::new());
    }

    /// Returns a live view of the number of unacknowledged frames.
    pub fn unacknowledged(&self) -> Unacknowledged {
        self.unacknowledged.clone()
    }

    /// Queues a frame before all others. It is not counted.
    pub fn first(&mut self, text: String) {
        self.first.push_back(text.into());
    }

    /// Returns the number of frames received, if they are counted.
    pub fn received(&self) -> Option<u64> {
        self.resume.as_ref().map(Resume::count)
    }

    /// Whether the peer has acknowledged more than `received` frames. A claim to have received only
    /// that many is then outdated.
    pub fn is_past(&self, received: u64) -> bool {
        self.resume.as_ref().is_some_and(|resume| received < resume.acknowledged())
    }

    /// Resumes over another connection, where the peer has reported `received` frames. Queues the
    /// frames that it lacks again.
    ///
    /// # Errors
    /// [`CannotResume`] if the link cannot be resumed.
    pub fn resume(&mut self, received: u64) -> Result<(), CannotResume> {
        let resume = self.resume.as_mut().ok_or(CannotResume)?;
        self.first = resume.resume(received)?.into();
        self.update_charge();
        Ok(())
    }

    /// Updates the counter and the charge after an acknowledgement.
    fn update_charge(&mut self) {
        self.unacknowledged.set(self.resume.as_ref().map_or(0, Resume::unacknowledged));
        let kept = self.resume.as_ref().map_or(0, Resume::unacknowledged_bytes);
        if let Some(charge) = &mut self.charge {
            charge.resize_anyway(kept);
        }
    }

    /// Waits until the queue is ended, and returns the reason.
    pub async fn ended(&mut self) -> CloseReason {
        self.queue.ended().await
    }

    /// Returns the next frame that may be sent.
    fn next(&mut self, limits: &LinkLimits) -> Option<Utf8Bytes> {
        if let Some(frame) = self.first.pop_front() {
            return Some(frame);
        }
        let Some(resume) = &mut self.resume else { return self.outgoing.pop_front().map(Utf8Bytes::from) };
        if !resume.has_room(limits) {
            return None;
        }
        let kept = resume.unacknowledged_bytes();
        if let Some(charge) = &mut self.charge {
            let bytes = kept + self.outgoing.front()?.len();
            // If no frame is kept, one is sent even without memory: later frames wait for its
            // acknowledgement, which frees memory.
            match kept {
                0 => charge.resize_anyway(bytes),
                _ if !charge.resize(bytes) => return None,
                _ => {}
            }
        }
        let frame = Utf8Bytes::from(self.outgoing.pop_front()?);
        resume.sent(frame.clone(), frame.len());
        self.unacknowledged.set(resume.unacknowledged());
        Some(frame)
    }

    /// Whether messages wait that cannot be sent before the peer acknowledges earlier ones.
    fn is_blocked_on_acks(&self, limits: &LinkLimits) -> bool {
        let full = self.resume.as_ref().is_some_and(|resume| !resume.has_room(limits));
        full && self.first.is_empty() && !self.outgoing.is_empty()
    }

    /// Takes all unsent messages.
    async fn rest(&mut self) -> VecDeque<String> {
        let mut rest = std::mem::take(&mut self.outgoing);
        let _ = future::poll_once(self.queue.take(&mut rest)).await;
        rest
    }
}

/// Close reason for a link with a large frame that does not fit the memory budget.
pub const NO_MEMORY: &str = "no memory for a large frame: the gateway's budget (--max-memory) is used up";

/// A WebSocket over a metered stream. Boxed, because the futures that pass it on would each reserve
/// its 408 bytes for as long as the link lasts.
pub type WebSocket = Box<WebSocketStream<Metered>>;

/// Creates the gateway's end of a link. `leftover` are the bytes that followed the upgrade request.
/// Large incoming frames, and the buffers that they leave behind, are charged to `account`.
pub async fn accepted(
    stream: Stream,
    leftover: Vec<u8>,
    account: &Account,
    limits: &LinkLimits,
) -> WebSocket {
    let stream = Metered::charged(stream, leftover, account, limits);
    Box::new(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(limits))).await)
}

/// Moves the connection to a WebSocket with small buffers. The present buffers must be empty; see
/// [`Metered::is_between_messages`].
async fn with_small_buffers(socket: WebSocket, limits: &LinkLimits) -> WebSocket {
    let mut stream = socket.into_inner();
    stream.shrunk();
    Box::new(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(limits))).await)
}

/// Creates the edge's end of a link: sends the upgrade request over a new connection.
///
/// # Errors
/// The library's error, which is [`Error::Http`] if the gateway refused the upgrade.
pub async fn upgrade(
    stream: Stream,
    request: async_tungstenite::tungstenite::http::Request<()>,
    limits: &LinkLimits,
) -> Result<WebSocket, Error> {
    let stream = Metered::new(stream, limits);
    let (socket, _) =
        async_tungstenite::client_async_with_config(request, stream, Some(config(limits))).await?;
    Ok(Box::new(socket))
}

fn config(limits: &LinkLimits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits.read_buffer)
        .write_buffer_size(limits.write_buffer)
        .max_write_buffer_size(limits.queue_bytes + limits.message_bytes)
        .max_message_size(Some(limits.message_bytes))
        .max_frame_size(Some(limits.message_bytes))
}

/// Sends one frame over a link that is not driven yet.
///
/// # Errors
/// The reason why the link ended.
pub async fn send_frame(socket: &mut WebSocket, text: String, limits: &LinkLimits) -> Result<(), LinkEnd> {
    match timeout::within(limits.write_stall, send(socket, Message::text(text))).await {
        Ok(sent) => sent.map_err(lost),
        Err(_) => Err(LinkEnd::Lost("the peer does not read".into())),
    }
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), Error> {
    poll_fn(|context| Pin::new(&mut **socket).poll_ready(context)).await?;
    Pin::new(&mut **socket).start_send(message)?;
    poll_fn(|context| Pin::new(&mut **socket).poll_flush(context)).await
}

/// Waits for the first text frame, of at most `max` bytes, of a link that is not driven yet. Gives
/// up after [`LinkLimits::register_time`].
///
/// # Errors
/// The reason why the link ended, or must be closed.
pub async fn recv_frame(
    socket: &mut WebSocket,
    max: usize,
    limits: &LinkLimits,
) -> Result<Utf8Bytes, LinkEnd> {
    let by_us = |code, reason: &str| Err(LinkEnd::ByUs(CloseReason::new(code, reason)));
    let receiving = async {
        let mut heartbeat = Heartbeat::new(Instant::now());
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) if text.len() > max => {
                    return by_us(1009, "the first frame is too large");
                }
                Some(Ok(Message::Text(text))) => {
                    socket.get_mut().since = 0;
                    socket.get_mut().message_ended();
                    return Ok(text);
                }
                Some(Ok(Message::Binary(_))) => return by_us(1003, "binary frames are not supported"),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    if !heartbeat.control(Instant::now(), limits) {
                        return by_us(1008, "too many control frames");
                    }
                }
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(LinkEnd::Lost("the connection was closed".into())),
            }
        }
    };
    match timeout::within(limits.register_time, receiving).await {
        Ok(received) => received,
        Err(_) => by_us(1008, "timed out waiting for the first frame"),
    }
}

/// Checks that the peer of a link that is not driven yet is alive: sends a ping and waits for the
/// pong. The peer must not send data before. Gives up after [`LinkLimits::register_time`].
///
/// # Errors
/// The reason why the link ended, or must be closed.
pub async fn probe(socket: &mut WebSocket, limits: &LinkLimits) -> Result<(), LinkEnd> {
    let receiving = async {
        send(socket, Message::Ping(Default::default())).await.map_err(lost)?;
        let mut heartbeat = Heartbeat::new(Instant::now());
        loop {
            match socket.next().await {
                Some(Ok(Message::Pong(_))) => return Ok(()),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Ping(_))) if heartbeat.control(Instant::now(), limits) => {}
                Some(Ok(_)) => {
                    return Err(LinkEnd::ByUs(CloseReason::new(
                        1008,
                        "a frame before the response to the first one",
                    )));
                }
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(LinkEnd::Lost("the connection was closed".into())),
            }
        }
    };
    let gone =
        |_| Err(LinkEnd::Lost("no response to a ping, and another link of its server is alive".into()));
    timeout::within(limits.register_time, receiving).await.unwrap_or_else(gone)
}

/// Drives a link until it ends, then closes it; see [`end`]. `pacer` makes links end one after the
/// other when many are lost at once.
pub async fn drive(
    socket: WebSocket,
    outbound: &mut Outbound,
    handler: &mut (dyn LinkHandler + Send),
    pacer: Option<&Pacer>,
    limits: &LinkLimits,
) -> LinkEnd {
    let now = Instant::now();
    let mut driver = Driver {
        socket,
        outbound,
        handler,
        limits,
        dirty: false,
        stalled: None,
        written: 0,
        blocked_on_acks_since: None,
        partial: None,
        seen: 0,
        heartbeat: Heartbeat::new(now),
        timer: Timer::at(now + limits.ping_every),
        due: now + limits.ping_every,
    };
    let ended = loop {
        match poll_fn(|context| driver.poll(context)).await {
            DriverTurn::Ended(ended) => break ended,
            DriverTurn::Shrink => {
                let socket = Box::pin(with_small_buffers(driver.socket, limits)).await;
                driver = Driver { socket, ..driver };
            }
        }
    };
    let Driver { socket, outbound, .. } = driver;
    if let Some(pacer) = pacer {
        pacer.turn().await;
    }
    // Messages queued before the end are still sent: one of them may explain the end.
    let unsent = if matches!(ended, LinkEnd::ByUs(_)) { outbound.rest().await } else { VecDeque::new() };
    end(socket, unsent, &ended, limits).await;
    ended
}

/// Performs the closing handshake (RFC 6455, section 7.1): answers the peer's Close frame, or sends
/// ours and waits for the answer. Then closes the connection, but not before the peer has read all
/// that: closing at once could discard it. `unsent` is sent only if we ended the link. A lost or
/// silent link is closed without a handshake.
pub async fn end(socket: WebSocket, unsent: VecDeque<String>, ended: &LinkEnd, limits: &LinkLimits) {
    // Boxed, so that a running link does not reserve the memory that only its end needs.
    Box::pin(close_handshake(socket, unsent, ended, limits)).await;
}

async fn close_handshake(
    mut socket: WebSocket,
    unsent: VecDeque<String>,
    ended: &LinkEnd,
    limits: &LinkLimits,
) {
    let socket = &mut *socket;
    let closing = async {
        if let LinkEnd::ByUs(why) = ended {
            for text in unsent {
                poll_fn(|context| Pin::new(&mut *socket).poll_ready(context)).await.ok()?;
                Pin::new(&mut *socket).start_send(Message::text(text)).ok()?;
            }
            let frame = CloseFrame { code: CloseCode::from(why.code), reason: why.clipped().into() };
            socket.close(Some(frame)).await.ok()?;
            socket.get_mut().limit(limits.close_bytes);
            // Messages before the Close frame were already on their way. After an error the answer
            // cannot be read any more.
            while let Some(Ok(message)) = socket.next().await {
                if matches!(message, Message::Close(_)) {
                    break;
                }
                future::yield_now().await;
            }
        }
        if !matches!(ended, LinkEnd::ByUs(_) | LinkEnd::ByPeer(_)) {
            return None;
        }
        // The library has queued the answer to the peer's Close frame. Once it is sent, flushing
        // returns an error that says the connection is closed.
        let _ = poll_fn(|context| Pin::new(&mut *socket).poll_flush(context)).await;
        let stream = &mut socket.get_mut().inner;
        stream.finish(limits.close_time).await.ok()?;
        let mut rest = [0; 512];
        let mut left = limits.close_bytes;
        while left > 0 {
            let count = futures_lite::AsyncReadExt::read(stream, &mut rest).await.ok()?;
            if count == 0 {
                return Some(());
            }
            left = left.saturating_sub(count);
            // Yields, so that the time limit is checked even if the peer never stops sending.
            future::yield_now().await;
        }
        // The peer has until the time limit to read our Close frame. Reading any more of its data
        // would only serve a flood.
        std::future::pending().await
    };
    // A peer that does not read is not waited for.
    let _ = timeout::within(limits.close_time, closing).await;
}

/// Why the driver stops polling.
enum DriverTurn {
    Ended(LinkEnd),
    /// The library's buffers are large, and empty: replace them.
    Shrink,
}

struct Driver<'a> {
    socket: WebSocket,
    outbound: &'a mut Outbound,
    handler: &'a mut (dyn LinkHandler + Send),
    limits: &'a LinkLimits,
    /// Frames were written but not flushed yet.
    dirty: bool,
    /// Since when a write has made no progress.
    stalled: Option<Instant>,
    /// Bytes written to the stream when `stalled` was set.
    written: u64,
    /// Since when sending is blocked because the peer acknowledges nothing.
    blocked_on_acks_since: Option<Instant>,
    /// Since when a message is incomplete.
    partial: Option<Instant>,
    /// Bytes received of that message at the last check.
    seen: usize,
    heartbeat: Heartbeat,
    timer: Timer,
    /// When `timer` fires.
    due: Instant,
}

impl Driver<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<DriverTurn> {
        for _ in 0..LINK_BURST {
            if let Poll::Ready(ended) = self.write(context) {
                return Poll::Ready(DriverTurn::Ended(ended));
            }
            match self.read(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(ended)) => return Poll::Ready(DriverTurn::Ended(ended)),
                Poll::Pending if self.may_shrink(context) => return Poll::Ready(DriverTurn::Shrink),
                Poll::Pending => match self.tick(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(ended)) => return Poll::Ready(DriverTurn::Ended(ended)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        // The timers must run even if the peer never stops sending: other sessions' calls depend on
        // them.
        if let Poll::Ready(Err(ended)) = self.tick(context) {
            return Poll::Ready(DriverTurn::Ended(ended));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves frames from the queue to the socket. Ready only if the link has ended.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<LinkEnd> {
        let mut end = None;
        loop {
            if self.outbound.outgoing.is_empty() {
                match self.outbound.queue.poll_take(context, &mut self.outbound.outgoing) {
                    Poll::Ready(Received::Ended(why)) => end = Some(why),
                    Poll::Ready(Received::Some) | Poll::Pending => {}
                }
            }
            if self.outbound.first.is_empty() && self.outbound.outgoing.is_empty() {
                break;
            }
            match Pin::new(&mut *self.socket).poll_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => break,
            }
            let Some(frame) = self.outbound.next(self.limits) else { break };
            self.socket.get_mut().frame_written(frame.len());
            if let Err(error) = Pin::new(&mut *self.socket).start_send(Message::Text(frame)) {
                return Poll::Ready(lost(error));
            }
            self.dirty = true;
        }
        if self.blocked_on_acks_since.is_none() && self.outbound.is_blocked_on_acks(self.limits) {
            self.blocked_on_acks_since = Some(Instant::now());
        }
        if self.dirty {
            match Pin::new(&mut *self.socket).poll_flush(context) {
                Poll::Ready(Ok(())) => {
                    self.dirty = false;
                    self.stalled = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => self.stall(),
            }
        }
        match end {
            Some(why) if !self.dirty => Poll::Ready(LinkEnd::ByUs(why)),
            _ => Poll::Pending,
        }
    }

    /// Whether the library's buffers are large, were not needed for some time and are empty. Called
    /// only when there is nothing to read.
    fn may_shrink(&mut self, context: &mut Context<'_>) -> bool {
        let Some(due) = self.socket.get_ref().shrink_at() else { return false };
        if Instant::now() < due {
            return false;
        }
        let flushed = !self.dirty
            // The library may have a frame of its own to send: the answer to a ping.
            && matches!(Pin::new(&mut *self.socket).poll_flush(context), Poll::Ready(Ok(())));
        if flushed && self.socket.get_ref().is_between_messages() {
            return true;
        }
        self.socket.get_mut().shrink_later();
        false
    }

    /// Records that a write waits for the peer. This is a stall only as long as no byte is sent.
    fn stall(&mut self) {
        let written = self.socket.get_ref().written;
        if self.stalled.is_none() || written != self.written {
            let now = Instant::now();
            if self.stalled.is_some() {
                // Waiting bytes were accepted: the peer is alive, and busy with a message larger
                // than its buffers.
                self.heartbeat.heard(now);
            }
            self.stalled = Some(now);
            self.written = written;
        }
    }

    /// Handles one message. Pending if there is none.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let Poll::Ready(message) = Pin::new(&mut *self.socket).poll_next(context) else {
            return Poll::Pending;
        };
        let now = Instant::now();
        self.socket.get_mut().since = 0;
        self.seen = 0;
        self.partial = None;
        if matches!(message, Some(Ok(Message::Text(_)))) {
            self.socket.get_mut().message_ended();
        }
        let handled = match message {
            Some(Ok(Message::Text(text))) => {
                self.heartbeat.heard(now);
                self.text(now, &text)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                if self.heartbeat.control(now, self.limits) {
                    Ok(())
                } else {
                    Err(CloseReason::new(1008, "too many control frames"))
                }
            }
            Some(Ok(Message::Binary(_))) => Err(CloseReason::new(1003, "binary frames are not supported")),
            Some(Ok(Message::Close(frame))) => return Poll::Ready(Err(closed(frame))),
            Some(Ok(Message::Frame(_))) => Ok(()),
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(LinkEnd::Lost("the connection was closed".into()))),
        };
        Poll::Ready(handled.map_err(LinkEnd::ByUs))
    }

    /// Handles a text frame: an acknowledgement, or one for the [`LinkHandler`].
    fn text(&mut self, now: Instant, text: &str) -> Result<(), CloseReason> {
        let count = self.outbound.resume.as_ref().and_then(|_| resume::read(text));
        match (&mut self.outbound.resume, count) {
            (Some(resume), Some(count)) => {
                self.blocked_on_acks_since = None;
                let acknowledged = resume.acknowledge(count);
                self.outbound.update_charge();
                acknowledged.map_err(|_| CloseReason::new(1008, "invalid acknowledgement"))
            }
            (Some(resume), None) => {
                self.handler.frame(now, text)?;
                resume.received(now, text.len());
                self.outbound.first.extend(resume.due_acknowledgement(self.limits).map(Utf8Bytes::from));
                Ok(())
            }
            (None, _) => self.handler.frame(now, text),
        }
    }

    /// Checks the timers. Ready if something was done, pending if there is nothing to do before the
    /// timer fires.
    fn tick(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let since = self.socket.get_ref().since;
        if since > self.socket.get_ref().max {
            return Poll::Ready(Err(LinkEnd::ByUs(CloseReason::new(1008, "too many fragments"))));
        }
        if since != self.seen {
            let now = Instant::now();
            // Part of a large message over a slow connection is a sign of life long before it is
            // complete.
            self.heartbeat.heard(now);
            self.partial.get_or_insert(now);
            self.seen = since;
        }
        let target = self.deadline();
        if target < self.due {
            self.due = target;
            self.timer.set_at(target);
        }
        ready!(Pin::new(&mut self.timer).poll(context));
        let now = Instant::now();
        if self.stalled.is_some() {
            self.socket.get_mut().inner.retry_write();
        }
        if self.socket.get_ref().waits_for_memory() {
            // The peer is not silent: we have stopped reading.
            self.heartbeat.heard(now);
        }
        let done = self.timeout(now);
        self.due = self.deadline();
        self.timer.set_at(self.due);
        Poll::Ready(done)
    }

    fn timeout(&mut self, now: Instant) -> Result<(), LinkEnd> {
        let over = |since: Option<Instant>, limit| since.is_some_and(|since| now >= since + limit);
        if over(self.stalled, self.limits.write_stall) {
            return Err(LinkEnd::Lost("the peer does not read".into()));
        }
        if over(self.blocked_on_acks_since, self.ack_timeout()) {
            return Err(LinkEnd::Lost("the peer does not acknowledge frames".into()));
        }
        if over(self.partial, self.message_time()) {
            return Err(LinkEnd::ByUs(CloseReason::new(1008, "a message was received too slowly")));
        }
        match self.heartbeat.tick(now, self.limits) {
            HeartbeatAction::Dead => return Err(LinkEnd::Silent(self.limits.dead_after)),
            // A ping would only wait behind frames that are not written yet.
            HeartbeatAction::Ping if !self.dirty => {
                let ping = Message::Ping(Default::default());
                Pin::new(&mut *self.socket).start_send(ping).map_err(lost)?;
                self.dirty = true;
            }
            HeartbeatAction::Ping | HeartbeatAction::Fine => {}
        }
        if let Some(resume) = &mut self.outbound.resume
            && resume.due(self.limits).is_some_and(|due| now >= due)
        {
            self.outbound.first.push_back(resume.acknowledgement().into());
        }
        if self.handler.deadline().is_some_and(|due| now >= due) {
            self.handler.tick(now).map_err(LinkEnd::ByUs)?;
        }
        Ok(())
    }

    /// Returns how long the current message may take, given the bytes received so far.
    fn message_time(&self) -> Duration {
        self.limits.message_time + self.transfer_time(self.seen)
    }

    /// Returns how long the peer may take to acknowledge something. It acknowledges a message when
    /// it is complete, and that message may be large and the connection slow.
    fn ack_timeout(&self) -> Duration {
        let waiting = self.outbound.resume.as_ref().map_or(0, Resume::unacknowledged_bytes);
        self.limits.write_stall + self.transfer_time(waiting)
    }

    /// Returns how long `bytes` may take, at [`LinkLimits::message_floor`] bytes per second.
    fn transfer_time(&self, bytes: usize) -> Duration {
        let millis = (bytes as u64 * 1000).checked_div(self.limits.message_floor as u64);
        Duration::from_millis(millis.unwrap_or_default())
    }

    fn deadline(&self) -> Instant {
        // Retries in between as well: otherwise progress made right after one try would be dated to
        // the next.
        let look = || Instant::now() + self.limits.write_stall / STALL_RETRIES;
        let stalled = self.stalled.map(|since| look().min(since + self.limits.write_stall));
        let partial = self.partial.map(|since| since + self.message_time());
        let blocked = self.blocked_on_acks_since.map(|since| since + self.ack_timeout());
        let ack_due = self.outbound.resume.as_ref().and_then(|resume| resume.due(self.limits));
        let heartbeat_due = self.heartbeat.deadline(self.limits);
        let shrink = self.socket.get_ref().shrink_at();
        [stalled, blocked, partial, ack_due, shrink, self.handler.deadline()]
            .into_iter()
            .flatten()
            .fold(heartbeat_due, Instant::min)
    }
}

fn closed(frame: Option<CloseFrame>) -> LinkEnd {
    let frame = frame.map(|frame| CloseReason::new(frame.code.into(), frame.reason.as_str()));
    LinkEnd::ByPeer(frame.unwrap_or(CloseReason::new(1005, "")))
}

fn lost(error: Error) -> LinkEnd {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => LinkEnd::Lost("the connection was closed".into()),
        Error::Io(error) => LinkEnd::Lost(error.to_string()),
        other => LinkEnd::Lost(other.to_string()),
    }
}

/// Converts a read error to the end of the link, with the code and reason sent to the peer.
fn broken(error: Error) -> LinkEnd {
    let (code, reason) = match &error {
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            (1009, format!("a message is larger than {max_size} bytes"))
        }
        Error::Capacity(_) => (1009, "a message is too large".into()),
        Error::Utf8(_) => (1007, "a text frame is not UTF-8".into()),
        Error::Protocol(
            async_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => {
            return LinkEnd::Lost("the connection was closed without a close frame".into());
        }
        Error::Protocol(error) => (1002, error.to_string()),
        Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => (CLOSE_LATER, NO_MEMORY.into()),
        _ => return lost(error),
    };
    LinkEnd::ByUs(CloseReason { code, reason })
}
