//! The stream below the WebSocket library: counts bytes, and takes memory for large frames from the
//! budget before the library allocates it.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_lite::{AsyncRead, AsyncWrite};
use smol::Timer;

use crate::{
    budget::{Account, Charge},
    limits::{self, LinkLimits},
    net::stream::Stream,
    tunnel::frame_header::{Found, FrameHeaderScanner},
};

/// A stream that counts the bytes read since the last complete message. The library hides
/// fragments, so endless or empty fragments can only be noticed here.
#[derive(Debug)]
pub struct Metered {
    pub(super) inner: Stream,
    pub(super) since: usize,
    /// The limit of `since`. Nothing is read beyond it, because the library would go on for as long
    /// as there is data. The driver checks it next, and ends the link.
    pub(super) max: usize,
    /// Bytes written so far.
    pub(super) written: u64,
    memory: Option<Box<ReadMemory>>,
}

/// The memory of the library's buffers, on links where it is charged. The library reserves the
/// announced length of a frame, and its buffers stay as large as the largest frame: they are
/// charged until they are replaced.
#[derive(Debug)]
struct ReadMemory {
    scanner: FrameHeaderScanner,
    /// Bytes read but not passed to the library yet.
    held: Vec<u8>,
    charge: Charge,
    /// Bytes charged for the incoming message.
    message: usize,
    /// Sizes of the library's buffers; 0 while they are small.
    read_buffer: usize,
    write_buffer: usize,
    /// Time of the last large frame.
    used: Instant,
    /// If a frame waits for memory: the start of the wait, and the timer for the next try.
    waiting: Option<(Instant, Timer)>,
    /// Largest message. The library refuses larger ones without allocating anything.
    max: usize,
    timeout: Duration,
}

impl Metered {
    pub(super) fn new(inner: Stream, limits: &LinkLimits) -> Self {
        let max = limits.message_bytes + limits.read_buffer;
        Self { inner, since: 0, max, written: 0, memory: None }
    }

    /// Creates a stream from which `held` was already read, and whose buffers are charged to
    /// `account`.
    pub(super) fn charged(inner: Stream, held: Vec<u8>, account: &Account, limits: &LinkLimits) -> Self {
        let memory = ReadMemory {
            scanner: FrameHeaderScanner::default(),
            held,
            charge: account.charge(),
            message: 0,
            read_buffer: 0,
            write_buffer: 0,
            used: Instant::now(),
            waiting: None,
            max: limits.message_bytes,
            timeout: limits.memory_wait,
        };
        Self { memory: Some(Box::new(memory)), ..Self::new(inner, limits) }
    }

    /// Limits further reads to about `bytes`.
    pub(super) fn limit(&mut self, bytes: usize) {
        (self.since, self.max) = (0, bytes);
    }

    /// Records that a complete message was taken from the library.
    pub(super) fn message_ended(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.message = 0;
        }
    }

    /// Records an outgoing frame of `bytes` bytes. It is charged here although the queue has
    /// charged it, because the library's buffer holds a copy. Frames of up to
    /// [`limits::BUDGET_SMALL`] bytes are not charged.
    pub(super) fn frame_written(&mut self, bytes: usize) {
        if let Some(memory) = self.memory.as_mut().filter(|_| bytes > limits::BUDGET_SMALL) {
            memory.used = Instant::now();
            memory.write_buffer = memory.write_buffer.max(bytes);
            memory.settle();
        }
    }

    /// Returns the time at which to replace the library's buffers by small ones, unless a large
    /// frame passes before. `None` if they are small.
    pub(super) fn shrink_at(&self) -> Option<Instant> {
        let memory = self.memory.as_ref()?;
        let large = memory.read_buffer + memory.write_buffer > 0;
        let pause = if memory.charge.account().is_scarce() { Duration::ZERO } else { limits::LINK_SHRINK };
        large.then(|| memory.used + pause)
    }

    /// Whether the library holds no part of an incomplete message.
    pub(super) fn is_between_messages(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.scanner.is_between_messages())
    }

    /// Postpones replacing the buffers, because they are not empty.
    pub(super) fn shrink_later(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.used = Instant::now();
        }
    }

    /// Records that the library's buffers were replaced by small ones.
    pub(super) fn shrunk(&mut self) {
        if let Some(memory) = &mut self.memory {
            (memory.read_buffer, memory.write_buffer) = (0, 0);
            memory.settle();
        }
    }

    /// Whether a frame is waiting for memory.
    pub(super) fn waits_for_memory(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.waiting.is_some())
    }
}

impl ReadMemory {
    /// Updates the charge to the present sizes. This always succeeds: less can always be given
    /// back, and buffers that have already grown must be charged.
    fn settle(&mut self) {
        self.charge.resize_anyway(self.read_buffer + self.write_buffer);
    }

    /// Takes memory for an announced frame, or waits for it. Fails with `OutOfMemory` after
    /// `timeout`. Frames that the library refuses because of their size need none; `bytes` may be
    /// twice the length of the payload.
    fn poll_admit(&mut self, bytes: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if bytes.div_ceil(2) <= self.max {
            ready!(self.poll_grow(self.message.saturating_add(bytes), context))?;
        }
        self.scanner.admit();
        Poll::Ready(Ok(()))
    }

    fn poll_grow(&mut self, message: usize, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let buffer = match self.read_buffer {
            before if message <= before => before,
            // The library's buffer grows by doubling.
            before => message.max(before.saturating_mul(2)),
        };
        while !self.charge.resize(buffer + self.write_buffer) {
            let now = Instant::now();
            let (since, timer) =
                self.waiting.get_or_insert_with(|| (now, Timer::after(limits::LINK_MEMORY_RETRY)));
            if now.duration_since(*since) >= self.timeout {
                return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
            }
            ready!(Pin::new(&mut *timer).poll(context));
            timer.set_after(limits::LINK_MEMORY_RETRY);
        }
        self.waiting = None;
        (self.message, self.read_buffer, self.used) = (message, buffer, Instant::now());
        Poll::Ready(Ok(()))
    }

    /// Fills the library's buffer, up to the next frame for which there is no memory.
    fn poll_read(
        &mut self,
        mut inner: Pin<&mut Stream>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut have = self.held.len().min(buffer.len());
        let known = have;
        buffer[..have].copy_from_slice(&self.held[..have]);
        let mut more = have == 0;
        let (pass, result) = loop {
            if more {
                match inner.as_mut().poll_read(context, &mut buffer[have..]) {
                    // The end of the stream, possibly within a header.
                    Poll::Ready(Ok(0)) => break (have, Poll::Ready(Ok(()))),
                    Poll::Ready(Ok(count)) => have += count,
                    Poll::Ready(Err(error)) => break (0, Poll::Ready(Err(error))),
                    Poll::Pending => break (0, Poll::Pending),
                }
            }
            match self.scanner.scan(&buffer[..have]) {
                Found::All => break (have, Poll::Ready(Ok(()))),
                Found::Incomplete(0) => more = true,
                Found::Announced(0, bytes) => match self.poll_admit(bytes, context) {
                    Poll::Ready(Ok(())) => more = false,
                    other => break (0, other),
                },
                Found::Incomplete(pass) | Found::Announced(pass, _) => break (pass, Poll::Ready(Ok(()))),
            }
        };
        if have > known {
            self.held.clear();
            self.held.extend_from_slice(&buffer[pass..have]);
        } else {
            self.held.drain(..pass);
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        result.map_ok(|()| pass)
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.since > self.max {
            return Poll::Pending;
        }
        let Self { inner, memory, .. } = &mut *self;
        let count = match memory {
            Some(memory) => ready!(memory.poll_read(Pin::new(inner), context, buffer))?,
            None => ready!(Pin::new(inner).poll_read(context, buffer))?,
        };
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
