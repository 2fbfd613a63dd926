//! Counts running tasks, so that a program can wait until all of them have ended.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_channel::{Receiver, Sender};

/// Counts the tasks that hold a [`TaskGuard`], or that a [`TaskCounter`] counts.
#[derive(Clone, Debug)]
pub struct TaskTracker(Arc<Count>);

#[derive(Debug)]
struct Count {
    /// Guards in existence. The thread that drops the last one sends the message.
    running: AtomicUsize,
    /// Holds a message after the last task ended.
    idle: (Sender<()>, Receiver<()>),
}

/// Counts as one running task of a [`TaskTracker`] until dropped.
#[derive(Debug)]
pub struct TaskGuard(Arc<Count>);

/// Counts tasks of a [`TaskTracker`] that have no guard. Those that have not ended when it is
/// dropped end then.
#[derive(Debug)]
pub struct TaskCounter {
    count: Arc<Count>,
    running: AtomicUsize,
}

impl TaskTracker {
    /// Creates a tracker with no tasks.
    pub fn new() -> Self {
        Self(Arc::new(Count { running: AtomicUsize::new(0), idle: async_channel::bounded(1) }))
    }

    /// Returns a guard for one more task.
    pub fn track(&self) -> TaskGuard {
        self.0.add();
        TaskGuard(self.0.clone())
    }

    /// Returns a counter of tasks that begin and end at one place, and need no guard each.
    pub fn count(&self) -> TaskCounter {
        TaskCounter { count: self.0.clone(), running: AtomicUsize::new(0) }
    }

    /// Returns the number of running tasks.
    pub fn len(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Returns whether no task is running.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all tasks have ended. Only one task may wait.
    pub async fn wait_idle(&self) {
        while !self.is_empty() {
            // Cannot fail: `Count` holds the sender too, so the channel stays open.
            let _ = self.0.idle.1.recv().await;
        }
    }
}

impl Count {
    fn add(&self) {
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    fn remove(&self, ended: usize) {
        if self.running.fetch_sub(ended, Ordering::AcqRel) == ended {
            // Fails when the channel is full, which means that the waiter was notified already.
            let _ = self.idle.0.try_send(());
        }
    }
}

impl TaskCounter {
    /// Counts one more task as running.
    pub fn begin(&self) {
        self.count.add();
        self.running.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts one task less. Ignored if none is running.
    pub fn end(&self) {
        let less = |running: usize| running.checked_sub(1);
        if self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
            self.count.remove(1);
        }
    }
}

impl Drop for TaskCounter {
    fn drop(&mut self) {
        let left = *self.running.get_mut();
        if left > 0 {
            self.count.remove(left);
        }
    }
}

impl Default for TaskTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.0.remove(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::executor::{run, spawn_guarded};

    #[test]
    fn a_task_counter_ends_its_tasks_when_dropped() {
        let tracker = TaskTracker::new();
        let (counter, other) = (tracker.count(), tracker.track());
        (0..3).for_each(|_| counter.begin());
        counter.end();
        assert_eq!(tracker.len(), 3);
        drop(counter);
        assert_eq!(tracker.len(), 1);
        let idle = tracker.count();
        idle.end();
        assert_eq!(tracker.len(), 1, "nothing had begun");
        drop((other, idle));
        smol::block_on(tracker.wait_idle());
    }

    #[test]
    fn a_task_tracker_waits_for_all_and_survives_a_panic() {
        let tracker = TaskTracker::new();
        let (told, hear) = async_channel::bounded(1);
        for number in 0..10 {
            let (guard, told) = (tracker.track(), told.clone());
            let task = async move {
                let _held = guard;
                futures_lite::future::yield_now().await;
                assert_ne!(number, 7, "this panic is part of the test");
            };
            spawn_guarded(task, move || {
                let _ = told.try_send(());
            });
        }
        assert_eq!(tracker.len(), 10);
        run(1, async move { tracker.wait_idle().await }).unwrap();
        assert_eq!(run(1, async move { hear.recv().await }).unwrap(), Ok(()));
    }
}
