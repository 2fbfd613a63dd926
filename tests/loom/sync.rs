//! Replaces `src/runtime/sync.rs`.
//!
//! Parking is built on a condition variable: loom's own `unpark` also wakes a thread that is blocked
//! in a mutex or in `join` at that moment, which then fails an assertion of loom.

use std::sync::Arc;

use loom::sync::Condvar;
pub use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

/// Locks a mutex.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Token {
    is_there: Mutex<bool>,
    changed: Condvar,
}

loom::thread_local! {
    static TOKEN: Arc<Token> = Arc::default();
}

/// A handle to a thread, for [`Thread::unpark`].
#[derive(Clone, Debug)]
pub struct Thread(Arc<Token>);

/// Returns the handle of this thread.
pub fn current() -> Thread {
    Thread(TOKEN.with(Arc::clone))
}

/// Waits until the thread is unparked, or returns at once if that has happened already.
pub fn park() {
    let token = current().0;
    let mut is_there = locked(&token.is_there);
    while !*is_there {
        is_there = token.changed.wait(is_there).unwrap_or_else(std::sync::PoisonError::into_inner);
    }
    *is_there = false;
}

impl Thread {
    /// Ends the current call of [`park`] of this thread, or its next one.
    pub fn unpark(&self) {
        *locked(&self.0.is_there) = true;
        self.0.changed.notify_one();
    }
}
