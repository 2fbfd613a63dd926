//! JSON-RPC 2.0 messages as byte spans of their text: id, method, params, result, error.
//!
//! A message is validated once, as a whole (grammar, nesting, duplicate members), and after that
//! only sliced and spliced. Values that mcpport does not have to change are forwarded as received.
//! `tunnel` and `mcp` build on this module; it does not know what any method means.

pub mod edit;
mod error;
mod id;
mod scan;
mod strict;
mod text;
pub mod tolerant;

use std::borrow::Cow;

pub use error::{
    BUSY, CANCELLED, DOWN, HEADER_MISMATCH, INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST,
    METHOD_NOT_FOUND, MISSING_CAPABILITY, MODERN_BUSY, Malformed, NO_RESOURCE, PARSE_ERROR, RpcError,
    TIMED_OUT, UNSUPPORTED_VERSION,
};
pub use id::{decimal, is_same};
pub use scan::{elements, members};
pub use text::{Span, quote, unquote};

/// The kind of a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Has a method and no id.
    Notification,
    /// Has a method and an id.
    Request,
    /// Has a result or an error.
    Response,
}

/// A message, as spans of its text.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    text: &'a str,
    kind: Kind,
    id: Option<Span>,
    method: Option<Cow<'a, str>>,
    params: Option<Span>,
    result: Option<Span>,
    error: Option<Span>,
    /// The span of a `null` that stands in place of params.
    null_params: Option<Span>,
    /// Some readers mistake a key of the envelope for a JSON-RPC member.
    twin: bool,
    line_breaks: bool,
    lone_surrogate: bool,
    escaped_letter: bool,
    stateless: bool,
}

/// Where the params of a message are, or would be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ParamsPlace {
    /// An object.
    Object(Span),
    /// An array.
    Array(Span),
    /// A `null` in place of params. [`Message::splice`] writes it as `{}` unless an edit replaces it.
    Null(Span),
    /// There are none. A member `,"params":…` can be inserted at `end`, behind all others.
    Absent {
        /// The position of the closing brace of the message.
        end: usize,
    },
}

impl<'a> Message<'a> {
    /// Parses one message. Members that JSON-RPC does not define are kept.
    ///
    /// # Errors
    /// [`Malformed`] when the text is not a single JSON object that forms a message.
    pub fn read(text: &'a str) -> Result<Self, Malformed> {
        Self::scan(text, false)
    }

    /// Parses one message from a client. Rejects it if two JSON readers could disagree about a
    /// value that the gateway's decisions depend on.
    ///
    /// # Errors
    /// Those of [`Message::read`]; also [`Malformed::Twin`], [`Malformed::Duplicate`] or
    /// [`Malformed::Surrogate`] for members of the envelope and for params that the gateway reads.
    pub fn read_strict(text: &'a str) -> Result<Self, Malformed> {
        Self::scan(text, true)
    }

    fn scan(text: &'a str, strict: bool) -> Result<Self, Malformed> {
        let mut parts = Parts::default();
        let scanned = scan::envelope(text, strict, &mut |key, value| parts.take(text, key, value))?;
        let mut message = parts.into_message(text)?;
        (message.line_breaks, message.lone_surrogate) = (scanned.line_breaks, scanned.lone_surrogate);
        (message.escaped_letter, message.stateless) = (scanned.escaped_letter, scanned.stateless);
        Ok(message)
    }

    /// Whether any string has a lone surrogate. UTF-8 cannot encode it, and the servers of most
    /// SDKs drop such a message without a response.
    pub fn has_lone_surrogate(&self) -> bool {
        self.lone_surrogate
    }

    /// Whether any string has a lowercase ASCII letter written as an escape. A search for a word in
    /// the text may miss that word.
    pub fn has_escaped_letter(&self) -> bool {
        self.escaped_letter
    }

    /// Whether `params._meta` names a protocol version, as in every request of MCP 2026-07-28. Always
    /// false for a message from [`Message::read`], which does not look into the params.
    pub fn is_stateless(&self) -> bool {
        self.stateless
    }

    /// Whether some readers take another member for a JSON-RPC member, because they ignore the case
    /// of names. Always false for a message from [`Message::read_strict`].
    pub fn has_twin(&self) -> bool {
        self.twin
    }

    /// Whether the text can be passed on as it is: on one line, as events and everything that is
    /// stored require it, and without a twin.
    pub fn is_clean(&self) -> bool {
        !self.line_breaks && !self.twin
    }

    /// Returns the whole text.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Returns the kind: request, notification or response.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the id as written (`1`, `"1"`, `1.0`). `None` for a notification, and for an error
    /// response without an id.
    pub fn id(&self) -> Option<&'a str> {
        self.id.clone().map(|span| &self.text[span])
    }

    /// Returns the method; empty for a response.
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or_default()
    }

    /// Returns the params as written. `None` also for `null`, which [`Message::splice`] and
    /// [`Message::with_id`] write as `{}`.
    pub fn params(&self) -> Option<&'a str> {
        self.params.clone().map(|span| &self.text[span])
    }

    /// Returns where the params are, or would be.
    pub fn params_place(&self) -> ParamsPlace {
        match (&self.params, &self.null_params) {
            (Some(span), _) if self.text[span.clone()].starts_with('{') => ParamsPlace::Object(span.clone()),
            (Some(span), _) => ParamsPlace::Array(span.clone()),
            (None, Some(null)) => ParamsPlace::Null(null.clone()),
            (None, None) => ParamsPlace::Absent { end: self.text.rfind('}').unwrap_or(self.text.len()) },
        }
    }

    /// Returns the result as written.
    pub fn result(&self) -> Option<&'a str> {
        self.result.clone().map(|span| &self.text[span])
    }

    /// Returns the span of the result.
    pub fn result_span(&self) -> Option<Span> {
        self.result.clone()
    }

    /// Returns the error as written.
    pub fn error(&self) -> Option<&'a str> {
        self.error.clone().map(|span| &self.text[span])
    }

    /// Returns the span of the error.
    pub fn error_span(&self) -> Option<Span> {
        self.error.clone()
    }

    /// Returns the span of a value in the params, found by its path of member names.
    ///
    /// # Errors
    /// [`Malformed::Duplicate`] when a name on the path occurs twice, since two readers could then
    /// disagree.
    pub fn param(&self, path: &[&str]) -> Result<Option<Span>, Malformed> {
        match self.params.clone() {
            Some(span) => find(self.text, span, path),
            None => Ok(None),
        }
    }

    /// Returns the text as one line, with the values at the given spans replaced. `edits` must be
    /// in text order.
    pub fn splice(&self, edits: &[(Span, &str)]) -> String {
        let grown: usize = edits.iter().map(|(_, new)| new.len()).sum();
        let mut out = String::with_capacity(self.text.len() + grown);
        let mut from = 0;
        for (span, new) in edits {
            self.copy(from..span.start, &mut out);
            out.push_str(new);
            from = span.end;
        }
        self.copy(from..self.text.len(), &mut out);
        out
    }

    /// Returns the span of the id.
    pub fn id_span(&self) -> Option<Span> {
        self.id.clone()
    }

    /// Returns the message as one line, with another id. A message without an id gets none.
    pub fn with_id(&self, id: &str) -> String {
        match self.id.clone() {
            Some(span) => self.splice(&[(span, id)]),
            None => self.splice(&[]),
        }
    }

    /// Copies a part of the text. Writes `{}` for params that are `null`, which SDKs reject.
    fn copy(&self, span: Span, out: &mut String) {
        let inside = |null: &&Span| span.start <= null.start && null.end <= span.end;
        match self.null_params.as_ref().filter(inside) {
            None => self.copy_as_is(span, out),
            Some(null) => {
                self.copy_as_is(span.start..null.start, out);
                out.push_str("{}");
                self.copy_as_is(null.end..span.end, out);
            }
        }
    }

    /// Copies a part of the text with line breaks replaced by spaces. Line breaks can only occur
    /// between tokens, where a space is equivalent (RFC 8259, section 2).
    fn copy_as_is(&self, span: Span, out: &mut String) {
        let part = self.text.get(span).unwrap_or_default();
        if self.line_breaks {
            out.extend(part.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
        } else {
            out.push_str(part);
        }
    }
}

/// The members of the envelope found so far.
#[derive(Default)]
struct Parts {
    version: Option<Span>,
    id: Option<Span>,
    method: Option<Span>,
    params: Option<Span>,
    result: Option<Span>,
    error: Option<Span>,
    twin: bool,
}

impl Parts {
    fn take(&mut self, text: &str, key: Span, value: Span) -> Result<(), Malformed> {
        let slot = match unquote(&text[key.clone()]).as_deref() {
            Some("jsonrpc") => &mut self.version,
            Some("id") => &mut self.id,
            Some("method") => &mut self.method,
            Some("params") => &mut self.params,
            Some("result") => &mut self.result,
            Some("error") => &mut self.error,
            _ => {
                self.twin |= strict::is_twin(&text[key.start + 1..key.end - 1]);
                return Ok(());
            }
        };
        match slot.replace(value) {
            None => Ok(()),
            Some(_) => Err(Malformed::Duplicate),
        }
    }

    fn into_message(mut self, text: &str) -> Result<Message<'_>, Malformed> {
        let null_params = self.params.take_if(|span| &text[span.clone()] == "null");
        let has = |span: &Option<Span>, allowed: &[u8]| match span {
            Some(span) => text.as_bytes().get(span.start).is_some_and(|first| allowed.contains(first)),
            None => true,
        };
        let null_id = self.id.as_ref().is_some_and(|id| &text[id.clone()] == "null");
        let kind = match (&self.method, &self.id, &self.result, &self.error) {
            (Some(_), Some(_), None, None) if !null_id => Kind::Request,
            (Some(_), None, None, None) => Kind::Notification,
            (None, Some(_), Some(_), None) if !null_id => Kind::Response,
            (None, _, None, Some(_)) => Kind::Response,
            _ => return Err(Malformed::Envelope),
        };
        let version = self.version.as_ref().map(|span| &text[span.clone()]);
        let sound = version == Some("\"2.0\"")
            && (null_id || has(&self.id, b"\"-0123456789"))
            && has(&self.method, b"\"")
            && has(&self.params, b"{[")
            && has(&self.error, b"{");
        if !sound {
            return Err(Malformed::Envelope);
        }
        let method = self.method.and_then(|span| unquote(&text[span]));
        let id = self.id.filter(|_| !null_id);
        Ok(Message {
            text,
            kind,
            id,
            method,
            params: self.params,
            result: self.result,
            error: self.error,
            null_params,
            twin: self.twin,
            line_breaks: false,
            lone_surrogate: false,
            escaped_letter: false,
            stateless: false,
        })
    }
}

/// Returns the span of a whole member, given the span of its value. Includes one adjacent comma, so
/// that the object is still valid JSON once the span is removed. The member's name must not contain
/// a quote.
pub fn whole_member(text: &str, value: Span) -> Span {
    let before = |end: usize| text.get(..end).unwrap_or_default().trim_end();
    let key = before(value.start);
    let key = key.strip_suffix(':').unwrap_or(key).trim_end();
    let start = key.strip_suffix('"').and_then(|name| name.rfind('"')).unwrap_or(key.len());
    if let Some(earlier) = before(start).strip_suffix(',') {
        return earlier.len()..value.end;
    }
    let rest = text.get(value.end..).unwrap_or_default();
    let end = rest.trim_start().strip_prefix(',').map_or(value.end, |later| text.len() - later.len());
    start..end
}

/// Returns the span of the object that makes up the whole text. `None` when the text is not a JSON
/// object within [`crate::limits::JSON_DEPTH`].
pub fn object(text: &str) -> Option<Span> {
    scan::envelope(text, false, &mut |_, _| Ok(())).ok()?;
    Some(text.find('{')?..text.rfind('}')? + 1)
}

/// Whether the text is a single JSON value.
fn is_value(text: &str) -> bool {
    scan::value(text)
}

/// Finds a value in validated JSON, by member names from the value at `span` inwards.
///
/// # Errors
/// [`Malformed::Duplicate`] when a name on the path occurs twice.
pub fn find(text: &str, span: Span, path: &[&str]) -> Result<Option<Span>, Malformed> {
    let mut here = span;
    for name in path {
        let mut found = None;
        for (key, value) in members(text, here.clone()) {
            if unquote(&text[key]).as_deref() == Some(name) && found.replace(value).is_some() {
                return Err(Malformed::Duplicate);
            }
        }
        match found {
            Some(value) => here = value,
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

/// Builds a request. `id` and `params` are raw JSON.
pub fn request(id: &str, method: &str, params: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":{},\"params\":{params}}}", quote(method))
}

/// Builds a notification. `params` is raw JSON.
pub fn notification(method: &str, params: Option<&str>) -> String {
    let mut out = format!("{{\"jsonrpc\":\"2.0\",\"method\":{}", quote(method));
    if let Some(params) = params {
        out.push_str(",\"params\":");
        out.push_str(params);
    }
    out.push('}');
    out
}

/// Builds a response with a result. `id` and `result` are raw JSON.
pub fn result(id: &str, result: &str) -> String {
    let mut out = String::with_capacity(result.len() + id.len() + 40);
    out.push_str("{\"jsonrpc\":\"2.0\",\"id\":");
    out.push_str(id);
    out.push_str(",\"result\":");
    out.push_str(result);
    out.push('}');
    out
}

/// Builds a response with an error. `id` is raw JSON; `null` when the id of the request could not
/// be read.
pub fn error(id: &str, code: i64, message: &str) -> String {
    error_with_data(id, code, message, None)
}

impl RpcError {
    /// Builds the response to a request. `id` is raw JSON; `null` when the id of the request could
    /// not be read.
    pub fn response(&self, id: &str) -> String {
        error_with_data(id, self.code, &self.message, self.data.as_deref())
    }

    /// Returns the error object as JSON.
    pub fn object(&self) -> String {
        error_object(self.code, &self.message, self.data.as_deref())
    }
}

/// Same as [`error()`], with additional data (raw JSON) in the error object.
fn error_with_data(id: &str, code: i64, message: &str, data: Option<&str>) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{}}}", error_object(code, message, data))
}

fn error_object(code: i64, message: &str, data: Option<&str>) -> String {
    let mut out = format!("{{\"code\":{code},\"message\":{}", quote(message));
    if let Some(data) = data {
        out.push_str(",\"data\":");
        out.push_str(data);
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        let kind = |text| Message::read(text).map(|m| m.kind());
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":0,"method":"a"}"#), Ok(Kind::Request));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","method":"a","params":{}}"#), Ok(Kind::Notification));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":"x","result":null}"#), Ok(Kind::Response));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","id":null,"error":{}}"#), Ok(Kind::Response));
        assert_eq!(kind(r#"{"jsonrpc":"2.0","error":{}}"#), Ok(Kind::Response));
    }

    #[test]
    fn refusals() {
        use Malformed::*;
        for (text, why) in [
            ("", Syntax),
            ("{", Syntax),
            ("nul", Syntax),
            ("{} x", Syntax),
            ("\u{feff}{}", Syntax),
            ("{\"a\":01}", Syntax),
            ("{\"id\":1,\"id\":2}}", Syntax),
            ("{\"a\":\"\n\"}", Syntax),
            ("[]", Batch),
            ("  [{}]", Batch),
            ("1", NotObject),
            ("\"x\"", NotObject),
            ("{}", Envelope),
            (r#"{"id":1,"method":"a"}"#, Envelope),
            (r#"{"jsonrpc":"1.0","id":1,"method":"a"}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":null,"method":"a"}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":{},"method":"a"}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":true,"method":"a"}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"method":1}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a","params":1}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"method":"a","result":1}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"result":1,"error":{}}"#, Envelope),
            (r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"a"}"#, Duplicate),
            (r#"{"jsonrpc":"2.0","id":1,"\u0069d":1,"method":"a"}"#, Duplicate),
        ] {
            assert_eq!(Message::read(text).err(), Some(why), "{text}");
        }
    }

    #[test]
    fn client_messages_have_no_case_twins() {
        let params = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
        let envelope = |member: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m",{member}}}"#);
        let names = |names: &[&str], text: &dyn Fn(&str) -> String| -> Vec<String> {
            names.iter().map(|name| text(&format!(r#""{name}":"x""#))).collect()
        };
        let at_top = ["ID", "Id", "i\\u0044", "\u{131}d", "METHOD", "Params", "param\u{17f}", "param\\u017f"];
        let at_top = [&at_top[..], &["JSONRPC", "j\u{17f}onrpc", "Result", "eRror", "id\\u0000x"]].concat();
        let in_params = ["_Meta", "Cursor", "LEVEL", "Name", "ProgressToken", "progressTo\u{212a}en"];
        let in_params =
            [&in_params[..], &["progressTo\\u212Aen", "Ref", "RequestId", "TaskId", "ta\u{17f}kId"]];
        let in_params = [&in_params.concat()[..], &["ta\\u017FkI\\u0064", "taskid", "Uri", "URI"]].concat();
        let mut refused = names(&at_top, &envelope);
        refused.extend(names(&in_params, &|member| params(&format!("{{{member}}}"))));
        refused.extend(names(&["taskId"], &|member| params(&format!(r#"{{{member},"TASKID":"y"}}"#))));
        for inner in ["_meta", "\\u005fmeta"] {
            let twins = ["progresstoken", "progre\u{17f}\u{17f}Token", "progressTo\\u212aen"];
            refused.extend(names(&twins, &|member| params(&format!(r#"{{"{inner}":{{"a":[],{member}}}}}"#))));
        }
        let keys = ["protocolVersion", "clientCapabilities", "clientInfo", "logLevel", "subscriptionId"];
        for key in keys.map(|key| format!("io.modelcontextprotocol/{key}")) {
            refused.push(params(&format!(r#"{{"_meta":{{"{}":1}}}}"#, key.to_ascii_uppercase())));
            refused.push(params(&format!(r#"{{"_meta":{{"{}":"\u0000"}}}}"#, key)));
        }
        let twins = ["Arguments", "inputresponses", "requeststate", "Notifications"];
        refused.extend(names(&twins, &|member| params(&format!("{{{member}}}"))));
        let twins = ["Type", "NAME", "urI"];
        refused.extend(names(&twins, &|member| params(&format!(r#"{{"ref":{{{member}}}}}"#))));
        refused.push(params(r#"{"taskId":"a\u0000"}"#));
        for text in &refused {
            assert_eq!(Message::read_strict(text).err(), Some(Malformed::Twin), "{text}");
        }
        for twice in [
            r#"{"uri":"a","ur\u0069":"b"}"#,
            r#"{"_meta":{"progressToken":1,"progressToken":1}}"#,
            r#"{"_meta":{"io.modelcontextprotocol/logLevel":1,"io.modelcontextprotocol/logLevel":1}}"#,
            r#"{"requestState":"a","inputResponses":{},"requestState":"a"}"#,
            r#"{"arguments":{},"argument\u0073":{}}"#,
        ] {
            assert_eq!(Message::read_strict(&params(twice)).err(), Some(Malformed::Duplicate), "{twice}");
        }
    }

    #[test]
    fn members_outside_the_protocol_may_have_any_name() {
        for params in [
            r#"{"name":"t","arguments":{"Name":1,"name":2,"ID":3,"taskId":4,"TaskId":5,"x":"\u0000"}}"#,
            r#"{"names":1,"nam":2,"task_id":3,"i":4,"_meta":{"Name":1,"progress":2},"ref":{"Uris":1}}"#,
            r#"{"task\u0049d":"a","\u005fmeta":{"progress\u0054oken":1},"REFS":{},"":0,"\u00e9":1}"#,
            r#"{"_meta":"ProgressToken","ref":["Uri"],"x":{"_meta":{"ProgressToken":1}}}"#,
            r#"[{"Name":1,"name":1}]"#,
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","x":{{"ID":1}},"id":1,"method":"m","params":{params}}}"#);
            let message = Message::read_strict(&text);
            assert_eq!(message.as_ref().map(Message::params), Ok(Some(params)), "{text}");
            assert!(!message.is_ok_and(|message| message.has_lone_surrogate()));
        }
    }

    #[test]
    fn twins_in_messages_of_servers_are_noticed_and_not_read() {
        for twin in ["ID", "i\\u0044", "\u{131}d", "RESULT", "Error", "METHOD", "param\u{17f}", "id\\u0000"] {
            for text in [
                format!(r#"{{"jsonrpc":"2.0","{twin}":2,"id":1,"result":{{}}}}"#),
                format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{}},"{twin}":2}}"#),
            ] {
                let message = Message::read(&text).unwrap();
                assert_eq!((message.id(), message.result()), (Some("1"), Some("{}")), "{text}");
                assert!(message.has_twin(), "{text}");
            }
        }
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"ID":2},"idx":1,"_meta":{}}"#,
            r#"{"jsonrpc":"2.0","i\u0064":1,"result":{}}"#,
        ] {
            assert!(!Message::read(text).unwrap().has_twin(), "{text}");
        }
    }

    #[test]
    fn half_of_a_surrogate_pair_is_found() {
        for half in
            ["\\ud800", "\\uDFFF", "\\ud83dx", "\\ud83d\\u0041", "\\ud83d\\ud83d\\ude00", "\\ude00\\ud83d"]
        {
            for text in [
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{half}"}}"#),
                format!(r#"{{"jsonrpc":"2.0","id":"{half}","method":"m"}}"#),
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","{half}":1}}"#),
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","x":"{half}"}}"#),
            ] {
                assert_eq!(Message::read_strict(&text).err(), Some(Malformed::Surrogate), "{text}");
            }
            for params in [
                format!(r#"{{"a":["{half}"],"b":"c"}}"#),
                format!(r#"{{"{half}":1}}"#),
                format!(r#"["{half}"]"#),
                format!(r#"{{"_meta":{{"progressToken":"{half}"}},"z":"z"}}"#),
            ] {
                let text = format!(r#"{{"jsonrpc":"2.0","params":{params},"id":1,"method":"m"}}"#);
                assert!(Message::read_strict(&text).unwrap().has_lone_surrogate(), "{text}");
            }
        }
        let whole = r#"{"jsonrpc":"2.0","id":"\ud83d\ude00","method":"\uD83D\uDE00","params":{"\ud83d\ude00":"\\ud800"}}"#;
        assert!(!Message::read_strict(whole).unwrap().has_lone_surrogate());
    }

    #[test]
    fn null_params_count_as_absent() {
        let text = r#"{"jsonrpc":"2.0","params": null ,"id":1,"method":"m"}"#;
        let message = Message::read(text).unwrap();
        assert_eq!((message.params(), message.param(&["x"])), (None, Ok(None)));
        assert_eq!(message.with_id("2"), r#"{"jsonrpc":"2.0","params": {} ,"id":2,"method":"m"}"#);
        assert_eq!(message.splice(&[]), text.replace("null", "{}"));
    }

    #[test]
    fn params_can_be_added_or_extended() {
        for (text, expected) in [
            (
                r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#,
                r#"{"jsonrpc":"2.0","id":1,"method":"m","params":{"x":1}}"#,
            ),
            (
                "{\"method\":\"m}\" ,\n\"jsonrpc\":\"2.0\" }\r\n",
                "{\"method\":\"m}\" , \"jsonrpc\":\"2.0\" ,\"params\":{\"x\":1}}  ",
            ),
            (
                r#"{"jsonrpc":"2.0","params": null ,"method":"m"}"#,
                r#"{"jsonrpc":"2.0","params": {"x":1} ,"method":"m"}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","params": {} ,"method":"m"}"#,
                r#"{"jsonrpc":"2.0","params": {"x":1} ,"method":"m"}"#,
            ),
            (
                r#"{"jsonrpc":"2.0","params": [1] ,"method":"m"}"#,
                r#"{"jsonrpc":"2.0","params": [1] ,"method":"m"}"#,
            ),
        ] {
            let message = Message::read_strict(text).unwrap();
            let out = match message.params_place() {
                ParamsPlace::Object(span) => message.splice(&[(span.start + 1..span.start + 1, r#""x":1"#)]),
                ParamsPlace::Null(span) => message.splice(&[(span, r#"{"x":1}"#)]),
                ParamsPlace::Absent { end } => message.splice(&[(end..end, r#","params":{"x":1}"#)]),
                ParamsPlace::Array(span) => {
                    assert_eq!(&text[span], "[1]");
                    message.splice(&[])
                }
            };
            assert_eq!(out, expected);
            assert!(Message::read(&out).is_ok(), "{out}");
        }
    }

    #[test]
    fn stateless_requests_are_known_by_the_version_in_their_meta() {
        const KEY: &str = "io.modelcontextprotocol/protocolVersion";
        for (params, stateless) in [
            (format!(r#"{{"_meta":{{"{KEY}":"2026-07-28"}}}}"#), true),
            (format!(r#"{{"x":{{}},"_meta":{{"a":[1],"{}":null}}}}"#, KEY.replace('.', "\\u002e")), true),
            (format!(r#"{{"_meta":{{"x":{{"{KEY}":"2026-07-28"}}}},"{KEY}":1}}"#), false),
            (format!(r#"{{"x":{{"_meta":{{"{KEY}":"2026-07-28"}}}}}}"#), false),
            (format!(r#"{{"_meta":["{KEY}"],"ref":{{"{KEY}":1}},"arguments":{{"{KEY}":1}}}}"#), false),
            (format!(r#"{{"_meta":{{"{KEY}s":1}}}}"#), false),
            (String::from("{}"), false),
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{params}}}"#);
            assert_eq!(
                Message::read_strict(&text).map(|message| message.is_stateless()),
                Ok(stateless),
                "{text}"
            );
            assert!(!Message::read(&text).unwrap().is_stateless());
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |n: usize| {
            let (open, close) = ("[".repeat(n), "]".repeat(n));
            format!(r#"{{"jsonrpc":"2.0","method":"a","params":{open}{close}}}"#)
        };
        assert!(Message::read(&nested(127)).is_ok());
        assert_eq!(Message::read(&nested(128)).err(), Some(Malformed::Depth));
        assert_eq!(Message::read(&nested(100_000)).err(), Some(Malformed::Depth));
    }

    #[test]
    fn ids_come_back_as_written() {
        for id in ["1", "\"1\"", "1.0", "9223372036854775808", "\"\\u0061\"", "-0", "1e3"] {
            let text = format!("{{\"jsonrpc\":\"2.0\", \"id\" : {id} ,\"result\":{{}}}}");
            let message = Message::read(&text).unwrap();
            assert_eq!(message.id(), Some(id));
            assert_eq!(message.with_id("7"), text.replace(&format!(" {id} "), " 7 "));
        }
    }

    #[test]
    fn params_are_found_and_spliced() {
        let text = "{\"jsonrpc\":\"2.0\",\"x\":[1],\"id\":5,\r\n\"method\":\"tools/call\",\"params\":{\"name\":\"a_b\",\"_meta\":{\"progressToken\":\"t\"}}}";
        let message = Message::read(text).unwrap();
        let name = message.param(&["name"]).unwrap().unwrap();
        let token = message.param(&["_meta", "progressToken"]).unwrap().unwrap();
        assert_eq!(&text[name.clone()], "\"a_b\"");
        assert!(message.param(&["_meta", "none"]).unwrap().is_none());
        assert!(message.param(&["name", "deeper"]).unwrap().is_none());
        let spliced = message.splice(&[(message.id_span().unwrap(), "17"), (name, "\"b\""), (token, "17")]);
        assert_eq!(
            spliced,
            "{\"jsonrpc\":\"2.0\",\"x\":[1],\"id\":17,  \"method\":\"tools/call\",\"params\":{\"name\":\"b\",\"_meta\":{\"progressToken\":17}}}"
        );
    }

    #[test]
    fn duplicate_params_are_rejected() {
        let text = r#"{"jsonrpc":"2.0","id":5,"method":"m","params":{"name":"a","n\u0061me":"b"}}"#;
        let message = Message::read(text).unwrap();
        assert_eq!(message.param(&["name"]), Err(Malformed::Duplicate));
    }

    #[test]
    fn built_messages_read_back() {
        for text in [
            request("1", "a\"b", "{}"),
            notification("n", None),
            notification("n", Some("{}")),
            result("\"x\"", "[1]"),
            error("null", BUSY, "too\nmany"),
        ] {
            assert!(Message::read(&text).is_ok(), "{text}");
        }
    }
}
