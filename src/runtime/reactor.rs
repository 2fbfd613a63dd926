//! Waiting for the system: one poller for all sockets and pipes, and the threads that sleep until it has news for them.
//!
//! A descriptor is registered once in its life (edge triggered), and a turn costs one system call. The reactor of `async-io` asks
//! for each descriptor, its timer and its own bell anew at every turn: with that a call through gateway and register costs
//! 32 system calls, with this 12. What is rare stays there (timers, signals, processes, connecting), on a thread of its own that
//! wakes ours.
//!
//! Before it sleeps, the thread stays awake for a moment if `busy_poll` says that this pays: it yields, and asks again without waiting.
//!
//! `async_fd` reads and writes on top of this; `executor` runs its tasks on the threads that sleep here.

use std::{
    collections::HashMap,
    future::Future,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};

use mio::{
    Events, Interest, Registry, Token,
    event::{Event, Source},
    unix::SourceFd,
};

use super::{busy_poll::Spin, notify::Bell};
use crate::limits;

/// Runs a future on this thread until it is done. While it waits, the thread waits for the system on behalf of all.
///
/// # Errors
/// The system's, when no descriptor is left for the poller; the future is then not run.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let reactor = Reactor::get()?;
    let _heir = Heir(reactor);
    let sleeper = Arc::new(Sleeper::new());
    let waker = Waker::from(sleeper.clone());
    let mut future = pin!(future);
    loop {
        // Forgotten before the look and not after it: what happens meanwhile asks for another.
        sleeper.woken.store(false, Ordering::SeqCst);
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(value);
        }
        reactor.wait(&sleeper);
    }
}

/// What a descriptor is watched for.
#[derive(Clone, Copy, Debug)]
pub enum Watch {
    /// Something to read, or the end.
    Read,
    /// Room to write, or nobody who reads.
    Write,
    /// Both.
    Both,
}

/// A descriptor that is watched, as long as this lives; it must not be closed before.
#[derive(Debug)]
pub struct Watched {
    descriptor: RawFd,
    token: Token,
    ears: Arc<Ears>,
}

/// Who is told of a descriptor's news.
#[derive(Debug, Default)]
pub struct Ears {
    /// Rung when there is something to read.
    pub read: Bell,
    /// Rung when there is room to write.
    pub write: Bell,
    closed: AtomicBool,
}

impl Ears {
    /// Whether the peer has ended its direction, or the line broke. There is no news after that one, so a read that finds
    /// less than it could take is not the last.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

impl Watched {
    /// Watches a descriptor. What it has already is told too.
    ///
    /// # Errors
    /// The system's.
    pub fn new(descriptor: &impl AsFd, watch: Watch) -> io::Result<Self> {
        let reactor = Reactor::get()?;
        let descriptor = descriptor.as_fd().as_raw_fd();
        let interest = match watch {
            Watch::Read => Interest::READABLE,
            Watch::Write => Interest::WRITABLE,
            Watch::Both => Interest::READABLE | Interest::WRITABLE,
        };
        let ears = Arc::new(Ears::default());
        let token = locked(&reactor.audience).admit(&ears);
        // Made before it is registered, so that it goes from the table if that fails.
        let watched = Self { descriptor, token, ears };
        SourceFd(&descriptor).register(&reactor.registry, token, interest)?;
        Ok(watched)
    }

    /// Where its news arrive.
    pub fn ears(&self) -> &Ears {
        &self.ears
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Ok(reactor) = Reactor::get() {
            // Refused for one that was never registered.
            let _ = SourceFd(&self.descriptor).deregister(&reactor.registry);
            locked(&reactor.audience).ears.remove(&self.token);
        }
    }
}

#[derive(Debug)]
struct Reactor {
    registry: Registry,
    /// Ends the sleep of the thread that has the turn.
    alarm: mio::Waker,
    turn: Mutex<Turn>,
    audience: Mutex<Audience>,
    /// Threads that sleep while another has the turn.
    bench: Mutex<Vec<Arc<Sleeper>>>,
}

/// What the thread needs that asks the system.
#[derive(Debug)]
struct Turn {
    poll: mio::Poll,
    events: Events,
    spin: Spin,
}

impl Turn {
    /// Waits until there are news; the alarm is one.
    fn wait(&mut self) {
        if !self.spin.pays() {
            self.ask(None);
        } else if !self.ask(Some(Duration::ZERO)) {
            let start = Instant::now();
            while !self.ask_after_others() && start.elapsed() < limits::SPIN {}
            self.spin.ended(start.elapsed());
            if self.events.is_empty() {
                self.ask(None);
            }
        }
    }

    /// Asks once more, when whoever else wants this processor has had it.
    fn ask_after_others(&mut self) -> bool {
        thread::yield_now();
        self.ask(Some(Duration::ZERO))
    }

    /// Asks the system once. Whether there are news.
    fn ask(&mut self, patience: Option<Duration>) -> bool {
        // An error is a signal that arrived: there are no events then, and the caller comes again.
        let _ = self.poll.poll(&mut self.events, patience);
        !self.events.is_empty()
    }
}

/// All that are watched. Tokens are not used again soon: news of one that is gone must not reach its successor.
#[derive(Debug, Default)]
struct Audience {
    last: usize,
    ears: HashMap<Token, Arc<Ears>>,
}

impl Audience {
    fn admit(&mut self, ears: &Arc<Ears>) -> Token {
        loop {
            self.last = self.last.wrapping_add(1);
            let token = Token(self.last);
            if token != ALARM && !self.ears.contains_key(&token) {
                self.ears.insert(token, ears.clone());
                return token;
            }
        }
    }
}

const ALARM: Token = Token(usize::MAX);

impl Reactor {
    /// The one of this program; made when it is first needed.
    fn get() -> io::Result<&'static Self> {
        static REACTOR: OnceLock<Reactor> = OnceLock::new();
        if let Some(reactor) = REACTOR.get() {
            return Ok(reactor);
        }
        let made = Self::new()?;
        Ok(REACTOR.get_or_init(|| made))
    }

    fn new() -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let registry = poll.registry().try_clone()?;
        Ok(Self {
            alarm: mio::Waker::new(&registry, ALARM)?,
            registry,
            turn: Mutex::new(Turn {
                poll,
                events: Events::with_capacity(limits::EVENTS),
                spin: Spin::default(),
            }),
            audience: Mutex::default(),
            bench: Mutex::default(),
        })
    }

    /// Sleeps until this thread is woken, or has heard of something that concerns anybody.
    fn wait(&self, sleeper: &Arc<Sleeper>) {
        if let Some(turn) = self.try_turn() {
            return self.take_turn(turn, sleeper);
        }
        locked(&self.bench).push(sleeper.clone());
        // Asked once more: who gave the turn up in between did not see us on the bench.
        match self.try_turn() {
            Some(turn) => self.take_turn(turn, sleeper),
            None => sleeper.sleep(),
        }
        locked(&self.bench).retain(|other| !Arc::ptr_eq(other, sleeper));
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, Turn>> {
        match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(turn)) => Some(turn.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits for news, and tells whom they concern.
    fn take_turn(&self, mut turn: MutexGuard<'_, Turn>, sleeper: &Sleeper) {
        sleeper.has_turn.store(true, Ordering::SeqCst);
        if sleeper.woken.load(Ordering::SeqCst) {
            turn.ask(Some(Duration::ZERO));
        } else {
            turn.wait();
        }
        sleeper.has_turn.store(false, Ordering::SeqCst);
        for event in &turn.events {
            self.tell(event);
        }
    }

    fn tell(&self, event: &Event) {
        // Nobody: it is the alarm, or who was watched is gone.
        let Some(ears) = locked(&self.audience).ears.get(&event.token()).cloned() else { return };
        let broken = event.is_error();
        if broken || event.is_read_closed() {
            ears.closed.store(true, Ordering::Release);
        }
        if broken || event.is_read_closed() || event.is_readable() {
            ears.read.strike();
        }
        if broken || event.is_write_closed() || event.is_writable() {
            ears.write.strike();
        }
    }
}

/// Sees to it, when a thread leaves, that the turn goes to one that is still here.
struct Heir(&'static Reactor);

impl Drop for Heir {
    fn drop(&mut self) {
        let heir = locked(&self.0.bench).pop();
        heir.into_iter().for_each(Wake::wake);
    }
}

/// A thread that waits.
#[derive(Debug)]
struct Sleeper {
    thread: Thread,
    woken: AtomicBool,
    /// It sleeps in the system, not on the bench.
    has_turn: AtomicBool,
}

impl Sleeper {
    fn new() -> Self {
        Self { thread: thread::current(), woken: AtomicBool::new(false), has_turn: AtomicBool::new(false) }
    }

    fn sleep(&self) {
        while !self.woken.load(Ordering::SeqCst) {
            thread::park();
        }
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Both sides write first and look then, so one of them sees the other.
        if self.woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if !self.has_turn.load(Ordering::SeqCst) {
            return self.thread.unpark();
        }
        if let Ok(reactor) = Reactor::get() {
            // Fails only where the descriptor is gone, which ends with the program.
            let _ = reactor.alarm.wake();
        }
    }
}

/// What is locked here is changed in single steps, so a panic elsewhere does not spoil it.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, poll_fn},
        io::{Read, Write},
        os::unix::net::UnixStream,
        sync::mpsc,
    };

    use futures_lite::future;

    use super::*;

    /// One side is watched.
    fn pair() -> (UnixStream, UnixStream, Watched) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let watched = Watched::new(&near, Watch::Both).unwrap();
        (near, far, watched)
    }

    async fn rung(bell: &Bell) {
        poll_fn(|context| {
            bell.wakes(context.waker());
            if bell.was_rung() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    #[test]
    fn news_are_told_once() {
        let (mut near, mut far, watched) = pair();
        let ears = watched.ears();
        block_on(async {
            rung(&ears.write).await;
            assert!(!ears.read.was_rung() && !ears.is_closed());
            far.write_all(b"news").unwrap();
            rung(&ears.read).await;
            assert_eq!(near.read(&mut [0; 9]).unwrap(), 4);
            assert!(future::poll_once(rung(&ears.read)).await.is_none());
            drop(far);
            rung(&ears.read).await;
            assert!(ears.is_closed());
        })
        .unwrap();
    }

    #[test]
    fn nobody_is_told_of_what_is_no_longer_watched() {
        let (near, mut far, watched) = pair();
        let gone = watched.ears.clone();
        drop(watched);
        // Another test's thread may have reported the room to write while this was watched.
        let _ = (gone.read.was_rung(), gone.write.was_rung());
        let again = Watched::new(&near, Watch::Read).unwrap();
        far.write_all(b"news").unwrap();
        block_on(rung(&again.ears().read)).unwrap();
        assert!(!gone.read.was_rung() && !gone.write.was_rung());
    }

    /// Threads come and go, each waiting for news of its own; whoever has the turn when it leaves must not take it along.
    #[test]
    fn the_turn_is_handed_on() {
        let (told, done) = mpsc::channel();
        let mut others = Vec::new();
        for number in 0..8 {
            let (_near, far, watched) = pair();
            others.push(far);
            let told = told.clone();
            thread::spawn(move || {
                // Held until then: an end that is closed is news too.
                let _held = _near;
                block_on(rung(&watched.ears().read)).unwrap();
                told.send(number).unwrap();
            });
        }
        for (number, mut other) in others.into_iter().enumerate() {
            other.write_all(b"news").unwrap();
            assert_eq!(done.recv_timeout(Duration::from_secs(30)), Ok(number));
        }
    }

    #[test]
    fn another_thread_ends_the_sleep() {
        for _ in 0..1000 {
            let (told, heard) = async_channel::bounded::<()>(1);
            let other = thread::spawn(move || told.send_blocking(()));
            assert_eq!(block_on(heard.recv()).unwrap(), Ok(()));
            other.join().unwrap().unwrap();
        }
    }

    #[test]
    fn timers_of_another_reactor_end_the_sleep() {
        let never = pending::<()>();
        let moment = Duration::from_millis(10);
        assert!(block_on(crate::net::timeout::within(moment, never)).unwrap().is_err());
    }
}
