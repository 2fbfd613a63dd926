//! The primitives of `notify` and `handoff`: locks, atomics and parking of the standard library.
//!
//! They take these names from here alone: `tests/loom` compiles the two modules with loom's versions
//! in place of this module, and runs them in every order of steps.

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
