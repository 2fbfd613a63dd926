//! One link: a WebSocket driven by one task.
//!
//! The task owns the socket, so no send is ever cancelled half-way. It writes the frames of its
//! [`Outbound`], several in one write; passes each incoming frame to its [`LinkHandler`]; and ends
//! with one reason. What to send, and when a peer is too slow or dead, is decided without a socket:
//! `net::outbound` holds the frames and outlives the connection, `tunnel::link_timers` the timers,
//! `tunnel::first_frame` the limits before the registration. The meaning of the frames is defined in
//! `tunnel`.

mod metered;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
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
    drain::{Drained, drain},
    outbound::Outbound,
    stream::Stream,
    timeout,
};
use crate::{
    budget::Account,
    limits::{LINK_BURST, LinkLimits},
    runtime::pacer::Pacer,
    tunnel::{
        CLOSE_LATER,
        close::{CloseReason, LinkEnd},
        first_frame::FirstFrame,
        handler::LinkHandler,
        heartbeat::Heartbeat,
        link_timers::{LinkTimers, Observed, TimerAction},
        outbound::TextFrame,
    },
};

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
    let mut first = FirstFrame::new(Instant::now(), max, limits);
    let receiving = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    first.on_text(text.len()).map_err(LinkEnd::ByUs)?;
                    socket.get_mut().since = 0;
                    socket.get_mut().message_ended();
                    return Ok(text);
                }
                Some(Ok(Message::Binary(_))) => return Err(binary()),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                    first.on_control(Instant::now(), limits).map_err(LinkEnd::ByUs)?;
                }
                Some(Err(error)) => return Err(broken(error)),
                None => return Err(LinkEnd::Lost("the connection was closed".into())),
            }
        }
    };
    match timeout::within(limits.register_time, receiving).await {
        Ok(received) => received,
        Err(_) => Err(LinkEnd::ByUs(FirstFrame::timed_out())),
    }
}

fn binary() -> LinkEnd {
    LinkEnd::ByUs(CloseReason::new(1003, "binary frames are not supported"))
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
        timers: LinkTimers::new(now),
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
        match drain(stream, limits.close_bytes).await {
            Drained::Ended => Some(()),
            Drained::Failed => None,
            // The peer has until the time limit to read our Close frame. Reading any more of its
            // data would only serve a flood.
            Drained::TooMuch => std::future::pending().await,
        }
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
    timers: LinkTimers,
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
            if let Some(why) = self.outbound.poll_fill(context) {
                end = Some(why);
            }
            if !self.outbound.has_frame() {
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
        if !self.timers.is_blocked_on_acks() && self.outbound.is_blocked_on_acks(self.limits) {
            self.timers.on_blocked_on_acks(Instant::now());
        }
        if self.dirty {
            match Pin::new(&mut *self.socket).poll_flush(context) {
                Poll::Ready(Ok(())) => {
                    self.dirty = false;
                    self.timers.on_flushed();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => {
                    let written = self.socket.get_ref().written;
                    self.timers.on_write_blocked(Instant::now(), written, self.limits);
                }
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

    /// Handles one message. Pending if there is none.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let Poll::Ready(message) = Pin::new(&mut *self.socket).poll_next(context) else {
            return Poll::Pending;
        };
        let now = Instant::now();
        self.socket.get_mut().since = 0;
        self.timers.on_message();
        if matches!(message, Some(Ok(Message::Text(_)))) {
            self.socket.get_mut().message_ended();
        }
        let handled = match message {
            Some(Ok(Message::Text(text))) => {
                self.timers.on_text(now);
                self.text(now, &text)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.timers.on_control(now, self.limits),
            Some(Ok(Message::Binary(_))) => return Poll::Ready(Err(binary())),
            Some(Ok(Message::Close(frame))) => return Poll::Ready(Err(closed(frame))),
            Some(Ok(Message::Frame(_))) => Ok(()),
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(LinkEnd::Lost("the connection was closed".into()))),
        };
        Poll::Ready(handled.map_err(LinkEnd::ByUs))
    }

    /// Handles a text frame: an acknowledgement, or one for the [`LinkHandler`].
    fn text(&mut self, now: Instant, text: &str) -> Result<(), CloseReason> {
        let Self { outbound, handler, .. } = self;
        let kind = outbound.on_text(now, text, self.limits, |text| handler.frame(now, text))?;
        if kind == TextFrame::Acknowledgement {
            self.timers.on_acknowledged();
        }
        Ok(())
    }

    /// Checks the timers. Ready if something was done, pending if there is nothing to do before the
    /// timer fires.
    fn tick(&mut self, context: &mut Context<'_>) -> Poll<Result<(), LinkEnd>> {
        let since = self.socket.get_ref().since;
        if since > self.socket.get_ref().max {
            return Poll::Ready(Err(LinkEnd::ByUs(CloseReason::new(1008, "too many fragments"))));
        }
        if since != self.timers.partial_bytes() {
            self.timers.on_bytes(Instant::now(), since);
        }
        let target = self.deadline();
        if target < self.due {
            self.due = target;
            self.timer.set_at(target);
        }
        ready!(Pin::new(&mut self.timer).poll(context));
        let now = Instant::now();
        if self.timers.is_write_blocked() {
            self.socket.get_mut().inner.retry_write();
        }
        if self.socket.get_ref().waits_for_memory() {
            self.timers.on_waits_for_memory(now);
        }
        let done = self.timeout(now);
        self.due = self.deadline();
        self.timer.set_at(self.due);
        Poll::Ready(done)
    }

    fn timeout(&mut self, now: Instant) -> Result<(), LinkEnd> {
        match self.timers.tick(now, self.observed(), self.limits)? {
            TimerAction::Ping => {
                let ping = Message::Ping(Default::default());
                Pin::new(&mut *self.socket).start_send(ping).map_err(lost)?;
                self.dirty = true;
            }
            TimerAction::Nothing => {}
        }
        self.outbound.tick(now, self.limits);
        if self.handler.deadline().is_some_and(|due| now >= due) {
            self.handler.tick(now).map_err(LinkEnd::ByUs)?;
        }
        Ok(())
    }

    fn observed(&self) -> Observed {
        Observed { unacknowledged_bytes: self.outbound.unacknowledged_bytes(), has_unflushed: self.dirty }
    }

    fn deadline(&self) -> Instant {
        let ack_due = self.outbound.deadline(self.limits);
        let shrink = self.socket.get_ref().shrink_at();
        [ack_due, shrink, self.handler.deadline()]
            .into_iter()
            .flatten()
            .fold(self.timers.deadline(self.observed(), self.limits), Instant::min)
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
