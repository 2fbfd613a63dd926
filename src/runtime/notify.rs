//! Wakers that remember that they were rung, so that nothing is looked at in vain.
//!
//! A task that waits for several things is polled as a whole when one of them is there, and then asks all the others too; where
//! asking is a system call, that is most of what the task does. [`alone`] keeps a future asleep until it was woken itself, and
//! `async_fd` leaves a socket or pipe unread until the system has spoken of it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Rung by who has news; wakes the task that was told last.
#[derive(Debug, Default)]
pub struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Bell {
    /// A bell, and the waker that rings it.
    pub fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        (bell.clone(), Waker::from(bell))
    }

    /// From now on this task is woken.
    pub fn wakes(&self, task: &Waker) {
        // The waker is replaced whole, so a panic elsewhere does not spoil it.
        let mut held = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.as_ref().is_some_and(|held| held.will_wake(task)) {
            *held = Some(task.clone());
        }
    }

    /// There is news.
    pub fn strike(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        task.into_iter().for_each(Waker::wake);
    }

    /// Whether it was rung since the last look. Tell the task first, else a ring in between wakes nobody.
    pub fn was_rung(&self) -> bool {
        self.rung.swap(false, Ordering::AcqRel)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.strike();
    }
}

/// A future that is polled only when it was woken itself; see [`alone`].
#[derive(Debug)]
pub struct Alone<F> {
    future: Pin<Box<F>>,
    bell: Arc<Bell>,
    waker: Waker,
}

/// Shields a future from the news of the others that are waited for with it.
pub fn alone<F: Future>(future: F) -> Alone<F> {
    let (bell, waker) = Bell::new();
    // The first look is free.
    waker.wake_by_ref();
    Alone { future: Box::pin(future), bell, waker }
}

impl<F: Future> Future for Alone<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.bell.wakes(context.waker());
        if !self.bell.was_rung() {
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
    fn only_its_own_news_wakes_it() {
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
            let mut waiting = alone(waiting);
            for _ in 0..10 {
                assert!(future::poll_once(&mut waiting).await.is_none());
            }
            assert_eq!(looks.get(), 1, "nothing has happened to it");
            let (told, listening) = async_channel::bounded::<()>(1);
            let mut listening = alone(async move { listening.recv().await });
            assert!(future::poll_once(&mut listening).await.is_none());
            told.try_send(()).unwrap();
            assert!(listening.await.is_ok());
            drop(ring);
        });
    }

    #[test]
    fn a_ring_before_the_task_is_told_is_not_lost() {
        let (bell, waker) = Bell::new();
        waker.wake_by_ref();
        let (other, task) = Bell::new();
        bell.wakes(&task);
        assert!(bell.was_rung() && !bell.was_rung());
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert!(other.was_rung() && bell.was_rung());
    }
}
