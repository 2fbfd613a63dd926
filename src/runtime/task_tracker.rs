//! Counts running tasks, so that a program can wait until all of them have ended.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_channel::{Receiver, Sender};

/// Counts the tasks that hold a [`TaskGuard`].
#[derive(Clone, Debug)]
pub struct TaskTracker(Arc<Count>);

#[derive(Debug)]
struct Count {
    running: AtomicUsize,
    /// Holds a message after the last guard was dropped.
    idle: (Sender<()>, Receiver<()>),
}

/// Counts as one running task of a [`TaskTracker`] until dropped.
#[derive(Debug)]
pub struct TaskGuard(Arc<Count>);

impl TaskTracker {
    /// Creates a tracker with no tasks.
    pub fn new() -> Self {
        Self(Arc::new(Count { running: AtomicUsize::new(0), idle: async_channel::bounded(1) }))
    }

    /// Returns a guard for one more task.
    pub fn track(&self) -> TaskGuard {
        self.0.running.fetch_add(1, Ordering::AcqRel);
        TaskGuard(self.0.clone())
    }

    /// Returns the number of guards in existence.
    pub fn len(&self) -> usize {
        self.0.running.load(Ordering::Acquire)
    }

    /// Returns whether no guard exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until all guards are dropped. Only one task may wait.
    pub async fn wait_idle(&self) {
        while !self.is_empty() {
            // Cannot fail: `Count` holds the sender too, so the channel stays open.
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
            // Fails when the channel is full, which means that the waiter was notified already.
            let _ = self.0.idle.0.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::executor::{run, spawn_guarded};

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
