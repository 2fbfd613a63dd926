//! Tasks that end with whoever they work for, at once and wherever they stand.
//!
//! A task of `executor` that nobody waits for goes on until it is done; when the program ends before, what it holds is never
//! dropped, and a child process that it holds lives on. Those that hold such things have a [`TaskGroup`]: whoever drops
//! that drops them, in the same step.

use std::{
    future::{Future, pending},
    sync::{Arc, Weak},
};

use futures_lite::future;
use smol::Executor;

use super::{executor, notify};

/// Holds the tasks. Dropping it drops them.
#[derive(Debug)]
pub struct TaskGroup(Arc<Executor<'static>>);

/// Where a task can be put into a [`TaskGroup`], as long as that stands.
#[derive(Clone, Debug)]
pub struct Spawner(Weak<Executor<'static>>);

impl TaskGroup {
    /// An empty one.
    pub fn new() -> Self {
        Self(Arc::new(Executor::new()))
    }

    /// Where tasks can be put in.
    pub fn spawner(&self) -> Spawner {
        Spawner(Arc::downgrade(&self.0))
    }

    /// Runs a future, and the tasks as long as that runs.
    pub async fn run<T>(&self, main: impl Future<Output = T>) -> T {
        future::or(main, notify::poll_if_woken(self.0.run(pending()))).await
    }
}

impl Default for TaskGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner {
    /// Puts a task in that nobody waits for; it is dropped at once when the group is gone. A panic in it ends only that
    /// task; `panicked` is told.
    pub fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
        panicked: impl FnOnce() + Send + 'static,
    ) {
        let Some(group) = self.0.upgrade() else { return };
        group.spawn(executor::guarded(task, panicked)).detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_a_task_group_drops_its_tasks() {
        let (group, held) = (TaskGroup::new(), Arc::new(()));
        let spawner = group.spawner();
        for _ in 0..3 {
            let held = held.clone();
            let task = async move {
                let _held = held;
                pending().await
            };
            spawner.spawn(task, || {});
        }
        smol::block_on(group.run(future::yield_now()));
        assert_eq!(Arc::strong_count(&held), 4);
        drop(group);
        assert_eq!(Arc::strong_count(&held), 1);
        let late = held.clone();
        spawner.spawn(async move { drop(late) }, || {});
        assert_eq!(Arc::strong_count(&held), 1, "there is no group any more");
    }

    #[test]
    fn a_panic_ends_one_task() {
        let (group, (told, heard)) = (TaskGroup::new(), async_channel::bounded(1));
        let again = told.clone();
        group.spawner().spawn(async { panic!("this panic is part of the test") }, move || {
            let _ = again.try_send(());
        });
        assert_eq!(smol::block_on(group.run(async { heard.recv().await })), Ok(()));
        drop(told);
    }
}
