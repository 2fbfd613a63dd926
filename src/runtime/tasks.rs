//! Task scopes: dropping a [`TaskGroup`] cancels its tasks at once.
//!
//! A detached task of `executor` runs until it is done. If the program ends first, the values that
//! the task holds are never dropped, and a child process among them lives on. Code with such tasks
//! puts them into a [`TaskGroup`]: dropping it drops them immediately.

use std::{
    future::{Future, pending},
    sync::{Arc, Weak},
};

use futures_lite::future;
use smol::Executor;

use super::{executor, notify};

/// A set of tasks. Dropping it drops the tasks. Holds the only strong reference to its executor:
/// spawning upgrades a weak one for a moment.
#[derive(Debug)]
pub struct TaskGroup(Arc<Executor<'static>>);

/// Spawns tasks into a [`TaskGroup`], as long as that exists.
#[derive(Clone, Debug)]
pub struct Spawner(Weak<Executor<'static>>);

impl TaskGroup {
    /// Creates an empty group.
    pub fn new() -> Self {
        Self(Arc::new(Executor::new()))
    }

    /// Returns a handle that spawns tasks into this group.
    pub fn spawner(&self) -> Spawner {
        Spawner(Arc::downgrade(&self.0))
    }

    /// Runs a future to its end, and the group's tasks only meanwhile.
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
    /// Spawns a detached task that is dropped with the group; if the group is gone, it is dropped
    /// at once. A panic in it ends only that task and calls `panicked`.
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
