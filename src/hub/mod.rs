//! Gateway state without IO: pure, no socket and no clock.
//!
//! - [`doors`]: traits of what the hub needs: where a response goes.
//! - [`mux`]: gives each request on a link its own id, and matches responses to callers.

pub mod doors;
pub mod mux;
