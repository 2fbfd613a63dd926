//! The changes that a message needs on its way: another id, another progress token, another name. Pure; everything
//! else in the message stays as it was written.

use crate::jsonrpc::{self, Message, Span, quote};

/// A value to be replaced by a text, which gets quoted.
pub type Rename<'a> = (Span, &'a str);

/// A request as a server gets it: the mux's id, the same number as progress token (where there is one), the server's own
/// name for what is asked for.
pub fn request(message: &Message<'_>, id: u64, token: Option<Span>, rename: Option<&Rename<'_>>) -> String {
    let number = id.to_string();
    let renamed = rename.map(|(span, name)| (span.clone(), quote(name)));
    let id = message.id_span().map(|span| (span, number.as_str()));
    let token = token.map(|span| (span, number.as_str()));
    let renamed = renamed.as_ref().map(|(span, name)| (span.clone(), name.as_str()));
    let mut edits: Vec<(Span, &str)> = [id, token, renamed].into_iter().flatten().collect();
    edits.sort_unstable_by_key(|(span, _)| span.start);
    message.splice(&edits)
}

/// A notification that a request is cancelled. `id` is raw.
pub fn cancelled(id: &str, reason: &str) -> String {
    let params = format!("{{\"requestId\":{id},\"reason\":{}}}", quote(reason));
    jsonrpc::notification("notifications/cancelled", Some(&params))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_to_change_changes() {
        let text = r#"{"jsonrpc":"2.0","params":{"arguments":{"name":"x"},"name":"s_t","_meta":{"progressToken":"p","k":1}},"id":"a","method":"tools/call"}"#;
        let message = Message::read(text).unwrap();
        let name = message.param(&["name"]).unwrap().unwrap();
        let token = message.param(&["_meta", "progressToken"]).unwrap();
        assert_eq!(
            request(&message, 7, token, Some(&(name, "t"))),
            r#"{"jsonrpc":"2.0","params":{"arguments":{"name":"x"},"name":"t","_meta":{"progressToken":7,"k":1}},"id":7,"method":"tools/call"}"#
        );
    }
}
