//! The shutdown signal: dropping its trigger wakes every waiter.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use async_channel::{Receiver, Sender};
use futures_lite::{Stream, future};

/// Triggers the shutdown when dropped: every [`Shutdown::wait`] returns.
#[derive(Debug)]
pub struct ShutdownTrigger(#[allow(dead_code, reason = "dropping it is the signal")] Sender<()>);

/// The waiting side of a [`ShutdownTrigger`].
#[derive(Clone, Debug)]
pub struct Shutdown(Receiver<()>);

/// Creates a trigger and the side that waits for it.
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = async_channel::bounded(1);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl Shutdown {
    /// Waits for the shutdown.
    pub async fn wait(&self) {
        // Nothing is ever sent: this ends when the sender is dropped.
        let _ = self.0.recv().await;
    }

    /// Awaits `work`. Returns `None` if the shutdown is triggered first, or at the same time; `work`
    /// is then dropped, and so cancelled.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let stopped = async {
            self.wait().await;
            None
        };
        future::or(stopped, async { Some(work.await) }).await
    }

    /// Returns a watch, for a task that polls repeatedly.
    pub fn watch(&self) -> ShutdownWatch {
        ShutdownWatch(Box::pin(self.0.clone()))
    }

    /// Returns whether the shutdown was triggered.
    pub fn is_triggered(&self) -> bool {
        self.0.is_closed()
    }
}

/// Waits for a [`ShutdownTrigger`] and stays registered between polls.
#[derive(Debug)]
pub struct ShutdownWatch(Pin<Box<Receiver<()>>>);

impl ShutdownWatch {
    /// Returns `Ready` from the shutdown on.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll_next(context).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};

    use futures_lite::future;

    use super::*;
    use crate::runtime::executor::{run, spawn};

    #[test]
    fn shutdown_reaches_every_waiter() {
        let (trigger, shutdown) = shutdown();
        let waiting: Vec<_> =
            (0..10).map(|_| shutdown.clone()).map(|t| spawn(async move { t.wait().await })).collect();
        let mut watch = shutdown.watch();
        assert!(!shutdown.is_triggered());
        run(1, async move {
            for _ in 0..2 {
                assert!(future::poll_once(poll_fn(|context| watch.poll(context))).await.is_none());
            }
            drop(trigger);
            for task in waiting {
                task.await;
            }
            poll_fn(|context| watch.poll(context)).await;
        })
        .unwrap();
        assert!(shutdown.is_triggered());
    }

    #[test]
    fn a_race_ends_with_the_work_or_the_shutdown() {
        let (trigger, shutdown) = shutdown();
        assert_eq!(smol::block_on(shutdown.race(ready(7))), Some(7));
        assert!(smol::block_on(future::poll_once(shutdown.race(pending::<()>()))).is_none());
        drop(trigger);
        assert_eq!(smol::block_on(shutdown.race(pending::<()>())), None);
        assert_eq!(smol::block_on(shutdown.race(ready(7))), None, "the shutdown wins");
    }
}
