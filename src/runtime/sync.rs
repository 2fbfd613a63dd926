//! The primitives of `notify` and `handoff`: locks, atomics and parking of the standard library.
//!
//! They take these names from here alone: `tests/loom` compiles the two modules with loom's versions
//! in place of this module, and runs them in every order of steps.

pub use std::{
    sync::{
        MutexGuard,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{Thread, current, park},
};

pub use super::lock::Lock;
