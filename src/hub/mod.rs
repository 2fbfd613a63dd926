//! The gateway's state: which request belongs to which client, and where its answer goes. Pure: no socket, no clock.
//!
//! - [`mux`]: gives each request on a link an id of its own, and finds the caller of an answer.

pub mod mux;
