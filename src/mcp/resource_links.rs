//! Resource links in messages from servers: finds the spans of their URIs.
//!
//! A client that sees all servers must not be led to another server's resource of the same URI.
//! This module does no I/O; `catalog` knows which resource each URI belongs to.

use crate::jsonrpc::{Message, Span, elements, find, unquote};

/// The span of a URI's value, and the URI.
pub type ResourceLink = (Span, String);

/// Whether a message can contain links. A cheap check, since most messages have none.
pub fn may_link(message: &Message<'_>) -> bool {
    has_word(message.text()) || message.has_escaped_letter()
}

/// Whether a tool's description can contain links.
pub fn may_link_description(listed: &str) -> bool {
    has_word(listed) || listed.contains("\\u00")
}

/// Looks for the substring common to `resource_link`, `resource` (both content types),
/// `resourceUri` and `ui/resourceUri`.
fn has_word(text: &str) -> bool {
    text.contains("resource")
}

/// Returns the links in the result of a method, in text order.
pub fn in_result(method: &str, text: &str, result: Span) -> Vec<ResourceLink> {
    let mut links = Vec::new();
    match method {
        "tools/call" => parts(text, &result, "content").for_each(|block| in_block(text, &block, &mut links)),
        "prompts/get" => {
            for message in parts(text, &result, "messages") {
                if let Some(content) = member(text, &message, &["content"]) {
                    in_block(text, &content, &mut links);
                }
            }
        }
        "resources/read" => {
            parts(text, &result, "contents").for_each(|contents| in_resource(text, &contents, &mut links));
        }
        _ => return links,
    }
    in_meta(text, &result, &mut links);
    in_order(links)
}

/// Returns the links in a tool's description, in text order.
pub fn in_description(listed: &str) -> Vec<ResourceLink> {
    let mut links = Vec::new();
    in_meta(listed, &(0..listed.len()), &mut links);
    in_order(links)
}

/// Replaces the URIs at the given spans. `None` if there are no edits.
pub fn spliced(text: &str, edits: &[ResourceLink]) -> Option<String> {
    let mut out = String::new();
    let mut from = 0;
    for (span, uri) in edits {
        out.push_str(&text[from..span.start]);
        out.push_str(&crate::jsonrpc::quote(uri));
        from = span.end;
    }
    out.push_str(&text[from..]);
    (!edits.is_empty()).then_some(out)
}

fn in_block(text: &str, block: &Span, links: &mut Vec<ResourceLink>) {
    let kind = member(text, block, &["type"]).and_then(|span| unquote(&text[span]));
    match kind.as_deref() {
        Some("resource_link") => in_resource(text, block, links),
        Some("resource") => {
            if let Some(resource) = member(text, block, &["resource"]) {
                in_resource(text, &resource, links);
            }
            in_meta(text, block, links);
        }
        _ => in_meta(text, block, links),
    }
}

fn in_resource(text: &str, object: &Span, links: &mut Vec<ResourceLink>) {
    add(text, object, &["uri"], links);
    in_meta(text, object, links);
}

/// Adds the URI of a tool's user interface (MCP Apps): `_meta.ui.resourceUri`, and the flat key
/// `ui/resourceUri` that preceded it.
fn in_meta(text: &str, object: &Span, links: &mut Vec<ResourceLink>) {
    add(text, object, &["_meta", "ui", "resourceUri"], links);
    add(text, object, &["_meta", "ui/resourceUri"], links);
}

fn add(text: &str, object: &Span, path: &[&str], links: &mut Vec<ResourceLink>) {
    let span = member(text, object, path);
    links.extend(span.and_then(|span| Some((span.clone(), unquote(&text[span])?.into_owned()))));
}

fn member(text: &str, object: &Span, path: &[&str]) -> Option<Span> {
    find(text, object.clone(), path).ok().flatten()
}

fn parts<'a>(text: &'a str, object: &Span, name: &str) -> impl Iterator<Item = Span> + use<'a> {
    member(text, object, &[name]).into_iter().flat_map(move |list| elements(text, list))
}

fn in_order(mut links: Vec<ResourceLink>) -> Vec<ResourceLink> {
    links.sort_unstable_by_key(|(span, _)| span.start);
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(method: &str, result: &str) -> Vec<String> {
        in_result(method, result, 0..result.len()).into_iter().map(|(_, uri)| uri).collect()
    }

    fn is_looked_at(result: &str) -> bool {
        may_link(&Message::read(&format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#)).unwrap())
    }

    #[test]
    fn links_are_found_in_results_in_order() {
        let content = r#"[{"type":"text","text":"resource a://0"},{"uri":"a:\/\/1","type":"resource_link"},{"type":"resource","resource":{"uri":"a://2","text":""}}]"#;
        let meta = r#"{"ui":{"resourceUri":"ui://m"},"ui/resourceUri":"ui://n"}"#;
        let result =
            format!(r#"{{"_meta":{meta},"content":{content},"structuredContent":{{"uri":"a://3"}}}}"#);
        assert_eq!(found("tools/call", &result), ["ui://m", "ui://n", "a://1", "a://2"]);
        assert!(found("completion/complete", &result).is_empty());
        assert_eq!(
            found("prompts/get", r#"{"messages":[{"content":{"type":"resource_link","uri":"a://1"}}]}"#),
            ["a://1"]
        );
        assert_eq!(found("resources/read", r#"{"contents":[{"uri":"a://1","text":""},{}]}"#), ["a://1"]);
        for odd in ["{}", r#"{"content":{}}"#, r#"{"content":[1,null,{"type":"resource_link","uri":7}]}"#] {
            assert!(found("tools/call", odd).is_empty(), "{odd}");
        }
    }

    #[test]
    fn links_are_found_however_they_are_escaped() {
        let block =
            r#"{"content":[{"type":"resource_link","uri":"a://1"}],"_meta":{"ui":{"resourceUri":"ui://m"}}}"#;
        for letter in "resouc".chars() {
            for escape in [format!("\\u{:04x}", u32::from(letter)), format!("\\u{:04X}", u32::from(letter))] {
                let escaped = block
                    .replace("resource", &"resource".replace(letter, &escape))
                    .replace("uri", &"uri".replace(letter, &escape));
                assert!(is_looked_at(&escaped) && may_link_description(&escaped), "{escaped}");
                assert_eq!(found("tools/call", &escaped), ["a://1", "ui://m"], "{escaped}");
            }
        }
        // Escapes that common encoders write do not trigger the full search.
        for usual in [r#"{"x":"\u00e9\u003c\u0026\u001b\u2028\n"}"#, r#"{"x":"\\u0061"}"#, "{}"] {
            assert!(!is_looked_at(usual), "{usual}");
        }
    }

    #[test]
    fn rewriting_descriptions_changes_only_uris() {
        let listed = r#"{"name":"resource", "_meta":{"ui":{"resourceUri" : "ui://a","x":1.0}}}"#;
        let edits: Vec<ResourceLink> =
            in_description(listed).into_iter().map(|(span, uri)| (span, format!("s+{uri}"))).collect();
        assert_eq!(spliced(listed, &edits).unwrap(), listed.replace("ui://a", "s+ui://a"));
        assert_eq!(spliced(listed, &[]), None);
        assert!(!may_link_description(r#"{"name":"t","description":"hello"}"#));
    }
}
