//! MCP 2026-07-28 in the device server: the check of a request, and what its results have beside
//! those of earlier versions.
//!
//! `device::server` answers a request in the protocol in which it came: the process has no era of
//! its own.

use serde_json::{Map, Value, json};

use crate::{
    jsonrpc::{Message, RpcError},
    mcp::{
        listen_filter::Filter,
        stateless::{Params, envelope::Envelope, listen, meta, result::is_cacheable, status::Rejection},
        version::MODERN,
    },
};

/// The method that asks for notifications of changes. There are none here.
pub const LISTEN: &str = "subscriptions/listen";

/// Whether a request is one of this version: it names a version, or no earlier one has the method.
pub fn is_stateless(method: &str, params: &Map<String, Value>) -> bool {
    let names_version = |meta: &Value| meta.get(meta::VERSION).is_some();
    method == "server/discover" || params.get("_meta").is_some_and(names_version)
}

/// Checks the envelope of a request: one line of input.
///
/// # Errors
/// The first defect.
pub fn check(line: &str) -> Result<(), RpcError> {
    let message = Message::read(line)?;
    let envelope = Envelope::read(&message, &Params::read(&message)?).map_err(|why| why.rpc())?;
    match MODERN.contains(&&*envelope.version) {
        true => Ok(()),
        false => Err(Rejection::Version(envelope.version.into_owned()).rpc()),
    }
}

/// Returns the result of `server/discover`.
pub fn discover_result(capabilities: &Value, instructions: &str) -> Value {
    json!({ "supportedVersions": MODERN, "capabilities": capabilities, "instructions": instructions })
}

/// Completes a result. What this server reports changes at any time, so nothing may be cached.
pub fn stamp(method: &str, mut result: Value, info: &Value) -> Value {
    if let Some(members) = result.as_object_mut() {
        members.insert("resultType".into(), json!("complete"));
        members.insert("_meta".into(), json!({ meta::SERVER: info }));
        if is_cacheable(method) {
            members.insert("ttlMs".into(), json!(0));
            members.insert("cacheScope".into(), json!("private"));
        }
    }
    result
}

/// Returns the line that accepts a [`LISTEN`], for none of the changes that it asks for. It stays
/// open until it is cancelled. `id` is raw JSON.
pub fn acknowledged(id: &str) -> String {
    listen::acknowledged(id, &Filter::default())
}
