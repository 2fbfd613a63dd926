//! Gateway state without IO: pure, no socket and no clock.
//!
//! - [`mux`]: gives each request on a link its own id, and matches responses to callers.

pub mod mux;
