//! A mutex that a panic does not poison.
//!
//! A panic ends one task, and must not end all others that use the same state. Each change under
//! these locks is complete in itself, so the state can be used after a panic too.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError},
    time::Duration,
};

/// A mutex whose state stays usable after a panic. Held for a few statements, never across an await.
#[derive(Debug, Default)]
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    /// Creates a lock.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// Waits for the lock, and takes it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock unless somebody holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

/// Releases a lock until `changed` is notified, or for at most `limit`, and takes it again. May
/// return early.
pub fn wait<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Option<Duration>,
) -> MutexGuard<'a, T> {
    match limit {
        Some(limit) => changed.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0,
        None => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_panic_does_not_end_the_use_of_a_lock() {
        let lock = Arc::new(Lock::new(1));
        let other = lock.clone();
        let panicked = thread::spawn(move || {
            let mut value = other.lock();
            *value = 2;
            assert!(other.try_lock().is_none());
            panic!("expected");
        });
        assert!(panicked.join().is_err());
        assert_eq!(*lock.lock(), 2);
        assert_eq!(lock.try_lock().map(|value| *value), Some(2));
        let changed = Condvar::new();
        assert_eq!(*wait(&changed, lock.lock(), Some(Duration::ZERO)), 2);
    }
}
