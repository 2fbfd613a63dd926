//! Edits to the messages that pass between a client and a server.
//!
//! Clients and servers never see each other's ids. The id that [`crate::hub::mux`] assigns replaces
//! the client's request id and its progress token. Everything else is forwarded as
//! [`Message::splice`] copies it. This module does no I/O; `hub` queues the messages.

use crate::jsonrpc::{Malformed, Message, Span, notification, quote, whole_member};

/// Returns a client's request as it is sent to the server: with our id, the server's own name for
/// the item, our progress token instead of the client's, and without an empty cursor.
pub fn request(message: &Message<'_>, id: u64, name: Option<(Span, &str)>, token: Option<Span>) -> String {
    let number = id.to_string();
    let name = name.map(|(span, name)| (span, quote(name)));
    let id = message.id_span().map(|span| (span, number.as_str()));
    let token = token.map(|span| (span, number.as_str()));
    let name = name.as_ref().map(|(span, name)| (span.clone(), name.as_str()));
    let cursor = empty_cursor(message).map(|span| (span, ""));
    let mut edits: Vec<(Span, &str)> = [id, token, name, cursor].into_iter().flatten().collect();
    edits.sort_unstable_by_key(|(span, _)| span.start);
    message.splice(&edits)
}

/// Returns the span of the `cursor` member of a list request if its value is `null` or an empty
/// string. Some clients request the first page that way, and servers of several SDKs reject it.
fn empty_cursor(message: &Message<'_>) -> Option<Span> {
    let ("tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" | "tasks/list") =
        message.method()
    else {
        return None;
    };
    let value = message.param(&["cursor"]).ok().flatten()?;
    let is_empty = matches!(message.text().get(value.clone()), Some("null" | "\"\""));
    is_empty.then(|| whole_member(message.text(), value))
}

/// Returns the span of a request's progress token. `None` if there is none, or if its type is not
/// one that MCP allows (string or number).
///
/// # Errors
/// [`Malformed::Duplicate`] when a member name on the path occurs twice.
pub fn token(message: &Message<'_>) -> Result<Option<Span>, Malformed> {
    let span = message.param(&["_meta", "progressToken"])?;
    let first = |span: &Span| message.text().as_bytes().get(span.start).copied();
    Ok(span.filter(|span| matches!(first(span), Some(b'"' | b'-' | b'0'..=b'9'))))
}

/// Returns a client's `notifications/cancelled` as it is sent to the server. `span` is the span of
/// the client's request id.
pub fn cancellation(message: &Message<'_>, span: Span, id: u64) -> String {
    message.splice(&[(span, &id.to_string())])
}

/// Builds a `notifications/cancelled` that the gateway sends on its own behalf.
pub fn cancelled(id: u64, reason: &str) -> String {
    let params = format!("{{\"requestId\":{id},\"reason\":{}}}", quote(reason));
    notification("notifications/cancelled", Some(&params))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_id_the_name_and_the_token_change() {
        let text = r#"{"params":{"_meta":{"x":1.0,"progressToken":0},"name":"a_t","arguments":{"name":"a_t"}},"id":"i","method":"tools/call","jsonrpc":"2.0"}"#;
        let message = Message::read(text).unwrap();
        let name = message.param(&["name"]).unwrap().map(|span| (span, "t"));
        let sent = request(&message, 17, name, token(&message).unwrap());
        let expected = text
            .replace("Token\":0", "Token\":17")
            .replacen("\"a_t\"", "\"t\"", 1)
            .replace("\"id\":\"i\"", "\"id\":17");
        assert_eq!(sent, expected);
    }

    #[test]
    fn empty_cursors_are_left_out() {
        let sent = |method: &str, params: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            let message = Message::read_strict(&text).unwrap();
            let sent = request(&message, 7, None, token(&message).unwrap());
            let (message, params) =
                (Message::read(&sent).unwrap(), sent.split_once(r#""params":"#).unwrap().1);
            assert_eq!(message.id(), Some("7"), "{sent}");
            params.strip_suffix('}').unwrap().to_owned()
        };
        for (params, expected) in [
            (r#"{"cursor":null}"#, "{}"),
            (r#"{"cursor":""}"#, "{}"),
            (r#"{ "cursor" : null }"#, "{  }"),
            (r#"{"cursor":null,"x":1}"#, r#"{"x":1}"#),
            (r#"{"cursor" : "" , "x":1}"#, r#"{ "x":1}"#),
            (r#"{"x":1,"cursor":null}"#, r#"{"x":1}"#),
            (r#"{"x":"," ,  "cursor":"","y":2}"#, r#"{"x":"," ,"y":2}"#),
            (r#"{"\u0063ursor":null,"x":1}"#, r#"{"x":1}"#),
            ("{\n\"x\": 1,\r\n\"cursor\":\t\"\"\n}", "{ \"x\": 1 }"),
            (r#"{"_meta":{"progressToken":"t"},"cursor":null}"#, r#"{"_meta":{"progressToken":7}}"#),
            (r#"{"cursor":null,"_meta":{"progressToken":"t"}}"#, r#"{"_meta":{"progressToken":7}}"#),
            (r#"{"cursor":"x"}"#, r#"{"cursor":"x"}"#),
            (r#"{"cursor":" "}"#, r#"{"cursor":" "}"#),
            (r#"{"cursor":0}"#, r#"{"cursor":0}"#),
            (r#"{"x":{"cursor":null}}"#, r#"{"x":{"cursor":null}}"#),
            (r#"["cursor",null]"#, r#"["cursor",null]"#),
        ] {
            for method in
                ["tools/list", "prompts/list", "resources/list", "resources/templates/list", "tasks/list"]
            {
                assert_eq!(sent(method, params), expected, "{method} {params}");
            }
        }
        assert_eq!(sent("vendor/list", r#"{"cursor":null}"#), r#"{"cursor":null}"#);
        assert_eq!(sent("tools/call", r#"{"name":"t","cursor":""}"#), r#"{"name":"t","cursor":""}"#);
    }

    #[test]
    fn invalid_progress_tokens_stay_unchanged() {
        for (raw, sound) in [
            ("0", true),
            ("-1.5", true),
            ("\"\"", true),
            ("null", false),
            ("{\n}", false),
            ("[1]", false),
            ("true", false),
        ] {
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{{"progressToken":{raw}}}}}}}"#
            );
            let found = token(&Message::read(&text).unwrap()).unwrap();
            assert_eq!(found.map(|span| text[span].to_owned()), sound.then(|| raw.to_owned()));
        }
    }

    #[test]
    fn notifications_get_the_other_side_s_number() {
        let text = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"i","reason":"no\n"}}"#;
        let message = Message::read(text).unwrap();
        let span = message.param(&["requestId"]).unwrap().unwrap();
        assert_eq!(cancellation(&message, span, 3), text.replace("\"i\"", "3"));
        let ours = cancelled(3, "a \"reason\"");
        assert_eq!(Message::read(&ours).unwrap().method(), "notifications/cancelled");
    }
}
