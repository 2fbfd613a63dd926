//! Edits to the members of an object: what to remove and what to put in front.

use std::borrow::Cow;

use crate::jsonrpc::{Message, Span, members, unquote};

/// A change in a message: the span to replace, and the new text.
pub type Edit = (Span, String);

/// Adds the edits that remove members from an object and put others in front. `put`: those members,
/// each followed by a comma. `removes` is asked about the name and the value of each member. The
/// edits are in text order and apart from each other.
pub fn edit_members(
    text: &str,
    object: Span,
    put: &str,
    edits: &mut Vec<Edit>,
    mut removes: impl FnMut(&str, &Span) -> bool,
) {
    let mut front = (object.start + 1..object.start + 1, String::new());
    let mut removals: Vec<Span> = Vec::new();
    let (mut is_kept, mut end) = (false, object.start + 1);
    let mut all = members(text, object).peekable();
    while let Some((key, value)) = all.next() {
        let name = unquote(&text[key.clone()]).unwrap_or_default();
        if removes(&name, &value) {
            // With the comma before it, or with the one behind it if no member is left before it.
            let start = if is_kept { end } else { key.start };
            let next = all.peek().filter(|_| !is_kept).map(|(key, _)| key.start);
            removals.push(start..next.unwrap_or(value.end));
        } else {
            is_kept = true;
        }
        end = value.end;
    }
    front.1.push_str(if is_kept { put } else { put.strip_suffix(',').unwrap_or(put) });
    let (mut last, mut text) = front;
    for removal in removals {
        if removal.start == last.end {
            last.end = removal.end;
            continue;
        }
        let done = std::mem::replace(&mut last, removal);
        edits.extend(Some((done, std::mem::take(&mut text))).filter(is_change));
    }
    edits.extend(Some((last, text)).filter(is_change));
}

fn is_change((span, text): &Edit) -> bool {
    !span.is_empty() || !text.is_empty()
}

/// Applies edits in any order to a message, as one line.
pub fn splice(message: &Message<'_>, mut edits: Vec<Edit>) -> String {
    edits.sort_unstable_by_key(|(span, _)| span.start);
    let edits: Vec<(Span, &str)> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
    message.splice(&edits)
}

/// Returns an object with the members for which `keep` returns a value.
pub fn filtered(text: &str, object: Span, mut keep: impl FnMut(&str, Span) -> Option<String>) -> String {
    let kept = members(text, object).filter_map(|(key, value)| {
        let value = keep(&unquote(&text[key.clone()])?, value)?;
        Some(format!("{}:{value}", &text[key]))
    });
    format!("{{{}}}", kept.collect::<Vec<_>>().join(","))
}

/// Returns raw JSON as one line. Line breaks can only occur between tokens (RFC 8259, section 2).
pub fn one_line(raw: &str) -> Cow<'_, str> {
    match raw.contains(['\n', '\r']) {
        true => Cow::Owned(raw.replace(['\n', '\r'], " ")),
        false => Cow::Borrowed(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the params after the removal of all members whose name has an `r`.
    fn edited(object: &str, put: &str) -> String {
        let text = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{object}}}"#);
        let message = Message::read(&text).unwrap();
        let start = text.len() - 1 - object.len();
        let mut edits = Vec::new();
        edit_members(&text, start..text.len() - 1, put, &mut edits, |name, _| name.contains('r'));
        assert!(edits.windows(2).all(|pair| pair[0].0.end < pair[1].0.start), "{edits:?}");
        let out = splice(&message, edits);
        assert!(Message::read(&out).is_ok(), "{out}");
        out[start..out.len() - 1].to_owned()
    }

    #[test]
    fn members_are_removed_with_one_comma_each() {
        // Every choice among four members.
        for choice in 0..16_u32 {
            let names =
                [0, 1, 2, 3].map(|n| if choice >> n & 1 == 1 { format!("r{n}") } else { format!("k{n}") });
            for separator in [",", " , "] {
                let given = names.each_ref().map(|name| format!(r#""{name}":{{"r":1}}"#)).join(separator);
                let left: Vec<String> = names
                    .iter()
                    .filter(|name| name.starts_with('k'))
                    .map(|name| format!(r#""{name}":{{"r":1}}"#))
                    .collect();
                for (open, close) in [("{", "}"), ("{ ", " }")] {
                    for put in ["", "\"p\":1,"] {
                        let all = [put.strip_suffix(',').unwrap_or_default()]
                            .into_iter()
                            .filter(|put| !put.is_empty());
                        let all: Vec<&str> = all.chain(left.iter().map(String::as_str)).collect();
                        let out = edited(&format!("{open}{given}{close}"), put);
                        assert_eq!(out.replace(' ', ""), format!("{{{}}}", all.join(",")), "{given}");
                    }
                }
            }
        }
        for (object, put, expected) in [
            ("{}", "", "{}"),
            ("{ }", "\"p\":1,", "{\"p\":1 }"),
            (r#"{"k":1}"#, "", r#"{"k":1}"#),
            ("{\n\"k\":1,\r\n\"r\":2}", "", "{ \"k\":1}"),
            (r#"{"\u0072":1,"k":2}"#, "", r#"{"k":2}"#),
            (r#"{"r":1,"r":2}"#, "\"p\":1,", r#"{"p":1}"#),
        ] {
            assert_eq!(edited(object, put), expected, "{object}");
        }
    }

    #[test]
    fn objects_are_filtered() {
        let only = |object: &str| {
            filtered(object, 0..object.len(), |name, value| (name != "r").then(|| object[value].to_owned()))
        };
        for (object, expected) in [
            (r#"{"a":1,"r":2,"\u0062":[3]}"#, r#"{"a":1,"\u0062":[3]}"#),
            (r#"{ "r" : 2 }"#, "{}"),
            ("{}", "{}"),
            ("[1]", "{}"),
        ] {
            assert_eq!(only(object), expected);
        }
    }

    #[test]
    fn raw_json_becomes_one_line() {
        assert_eq!(one_line("{\r\n\"a\\n\":1}"), "{  \"a\\n\":1}");
        assert!(matches!(one_line("{}"), Cow::Borrowed("{}")));
    }
}
