//! HTTP endpoints: Streamable HTTP, the 2024-11-05 transport, and the status.

pub mod legacy_sse;
pub mod status;
pub mod streamable;
