//! A waker with a sticky flag, so that futures that were not woken are not polled.
//!
//! A task that waits for several things is polled as a whole when one of them is ready, and then
//! polls all the others too. Where such a poll is a system call, that is most of the task's work.
//! [`poll_if_woken`] does not poll a future until its own waker was called, and `async_fd` does not
//! read a socket or pipe until the system has reported it readable.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use super::sync::{AtomicBool, Lock, Ordering};

/// A sticky flag that wakes the task that registered last.
///
/// A waiting task calls [`Self::register`], then [`Self::take`], and only then looks at what the
/// flag announces. In this order every [`Self::set`] is either seen by `take` or wakes the task.
#[derive(Debug, Default)]
pub struct WakeFlag {
    /// Set by any thread, cleared by the waiting task.
    is_set: AtomicBool,
    /// Locked by the waiting task to replace the waker, and by a thread that sets the flag to copy
    /// it; never while the waker is called.
    task: Lock<Option<Waker>>,
}

impl WakeFlag {
    /// Creates a flag, and a waker that sets it.
    pub fn new() -> (Arc<Self>, Waker) {
        let flag = Arc::new(Self::default());
        (flag.clone(), Waker::from(flag))
    }

    /// Registers the waker to call when the flag is set. It replaces the previous waker.
    pub fn register(&self, task: &Waker) {
        let mut held = self.task.lock();
        if !held.as_ref().is_some_and(|held| held.will_wake(task)) {
            *held = Some(task.clone());
        }
    }

    /// Sets the flag and wakes the registered task, unless the flag was already set.
    pub fn set(&self) {
        if self.is_set.swap(true, Ordering::AcqRel) {
            return;
        }
        // The lock ends with this line: the waker may run code that registers again.
        let task = self.task.lock().clone();
        task.into_iter().for_each(Waker::wake);
    }

    /// Clears the flag and returns whether it was set. Call [`Self::register`] first, else a `set`
    /// in between wakes nobody; and look at what the flag announces afterwards, else a `set` in
    /// between is cleared unseen.
    pub fn take(&self) -> bool {
        self.is_set.swap(false, Ordering::AcqRel)
    }
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
    }
}

/// A future that is polled only after its own waker was called; see [`poll_if_woken`].
#[derive(Debug)]
pub struct PollIfWoken<F> {
    future: Pin<Box<F>>,
    /// Set by `waker`; wakes the task that polls this.
    flag: Arc<WakeFlag>,
    /// The waker that the future is polled with.
    waker: Waker,
}

/// Wraps a future so that wake-ups meant for other futures in the same task do not poll it.
pub fn poll_if_woken<F: Future>(future: F) -> PollIfWoken<F> {
    let (flag, waker) = WakeFlag::new();
    // The first poll always happens.
    waker.wake_by_ref();
    PollIfWoken { future: Box::pin(future), flag, waker }
}

impl<F: Future> Future for PollIfWoken<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.flag.register(context.waker());
        if !self.flag.take() {
            return Poll::Pending;
        }
        let Self { future, waker, .. } = &mut *self;
        future.as_mut().poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn};

    use futures_lite::future;

    use super::*;

    #[test]
    fn only_its_own_waker_polls_the_future() {
        smol::block_on(async {
            let looks = Cell::new(0);
            let (ring, heard) = async_channel::bounded::<()>(1);
            let waiting = async {
                poll_fn(|context| {
                    looks.set(looks.get() + 1);
                    Box::pin(heard.recv()).as_mut().poll(context)
                })
                .await
            };
            let mut waiting = poll_if_woken(waiting);
            for _ in 0..10 {
                assert!(future::poll_once(&mut waiting).await.is_none());
            }
            assert_eq!(looks.get(), 1, "nothing has happened to it");
            let (told, listening) = async_channel::bounded::<()>(1);
            let mut listening = poll_if_woken(async move { listening.recv().await });
            assert!(future::poll_once(&mut listening).await.is_none());
            told.try_send(()).unwrap();
            assert!(listening.await.is_ok());
            drop(ring);
        });
    }

    #[test]
    fn a_wake_before_registration_is_not_lost() {
        let (flag, waker) = WakeFlag::new();
        waker.wake_by_ref();
        let (other, task) = WakeFlag::new();
        flag.register(&task);
        assert!(flag.take() && !flag.take());
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(other.take() && flag.take());
    }
}
