//! Replacement of content types that a client's protocol version does not define.
//!
//! Members that are new to a client are harmless, since objects are open. A new content *type* may
//! break a strict client. For a client whose version is older than its server's, such content
//! therefore becomes a text block that names the original. This module does no I/O: it returns
//! edits to a response, and `hub::conclusion` applies them.

use crate::{
    jsonrpc::{Message, Span, elements, find, quote, unquote},
    mcp::version::{V2025_03_26, V2025_06_18, VERSIONS},
};

/// Content types, each with the protocol version that introduced it.
const NEWER: [(&str, &str); 2] = [("audio", V2025_03_26), ("resource_link", V2025_06_18)];

/// Returns the edits that adapt a response to `method` for a client, in text order. Empty for all
/// methods but `tools/call` and `prompts/get`, and whenever the client is not older than the
/// server.
pub fn edits(method: &str, client: &str, server: &str, answer: &Message<'_>) -> Vec<(Span, String)> {
    let unknown: Vec<&str> = NEWER
        .into_iter()
        .filter(|(_, since)| age(client) < age(since) && age(client) < age(server))
        .map(|(kind, _)| kind)
        .collect();
    let (text, Some(result)) = (answer.text(), answer.result_span()) else { return Vec::new() };
    if unknown.is_empty() {
        return Vec::new();
    }
    let blocks = match method {
        "tools/call" => parts(text, result, "content"),
        "prompts/get" => {
            let messages = parts(text, result, "messages").into_iter();
            messages.filter_map(|message| find(text, message, &["content"]).ok()?).collect()
        }
        _ => Vec::new(),
    };
    let replaced = |block: Span| Some((block.clone(), in_words(text, block, &unknown)?));
    blocks.into_iter().filter_map(replaced).collect()
}

/// Whether [`edits`] can return anything for a client of this version.
pub fn concerns(client: &str) -> bool {
    NEWER.iter().any(|(_, since)| age(client) < age(since))
}

/// Returns a version's position in [`VERSIONS`]. An unknown version counts as the newest.
fn age(version: &str) -> usize {
    VERSIONS.iter().position(|known| *known == version).unwrap_or(VERSIONS.len())
}

fn parts(text: &str, object: Span, name: &str) -> Vec<Span> {
    let list = find(text, object, &[name]).ok().flatten();
    list.map(|list| elements(text, list).collect()).unwrap_or_default()
}

/// Returns a block of one of the `unknown` types as a text block; `None` for any other block.
fn in_words(text: &str, block: Span, unknown: &[&str]) -> Option<String> {
    let raw = |name: &str| find(text, block.clone(), &[name]).ok().flatten().map(|span| &text[span]);
    let words = |name: &str| raw(name).and_then(unquote).unwrap_or_default();
    let kind = words("type");
    if !unknown.contains(&&*kind) {
        return None;
    }
    let mime = words("mimeType");
    let said = match &*kind {
        "resource_link" => {
            let (uri, name) = (words("uri"), words("name"));
            let details: Vec<&str> = [&*name, &*mime].into_iter().filter(|word| !word.is_empty()).collect();
            match details.is_empty() {
                true => format!("Resource: {uri}"),
                false => format!("Resource: {uri} ({})", details.join(", ")),
            }
        }
        _ => format!("[{kind} content, {mime}: not in this protocol version]"),
    };
    let kept = |name: &str| raw(name).map(|raw| format!(",\"{name}\":{raw}")).unwrap_or_default();
    Some(format!("{{\"type\":\"text\",\"text\":{}{}{}}}", quote(&said), kept("annotations"), kept("_meta")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridged(method: &str, client: &str, server: &str, result: &str) -> String {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        let answer = Message::read(&text).unwrap();
        let edits = edits(method, client, server, &answer);
        let edits: Vec<(Span, &str)> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
        let out = answer.splice(&edits);
        out.strip_prefix(r#"{"jsonrpc":"2.0","id":1,"result":"#)
            .unwrap()
            .strip_suffix('}')
            .unwrap()
            .to_owned()
    }

    const AUDIO: &str =
        r#"{"type":"audio","data":"QUJD","mimeType":"audio/wav","annotations":{"priority":1.0}}"#;
    const NO_AUDIO: &str = r#"{"type":"text","text":"[audio content, audio/wav: not in this protocol version]","annotations":{"priority":1.0}}"#;
    const LINK: &str = r#"{"uri":"a://\u0062","name":"n \"q\"","type":"resource_link","_meta":{"k":[1]}}"#;
    const NO_LINK: &str = r#"{"type":"text","text":"Resource: a://b (n \"q\")","_meta":{"k":[1]}}"#;
    const TEXT: &str = r#"{ "type":"text", "text":"resource_link audio" }"#;

    #[test]
    fn content_is_adapted_to_the_client_version() {
        let result = |audio: &str, link: &str| {
            format!(r#"{{"x":1.0,"content":[{TEXT}, {audio} ,{link}],"structuredContent":{{"a":{AUDIO}}}}}"#)
        };
        let given = result(AUDIO, LINK);
        for (client, expected) in [
            ("2024-11-05", result(NO_AUDIO, NO_LINK)),
            ("2025-03-26", result(AUDIO, NO_LINK)),
            ("2025-06-18", given.clone()),
            ("2025-11-25", given.clone()),
            ("2026-07-28", given.clone()),
        ] {
            assert_eq!(bridged("tools/call", client, "2025-11-25", &given), expected, "{client}");
            assert_eq!(concerns(client), expected != given, "{client}");
        }
        assert_eq!(bridged("tools/call", "2024-11-05", "2024-11-05", &given), given);
        assert_eq!(bridged("resources/read", "2024-11-05", "2025-11-25", &given), given);
    }

    #[test]
    fn prompts_have_one_block_in_a_message() {
        let result = |block: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":{block}}},{{"content":{TEXT},"role":"user"}},7]}}"#
            )
        };
        assert_eq!(bridged("prompts/get", "2024-11-05", "2025-06-18", &result(LINK)), result(NO_LINK));
    }

    #[test]
    fn content_of_unexpected_form_is_unchanged() {
        for result in [
            r#"{}"#,
            r#"[]"#,
            r#"{"content":7}"#,
            r#"{"content":[7,null,[],{},{"type":5},{"type":"video"}]}"#,
            r#"{"content":[{"type":"audio","type":"audio"}]}"#,
        ] {
            assert_eq!(bridged("tools/call", "2024-11-05", "2025-11-25", result), result);
        }
        assert_eq!(
            bridged("tools/call", "2024-11-05", "2025-11-25", r#"{"content":[{"type":"resource_link"}]}"#),
            r#"{"content":[{"type":"text","text":"Resource: "}]}"#
        );
    }
}
