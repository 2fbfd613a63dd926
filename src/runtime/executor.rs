//! The executor: a few threads, and tasks whose panic ends only that task.

use std::{future::Future, io, panic::AssertUnwindSafe, thread};

use futures_lite::FutureExt;
use smol::{Executor, Task};

use super::{notify, reactor};

static EXECUTOR: Executor<'static> = Executor::new();

/// Runs a future on this thread, and spawned tasks on it and `threads - 1` others. The other
/// threads live as long as the process.
///
/// The default is one thread: a call through the gateway is a few short steps in several tasks, and
/// handing each step to another thread costs more than it gains.
///
/// The main future is spawned as a task like the others. If this thread waited for it directly, it
/// would be polled, and the system asked for events, between any two steps of the other tasks.
///
/// # Errors
/// The system's error, when no descriptor is left for the poller.
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

/// Spawns a task. Dropping the returned handle cancels it.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> Task<T> {
    EXECUTOR.spawn(task)
}

/// Spawns a detached task. A panic in it ends only that task and calls `panicked`.
pub fn spawn_guarded(
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) {
    EXECUTOR.spawn(guarded(task, panicked)).detach();
}

/// Wraps a task so that a panic in it ends only that task and calls `panicked`.
pub(crate) fn guarded(
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    // Boxed because an async block stores a captured future that it awaits twice, and these futures
    // are large and numerous.
    let task = Box::pin(AssertUnwindSafe(task).catch_unwind());
    async {
        if task.await.is_err() {
            panicked();
        }
    }
}

/// Runs one step of a long-lived task. Returns `None` if the step panicked.
pub async fn catch_panic<T>(step: impl Future<Output = T>) -> Option<T> {
    AssertUnwindSafe(step).catch_unwind().await.ok()
}

#[cfg(test)]
mod tests {
    use futures_lite::future;

    use super::*;

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
}
