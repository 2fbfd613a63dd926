//! The primitives of `notify` and `handoff`: locks, atomics and parking of the standard library.
//!
//! They take these names from here alone, so that a model checker can replace them.

pub use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{Thread, current, park},
};

/// Locks a mutex and ignores poison: each value that is locked this way is changed in single steps,
/// so a panic elsewhere cannot leave it inconsistent.
pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
