//! The keys of `_meta` that MCP reserves (2026-07-28, basic/index, `_meta`).

/// The prefix of all reserved keys but `progressToken`.
pub const PREFIX: &str = "io.modelcontextprotocol/";
/// The protocol version of a request; required.
pub const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
/// The capabilities of the client; required in a request.
pub const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
/// Name and version of the client, for display.
pub const CLIENT: &str = "io.modelcontextprotocol/clientInfo";
/// The minimum level of the log messages that a request wants.
pub const LEVEL: &str = "io.modelcontextprotocol/logLevel";
/// The id of the `subscriptions/listen` request that a notification belongs to.
pub const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
/// Name and version of the server in a result, for display.
pub const SERVER: &str = "io.modelcontextprotocol/serverInfo";
/// The task that a message belongs to (MCP 2025-11-25 only).
pub const RELATED_TASK: &str = "io.modelcontextprotocol/related-task";
