//! HTTP endpoints: `streamable` (Streamable HTTP with sessions), `stateless` (the same without, MCP
//! 2026-07-28), `post` (shared by both), `legacy_sse` (the 2024-11-05 transport), and `status`.

pub mod legacy_sse;
pub mod listen;
pub mod post;
pub mod stateless;
pub mod status;
pub mod streamable;
