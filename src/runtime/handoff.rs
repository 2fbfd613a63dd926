//! The hand-over of the poller: which thread waits for events, and how the others sleep and wake.
//!
//! All threads of [`Handoff::block_on`] share one poller, and only one thread at a time can wait in
//! it. The rule:
//!
//! 1. A thread whose future is pending tries to take the poller. It never waits for it: if another
//!    thread holds it, the thread parks.
//! 2. The thread with the poller waits for events, dispatches them for all threads while it still
//!    holds the poller, releases it, and polls its own future again.
//! 3. From then until a thread has nothing to do, nobody waits for events, and they stay in the
//!    kernel. With the executor this is short: a thread that starts a task wakes another thread
//!    before it runs the task (`async-executor`, `Ticker`), and that thread takes the poller.
//! 4. A thread that leaves `block_on`, also by a panic, wakes one parked thread ([`HandoffGuard`]),
//!    because the leaving thread may have been the only one that polls. The woken thread polls its
//!    future and returns to step 1, or leaves and wakes the next one.
//! 5. A thread lists itself as parked first, then tries to take the poller once more, and only then
//!    sleeps. So either it gets the poller that was released in between, or the thread that leaves
//!    finds it in the list.
//! 6. A wake-up reaches a thread wherever it is: it interrupts the wait in the poller, unparks a
//!    parked thread, and makes a running thread poll its future once more. A single atomic
//!    ([`Parker::state`]) holds both "woken" and "where it sleeps", so no order of steps loses one.
//!
//! # Locks
//!
//! | field | locked or written | by |
//! |---|---|---|
//! | [`Handoff::poller`] | `try_lock` only; held from before the wait until the last event is dispatched | the polling thread |
//! | [`Handoff::parked`] | for one push, removal or pop; never while waiting or waking | a thread before and after it parks, and one that leaves |
//! | [`Parker::state`] | atomic | `RUNNING`, `POLLING` and `PARKED`: the thread itself; `WOKEN`: any thread |
//! | [`Parker::thread`], [`Parker::source`] | never after creation | |
//!
//! `parked` is never locked together with another lock of this module or of `reactor`. Dispatching
//! takes the locks of `reactor` and `notify` one at a time, below `poller`.
//!
//! The system's events are behind [`EventSource`]; the only one in the program is `reactor`'s.
//! `tests/loom` runs this module with a model of it in every order of steps.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use super::sync::{self, AtomicU8, Lock, MutexGuard, Ordering, Thread};

/// The system's queue of events.
pub trait EventSource: Clone + Send + Sync + 'static {
    /// What a thread needs to wait for events; only one thread at a time has it.
    type Poller: Send;

    /// Waits for events, or only collects those that are there if `may_block` is false.
    fn wait(&self, poller: &mut Self::Poller, may_block: bool);

    /// Wakes the tasks that the events of the last wait are for.
    fn dispatch(&self, poller: &mut Self::Poller);

    /// Ends the current wait, or the next one if no thread waits. Called by any thread.
    fn interrupt(&self);
}

/// The poller, and the threads that sleep while another one has it.
#[derive(Debug)]
pub struct Handoff<S: EventSource> {
    /// Held by the thread that waits for events and dispatches them. A panic during dispatch leaves
    /// it usable: the next wait replaces its events.
    poller: Lock<S::Poller>,
    /// Threads that are parked or about to be.
    parked: Lock<Vec<Arc<Parker<S>>>>,
}

impl<S: EventSource> Handoff<S> {
    /// Creates the shared state of all threads that use this poller.
    pub fn new(poller: S::Poller) -> Self {
        Self { poller: Lock::new(poller), parked: Lock::default() }
    }

    /// Runs a future on this thread until it is done. While it is pending, the thread waits for
    /// events on behalf of all threads, or parks if another thread does.
    pub fn block_on<T>(&self, source: S, future: impl Future<Output = T>) -> T {
        let _handoff = HandoffGuard(self);
        let parker = Arc::new(Parker::new(source));
        let waker = Waker::from(parker.clone());
        let mut future = pin!(future);
        loop {
            // Cleared before the poll, not after it: a wake-up during the poll causes another poll.
            parker.clear();
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            self.wait(&parker);
        }
    }

    /// Sleeps until this thread is woken, or has dispatched events for any thread.
    fn wait(&self, parker: &Arc<Parker<S>>) {
        if let Some(poller) = self.poller.try_lock() {
            return poll_events(poller, parker);
        }
        self.parked.lock().push(parker.clone());
        // Rule 5: the poller may have been released before this thread was listed.
        match self.poller.try_lock() {
            Some(poller) => poll_events(poller, parker),
            None => parker.park(),
        }
        self.parked.lock().retain(|other| !Arc::ptr_eq(other, parker));
    }
}

/// Waits for events and dispatches them.
fn poll_events<S: EventSource>(mut poller: MutexGuard<'_, S::Poller>, parker: &Parker<S>) {
    // A thread that was woken already does not wait, but collects events, so that a thread that is
    // woken all the time cannot starve the others.
    let may_block = parker.begin_polling();
    parker.source.wait(&mut poller, may_block);
    // Before dispatching: waking this thread's own tasks then costs no interrupt.
    parker.end_polling();
    parker.source.dispatch(&mut poller);
}

/// Wakes a parked thread when a thread leaves [`Handoff::block_on`].
struct HandoffGuard<'a, S: EventSource>(&'a Handoff<S>);

impl<S: EventSource> Drop for HandoffGuard<'_, S> {
    fn drop(&mut self) {
        let parker = self.0.parked.lock().pop();
        parker.into_iter().for_each(Wake::wake);
    }
}

/// The thread polls its future, or is about to sleep.
const RUNNING: u8 = 0;
/// The thread waits in the poller.
const POLLING: u8 = 1;
/// The thread is parked.
const PARKED: u8 = 2;
/// The thread must poll its future again before it sleeps.
const WOKEN: u8 = 3;

/// A thread in [`Handoff::block_on`]. As a waker, it wakes this thread.
#[derive(Debug)]
struct Parker<S> {
    thread: Thread,
    source: S,
    /// `RUNNING`, `POLLING`, `PARKED` or `WOKEN`. Each change reads the former value in the same
    /// step, so that a wake-up and a thread that goes to sleep cannot miss each other.
    state: AtomicU8,
}

impl<S: EventSource> Parker<S> {
    fn new(source: S) -> Self {
        Self { thread: sync::current(), source, state: AtomicU8::new(RUNNING) }
    }

    /// Forgets earlier wake-ups; what they announced is seen by the poll that follows.
    fn clear(&self) {
        self.state.swap(RUNNING, Ordering::AcqRel);
    }

    /// Returns false if the thread was woken already and must not wait.
    fn begin_polling(&self) -> bool {
        self.change(RUNNING, POLLING)
    }

    fn end_polling(&self) {
        self.change(POLLING, RUNNING);
    }

    fn park(&self) {
        if self.change(RUNNING, PARKED) {
            while self.state.load(Ordering::Acquire) == PARKED {
                sync::park();
            }
        }
    }

    /// Returns false, and changes nothing, if the state was not `from`.
    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl<S: EventSource> Wake for Parker<S> {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.state.swap(WOKEN, Ordering::AcqRel) {
            PARKED => self.thread.unpark(),
            POLLING => self.source.interrupt(),
            _ => {}
        }
    }
}
