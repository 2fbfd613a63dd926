//! MCP 2026-07-28, the stateless protocol: requests that carry their version and the client's
//! capabilities, with neither `initialize` nor sessions.
//!
//! Everything here is pure: it reads messages and header fields, and returns decisions, edits or
//! texts. `gateway` and `hub` send them.
//!
//! | module | content |
//! |---|---|
//! | [`params`] | the params of a request, read in one pass |
//! | [`meta`] | the reserved keys of `_meta` |
//! | [`envelope`] | what each request states of its client, checked |
//! | [`headers`] | the header fields that repeat parts of the body |
//! | [`status`] | refusals, and the HTTP status of an answer |

pub mod envelope;
pub mod headers;
pub mod meta;
pub mod params;
pub mod status;

pub use envelope::{Allowed, Capabilities, Envelope};
pub use params::Params;
pub use status::Rejection;
