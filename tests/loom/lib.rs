//! `runtime::notify` and `runtime::handoff` of mcpport, compiled with loom's primitives.
//!
//! Loom replaces the scheduler: a model runs once for each order in which its threads can take
//! their steps, and for each value that an atomic may still show. A lost wake-up ends in a state
//! where no thread can go on, which loom reports as a deadlock.

#[path = "../../src/runtime/handoff.rs"]
pub mod handoff;
#[path = "../../src/runtime/notify.rs"]
pub mod notify;
pub mod sync;
