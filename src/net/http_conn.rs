//! Drives `http::conn` over a stream: reads and writes, keeps the deadlines, and stops when the program stops.
//!
//! What a request means is the caller's business: the gateway's connections, and the edge's health check.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use futures_lite::{AsyncRead, AsyncWrite, AsyncWriteExt};
use smol::Timer;

use super::{
    budget::{Account, Charge},
    clock,
    stream::Stream,
    timeout,
};
use crate::{
    http::{
        conn::{Conn, Step},
        response::Response,
        upgrade::Upgrade,
    },
    limits::{HttpLimits, STALL_LOOKS},
    runtime::shutdown::{Shutdown, ShutdownWatch},
};

/// One HTTP connection.
#[derive(Debug)]
pub struct HttpConnection {
    /// What carries it.
    pub stream: Stream,
    /// Its machine.
    pub conn: Conn,
    /// Bytes to be written.
    pub out: Vec<u8>,
    /// What a large body takes.
    body: Option<Charge>,
    limits: HttpLimits,
    /// When it is thrown, the answer under way, or else the next one, is the last.
    draining: Shutdown,
    stopped: Shutdown,
    stop: ShutdownWatch,
    /// Fires at the deadline of the machine or before: it is set anew only for an earlier one.
    timer: Option<(Timer, Instant)>,
}

impl HttpConnection {
    /// A fresh connection. From `draining` on every answer closes it, so that a client whose request is under way still gets
    /// an answer; when `stopped` is thrown, an idle connection ends at once as well.
    pub fn new(stream: Stream, limits: &HttpLimits, draining: Shutdown, stopped: Shutdown) -> Self {
        let conn = Conn::new(Instant::now(), limits);
        let stop = stopped.watch();
        let (out, limits) = (Vec::new(), limits.clone());
        Self { stream, conn, out, body: None, limits, draining, stopped, stop, timer: None }
    }

    /// The account that pays for large bodies from now on.
    pub fn charge_body(&mut self, account: &Account) {
        self.body = Some(account.charge());
    }

    /// Gives back the memory of a large body that nobody looks at again.
    pub fn drop_body(&mut self) {
        self.conn.drop_body();
        self.pay(0);
    }

    /// False: there is no memory for so large a body.
    fn pay(&mut self, bytes: usize) -> bool {
        self.body.as_mut().is_none_or(|charge| charge.resize(bytes))
    }

    /// Writes and reads until the machine has a request, a body, a refusal or the end.
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
                    if !self.pay(self.conn.body_need()) {
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
            // Time is up: whatever the machine makes of that.
            if !matches!(next, Step::Read | Step::Drain) {
                return Ok(next);
            }
        }
    }

    /// Reads once; [`Step::Read`] means that there is something to look at, anything else that time is up.
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

    /// Writes what is to be written.
    ///
    /// # Errors
    /// The connection broke, or the peer took nothing for too long.
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
        // A burst must not be paid for until the connection ends.
        self.out.shrink_to(self.limits.read_bytes);
        Ok(())
    }

    /// Ready at a moment, by the one timer of the connection.
    pub fn poll_until(&mut self, moment: Instant, context: &mut Context<'_>) -> Poll<()> {
        poll_timer(&mut self.timer, moment, context)
    }

    /// Puts the answer to the present request into `out`.
    pub fn answer(&mut self, response: &Response) {
        self.close_if_draining();
        self.conn.set_date(clock::date());
        self.conn.respond(Instant::now(), response, &mut self.out);
    }

    /// Puts the head of an event stream into `out`; see [`Conn::start_stream`].
    pub fn start_stream(&mut self, head: &Response) {
        self.close_if_draining();
        self.conn.set_date(clock::date());
        self.conn.start_stream(head, &mut self.out);
    }

    /// Ends an event stream.
    pub fn end_stream(&mut self) {
        self.close_if_draining();
        self.conn.end_stream(Instant::now(), &mut self.out);
    }

    fn close_if_draining(&mut self) {
        if self.draining.is_triggered() {
            self.conn.last();
        }
    }

    /// Turns the connection into a WebSocket: the stream, and the bytes that came behind the request.
    ///
    /// # Errors
    /// The connection broke, or the peer does not read.
    pub async fn upgrade(self, upgrade: &Upgrade) -> io::Result<(Stream, Vec<u8>)> {
        let Self { mut stream, mut conn, mut out, limits, .. } = self;
        conn.set_date(clock::date());
        let glued = conn.upgrade(upgrade, &mut out);
        let written = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        timeout::within(limits.write_stall, written).await??;
        Ok((stream, glued))
    }

    /// Says goodbye and closes.
    pub async fn finish(&mut self) {
        // The peer may be gone already; then there is nobody to say it to.
        let _ = self.stream.finish(self.limits.drain_time).await;
    }
}

/// Waits for a step of writing, for [`HttpLimits::write_stall`] at most. The socket is tried several times meanwhile: any byte
/// that it takes is progress, and the system does not report room before there is much of it.
async fn progress<T>(
    stream: &mut Stream,
    limits: &HttpLimits,
    mut step: impl FnMut(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<T>>,
) -> io::Result<T> {
    for _ in 1..STALL_LOOKS {
        let done = poll_fn(|context| step(Pin::new(&mut *stream), context));
        if let Ok(done) = timeout::within(limits.write_stall / STALL_LOOKS, done).await {
            return done;
        }
        stream.retry_write();
    }
    let done = poll_fn(|context| step(Pin::new(&mut *stream), context));
    timeout::within(limits.write_stall / STALL_LOOKS, done).await?
}

/// Ready at `limit`. Setting a timer wakes the system's queue of events, so it is not done for each request: one that was set
/// for an earlier moment is let fire, and then set for the rest.
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
