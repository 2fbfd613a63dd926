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
//! | [`route`] | which protocol a POST is for; the checks of a request, in order |
//! | [`status`] | refusals, and the HTTP status of an answer |
//! | [`relay`] | errors of a server for a client of the other protocol |
//! | [`discover`] | `server/discover`, and how it corresponds to `initialize` |
//! | [`result`] | results for clients of the other protocol; caching |
//! | [`input`] | questions of servers to their clients |
//! | [`wrap`] | requests on their way to a server |
//! | [`listen`] | the messages of `subscriptions/listen` |
//! | [`edits`] | how members of an object are removed and added |

pub mod discover;
pub mod edits;
pub mod envelope;
pub mod headers;
pub mod input;
pub mod listen;
pub mod meta;
pub mod params;
pub mod relay;
pub mod result;
pub mod route;
pub mod status;
pub mod wrap;

pub use edits::Edit;
pub use envelope::{Allowed, Capabilities, Envelope};
pub use params::Params;
pub use route::PostRoute;
pub use status::Rejection;
