//! What the Model Context Protocol says, as far as a gateway has to know it: versions, methods, names,
//! the gateway's own conversation with a server, and the gateway's own answers.
//!
//! Built on `jsonrpc`; used by `catalog` and by the programs.

pub mod conversation;
pub mod names;

/// Protocol versions that start with `initialize`, oldest first.
pub const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The version we offer, and answer with when asked for one we do not know.
pub const LATEST: &str = "2025-11-25";

/// The version to answer `initialize` with (lifecycle, version negotiation): the one asked for when we know it.
pub fn negotiate(asked: &str) -> &'static str {
    VERSIONS.iter().find(|known| **known == asked).copied().unwrap_or(LATEST)
}

/// The result of `initialize` at the endpoint that shows all servers.
pub fn initialize_result(version: &str) -> String {
    format!(
        "{{\"protocolVersion\":\"{version}\",\"capabilities\":{{\"tools\":{{\"listChanged\":true}}}},\
         \"serverInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}}}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The gateway's own tool, as it is listed.
pub const LIST_SERVERS: &str = r#"{"name":"list_servers","description":"List all registered MCP servers","inputSchema":{"type":"object","properties":{}},"annotations":{"readOnlyHint":true}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for version in VERSIONS {
            assert_eq!(negotiate(version), version);
        }
        for other in ["", "2026-07-28", "0.1.0", "2025-06-18 "] {
            assert_eq!(negotiate(other), LATEST);
        }
    }

    #[test]
    fn own_texts_are_json() {
        for text in [initialize_result(LATEST).as_str(), LIST_SERVERS] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
    }
}
