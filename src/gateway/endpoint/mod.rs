//! HTTP endpoints: Streamable HTTP, the 2024-11-05 transport, and the status.

pub mod legacy_sse;
pub mod post;
pub mod stateless;
pub mod status;
pub mod streamable;
