//! Messages of the stateless protocol with serde_json as the oracle: the params that the gateway
//! reads are those of the library's tree, and requests and results that it rewrites have the members
//! that the same change makes in the tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::jsonrpc::{Kind, Malformed, Message, Span};
use mcpport::mcp::stateless::headers::{self, HeaderParams};
use mcpport::mcp::stateless::result::{Cache, ResultType, ServerStamp};
use mcpport::mcp::stateless::wrap::{Forward, Pass, StateEdit};
use mcpport::mcp::stateless::{
    Capabilities, Edit, Envelope, Params, discover, edits, input, listen, meta, relay, result, wrap,
};
use mcpport::mcp::version::Era;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    any_text(text);
    let Ok(message) = Message::read(text) else { return };
    let read = Params::read(&message);
    if Message::read_strict(text).is_ok() {
        assert!(read.is_ok(), "a strict message has no param twice");
    }
    let tree = serde_json::from_str::<Value>(text);
    match (&read, &tree) {
        (Ok(params), Ok(tree)) => {
            compare(text, params, tree);
            rewrite(&message, params, tree);
        }
        (Err(why), _) => assert_eq!(*why, Malformed::Duplicate),
        _ => {}
    }
});

fn compare(text: &str, params: &Params, tree: &Value) {
    let object = tree.get("params").filter(|params| params.is_object());
    assert_eq!(value(text, &params.object), object.cloned());
    let member = |name: &str| object.and_then(|object| object.get(name)).cloned();
    for (name, span) in [
        ("_meta", &params.meta),
        ("name", &params.name),
        ("uri", &params.uri),
        ("ref", &params.reference),
        ("taskId", &params.task),
        ("cursor", &params.cursor),
        ("requestState", &params.state),
        ("inputResponses", &params.responses),
        ("arguments", &params.arguments),
        ("notifications", &params.notifications),
    ] {
        assert_eq!(value(text, span), member(name), "{name}");
    }
    let keys = &params.keys;
    let in_meta = |name: &str| member("_meta")?.get(name).cloned();
    for (name, span) in [
        (meta::VERSION, &keys.version),
        (meta::CAPABILITIES, &keys.capabilities),
        (meta::CLIENT, &keys.info),
        (meta::LEVEL, &keys.level),
        (meta::SUBSCRIPTION, &keys.subscription),
    ] {
        assert_eq!(value(text, span), in_meta(name), "{name}");
    }
    let token = in_meta("progressToken").filter(|token| token.is_string() || token.is_number());
    assert_eq!(value(text, &keys.token), token);
}

fn value(text: &str, span: &Option<Span>) -> Option<Value> {
    span.clone().map(|span| serde_json::from_str(&text[span]).expect("a part of a tree is a tree"))
}

/// Any text, checked or not: none of these functions panics.
fn any_text(text: &str) {
    let _ = (headers::decode(text), HeaderParams::read(text), Capabilities::read(text));
    let _ = (discover::DiscoverResult::read(text), input::url_questions(text), ServerStamp::of(text));
    let for_session = discover::initialize_result_for_legacy(text, "", text).1;
    let for_client = discover::discover_result(text, discover::Offer::Modern, Cache::NONE);
    if parses(text) {
        assert!(parses(&for_session) && parses(&for_client), "{for_session} {for_client}");
    }
    if parses(text) {
        assert!(parses(&headers::without_marks(text)));
    }
}

fn parses(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// Rewrites a message in all ways, and compares the outcome with the tree that is changed likewise.
fn rewrite(message: &Message<'_>, params: &Params, tree: &Value) {
    let text = message.text();
    let _ = (Envelope::read(message, params), listen::filter(text, params, 4), listen::honoured(message));
    match message.kind() {
        Kind::Request => requests(message, params, tree),
        Kind::Notification => {
            let tagged = listen::tagged(message, "\"s\"", None);
            let untagged = listen::untagged(message, None);
            if !tree["params"].is_array() {
                assert_eq!(read(&tagged)["params"]["_meta"][meta::SUBSCRIPTION], "s");
            }
            assert!(read(&untagged)["params"]["_meta"].get(meta::SUBSCRIPTION).is_none());
        }
        Kind::Response => responses(message, tree),
    }
}

fn read(text: &str) -> Value {
    assert!(!text.contains(['\n', '\r']), "one line");
    serde_json::from_str(text).expect("still JSON")
}

const MEMBERS: &str = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"#;

/// Returns the tree of a request with our id and token, and without an empty cursor.
fn numbered(tree: &Value, method: &str) -> Value {
    let mut tree = tree.clone();
    tree["id"] = json!(7);
    let Some(params) = tree.get_mut("params") else { return tree };
    if params.is_null() {
        *params = json!({});
    }
    if let Some(token) = params.get_mut("_meta").and_then(|meta| meta.get_mut("progressToken"))
        && (token.is_string() || token.is_number())
    {
        *token = json!(7);
    }
    let is_list =
        ["tools/list", "prompts/list", "resources/list", "resources/templates/list"].contains(&method);
    let is_empty = params.get("cursor").is_some_and(|cursor| cursor.is_null() || cursor == "");
    if let (Some(params), true) = (params.as_object_mut(), is_list && is_empty) {
        params.remove("cursor");
    }
    tree
}

fn requests(message: &Message<'_>, params: &Params, tree: &Value) {
    let id = Forward { id: 7, name: None };
    let base = numbered(tree, message.method());
    let without = |names: &[&str]| {
        let mut tree = base.clone();
        if let Some(params) = tree.get_mut("params").and_then(Value::as_object_mut) {
            names.iter().for_each(|name| drop(params.remove(*name)));
        }
        tree
    };
    let reserved = |name: &str| name.starts_with(meta::PREFIX) && name != meta::RELATED_TASK;

    let mut bare = without(&["inputResponses", "requestState"]);
    if let Some(params) = bare.get_mut("params").and_then(Value::as_object_mut) {
        let meta = params.get_mut("_meta").and_then(Value::as_object_mut);
        if let Some(meta) = meta {
            meta.retain(|name, _| !reserved(name));
            if meta.is_empty() {
                params.remove("_meta");
            }
        }
    }
    assert_eq!(read(&wrap::unwrap(message, params, &id)), bare);

    let mut wrapped = without(&["inputResponses", "requestState"]);
    let members = read(&format!("{{{}}}", MEMBERS.trim_end_matches(',')));
    if wrapped.get("params").is_none() {
        wrapped["params"] = json!({});
    }
    if let Some(params) = wrapped["params"].as_object_mut() {
        let old = params.get("_meta").and_then(Value::as_object).cloned().unwrap_or_default();
        let mut meta = members;
        for (name, value) in old.into_iter().filter(|(name, _)| !name.starts_with(meta::PREFIX)) {
            meta[name] = value;
        }
        params.insert("_meta".into(), meta);
    }
    let sent = wrap::wrap(message, params, MEMBERS, None, &id);
    assert_eq!(read(&sent), wrapped);
    if let Some(retried) = wrap::retry(&sent, 7, "{\"k\":1}", Some("s"), true) {
        wrapped["params"]["inputResponses"] = json!({"k": 1});
        wrapped["params"]["requestState"] = json!("s");
        assert_eq!(read(&retried), wrapped);
    }

    let mut passed = without(&["requestState"]);
    if let Some(meta) = passed.get_mut("params").and_then(|params| params.get_mut("_meta")?.as_object_mut()) {
        meta.remove(meta::LEVEL);
        if let Some(capabilities) = meta.get_mut(meta::CAPABILITIES) {
            *capabilities = json!({});
        }
    }
    let change = Pass { forward: id, state: StateEdit::Remove, may_log: false, capabilities: Some("{}") };
    assert_eq!(read(&wrap::pass(message, params, &change)), passed);
}

fn responses(message: &Message<'_>, tree: &Value) {
    let text = message.text();
    for (server, client) in
        [(Era::Modern, Era::Legacy), (Era::Legacy, Era::Modern), (Era::Modern, Era::Modern)]
    {
        let relayed = relay::relayed(message, "tools/call", server, client);
        let out = read(&edits::splice(message, relayed.edits));
        assert_eq!(out.get("error").is_some(), relayed.error.is_some());
    }
    let Some(result) = message.result_span() else { return };
    let _ = (result::result_type(message), input::InputRequired::read(text, result.clone(), 64));
    let changed = |edits: Vec<Edit>| read(&edits::splice(message, edits))["result"].clone();
    let server = ServerStamp::gateway();
    for method in ["tools/call", "tools/list", "resources/read"] {
        let stamped = changed(result::stamp(text, result.clone(), method, &server, Cache::NONE));
        assert_eq!(stamped["resultType"], "complete");
        assert_eq!(stamped.get("ttlMs").is_some(), method != "tools/call");
        let meta = stamped["_meta"].as_object().expect("an object");
        assert_eq!(meta.keys().filter(|name| name.starts_with(meta::PREFIX)).count(), 1);
        let _ = changed(result::lower(text, result.clone(), method));
        let kind = result::result_type(message);
        let again = changed(result::passed(text, result.clone(), method, kind, Cache::NONE));
        let is_complete = matches!(kind, ResultType::Complete | ResultType::Absent);
        if method == "tools/list" && tree["result"].is_object() && is_complete {
            assert_eq!((&again["ttlMs"], &again["cacheScope"]), (&json!(0), &json!("private")));
            assert!(again.get("resultType").is_some());
        }
    }
}
