//! Errors of servers on their way to a client, whose protocol version may give their codes another
//! meaning.

use super::edits::{Edit, one_line};
use crate::{
    jsonrpc::{
        HEADER_MISMATCH, INTERNAL_ERROR, INVALID_PARAMS, MISSING_CAPABILITY, Message, NO_RESOURCE, RpcError,
        Span, UNSUPPORTED_VERSION, find, members, object, quote, unquote,
    },
    mcp::version::Era,
    util::escape::show,
};

/// The codes that MCP 2026-07-28 reserves. What a server of an earlier version means by them is
/// unknown to its clients.
const RESERVED: std::ops::RangeInclusive<i64> = -32099..=-32020;

/// How the client gets an answer that may be an error.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Relayed {
    /// The code of the error that the client gets. `None`: a result.
    pub error: Option<i64>,
    /// The changes in the answer.
    pub edits: Vec<Edit>,
}

/// Returns how a client of one era gets the answer of a server of another to `method`. A result
/// stays as it is. A legacy server's error that asks for elicitations at URLs
/// ([`super::input::URL_REQUIRED`]) becomes an internal error; whoever can ask looks for it first.
pub fn relayed(answer: &Message<'_>, method: &str, server: Era, client: Era) -> Relayed {
    let Some(error) = answer.error_span() else { return Relayed::default() };
    let text = answer.text();
    let code = find(text, error.clone(), &["code"]).ok().flatten();
    let Some((place, code)) = code.and_then(|span| Some((span.clone(), text[span].parse::<i64>().ok()?)))
    else {
        return Relayed { error: Some(INTERNAL_ERROR), edits: Vec::new() };
    };
    let other = |code: i64| Relayed { error: Some(code), edits: vec![(place.clone(), code.to_string())] };
    match (server, client, code) {
        (Era::Modern, _, HEADER_MISMATCH | UNSUPPORTED_VERSION) => unexpected(text, error, code),
        (Era::Modern, Era::Legacy, MISSING_CAPABILITY) if method == "tools/call" => {
            Relayed { error: None, edits: failed_tool(text, error) }
        }
        (Era::Modern, Era::Legacy, MISSING_CAPABILITY) => unexpected(text, error, code),
        // Clients test for this code.
        (Era::Modern, Era::Legacy, INVALID_PARAMS) if method == "resources/read" => other(NO_RESOURCE),
        (Era::Legacy, Era::Modern, NO_RESOURCE) => other(INVALID_PARAMS),
        (Era::Legacy, Era::Modern, code) if RESERVED.contains(&code) => unexpected(text, error, code),
        _ => Relayed { error: Some(code), edits: Vec::new() },
    }
}

/// Replaces an error that the client would misunderstand. The original becomes its data.
fn unexpected(text: &str, error: Span, code: i64) -> Relayed {
    let message = format!("unexpected error {code} from the server: {}", show(&words(text, &error)));
    let data = Some(one_line(&text[error.clone()]).into_owned());
    let new = RpcError { data, ..RpcError::new(INTERNAL_ERROR, message) };
    Relayed { error: Some(INTERNAL_ERROR), edits: vec![(error, new.object())] }
}

/// Replaces an error by the result of a tool that failed, so that a model can read the reason.
fn failed_tool(text: &str, error: Span) -> Vec<Edit> {
    let needed = find(text, error.clone(), &["data", "requiredCapabilities"]).ok().flatten();
    let names = needed.map(|needed| {
        let names = members(text, needed).filter_map(|(key, _)| unquote(&text[key]));
        names.map(|name| show(&name).to_string()).collect::<Vec<_>>().join(", ")
    });
    let mut reason = words(text, &error);
    if let Some(names) = names.filter(|names| !names.is_empty()) {
        reason = format!("{reason} (required capabilities: {names})");
    }
    let whole = object(text).unwrap_or_default();
    let key = members(text, whole).find(|(_, value)| *value == error).map(|(key, _)| key);
    let start = key.map_or(error.start, |key| key.start);
    vec![(start..error.end, format!("\"result\":{}", tool_error(&reason)))]
}

/// Returns the result of a tool that failed for this reason.
pub fn tool_error(reason: &str) -> String {
    format!("{{\"content\":[{{\"type\":\"text\",\"text\":{}}}],\"isError\":true}}", quote(reason))
}

/// Returns the message of an error.
fn words(text: &str, error: &Span) -> String {
    let message = find(text, error.clone(), &["message"]).ok().flatten();
    message.and_then(|span| unquote(&text[span])).unwrap_or_default().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::stateless::edits::splice;

    const ERAS: [(Era, Era); 4] = [
        (Era::Legacy, Era::Legacy),
        (Era::Legacy, Era::Modern),
        (Era::Modern, Era::Legacy),
        (Era::Modern, Era::Modern),
    ];

    /// Returns the code that the client gets, and what it finds in place of the error.
    fn got(error: &str, method: &str, (server, client): (Era, Era)) -> (Option<i64>, String) {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"error":{error}}}"#);
        let answer = Message::read(&text).unwrap();
        let Relayed { error, edits } = relayed(&answer, method, server, client);
        let out = splice(&answer, edits);
        let message = Message::read(&out).unwrap();
        assert_eq!(message.error().is_some(), error.is_some(), "{out}");
        let body = out.strip_prefix(r#"{"jsonrpc":"2.0","id":1,"#).and_then(|rest| rest.strip_suffix('}'));
        (error, body.unwrap().to_owned())
    }

    #[test]
    fn codes_are_those_of_the_version_of_the_client() {
        let error = |code: i64| format!(r#"{{"code":{code},"message":"why","data":{{"uri":"u"}}}}"#);
        // The code for each pair of eras. `None`: it stays; -1: it becomes the result of a tool.
        for (method, code, expected) in [
            ("tools/call", -32601, [None, None, None, None]),
            ("tools/call", -32602, [None, None, None, None]),
            ("tools/call", -32603, [None, None, None, None]),
            ("tools/call", -31002, [None, None, None, None]),
            ("tools/call", -32000, [None, None, None, None]),
            ("tools/call", -32019, [None, None, None, None]),
            ("tools/call", 7, [None, None, None, None]),
            ("tools/call", -32100, [None, None, None, None]),
            ("resources/read", -32602, [None, None, Some(-32002), None]),
            ("resources/read", -32002, [None, Some(-32602), None, None]),
            ("prompts/get", -32002, [None, Some(-32602), None, None]),
            ("prompts/get", -32602, [None, None, None, None]),
            ("tools/call", -32020, [None, Some(-32603), Some(-32603), Some(-32603)]),
            ("tools/call", -32022, [None, Some(-32603), Some(-32603), Some(-32603)]),
            ("tools/call", -32021, [None, Some(-32603), Some(-1), None]),
            ("prompts/get", -32021, [None, Some(-32603), Some(-32603), None]),
            ("tools/call", -32042, [None, Some(-32603), None, None]),
            ("tools/call", -32099, [None, Some(-32603), None, None]),
        ] {
            for (eras, expected) in ERAS.into_iter().zip(expected) {
                let found = got(&error(code), method, eras);
                let given = error(code);
                let expected = match expected {
                    None => (Some(code), format!("\"error\":{given}")),
                    Some(-1) => {
                        (None, r#""result":{"content":[{"type":"text","text":"why"}],"isError":true}"#.into())
                    }
                    Some(-32603) => (
                        Some(-32603),
                        format!(
                            r#""error":{{"code":-32603,"message":"unexpected error {code} from the server: why","data":{given}}}"#
                        ),
                    ),
                    Some(other) => (Some(other), format!("\"error\":{}", error(other))),
                };
                assert_eq!(found, expected, "{method} {code} {eras:?}");
            }
        }
    }

    #[test]
    fn a_failed_tool_names_the_capabilities_that_it_needs() {
        let error = r#"{"code":-32021,"message":"no \"x\"","data":{"requiredCapabilities":{"elicitation":{"url":{}},"roots":{}}}}"#;
        let (code, body) = got(error, "tools/call", (Era::Modern, Era::Legacy));
        assert_eq!(code, None);
        assert_eq!(
            body,
            r#""result":{"content":[{"type":"text","text":"no \"x\" (required capabilities: elicitation, roots)"}],"isError":true}"#
        );
    }

    #[test]
    fn answers_without_a_usable_code_stay_as_they_are() {
        for eras in ERAS {
            for error in ["{}", r#"{"code":"x"}"#, r#"{"code":1.5}"#, r#"{"code":1,"code":2}"#] {
                assert_eq!(got(error, "tools/call", eras), (Some(-32603), format!("\"error\":{error}")));
            }
            let text = r#"{"jsonrpc":"2.0","id":1,"result":{"code":-32002}}"#;
            let answer = Message::read(text).unwrap();
            assert_eq!(relayed(&answer, "resources/read", eras.0, eras.1), Relayed::default());
        }
        // The original is one line.
        let (_, body) = got("{\"code\":-32022,\n\"message\":\"a\\n\"}", "m", (Era::Modern, Era::Modern));
        assert_eq!(
            body,
            r#""error":{"code":-32603,"message":"unexpected error -32022 from the server: a\\n","data":{"code":-32022, "message":"a\n"}}"#
        );
    }
}
