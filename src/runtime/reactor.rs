//! The reactor: one poller for all sockets and pipes of the process.
//!
//! A descriptor is registered once (edge-triggered), and waiting for events costs one system call.
//! The reactor of `async-io` re-arms each descriptor, its timer and its own notifier on every wait:
//! with it a call through gateway and register costs 32 system calls, with this one 12. Rare events
//! stay with `async-io` (timers, signals, processes, connecting), on a thread of its own that wakes
//! ours; `runtime` says what that costs.
//!
//! Before it sleeps, the polling thread stays awake for a moment if `busy_poll` says that this
//! pays: it yields the processor and polls without waiting.
//!
//! `handoff` decides which thread polls, and holds the rule by which it passes the poller on.
//! `async_fd` reads and writes on top of this module; `executor` runs its tasks in [`block_on`].
//!
//! # Locks
//!
//! | field | locked or written | by |
//! |---|---|---|
//! | [`Reactor::registry`] | never: the kernel synchronizes it | any thread that registers or deregisters a descriptor |
//! | [`Reactor::waker`] | never; one `write` to an eventfd | any thread that wakes the polling thread |
//! | [`Reactor::handoff`] | see `handoff`; its lock also guards [`Poller`] | the polling thread |
//! | [`Reactor::registrations`] | for one insertion, removal or look-up | a thread that registers or deregisters a descriptor; the polling thread, once per event, before it sets the flags |
//! | [`Reactor::may_busy_poll`] | atomic, relaxed | written once at start, read before each wait |
//! | [`Readiness::read`], [`Readiness::write`] | see `notify` | set by the polling thread, cleared by the task that reads or writes |
//!
//! The polling thread locks `registrations` while it holds the poller; nothing is locked the other
//! way round. No lock is held while a waker is called, except the poller itself, for which other
//! threads do not wait.

use std::{
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Registry, Token,
    event::{Event, Source},
    unix::SourceFd,
};

use super::{
    busy_poll::BusyPoll,
    handoff::{EventSource, Handoff},
    lock::Lock,
    notify::WakeFlag,
};
use crate::limits;

/// Runs a future on this thread until it is done. While the future is pending, the thread waits for
/// events on behalf of all threads.
///
/// # Errors
/// The system's error, when no descriptor is left for the poller; the future is then not run.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let reactor = Reactor::get()?;
    Ok(reactor.handoff.block_on(reactor, future))
}

/// Sets whether the polling thread may busy-poll; the default is true. Applies to the next wait.
///
/// # Errors
/// The system's error, when no descriptor is left for the poller.
pub fn set_busy_poll(enabled: bool) -> io::Result<()> {
    Reactor::get()?.may_busy_poll.store(enabled, Ordering::Relaxed);
    Ok(())
}

/// Readiness events to watch a descriptor for.
#[derive(Clone, Copy, Debug)]
pub enum IoInterest {
    /// Data to read, or end of file.
    Read,
    /// Free space to write, or a closed reading end.
    Write,
    /// Both.
    Both,
}

/// Registration of a descriptor with the reactor. Dropping it deregisters the descriptor, which
/// must stay open until then.
#[derive(Debug)]
pub struct FdRegistration {
    descriptor: RawFd,
    /// Key of the entry in [`Registrations`], and of the events.
    token: Token,
    /// Shared with that entry.
    readiness: Arc<Readiness>,
}

/// Readiness of one descriptor: the wake flags of its reading and its writing task.
#[derive(Debug, Default)]
pub struct Readiness {
    /// Set when there is data to read.
    pub read: WakeFlag,
    /// Set when there is free space to write.
    pub write: WakeFlag,
    /// Set by the polling thread before it sets the flags, and never cleared.
    closed: AtomicBool,
}

impl Readiness {
    /// Returns whether the peer has closed its sending direction or the descriptor has failed. No
    /// event follows that one, so a reader must read on even after a short read.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl FdRegistration {
    /// Registers a descriptor. Readiness that exists already is reported too.
    ///
    /// # Errors
    /// The system's error.
    pub fn new(descriptor: &impl AsFd, watch: IoInterest) -> io::Result<Self> {
        let reactor = Reactor::get()?;
        let descriptor = descriptor.as_fd().as_raw_fd();
        let interest = match watch {
            IoInterest::Read => Interest::READABLE,
            IoInterest::Write => Interest::WRITABLE,
            IoInterest::Both => Interest::READABLE | Interest::WRITABLE,
        };
        let readiness = Arc::new(Readiness::default());
        let token = reactor.registrations.lock().add(&readiness);
        // Created before the descriptor is registered, so that its drop removes the table entry if
        // that fails.
        let registration = Self { descriptor, token, readiness };
        SourceFd(&descriptor).register(&reactor.registry, token, interest)?;
        Ok(registration)
    }

    /// Returns the wake flags that its events set.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }
}

impl Drop for FdRegistration {
    fn drop(&mut self) {
        if let Ok(reactor) = Reactor::get() {
            // Fails for a descriptor that was never registered.
            let _ = SourceFd(&self.descriptor).deregister(&reactor.registry);
            reactor.registrations.lock().by_token.remove(&self.token);
        }
    }
}

/// The reactor of the process; see the table in the module documentation.
#[derive(Debug)]
struct Reactor {
    registry: Registry,
    waker: mio::Waker,
    handoff: Handoff<&'static Reactor>,
    registrations: Lock<Registrations>,
    may_busy_poll: AtomicBool,
}

/// The state of the thread that polls the system, owned by [`Handoff`]'s lock.
#[derive(Debug)]
struct Poller {
    poll: mio::Poll,
    /// Events of the last wait.
    events: Events,
    busy_poll: BusyPoll,
}

impl Poller {
    fn new(poll: mio::Poll) -> Self {
        let events = Events::with_capacity(limits::EVENTS);
        Self { poll, events, busy_poll: BusyPoll::default() }
    }

    /// Waits until there are events; a wake-up by another thread is one.
    fn wait(&mut self, may_busy_poll: bool) {
        if !may_busy_poll || !self.busy_poll.is_worthwhile() {
            self.poll_once(None);
        } else if !self.poll_once(Some(Duration::ZERO)) {
            let start = Instant::now();
            while !self.yield_and_poll() && start.elapsed() < limits::BUSY_POLL {}
            self.busy_poll.ended(start.elapsed());
            if self.events.is_empty() {
                self.poll_once(None);
            }
        }
    }

    /// Yields the processor to other threads, then polls without waiting.
    fn yield_and_poll(&mut self) -> bool {
        thread::yield_now();
        self.poll_once(Some(Duration::ZERO))
    }

    /// Polls the system once. Returns whether there are events.
    fn poll_once(&mut self, timeout: Option<Duration>) -> bool {
        // An error means that a signal arrived: there are no events then, and the caller polls
        // again.
        let _ = self.poll.poll(&mut self.events, timeout);
        !self.events.is_empty()
    }
}

/// All registered descriptors. Tokens are not reused soon: a late event of a closed descriptor must
/// not reach its successor.
#[derive(Debug, Default)]
struct Registrations {
    /// The token given last.
    last: usize,
    by_token: HashMap<Token, Arc<Readiness>>,
}

impl Registrations {
    fn add(&mut self, readiness: &Arc<Readiness>) -> Token {
        loop {
            self.last = self.last.wrapping_add(1);
            let token = Token(self.last);
            if token != WAKE_TOKEN && !self.by_token.contains_key(&token) {
                self.by_token.insert(token, readiness.clone());
                return token;
            }
        }
    }
}

/// Token of the waker that interrupts a wait.
const WAKE_TOKEN: Token = Token(usize::MAX);

impl Reactor {
    /// Returns the reactor of this process, created on first use.
    fn get() -> io::Result<&'static Self> {
        static REACTOR: OnceLock<Reactor> = OnceLock::new();
        if let Some(reactor) = REACTOR.get() {
            return Ok(reactor);
        }
        let created = Self::new()?;
        Ok(REACTOR.get_or_init(|| created))
    }

    fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        Ok(Self {
            waker: mio::Waker::new(&registry, WAKE_TOKEN)?,
            registry,
            handoff: Handoff::new(Poller::new(poll)),
            registrations: Lock::default(),
            may_busy_poll: AtomicBool::new(true),
        })
    }

    /// Sets the wake flags that an event is for.
    fn dispatch_event(&self, event: &Event) {
        // No entry: the event is the waker's, or the descriptor was deregistered.
        let Some(readiness) = self.registrations.lock().by_token.get(&event.token()).cloned() else {
            return;
        };
        let broken = event.is_error();
        if broken || event.is_read_closed() {
            readiness.closed.store(true, Ordering::Release);
        }
        if broken || event.is_read_closed() || event.is_readable() {
            readiness.read.set();
        }
        if broken || event.is_write_closed() || event.is_writable() {
            readiness.write.set();
        }
    }
}

impl EventSource for &'static Reactor {
    type Poller = Poller;

    fn wait(&self, poller: &mut Poller, may_block: bool) {
        if may_block {
            poller.wait(self.may_busy_poll.load(Ordering::Relaxed));
        } else {
            poller.poll_once(Some(Duration::ZERO));
        }
    }

    fn dispatch(&self, poller: &mut Poller) {
        for event in &poller.events {
            self.dispatch_event(event);
        }
    }

    fn interrupt(&self) {
        // Fails only if the descriptor is gone, which lives as long as the program.
        let _ = self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        io::{Read, Write},
        os::unix::net::UnixStream,
        sync::mpsc,
        task::Poll,
    };

    use futures_lite::future;

    use super::*;

    /// Creates a socket pair whose first end is registered.
    fn pair() -> (UnixStream, UnixStream, FdRegistration) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let registration = FdRegistration::new(&near, IoInterest::Both).unwrap();
        (near, far, registration)
    }

    async fn wait_set(flag: &WakeFlag) {
        poll_fn(|context| {
            flag.register(context.waker());
            if flag.take() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[test]
    fn readiness_is_reported_once() {
        let (mut near, mut far, registration) = pair();
        let readiness = registration.readiness();
        block_on(async {
            wait_set(&readiness.write).await;
            assert!(!readiness.read.take() && !readiness.is_closed());
            far.write_all(b"news").unwrap();
            wait_set(&readiness.read).await;
            assert_eq!(near.read(&mut [0; 9]).unwrap(), 4);
            assert!(future::poll_once(wait_set(&readiness.read)).await.is_none());
            drop(far);
            wait_set(&readiness.read).await;
            assert!(readiness.is_closed());
        })
        .unwrap();
    }

    #[test]
    fn a_deregistered_descriptor_wakes_nobody() {
        let (near, mut far, registration) = pair();
        let gone = registration.readiness.clone();
        drop(registration);
        // Another test's thread may have reported the room to write while this was watched.
        let _ = (gone.read.take(), gone.write.take());
        let again = FdRegistration::new(&near, IoInterest::Read).unwrap();
        far.write_all(b"news").unwrap();
        block_on(wait_set(&again.readiness().read)).unwrap();
        assert!(!gone.read.take() && !gone.write.take());
    }

    /// Threads come and go, each waiting for an event of its own; a thread that holds the poller
    /// and leaves must hand it on.
    #[test]
    fn a_leaving_thread_hands_the_poller_over() {
        let (told, done) = mpsc::channel();
        let mut others = Vec::new();
        for number in 0..8 {
            let (_near, far, registration) = pair();
            others.push(far);
            let told = told.clone();
            thread::spawn(move || {
                // Held until the end of the thread: closing this end is an event too.
                let _held = _near;
                block_on(wait_set(&registration.readiness().read)).unwrap();
                told.send(number).unwrap();
            });
        }
        for (number, mut other) in others.into_iter().enumerate() {
            other.write_all(b"news").unwrap();
            assert_eq!(done.recv_timeout(Duration::from_secs(30)), Ok(number));
        }
    }

    /// Returns the state after many waits, each of which ends soon after it began.
    fn after_short_waits(may_busy_poll: bool) -> BusyPoll {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), WAKE_TOKEN).unwrap();
        let mut poller = Poller::new(poll);
        let (waits, told) = mpsc::sync_channel(0);
        thread::scope(|scope| {
            scope.spawn(move || told.iter().for_each(|()| waker.wake().unwrap()));
            for _ in 0..10 * limits::BUSY_POLL_REST {
                waits.send(()).unwrap();
                poller.wait(may_busy_poll);
                assert!(!poller.events.is_empty());
            }
            drop(waits);
        });
        poller.busy_poll
    }

    #[test]
    fn busy_poll_off_never_busy_polls() {
        assert_eq!(after_short_waits(false), BusyPoll::default(), "every wait was spent asleep");
        assert_ne!(after_short_waits(true), BusyPoll::default());
    }

    #[test]
    fn another_thread_wakes_the_reactor() {
        for _ in 0..1000 {
            let (told, heard) = async_channel::bounded::<()>(1);
            let other = thread::spawn(move || told.send_blocking(()));
            assert_eq!(block_on(heard.recv()).unwrap(), Ok(()));
            other.join().unwrap().unwrap();
        }
    }

    #[test]
    fn timers_of_another_reactor_wake_the_reactor() {
        let never = pending::<()>();
        let moment = Duration::from_millis(10);
        assert!(block_on(crate::net::timeout::within(moment, never)).unwrap().is_err());
    }
}
