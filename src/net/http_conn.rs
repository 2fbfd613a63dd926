//! Drives [`Conn`] over a stream: reads and writes, enforces the deadlines, and stops on shutdown.
//!
//! Used for the gateway's connections and for the edge's health check, which decide how to answer
//! requests.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt};
use smol::Timer;

use super::{clock, stream::Stream, timeout};
use crate::{
    budget::{Account, Charge},
    http::{
        conn::{Conn, Step},
        response::Response,
        upgrade::Upgrade,
    },
    limits::{HttpLimits, STALL_RETRIES},
    runtime::shutdown::{Shutdown, ShutdownWatch},
};

/// An HTTP connection: a stream and its protocol state machine.
#[derive(Debug)]
pub struct HttpConnection {
    /// The plain or TLS stream.
    pub stream: Stream,
    /// The protocol state machine.
    pub conn: Conn,
    /// Bytes waiting to be written.
    pub out: Vec<u8>,
    /// The memory charged for a large request body, once an account is set.
    body: Option<Charge>,
    limits: HttpLimits,
    /// Once triggered, the current response, or else the next one, closes the connection.
    draining: Shutdown,
    stopped: Shutdown,
    stop: ShutdownWatch,
    /// The timer, and when it fires: at or before the deadline; see `poll_timer`.
    timer: Option<(Timer, Instant)>,
}

impl HttpConnection {
    /// Creates a connection. Once `draining` is triggered, every response closes the connection, so
    /// that a client with a request in progress still gets its response. Once `stopped` is
    /// triggered, an idle connection is also closed immediately.
    pub fn new(stream: Stream, limits: &HttpLimits, draining: Shutdown, stopped: Shutdown) -> Self {
        let conn = Conn::new(Instant::now(), limits);
        let stop = stopped.watch();
        let (out, limits) = (Vec::new(), limits.clone());
        Self { stream, conn, out, body: None, limits, draining, stopped, stop, timer: None }
    }

    /// Sets the account that large bodies are charged to from now on.
    pub fn charge_body(&mut self, account: &Account) {
        self.body = Some(account.charge());
    }

    /// Frees the memory of a large body that is no longer needed.
    pub fn drop_body(&mut self) {
        self.conn.drop_body();
        self.charge(0);
    }

    /// Resizes the charge for the body. Returns false if there is no memory for a body that large.
    fn charge(&mut self, bytes: usize) -> bool {
        self.body.as_mut().is_none_or(|charge| charge.resize(bytes))
    }

    /// Writes and reads until the state machine has a request, a body, a refusal or the end.
    ///
    /// # Errors
    /// The connection broke, or the peer does not read.
    pub async fn advance(&mut self) -> io::Result<Step> {
        let mut shut = false;
        loop {
            if self.stopped.is_triggered() {
                self.conn.last();
            }
            let step = self.conn.next(Instant::now());
            let next = match step {
                Step::Read => {
                    self.flush().await?;
                    if !self.charge(self.conn.body_need()) {
                        self.conn.refuse_body();
                        continue;
                    }
                    self.read().await?
                }
                Step::Drain => {
                    self.flush().await?;
                    if !std::mem::replace(&mut shut, true) {
                        self.stream.finish(self.limits.drain_time).await?;
                    }
                    self.read().await?
                }
                Step::Close => {
                    self.flush().await?;
                    return Ok(Step::Close);
                }
                other => return Ok(other),
            };
            // The deadline passed or the program stops: return the step that resulted from it.
            if !matches!(next, Step::Read | Step::Drain) {
                return Ok(next);
            }
        }
    }

    /// Reads once. Returns [`Step::Read`] if there may be something to process, or another step if
    /// the deadline passed or the program stops.
    async fn read(&mut self) -> io::Result<Step> {
        let limit = self.conn.deadline();
        let stopping = self.stopped.is_triggered();
        let read = poll_fn(|context| {
            let Self { stream, conn, stop, timer, .. } = self;
            if let Poll::Ready(read) = Pin::new(stream).poll_read(context, conn.space()) {
                return Poll::Ready(read.map(Some));
            }
            let stopped = !stopping && stop.poll(context).is_ready();
            if stopped || limit.is_some_and(|limit| poll_timer(timer, limit, context).is_ready()) {
                return Poll::Ready(Ok(None));
            }
            Poll::Pending
        });
        match read.await? {
            Some(count) => {
                self.conn.filled(count);
                Ok(Step::Read)
            }
            None => Ok(self.conn.expired(Instant::now())),
        }
    }

    /// Writes everything in `out` and flushes the stream.
    ///
    /// # Errors
    /// The connection broke, or the peer accepted nothing for [`HttpLimits::write_stall`].
    pub async fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let Self { stream, out, limits, .. } = self;
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            let count = progress(stream, limits, |stream, context| stream.poll_write(context, rest)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(count..).unwrap_or_default();
        }
        progress(stream, limits, |stream, context| stream.poll_flush(context)).await?;
        self.out.clear();
        // Frees the memory of a burst, which would otherwise be held until the connection ends.
        self.out.shrink_to(self.limits.read_bytes);
        Ok(())
    }

    /// Becomes ready at `moment`, using the connection's only timer.
    pub fn poll_until(&mut self, moment: Instant, context: &mut Context<'_>) -> Poll<()> {
        poll_timer(&mut self.timer, moment, context)
    }

    /// Appends the response to the current request to `out`.
    pub fn answer(&mut self, response: &Response) {
        self.close_if_draining();
        self.conn.set_date(clock::date());
        self.conn.respond(Instant::now(), response, &mut self.out);
    }

    /// Appends the head of an event stream to `out`; see [`Conn::start_stream`].
    pub fn start_stream(&mut self, head: &Response) {
        self.close_if_draining();
        self.conn.set_date(clock::date());
        self.conn.start_stream(head, &mut self.out);
    }

    /// Appends the end of an event stream to `out`.
    pub fn end_stream(&mut self) {
        self.close_if_draining();
        self.conn.end_stream(Instant::now(), &mut self.out);
    }

    fn close_if_draining(&mut self) {
        if self.draining.is_triggered() {
            self.conn.last();
        }
    }

    /// Upgrades the connection to a WebSocket. Returns the stream and the bytes that followed the
    /// request.
    ///
    /// # Errors
    /// The connection broke, or the peer does not read.
    pub async fn upgrade(self, upgrade: &Upgrade) -> io::Result<(Stream, Vec<u8>)> {
        let Self { mut stream, mut conn, mut out, limits, .. } = self;
        conn.set_date(clock::date());
        let leftover = conn.upgrade(upgrade, &mut out);
        let written = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        timeout::within(limits.write_stall, written).await??;
        Ok((stream, leftover))
    }

    /// Flushes the stream and closes the sending direction, within [`HttpLimits::drain_time`].
    pub async fn finish(&mut self) {
        // Errors are ignored: the peer may already be gone.
        let _ = self.stream.finish(self.limits.drain_time).await;
    }
}

/// Waits for one write step, for at most [`HttpLimits::write_stall`]. The socket is tried
/// [`STALL_RETRIES`] times meanwhile: any byte that it accepts is progress, but the kernel reports
/// it as writable only when much of its send buffer is free.
async fn progress<T>(
    stream: &mut Stream,
    limits: &HttpLimits,
    mut step: impl FnMut(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
) -> io::Result<T> {
    for _ in 1..STALL_RETRIES {
        let done = poll_fn(|context| step(Pin::new(&mut *stream), context));
        if let Ok(done) = timeout::within(limits.write_stall / STALL_RETRIES, done).await {
            return done;
        }
        stream.retry_write();
    }
    let done = poll_fn(|context| step(Pin::new(&mut *stream), context));
    timeout::within(limits.write_stall / STALL_RETRIES, done).await?
}

/// Becomes ready at `limit`. Setting a timer interrupts the poll for I/O events, so this is not
/// done for every request: a timer set for an earlier moment fires first and is then set to
/// `limit`.
fn poll_timer(timer: &mut Option<(Timer, Instant)>, limit: Instant, context: &mut Context<'_>) -> Poll<()> {
    loop {
        let (timer, due) = timer.get_or_insert_with(|| (Timer::at(limit), limit));
        if limit < *due {
            *due = limit;
            timer.set_at(limit);
        }
        ready!(Pin::new(&mut *timer).poll(context));
        if Instant::now() >= limit {
            return Poll::Ready(());
        }
        *due = limit;
        timer.set_at(limit);
    }
}
