//! Gateway state without IO: pure, no socket and no clock.
//!
//! - [`doors`]: traits of what the hub needs: where a response goes, and the streams of a
//!   session.
//! - [`key`]: keys of server processes.
//! - [`mux`]: gives each request on a link its own id, and matches responses to callers.

pub mod doors;
pub mod key;
pub mod mux;
