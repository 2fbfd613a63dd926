//! What the Model Context Protocol says, as far as a gateway has to know it: versions, methods, names,
//! the gateway's own conversation with a server, and the gateway's own answers.
//!
//! Built on `jsonrpc`; used by `catalog` and by the programs.

pub mod compat;
pub mod discovery;
pub mod exposed_name;
pub mod listing;
pub mod log_level;
pub mod resource_links;

use crate::jsonrpc;

/// Protocol versions that start with `initialize`, oldest first.
pub const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];
/// The version we offer, and answer with when asked for one we do not know.
pub const LATEST: &str = "2025-11-25";

/// The version to answer `initialize` with (lifecycle, version negotiation): the one asked for when we know it.
pub fn negotiate(asked: &str) -> &'static str {
    VERSIONS.iter().find(|known| **known == asked).copied().unwrap_or(LATEST)
}

/// The version in a result of `initialize`, or in its params.
pub fn version_of(raw: &str) -> Option<String> {
    let span = jsonrpc::find(raw, 0..raw.len(), &["protocolVersion"]).ok()??;
    jsonrpc::unquote(&raw[span]).map(|version| version.into_owned())
}

/// The instructions in a result of `initialize`.
pub fn instructions_of(raw: &str) -> Option<String> {
    let span = jsonrpc::find(raw, 0..raw.len(), &["instructions"]).ok()??;
    jsonrpc::unquote(&raw[span]).map(|instructions| instructions.into_owned())
}

/// The result of `initialize` at the endpoint that shows all servers. What may come later is declared from the start,
/// because a client asks only once.
pub fn initialize_result(version: &str, instructions: &str) -> String {
    let instructions = match instructions {
        "" => String::new(),
        text => format!(",\"instructions\":{}", jsonrpc::quote(text)),
    };
    format!(
        "{{\"protocolVersion\":\"{version}\",\"capabilities\":{{\"completions\":{{}},\"logging\":{{}},\
         \"prompts\":{{\"listChanged\":true}},\"resources\":{{\"subscribe\":true,\"listChanged\":true}},\
         \"tools\":{{\"listChanged\":true}}}},\
         \"serverInfo\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}{instructions}}}",
        env!("CARGO_PKG_VERSION")
    )
}

/// A server's own result of `initialize`, for a client that asks for a version: that version, when we know it and the
/// server's is not older; the server's own otherwise. All else is as the server wrote it.
pub fn greeting_for(greeting: &str, asked: &str) -> (String, String) {
    let own = version_of(greeting).unwrap_or_else(|| LATEST.to_owned());
    let age = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let version = match (age(asked), age(&own)) {
        (Some(theirs), Some(servers)) if theirs < servers => asked.to_owned(),
        _ => own,
    };
    let span = jsonrpc::find(greeting, 0..greeting.len(), &["protocolVersion"]).ok().flatten();
    let result = match span {
        Some(span) => {
            format!("{}{}{}", &greeting[..span.start], jsonrpc::quote(&version), &greeting[span.end..])
        }
        None => greeting.to_owned(),
    };
    (version, result)
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
        for text in [&initialize_result(LATEST, ""), &initialize_result(LATEST, "a\"b"), LIST_SERVERS] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_server_is_never_shown_newer_than_asked_for() {
        let greeting = r#"{"x":1,"protocolVersion":"2025-06-18","y":2}"#;
        for (asked, given) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-06-18"),
            ("x", "2025-06-18"),
        ] {
            let (version, result) = greeting_for(greeting, asked);
            assert_eq!((version.as_str(), result), (given, greeting.replace("2025-06-18", given)));
        }
    }
}
