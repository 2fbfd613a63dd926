//! What is changed in a message on its way between a client and a server; all else stays as it was written.
//!
//! Clients and servers never see each other's ids: the number that [`super::mux`] minted stands in for the
//! client's request id and for its progress token. Pure; `gateway` sends what comes out.

use crate::jsonrpc::{Malformed, Message, Span, notification, quote};

/// A client's request as the server gets it: under our id, with the server's own name for what is called, and our
/// progress token in the place of the client's.
pub fn request(message: &Message<'_>, id: u64, name: Option<(Span, &str)>, token: Option<Span>) -> String {
    let number = id.to_string();
    let name = name.map(|(span, name)| (span, quote(name)));
    let id = message.id_span().map(|span| (span, number.as_str()));
    let token = token.map(|span| (span, number.as_str()));
    let name = name.as_ref().map(|(span, name)| (span.clone(), name.as_str()));
    let mut edits: Vec<(Span, &str)> = [id, token, name].into_iter().flatten().collect();
    edits.sort_unstable_by_key(|(span, _)| span.start);
    message.splice(&edits)
}

/// Where the progress token of a request stands; `None` when there is none that MCP allows (a text or a number).
///
/// # Errors
/// [`Malformed::Duplicate`] when that is ambiguous.
pub fn token(message: &Message<'_>) -> Result<Option<Span>, Malformed> {
    let span = message.param(&["_meta", "progressToken"])?;
    let first = |span: &Span| message.text().as_bytes().get(span.start).copied();
    Ok(span.filter(|span| matches!(first(span), Some(b'"' | b'-' | b'0'..=b'9'))))
}

/// A client's cancellation as the server gets it; `span` is where the client's request id stands.
pub fn cancellation(message: &Message<'_>, span: Span, id: u64) -> String {
    message.splice(&[(span, &id.to_string())])
}

/// A cancellation of our own.
pub fn cancelled(id: u64, reason: &str) -> String {
    let params = format!("{{\"requestId\":{id},\"reason\":{}}}", quote(reason));
    notification("notifications/cancelled", Some(&params))
}

/// Progress as the client gets it; `span` is where our token stands, `token` is the client's own, raw.
pub fn progress(message: &Message<'_>, span: Span, token: &str) -> String {
    message.splice(&[(span, token)])
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
    fn what_is_no_token_stays_as_it_is() {
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
        let text = r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":3,"progress":1}}"#;
        let message = Message::read(text).unwrap();
        let span = message.param(&["progressToken"]).unwrap().unwrap();
        assert_eq!(progress(&message, span, "\"t\""), text.replace(":3,", ":\"t\","));
    }
}
