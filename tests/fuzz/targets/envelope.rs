//! JSON-RPC envelopes with serde_json as the oracle: both accept the same texts and find the same
//! values, and replacing the id changes nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::jsonrpc::{Kind, Malformed, Message, Span, elements, find, members, object, unquote};
use mcpport::limits::JSON_DEPTH;
use serde_json::Value;
use serde_json::value::RawValue;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Any text, checked or not: none of these functions panics.
    let _ = (members(text, 0..text.len()).count(), elements(text, 0..text.len()).count());
    let _ = (unquote(text), find(text, 0..text.len(), &["a", "b"]), object(text));

    let read = Message::read(text);
    let raw = serde_json::from_str::<&RawValue>(text);
    match &read {
        Err(Malformed::Syntax) => assert!(raw.is_err()),
        Err(Malformed::Depth) => assert!(depth(text) > JSON_DEPTH),
        _ => assert!(raw.is_ok()),
    }
    let strict = Message::read_strict(text);
    let Ok(message) = read else { return assert!(strict.is_err()) };
    if let (Ok(_), Ok(Value::Object(members))) = (&strict, serde_json::from_str(text)) {
        let twin = |key: &String| key.eq_ignore_ascii_case("id") && key != "id";
        assert!(!members.keys().any(twin), "two readers differ about the id");
    }
    assert!(depth(text) <= JSON_DEPTH);
    assert_eq!(object(text).map(|span| &text[span]), Some(text.trim_matches([' ', '\t', '\r', '\n'])));
    splice(&message);
    // The library's tree refuses lone surrogates, numbers out of range, and one level less than we
    // do.
    if let Ok(value) = serde_json::from_str::<Value>(text) {
        compare(&message, &value);
    }
});

/// Returns the deepest nesting outside strings.
fn depth(text: &str) -> u32 {
    let (mut now, mut max, mut string, mut escaped) = (0u32, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if string => escaped = true,
            b'"' => string = !string,
            b'{' | b'[' if !string => now += 1,
            b'}' | b']' if !string => now = now.saturating_sub(1),
            _ => {}
        }
        max = max.max(now);
    }
    max
}

/// Replaces the id, and restores it: one line, and the original except for line breaks.
fn splice(message: &Message<'_>) {
    let whole = object(message.text()).expect("an object");
    let mut flat = message.text().replace(['\n', '\r'], " ");
    if let Ok(Some(span)) = find(message.text(), whole, &["params"])
        && flat[span.clone()] == *"null"
    {
        flat.replace_range(span, "{}");
    }
    assert_eq!(message.splice(&[]), flat);
    let other = message.with_id("18446744073709551615");
    assert!(!other.contains(['\n', '\r']));
    let changed = Message::read(&other).expect("still a message");
    assert_eq!(changed.kind(), message.kind());
    match message.id() {
        Some(id) => {
            assert_eq!(changed.id(), Some("18446744073709551615"));
            assert_eq!(changed.with_id(id), flat);
        }
        None => assert_eq!(other, flat),
    }
}

fn compare(message: &Message<'_>, value: &Value) {
    let text = message.text();
    assert_eq!(value["jsonrpc"], "2.0");
    assert_eq!(message.method(), value.get("method").and_then(Value::as_str).unwrap_or_default());
    assert_eq!(message.kind() == Kind::Response, value.get("method").is_none());
    for (name, span) in
        [("params", message.params()), ("result", message.result()), ("error", message.error())]
    {
        assert_eq!(span.map(tree), value.get(name).cloned(), "{name}");
    }
    assert_eq!(message.id().map(tree), value.get("id").filter(|id| !id.is_null()).cloned());
    if let Some(whole) = object(text) {
        walk(text, whole, value);
    }
}

fn tree(raw: &str) -> Value {
    serde_json::from_str(raw).expect("a part of a tree is a tree")
}

/// Members and elements are those of the library's tree, unless a name is duplicated.
fn walk(text: &str, span: Span, value: &Value) {
    match value {
        Value::Object(map) => {
            let pairs: Vec<(Span, Span)> = members(text, span.clone()).collect();
            if pairs.len() != map.len() {
                assert!(pairs.len() > map.len());
                return;
            }
            for (key, inner) in pairs {
                let name = unquote(&text[key]).expect("the library could read it");
                assert_eq!(find(text, span.clone(), &[&name]), Ok(Some(inner.clone())));
                walk(text, inner, &map[name.as_ref()]);
            }
        }
        Value::Array(list) => {
            let spans: Vec<Span> = elements(text, span).collect();
            assert_eq!(spans.len(), list.len());
            spans.into_iter().zip(list).for_each(|(span, value)| walk(text, span, value));
        }
        scalar => assert_eq!(&tree(&text[span]), scalar),
    }
}
