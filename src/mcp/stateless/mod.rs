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

pub mod meta;
pub mod params;

pub use params::Params;
