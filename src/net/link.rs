//! One link: a WebSocket driven by one task.
//!
//! That task owns the socket, so no send is ever cancelled half-way. It writes what is in its queue, several frames
//! in one write; hands each frame that arrives to its [`Peer`]; keeps the heartbeat; and ends for one reason.
//! What the frames mean is `tunnel`'s business.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::CapacityError,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use futures_lite::{AsyncRead, AsyncWrite, Stream as _, future};
use futures_sink::Sink;
use smol::Timer;

use super::{
    deadline,
    queue::{Receiver, Taken},
    stream::Stream,
};
use crate::{
    limits::{CLOSE_REASON, LINK_BURST, LinkLimits, STALL_LOOKS},
    text,
    tunnel::liveness::{Liveness, Verdict},
};

/// Our reason to end a link, as the peer is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Farewell {
    /// Close code (RFC 6455, section 7.4, and [`crate::tunnel`]).
    pub code: u16,
    /// In words.
    pub reason: String,
}

impl Farewell {
    /// A farewell.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Why a link ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The peer closed it.
    ByPeer(Farewell),
    /// We closed it.
    ByUs(Farewell),
    /// The line broke: the reason.
    Lost(String),
    /// Nothing was heard from the peer for this long.
    Silent(Duration),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ByPeer(why) if why.reason.is_empty() => {
                write!(f, "the peer closed the link (code {})", why.code)
            }
            Self::ByPeer(why) => {
                write!(f, "the peer closed the link (code {}: {})", why.code, text::show(&why.reason))
            }
            Self::ByUs(why) => write!(f, "closed the link (code {}: {})", why.code, why.reason),
            Self::Lost(why) => write!(f, "the link was lost: {why}"),
            Self::Silent(time) => write!(f, "nothing was heard from the peer for {} s", time.as_secs()),
        }
    }
}

/// What stands at our end of a link.
pub trait Peer {
    /// A text frame arrived.
    ///
    /// # Errors
    /// A [`Farewell`] ends the link.
    fn frame(&mut self, now: Instant, text: &str) -> Result<(), Farewell>;
    /// When to call [`Peer::tick`].
    fn deadline(&self) -> Option<Instant>;
    /// Time has passed.
    ///
    /// # Errors
    /// A [`Farewell`] ends the link.
    fn tick(&mut self, now: Instant) -> Result<(), Farewell>;
}

/// A WebSocket over one of our streams.
pub type Socket = WebSocketStream<Metered>;

/// The gateway's end: `glued` are bytes that came behind the upgrade request.
pub async fn accepted(stream: Stream, glued: Vec<u8>, limits: &LinkLimits) -> Socket {
    WebSocketStream::from_partially_read(
        Metered::new(stream, limits),
        glued,
        Role::Server,
        Some(config(limits)),
    )
    .await
}

/// The edge's end: sends the upgrade request over a fresh connection.
///
/// # Errors
/// The library's: [`Error::Http`] when the gateway refused the upgrade.
pub async fn upgrade(
    stream: Stream,
    request: async_tungstenite::tungstenite::http::Request<()>,
    limits: &LinkLimits,
) -> Result<Socket, Error> {
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

/// Drives a link until it ends, says goodbye where there is something to say, and closes the connection.
pub async fn drive(
    socket: Socket,
    queue: &mut Receiver<Farewell>,
    peer: &mut (dyn Peer + Send),
    limits: &LinkLimits,
) -> Ended {
    let now = Instant::now();
    let mut driver = Driver {
        socket,
        queue,
        peer,
        limits,
        outgoing: VecDeque::new(),
        dirty: false,
        stalled: None,
        written: 0,
        partial: None,
        liveness: Liveness::new(now),
        timer: Timer::at(now + limits.ping_every),
        due: now + limits.ping_every,
    };
    let ended = poll_fn(|context| driver.poll(context)).await;
    let Driver { mut socket, mut outgoing, queue, .. } = driver;
    // What was queued before the end still goes out: among it may be the reason for the end.
    let _ = future::poll_once(queue.take(&mut outgoing)).await;
    say_goodbye(&mut socket, outgoing, &ended, limits).await;
    ended
}

/// Tells the peer why, and waits a moment for it to read that: closing at once could overtake the words.
async fn say_goodbye(socket: &mut Socket, unsent: VecDeque<String>, ended: &Ended, limits: &LinkLimits) {
    let farewell = async {
        if let Ended::ByUs(why) = ended {
            for text in unsent {
                poll_fn(|context| Pin::new(&mut *socket).poll_ready(context)).await.ok()?;
                Pin::new(&mut *socket).start_send(Message::text(text)).ok()?;
            }
            let frame = CloseFrame { code: CloseCode::from(why.code), reason: clipped(&why.reason).into() };
            socket.close(Some(frame)).await.ok()?;
        }
        if !matches!(ended, Ended::ByUs(_) | Ended::ByPeer(_)) {
            return None;
        }
        let stream = &mut socket.get_mut().inner;
        stream.finish(limits.farewell).await.ok()?;
        let mut rest = [0; 512];
        while futures_lite::AsyncReadExt::read(stream, &mut rest).await.ok()? > 0 {
            // A peer that goes on talking must not keep the limit from being looked at.
            future::yield_now().await;
        }
        Some(())
    };
    // A peer that does not listen is not waited for.
    let _ = deadline::within(limits.farewell, farewell).await;
}

/// As much of a reason as a close frame can hold; the library would send none of a longer one.
fn clipped(reason: &str) -> &str {
    let mut end = reason.len().min(CLOSE_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

struct Driver<'a> {
    socket: Socket,
    queue: &'a mut Receiver<Farewell>,
    peer: &'a mut (dyn Peer + Send),
    limits: &'a LinkLimits,
    outgoing: VecDeque<String>,
    /// Frames were written that are not flushed yet.
    dirty: bool,
    /// Since when a write makes no progress.
    stalled: Option<Instant>,
    /// Bytes that had left when `stalled` was set.
    written: u64,
    /// Since when a message is incomplete.
    partial: Option<Instant>,
    liveness: Liveness,
    timer: Timer,
    /// When `timer` fires.
    due: Instant,
}

impl Driver<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        for _ in 0..LINK_BURST {
            if let Poll::Ready(ended) = self.write(context) {
                return Poll::Ready(ended);
            }
            match self.read(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                Poll::Pending => match self.tick(context) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(ended)) => return Poll::Ready(ended),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        // A peer that always has something more to say must not stop the clock for the others' calls.
        if let Poll::Ready(Err(ended)) = self.tick(context) {
            return Poll::Ready(ended);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves the queue to the socket. Ready only when the link has ended.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        let mut end = None;
        loop {
            if self.outgoing.is_empty() {
                match self.queue.poll_take(context, &mut self.outgoing) {
                    Poll::Ready(Taken::Some) => {}
                    Poll::Ready(Taken::Ended(why)) => end = Some(why),
                    Poll::Pending => {}
                }
            }
            if self.outgoing.is_empty() {
                break;
            }
            match Pin::new(&mut self.socket).poll_ready(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(lost(error)),
                Poll::Pending => break,
            }
            let Some(text) = self.outgoing.pop_front() else { break };
            if let Err(error) = Pin::new(&mut self.socket).start_send(Message::text(text)) {
                return Poll::Ready(lost(error));
            }
            self.dirty = true;
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
            Some(why) if !self.dirty => Poll::Ready(Ended::ByUs(why)),
            _ => Poll::Pending,
        }
    }

    /// A write is waiting for the peer; that is a stall only as long as no byte leaves.
    fn stall(&mut self) {
        let written = self.socket.get_ref().written;
        if self.stalled.is_none() || written != self.written {
            self.stalled = Some(Instant::now());
            self.written = written;
        }
    }

    /// Handles one message. Pending: there is none.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(context) else {
            return Poll::Pending;
        };
        let now = Instant::now();
        self.socket.get_mut().since = 0;
        self.partial = None;
        let handled = match message {
            Some(Ok(Message::Text(text))) => {
                self.liveness.heard(now);
                self.peer.frame(now, &text)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                if self.liveness.control(now, self.limits) {
                    Ok(())
                } else {
                    Err(Farewell::new(1008, "too many control frames"))
                }
            }
            Some(Ok(Message::Binary(_))) => Err(Farewell::new(1003, "frames are text")),
            Some(Ok(Message::Close(frame))) => {
                let frame = frame.map(|frame| Farewell::new(frame.code.into(), frame.reason.as_str()));
                return Poll::Ready(Err(Ended::ByPeer(frame.unwrap_or(Farewell::new(1005, "")))));
            }
            Some(Ok(Message::Frame(_))) => Ok(()),
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(Ended::Lost("the connection was closed".into()))),
        };
        Poll::Ready(handled.map_err(Ended::ByUs))
    }

    /// Looks at the clock. Ready when something was done, pending when there is nothing to do before the timer fires.
    fn tick(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let since = self.socket.get_ref().since;
        if since > self.socket.get_ref().most {
            return Poll::Ready(Err(Ended::ByUs(Farewell::new(1008, "fragments without end"))));
        }
        if since > 0 && self.partial.is_none() {
            self.partial = Some(Instant::now());
        }
        let target = self.deadline();
        if target < self.due {
            self.due = target;
            self.timer.set_at(target);
        }
        ready!(Pin::new(&mut self.timer).poll(context));
        let now = Instant::now();
        let done = self.timeout(now);
        self.due = self.deadline();
        self.timer.set_at(self.due);
        Poll::Ready(done)
    }

    fn timeout(&mut self, now: Instant) -> Result<(), Ended> {
        let over = |since: Option<Instant>, limit| since.is_some_and(|since| now >= since + limit);
        if over(self.stalled, self.limits.write_stall) {
            return Err(Ended::Lost("the peer does not read".into()));
        }
        if over(self.partial, self.limits.message_time) {
            return Err(Ended::ByUs(Farewell::new(1008, "a message took too long")));
        }
        match self.liveness.tick(now, self.limits) {
            Verdict::Dead => return Err(Ended::Silent(self.limits.dead_after)),
            // With frames waiting to be written a ping would only wait behind them.
            Verdict::Ping if !self.dirty => {
                let ping = Message::Ping(Default::default());
                Pin::new(&mut self.socket).start_send(ping).map_err(lost)?;
                self.dirty = true;
            }
            Verdict::Ping | Verdict::Fine => {}
        }
        if self.peer.deadline().is_some_and(|due| now >= due) {
            self.peer.tick(now).map_err(Ended::ByUs)?;
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        // Tried in between as well: else progress just after a try would count as progress at the end.
        let look = || Instant::now() + self.limits.write_stall / STALL_LOOKS;
        let stalled = self.stalled.map(|since| look().min(since + self.limits.write_stall));
        let partial = self.partial.map(|since| since + self.limits.message_time);
        let live = self.liveness.deadline(self.limits);
        [stalled, partial, self.peer.deadline()].into_iter().flatten().fold(live, Instant::min)
    }
}

fn lost(error: Error) -> Ended {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Ended::Lost("the connection was closed".into()),
        Error::Io(error) => Ended::Lost(error.to_string()),
        other => Ended::Lost(other.to_string()),
    }
}

/// What a failed read means, and what the peer is to be told of it.
fn broken(error: Error) -> Ended {
    let (code, reason) = match &error {
        Error::Capacity(CapacityError::MessageTooLong { max_size, .. }) => {
            (1009, format!("a message has more than {max_size} bytes"))
        }
        Error::Capacity(_) => (1009, "a message is too large".into()),
        Error::Utf8(_) => (1007, "a text frame is not UTF-8".into()),
        Error::Protocol(
            async_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
        ) => {
            return Ended::Lost("the connection was closed without a word".into());
        }
        Error::Protocol(error) => (1002, error.to_string()),
        _ => return lost(error),
    };
    Ended::ByUs(Farewell { code, reason })
}

/// A stream that counts what was read since the last whole message. The library hides fragments from us, so this
/// is where fragments without end, and empty ones, show.
#[derive(Debug)]
pub struct Metered {
    inner: Stream,
    since: usize,
    /// How far `since` may go. Beyond that nothing is read, since the library would go on for as long as there is
    /// something; the driver looks at it next, and ends the link.
    most: usize,
    /// Bytes written so far.
    written: u64,
}

impl Metered {
    fn new(inner: Stream, limits: &LinkLimits) -> Self {
        Self { inner, since: 0, most: limits.message_bytes + limits.read_buffer, written: 0 }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.since > self.most {
            return Poll::Pending;
        }
        let count = ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        self.since += count;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(context, bytes))?;
        self.written += count as u64;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}
