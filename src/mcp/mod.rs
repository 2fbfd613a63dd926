//! The parts of the Model Context Protocol that a gateway needs: versions, methods, exposed names,
//! discovery of servers, and the gateway's own responses.
//!
//! Built on `jsonrpc`; used by `catalog` and by the programs.

pub mod compat;
pub mod discovery;
pub mod era;
pub mod exposed_name;
pub mod listen_filter;
pub mod listing;
pub mod log_level;
pub mod resource_links;
pub mod stateless;
pub mod upstream_listen;
pub mod version;

pub use version::{Era, LATEST, MODERN, VERSIONS, era, negotiate, version_of};

use crate::{
    jsonrpc::{self, Message, find, unquote},
    util::escape::show,
};

/// Returns the code of an error response.
pub fn error_code(message: &Message<'_>) -> Option<i64> {
    let error = message.error()?;
    let code = find(error, 0..error.len(), &["code"]).ok()??;
    error[code].parse().ok()
}

/// Returns the message of an error response, escaped for the log.
pub fn error_text(message: &Message<'_>) -> String {
    let error = message.error().unwrap_or("{}");
    let found = find(error, 0..error.len(), &["message"]).ok().flatten();
    let words = found.and_then(|span| unquote(&error[span])).unwrap_or_default();
    show(&words).to_string()
}

/// Checks the version in a server's result of `initialize`. Only membership in [`VERSIONS`] counts:
/// a server with an unknown version is not supported.
///
/// # Errors
/// The reason, escaped for the log.
pub fn check_initialize_result(result: &str) -> Result<(), String> {
    match version_of(result) {
        None => Err("the initialize result has no protocolVersion".into()),
        Some(version) if VERSIONS.contains(&version.as_str()) => Ok(()),
        Some(other) => Err(format!("the server uses unsupported protocol version {}", show(&other))),
    }
}

/// Returns the instructions in a result of `initialize`.
pub fn instructions_of(raw: &str) -> Option<String> {
    let span = jsonrpc::find(raw, 0..raw.len(), &["instructions"]).ok()??;
    jsonrpc::unquote(&raw[span]).map(|instructions| instructions.into_owned())
}

/// Builds the result of `initialize` for the endpoint that shows all servers. It declares every
/// capability from the start, since servers may connect later and a client initializes only once.
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

/// Returns the protocol version for a client and the server's result of `initialize` with that
/// version. It is the requested version if we know it and it is older than the server's, otherwise
/// the server's own. Everything else stays as the server wrote it.
pub fn initialize_result_for(initialize_result: &str, asked: &str) -> (String, String) {
    let latest = version_of(initialize_result).unwrap_or_else(|| LATEST.to_owned());
    let age = |version: &str| VERSIONS.iter().position(|known| *known == version);
    let version = match (age(asked), age(&latest)) {
        (Some(theirs), Some(servers)) if theirs < servers => asked.to_owned(),
        _ => latest,
    };
    let span =
        jsonrpc::find(initialize_result, 0..initialize_result.len(), &["protocolVersion"]).ok().flatten();
    let result = match span {
        Some(span) => {
            format!(
                "{}{}{}",
                &initialize_result[..span.start],
                jsonrpc::quote(&version),
                &initialize_result[span.end..]
            )
        }
        None => initialize_result.to_owned(),
    };
    (version, result)
}

/// The gateway's own tool, as listed in `tools/list`.
pub const LIST_SERVERS: &str = r#"{"name":"list_servers","description":"List all registered MCP servers","inputSchema":{"type":"object","properties":{}},"annotations":{"readOnlyHint":true}}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_results_are_valid_json() {
        for text in [&initialize_result(LATEST, ""), &initialize_result(LATEST, "a\"b"), LIST_SERVERS] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn the_version_is_never_newer_than_requested() {
        let initialize_result = r#"{"x":1,"protocolVersion":"2025-06-18","y":2}"#;
        for (asked, given) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-06-18", "2025-06-18"),
            ("2025-11-25", "2025-06-18"),
            ("x", "2025-06-18"),
        ] {
            let (version, result) = initialize_result_for(initialize_result, asked);
            assert_eq!((version.as_str(), result), (given, initialize_result.replace("2025-06-18", given)));
        }
    }
}
