//! Replaces `src/runtime/sync.rs`.
//!
//! Parking is built on a condition variable: loom's own `unpark` also wakes a thread that is blocked
//! in a mutex or in `join` at that moment, which then fails an assertion of loom.

use std::sync::Arc;

use loom::sync::{Condvar, Mutex};
pub use loom::sync::{
    MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

/// Replaces `src/runtime/lock.rs`. Loom's mutex is never poisoned.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Creates a lock.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock, and takes it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }

    /// Takes the lock unless somebody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
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
    let mut is_there = token.is_there.lock().unwrap();
    while !*is_there {
        is_there = token.changed.wait(is_there).unwrap();
    }
    *is_there = false;
}

impl Thread {
    /// Ends the current call of [`park`] of this thread, or its next one.
    pub fn unpark(&self) {
        *self.0.is_there.lock().unwrap() = true;
        self.0.changed.notify_one();
    }
}
