//! Non-blocking sockets and pipes, read and written when `reactor` reports readiness.
//!
//! A read that does not fill its buffer has emptied the descriptor, so the next read waits for the
//! next readiness event. Without this, every message would cost two extra reads that return
//! `WouldBlock`, and every unrelated wake-up of the task would cost one more.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};

use super::reactor::{FdRegistration, IoInterest};

/// A non-blocking descriptor for reading, writing, or both. At most one task may read and one may
/// write; they can be the same task.
#[derive(Debug)]
pub struct AsyncFd<T> {
    // Declared before `io`: fields drop in this order, and the registration must end before the
    // descriptor is closed.
    registration: FdRegistration,
    /// The descriptor, used by the tasks that own this value only; no lock.
    io: T,
    /// The last read emptied the descriptor; wait for readiness before the next read.
    drained: bool,
    /// The last write blocked; wait for readiness before the next write.
    full: bool,
}

impl<T: AsFd> AsyncFd<T> {
    /// Registers a descriptor and makes it non-blocking.
    ///
    /// # Errors
    /// The system's error, from `ioctl` or from registering the descriptor.
    pub fn new(io: T, watch: IoInterest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&io, true)?;
        // `drained` can start as true: data that is already there is reported after registration.
        Ok(Self { registration: FdRegistration::new(&io, watch)?, io, drained: true, full: false })
    }

    /// Returns the underlying socket or pipe.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Makes the next write try at once, even if the system has not reported the descriptor
    /// writable. The system reports a socket writable only when a large part of its send buffer is
    /// free, and a slow reader frees space long before that.
    pub fn retry_write(&mut self) {
        self.full = false;
    }

    /// Calls `take` when the descriptor may be readable. Returns `Pending` if `take` would block.
    /// After `Ready` it may be called again at once, unless the read set `drained`.
    pub fn poll_in<R>(
        &mut self,
        context: &mut Context<'_>,
        mut take: impl FnMut(&mut T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let flag = &self.registration.readiness().read;
        flag.register(context.waker());
        // Always clear the flag: `WakeFlag::set` wakes nobody while the flag is still set.
        let is_set = flag.take();
        if self.drained && !is_set {
            return Poll::Pending;
        }
        let taken = unless_blocked(|| take(&mut self.io));
        self.drained = taken.is_pending();
        taken
    }

    /// Calls `give` when the descriptor may be writable. Returns `Pending` if `give` would block.
    pub fn poll_out<R>(
        &mut self,
        context: &mut Context<'_>,
        mut give: impl FnMut(&mut T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        let flag = &self.registration.readiness().write;
        loop {
            if self.full {
                flag.register(context.waker());
                if !flag.take() {
                    return Poll::Pending;
                }
            }
            let given = unless_blocked(|| give(&mut self.io));
            self.full = given.is_pending();
            if given.is_ready() {
                return given;
            }
        }
    }
}

fn unless_blocked<R>(mut act: impl FnMut() -> io::Result<R>) -> Poll<io::Result<R>> {
    loop {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return Poll::Ready(done),
        }
    }
}

impl<T: AsFd + Read + Unpin> AsyncRead for AsyncFd<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = self.poll_in(context, |io| io.read(buffer));
        if let Poll::Ready(Ok(count)) = &read {
            self.drained = (1..buffer.len()).contains(count) && !self.registration.readiness().is_closed();
        }
        read
    }
}

impl<T: AsFd + Write + Unpin> AsyncWrite for AsyncFd<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_out(context, |io| io.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_out(context, |io| io.write_vectored(parts))
    }

    /// Does nothing: writes are not buffered here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Does nothing: a pipe closes when it is dropped, and a socket's owner shuts the stream down
    /// itself.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use futures_lite::{AsyncReadExt, AsyncWriteExt, future};

    use super::*;
    use crate::{limits, runtime::reactor::block_on};

    fn pair() -> (AsyncFd<UnixStream>, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (AsyncFd::new(near, IoInterest::Both).unwrap(), far)
    }

    /// Counts its reads.
    #[derive(Debug)]
    struct Counted(UnixStream, usize);

    impl AsFd for Counted {
        fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 += 1;
            self.0.read(buffer)
        }
    }

    #[test]
    fn a_message_costs_one_read() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut near = AsyncFd::new(Counted(near, 0), IoInterest::Read).unwrap();
        block_on(async {
            for number in 1..=100 {
                assert!(future::poll_once(near.read(&mut [0; 64])).await.is_none());
                far.write_all(b"message").unwrap();
                assert_eq!(near.read(&mut [0; 64]).await.unwrap(), 7);
                assert_eq!(near.get_ref().1, number);
            }
        })
        .unwrap();
    }

    #[test]
    fn an_end_behind_a_message_is_seen() {
        for _ in 0..100 {
            let (mut near, mut far) = pair();
            far.write_all(b"last words").unwrap();
            drop(far);
            let mut all = Vec::new();
            assert_eq!(block_on(near.read_to_end(&mut all)).unwrap().unwrap(), 10);
        }
    }

    #[test]
    fn more_than_a_buffer_is_read_to_its_end() {
        let (mut near, mut far) = pair();
        far.write_all(&[7; 1000]).unwrap();
        block_on(async {
            let mut buffer = [0; 300];
            for count in [300, 300, 300, 100] {
                assert_eq!(near.read(&mut buffer).await.unwrap(), count);
            }
            assert!(future::poll_once(near.read(&mut buffer)).await.is_none());
        })
        .unwrap();
    }

    /// Most answers come at once, so the thread switches to busy polling; some come late, so it
    /// also parks.
    #[test]
    fn readiness_wakes_busy_and_parked_threads() {
        let (mut near, mut far) = pair();
        let echo = std::thread::spawn(move || {
            let mut byte = [0];
            while far.read_exact(&mut byte).is_ok() {
                if byte[0].is_multiple_of(50) {
                    std::thread::sleep(10 * limits::BUSY_POLL);
                }
                far.write_all(&byte).unwrap();
            }
        });
        block_on(async {
            for number in (0..=255).cycle().take(2000) {
                near.write_all(&[number]).await.unwrap();
                let mut byte = [0];
                near.read_exact(&mut byte).await.unwrap();
                assert_eq!(byte[0], number);
            }
            drop(near);
        })
        .unwrap();
        echo.join().unwrap();
    }

    #[test]
    fn a_write_waits_for_room() {
        let (mut near, mut far) = pair();
        let text = vec![7; 10 << 20];
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            far.read_to_end(&mut all).map(|_| all)
        });
        block_on(async {
            near.write_all(&text).await.unwrap();
            drop(near);
        })
        .unwrap();
        assert!(reader.join().unwrap().unwrap() == text);
    }

    #[test]
    fn a_write_to_a_closed_peer_fails() {
        let (mut near, far) = pair();
        drop(far);
        let error = block_on(near.write_all(b"hello")).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
