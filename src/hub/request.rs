//! Client messages, parsed into what they ask for before any table is looked at.
//!
//! A message may have megabytes, so all scans of it are done here, without the lock of the hub. The
//! hub then only looks up names and routes. An error in the params is kept as a value, which the
//! hub reports in the order of its checks.

use super::{
    error::{CallError, LONE_SURROGATE},
    session::Scope,
};
use crate::{
    jsonrpc::{Kind, Message, Span, edit, unquote},
    limits,
    mcp::{listing::ListKind, log_level::Level},
};

/// The position of the client's name for an item in the message, and that name or URI.
pub type Named = (Span, String);

/// A request of a client.
#[derive(Debug)]
pub struct Request<'m> {
    /// The request as it was sent.
    pub message: &'m Message<'m>,
    /// Why it is refused whatever it asks for.
    pub refused: Option<CallError>,
    /// The position of its progress token.
    pub token: Result<Option<Span>, CallError>,
    /// What it asks for.
    pub what: What<'m>,
}

/// What a request asks for. A method that needs no parameters read, or that only its server knows,
/// is [`What::Other`].
#[derive(Debug, Eq, PartialEq)]
pub enum What<'m> {
    /// `ping`.
    Ping,
    /// `initialize`.
    Initialize(Result<InitializeParams<'m>, CallError>),
    /// `server/discover`, of the stateless protocol.
    Discover,
    /// `logging/setLevel`; `None` if the level is missing or unknown.
    SetLevel(Option<Level>),
    /// A list of all servers' items, from the cursor on.
    List(ListKind, Result<Option<String>, CallError>),
    /// `tools/call` by exposed name.
    Tool(Result<Named, CallError>),
    /// `prompts/get` by exposed name.
    Prompt(Result<Named, CallError>),
    /// A method about one resource.
    Resource(ResourceMethod, Result<Named, CallError>),
    /// `completion/complete` by exposed name.
    Complete(Result<Reference, CallError>),
    /// `tasks/get`, `tasks/result` or `tasks/cancel`, with the task's id.
    Task(Result<Option<String>, CallError>),
    /// Any other method.
    Other,
}

/// The params of `initialize` that the gateway keeps.
#[derive(Debug, Eq, PartialEq)]
pub struct InitializeParams<'m> {
    /// The requested protocol version; empty if there is none.
    pub version: String,
    /// `capabilities`, raw JSON.
    pub capabilities: &'m str,
    /// `clientInfo`, raw JSON.
    pub info: &'m str,
}

/// A method about one resource.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResourceMethod {
    /// `resources/read`.
    Read,
    /// `resources/subscribe`.
    Subscribe,
    /// `resources/unsubscribe`.
    Unsubscribe,
}

/// What a completion refers to.
#[derive(Debug, Eq, PartialEq)]
pub enum Reference {
    /// A prompt, by exposed name.
    Prompt(Named),
    /// A resource template, by URI.
    Template(Named),
}

impl<'m> Request<'m> {
    /// Parses a request of a client that sees `scope`.
    pub fn read(scope: &Scope, message: &'m Message<'m>) -> Self {
        match refused(message) {
            Some(why) => Self { message, refused: Some(why), token: Ok(None), what: What::Other },
            None => Self { message, refused: None, token: token(message), what: What::read(scope, message) },
        }
    }
}

/// Returns why a request is refused whatever it asks for. Id and method are limited in length
/// because both are kept while the call runs.
pub fn refused(message: &Message<'_>) -> Option<CallError> {
    match () {
        () if message.id().unwrap_or_default().len() > limits::ID_BYTES => Some(CallError::IdTooLong),
        () if message.method().len() > limits::METHOD_BYTES => Some(CallError::MethodTooLong),
        () if message.has_lone_surrogate() => Some(CallError::LoneSurrogate),
        () if is_notification(message.method()) => Some(CallError::NotificationWithId),
        () => None,
    }
}

fn token(message: &Message<'_>) -> Result<Option<Span>, CallError> {
    let token = edit::token(message)?;
    match &token {
        Some(span) if span.len() > limits::ID_BYTES => Err(CallError::TokenTooLong),
        _ => Ok(token),
    }
}

impl<'m> What<'m> {
    fn read(scope: &Scope, message: &'m Message<'m>) -> Self {
        match message.method() {
            "ping" => Self::Ping,
            "initialize" => Self::Initialize(InitializeParams::read(message)),
            "server/discover" => Self::Discover,
            "logging/setLevel" => Self::SetLevel(Level::of(message)),
            method => match scope {
                Scope::All => Self::of_aggregate(method, message),
                Scope::Server(_) => Self::of_server(method, message),
            },
        }
    }

    /// Parses a request at the endpoint of one server. It is passed on as it is, except that
    /// subscriptions are counted and the rights to tasks are checked.
    fn of_server(method: &str, message: &Message<'_>) -> Self {
        let subscription = |method| match string_param(message, &["uri"]) {
            // The server has to say what is wrong.
            Ok(None) => Self::Other,
            Ok(Some(named)) => Self::Resource(method, Ok(named)),
            Err(why) => Self::Resource(method, Err(why)),
        };
        match method {
            "resources/subscribe" => subscription(ResourceMethod::Subscribe),
            "resources/unsubscribe" => subscription(ResourceMethod::Unsubscribe),
            "tasks/get" | "tasks/result" | "tasks/cancel" => {
                Self::Task(string_param(message, &["taskId"]).map(|task| task.map(|(_, id)| id)))
            }
            _ => Self::Other,
        }
    }

    /// Parses a request at the aggregate of all servers.
    fn of_aggregate(method: &str, message: &Message<'_>) -> Self {
        if let Some(kind) = ListKind::of_method(method) {
            return Self::List(kind, cursor(message));
        }
        match method {
            "tools/call" => Self::Tool(needed_param(message, &["name"])),
            "prompts/get" => Self::Prompt(needed_param(message, &["name"])),
            "resources/read" => Self::Resource(ResourceMethod::Read, needed_uri(message, &["uri"])),
            "resources/subscribe" => Self::Resource(ResourceMethod::Subscribe, needed_uri(message, &["uri"])),
            "resources/unsubscribe" => {
                Self::Resource(ResourceMethod::Unsubscribe, needed_uri(message, &["uri"]))
            }
            "completion/complete" => Self::Complete(Reference::read(message)),
            _ => Self::Other,
        }
    }
}

impl<'m> InitializeParams<'m> {
    fn read(message: &'m Message<'m>) -> Result<Self, CallError> {
        let version = string_param(message, &["protocolVersion"])?.map(|(_, version)| version);
        let raw = |path: &[&str]| match message.param(path) {
            Ok(Some(span)) if span.len() <= limits::CLIENT_INFO_BYTES => &message.text()[span],
            _ => "{}",
        };
        let (capabilities, info) = (raw(&["capabilities"]), raw(&["clientInfo"]));
        Ok(Self { version: version.unwrap_or_default(), capabilities, info })
    }
}

impl Reference {
    fn read(message: &Message<'_>) -> Result<Self, CallError> {
        let kind = string_param(message, &["ref", "type"])?.map(|(_, kind)| kind);
        match kind.as_deref() {
            Some("ref/prompt") => needed_param(message, &["ref", "name"]).map(Self::Prompt),
            Some("ref/resource") => needed_uri(message, &["ref", "uri"]).map(Self::Template),
            _ => Err(CallError::UnknownReference),
        }
    }
}

/// Returns the cursor of a list request. Some clients send that of the first page as `null` or as
/// an empty string.
fn cursor(message: &Message<'_>) -> Result<Option<String>, CallError> {
    let is_null =
        matches!(message.param(&["cursor"]), Ok(Some(span)) if &message.text()[span.clone()] == "null");
    let cursor = if is_null { None } else { string_param(message, &["cursor"])? };
    Ok(cursor.map(|(_, cursor)| cursor).filter(|cursor| !cursor.is_empty()))
}

/// Returns a string parameter and its position in the message.
///
/// # Errors
/// The parameter appears more than once, or is not a string.
pub fn string_param(
    message: &Message<'_>,
    path: &'static [&'static str],
) -> Result<Option<Named>, CallError> {
    let Some(span) = message.param(path)? else { return Ok(None) };
    match unquote(&message.text()[span.clone()]) {
        Some(value) => Ok(Some((span, value.into_owned()))),
        None => Err(CallError::NotText { path }),
    }
}

fn needed_param(message: &Message<'_>, path: &'static [&'static str]) -> Result<Named, CallError> {
    let missing = || CallError::Missing { path, method: message.method().to_owned() };
    string_param(message, path)?.ok_or_else(missing)
}

fn needed_uri(message: &Message<'_>, path: &'static [&'static str]) -> Result<Named, CallError> {
    let named = needed_param(message, path)?;
    if named.1.len() > limits::URI_BYTES { Err(CallError::UriTooLong) } else { Ok(named) }
}

/// Where a notification of a client goes.
#[derive(Debug, Eq, PartialEq)]
pub enum Notification {
    /// Cancels the request whose id is at this position, if there is one.
    Cancel(Option<Span>),
    /// To the session's isolated instances. A shared server gets `initialized` from the gateway,
    /// which declared no roots and forwards none of the server's requests, so a client has no
    /// progress to report.
    Instances,
    /// To the session's isolated instance, or else to the process that all sessions share.
    Server,
    /// Nowhere.
    Dropped,
}

impl Notification {
    /// Parses a notification of a client that sees `scope`.
    ///
    /// # Errors
    /// Why it is refused; see [`refused_notification`].
    pub fn read(scope: &Scope, message: &Message<'_>) -> Result<Self, &'static str> {
        if let Some(why) = refused_notification(message) {
            return Err(why);
        }
        Ok(match (message.method(), scope) {
            ("notifications/cancelled", _) => Self::Cancel(message.param(&["requestId"]).ok().flatten()),
            ("notifications/roots/list_changed", _) => Self::Instances,
            (_, Scope::All) => Self::Dropped,
            ("notifications/initialized" | "notifications/progress", Scope::Server(_)) => Self::Instances,
            (_, Scope::Server(_)) => Self::Server,
        })
    }
}

/// Returns whether `method` is the name of a notification.
fn is_notification(method: &str) -> bool {
    method.starts_with("notifications/")
}

/// Returns why a message without an id is refused, or `None` if it is accepted. The checks on
/// requests depend on their method; they must not be bypassed by leaving out the id.
pub fn refused_notification(message: &Message<'_>) -> Option<&'static str> {
    match message.kind() {
        Kind::Notification if !is_notification(message.method()) => {
            Some("only notifications/* may omit the id; a request must have one")
        }
        Kind::Notification if message.has_lone_surrogate() => Some(LONE_SURROGATE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jsonrpc::Malformed;

    const ALL: Scope = Scope::All;

    fn one() -> Scope {
        Scope::Server("s".into())
    }

    fn text(method: &str, params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#)
    }

    /// Returns what a request asks for; a name is followed by what its position holds.
    fn what(scope: &Scope, method: &str, params: &str) -> String {
        let text = text(method, params);
        let message = Message::read(&text).unwrap();
        let request = Request::read(scope, &message);
        assert_eq!(request.refused, None, "{text}");
        let named = |named: &Named| {
            assert_eq!(unquote(&text[named.0.clone()]).as_deref(), Some(&*named.1), "{text}");
            named.1.clone()
        };
        let show = |result: &Result<Named, CallError>| match result {
            Ok(found) => named(found),
            Err(why) => format!("{why:?}"),
        };
        match &request.what {
            What::Tool(name) => format!("tool {}", show(name)),
            What::Prompt(name) => format!("prompt {}", show(name)),
            What::Resource(method, uri) => format!("{method:?} {}", show(uri)),
            What::Complete(Ok(Reference::Prompt(name))) => format!("complete prompt {}", named(name)),
            What::Complete(Ok(Reference::Template(uri))) => format!("complete template {}", named(uri)),
            What::Complete(Err(why)) => format!("complete {why:?}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn methods_of_the_protocol_are_read_the_same_in_both_scopes() {
        for scope in [&ALL, &one()] {
            for (method, params, expected) in [
                ("ping", "{}", "Ping"),
                ("server/discover", "{}", "Discover"),
                ("logging/setLevel", r#"{"level":"info"}"#, "SetLevel(Some(Level(1)))"),
                ("logging/setLevel", r#"{"level":"loud"}"#, "SetLevel(None)"),
                ("logging/setLevel", "{}", "SetLevel(None)"),
                (
                    "initialize",
                    r#"{"protocolVersion":"v","capabilities":{"roots":{}},"clientInfo":{"name":"c"}}"#,
                    r#"Initialize(Ok(InitializeParams { version: "v", capabilities: "{\"roots\":{}}", info: "{\"name\":\"c\"}" }))"#,
                ),
                (
                    "initialize",
                    "{}",
                    r#"Initialize(Ok(InitializeParams { version: "", capabilities: "{}", info: "{}" }))"#,
                ),
                (
                    "initialize",
                    r#"{"protocolVersion":1}"#,
                    r#"Initialize(Err(NotText { path: ["protocolVersion"] }))"#,
                ),
            ] {
                assert_eq!(what(scope, method, params), expected, "{scope:?}");
            }
        }
        let long = format!(r#"{{"clientInfo":"{}"}}"#, "x".repeat(limits::CLIENT_INFO_BYTES));
        assert!(what(&ALL, "initialize", &long).contains(r#"info: "{}""#), "too long to keep");
    }

    #[test]
    fn requests_at_the_aggregate_name_what_to_look_up() {
        let missing =
            |path: &str, method: &str| format!(r#"Missing {{ path: [{path}], method: "{method}" }}"#);
        for (method, params, expected) in [
            ("tools/call", r#"{"name":"s_t"}"#, "tool s_t".to_owned()),
            ("tools/call", r#"{"n\u0061me":"s_\u0074"}"#, "tool s_t".into()),
            ("tools/call", r#"{"name":1}"#, r#"tool NotText { path: ["name"] }"#.into()),
            ("tools/call", r#"{"name":"a","name":"b"}"#, "tool Malformed(Duplicate)".into()),
            ("tools/call", "{}", format!("tool {}", missing("\"name\"", "tools/call"))),
            ("prompts/get", r#"{"name":"s_p"}"#, "prompt s_p".into()),
            ("prompts/get", "{}", format!("prompt {}", missing("\"name\"", "prompts/get"))),
            ("resources/read", r#"{"uri":"u:x"}"#, "Read u:x".into()),
            ("resources/read", "{}", format!("Read {}", missing("\"uri\"", "resources/read"))),
            ("resources/subscribe", r#"{"uri":"u:x"}"#, "Subscribe u:x".into()),
            ("resources/unsubscribe", r#"{"uri":"u:x"}"#, "Unsubscribe u:x".into()),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/prompt","name":"s_p"}}"#,
                "complete prompt s_p".into(),
            ),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/resource","uri":"u:{x}"}}"#,
                "complete template u:{x}".into(),
            ),
            ("completion/complete", r#"{"ref":{"type":"ref/x"}}"#, "complete UnknownReference".into()),
            ("completion/complete", "{}", "complete UnknownReference".into()),
            (
                "completion/complete",
                r#"{"ref":{"type":7}}"#,
                r#"complete NotText { path: ["ref", "type"] }"#.into(),
            ),
            (
                "completion/complete",
                r#"{"ref":{"type":"ref/prompt"}}"#,
                format!("complete {}", missing("\"ref\", \"name\"", "completion/complete")),
            ),
            ("tools/list", "{}", "List(Tool, Ok(None))".into()),
            ("prompts/list", r#"{"cursor":null}"#, "List(Prompt, Ok(None))".into()),
            ("resources/list", r#"{"cursor":""}"#, "List(Resource, Ok(None))".into()),
            ("resources/templates/list", r#"{"cursor":"c"}"#, r#"List(Template, Ok(Some("c")))"#.into()),
            ("tools/list", r#"{"cursor":1}"#, r#"List(Tool, Err(NotText { path: ["cursor"] }))"#.into()),
            ("tasks/get", r#"{"taskId":"t"}"#, "Other".into()),
            ("x/y", "{}", "Other".into()),
        ] {
            assert_eq!(what(&ALL, method, params), expected, "{method} {params}");
        }
        let long = "u".repeat(limits::URI_BYTES + 1);
        assert_eq!(what(&ALL, "resources/read", &format!(r#"{{"uri":"{long}"}}"#)), "Read UriTooLong");
        let template = format!(r#"{{"ref":{{"type":"ref/resource","uri":"{long}"}}}}"#);
        assert_eq!(what(&ALL, "completion/complete", &template), "complete UriTooLong");
    }

    #[test]
    fn requests_at_one_server_are_passed_on() {
        for (method, params, expected) in [
            ("tools/call", "{}", "Other"),
            ("tools/list", r#"{"cursor":1}"#, "Other"),
            ("prompts/get", r#"{"name":1}"#, "Other"),
            ("resources/read", r#"{"uri":1}"#, "Other"),
            ("completion/complete", "{}", "Other"),
            ("tasks/list", "{}", "Other"),
            ("x/y", "[1]", "Other"),
            ("resources/subscribe", r#"{"uri":"u:x"}"#, "Subscribe u:x"),
            ("resources/subscribe", r#"{"uri":1}"#, r#"Subscribe NotText { path: ["uri"] }"#),
            ("resources/subscribe", "{}", "Other"),
            ("resources/unsubscribe", r#"{"uri":"u:x"}"#, "Unsubscribe u:x"),
            ("resources/unsubscribe", "{}", "Other"),
            ("tasks/get", r#"{"taskId":"t"}"#, r#"Task(Ok(Some("t")))"#),
            ("tasks/result", "{}", "Task(Ok(None))"),
            ("tasks/cancel", r#"{"taskId":1}"#, r#"Task(Err(NotText { path: ["taskId"] }))"#),
        ] {
            assert_eq!(what(&one(), method, params), expected, "{method} {params}");
        }
    }

    #[test]
    fn a_request_is_refused_in_a_fixed_order() {
        let (id, method) = ("9".repeat(limits::ID_BYTES), "m".repeat(limits::METHOD_BYTES));
        let lone = r#"{"a":"\ud800"}"#;
        for (id, method, params, why) in [
            (format!("{id}9"), format!("{method}m"), lone, Some(CallError::IdTooLong)),
            (id.clone(), format!("{method}m"), lone, Some(CallError::MethodTooLong)),
            (id.clone(), method.clone(), lone, Some(CallError::LoneSurrogate)),
            (id.clone(), "notifications/x".into(), lone, Some(CallError::LoneSurrogate)),
            (id.clone(), "notifications/x".into(), "{}", Some(CallError::NotificationWithId)),
            (id, method, "{}", None),
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#);
            let message = Message::read_strict(&text).unwrap();
            assert_eq!(Request::read(&ALL, &message).refused, why, "{text}");
        }
    }

    #[test]
    fn the_progress_token_is_limited_in_length() {
        let token = |raw: &str| {
            let text = text("x", &format!(r#"{{"_meta":{{"progressToken":{raw}}}}}"#));
            let message = Message::read(&text).unwrap();
            let token = Request::read(&ALL, &message).token;
            token.map(|span| span.map(|span| text[span].to_owned()))
        };
        let longest = format!("\"{}\"", "t".repeat(limits::ID_BYTES - 2));
        assert_eq!(token(&longest), Ok(Some(longest.clone())));
        assert_eq!(token(&longest.replace("t\"", "tt\"")), Err(CallError::TokenTooLong));
        assert_eq!(token("null"), Ok(None));
        assert_eq!(token("1,\"progressToken\":2"), Err(CallError::Malformed(Malformed::Duplicate)));
    }

    #[test]
    fn notifications_go_to_the_server_or_its_instance() {
        use Notification::*;
        let read = |scope: &Scope, method: &str, params: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params}}}"#);
            let message = Message::read(&text).unwrap();
            (Notification::read(scope, &message), text)
        };
        for (method, all, server) in [
            ("notifications/cancelled", Cancel(None), Cancel(None)),
            ("notifications/roots/list_changed", Instances, Instances),
            ("notifications/initialized", Dropped, Instances),
            ("notifications/progress", Dropped, Instances),
            ("notifications/x", Dropped, Server),
        ] {
            assert_eq!(read(&ALL, method, "{}").0, Ok(all), "{method}");
            assert_eq!(read(&one(), method, "{}").0, Ok(server), "{method}");
        }
        for scope in [&ALL, &one()] {
            let (Ok(Cancel(Some(span))), text) =
                read(scope, "notifications/cancelled", r#"{"requestId":"a"}"#)
            else {
                panic!("no id")
            };
            assert_eq!(&text[span], "\"a\"");
            assert_eq!(
                read(scope, "notifications/cancelled", r#"{"requestId":1,"requestId":2}"#).0,
                Ok(Cancel(None))
            );
            assert_eq!(read(scope, "notifications/x", r#"{"a":"\ud800"}"#).0, Err(LONE_SURROGATE));
            assert!(read(scope, "tools/call", "{}").0.is_err());
        }
    }
}
