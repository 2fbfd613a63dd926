//! Which protocol a POST is for, on the URLs that serve both; and the checks of a stateless request
//! that need nothing but the request itself.
//!
//! The body decides, since a proxy may add or drop header fields. `gateway` asks this module first,
//! and serves what is [`PostRoute::Legacy`] by its sessions.

use super::{
    envelope::Envelope,
    headers::{self, RoutingHeaders, VersionHeader},
    meta,
    params::Params,
    status::Rejection,
};
use crate::{
    jsonrpc::{Kind, Malformed, Message},
    mcp::{listing::ListKind, version::MODERN},
};

/// What to do with a POST.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PostRoute {
    /// A request of the stateless protocol, to be checked by [`check`].
    Modern,
    /// To be served by a session.
    Legacy,
    /// A notification of the stateless protocol: accepted, and without effect.
    Drop,
    /// Refused.
    Refuse(Rejection),
}

/// Decides what to do with a POST, whose body was read by [`Message::read_strict`].
pub fn route(body: Result<&Message<'_>, Malformed>, version: VersionHeader<'_>) -> PostRoute {
    let message = match body {
        Ok(message) => message,
        Err(why) if version.is_modern() => return PostRoute::Refuse(Rejection::Malformed(why)),
        Err(_) => return PostRoute::Legacy,
    };
    match (message.kind(), version) {
        (Kind::Request, _) if message.is_stateless() => PostRoute::Modern,
        (Kind::Request, _) if message.method() == "initialize" => PostRoute::Legacy,
        (Kind::Request, VersionHeader::Modern(_)) => PostRoute::Refuse(Rejection::MetaMissing(meta::VERSION)),
        (Kind::Request, VersionHeader::Unknown(version)) => {
            PostRoute::Refuse(Rejection::Version(version.to_owned()))
        }
        (Kind::Request, VersionHeader::Repeated) => PostRoute::Refuse(headers::repeated(headers::VERSION)),
        (Kind::Request, VersionHeader::Absent) if message.method() == "server/discover" => {
            PostRoute::Refuse(Rejection::MetaMissing(meta::VERSION))
        }
        (Kind::Notification, VersionHeader::Modern(_)) => PostRoute::Drop,
        (Kind::Response, VersionHeader::Modern(_)) => PostRoute::Refuse(Rejection::Response),
        _ => PostRoute::Legacy,
    }
}

/// Checks a stateless request: its envelope, its header fields, its version and its method, in this
/// order.
///
/// # Errors
/// The first defect.
pub fn check<'m>(
    message: &Message<'m>,
    params: &Params,
    headers: &RoutingHeaders<'_>,
) -> Result<Envelope<'m>, Rejection> {
    let envelope = Envelope::read(message, params)?;
    headers::check(headers, message, &envelope.version, params)?;
    if !MODERN.contains(&&*envelope.version) {
        return Err(Rejection::Version(envelope.version.into_owned()));
    }
    match message.method() {
        "initialize"
        | "ping"
        | "logging/setLevel"
        | "resources/subscribe"
        | "resources/unsubscribe"
        | "tasks/list"
        | "tasks/result" => Err(Rejection::UnknownMethod(message.method().to_owned())),
        method if method.starts_with("notifications/") => Err(Rejection::NotificationWithId),
        _ => Ok(envelope),
    }
}

/// Returns the capability that a legacy server must have declared for a request of a modern client.
/// `None`: such a server does not know the method, and may answer anything.
pub fn legacy_capability(method: &str) -> Option<&'static str> {
    match method {
        "tools/call" => Some("tools"),
        "prompts/get" => Some("prompts"),
        "resources/read" => Some("resources"),
        "completion/complete" => Some("completions"),
        _ => ListKind::of_method(method).map(ListKind::capability),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::stateless::headers::Header;

    const ENVELOPE: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}"#;

    fn request(method: &str, meta: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"_meta":{{{meta}}}}}}}"#)
    }

    fn version(value: &'static str) -> VersionHeader<'static> {
        VersionHeader::read(value.split('|').filter(|value| !value.is_empty()))
    }

    #[test]
    fn the_body_and_then_the_version_header_choose_the_protocol() {
        use PostRoute::{Drop, Legacy, Modern, Refuse};
        let missing = || Refuse(Rejection::MetaMissing(meta::VERSION));
        let unsupported = |version: &str| Refuse(Rejection::Version(version.into()));
        let repeated = || Refuse(headers::repeated(headers::VERSION));
        let malformed = |why| Refuse(Rejection::Malformed(why));
        let null_id = request("tools/list", ENVELOPE).replace("\"id\":1", "\"id\":null");
        let notification = |meta| request("notifications/cancelled", meta).replace("\"id\":1,", "");
        let odd = r#""io.modelcontextprotocol/protocolVersion":7"#;
        let all = ["", "2025-11-25", "2026-07-28", "v999.0.0", "2026-07-28|2026-07-28"];
        for (body, expected) in [
            (request("tools/list", ENVELOPE), [Modern, Modern, Modern, Modern, Modern]),
            (request("tools/list", odd), [Modern, Modern, Modern, Modern, Modern]),
            (request("initialize", ENVELOPE), [Modern, Modern, Modern, Modern, Modern]),
            (request("initialize", ""), [Legacy, Legacy, Legacy, Legacy, Legacy]),
            (request("tools/list", ""), [Legacy, Legacy, missing(), unsupported("v999.0.0"), repeated()]),
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.into(),
                [Legacy, Legacy, missing(), unsupported("v999.0.0"), repeated()],
            ),
            (
                request("server/discover", ""),
                [missing(), Legacy, missing(), unsupported("v999.0.0"), repeated()],
            ),
            (notification(""), [Legacy, Legacy, Drop, Legacy, Legacy]),
            (notification(ENVELOPE), [Legacy, Legacy, Drop, Legacy, Legacy]),
            (
                r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.into(),
                [Legacy, Legacy, Refuse(Rejection::Response), Legacy, Legacy],
            ),
            (
                format!("[{}]", request("tools/list", ENVELOPE)),
                [Legacy, Legacy, malformed(Malformed::Batch), Legacy, Legacy],
            ),
            // A session answers with the same error.
            ("{".into(), [Legacy, Legacy, malformed(Malformed::Syntax), Legacy, Legacy]),
            (null_id, [Legacy, Legacy, malformed(Malformed::Envelope), Legacy, Legacy]),
        ] {
            for (header, expected) in all.into_iter().zip(expected) {
                let message = Message::read_strict(&body);
                let body_read = message.as_ref().map_err(|why| *why);
                assert_eq!(route(body_read, version(header)), expected, "{body} with {header:?}");
            }
        }
    }

    #[test]
    fn the_first_defect_of_a_request_is_reported() {
        use Rejection::{Level, MetaMissing, MetaType, NotificationWithId, UnknownMethod, Version};
        const CAPABILITIES: &str = r#""io.modelcontextprotocol/clientCapabilities":{}"#;
        let with = |version: &str| {
            format!(r#""io.modelcontextprotocol/protocolVersion":"{version}",{CAPABILITIES}"#)
        };
        let loud = format!(r#"{ENVELOPE},"io.modelcontextprotocol/logLevel":"loud""#);
        let mismatch = |name: &str, value: &str, body: &str| {
            Err(Rejection::HeaderMismatch(format!("header {name} is '{value}', and the body has '{body}'")))
        };
        let unknown = |method: &str| Err(UnknownMethod(method.into()));
        for (method, meta, version_header, method_header, expected) in [
            ("tools/list", ENVELOPE, "2026-07-28", "tools/list", Ok(())),
            ("unknown/method", ENVELOPE, "2026-07-28", "unknown/method", Ok(())),
            // The envelope before the header fields.
            ("tools/list", CAPABILITIES, "", "", Err(MetaMissing(meta::VERSION))),
            ("tools/list", &loud, "", "", Err(Level)),
            (
                "tools/list",
                r#""io.modelcontextprotocol/protocolVersion":7,"io.modelcontextprotocol/clientCapabilities":{}"#,
                "v1",
                "",
                Err(MetaType(meta::VERSION)),
            ),
            // These before the version.
            (
                "tools/list",
                &with("v999.0.0"),
                "2026-07-28",
                "tools/list",
                mismatch("MCP-Protocol-Version", "2026-07-28", "v999.0.0"),
            ),
            ("tools/list", &with("v999.0.0"), "v999.0.0", "x", mismatch("Mcp-Method", "x", "tools/list")),
            ("tools/list", &with("v999.0.0"), "v999.0.0", "tools/list", Err(Version("v999.0.0".into()))),
            (
                "tools/list",
                &with("2025-11-25"),
                "2025-11-25",
                "tools/list",
                Err(Version("2025-11-25".into())),
            ),
            // The version before the method.
            ("ping", &with("v999.0.0"), "v999.0.0", "ping", Err(Version("v999.0.0".into()))),
            ("ping", ENVELOPE, "2026-07-28", "PING", mismatch("Mcp-Method", "PING", "ping")),
            ("initialize", ENVELOPE, "2026-07-28", "initialize", unknown("initialize")),
            ("ping", ENVELOPE, "2026-07-28", "ping", unknown("ping")),
            ("logging/setLevel", ENVELOPE, "2026-07-28", "logging/setLevel", unknown("logging/setLevel")),
            (
                "resources/subscribe",
                ENVELOPE,
                "2026-07-28",
                "resources/subscribe",
                unknown("resources/subscribe"),
            ),
            (
                "resources/unsubscribe",
                ENVELOPE,
                "2026-07-28",
                "resources/unsubscribe",
                unknown("resources/unsubscribe"),
            ),
            ("tasks/list", ENVELOPE, "2026-07-28", "tasks/list", unknown("tasks/list")),
            ("tasks/result", ENVELOPE, "2026-07-28", "tasks/result", unknown("tasks/result")),
            (
                "notifications/cancelled",
                ENVELOPE,
                "2026-07-28",
                "notifications/cancelled",
                Err(NotificationWithId),
            ),
        ] {
            let text = request(method, meta);
            let message = Message::read_strict(&text).unwrap();
            let params = Params::read(&message).unwrap();
            let headers = RoutingHeaders {
                version: version(version_header),
                method: Header::One(method_header),
                name: Header::Absent,
            };
            assert_eq!(check(&message, &params, &headers).map(|_| ()), expected, "{text}");
        }
    }

    #[test]
    fn legacy_servers_are_asked_only_what_they_declare() {
        for (method, expected) in [
            ("tools/call", Some("tools")),
            ("tools/list", Some("tools")),
            ("prompts/get", Some("prompts")),
            ("prompts/list", Some("prompts")),
            ("resources/read", Some("resources")),
            ("resources/list", Some("resources")),
            ("resources/templates/list", Some("resources")),
            ("completion/complete", Some("completions")),
            ("tasks/get", None),
            ("vendor/method", None),
            ("subscriptions/listen", None),
        ] {
            assert_eq!(legacy_capability(method), expected, "{method}");
        }
    }
}
