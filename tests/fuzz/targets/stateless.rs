//! Requests of the stateless protocol with serde_json as the oracle: the params that the gateway
//! reads are those of the library's tree.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::jsonrpc::{Malformed, Message, Span};
use mcpport::mcp::stateless::{Params, meta};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(message) = Message::read(text) else { return };
    let read = Params::read(&message);
    if Message::read_strict(text).is_ok() {
        assert!(read.is_ok(), "a strict message has no param twice");
    }
    let tree = serde_json::from_str::<Value>(text);
    match (&read, &tree) {
        (Ok(params), Ok(tree)) => compare(text, params, tree),
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
