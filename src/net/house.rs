//! Tasks that end with whoever they work for, at once and wherever they stand.
//!
//! A task of `exec` that nobody waits for goes on until it is done; when the program ends before, what it holds is never
//! dropped, and a child process that it holds lives on. Those that hold such things have a [`House`]: whoever drops
//! that drops them, in the same step.

use std::{
    future::{Future, pending},
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
};

use futures_lite::{FutureExt, future};
use smol::Executor;

use super::bell;

/// Holds the tasks. Dropping it drops them.
#[derive(Debug)]
pub struct House(Arc<Executor<'static>>);

/// Where a task can be put into a [`House`], as long as that stands.
#[derive(Clone, Debug)]
pub struct Home(Weak<Executor<'static>>);

impl House {
    /// An empty one.
    pub fn new() -> Self {
        Self(Arc::new(Executor::new()))
    }

    /// Where tasks can be put in.
    pub fn home(&self) -> Home {
        Home(Arc::downgrade(&self.0))
    }

    /// Runs a future, and the tasks as long as that runs.
    pub async fn shelter<T>(&self, main: impl Future<Output = T>) -> T {
        future::or(main, bell::alone(self.0.run(pending()))).await
    }
}

impl Default for House {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// Puts a task in that nobody waits for; it is dropped at once when the house is gone. A panic in it ends only that
    /// task; `panicked` is told.
    pub fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
        panicked: impl FnOnce() + Send + 'static,
    ) {
        let Some(house) = self.0.upgrade() else { return };
        let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
        let guarded = async {
            if task.await.is_err() {
                panicked();
            }
        };
        house.spawn(guarded).detach();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_house_holds_goes_with_it() {
        let (house, held) = (House::new(), Arc::new(()));
        let home = house.home();
        for _ in 0..3 {
            let held = held.clone();
            let task = async move {
                let _held = held;
                pending().await
            };
            home.spawn(task, || {});
        }
        smol::block_on(house.shelter(future::yield_now()));
        assert_eq!(Arc::strong_count(&held), 4);
        drop(house);
        assert_eq!(Arc::strong_count(&held), 1);
        let late = held.clone();
        home.spawn(async move { drop(late) }, || {});
        assert_eq!(Arc::strong_count(&held), 1, "there is no house any more");
    }

    #[test]
    fn a_panic_ends_one_task() {
        let (house, (told, heard)) = (House::new(), async_channel::bounded(1));
        let again = told.clone();
        house.home().spawn(async { panic!("this panic is part of the test") }, move || {
            let _ = again.try_send(());
        });
        assert_eq!(smol::block_on(house.shelter(async { heard.recv().await })), Ok(()));
        drop(told);
    }
}
