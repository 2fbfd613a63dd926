//! Results on their way between a modern and a legacy side: what a stateless client needs in them,
//! what a client of an earlier version does not understand, and how long they may be cached.
//!
//! This module returns edits; `hub::conclusion` applies them together with its own.

use std::{borrow::Cow, time::Duration};

use super::{
    edits::{Edit, edit_members, one_line},
    meta,
};
use crate::{
    jsonrpc::{Message, Span, elements, find, members, quote, unquote},
    mcp::listing::ListKind,
};

/// How long, and for whom, a client may cache a result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cache {
    /// For how long.
    pub ttl: Duration,
    /// Whether for clients of other principals, too.
    pub is_public: bool,
}

impl Cache {
    /// Not at all.
    pub const NONE: Self = Self { ttl: Duration::ZERO, is_public: false };

    /// Returns the members for a result.
    pub fn members(self) -> String {
        format!("\"ttlMs\":{},\"cacheScope\":{}", self.ttl.as_millis(), self.scope())
    }

    fn scope(self) -> &'static str {
        if self.is_public { "\"public\"" } else { "\"private\"" }
    }
}

/// Whether results of a method may be cached, and so must say for how long.
pub fn is_cacheable(method: &str) -> bool {
    matches!(method, "server/discover" | "resources/read") || ListKind::of_method(method).is_some()
}

/// The name and version of a server, as every result for a stateless client has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerStamp(Box<str>);

impl ServerStamp {
    /// Returns the stamp of a server, given its result of `initialize`.
    pub fn of(initialize_result: &str) -> Self {
        let whole = 0..initialize_result.len();
        let info = find(initialize_result, whole, &["serverInfo"]).ok().flatten();
        let info = info.map(|span| one_line(&initialize_result[span])).filter(|raw| raw.starts_with('{'));
        Self::new(&info.unwrap_or(Cow::Borrowed(r#"{"name":"unknown","version":"unknown"}"#)))
    }

    /// Returns the gateway's own stamp.
    pub fn gateway() -> Self {
        Self::new(&format!("{{\"name\":\"mcpport\",\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION")))
    }

    fn new(info: &str) -> Self {
        Self(format!("\"{}\":{info}", meta::SERVER).into())
    }

    /// Returns the member for `_meta`.
    pub fn member(&self) -> &str {
        &self.0
    }
}

/// Returns a result of the gateway's own, with these members (each followed by a comma), for a
/// stateless client.
pub fn own_result(members: &str, method: &str, cache: Cache) -> String {
    let cache = if is_cacheable(method) { format!("{},", cache.members()) } else { String::new() };
    format!(
        "{{{members}\"resultType\":\"complete\",{cache}\"_meta\":{{{}}}}}",
        ServerStamp::gateway().member()
    )
}

/// Returns the edits that make a legacy server's result one for a stateless client. What the server
/// cannot know is replaced, if it is there.
pub fn stamp(text: &str, result: Span, method: &str, server: &ServerStamp, cache: Cache) -> Vec<Edit> {
    let mut put = String::from("\"resultType\":\"complete\",");
    if is_cacheable(method) {
        put.push_str(&cache.members());
        put.push(',');
    }
    let mut edits = Vec::new();
    if !text[result.clone()].starts_with('{') {
        let put = format!("{{{put}\"_meta\":{{{}}}}}", server.member());
        return vec![(result, put)];
    }
    // Of several, readers keep the last one.
    let named = |(key, _): &(Span, Span)| unquote(&text[key.clone()]).as_deref() == Some("_meta");
    let meta = members(text, result.clone()).filter(named).last().map(|(_, value)| value);
    let meta = meta.filter(|value| text[value.clone()].starts_with('{'));
    if meta.is_none() {
        put.push_str(&format!("\"_meta\":{{{}}},", server.member()));
    }
    edit_members(text, result.clone(), &put, &mut edits, |name, value| match name {
        "resultType" | "ttlMs" | "cacheScope" | "requestState" | "inputRequests" => true,
        "_meta" => meta.as_ref() != Some(value),
        _ => false,
    });
    if let Some(meta) = meta {
        let is_reserved = |name: &str, _: &Span| name.starts_with(meta::PREFIX);
        edit_members(text, meta, &format!("{},", server.member()), &mut edits, is_reserved);
    }
    if method == "tools/list" {
        without_task_support(text, result, &mut edits);
    }
    edits.sort_unstable_by_key(|(span, _)| span.start);
    edits
}

/// Removes from a list of tools what their servers say of tasks of MCP 2025-11-25.
fn without_task_support(text: &str, result: Span, edits: &mut Vec<Edit>) {
    if !text.contains("taskSupport") {
        return;
    }
    let tools = find(text, result, &[ListKind::Tool.member()]).ok().flatten();
    for tool in tools.into_iter().flat_map(|tools| elements(text, tools)) {
        if let Ok(Some(execution)) = find(text, tool, &["execution"]) {
            edit_members(text, execution, "", edits, |name, _| name == "taskSupport");
        }
    }
}

/// What a result of MCP 2026-07-28 is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResultType {
    /// The result.
    Complete,
    /// The server needs input from the client first.
    InputRequired,
    /// A task that will have the result (extension `io.modelcontextprotocol/tasks`).
    Task,
    /// It does not say. Servers of earlier versions do not, and mean a complete result.
    Absent,
    /// Something else, which no client understands.
    Unknown,
}

/// Returns the type of a result; `Absent` for an error. Reads only up to the first `resultType`,
/// which most servers write near the start. A server that writes a second one harms only itself: a
/// state in it is not sealed, and so is refused when the client returns it.
pub fn result_type(answer: &Message<'_>) -> ResultType {
    let (text, Some(result)) = (answer.text(), answer.result_span()) else { return ResultType::Absent };
    let mut all = members(text, result);
    let found = all.find(|(key, _)| unquote(&text[key.clone()]).as_deref() == Some("resultType"));
    match found.map(|(_, value)| unquote(&text[value])) {
        None => ResultType::Absent,
        Some(None) => ResultType::Unknown,
        Some(Some(name)) => match &*name {
            "complete" => ResultType::Complete,
            "input_required" => ResultType::InputRequired,
            "task" => ResultType::Task,
            _ => ResultType::Unknown,
        },
    }
}

/// Returns the edits in a modern server's result for a modern client: its type is added if the server
/// left it out, and how long a complete result of a cacheable method may be cached is limited.
/// `cap.ttl` applies to lists and `server/discover`; a resource keeps its own time.
pub fn passed(text: &str, result: Span, method: &str, kind: ResultType, cap: Cache) -> Vec<Edit> {
    let mut edits = Vec::new();
    let is_complete = matches!(kind, ResultType::Complete | ResultType::Absent);
    if !text[result.clone()].starts_with('{') {
        return edits;
    }
    let mut put = match kind {
        ResultType::Absent => "\"resultType\":\"complete\",".to_owned(),
        _ => String::new(),
    };
    let mut is_twice = false;
    if is_complete && is_cacheable(method) {
        is_twice = !recache(text, result.clone(), method, cap, &mut put, &mut edits);
    }
    if !put.is_empty() || is_twice {
        let is_cache = |name: &str| matches!(name, "ttlMs" | "cacheScope");
        edit_members(text, result, &put, &mut edits, |name, _| is_twice && is_cache(name));
    }
    edits.sort_unstable_by_key(|(span, _)| span.start);
    edits
}

/// Adds what limits the caching of a result: edits of the members that are there, and those to put in
/// front. Returns false if a member occurs twice; then all of them are to be removed.
fn recache(
    text: &str,
    result: Span,
    method: &str,
    cap: Cache,
    put: &mut String,
    edits: &mut Vec<Edit>,
) -> bool {
    let (mut ttl, mut scope, mut is_twice) = (None, None, false);
    for (key, value) in members(text, result) {
        match unquote(&text[key]).as_deref() {
            Some("ttlMs") => is_twice |= ttl.replace(value).is_some(),
            Some("cacheScope") => is_twice |= scope.replace(value).is_some(),
            _ => {}
        }
    }
    if is_twice {
        put.push_str(&Cache::NONE.members());
        put.push(',');
        return false;
    }
    let given = ttl.clone().and_then(|span| text[span].parse().ok()).map(Duration::from_millis);
    let longest = if method == "resources/read" { Duration::MAX } else { cap.ttl };
    let cache = Cache {
        ttl: given.unwrap_or_default().min(longest),
        is_public: cap.is_public && scope.clone().is_some_and(|span| &text[span] == "\"public\""),
    };
    match ttl {
        Some(_) if Some(cache.ttl) == given => {}
        Some(span) => edits.push((span, cache.ttl.as_millis().to_string())),
        None => put.push_str(&format!("\"ttlMs\":{},", cache.ttl.as_millis())),
    }
    match scope {
        Some(span) if &text[span.clone()] == cache.scope() => {}
        Some(span) => edits.push((span, cache.scope().to_owned())),
        None => put.push_str(&format!("\"cacheScope\":{},", cache.scope())),
    }
    true
}

/// Returns the edits that make a modern server's complete result one for a client of an earlier
/// version: its structured content and output schemas must be objects, and a tool has content. What
/// else is new in a result does not disturb such a client.
pub fn lower(text: &str, result: Span, method: &str) -> Vec<Edit> {
    match method {
        "tools/call" => lower_tool(text, result),
        "tools/list" if text.contains("outputSchema") => lower_tools(text, result),
        _ => Vec::new(),
    }
}

fn lower_tool(text: &str, result: Span) -> Vec<Edit> {
    let (mut content, mut structured) = (None, None);
    for (key, value) in members(text, result.clone()) {
        match unquote(&text[key]).as_deref() {
            Some("content") => content = Some(value),
            Some("structuredContent") => structured = Some(value),
            _ => {}
        }
    }
    let mut edits = Vec::new();
    if !text[result.clone()].starts_with('{') {
        return edits;
    }
    let block = structured
        .clone()
        .map(|span| format!("[{{\"type\":\"text\",\"text\":{}}}]", quote(&one_line(&text[span]))));
    let is_empty = |list: &Span| elements(text, list.clone()).next().is_none();
    match (content, block) {
        (None, block) => {
            let put = format!("\"content\":{},", block.as_deref().unwrap_or("[]"));
            edit_members(text, result, &put, &mut edits, |_, _| false);
        }
        (Some(list), Some(block)) if is_empty(&list) => edits.push((list, block)),
        (Some(_), _) => {}
    }
    if let Some(span) = structured.filter(|span| !text[span.clone()].starts_with('{')) {
        let value = one_line(&text[span.clone()]).into_owned();
        edits.push((span, format!("{{\"result\":{value}}}")));
    }
    edits.sort_unstable_by_key(|(span, _)| span.start);
    edits
}

/// Removes output schemas whose root is no object: structured content that is none is wrapped, so it
/// would not fit them.
fn lower_tools(text: &str, result: Span) -> Vec<Edit> {
    let mut edits = Vec::new();
    let tools = find(text, result, &[ListKind::Tool.member()]).ok().flatten();
    for tool in tools.into_iter().flat_map(|tools| elements(text, tools)) {
        edit_members(text, tool, "", &mut edits, |name, schema| {
            let kind = find(text, schema.clone(), &["type"]).ok().flatten();
            name == "outputSchema" && kind.is_none_or(|kind| &text[kind] != "\"object\"")
        });
    }
    edits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::stateless::edits::splice;

    /// Returns a result after edits, of which none may touch another.
    fn edited(result: &str, edit: impl FnOnce(&str, Span) -> Vec<Edit>) -> String {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let message = Message::read(&text).unwrap();
        let edits = edit(&text, message.result_span().unwrap());
        assert!(edits.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start), "{edits:?}");
        assert!(edits.windows(2).all(|pair| pair[0].0.start < pair[1].0.start), "{edits:?}");
        let out = splice(&message, edits);
        Message::read(&out).unwrap().result().unwrap().to_owned()
    }

    const SERVER: &str = r#""io.modelcontextprotocol/serverInfo":{"name":"s"}"#;

    #[test]
    fn results_of_legacy_servers_are_stamped() {
        let server = ServerStamp::of(r#"{"serverInfo":{"name":"s"}}"#);
        assert_eq!(server.member(), SERVER);
        let stamped = |method: &str, result: &str| {
            edited(result, |text, span| stamp(text, span, method, &server, Cache::NONE))
        };
        let start = format!(r#""resultType":"complete","_meta":{{{SERVER}}}"#);
        let forged = r#""io.modelcontextprotocol/serverInfo":{"name":"x"}"#;
        for (result, expected) in [
            (r#"{"content":[]}"#.to_owned(), format!(r#"{{{start},"content":[]}}"#)),
            ("{}".into(), format!("{{{start}}}")),
            ("{ }".into(), format!("{{{start} }}")),
            (
                r#"{"content":[],"resultType":"input_required","requestState":"s","inputRequests":{},"isError":true}"#.into(),
                format!(r#"{{{start},"content":[],"isError":true}}"#),
            ),
            (r#"{"ttlMs":9,"cacheScope":"public","content":[]}"#.into(), format!(r#"{{{start},"content":[]}}"#)),
            (r#"{"resultType":"x","resultType":"y"}"#.into(), format!("{{{start}}}")),
            (
                r#"{"_meta":{"a":1},"content":[]}"#.into(),
                format!(r#"{{"resultType":"complete","_meta":{{{SERVER},"a":1}},"content":[]}}"#),
            ),
            (
                format!(r#"{{"content":[],"_meta":{{{forged},"a":1,"io.modelcontextprotocol/x":2}}}}"#),
                format!(r#"{{"resultType":"complete","content":[],"_meta":{{{SERVER},"a":1}}}}"#),
            ),
            (
                format!(r#"{{"content":[],"_meta":{{{forged}}}}}"#),
                format!(r#"{{"resultType":"complete","content":[],"_meta":{{{SERVER}}}}}"#),
            ),
            (r#"{"_meta":7,"content":[]}"#.into(), format!(r#"{{{start},"content":[]}}"#)),
            (
                r#"{"_meta":{"a":1},"content":[],"_meta":{"b":2}}"#.into(),
                format!(r#"{{"resultType":"complete","content":[],"_meta":{{{SERVER},"b":2}}}}"#),
            ),
            (
                "{\n\"content\":[],\r\n\"ttlMs\":1\n}".into(),
                format!("{{{start}, \"content\":[] }}"),
            ),
            ("null".into(), format!("{{{start}}}")),
            ("[1]".into(), format!("{{{start}}}")),
        ] {
            assert_eq!(stamped("tools/call", &result), expected, "{result}");
        }
        assert_eq!(
            stamped("resources/read", r#"{"contents":[],"ttlMs":9}"#),
            format!(
                r#"{{"resultType":"complete","ttlMs":0,"cacheScope":"private","_meta":{{{SERVER}}},"contents":[]}}"#
            )
        );
    }

    #[test]
    fn tools_of_legacy_servers_lose_what_they_say_of_tasks() {
        let server = ServerStamp::of(r#"{"serverInfo":{"name":"s"}}"#);
        let result = r#"{"tools":[{"name":"a","execution":{"taskSupport":"required"}},{"name":"b","execution":{"x":1,"taskSupport":"optional"}},{"taskSupport":1},7]}"#;
        let expected =
            r#","tools":[{"name":"a","execution":{}},{"name":"b","execution":{"x":1}},{"taskSupport":1},7]}"#;
        let out = edited(result, |text, span| stamp(text, span, "tools/list", &server, Cache::NONE));
        assert!(out.ends_with(expected), "{out}");
    }

    #[test]
    fn own_results_are_stamped() {
        let cache = Cache { ttl: Duration::from_millis(7), is_public: true };
        let server = ServerStamp::gateway();
        assert_eq!(
            own_result("\"tools\":[],", "tools/list", cache),
            format!(
                r#"{{"tools":[],"resultType":"complete","ttlMs":7,"cacheScope":"public","_meta":{{{}}}}}"#,
                server.member()
            )
        );
        assert_eq!(
            own_result("", "tools/call", cache),
            format!(r#"{{"resultType":"complete","_meta":{{{}}}}}"#, server.member())
        );
        for stored in ["{}", "", "[]", r#"{"serverInfo":7}"#] {
            let unknown = r#""io.modelcontextprotocol/serverInfo":{"name":"unknown","version":"unknown"}"#;
            assert_eq!(ServerStamp::of(stored).member(), unknown);
        }
    }

    #[test]
    fn caching_is_limited() {
        let cap = |is_public| Cache { ttl: Duration::from_secs(30), is_public };
        let out = |method: &str, result: &str, is_public| {
            edited(result, |text, span| {
                let message = Message::read(text).unwrap();
                let kind = match result_type(&message) {
                    // So that only the caching is tested here.
                    ResultType::Absent => ResultType::Complete,
                    kind => kind,
                };
                passed(text, span, method, kind, cap(is_public))
            })
        };
        let result = |ttl: &str, scope: &str| format!(r#"{{"tools":[],"ttlMs":{ttl},"cacheScope":{scope}}}"#);
        let list = "tools/list";
        for (method, (ttl, scope), is_public, expected) in [
            (list, ("0", "\"private\""), true, ("0", "\"private\"")),
            (list, ("30000", "\"public\""), true, ("30000", "\"public\"")),
            (list, ("30001", "\"public\""), true, ("30000", "\"public\"")),
            (list, ("5", "\"public\""), false, ("5", "\"private\"")),
            (list, ("-1", "\"x\""), true, ("0", "\"private\"")),
            (list, ("1.5", "7"), true, ("0", "\"private\"")),
            (list, ("\"9\"", "null"), true, ("0", "\"private\"")),
            (list, ("99999999999999999999999", "\"public\""), true, ("0", "\"public\"")),
            ("resources/read", ("99000", "\"public\""), true, ("99000", "\"public\"")),
            ("resources/read", ("99000", "\"public\""), false, ("99000", "\"private\"")),
            ("server/discover", ("99000", "\"public\""), false, ("30000", "\"private\"")),
            ("tools/call", ("99000", "\"public\""), false, ("99000", "\"public\"")),
        ] {
            assert_eq!(out(method, &result(ttl, scope), is_public), result(expected.0, expected.1));
        }
        for (given, expected) in [
            (r#"{"tools":[]}"#, r#"{"ttlMs":0,"cacheScope":"private","tools":[]}"#),
            ("{}", r#"{"ttlMs":0,"cacheScope":"private"}"#),
            (r#"{"ttlMs":1}"#, r#"{"cacheScope":"private","ttlMs":1}"#),
            (r#"{"ttlMs":1,"ttlMs":2,"x":3}"#, r#"{"ttlMs":0,"cacheScope":"private","x":3}"#),
            (
                r#"{"resultType":"complete","ttlMs":31000,"cacheScope":"public"}"#,
                r#"{"resultType":"complete","ttlMs":30000,"cacheScope":"public"}"#,
            ),
            (
                r#"{"resultType":"input_required","requestState":"s"}"#,
                r#"{"resultType":"input_required","requestState":"s"}"#,
            ),
            ("[]", "[]"),
        ] {
            assert_eq!(out(list, given, true), expected, "{given}");
        }
    }

    #[test]
    fn the_type_of_a_result_is_found() {
        use ResultType::*;
        for (body, expected) in [
            (r#""result":{"resultType":"complete","content":[]}"#, Complete),
            (r#""result":{"content":[{"resultType":"task"}],"resultType":"input_required"}"#, InputRequired),
            (r#""result":{"result\u0054ype":"input\u005frequired"}"#, InputRequired),
            (r#""result":{"resultType":"task","taskId":"k"}"#, Task),
            (r#""result":{"content":["resultType"]}"#, Absent),
            (r#""result":{"resultType":"other"}"#, Unknown),
            (r#""result":{"resultType":null}"#, Unknown),
            (r#""result":[]"#, Absent),
            (r#""error":{"resultType":"task"}"#, Absent),
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,{body}}}"#);
            assert_eq!(result_type(&Message::read(&text).unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn results_without_a_type_are_complete() {
        use ResultType::*;
        for (method, result, kind, expected) in [
            ("tools/call", "{}", Absent, r#"{"resultType":"complete"}"#),
            ("tools/call", r#"{"content":[]}"#, Absent, r#"{"resultType":"complete","content":[]}"#),
            ("tools/call", r#"{"content":[]}"#, Complete, r#"{"content":[]}"#),
            ("tools/list", "{}", Absent, r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private"}"#),
            (
                "tools/list",
                r#"{"ttlMs":1,"tools":[]}"#,
                Absent,
                r#"{"resultType":"complete","cacheScope":"private","ttlMs":0,"tools":[]}"#,
            ),
            (
                "tools/list",
                r#"{"ttlMs":1,"ttlMs":1}"#,
                Absent,
                r#"{"resultType":"complete","ttlMs":0,"cacheScope":"private"}"#,
            ),
            ("resources/read", r#"{"x":1}"#, InputRequired, r#"{"x":1}"#),
            ("resources/read", r#"{"x":1}"#, Unknown, r#"{"x":1}"#),
            ("tools/list", "null", Absent, "null"),
        ] {
            let out = edited(result, |text, span| passed(text, span, method, kind, Cache::NONE));
            assert_eq!(out, expected, "{result}");
        }
    }

    #[test]
    fn results_of_modern_servers_are_lowered() {
        let lowered = |method: &str, result: &str| edited(result, |text, span| lower(text, span, method));
        for (result, expected) in [
            (r#"{"content":[{"type":"text","text":"x"}]}"#, None),
            (r#"{"content":[],"isError":true}"#, None),
            (r#"{"resultType":"complete","content":[7],"structuredContent":{"a":1}}"#, None),
            (
                r#"{"content":[7],"structuredContent":[1,"a"]}"#,
                Some(r#"{"content":[7],"structuredContent":{"result":[1,"a"]}}"#),
            ),
            (
                "{\"structuredContent\":[1,\n\"a\"],\"content\":[]}",
                Some(
                    r#"{"structuredContent":{"result":[1, "a"]},"content":[{"type":"text","text":"[1, \"a\"]"}]}"#,
                ),
            ),
            (
                r#"{"structuredContent":{"a":1}}"#,
                Some(r#"{"content":[{"type":"text","text":"{\"a\":1}"}],"structuredContent":{"a":1}}"#),
            ),
            (
                r#"{"structuredContent":null,"content":[7]}"#,
                Some(r#"{"structuredContent":{"result":null},"content":[7]}"#),
            ),
            (r#"{"isError":true}"#, Some(r#"{"content":[],"isError":true}"#)),
            ("{}", Some(r#"{"content":[]}"#)),
            ("[]", None),
        ] {
            assert_eq!(lowered("tools/call", result), expected.unwrap_or(result));
            assert_eq!(lowered("prompts/get", result), one_line(result));
        }
        for (tool, expected) in [
            (
                r#"{"name":"t","outputSchema":{"type":"object"}}"#,
                r#"{"name":"t","outputSchema":{"type":"object"}}"#,
            ),
            (r#"{"name":"t","outputSchema":{"type":"array"},"x":1}"#, r#"{"name":"t","x":1}"#),
            (r#"{"outputSchema":{"anyOf":[]},"name":"t"}"#, r#"{"name":"t"}"#),
            (r#"{"name":"t","outputSchema":true}"#, r#"{"name":"t"}"#),
            (r#"{"name":"t"}"#, r#"{"name":"t"}"#),
        ] {
            let list = |tool: &str| format!(r#"{{"tools":[{tool},{{"name":"u"}}],"outputSchema":7}}"#);
            assert_eq!(lowered("tools/list", &list(tool)), list(expected));
        }
    }
}
