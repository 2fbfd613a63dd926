//! One link: a WebSocket driven by one task.
//!
//! That task owns the socket, so no send is ever cancelled half-way. It writes what is in its queue, several frames
//! in one write; hands each frame that arrives to its [`LinkHandler`]; keeps the heartbeat; and ends for one reason. What has to
//! outlive the socket, so that the conversation can go on over another, is its [`Outbound`].
//! What the frames mean is `tunnel`'s business.

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
    limits::{CLOSE_REASON, LINK_BURST, LinkLimits, STALL_LOOKS},
    runtime::pacer::Pacer,
    tunnel::{
        CLOSE_LATER,
        heartbeat::{Heartbeat, HeartbeatAction},
        resume::{self, CannotResume, Resume},
    },
    util,
};

/// Our reason to end a link, as the peer is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CloseReason {
    /// Close code (RFC 6455, section 7.4, and [`crate::tunnel`]).
    pub code: u16,
    /// In words.
    pub reason: String,
}

impl CloseReason {
    /// A farewell.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Why a link ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkEnd {
    /// The peer closed it.
    ByPeer(CloseReason),
    /// We closed it.
    ByUs(CloseReason),
    /// The line broke: the reason.
    Lost(String),
    /// Nothing was heard from the peer for this long.
    Silent(Duration),
}

impl LinkEnd {
    /// Nobody wanted it: the conversation may go on over another connection.
    pub fn is_accident(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Silent(_))
    }
}

impl std::fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ByPeer(why) if why.reason.is_empty() => {
                write!(f, "the peer closed the link (code {})", why.code)
            }
            Self::ByPeer(why) => {
                write!(f, "the peer closed the link (code {}: {})", why.code, util::escape::show(&why.reason))
            }
            Self::ByUs(why) => write!(f, "we closed the link (code {}: {})", why.code, why.reason),
            Self::Lost(why) => write!(f, "the link was lost: {why}"),
            Self::Silent(time) => write!(f, "nothing was heard from the peer for {} s", time.as_secs()),
        }
    }
}

/// What stands at our end of a link.
pub trait LinkHandler {
    /// A text frame arrived.
    ///
    /// # Errors
    /// A [`CloseReason`] ends the link.
    fn frame(&mut self, now: Instant, text: &str) -> Result<(), CloseReason>;
    /// When to call [`LinkHandler::tick`].
    fn deadline(&self) -> Option<Instant>;
    /// Time has passed.
    ///
    /// # Errors
    /// A [`CloseReason`] ends the link.
    fn tick(&mut self, now: Instant) -> Result<(), CloseReason>;
    /// By which links that are lost at the same time end one after the other. `None`: there are few.
    fn ends(&self) -> Option<Arc<Pacer>> {
        None
    }
}

/// What goes out on a link: its queue, and what has to be known to go on over another connection.
#[derive(Debug)]
pub struct Outbound {
    queue: Receiver<CloseReason>,
    /// Goes out before anything else, and does not count.
    first: VecDeque<Utf8Bytes>,
    /// Taken from the queue.
    outgoing: VecDeque<String>,
    resume: Option<Resume<Utf8Bytes>>,
    unacknowledged: Unacknowledged,
    /// What pays for the frames that are kept until the peer acknowledges them.
    charge: Option<Charge>,
}

/// Number of frames that were sent and that the peer has not acknowledged, for other tasks than the one that drives the
/// link. 0 where nothing is acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Unacknowledged(Arc<AtomicUsize>);

impl Unacknowledged {
    /// The number.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn set(&self, count: usize) {
        self.0.store(count, Ordering::Release);
    }
}

impl Outbound {
    /// What comes from a queue goes out; with the connection it ends.
    pub fn new(queue: Receiver<CloseReason>) -> Self {
        let (first, outgoing, unacknowledged) = Default::default();
        Self { queue, first, outgoing, resume: None, unacknowledged, charge: None }
    }

    /// The account that pays for the frames that are kept.
    pub fn charge_to(&mut self, account: &Account) {
        self.charge = Some(account.charge());
    }

    /// From now on both ends count frames.
    pub fn count(&mut self) {
        self.resume = Some(Resume::new());
    }

    /// The number of frames without acknowledgement, as it changes.
    pub fn unacknowledged(&self) -> Unacknowledged {
        self.unacknowledged.clone()
    }

    /// Puts a frame before all others; it does not count.
    pub fn first(&mut self, text: String) {
        self.first.push_back(text.into());
    }

    /// How many frames have arrived, where that is counted.
    pub fn received(&self) -> Option<u64> {
        self.resume.as_ref().map(Resume::count)
    }

    /// Whether the peer has acknowledged more frames than these: then who says that it has so many said it long ago.
    pub fn is_past(&self, received: u64) -> bool {
        self.resume.as_ref().is_some_and(|resume| received < resume.acknowledged())
    }

    /// Another connection is there, and the peer has received so many frames: what it has not goes out again.
    ///
    /// # Errors
    /// [`CannotResume`]: the conversation cannot go on.
    pub fn resume(&mut self, received: u64) -> Result<(), CannotResume> {
        let resume = self.resume.as_mut().ok_or(CannotResume)?;
        self.first = resume.resume(received)?.into();
        self.update_charge();
        Ok(())
    }

    /// The peer has acknowledged some frames.
    fn update_charge(&mut self) {
        self.unacknowledged.set(self.resume.as_ref().map_or(0, Resume::unacknowledged));
        let kept = self.resume.as_ref().map_or(0, Resume::unacknowledged_bytes);
        if let Some(charge) = &mut self.charge {
            charge.resize_anyway(kept);
        }
    }

    /// Waits until somebody ends the queue: with this.
    pub async fn ended(&mut self) -> CloseReason {
        self.queue.ended().await
    }

    /// The next frame that may go out.
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
            // One goes out in any case: its acknowledgement makes room, and is what the next one waits for.
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

    /// Something waits for the peer's acknowledgements.
    fn is_blocked_on_acks(&self, limits: &LinkLimits) -> bool {
        let full = self.resume.as_ref().is_some_and(|resume| !resume.has_room(limits));
        full && self.first.is_empty() && !self.outgoing.is_empty()
    }

    /// All that is left of it.
    async fn rest(&mut self) -> VecDeque<String> {
        let mut rest = std::mem::take(&mut self.outgoing);
        let _ = future::poll_once(self.queue.take(&mut rest)).await;
        rest
    }
}

/// Why a link is closed whose large frame finds no memory.
pub const NO_MEMORY: &str = "no memory for a large frame: the gateway's budget (--max-memory) is used up";

/// A WebSocket over one of our streams.
pub type WebSocket = WebSocketStream<Metered>;

/// The gateway's end: `glued` are bytes that came behind the upgrade request. The account pays for large frames that come in
/// and for the buffers that they leave behind.
pub async fn accepted(stream: Stream, glued: Vec<u8>, account: &Account, limits: &LinkLimits) -> WebSocket {
    let stream = Metered::charged(stream, glued, account, limits);
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(limits))).await
}

/// The same connection with small buffers. Nothing may be in the present ones; see [`Metered::is_between_messages`].
async fn with_small_buffers(socket: WebSocket, limits: &LinkLimits) -> WebSocket {
    let mut stream = socket.into_inner();
    stream.shrunk();
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config(limits))).await
}

/// The edge's end: sends the upgrade request over a fresh connection.
///
/// # Errors
/// The library's: [`Error::Http`] when the gateway refused the upgrade.
pub async fn upgrade(
    stream: Stream,
    request: async_tungstenite::tungstenite::http::Request<()>,
    limits: &LinkLimits,
) -> Result<WebSocket, Error> {
    let stream = Metered::new(stream, limits);
    let (socket, _) =
        async_tungstenite::client_async_with_config(request, stream, Some(config(limits))).await?;
    Ok(socket)
}

fn config(limits: &LinkLimits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(limits.read_buffer)
        .write_buffer_size(limits.write_buffer)
        .max_write_buffer_size(limits.queue_bytes + limits.message_bytes)
        .max_message_size(Some(limits.message_bytes))
        .max_frame_size(Some(limits.message_bytes))
}

/// Sends one frame over a link that nobody drives yet.
///
/// # Errors
/// Why the link ended.
pub async fn send_frame(socket: &mut WebSocket, text: String, limits: &LinkLimits) -> Result<(), LinkEnd> {
    match timeout::within(limits.write_stall, send(socket, Message::text(text))).await {
        Ok(sent) => sent.map_err(lost),
        Err(_) => Err(LinkEnd::Lost("the peer does not read".into())),
    }
}

async fn send(socket: &mut WebSocket, message: Message) -> Result<(), Error> {
    poll_fn(|context| Pin::new(&mut *socket).poll_ready(context)).await?;
    Pin::new(&mut *socket).start_send(message)?;
    poll_fn(|context| Pin::new(&mut *socket).poll_flush(context)).await
}

/// Waits for the first text frame of a link that nobody drives yet, of at most so many bytes.
///
/// # Errors
/// Why the link ended, or has to.
pub async fn recv_frame(
    socket: &mut WebSocket,
    most: usize,
    limits: &LinkLimits,
) -> Result<Utf8Bytes, LinkEnd> {
    let by_us = |code, reason: &str| Err(LinkEnd::ByUs(CloseReason::new(code, reason)));
    let hearing = async {
        let mut liveness = Heartbeat::new(Instant::now());
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) if text.len() > most => {
                    return by_us(1009, "the first frame is too large");
                }
                Some(Ok(Message::Text(text))) => {
                    socket.get_mut().since = 0;
                    socket.get_mut().message_ended();
                    return Ok(text);
                }
                Some(Ok(Message::Binary(_))) => return by_us(1003, "frames are text"),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    if !liveness.control(Instant::now(), limits) {
                        return by_us(1008, "too many control frames");
                    }
                }
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(LinkEnd::Lost("the connection was closed".into())),
            }
        }
    };
    match timeout::within(limits.register_time, hearing).await {
        Ok(heard) => heard,
        Err(_) => by_us(1008, "the first frame did not come in time"),
    }
}

/// Whether the peer of a link that nobody drives yet is there: it has to answer a ping, and says nothing before.
///
/// # Errors
/// Why the link ended, or has to.
pub async fn probe(socket: &mut WebSocket, limits: &LinkLimits) -> Result<(), LinkEnd> {
    let hearing = async {
        send(socket, Message::Ping(Default::default())).await.map_err(lost)?;
        let mut liveness = Heartbeat::new(Instant::now());
        loop {
            match socket.next().await {
                Some(Ok(Message::Pong(_))) => return Ok(()),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Ping(_))) if liveness.control(Instant::now(), limits) => {}
                Some(Ok(_)) => {
                    return Err(LinkEnd::ByUs(CloseReason::new(
                        1008,
                        "a frame before the first is answered",
                    )));
                }
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(LinkEnd::Lost("the connection was closed".into())),
            }
        }
    };
    let gone =
        |_| Err(LinkEnd::Lost("it does not answer a ping, and another link of its server is alive".into()));
    timeout::within(limits.register_time, hearing).await.unwrap_or_else(gone)
}

/// Drives a link until it ends, says goodbye where there is something to say, and closes the connection.
pub async fn drive(
    socket: WebSocket,
    line: &mut Outbound,
    peer: &mut (dyn LinkHandler + Send),
    limits: &LinkLimits,
) -> LinkEnd {
    let now = Instant::now();
    let mut driver = Driver {
        socket,
        line,
        peer,
        limits,
        dirty: false,
        stalled: None,
        written: 0,
        choked: None,
        partial: None,
        seen: 0,
        liveness: Heartbeat::new(now),
        timer: Timer::at(now + limits.ping_every),
        due: now + limits.ping_every,
    };
    let ended = loop {
        match poll_fn(|context| driver.poll(context)).await {
            DriverTurn::Ended(ended) => break ended,
            DriverTurn::Shrink => {
                let socket = with_small_buffers(driver.socket, limits).await;
                driver = Driver { socket, ..driver };
            }
        }
    };
    let Driver { socket, line, peer, .. } = driver;
    if let Some(ends) = peer.ends() {
        ends.turn().await;
    }
    // What was queued before the end still goes out: among it may be the reason for the end.
    let unsent = if matches!(ended, LinkEnd::ByUs(_)) { line.rest().await } else { VecDeque::new() };
    end(socket, unsent, &ended, limits).await;
    ended
}

/// Closes the WebSocket (RFC 6455, section 7.1): the peer's Close frame is answered, or ours is sent and its answer waited
/// for; then the connection is closed. Not before the peer has read that: closing at once could overtake it.
/// Of what is unsent it is told only when it was we who ended the link.
pub async fn end(socket: WebSocket, unsent: VecDeque<String>, ended: &LinkEnd, limits: &LinkLimits) {
    // In a box, so that a link does not hold all its life what its end needs.
    Box::pin(say_goodbye(socket, unsent, ended, limits)).await;
}

async fn say_goodbye(mut socket: WebSocket, unsent: VecDeque<String>, ended: &LinkEnd, limits: &LinkLimits) {
    let socket = &mut socket;
    let farewell = async {
        if let LinkEnd::ByUs(why) = ended {
            for text in unsent {
                poll_fn(|context| Pin::new(&mut *socket).poll_ready(context)).await.ok()?;
                Pin::new(&mut *socket).start_send(Message::text(text)).ok()?;
            }
            let frame = CloseFrame { code: CloseCode::from(why.code), reason: clipped(&why.reason).into() };
            socket.close(Some(frame)).await.ok()?;
            socket.get_mut().limit(limits.farewell_bytes);
            // Whatever comes first was under way. An error: the answer cannot be read any more.
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
        // The library has queued the answer to the peer's Close frame. It says that the connection is closed when it is out.
        let _ = poll_fn(|context| Pin::new(&mut *socket).poll_flush(context)).await;
        let stream = &mut socket.get_mut().inner;
        stream.finish(limits.farewell).await.ok()?;
        let mut rest = [0; 512];
        let mut left = limits.farewell_bytes;
        while left > 0 {
            let count = futures_lite::AsyncReadExt::read(stream, &mut rest).await.ok()?;
            if count == 0 {
                return Some(());
            }
            left = left.saturating_sub(count);
            // A peer that goes on talking must not keep the limit from being looked at.
            future::yield_now().await;
        }
        // It has until then to read our words; reading its own for longer would only feed a flood.
        std::future::pending().await
    };
    // A peer that does not listen is not waited for.
    let _ = timeout::within(limits.farewell, farewell).await;
}

/// As much of a reason as a close frame can hold; the library would send none of a longer one.
fn clipped(reason: &str) -> &str {
    let mut end = reason.len().min(CLOSE_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

/// What the driver stops for.
enum DriverTurn {
    Ended(LinkEnd),
    /// The buffers of the library are large, and empty.
    Shrink,
}

struct Driver<'a> {
    socket: WebSocket,
    line: &'a mut Outbound,
    peer: &'a mut (dyn LinkHandler + Send),
    limits: &'a LinkLimits,
    /// Frames were written that are not flushed yet.
    dirty: bool,
    /// Since when a write makes no progress.
    stalled: Option<Instant>,
    /// Bytes that had left when `stalled` was set.
    written: u64,
    /// Since when nothing may be sent because the peer acknowledges nothing.
    choked: Option<Instant>,
    /// Since when a message is incomplete.
    partial: Option<Instant>,
    /// Bytes of it at the last look.
    seen: usize,
    liveness: Heartbeat,
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
        // A peer that always has something more to say must not stop the clock for the others' calls.
        if let Poll::Ready(Err(ended)) = self.tick(context) {
            return Poll::Ready(DriverTurn::Ended(ended));
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves the queue to the socket. Ready only when the link has ended.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<LinkEnd> {
        let mut end = None;
        loop {
            if self.line.outgoing.is_empty() {
                match self.line.queue.poll_take(context, &mut self.line.outgoing) {
                    Poll::Ready(Received::Ended(why)) => end = Some(why),
                    Poll::Ready(Received::Some) | Poll::Pending => {}
                }
            }
            if self.line.first.is_empty() && self.line.outgoing.is_empty() {
                break;
            }
            match Pin::new(&mut self.socket).poll_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => break,
            }
            let Some(frame) = self.line.next(self.limits) else { break };
            self.socket.get_mut().frame_written(frame.len());
            if let Err(error) = Pin::new(&mut self.socket).start_send(Message::Text(frame)) {
                return Poll::Ready(lost(error));
            }
            self.dirty = true;
        }
        if self.choked.is_none() && self.line.is_blocked_on_acks(self.limits) {
            self.choked = Some(Instant::now());
        }
        if self.dirty {
            match Pin::new(&mut self.socket).poll_flush(context) {
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

    /// Whether the library's buffers are large, were not needed for some time and hold nothing. There was nothing to read.
    fn may_shrink(&mut self, context: &mut Context<'_>) -> bool {
        let Some(due) = self.socket.get_ref().shrink_at() else { return false };
        if Instant::now() < due {
            return false;
        }
        let flushed = !self.dirty
            // The library may have something of its own to say: the answer to a ping.
            && matches!(Pin::new(&mut self.socket).poll_flush(context), Poll::Ready(Ok(())));
        if flushed && self.socket.get_ref().is_between_messages() {
            return true;
        }
        self.socket.get_mut().shrink_later();
        false
    }

    /// A write is waiting for the peer; that is a stall only as long as no byte leaves.
    fn stall(&mut self) {
        let written = self.socket.get_ref().written;
        if self.stalled.is_none() || written != self.written {
            let now = Instant::now();
            if self.stalled.is_some() {
                // What waited was taken in: somebody is there, busy with a message that is larger than its buffers.
                self.liveness.heard(now);
            }
            self.stalled = Some(now);
            self.written = written;
        }
    }

    /// Handles one message. Pending: there is none.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(context) else {
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
                self.liveness.heard(now);
                self.text(now, &text)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                if self.liveness.control(now, self.limits) {
                    Ok(())
                } else {
                    Err(CloseReason::new(1008, "too many control frames"))
                }
            }
            Some(Ok(Message::Binary(_))) => Err(CloseReason::new(1003, "frames are text")),
            Some(Ok(Message::Close(frame))) => return Poll::Ready(Err(closed(frame))),
            Some(Ok(Message::Frame(_))) => Ok(()),
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(LinkEnd::Lost("the connection was closed".into()))),
        };
        Poll::Ready(handled.map_err(LinkEnd::ByUs))
    }

    /// A text frame: an acknowledgement, or the peer's.
    fn text(&mut self, now: Instant, text: &str) -> Result<(), CloseReason> {
        let count = self.line.resume.as_ref().and_then(|_| resume::read(text));
        match (&mut self.line.resume, count) {
            (Some(resume), Some(count)) => {
                self.choked = None;
                let acknowledged = resume.acknowledge(count);
                self.line.update_charge();
                acknowledged.map_err(|_| CloseReason::new(1008, "an acknowledgement that cannot be"))
            }
            (Some(resume), None) => {
                self.peer.frame(now, text)?;
                resume.received(now, text.len());
                self.line.first.extend(resume.owed(self.limits).map(Utf8Bytes::from));
                Ok(())
            }
            (None, _) => self.peer.frame(now, text),
        }
    }

    /// Looks at the clock. Ready when something was done, pending when there is nothing to do before the timer fires.
    fn tick(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let since = self.socket.get_ref().since;
        if since > self.socket.get_ref().most {
            return Poll::Ready(Err(LinkEnd::ByUs(CloseReason::new(1008, "fragments without end"))));
        }
        if since != self.seen {
            let now = Instant::now();
            // A large message over a slow line is a sign of life long before it is whole.
            self.liveness.heard(now);
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
            // It is we who do not read.
            self.liveness.heard(now);
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
        if over(self.choked, self.choke_time()) {
            return Err(LinkEnd::Lost("the peer acknowledges nothing".into()));
        }
        if over(self.partial, self.message_time()) {
            return Err(LinkEnd::ByUs(CloseReason::new(1008, "a message came too slowly")));
        }
        match self.liveness.tick(now, self.limits) {
            HeartbeatAction::Dead => return Err(LinkEnd::Silent(self.limits.dead_after)),
            // With frames waiting to be written a ping would only wait behind them.
            HeartbeatAction::Ping if !self.dirty => {
                let ping = Message::Ping(Default::default());
                Pin::new(&mut self.socket).start_send(ping).map_err(lost)?;
                self.dirty = true;
            }
            HeartbeatAction::Ping | HeartbeatAction::Fine => {}
        }
        if let Some(resume) = &mut self.line.resume
            && resume.due(self.limits).is_some_and(|due| now >= due)
        {
            self.line.first.push_back(resume.tell().into());
        }
        if self.peer.deadline().is_some_and(|due| now >= due) {
            self.peer.tick(now).map_err(LinkEnd::ByUs)?;
        }
        Ok(())
    }

    /// How long the bytes of the present message have paid for.
    fn message_time(&self) -> Duration {
        self.limits.message_time + self.paid(self.seen)
    }

    /// How long the peer has to acknowledge something: it does so when a message is whole, which may be large and the line slow.
    fn choke_time(&self) -> Duration {
        let waiting = self.line.resume.as_ref().map_or(0, Resume::unacknowledged_bytes);
        self.limits.write_stall + self.paid(waiting)
    }

    /// How long so many bytes may take.
    fn paid(&self, bytes: usize) -> Duration {
        let paid = (bytes as u64 * 1000).checked_div(self.limits.message_floor as u64);
        Duration::from_millis(paid.unwrap_or_default())
    }

    fn deadline(&self) -> Instant {
        // Tried in between as well: else progress just after a try would count as progress at the end.
        let look = || Instant::now() + self.limits.write_stall / STALL_LOOKS;
        let stalled = self.stalled.map(|since| look().min(since + self.limits.write_stall));
        let partial = self.partial.map(|since| since + self.message_time());
        let choked = self.choked.map(|since| since + self.choke_time());
        let owed = self.line.resume.as_ref().and_then(|resume| resume.due(self.limits));
        let live = self.liveness.deadline(self.limits);
        let shrink = self.socket.get_ref().shrink_at();
        [stalled, choked, partial, owed, shrink, self.peer.deadline()]
            .into_iter()
            .flatten()
            .fold(live, Instant::min)
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

/// What a failed read means, and what the peer is to be told of it.
fn broken(error: Error) -> LinkEnd {
    let (code, reason) = match &error {
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            (1009, format!("a message has more than {max_size} bytes"))
        }
        Error::Capacity(_) => (1009, "a message is too large".into()),
        Error::Utf8(_) => (1007, "a text frame is not UTF-8".into()),
        Error::Protocol(
            async_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => {
            return LinkEnd::Lost("the connection was closed without a word".into());
        }
        Error::Protocol(error) => (1002, error.to_string()),
        Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => (CLOSE_LATER, NO_MEMORY.into()),
        _ => return lost(error),
    };
    LinkEnd::ByUs(CloseReason { code, reason })
}
