//! Why the gateway refuses or fails a request, and the JSON-RPC error that says so.
//!
//! - [`CallError`]: a client's request.
//! - [`Declined`]: a client's request that was not passed to its server; part of `CallError`.
//! - [`ServerRequestError`]: a server's request to its client.
//!
//! The rest of the gateway handles these types; only this module has their codes and texts.
//! `jsonrpc` writes the error.
//!
//! What a client gets when a server is down:
//!
//! | state of the server | response |
//! |---|---|
//! | not registered | [`CallError::NotConnected`] at its own endpoint, where a new session gets 404 (`gateway::exchange`); [`CallError::Unknown`] or [`CallError::NoResource`] at the aggregate |
//! | link lost, may resume | none yet: calls wait for the resume window (`--resume-window`), then [`CallError::Disconnected`] |
//! | link ended | [`CallError::Disconnected`] for pending calls |
//! | link alive, process down | the error of the edge (`edge::proxy`): [`DOWN`](crate::jsonrpc::DOWN) for new calls, [`INTERNAL_ERROR`] for calls that were running |

use std::time::Duration;

use crate::{
    jsonrpc::{
        BUSY, INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, MODERN_BUSY, Malformed,
        NO_RESOURCE, RpcError, TIMED_OUT, quote,
    },
    limits,
    mcp::listing::ListKind,
    session::{CallRefused, ListenRefused, RoundError, StateError},
    util::escape::show,
};

/// The error text for an exhausted memory budget.
pub const NO_MEMORY: &str = "the gateway's memory budget (--max-memory) is used up; try again";

/// The reason to refuse a client's message with a lone surrogate. UTF-8 cannot encode it, and the
/// servers of most SDKs drop such a message without a response.
pub const LONE_SURROGATE: &str = "a string in the params contains an unpaired surrogate";

/// Why a client's request gets an error from the gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CallError {
    /// The gateway is stopping.
    Draining,
    /// The request id is longer than [`limits::ID_BYTES`].
    IdTooLong,
    /// The method is longer than [`limits::METHOD_BYTES`].
    MethodTooLong,
    /// See [`LONE_SURROGATE`].
    LoneSurrogate,
    /// The method is one of a notification.
    NotificationWithId,
    /// A parameter that the gateway reads is ambiguous.
    Malformed(Malformed),
    /// The progress token is longer than [`limits::ID_BYTES`].
    TokenTooLong,
    /// A parameter that the method needs is missing.
    Missing {
        /// The names of the members that lead to it.
        path: &'static [&'static str],
        /// The requested method.
        method: String,
    },
    /// A parameter is not a string.
    NotText {
        /// The names of the members that lead to it.
        path: &'static [&'static str],
    },
    /// There is no tool or prompt of this name.
    Unknown {
        /// What the client named.
        kind: ListKind,
        /// The name.
        name: String,
    },
    /// Several servers offer a tool or prompt of this name, or a resource under this URI.
    Ambiguous {
        /// What the client named.
        kind: ListKind,
        /// The name or URI.
        name: String,
        /// The names or URIs that are not ambiguous.
        forms: Vec<String>,
    },
    /// No server offers this resource.
    NoResource {
        /// Its URI.
        uri: String,
    },
    /// The URI is longer than [`limits::URI_BYTES`].
    UriTooLong,
    /// The URI is too long to subscribe to.
    SubscriptionTooLong {
        /// The limit, in characters.
        max: usize,
    },
    /// The method is not supported.
    UnknownMethod(String),
    /// A completion refers to neither a prompt nor a resource.
    UnknownReference,
    /// The cursor of a list is not one that the gateway gave out.
    BadCursor,
    /// The log level is not one of MCP.
    UnknownLevel,
    /// The server of the endpoint is not connected.
    NotConnected {
        /// Its name.
        server: String,
    },
    /// The session is already initialized.
    AlreadyInitialized,
    /// The session must begin with `initialize`.
    NotInitialized,
    /// The session ended, because its server now runs an instance for each session.
    SessionReplaced,
    /// The session has its maximum number of subscriptions.
    TooManySubscriptions,
    /// The memory budget is used up.
    NoMemory,
    /// The task does not exist, or belongs to another principal.
    TaskNotFound,
    /// The request was not passed to its server.
    Declined {
        /// The reason.
        why: Declined,
        /// The server's name.
        server: String,
    },
    /// The server disconnected before it responded.
    Disconnected {
        /// The server's name.
        server: String,
        /// Why it disconnected.
        reason: String,
    },
    /// The server did not respond in time.
    TimedOut {
        /// The server's name.
        server: String,
        /// The timeout.
        after: Duration,
    },
    /// The server's response cannot be used.
    InvalidResponse {
        /// The server's name.
        server: String,
        /// The defect.
        why: &'static str,
    },
}

impl From<Malformed> for CallError {
    fn from(why: Malformed) -> Self {
        Self::Malformed(why)
    }
}

impl CallError {
    /// Returns the error for a call that was not passed to a server.
    pub fn declined(why: Declined, server: &str) -> Self {
        Self::Declined { why, server: server.to_owned() }
    }

    /// Returns the error for the response.
    pub fn rpc(&self) -> RpcError {
        RpcError::new(self.code(), self.message())
    }

    fn code(&self) -> i64 {
        match self {
            Self::Draining | Self::TooManySubscriptions | Self::NoMemory => BUSY,
            Self::IdTooLong
            | Self::MethodTooLong
            | Self::NotificationWithId
            | Self::AlreadyInitialized
            | Self::NotInitialized
            | Self::SessionReplaced => INVALID_REQUEST,
            Self::LoneSurrogate
            | Self::TokenTooLong
            | Self::Missing { .. }
            | Self::NotText { .. }
            | Self::Unknown { .. }
            | Self::UriTooLong
            | Self::SubscriptionTooLong { .. }
            | Self::UnknownReference
            | Self::BadCursor
            | Self::UnknownLevel
            | Self::TaskNotFound => INVALID_PARAMS,
            Self::Malformed(why) => why.code(),
            Self::Ambiguous { kind: ListKind::Resource | ListKind::Template, .. } => NO_RESOURCE,
            Self::Ambiguous { .. } => INVALID_PARAMS,
            Self::NoResource { .. } => NO_RESOURCE,
            Self::UnknownMethod(_) => METHOD_NOT_FOUND,
            Self::NotConnected { .. } | Self::Disconnected { .. } | Self::InvalidResponse { .. } => {
                INTERNAL_ERROR
            }
            Self::TimedOut { .. } => TIMED_OUT,
            Self::Declined { why, .. } => why.code(),
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Draining => "the gateway is stopping".into(),
            Self::IdTooLong => "the request id is too long".into(),
            Self::MethodTooLong => "the method is too long".into(),
            Self::LoneSurrogate => LONE_SURROGATE.into(),
            Self::NotificationWithId => "a notification must not have an id".into(),
            Self::Malformed(why) => why.reason().into(),
            Self::TokenTooLong => "the progress token is too long".into(),
            Self::Missing { path, method } => format!("missing {} in {}", path.join("."), show(method)),
            Self::NotText { path } => format!("{} is not a string", path.join(".")),
            Self::Unknown { kind, name } => format!("unknown {}: {}", kind.noun(), show(name)),
            Self::Ambiguous { kind, name, forms } => {
                let forms: Vec<String> = forms.iter().map(|form| show(form).to_string()).collect();
                format!("ambiguous {}: {}; use {}", kind.noun(), show(name), forms.join(" or "))
            }
            Self::NoResource { uri } => format!("no such resource: {}", show(uri)),
            Self::UriTooLong => format!("the URI is too long: more than {} bytes", limits::URI_BYTES),
            Self::SubscriptionTooLong { max } => {
                format!("the URI is too long to subscribe to: more than {max} characters")
            }
            Self::UnknownMethod(method) => format!("method not found: {}", show(method)),
            Self::UnknownReference => "completion for an unknown reference type".into(),
            Self::BadCursor => "invalid cursor".into(),
            Self::UnknownLevel => "unknown log level".into(),
            Self::NotConnected { server } => format!("server '{}' is not connected", show(server)),
            Self::AlreadyInitialized => "the session is already initialized".into(),
            Self::NotInitialized => "begin with initialize".into(),
            Self::SessionReplaced => "the session has ended; begin with initialize".into(),
            Self::TooManySubscriptions => "the session has too many subscriptions".into(),
            Self::NoMemory => NO_MEMORY.into(),
            // The text that servers use for an unknown task id.
            Self::TaskNotFound => "task not found".into(),
            Self::Declined { why, server } => why.message(server),
            Self::Disconnected { server, reason } => format!("server '{server}' disconnected: {reason}"),
            Self::TimedOut { server, after } => {
                format!("server '{server}' did not respond within {} s", after.as_secs_f64())
            }
            Self::InvalidResponse { server, why } => {
                format!("invalid response from server '{server}': {why}")
            }
        }
    }
}

/// Returns the error for the response to a client of MCP 2026-07-28, which uses fewer codes: a
/// missing resource is an invalid parameter, and no code of the range that JSON-RPC reserves has a
/// meaning of our own.
pub fn modern_error(why: &CallError) -> RpcError {
    let error = why.rpc();
    let code = match error.code {
        BUSY => MODERN_BUSY,
        TIMED_OUT => INTERNAL_ERROR,
        NO_RESOURCE => INVALID_PARAMS,
        code => code,
    };
    let uri = match why {
        CallError::NoResource { uri } | CallError::Ambiguous { kind: ListKind::Resource, name: uri, .. } => {
            Some(uri)
        }
        _ => None,
    };
    RpcError { code, data: uri.map(|uri| format!("{{\"uri\":{}}}", quote(uri))), ..error }
}

/// Returns the error for a request whose `requestState` is refused.
pub fn state_error(why: StateError) -> RpcError {
    let error = RpcError::new(INVALID_PARAMS, "invalid or expired requestState");
    match why {
        StateError::Invalid | StateError::Expired => error,
        StateError::Restarted => RpcError { data: Some("{\"reason\":\"restarted\"}".into()), ..error },
    }
}

/// Returns why a call of a session ends while its server asks the client.
pub fn round_error(why: RoundError, server: &str) -> String {
    match why {
        RoundError::TooManyQuestions => format!("server '{server}' asked too many questions at once"),
        RoundError::TooManyRounds => format!("server '{server}' asked again too many times"),
        RoundError::Rejected => {
            format!("the client answered a question of server '{server}' with an error")
        }
        RoundError::Expired => {
            format!("the client did not answer the questions of server '{server}' in time")
        }
        RoundError::NoMemory => NO_MEMORY.into(),
        RoundError::Ended => format!("the client does not read the questions of server '{server}'"),
    }
}

/// Returns the error for a `subscriptions/listen` that is refused.
pub fn listen_error(why: ListenRefused) -> RpcError {
    let text = match why {
        ListenRefused::Principal => "this principal has too many open listens at the gateway; close one",
        ListenRefused::All => "the gateway has too many open listens; try again later",
        ListenRefused::NoMemory => NO_MEMORY,
    };
    RpcError::new(MODERN_BUSY, text)
}

/// Why a call is not passed on to its server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Declined {
    /// The session does not admit it.
    Session(CallRefused),
    /// The server has too many running calls.
    Server,
    /// The client's principal has its share of the running calls of a shared server.
    ServerShare,
    /// The client's principal has its share of the server's isolated instances.
    InstancesShare,
    /// The server has its maximum number of isolated instances.
    Instances,
    /// All instances that the call could have are held by other calls.
    Leases,
    /// Too many messages wait for the isolated instance to be initialized.
    Starting,
    /// The size of the frame, and the largest that the server's edge accepts, in bytes.
    TooLarge(usize, usize),
    /// The link does not keep up.
    Link,
    /// The memory budget is used up.
    Memory,
    /// The link is gone.
    Gone,
}

impl Declined {
    fn code(self) -> i64 {
        match self {
            Self::Session(CallRefused::Busy)
            | Self::Server
            | Self::ServerShare
            | Self::InstancesShare
            | Self::Instances
            | Self::Leases
            | Self::Starting
            | Self::Link
            | Self::Memory => BUSY,
            Self::Session(CallRefused::Repeated | CallRefused::Ended) | Self::TooLarge(..) => INVALID_REQUEST,
            Self::Gone => INTERNAL_ERROR,
        }
    }

    /// Returns the reason as text, for a server of this name.
    pub fn message(self, server: &str) -> String {
        match self {
            Self::Session(CallRefused::Busy) => {
                "too many running calls of this session (--max-calls-per-session)".into()
            }
            Self::Session(CallRefused::Repeated) => "a call with this id is already running".into(),
            Self::Session(CallRefused::Ended) => "the session has ended".into(),
            Self::Server => {
                format!("server '{server}' has too many running calls (--max-calls-per-server)")
            }
            Self::ServerShare => format!(
                "this principal has reached its share of running calls of server '{server}' (half of --max-calls-per-server)"
            ),
            Self::InstancesShare => format!(
                "this principal has reached its share of sessions of server '{server}' (half of --max-sessions)"
            ),
            Self::Instances => format!("server '{server}' has reached its session limit (--max-sessions)"),
            Self::Leases => format!(
                "each call that may ask its client has a process of server '{server}' for itself, and all are in use (--max-sessions at register)"
            ),
            Self::Starting => format!(
                "too many messages are waiting for this session's process of server '{server}' to start"
            ),
            Self::TooLarge(bytes, max) => format!(
                "the message has {bytes} bytes, and the edge of server '{server}' accepts at most {max} (see --max-message-bytes at register)"
            ),
            Self::Link => format!("the link to server '{server}' is congested"),
            Self::Memory => NO_MEMORY.into(),
            Self::Gone => format!("server '{server}' disconnected"),
        }
    }
}

/// Why a server's request to its client gets an error from the gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ServerRequestError {
    /// The method is not one that the gateway answers itself, and the server is shared.
    UnknownMethod(String),
    /// The request id is longer than [`limits::ID_BYTES`].
    IdTooLong,
    /// Too many requests are pending at the client.
    TooMany,
    /// Too many messages are queued for the client.
    NotRead,
    /// The client did not respond in time.
    TimedOut,
    /// A string in the client's response has a lone surrogate.
    LoneSurrogate,
    /// The client's response is not a valid message.
    InvalidResponse(Malformed),
    /// The client's response was not passed to the server.
    Declined {
        /// The reason.
        why: Declined,
        /// The server's name.
        server: String,
    },
}

impl ServerRequestError {
    /// Returns the error for the response.
    pub fn rpc(&self) -> RpcError {
        match self {
            Self::UnknownMethod(method) => {
                RpcError::new(METHOD_NOT_FOUND, format!("method not found: {}", show(method)))
            }
            Self::IdTooLong => RpcError::new(INVALID_REQUEST, "the request id is too long"),
            Self::TooMany => RpcError::new(BUSY, "too many requests are pending at the client"),
            Self::NotRead => RpcError::new(BUSY, "the client does not read its requests"),
            Self::TimedOut => RpcError::new(TIMED_OUT, "the client did not respond in time"),
            Self::LoneSurrogate => {
                RpcError::new(INTERNAL_ERROR, "the client's response contains an unpaired surrogate")
            }
            Self::InvalidResponse(why) => {
                let text = format!("invalid response from the client: {}", why.reason());
                RpcError::new(INTERNAL_ERROR, text)
            }
            Self::Declined { why, server } => RpcError::new(INTERNAL_ERROR, why.message(server)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers the variants, so that the test below notices one without a row. A new variant does
    /// not compile until it is listed here.
    fn variant(error: &CallError) -> usize {
        use CallError::*;
        match error {
            Draining => 0,
            IdTooLong => 1,
            MethodTooLong => 2,
            LoneSurrogate => 3,
            NotificationWithId => 4,
            Malformed(_) => 5,
            TokenTooLong => 6,
            Missing { .. } => 7,
            NotText { .. } => 8,
            Unknown { .. } => 9,
            Ambiguous { .. } => 10,
            NoResource { .. } => 11,
            UriTooLong => 12,
            SubscriptionTooLong { .. } => 13,
            UnknownMethod(_) => 14,
            UnknownReference => 15,
            BadCursor => 16,
            UnknownLevel => 17,
            NotConnected { .. } => 18,
            AlreadyInitialized => 19,
            NotInitialized => 20,
            SessionReplaced => 21,
            TooManySubscriptions => 22,
            NoMemory => 23,
            TaskNotFound => 24,
            Declined { .. } => 25,
            Disconnected { .. } => 26,
            TimedOut { .. } => 27,
            InvalidResponse { .. } => 28,
        }
    }

    const MEMORY: &str = "the gateway's memory budget (--max-memory) is used up; try again";

    #[test]
    fn every_call_error_has_its_code_and_text() {
        use CallError::*;
        let text = |text: &str| text.to_owned();
        let server = || text("s");
        let rows = [
            (Draining, -32000, "the gateway is stopping"),
            (IdTooLong, -32600, "the request id is too long"),
            (MethodTooLong, -32600, "the method is too long"),
            (LoneSurrogate, -32602, "a string in the params contains an unpaired surrogate"),
            (NotificationWithId, -32600, "a notification must not have an id"),
            (Malformed(crate::jsonrpc::Malformed::Duplicate), -32600, "duplicate member in the message"),
            (Malformed(crate::jsonrpc::Malformed::Syntax), -32700, "not valid JSON"),
            (TokenTooLong, -32602, "the progress token is too long"),
            (
                Missing { path: &["ref", "name"], method: text("completion/complete\n") },
                -32602,
                "missing ref.name in completion/complete\\n",
            ),
            (NotText { path: &["ref", "uri"] }, -32602, "ref.uri is not a string"),
            (Unknown { kind: ListKind::Tool, name: text("a\u{202e}") }, -32602, "unknown tool: a\\u{202e}"),
            (Unknown { kind: ListKind::Prompt, name: text("p") }, -32602, "unknown prompt: p"),
            (
                Ambiguous {
                    kind: ListKind::Tool,
                    name: text("t\t"),
                    forms: vec![text("a_t"), text("b_t\t")],
                },
                -32602,
                "ambiguous tool: t\\t; use a_t or b_t\\t",
            ),
            (
                Ambiguous { kind: ListKind::Prompt, name: text("p"), forms: vec![text("a_p")] },
                -32602,
                "ambiguous prompt: p; use a_p",
            ),
            (
                Ambiguous { kind: ListKind::Resource, name: text("u:x"), forms: vec![text("a+u:x")] },
                -32002,
                "ambiguous resource: u:x; use a+u:x",
            ),
            (NoResource { uri: text("u:\r") }, -32002, "no such resource: u:\\r"),
            (UriTooLong, -32602, "the URI is too long: more than 8000 bytes"),
            (
                SubscriptionTooLong { max: 9 },
                -32602,
                "the URI is too long to subscribe to: more than 9 characters",
            ),
            (UnknownMethod(text("x/y\u{7}")), -32601, "method not found: x/y\\u{7}"),
            (UnknownReference, -32602, "completion for an unknown reference type"),
            (BadCursor, -32602, "invalid cursor"),
            (UnknownLevel, -32602, "unknown log level"),
            (NotConnected { server: text("s\n") }, -32603, "server 's\\n' is not connected"),
            (AlreadyInitialized, -32600, "the session is already initialized"),
            (NotInitialized, -32600, "begin with initialize"),
            (SessionReplaced, -32600, "the session has ended; begin with initialize"),
            (TooManySubscriptions, -32000, "the session has too many subscriptions"),
            (NoMemory, -32000, MEMORY),
            (TaskNotFound, -32602, "task not found"),
            (CallError::declined(super::Declined::Gone, "s"), -32603, "server 's' disconnected"),
            (Disconnected { server: server(), reason: text("why") }, -32603, "server 's' disconnected: why"),
            (
                TimedOut { server: server(), after: Duration::from_millis(1500) },
                -32001,
                "server 's' did not respond within 1.5 s",
            ),
            (
                InvalidResponse { server: server(), why: "not UTF-8" },
                -32603,
                "invalid response from server 's': not UTF-8",
            ),
        ];
        let mut seen: Vec<usize> = Vec::new();
        for (error, code, text) in &rows {
            assert_eq!(error.rpc(), RpcError::new(*code, *text));
            seen.push(variant(error));
        }
        seen.dedup();
        assert_eq!(seen, (0..=28).collect::<Vec<usize>>(), "a variant has no row");
    }

    #[test]
    fn modern_clients_get_codes_of_their_version() {
        use CallError::*;
        let text = |text: &str| text.to_owned();
        let resource =
            |name: &str| Ambiguous { kind: ListKind::Resource, name: text(name), forms: vec![text("a+u:x")] };
        let tool = Ambiguous { kind: ListKind::Tool, name: text("t"), forms: vec![text("a_t")] };
        let path: &[&str] = &["name"];
        let server = || text("s");
        let mut seen: Vec<usize> = Vec::new();
        for (error, code, data) in [
            (Draining, -31000, None),
            (IdTooLong, -32600, None),
            (MethodTooLong, -32600, None),
            (LoneSurrogate, -32602, None),
            (NotificationWithId, -32600, None),
            (Malformed(crate::jsonrpc::Malformed::Syntax), -32700, None),
            (TokenTooLong, -32602, None),
            (Missing { path, method: text("tools/call") }, -32602, None),
            (NotText { path }, -32602, None),
            (Unknown { kind: ListKind::Tool, name: text("t") }, -32602, None),
            (tool, -32602, None),
            (resource("u:\"x"), -32602, Some(r#"{"uri":"u:\"x"}"#)),
            (NoResource { uri: text("u:\r") }, -32602, Some(r#"{"uri":"u:\r"}"#)),
            (UriTooLong, -32602, None),
            (SubscriptionTooLong { max: 9 }, -32602, None),
            (UnknownMethod(text("x")), -32601, None),
            (UnknownReference, -32602, None),
            (BadCursor, -32602, None),
            (UnknownLevel, -32602, None),
            (NotConnected { server: server() }, -32603, None),
            (AlreadyInitialized, -32600, None),
            (NotInitialized, -32600, None),
            (SessionReplaced, -32600, None),
            (TooManySubscriptions, -31000, None),
            (NoMemory, -31000, None),
            (TaskNotFound, -32602, None),
            (CallError::declined(super::Declined::Server, "s"), -31000, None),
            (CallError::declined(super::Declined::Gone, "s"), -32603, None),
            (Disconnected { server: server(), reason: text("why") }, -32603, None),
            (TimedOut { server: server(), after: Duration::from_secs(1) }, -32603, None),
            (InvalidResponse { server: server(), why: "not UTF-8" }, -32603, None),
        ] {
            let expected = RpcError { code, data: data.map(str::to_owned), ..error.rpc() };
            assert_eq!(modern_error(&error), expected);
            seen.push(variant(&error));
        }
        seen.dedup();
        assert_eq!(seen, (0..=28).collect::<Vec<usize>>(), "a variant has no row");
    }

    #[test]
    fn every_declined_call_has_its_code_and_text() {
        use super::Declined::*;
        for (why, code, text) in [
            (
                Session(CallRefused::Busy),
                -32000,
                "too many running calls of this session (--max-calls-per-session)",
            ),
            (Session(CallRefused::Repeated), -32600, "a call with this id is already running"),
            (Session(CallRefused::Ended), -32600, "the session has ended"),
            (Server, -32000, "server 's' has too many running calls (--max-calls-per-server)"),
            (
                ServerShare,
                -32000,
                "this principal has reached its share of running calls of server 's' (half of --max-calls-per-server)",
            ),
            (
                InstancesShare,
                -32000,
                "this principal has reached its share of sessions of server 's' (half of --max-sessions)",
            ),
            (Instances, -32000, "server 's' has reached its session limit (--max-sessions)"),
            (
                Starting,
                -32000,
                "too many messages are waiting for this session's process of server 's' to start",
            ),
            (
                TooLarge(7, 5),
                -32600,
                "the message has 7 bytes, and the edge of server 's' accepts at most 5 (see --max-message-bytes at register)",
            ),
            (Link, -32000, "the link to server 's' is congested"),
            (Memory, -32000, MEMORY),
            (Gone, -32603, "server 's' disconnected"),
        ] {
            assert_eq!(CallError::declined(why, "s").rpc(), RpcError::new(code, text));
        }
    }

    #[test]
    fn every_error_for_a_server_has_its_code_and_text() {
        use ServerRequestError::*;
        let declined = Declined { why: super::Declined::TooLarge(7, 5), server: "s".into() };
        for (error, code, text) in [
            (UnknownMethod("roots/list\n".into()), -32601, "method not found: roots/list\\n"),
            (IdTooLong, -32600, "the request id is too long"),
            (TooMany, -32000, "too many requests are pending at the client"),
            (NotRead, -32000, "the client does not read its requests"),
            (TimedOut, -32001, "the client did not respond in time"),
            (LoneSurrogate, -32603, "the client's response contains an unpaired surrogate"),
            (
                InvalidResponse(Malformed::Batch),
                -32603,
                "invalid response from the client: batches are not supported; send one message",
            ),
            (
                declined,
                -32603,
                "the message has 7 bytes, and the edge of server 's' accepts at most 5 (see --max-message-bytes at register)",
            ),
        ] {
            assert_eq!(error.rpc(), RpcError::new(code, text));
        }
    }
}
