//! Gateway state without IO: pure, no socket and no clock.
//!
//! - [`peers`]: traits of what the hub needs: where a response goes, the streams of a
//!   session, and what carries frames to an edge.
//! - [`error`]: why a request is refused or fails, with the code and the text of each reason.
//! - [`request`]: what a client's message asks for.
//! - [`incoming`]: the parts of a server's frame.
//! - [`conclusion`]: a server's response on its way to the client.
//! - [`session`]: what a session sees.
//! - [`key`]: keys of server processes.
//! - [`mux`]: gives each request on a link its own id, and matches responses to callers.

pub mod conclusion;
pub mod error;
pub mod incoming;
pub mod key;
pub mod mux;
pub mod peers;
pub mod request;
pub mod session;
