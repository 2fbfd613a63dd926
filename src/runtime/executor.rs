//! The executor: few threads, tasks that are owned, and a way to tell all of them to stop.

use std::{
    future::Future,
    io,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
};

use async_channel::{Receiver, Sender};
use futures_lite::{FutureExt, Stream, future};
use smol::{Executor, Task, lock::Mutex};

use super::{notify, reactor};

static EXECUTOR: Executor<'static> = Executor::new();

/// Runs a future on this thread, and spawned tasks on it and `threads - 1` others. The others last as long as the process.
///
/// One thread is the default: a call through the gateway is a few short steps in several tasks, and handing each
/// to another thread costs more than it gains.
///
/// The future is a task like the others: as the one that this thread waits for it would be looked at, and the system asked for
/// events, between any two steps of the others.
///
/// # Errors
/// The system's, when no descriptor is left to wait with.
pub fn run<T: Send + 'static>(
    threads: usize,
    main: impl Future<Output = T> + Send + 'static,
) -> io::Result<T> {
    for number in 1..threads.max(1) {
        let helper = thread::Builder::new().name(format!("mcpport-{number}"));
        let spawned = helper.spawn(|| reactor::block_on(EXECUTOR.run(std::future::pending::<()>())));
        if let Err(error) = spawned {
            log::warn!("cannot start thread {number} of {threads}: {error}");
        }
    }
    reactor::block_on(EXECUTOR.run(notify::poll_if_woken(EXECUTOR.spawn(main))))
}

/// Spawns a task. It is cancelled when the handle is dropped.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Task<T> {
    EXECUTOR.spawn(task)
}

/// Spawns a task that nobody waits for. A panic in it ends only that task; `panicked` is told.
pub fn spawn_guarded(
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) {
    EXECUTOR.spawn(guarded(task, panicked)).detach();
}

/// A task whose panic ends only that task; `panicked` is told.
pub(crate) fn guarded(
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    // In a box: what an async block awaits and came from outside would stand in it twice, and these are large and many.
    let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
    async {
        if task.await.is_err() {
            panicked();
        }
    }
}

/// Runs one step of a task that goes on for ever. `None`: the step panicked, and is over.
pub async fn catch_panic<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
}

/// One side of a switch that is thrown once: everybody who waits on the other side goes on.
#[derive(Debug)]
pub struct ShutdownTrigger(#[allow(dead_code, reason = "dropping it is the signal")] Sender<()>);

/// The other side of a [`ShutdownTrigger`].
#[derive(Clone, Debug)]
pub struct Shutdown(Receiver<()>);

/// A switch and the side that waits for it. Dropping the switch throws it.
pub fn shutdown() -> (ShutdownTrigger, Shutdown) {
    let (sender, receiver) = async_channel::bounded(1);
    (ShutdownTrigger(sender), Shutdown(receiver))
}

impl Shutdown {
    /// Waits for the switch.
    pub async fn wait(&self) {
        // Nothing is ever sent: this ends when the sender is dropped.
        let _ = self.0.recv().await;
    }

    /// For who waits again and again.
    pub fn watch(&self) -> ShutdownWatch {
        ShutdownWatch(Box::pin(self.0.clone()))
    }

    /// Whether it was thrown.
    pub fn is_triggered(&self) -> bool {
        self.0.is_closed()
    }
}

/// Waits for a [`ShutdownTrigger`], as one that stays in line however often it is asked.
#[derive(Debug)]
pub struct ShutdownWatch(Pin<Box<Receiver<()>>>);

impl ShutdownWatch {
    /// Ready from the throw on.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll_next(context).map(|_| ())
    }
}

/// Gives tasks that have the same thing to do their turns one after the other, and lets all others run between two turns: what
/// thousands have to do at the same moment does not keep the rest of the program waiting until all of it is done.
#[derive(Debug, Default)]
pub struct Pacer(Mutex<()>);

impl Pacer {
    /// Waits for the turn of this task, which is the time until it waits for something the next time.
    pub async fn turn(&self) {
        let _turn = self.0.lock().await;
        future::yield_now().await;
    }
}

/// Counts tasks, so that a program can wait until all of them have ended.
#[derive(Clone, Debug)]
pub struct TaskTracker(Arc<Count>);

#[derive(Debug)]
struct Count {
    running: AtomicUsize,
    /// Holds something when the last badge came back.
    idle: (Sender<()>, Receiver<()>),
}

/// Held by each task of a [`TaskTracker`] as long as it runs.
#[derive(Debug)]
pub struct TaskGuard(Arc<Count>);

impl TaskTracker {
    /// Nobody yet.
    pub fn new() -> Self {
        Self(Arc::new(Count { running: AtomicUsize::new(0), idle: async_channel::bounded(1) }))
    }

    /// A badge for one more task.
    pub fn track(&self) -> TaskGuard {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        TaskGuard(self.0.clone())
    }

    /// How many badges are out.
    pub fn len(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Whether no badge is out.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all badges are back. For one waiter.
    pub async fn wait_idle(&self) {
        while !self.is_empty() {
            // The sender is in the same place as the receiver, so this cannot fail.
            let _ = self.0.idle.1.recv().await;
        }
    }
}

impl Clone for TaskGuard {
    fn clone(&self) -> Self {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        Self(self.0.clone())
    }
}

impl Default for TaskTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            // When it is full, the waiter is told already.
            let _ = self.0.idle.0.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn shutdown_reaches_every_waiter() {
        let (switch, thrown) = shutdown();
        let waiting: Vec<_> =
            (0..10).map(|_| thrown.clone()).map(|t| spawn(async move { t.wait().await })).collect();
        let mut watch = thrown.watch();
        assert!(!thrown.is_triggered());
        run(1, async move {
            for _ in 0..2 {
                assert!(future::poll_once(poll_fn(|context| watch.poll(context))).await.is_none());
            }
            drop(switch);
            for task in waiting {
                task.await;
            }
            poll_fn(|context| watch.poll(context)).await;
        })
        .unwrap();
        assert!(thrown.is_triggered());
    }

    #[test]
    fn a_panic_ends_one_step_only() {
        let steps = run(1, async {
            let mut steps = Vec::new();
            for number in 0..3 {
                let step = async move {
                    future::yield_now().await;
                    assert_ne!(number, 1, "this panic is part of the test");
                    number
                };
                steps.push(catch_panic(step).await);
            }
            steps
        });
        assert_eq!(steps.unwrap(), [Some(0), None, Some(2)]);
    }

    #[test]
    fn paced_tasks_have_one_turn_in_each_round() {
        let (pacer, turns) = (Pacer::default(), std::cell::Cell::new(0));
        let paced = |_| {
            Box::pin(async {
                pacer.turn().await;
                turns.set(turns.get() + 1);
            })
        };
        let mut paced: Vec<_> = (0..100).map(paced).collect();
        let mut context = Context::from_waker(std::task::Waker::noop());
        for round in 0..50 {
            // All of them are looked at in each round, as in the executor.
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            assert_eq!((turns.get(), paced.len()), (round, 100 - round));
        }
        // The one whose turn it is, and one that waits, are given up.
        paced.drain(..2);
        while !paced.is_empty() {
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(turns.get(), 98);
    }

    #[test]
    fn a_task_tracker_waits_for_all_and_survives_a_panic() {
        let crew = TaskTracker::new();
        let (told, hear) = async_channel::bounded(1);
        for number in 0..10 {
            let (badge, told) = (crew.track(), told.clone());
            let task = async move {
                let _held = badge;
                futures_lite::future::yield_now().await;
                assert_ne!(number, 7, "this panic is part of the test");
            };
            spawn_guarded(task, move || {
                let _ = told.try_send(());
            });
        }
        assert_eq!(crew.len(), 10);
        run(1, async move { crew.wait_idle().await }).unwrap();
        assert_eq!(run(1, async move { hear.recv().await }).unwrap(), Ok(()));
    }
}
