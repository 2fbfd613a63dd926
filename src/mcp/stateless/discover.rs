//! `server/discover` of MCP 2026-07-28, and how it corresponds to `initialize`.
//!
//! The gateway stores what it knows of a server as a result of `initialize`, for servers of both
//! protocols. This module makes one of a result of `server/discover`, and the other way round for
//! clients.

use super::{
    edits::{filtered, one_line},
    meta,
    result::{Cache, ServerStamp},
    status::supported_versions,
};
use crate::{
    jsonrpc::{elements, find, object, quote, unquote},
    mcp::version::{V2026_07_28, negotiate},
};

/// The extension for tasks of MCP 2026-07-28.
pub const TASKS: &str = "io.modelcontextprotocol/tasks";

/// A server's result of `server/discover`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiscoverResult<'r> {
    capabilities: &'r str,
    instructions: Option<&'r str>,
    server: Option<&'r str>,
}

impl<'r> DiscoverResult<'r> {
    /// Reads a result. `None` if it does not show that the server speaks 2026-07-28: some servers of
    /// earlier versions answer, too.
    pub fn read(result: &'r str) -> Option<Self> {
        let whole = object(result)?;
        let member = |path: &[&str]| find(result, whole.clone(), path).ok();
        let object_at = |path: &[&str]| Some(member(path)?.map(|span| &result[span]));
        if !result[member(&["resultType"])??].starts_with('"') {
            return None;
        }
        let mut versions = elements(result, member(&["supportedVersions"])??);
        if !versions.any(|version| unquote(&result[version]).as_deref() == Some(V2026_07_28)) {
            return None;
        }
        let is_object = |raw: &&str| raw.starts_with('{');
        Some(Self {
            capabilities: object_at(&["capabilities"])?.filter(is_object).unwrap_or("{}"),
            instructions: object_at(&["instructions"])?.filter(|raw| raw.starts_with('"')),
            server: object_at(&["_meta", meta::SERVER])?.filter(is_object),
        })
    }

    /// Returns the result of `initialize` that says the same. Its version is the stateless one, which
    /// `initialize` never negotiates.
    pub fn as_initialize_result(&self) -> String {
        let instructions = match self.instructions {
            Some(raw) => format!(",\"instructions\":{raw}"),
            None => String::new(),
        };
        let server = self.server.map_or(r#"{"name":"unknown","version":"unknown"}"#.into(), one_line);
        format!(
            "{{\"protocolVersion\":\"{V2026_07_28}\",\"capabilities\":{},\"serverInfo\":{server}{instructions}}}",
            one_line(self.capabilities)
        )
    }
}

/// Returns the params of the gateway's own requests to a modern server: `server/discover`, and lists
/// from the cursor on. The gateway itself has no capabilities.
pub fn request_params(cursor: Option<&str>) -> String {
    let cursor = cursor.map(|cursor| format!("\"cursor\":{},", quote(cursor))).unwrap_or_default();
    format!("{{{cursor}\"_meta\":{{{}}}}}", own_members())
}

/// Returns the reserved keys of the gateway's own requests.
pub(super) fn own_members() -> String {
    format!(
        "\"{}\":\"{V2026_07_28}\",\"{}\":{{}},\"{}\":{{\"name\":\"mcpport\",\"version\":\"{}\"}}",
        meta::VERSION,
        meta::CAPABILITIES,
        meta::CLIENT,
        env!("CARGO_PKG_VERSION")
    )
}

/// What the gateway can offer of a server's capabilities.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    /// All but tasks: the server is modern.
    Modern,
    /// Those that have a counterpart: the server is legacy. `logging`: whether its messages can be
    /// assigned to their requests.
    Legacy {
        /// Whether to offer `logging`.
        logging: bool,
    },
}

/// Returns the result of `server/discover` at the endpoint of a server, given the result of
/// `initialize` that is stored for it.
pub fn discover_result(initialize_result: &str, offer: Offer, cache: Cache) -> String {
    let whole = object(initialize_result).unwrap_or_default();
    let member = |name: &str| {
        let found = find(initialize_result, whole.clone(), &[name]).ok().flatten();
        found.map(|span| (span.clone(), one_line(&initialize_result[span])))
    };
    let capabilities = member("capabilities").map(|(span, _)| {
        filtered(initialize_result, span, |name, value| match (name, offer) {
            ("extensions", Offer::Modern) => Some(filtered(initialize_result, value, |id, value| {
                (id != TASKS).then(|| one_line(&initialize_result[value]).into_owned())
            })),
            ("tasks" | "experimental" | "extensions", Offer::Legacy { .. }) => None,
            ("logging", Offer::Legacy { logging: false }) => None,
            _ => Some(one_line(&initialize_result[value]).into_owned()),
        })
    });
    let instructions = member("instructions").map(|(_, raw)| raw);
    let server = ServerStamp::of(initialize_result);
    result(&capabilities.unwrap_or_else(|| "{}".into()), instructions.as_deref(), cache, &server)
}

/// Returns the result of `server/discover` at the endpoint that shows all servers. It offers every
/// capability from the start, since servers may connect later.
pub fn aggregate_discover_result(instructions: &str) -> String {
    let capabilities = "{\"completions\":{},\"logging\":{},\"prompts\":{\"listChanged\":true},\
                        \"resources\":{\"subscribe\":true,\"listChanged\":true},\"tools\":{\"listChanged\":true}}";
    let instructions = Some(instructions).filter(|text| !text.is_empty()).map(quote);
    result(capabilities, instructions.as_deref(), Cache::NONE, &ServerStamp::gateway())
}

fn result(capabilities: &str, instructions: Option<&str>, cache: Cache, server: &ServerStamp) -> String {
    let instructions = instructions.map(|raw| format!(",\"instructions\":{raw}")).unwrap_or_default();
    format!(
        "{{\"resultType\":\"complete\",\"supportedVersions\":{},\"capabilities\":{capabilities}{instructions},{},\
         \"_meta\":{{{}}}}}",
        supported_versions(),
        cache.members(),
        server.member()
    )
}

/// Returns the protocol version and the result of `initialize` for a client of an earlier version at
/// a modern server, given the result that is stored for it. `declared`: the client's capabilities.
pub fn initialize_result_for_legacy(modern: &str, asked: &str, declared: &str) -> (&'static str, String) {
    let version = negotiate(asked);
    let whole = object(modern).unwrap_or_default();
    let client = object(declared).unwrap_or_default();
    let knows = |id: &str| matches!(find(declared, client.clone(), &["extensions", id]), Ok(Some(_)));
    let text = filtered(modern, whole, |name, value| match name {
        "protocolVersion" => Some(quote(version)),
        "capabilities" => Some(filtered(modern, value, |name, value| match name {
            "tasks" => None,
            "extensions" => {
                let known = filtered(modern, value, |id, value| {
                    (knows(id) && id != TASKS).then(|| one_line(&modern[value]).into_owned())
                });
                (known != "{}").then_some(known)
            }
            _ => Some(one_line(&modern[value]).into_owned()),
        })),
        _ => Some(one_line(&modern[value]).into_owned()),
    });
    (version, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        jsonrpc::Message,
        mcp::stateless::{Envelope, Params},
    };
    use std::time::Duration;

    const OURS: &str = env!("CARGO_PKG_VERSION");

    #[test]
    fn only_a_modern_answer_is_a_discover_result() {
        let initialize =
            |result: &str| DiscoverResult::read(result).map(|result| result.as_initialize_result());
        for (result, expected) in [
            (
                r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s","version":"1"}},"instructions":"do\nit"}"#,
                Some(
                    r#"{"protocolVersion":"2026-07-28","capabilities":{"tools":{}},"serverInfo":{"name":"s","version":"1"},"instructions":"do\nit"}"#,
                ),
            ),
            (
                "{ \"supportedVersions\":[\"2027-01-01\", \"2026-07-28\"],\n\"resultType\":\"x\",\"capabilities\":{\n}}",
                Some(
                    r#"{"protocolVersion":"2026-07-28","capabilities":{ },"serverInfo":{"name":"unknown","version":"unknown"}}"#,
                ),
            ),
            (
                r#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":7,"instructions":[],"_meta":{"io.modelcontextprotocol/serverInfo":7}}"#,
                Some(
                    r#"{"protocolVersion":"2026-07-28","capabilities":{},"serverInfo":{"name":"unknown","version":"unknown"}}"#,
                ),
            ),
            (r#"{"supportedVersions":["2026-07-28"],"capabilities":{}}"#, None),
            (r#"{"resultType":null,"supportedVersions":["2026-07-28"]}"#, None),
            (r#"{"resultType":"complete","supportedVersions":["2025-11-25"]}"#, None),
            (r#"{"resultType":"complete","supportedVersions":"2026-07-28"}"#, None),
            (r#"{"resultType":"complete"}"#, None),
            (r#"{"resultType":"complete","resultType":"x","supportedVersions":["2026-07-28"]}"#, None),
            ("[]", None),
            ("null", None),
        ] {
            assert_eq!(initialize(result).as_deref(), expected, "{result}");
        }
    }

    #[test]
    fn own_requests_have_an_envelope() {
        for cursor in [None, Some(""), Some("a\"b")] {
            let params = request_params(cursor);
            let text = crate::jsonrpc::request("1", "tools/list", &params);
            let message = Message::read_strict(&text).unwrap();
            let params = Params::read(&message).unwrap();
            let envelope = Envelope::read(&message, &params).unwrap();
            assert_eq!((&*envelope.version, envelope.capabilities.raw), ("2026-07-28", "{}"));
            let found = params.cursor.map(|span| unquote(&text[span]).unwrap().into_owned());
            assert_eq!(found.as_deref(), cursor);
        }
    }

    #[test]
    fn discover_results_offer_what_the_gateway_can_carry() {
        let cache = Cache { ttl: Duration::from_secs(30), is_public: true };
        let stored = |version: &str, capabilities: &str| {
            format!(
                r#"{{"protocolVersion":"{version}","capabilities":{capabilities},"serverInfo":{{"name":"s"}},"instructions":"i"}}"#
            )
        };
        let all = r#"{"tools":{"listChanged":true},"tasks":{},"experimental":{"x":1},"logging":{},"extensions":{"io.modelcontextprotocol/tasks":{},"a/b":{ "c":1}}}"#;
        for (offer, expected) in [
            (
                Offer::Modern,
                r#"{"tools":{"listChanged":true},"tasks":{},"experimental":{"x":1},"logging":{},"extensions":{"a/b":{ "c":1}}}"#,
            ),
            (Offer::Legacy { logging: true }, r#"{"tools":{"listChanged":true},"logging":{}}"#),
            (Offer::Legacy { logging: false }, r#"{"tools":{"listChanged":true}}"#),
        ] {
            assert_eq!(
                discover_result(&stored("2025-11-25", all), offer, cache),
                format!(
                    r#"{{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{expected},"instructions":"i","ttlMs":30000,"cacheScope":"public","_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"s"}}}}}}"#
                )
            );
        }
        for (stored, expected) in [
            ("{}", "{}"),
            ("", "{}"),
            (r#"{"capabilities":{"tools":{}}}"#, r#"{"tools":{}}"#),
            (r#"{"capabilities":7}"#, "{}"),
        ] {
            let result = discover_result(stored, Offer::Modern, Cache::NONE);
            assert!(
                result.contains(&format!(r#""capabilities":{expected},"ttlMs":0,"cacheScope":"private""#)),
                "{result}"
            );
            assert!(DiscoverResult::read(&result).is_some(), "{result}");
        }
    }

    #[test]
    fn the_aggregate_offers_the_same_whatever_is_connected() {
        for (instructions, expected) in [("", ""), ("a\"b", r#","instructions":"a\"b""#)] {
            let result = aggregate_discover_result(instructions);
            assert_eq!(
                result,
                format!(
                    r#"{{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{{"completions":{{}},"logging":{{}},"prompts":{{"listChanged":true}},"resources":{{"subscribe":true,"listChanged":true}},"tools":{{"listChanged":true}}}}{expected},"ttlMs":0,"cacheScope":"private","_meta":{{"io.modelcontextprotocol/serverInfo":{{"name":"mcpport","version":"{OURS}"}}}}}}"#
                )
            );
            assert!(DiscoverResult::read(&result).is_some(), "{result}");
        }
    }

    #[test]
    fn clients_of_earlier_versions_get_a_version_of_theirs() {
        let modern = r#"{"protocolVersion":"2026-07-28","capabilities":{"tools":{},"tasks":{},"extensions":{"a/b":{},"c/d":{},"io.modelcontextprotocol/tasks":{}}},"serverInfo":{"name":"s"},"instructions":"i"}"#;
        for (asked, declared, version, capabilities) in [
            ("2025-06-18", "{}", "2025-06-18", r#"{"tools":{}}"#),
            ("2026-07-28", "{}", "2025-11-25", r#"{"tools":{}}"#),
            ("", "null", "2025-11-25", r#"{"tools":{}}"#),
            (
                "2024-11-05",
                r#"{"extensions":{"c/d":{},"io.modelcontextprotocol/tasks":{}}}"#,
                "2024-11-05",
                r#"{"tools":{},"extensions":{"c/d":{}}}"#,
            ),
        ] {
            assert_eq!(
                initialize_result_for_legacy(modern, asked, declared),
                (
                    version,
                    format!(
                        r#"{{"protocolVersion":"{version}","capabilities":{capabilities},"serverInfo":{{"name":"s"}},"instructions":"i"}}"#
                    )
                ),
            );
        }
    }
}
