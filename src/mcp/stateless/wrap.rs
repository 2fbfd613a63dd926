//! Requests on their way to a server: which params are replaced, added or removed, for a client and
//! a server of either protocol.
//!
//! Ids, progress tokens and names are replaced in the same splice, since the edits of two functions
//! could overlap. For a client and a server of earlier versions: `jsonrpc::edit`.

use super::{
    discover::TASKS,
    edits::{Edit, edit_members, filtered, one_line, splice},
    meta,
    params::Params,
};
use crate::{
    jsonrpc::{Message, ParamsPlace, Span, members, object, quote, unquote, whole_member},
    mcp::{
        listing::ListKind,
        log_level::Level,
        version::{V2025_06_18, V2025_11_25, V2026_07_28, VERSIONS},
    },
};

/// What is replaced in every request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Forward<'f> {
    /// The id, and the progress token if the client asks for progress.
    pub id: u64,
    /// The span of a name or URI, and what the server calls it.
    pub name: Option<(Span, &'f str)>,
}

impl Forward<'_> {
    /// Adds the edits for id, token and name.
    fn add(&self, message: &Message<'_>, params: &Params, edits: &mut Vec<Edit>) {
        edits.extend(message.id_span().map(|span| (span, self.id.to_string())));
        edits.extend(params.keys.token.clone().map(|span| (span, self.id.to_string())));
        edits.extend(self.name.as_ref().map(|(span, name)| (span.clone(), quote(name))));
    }
}

/// Adds the edits that remove params, and put members in front of the others (each followed by a
/// comma). Scans the params only if it has to.
fn change_params(text: &str, params: &Params, removed: &[Span], put: &str, edits: &mut Vec<Edit>) {
    let Some(object) = params.object.clone() else { return };
    match (removed, put) {
        ([], "") => {}
        ([one], "") => edits.push((whole_member(text, one.clone()), String::new())),
        ([], put) => {
            let rest = text.get(object.start + 1..).unwrap_or_default();
            let is_empty = rest.trim_start().starts_with('}');
            let put = if is_empty { put.strip_suffix(',').unwrap_or(put) } else { put };
            edits.push((object.start + 1..object.start + 1, put.to_owned()));
        }
        _ => edit_members(text, object, put, edits, |_, value| removed.contains(value)),
    }
}

/// Returns the cursor of a list request if it is empty. Some clients send such a one with the first
/// page, and servers of several SDKs reject it.
fn empty_cursor(message: &Message<'_>, params: &Params) -> Option<Span> {
    let cursor = params.cursor.clone().filter(|_| ListKind::of_method(message.method()).is_some())?;
    matches!(message.text().get(cursor.clone()), Some("null" | "\"\"")).then_some(cursor)
}

/// Returns what a retry adds to a request.
fn of_retry(params: &Params) -> impl Iterator<Item = Span> + use<> {
    [params.state.clone(), params.responses.clone()].into_iter().flatten()
}

/// Returns `_meta`, if it is an object.
fn meta_object(text: &str, params: &Params) -> Option<Span> {
    params.meta.clone().filter(|span| text[span.clone()].starts_with('{'))
}

/// What happens to the `requestState` of a retry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StateEdit<'s> {
    /// It stays.
    Keep,
    /// It becomes the state that the server wrote.
    Replace(&'s str),
    /// It is removed.
    Remove,
}

/// How a modern client's request is passed to a modern server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pass<'p> {
    /// What is replaced in every request.
    pub forward: Forward<'p>,
    /// What happens to the state of a retry.
    pub state: StateEdit<'p>,
    /// Whether the server may send log messages for this request.
    pub may_log: bool,
    /// The capabilities of the client, if they are cut (raw JSON).
    pub capabilities: Option<&'p str>,
}

/// Returns a modern client's request for a modern server.
pub fn pass(message: &Message<'_>, params: &Params, pass: &Pass<'_>) -> String {
    let text = message.text();
    let mut edits = Vec::new();
    pass.forward.add(message, params, &mut edits);
    if let (Some(span), Some(raw)) = (&params.keys.capabilities, pass.capabilities) {
        edits.push((span.clone(), one_line(raw).into_owned()));
    }
    if let (Some(span), false) = (&params.keys.level, pass.may_log) {
        edits.push((whole_member(text, span.clone()), String::new()));
    }
    let mut removed: Vec<Span> = empty_cursor(message, params).into_iter().collect();
    match (&params.state, pass.state) {
        (Some(span), StateEdit::Replace(state)) => edits.push((span.clone(), quote(state))),
        (Some(span), StateEdit::Remove) => removed.push(span.clone()),
        _ => {}
    }
    change_params(text, params, &removed, "", &mut edits);
    splice(message, edits)
}

/// Returns a modern client's request for a legacy server: without its envelope and without the
/// answers of a retry, which are not for that server.
pub fn unwrap(message: &Message<'_>, params: &Params, forward: &Forward<'_>) -> String {
    let text = message.text();
    // MCP 2025-11-25 has one reserved key, too.
    let is_reserved = |name: &str| name.starts_with(meta::PREFIX) && name != meta::RELATED_TASK;
    let is_kept = |(key, _): (Span, Span)| !unquote(&text[key]).is_some_and(|name| is_reserved(&name));
    let mut edits = Vec::new();
    forward.add(message, params, &mut edits);
    let mut removed: Vec<Span> = of_retry(params).chain(empty_cursor(message, params)).collect();
    match meta_object(text, params) {
        Some(meta) if members(text, meta.clone()).any(is_kept) => {
            edit_members(text, meta, "", &mut edits, |name, _| is_reserved(name));
        }
        Some(meta) => removed.push(meta),
        None => {}
    }
    change_params(text, params, &removed, "", &mut edits);
    splice(message, edits)
}

/// Returns the capabilities of a session's client in the shape of the stateless version, raw JSON:
/// what its own version does not have is left out. `version`: that of the session; `declared`: its
/// capabilities in `initialize`, raw JSON.
pub fn session_capabilities(version: &str, declared: &str) -> String {
    let whole = object(declared).unwrap_or_default();
    let raw = |value: Span| one_line(&declared[value]).into_owned();
    let is_object = |value: &Span| declared[value.clone()].starts_with('{');
    filtered(declared, whole, |name, value| match name {
        _ if !is_object(&value) => None,
        "tasks" => None,
        "roots" => Some("{}".to_owned()),
        "sampling" if is_since(version, V2025_11_25) => Some(raw(value)),
        "sampling" => Some("{}".to_owned()),
        "elicitation" if is_since(version, V2025_11_25) => match &*raw(value.clone()) {
            "{}" => Some("{\"form\":{}}".to_owned()),
            members => Some(members.to_owned()),
        },
        "elicitation" => is_since(version, V2025_06_18).then(|| "{\"form\":{}}".to_owned()),
        "extensions" => Some(filtered(declared, value, |id, value| (id != TASKS).then(|| raw(value)))),
        _ => Some(raw(value)),
    })
}

/// Returns the reserved keys that all requests of a session have at a modern server, each followed by
/// a comma: made once for each session. `capabilities`: those of [`session_capabilities`]; `info`: the
/// name and version of the client, raw JSON.
pub fn session_members(capabilities: &str, info: &str) -> String {
    let info = match info.starts_with('{') && info != "{}" {
        true => format!("\"{}\":{},", meta::CLIENT, one_line(info)),
        false => String::new(),
    };
    format!("\"{}\":\"{V2026_07_28}\",\"{}\":{capabilities},{info}", meta::VERSION, meta::CAPABILITIES)
}

/// Whether a version that starts with `initialize` is another one or came after it.
fn is_since(version: &str, other: &str) -> bool {
    let age = |version: &str| VERSIONS.iter().position(|known| *known == version);
    age(version) >= age(other)
}

/// Returns a session's request for a modern server. `members`: those of [`session_members`];
/// `level`: for log messages, if the server may send some for this request. Params that are an array
/// stay as they are; no method of MCP has such.
pub fn wrap(
    message: &Message<'_>,
    params: &Params,
    members: &str,
    level: Option<Level>,
    forward: &Forward<'_>,
) -> String {
    let text = message.text();
    let level = level.map(|level| format!("\"{}\":\"{}\",", meta::LEVEL, level.name()));
    let members = format!("{members}{}", level.unwrap_or_default());
    let alone = format!("\"_meta\":{{{}}}", members.strip_suffix(',').unwrap_or(&members));
    let mut edits = Vec::new();
    forward.add(message, params, &mut edits);
    // A session does not retry: the gateway does, with the state that the server gave to this call.
    let mut removed: Vec<Span> = of_retry(params).chain(empty_cursor(message, params)).collect();
    match (message.params_place(), meta_object(text, params)) {
        (ParamsPlace::Array(_), _) => {}
        (ParamsPlace::Null(span), _) => edits.push((span, format!("{{{alone}}}"))),
        (ParamsPlace::Absent { end }, _) => edits.push((end..end, format!(",\"params\":{{{alone}}}"))),
        (ParamsPlace::Object(_), Some(meta)) => {
            edit_members(text, meta, &members, &mut edits, |name, _| name.starts_with(meta::PREFIX));
            change_params(text, params, &removed, "", &mut edits);
        }
        (ParamsPlace::Object(_), None) => {
            // One that is no object, which no server accepts.
            removed.extend(params.meta.clone());
            change_params(text, params, &removed, &format!("{alone},"), &mut edits);
        }
    }
    splice(message, edits)
}

/// Returns the retry of a request that was sent to a modern server (`kept`), with another id, the
/// answers of this round (a JSON object) and the state that the server gave, if any. `None` if `kept`
/// is no such request.
pub fn retry(kept: &str, id: u64, responses: &str, state: Option<&str>, may_log: bool) -> Option<String> {
    let message = Message::read(kept).ok()?;
    let params = Params::read(&message).ok()?;
    let state = state.map(|state| format!("\"requestState\":{},", quote(state))).unwrap_or_default();
    let put = format!("\"inputResponses\":{},{state}", one_line(responses));
    let mut edits = Vec::new();
    Forward { id, name: None }.add(&message, &params, &mut edits);
    if let (Some(span), false) = (&params.keys.level, may_log) {
        edits.push((whole_member(kept, span.clone()), String::new()));
    }
    params.object.as_ref()?;
    change_params(kept, &params, &of_retry(&params).collect::<Vec<_>>(), &put, &mut edits);
    Some(splice(&message, edits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PV: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28""#;
    const CC: &str = r#""io.modelcontextprotocol/clientCapabilities":{}"#;
    const CI: &str = r#""io.modelcontextprotocol/clientInfo":{"name":"c"}"#;
    const LL: &str = r#""io.modelcontextprotocol/logLevel":"info""#;

    fn text(method: &str, params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":"a","method":"{method}"{params}}}"#)
    }

    /// Applies a function to a request with these params (`,"params":…`), and returns the params that
    /// come out. The rest of the request must be the same, under id 7.
    fn with(method: &str, params: &str, change: impl FnOnce(&Message<'_>, &Params) -> String) -> String {
        let text = text(method, params);
        let message = Message::read_strict(&text).unwrap();
        let out = change(&message, &Params::read(&message).unwrap());
        let start = format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}""#);
        assert_eq!(Message::read(&out).unwrap().id(), Some("7"));
        out.strip_prefix(&start).unwrap().strip_suffix('}').unwrap().to_owned()
    }

    const ID: Forward<'_> = Forward { id: 7, name: None };

    #[test]
    fn requests_of_modern_clients_pass_to_modern_servers() {
        let keep = StateEdit::Keep;
        let envelope = format!("{PV},{CC}");
        for (method, params, state, may_log, capabilities, expected) in [
            (
                "tools/call",
                format!(r#"{{"name":"t","arguments":{{"x":1.0}},"_meta":{{{envelope},"progressToken":0}}}}"#),
                keep,
                true,
                None,
                format!(r#"{{"name":"t","arguments":{{"x":1.0}},"_meta":{{{envelope},"progressToken":7}}}}"#),
            ),
            (
                "m",
                format!(r#"{{"_meta":{{{envelope},{LL},"traceparent":"00"}},"x":1}}"#),
                keep,
                true,
                None,
                format!(r#"{{"_meta":{{{envelope},{LL},"traceparent":"00"}},"x":1}}"#),
            ),
            (
                "m",
                format!(r#"{{"_meta":{{{LL},{envelope},"progressToken":true}}}}"#),
                keep,
                false,
                None,
                format!(r#"{{"_meta":{{{envelope},"progressToken":true}}}}"#),
            ),
            (
                "m",
                format!(r#"{{"_meta":{{{PV},{CC},{LL}}}}}"#),
                keep,
                false,
                Some(r#"{"roots":{}}"#),
                format!(
                    r#"{{"_meta":{{{PV},"io.modelcontextprotocol/clientCapabilities":{{"roots":{{}}}}}}}}"#
                ),
            ),
            (
                "tools/call",
                format!(r#"{{"requestState":"sealed","inputResponses":{{"k":1}},"_meta":{{{envelope}}}}}"#),
                StateEdit::Replace("in\"ner"),
                true,
                None,
                format!(r#"{{"requestState":"in\"ner","inputResponses":{{"k":1}},"_meta":{{{envelope}}}}}"#),
            ),
            (
                "tools/call",
                format!(r#"{{"requestState":"sealed","inputResponses":{{"k":1}},"_meta":{{{envelope}}}}}"#),
                StateEdit::Remove,
                true,
                None,
                format!(r#"{{"inputResponses":{{"k":1}},"_meta":{{{envelope}}}}}"#),
            ),
            (
                "tools/call",
                format!(r#"{{"_meta":{{{envelope}}}}}"#),
                StateEdit::Remove,
                true,
                None,
                format!(r#"{{"_meta":{{{envelope}}}}}"#),
            ),
            (
                "tools/list",
                format!(r#"{{"cursor":"","_meta":{{{envelope}}}}}"#),
                keep,
                true,
                None,
                format!(r#"{{"_meta":{{{envelope}}}}}"#),
            ),
            (
                "tools/list",
                format!(r#"{{"cursor":null,"requestState":"s","_meta":{{{envelope},{LL}}}}}"#),
                StateEdit::Remove,
                false,
                None,
                format!(r#"{{"_meta":{{{envelope}}}}}"#),
            ),
            (
                "tools/list",
                format!(r#"{{"cursor":"x","_meta":{{{envelope}}}}}"#),
                keep,
                true,
                None,
                format!(r#"{{"cursor":"x","_meta":{{{envelope}}}}}"#),
            ),
        ] {
            let change = Pass { forward: ID, state, may_log, capabilities };
            let out = with(method, &format!(",\"params\":{params}"), |message, params| {
                pass(message, params, &change)
            });
            assert_eq!(out, format!(",\"params\":{expected}"));
        }
        let given = format!(r#","params":{{"name":"s_t","_meta":{{{envelope}}},"x":"s_t"}}"#);
        let renamed = with("tools/call", &given, |message, params| {
            let forward = Forward { id: 7, name: params.name.clone().map(|span| (span, "t\"")) };
            pass(message, params, &Pass { forward, state: keep, may_log: true, capabilities: None })
        });
        assert_eq!(renamed, given.replacen("s_t", "t\\\"", 1));
    }

    #[test]
    fn requests_of_modern_clients_are_unwrapped_for_legacy_servers() {
        let related = r#""io.modelcontextprotocol/related-task":{"taskId":"k"}"#;
        for (method, given, expected) in [
            ("tools/list", format!(r#"{{"_meta":{{{PV},{CC}}}}}"#), "{}".to_owned()),
            (
                "resources/read",
                format!(r#"{{"uri":"x:1","_meta":{{{PV},{CC},"traceparent":"00-"}}}}"#),
                r#"{"uri":"x:1","_meta":{"traceparent":"00-"}}"#.into(),
            ),
            (
                "tools/call",
                format!(r#"{{"_meta":{{{PV},"progressToken":"p",{CC},{CI},"a/b":1,{LL}}},"name":"t"}}"#),
                r#"{"_meta":{"progressToken":7,"a/b":1},"name":"t"}"#.into(),
            ),
            (
                "tools/call",
                format!(
                    r#"{{"name":"t","requestState":"s","inputResponses":{{}},"_meta":{{{CC},{related},{PV}}}}}"#
                ),
                format!(r#"{{"name":"t","_meta":{{{related}}}}}"#),
            ),
            (
                "tools/call",
                format!(r#"{{"requestState":"s","_meta":{{{CC},{PV}}},"inputResponses":{{}},"name":"t"}}"#),
                r#"{"name":"t"}"#.into(),
            ),
            ("tools/list", format!(r#"{{"cursor":"","_meta":{{{PV},{CC}}}}}"#), "{}".into()),
            ("tools/list", format!(r#"{{"_meta":{{{PV},{CC}}},"cursor":"x"}}"#), r#"{"cursor":"x"}"#.into()),
            (
                "tools/list",
                format!(r#"{{"_meta":{{"a":1,{PV},{CC}}},"cursor":null}}"#),
                r#"{"_meta":{"a":1}}"#.into(),
            ),
            ("m", r#"{"_meta":{},"x":1}"#.into(), r#"{"x":1}"#.into()),
            ("m", r#"{"_meta":7,"x":1}"#.into(), r#"{"_meta":7,"x":1}"#.into()),
        ] {
            let out =
                with(method, &format!(",\"params\":{given}"), |message, params| unwrap(message, params, &ID));
            assert_eq!(out, format!(",\"params\":{expected}"));
        }
        assert_eq!(with("m", "", |message, params| unwrap(message, params, &ID)), "");
        assert_eq!(
            with("m", ",\"params\":[1]", |message, params| unwrap(message, params, &ID)),
            ",\"params\":[1]"
        );
    }

    /// Every order of five members of `_meta`, of which three are reserved.
    #[test]
    fn the_envelope_is_removed_in_any_order() {
        let members = [PV, CC, LL, r#""progressToken":1"#, r#""traceparent":"00-""#];
        for number in 0..5_usize.pow(5) {
            let order: Vec<usize> = (0..5_u32).map(|place| number / 5_usize.pow(place) % 5).collect();
            if (0..5).any(|member| !order.contains(&member)) {
                continue;
            }
            for separator in [",", " ,\t"] {
                let all: Vec<&str> = order.iter().map(|member| members[*member]).collect();
                let left: Vec<&str> =
                    order.iter().filter(|member| **member > 2).map(|member| members[*member]).collect();
                let given = format!(",\"params\":{{\"_meta\":{{{}}}}}", all.join(separator));
                let out = with("m", &given, |message, params| unwrap(message, params, &ID));
                let expected =
                    format!(",\"params\":{{\"_meta\":{{{}}}}}", left.join(",")).replace(":1", ":7");
                assert_eq!(out.replace([' ', '\t'], ""), expected);
                let sent = with("m", &given, |message, params| {
                    let change = Pass {
                        forward: ID,
                        state: StateEdit::Keep,
                        may_log: false,
                        capabilities: Some("{}"),
                    };
                    pass(message, params, &change)
                });
                let left: Vec<&str> =
                    order.iter().filter(|member| **member != 2).map(|member| members[*member]).collect();
                let expected =
                    format!(",\"params\":{{\"_meta\":{{{}}}}}", left.join(",")).replace(":1", ":7");
                assert_eq!(sent.replace([' ', '\t'], ""), expected);
            }
        }
    }

    #[test]
    fn session_members_have_the_shape_of_the_stateless_version() {
        let members = |version: &str, capabilities: &str, info: &str| {
            let text = session_members(&session_capabilities(version, capabilities), info);
            let start = format!("{PV},\"{}\":", meta::CAPABILITIES);
            assert!(crate::jsonrpc::object(&format!("{{{}}}", text.strip_suffix(',').unwrap())).is_some());
            text.strip_prefix(&start).unwrap().to_owned()
        };
        for (version, capabilities, expected) in [
            ("2025-11-25", "{}", "{}"),
            ("2025-11-25", "null", "{}"),
            ("2025-11-25", r#"{"elicitation":{}}"#, r#"{"elicitation":{"form":{}}}"#),
            (
                "2025-11-25",
                r#"{"elicitation":{"url":{},"form":{}}}"#,
                r#"{"elicitation":{"url":{},"form":{}}}"#,
            ),
            ("2025-06-18", r#"{"elicitation":{"url":{}}}"#, r#"{"elicitation":{"form":{}}}"#),
            ("2025-03-26", r#"{"elicitation":{}}"#, "{}"),
            (
                "2024-11-05",
                r#"{"elicitation":{},"roots":{"listChanged":true},"sampling":{}}"#,
                r#"{"roots":{},"sampling":{}}"#,
            ),
            (
                "2025-11-25",
                r#"{"sampling":{"tools":{}},"tasks":{"list":{}},"x":{"y":[1]}}"#,
                r#"{"sampling":{"tools":{}},"x":{"y":[1]}}"#,
            ),
            ("2025-06-18", r#"{"sampling":{"tools":{}},"roots":null}"#, r#"{"sampling":{}}"#),
            ("2025-11-25", "{\"experimental\":{\n\"a\":{}}}", r#"{"experimental":{ "a":{}}}"#),
            (
                "2025-11-25",
                r#"{"extensions":{"io.modelcontextprotocol/tasks":{},"a/b":{}}}"#,
                r#"{"extensions":{"a/b":{}}}"#,
            ),
        ] {
            assert_eq!(members(version, capabilities, "{}"), format!("{expected},"), "{capabilities}");
        }
        assert_eq!(
            members("2025-11-25", "{}", "{\"name\":\n\"c\"}"),
            format!("{{}},{},", CI.replace(":\"c\"", ": \"c\""))
        );
        assert_eq!(members("2025-11-25", "{}", "7"), "{},");
    }

    #[test]
    fn requests_of_sessions_are_wrapped() {
        let members = format!("{PV},{CC},");
        let meta = format!(r#""_meta":{{{PV},{CC}}}"#);
        let forged = format!(r#"{LL},"io.modelcontextprotocol/x":1"#);
        for (method, given, expected) in [
            ("m", String::new(), format!(r#","params":{{{meta}}}"#)),
            ("m", r#","params":null"#.into(), format!(r#","params":{{{meta}}}"#)),
            ("m", r#","params":{}"#.into(), format!(r#","params":{{{meta}}}"#)),
            ("m", r#","params":{ }"#.into(), format!(r#","params":{{{meta} }}"#)),
            ("m", r#","params":[1]"#.into(), r#","params":[1]"#.into()),
            (
                "tools/call",
                r#","params":{"name":"t","arguments":{}}"#.into(),
                format!(r#","params":{{{meta},"name":"t","arguments":{{}}}}"#),
            ),
            (
                "tools/call",
                r#","params":{"name":"t","_meta":{"progressToken":"p","a":1}}"#.into(),
                format!(r#","params":{{"name":"t","_meta":{{{PV},{CC},"progressToken":7,"a":1}}}}"#),
            ),
            ("m", r#","params":{"_meta":{}}"#.into(), format!(r#","params":{{{meta}}}"#)),
            (
                "m",
                format!(r#","params":{{"_meta":{{{forged},"a":1}},"x":1}}"#),
                format!(r#","params":{{"_meta":{{{PV},{CC},"a":1}},"x":1}}"#),
            ),
            ("m", format!(r#","params":{{"_meta":{{{forged}}}}}"#), format!(r#","params":{{{meta}}}"#)),
            ("m", r#","params":{"_meta":7,"x":1}"#.into(), format!(r#","params":{{{meta},"x":1}}"#)),
            (
                "tools/call",
                r#","params":{"requestState":"s","name":"t","inputResponses":{}}"#.into(),
                format!(r#","params":{{{meta},"name":"t"}}"#),
            ),
            (
                "tools/call",
                r#","params":{"requestState":"s","_meta":{"a":1},"name":"t"}"#.into(),
                format!(r#","params":{{"_meta":{{{PV},{CC},"a":1}},"name":"t"}}"#),
            ),
            ("tools/list", r#","params":{"cursor":null}"#.into(), format!(r#","params":{{{meta}}}"#)),
            (
                "tools/list",
                r#","params":{"cursor":"","_meta":{}}"#.into(),
                format!(r#","params":{{{meta}}}"#),
            ),
            (
                "tools/list",
                r#","params":{"cursor":"x"}"#.into(),
                format!(r#","params":{{{meta},"cursor":"x"}}"#),
            ),
        ] {
            let out = with(method, &given, |message, params| wrap(message, params, &members, None, &ID));
            assert_eq!(out, expected, "{given}");
            let level = Level::named("info");
            let out = with(method, &given, |message, params| wrap(message, params, &members, level, &ID));
            assert_eq!(out, expected.replace(CC, &format!("{CC},{LL}")), "{given}");
        }
    }

    #[test]
    fn a_retry_is_the_same_request_with_the_answers() {
        let meta = format!(r#""_meta":{{{PV},{CC},{LL},"progressToken":3}}"#);
        let kept = |params: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{{{params}}}}}"#)
        };
        let quiet = meta.replace(&format!("{LL},"), "").replace(":3", ":7");
        let first = kept(&format!(r#"{meta},"name":"t""#));
        let second = retry(&first, 7, "{\"k\":\n1}", Some("s\""), false).unwrap();
        assert_eq!(
            second,
            kept(&format!(r#""inputResponses":{{"k": 1}},"requestState":"s\"",{quiet},"name":"t""#))
                .replacen(":3", ":7", 1)
        );
        // The answers of a round replace those of the last one.
        let third = retry(&second, 8, "{}", None, true).unwrap();
        assert_eq!(
            third,
            kept(&format!(r#""inputResponses":{{}},{},"name":"t""#, quiet.replace(":7", ":8")))
                .replacen(":3", ":8", 1)
        );
        for other in ["", "{}", r#"{"jsonrpc":"2.0","id":3,"method":"m"}"#] {
            assert_eq!(retry(other, 7, "{}", None, true), None);
        }
    }
}
