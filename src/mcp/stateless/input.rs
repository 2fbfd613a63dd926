//! Questions of servers to their clients: elicitation, sampling and roots.
//!
//! A modern server answers a request with `input_required` and its questions, and the client repeats
//! the request with the answers (MCP 2026-07-28, client input). A legacy server sends requests of its
//! own. This module reads either form and writes the other; `session` keeps the calls in between.

use super::{
    edits::{Edit, edit_members, filtered, one_line},
    envelope::Allowed,
    meta,
    result::ServerStamp,
};
use crate::{
    jsonrpc::{
        self, INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, Message, RpcError, Span, elements, find,
        members, quote, unquote,
    },
    limits,
    mcp::version::V2025_11_25,
    util::escape::show,
};

/// Whether the answer to a method may be `input_required`.
pub fn may_ask(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read")
}

/// What a server asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InputKind {
    /// Elicitation with a form.
    Form,
    /// Elicitation at a URL.
    Url,
    /// Sampling.
    Sampling {
        /// Whether the model may call tools.
        tools: bool,
    },
    /// Roots.
    Roots,
}

impl InputKind {
    /// Returns the kind of a question. `params`: an object, if there are any.
    ///
    /// # Errors
    /// The error for the server: no client is asked this.
    fn of(method: &str, text: &str, params: Option<&Span>) -> Result<Self, RpcError> {
        let member = |name: &str| {
            let Some(params) = params.cloned() else { return Ok::<_, RpcError>(None) };
            let found = find(text, params, &[name]).map_err(RpcError::from)?;
            Ok(found.map(|span| &text[span]).filter(|raw| *raw != "null"))
        };
        match method {
            "elicitation/create" => match member("mode")?.map(unquote) {
                None => Ok(Self::Form),
                Some(Some(mode)) if mode == "form" => Ok(Self::Form),
                Some(Some(mode)) if mode == "url" => Ok(Self::Url),
                Some(_) => Err(RpcError::new(INVALID_PARAMS, "unknown mode of elicitation")),
            },
            "sampling/createMessage" => {
                Ok(Self::Sampling { tools: member("tools")?.is_some() || member("toolChoice")?.is_some() })
            }
            "roots/list" => Ok(Self::Roots),
            other => Err(RpcError::new(METHOD_NOT_FOUND, format!("method not found: {}", show(other)))),
        }
    }

    /// Whether the client declared that it can be asked this.
    pub fn is_allowed(self, allowed: Allowed) -> bool {
        match self {
            Self::Form => allowed.form,
            Self::Url => allowed.url,
            Self::Sampling { tools } => allowed.sampling && (allowed.sampling_tools || !tools),
            Self::Roots => allowed.roots,
        }
    }

    /// Returns the method.
    pub fn method(self) -> &'static str {
        match self {
            Self::Form | Self::Url => "elicitation/create",
            Self::Sampling { .. } => "sampling/createMessage",
            Self::Roots => "roots/list",
        }
    }

    /// Returns the start of the keys under which the gateway asks.
    pub fn key(self) -> &'static str {
        match self {
            Self::Form | Self::Url => "elicitation",
            Self::Sampling { .. } => "sampling",
            Self::Roots => "roots",
        }
    }

    /// Returns what it is, for an error message.
    fn name(self) -> &'static str {
        match self {
            Self::Form => "elicitation with a form",
            Self::Url => "elicitation at a URL",
            Self::Sampling { tools: false } => "sampling",
            Self::Sampling { tools: true } => "sampling with tools",
            Self::Roots => "roots",
        }
    }
}

/// Why a server's questions are not passed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum InvalidInput {
    /// The method may not ask.
    Method(String),
    /// The client did not declare this.
    Undeclared(InputKind),
    /// There are more than [`limits::INPUT_REQUESTS`].
    TooMany,
    /// The state is longer than allowed, in bytes.
    StateTooLong(usize),
    /// The result has neither questions nor a state, or not in the form that MCP defines: for this
    /// reason.
    Malformed(String),
}

impl InvalidInput {
    /// Returns the error for the client of the server's name.
    pub fn rpc(&self, server: &str) -> RpcError {
        let why = match self {
            Self::Method(method) => format!("asked for input in the answer to {}", show(method)),
            Self::Undeclared(kind) => {
                format!("asked for {}, which the client did not declare", kind.name())
            }
            Self::TooMany => format!("asked more than {} questions at once", limits::INPUT_REQUESTS),
            Self::StateTooLong(max) => format!("sent a requestState of more than {max} bytes"),
            Self::Malformed(why) => format!("sent an invalid input_required result: {why}"),
        };
        RpcError::new(INTERNAL_ERROR, format!("server '{server}' {why}"))
    }
}

/// A server's result of type `input_required`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputRequired {
    /// The questions.
    pub requests: Vec<InputRequest>,
    /// The position of the state that the server wants back, and the state.
    pub state: Option<(Span, String)>,
}

/// A question in a server's result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputRequest {
    /// The server's key for it.
    pub key: String,
    /// What it asks for.
    pub kind: InputKind,
    /// Its params, if there are any.
    pub params: Option<Span>,
}

impl InputRequired {
    /// Reads a result. `max_state`: the longest state, in bytes.
    ///
    /// # Errors
    /// It cannot be passed on to any client.
    pub fn read(text: &str, result: Span, max_state: usize) -> Result<Self, InvalidInput> {
        let malformed = |why: &str| InvalidInput::Malformed(why.to_owned());
        let member = |name: &str| match find(text, result.clone(), &[name]) {
            Ok(found) => Ok(found.filter(|span| &text[span.clone()] != "null")),
            Err(why) => Err(malformed(why.reason())),
        };
        let state = match member("requestState")? {
            None => None,
            Some(span) if span.len() > max_state => return Err(InvalidInput::StateTooLong(max_state)),
            Some(span) => {
                let state =
                    unquote(&text[span.clone()]).ok_or_else(|| malformed("requestState is no string"))?;
                Some((span, state.into_owned()))
            }
        };
        let mut requests: Vec<InputRequest> = Vec::new();
        if let Some(span) = member("inputRequests")? {
            if !text[span.clone()].starts_with('{') {
                return Err(malformed("inputRequests is no object"));
            }
            for (key, entry) in members(text, span) {
                let key = unquote(&text[key]).ok_or_else(|| malformed("a key with an unpaired surrogate"))?;
                if requests.iter().any(|other| other.key == key) {
                    return Err(malformed("a key occurs twice"));
                }
                if requests.len() == limits::INPUT_REQUESTS {
                    return Err(InvalidInput::TooMany);
                }
                requests.push(InputRequest::read(text, key.into_owned(), entry)?);
            }
        }
        if requests.is_empty() && state.is_none() {
            return Err(malformed("neither inputRequests nor requestState"));
        }
        Ok(Self { requests, state })
    }

    /// Checks that the answer to `method` may ask, and that the client declared all that is asked.
    ///
    /// # Errors
    /// The first violation.
    pub fn check(&self, method: &str, allowed: Allowed) -> Result<(), InvalidInput> {
        if !may_ask(method) {
            return Err(InvalidInput::Method(method.to_owned()));
        }
        match self.requests.iter().find(|request| !request.kind.is_allowed(allowed)) {
            Some(request) => Err(InvalidInput::Undeclared(request.kind)),
            None => Ok(()),
        }
    }

    /// Returns the edits that put the name of the server before the messages for a person, for an
    /// endpoint that shows several servers.
    pub fn labelled(&self, text: &str, server: &str) -> Vec<Edit> {
        let asked =
            self.requests.iter().filter(|request| matches!(request.kind, InputKind::Form | InputKind::Url));
        let labelled = asked.filter_map(|request| {
            let span = find(text, request.params.clone()?, &["message"]).ok()??;
            let message = unquote(&text[span.clone()])?;
            Some((span, quote(&format!("[{server}] {message}"))))
        });
        labelled.collect()
    }
}

impl InputRequest {
    fn read(text: &str, key: String, entry: Span) -> Result<Self, InvalidInput> {
        let malformed = |why: String| InvalidInput::Malformed(why);
        let member =
            |name: &str| find(text, entry.clone(), &[name]).map_err(|why| malformed(why.reason().to_owned()));
        let method = member("method")?.and_then(|span| unquote(&text[span]));
        let method = method.ok_or_else(|| malformed("a question without method".into()))?;
        let params = member("params")?.filter(|span| &text[span.clone()] != "null");
        if params.as_ref().is_some_and(|span| !text[span.clone()].starts_with('{')) {
            return Err(malformed("params of a question are no object".into()));
        }
        let kind = InputKind::of(&method, text, params.as_ref()).map_err(|why| malformed(why.message))?;
        Ok(Self { key, kind, params })
    }

    /// Returns the params of the request that asks the client of a session, as JSON.
    /// `elicitation_id`: an id of the gateway's own for an elicitation at a URL, which clients of
    /// 2025-11-25 require.
    pub fn session_params(&self, text: &str, elicitation_id: Option<&str>) -> String {
        let raw = self.params.clone().map_or("{}".into(), |span| one_line(&text[span]));
        match elicitation_id.filter(|_| self.kind == InputKind::Url) {
            Some(id) => {
                let others = filtered(&raw, 0..raw.len(), |name, value| {
                    (name != "elicitationId").then(|| raw[value].to_owned())
                });
                let others = others.strip_prefix('{').unwrap_or_default();
                let comma = if others == "}" { "" } else { "," };
                format!("{{\"elicitationId\":{}{comma}{others}", quote(id))
            }
            None => raw.into_owned(),
        }
    }
}

/// Returns a result of type `input_required`. `entries`: keys and questions (raw JSON).
pub fn input_required(entries: &[(String, String)], state: &str, server: &ServerStamp) -> String {
    let entries: Vec<String> = entries.iter().map(|(key, raw)| format!("{}:{raw}", quote(key))).collect();
    format!(
        "{{\"resultType\":\"input_required\",\"inputRequests\":{{{}}},\"requestState\":{},\"_meta\":{{{}}}}}",
        entries.join(","),
        quote(state),
        server.member()
    )
}

/// A legacy server's request, as a question in a result.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Embedded {
    /// What it asks for.
    pub kind: InputKind,
    /// The question, raw JSON.
    pub raw: String,
}

impl Embedded {
    /// Makes a question of a request, for a client that can be asked what `allowed` says. What the
    /// stateless version does not have is left out.
    ///
    /// # Errors
    /// The error for the server, at once.
    pub fn read(message: &Message<'_>, allowed: Allowed) -> Result<Self, RpcError> {
        let text = message.text();
        let params = match message.params_place() {
            jsonrpc::ParamsPlace::Object(span) => Some(span),
            jsonrpc::ParamsPlace::Array(_) => {
                return Err(RpcError::new(INVALID_PARAMS, "params are no object"));
            }
            jsonrpc::ParamsPlace::Null(_) | jsonrpc::ParamsPlace::Absent { .. } => None,
        };
        let kind = InputKind::of(message.method(), text, params.as_ref())?;
        if !kind.is_allowed(allowed) {
            let is_part = match kind {
                InputKind::Form | InputKind::Url => allowed.form || allowed.url,
                InputKind::Sampling { .. } => allowed.sampling,
                InputKind::Roots => false,
            };
            let code = if is_part { INVALID_PARAMS } else { METHOD_NOT_FOUND };
            return Err(RpcError::new(code, format!("the client does not support {}", kind.name())));
        }
        let Some(params) = params else {
            return Ok(Self { kind, raw: format!("{{\"method\":{}}}", quote(kind.method())) });
        };
        let raw = filtered(text, params.clone(), |name, value| match name {
            "task" => None,
            "mode" | "elicitationId" if matches!(kind, InputKind::Form | InputKind::Url) => None,
            "includeContext" if !allowed.sampling_context => None,
            "_meta" => {
                let meta = filtered(text, value, |name, value| {
                    let is_ours = name == "progressToken" || name == meta::RELATED_TASK;
                    (!is_ours).then(|| one_line(&text[value]).into_owned())
                });
                (meta != "{}").then_some(meta)
            }
            _ => Some(one_line(&text[value]).into_owned()),
        });
        let mode = match kind {
            InputKind::Form => "\"mode\":\"form\",",
            InputKind::Url => "\"mode\":\"url\",",
            InputKind::Sampling { .. } | InputKind::Roots => "",
        };
        let raw = match raw.as_str() {
            "{}" => format!("{{{}}}", mode.strip_suffix(',').unwrap_or(mode)),
            raw => format!("{{{mode}{}", raw.strip_prefix('{').unwrap_or_default()),
        };
        Ok(Self { kind, raw: format!("{{\"method\":{},\"params\":{raw}}}", quote(kind.method())) })
    }
}

/// Returns the answer in a retry to the question of this key. `None` if there is none.
pub fn answer<'t>(text: &'t str, responses: Option<&Span>, key: &str) -> Option<&'t str> {
    find(text, responses?.clone(), &[key]).ok().flatten().map(|span| &text[span])
}

/// Returns the response to a legacy server's request with this id (raw JSON), given the client's answer
/// in a retry. `version`: that of the server.
pub fn response(id: &str, kind: InputKind, answer: &str, version: &str) -> String {
    if !answer.starts_with('{') {
        let error = RpcError::new(INVALID_PARAMS, "the client's answer is no object");
        return error.response(id);
    }
    let answer = one_line(answer);
    let whole = 0..answer.len();
    let member = |name: &str| find(&answer, whole.clone(), &[name]).ok().flatten();
    let result = match kind {
        // Only a form that is accepted has content.
        InputKind::Form | InputKind::Url
            if member("action").is_none_or(|action| &answer[action] != "\"accept\"") =>
        {
            without(&answer, "content")
        }
        // Earlier versions have one block in place of an array.
        InputKind::Sampling { .. } if version != V2025_11_25 => {
            match member("content").filter(|span| answer[span.clone()].starts_with('[')) {
                Some(content) => {
                    let is_text = |block: &Span| matches!(find(&answer, block.clone(), &["type"]), Ok(Some(kind)) if &answer[kind.clone()] == "\"text\"");
                    let block = elements(&answer, content.clone()).find(is_text);
                    let block = block.map_or(r#"{"type":"text","text":""}"#, |block| &answer[block]);
                    format!("{}{block}{}", &answer[..content.start], &answer[content.end..])
                }
                None => answer.clone().into_owned(),
            }
        }
        _ => answer.clone().into_owned(),
    };
    jsonrpc::result(id, &result)
}

/// Returns an object without a member.
fn without(object: &str, name: &str) -> String {
    let mut edits = Vec::new();
    edit_members(object, 0..object.len(), "", &mut edits, |other, _| other == name);
    let mut out = object.to_owned();
    for (span, new) in edits.into_iter().rev() {
        out.replace_range(span, &new);
    }
    out
}

/// Returns the response to a legacy server's request with this id (raw JSON) that no client answers any
/// more.
pub fn given_up(id: &str, kind: InputKind) -> String {
    match kind {
        InputKind::Form | InputKind::Url => jsonrpc::result(id, "{\"action\":\"cancel\"}"),
        // The code that clients use for a rejection by the user.
        InputKind::Sampling { .. } => jsonrpc::error(id, -1, "the client did not answer"),
        InputKind::Roots => jsonrpc::error(id, INTERNAL_ERROR, "the client did not answer"),
    }
}

/// The code of an error of MCP 2025-11-25 that asks for elicitations at URLs.
pub const URL_REQUIRED: i64 = -32042;

/// Returns the keys and questions for an error of [`URL_REQUIRED`]. Empty if it names no URL.
pub fn url_questions(error: &str) -> Vec<(String, String)> {
    let list = find(error, 0..error.len(), &["data", "elicitations"]).ok().flatten();
    let entries = list.into_iter().flat_map(|list| elements(error, list));
    let params = entries.filter_map(|entry| {
        find(error, entry.clone(), &["url"]).ok()??;
        let others = filtered(error, entry, |name, value| match name {
            "mode" | "elicitationId" => None,
            _ => Some(one_line(&error[value]).into_owned()),
        });
        Some(format!("{{\"mode\":\"url\",{}", others.strip_prefix('{')?))
    });
    params
        .take(limits::INPUT_REQUESTS)
        .enumerate()
        .map(|(number, params)| {
            let raw = format!("{{\"method\":\"elicitation/create\",\"params\":{params}}}");
            (format!("elicitation-{}", number + 1), raw)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::stateless::{Capabilities, edits::splice};

    const STATE: usize = 64;

    fn allowed(capabilities: &str) -> Allowed {
        Capabilities::read(capabilities).unwrap().allowed
    }

    fn text(result: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#)
    }

    fn read(text: &str) -> Result<InputRequired, InvalidInput> {
        let message = Message::read(text).unwrap();
        InputRequired::read(text, message.result_span().unwrap(), STATE)
    }

    #[test]
    fn questions_are_read() {
        let found = |result: &str| {
            let text = text(result);
            read(&text).map(|input| {
                let requests: Vec<String> = input
                    .requests
                    .iter()
                    .map(|request| {
                        let params = request.params.clone().map_or("-", |span| &text[span]);
                        format!("{} {:?} {params}", request.key, request.kind)
                    })
                    .collect();
                let state = input.state.map(|(span, state)| {
                    assert_eq!(unquote(&text[span]).as_deref(), Some(&*state));
                    state
                });
                (requests.join("; "), state)
            })
        };
        let one = |entry: &str| format!(r#"{{"inputRequests":{{"k":{entry}}}}}"#);
        let malformed = |why: &str| Err(InvalidInput::Malformed(why.to_owned()));
        let good = |requests: &str, state: Option<&str>| Ok((requests.to_owned(), state.map(str::to_owned)));
        let long = "s".repeat(STATE);
        for (result, expected) in [
            (
                r#"{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"message":"m"}}},"requestState":"r\""}"#.to_owned(),
                good(r#"k Form {"message":"m"}"#, Some("r\"")),
            ),
            (r#"{"requestState":"r"}"#.into(), good("", Some("r"))),
            (r#"{"requestState":"r","inputRequests":{}}"#.into(), good("", Some("r"))),
            (r#"{"requestState":"r","inputRequests":null}"#.into(), good("", Some("r"))),
            (one(r#"{"method":"elicitation/create"}"#), good("k Form -", None)),
            (one(r#"{"method":"elicitation/create","params":{"mode":"form"}}"#), good(r#"k Form {"mode":"form"}"#, None)),
            (one(r#"{"method":"elicitation/create","params":{"mode":"url"}}"#), good(r#"k Url {"mode":"url"}"#, None)),
            (one(r#"{"method":"roots/list","params":null}"#), good("k Roots -", None)),
            (
                r#"{"inputRequests":{"a":{"method":"sampling/createMessage","params":{"tools":[]}},"":{"method":"sampling/createMessage","params":{"tools":null}}}}"#.into(),
                good(r#"a Sampling { tools: true } {"tools":[]};  Sampling { tools: false } {"tools":null}"#, None),
            ),
            (
                one(r#"{"method":"sampling/createMessage","params":{"toolChoice":{}}}"#),
                good(r#"k Sampling { tools: true } {"toolChoice":{}}"#, None),
            ),
            ("{}".into(), malformed("neither inputRequests nor requestState")),
            (r#"{"inputRequests":{}}"#.into(), malformed("neither inputRequests nor requestState")),
            (r#"{"requestState":null}"#.into(), malformed("neither inputRequests nor requestState")),
            (r#"{"requestState":7}"#.into(), malformed("requestState is no string")),
            (r#"{"requestState":"a","requestState":"b"}"#.into(), malformed("duplicate member in the message")),
            (r#"{"inputRequests":[]}"#.into(), malformed("inputRequests is no object")),
            (r#"{"inputRequests":{"a":{"method":"roots/list"},"a":{"method":"roots/list"}}}"#.into(), malformed("a key occurs twice")),
            (one("7"), malformed("a question without method")),
            (one(r#"{"method":7}"#), malformed("a question without method")),
            (one(r#"{"method":"roots/list","params":[]}"#), malformed("params of a question are no object")),
            (one(r#"{"method":"ping"}"#), malformed("method not found: ping")),
            (one(r#"{"method":"elicitation/create","params":{"mode":"x"}}"#), malformed("unknown mode of elicitation")),
            (one(r#"{"method":"elicitation/create","params":{"mode":7}}"#), malformed("unknown mode of elicitation")),
            (
                one(r#"{"method":"elicitation/create","params":{"mode":"form","mode":"url"}}"#),
                malformed("duplicate member in the message"),
            ),
            (format!(r#"{{"requestState":"{long}"}}"#), Err(InvalidInput::StateTooLong(STATE))),
        ] {
            assert_eq!(found(&result), expected, "{result}");
        }
        let many = |count: usize| {
            let entries: Vec<String> =
                (0..count).map(|n| format!(r#""{n}":{{"method":"roots/list"}}"#)).collect();
            found(&format!(r#"{{"inputRequests":{{{}}}}}"#, entries.join(",")))
        };
        assert!(many(limits::INPUT_REQUESTS).is_ok());
        assert_eq!(many(limits::INPUT_REQUESTS + 1), Err(InvalidInput::TooMany));
    }

    #[test]
    fn only_what_is_declared_is_asked() {
        let ask = |method: &str, params: &str| {
            let text =
                text(&format!(r#"{{"inputRequests":{{"k":{{"method":"{method}","params":{params}}}}}}}"#));
            read(&text).unwrap()
        };
        let form = ask("elicitation/create", "{}");
        let url = ask("elicitation/create", r#"{"mode":"url"}"#);
        let sampling = ask("sampling/createMessage", "{}");
        let tools = ask("sampling/createMessage", r#"{"tools":[]}"#);
        let roots = ask("roots/list", "{}");
        let all = [&form, &url, &sampling, &tools, &roots];
        for (capabilities, expected) in [
            ("{}", [false; 5]),
            (r#"{"elicitation":{}}"#, [true, false, false, false, false]),
            (r#"{"elicitation":{"url":{}}}"#, [false, true, false, false, false]),
            (r#"{"elicitation":{"form":{},"url":{}},"roots":{}}"#, [true, true, false, false, true]),
            (r#"{"sampling":{}}"#, [false, false, true, false, false]),
            (r#"{"sampling":{"tools":{}}}"#, [false, false, true, true, false]),
        ] {
            for (input, expected) in all.into_iter().zip(expected) {
                let checked = input.check("tools/call", allowed(capabilities));
                let refused = Err(InvalidInput::Undeclared(input.requests[0].kind));
                assert_eq!(checked, if expected { Ok(()) } else { refused }, "{capabilities}");
            }
        }
        let both = allowed(r#"{"elicitation":{}}"#);
        for (method, expected) in [
            ("tools/call", true),
            ("prompts/get", true),
            ("resources/read", true),
            ("tools/list", false),
            ("completion/complete", false),
        ] {
            assert_eq!((may_ask(method), form.check(method, both).is_ok()), (expected, expected), "{method}");
        }
        assert_eq!(
            read(&text(r#"{"requestState":"s"}"#)).unwrap().check("tools/call", allowed("{}")),
            Ok(())
        );
    }

    #[test]
    fn every_invalid_input_names_the_fault_of_the_server() {
        for (why, expected) in [
            (InvalidInput::Method("tools/list\n".into()), "asked for input in the answer to tools/list\\n"),
            (
                InvalidInput::Undeclared(InputKind::Url),
                "asked for elicitation at a URL, which the client did not declare",
            ),
            (
                InvalidInput::Undeclared(InputKind::Sampling { tools: true }),
                "asked for sampling with tools, which the client did not declare",
            ),
            (InvalidInput::TooMany, "asked more than 16 questions at once"),
            (InvalidInput::StateTooLong(9), "sent a requestState of more than 9 bytes"),
            (InvalidInput::Malformed("why".into()), "sent an invalid input_required result: why"),
        ] {
            assert_eq!(why.rpc("s"), RpcError::new(-32603, format!("server 's' {expected}")));
        }
    }

    #[test]
    fn messages_for_a_person_name_the_server() {
        let given = r#"{"inputRequests":{"a":{"method":"elicitation/create","params":{"message":"Your \"name\"?"}},"b":{"method":"sampling/createMessage","params":{"message":"x"}},"c":{"method":"elicitation/create","params":{"mode":"url","message":"y"}},"d":{"method":"elicitation/create","params":{"message":7}}}}"#;
        let text = text(given);
        let message = Message::read(&text).unwrap();
        let out = splice(&message, read(&text).unwrap().labelled(&text, "srv"));
        let expected = given.replace("\"Your", "\"[srv] Your").replace("\"y\"", "\"[srv] y\"");
        assert_eq!(Message::read(&out).unwrap().result(), Some(&*expected));
    }

    #[test]
    fn sessions_are_asked_by_requests() {
        let params = |entry: &str, id: Option<&str>| {
            let text = text(&format!(r#"{{"inputRequests":{{"k":{entry}}}}}"#));
            let input = read(&text).unwrap();
            input.requests[0].session_params(&text, id)
        };
        for (entry, id, expected) in [
            (r#"{"method":"roots/list"}"#, Some("i"), "{}"),
            (
                "{\"method\":\"elicitation/create\",\"params\":{\n\"message\":\"m\"}}",
                Some("i"),
                r#"{ "message":"m"}"#,
            ),
            (
                r#"{"method":"elicitation/create","params":{"mode":"url","elicitationId":"x","url":"u"}}"#,
                Some("i"),
                r#"{"elicitationId":"i","mode":"url","url":"u"}"#,
            ),
            (r#"{"method":"elicitation/create","params":{"mode":"url"}}"#, None, r#"{"mode":"url"}"#),
        ] {
            assert_eq!(params(entry, id), expected, "{entry}");
        }
    }

    #[test]
    fn requests_of_legacy_servers_become_questions() {
        let embedded = |method: &str, params: &str, capabilities: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"{params}}}"#);
            let question = Embedded::read(&Message::read(&text).unwrap(), allowed(capabilities));
            question.map(|question| question.raw).map_err(|error| error.code)
        };
        let elicit = |params: &str| format!(r#"{{"method":"elicitation/create","params":{params}}}"#);
        let sample = |params: &str| format!(r#"{{"method":"sampling/createMessage","params":{params}}}"#);
        let form = r#"{"elicitation":{}}"#;
        let url = r#"{"elicitation":{"url":{}}}"#;
        for (method, params, capabilities, expected) in [
            (
                "elicitation/create",
                r#","params":{"message":"m"}"#,
                form,
                Ok(elicit(r#"{"mode":"form","message":"m"}"#)),
            ),
            (
                "elicitation/create",
                r#","params":{"mode":"form","task":{},"message":"m","_meta":{"progressToken":1,"io.modelcontextprotocol/related-task":{}}}"#,
                form,
                Ok(elicit(r#"{"mode":"form","message":"m"}"#)),
            ),
            (
                "elicitation/create",
                r#","params":{"mode":"url","elicitationId":"x","url":"u","_meta":{"progressToken":1,"a":2}}"#,
                url,
                Ok(elicit(r#"{"mode":"url","url":"u","_meta":{"a":2}}"#)),
            ),
            ("elicitation/create", r#","params":{}"#, form, Ok(elicit(r#"{"mode":"form"}"#))),
            ("elicitation/create", "", form, Ok(r#"{"method":"elicitation/create"}"#.to_owned())),
            ("elicitation/create", r#","params":[]"#, form, Err(-32602)),
            ("elicitation/create", r#","params":{}"#, "{}", Err(-32601)),
            ("elicitation/create", r#","params":{}"#, url, Err(-32602)),
            ("elicitation/create", r#","params":{"mode":"url"}"#, form, Err(-32602)),
            ("elicitation/create", r#","params":{"mode":"x"}"#, form, Err(-32602)),
            (
                "sampling/createMessage",
                ",\"params\":{\"messages\":[\n],\"includeContext\":\"allServers\",\"mode\":1}",
                r#"{"sampling":{}}"#,
                Ok(sample(r#"{"messages":[ ],"mode":1}"#)),
            ),
            (
                "sampling/createMessage",
                r#","params":{"includeContext":"allServers"}"#,
                r#"{"sampling":{"context":{}}}"#,
                Ok(sample(r#"{"includeContext":"allServers"}"#)),
            ),
            ("sampling/createMessage", r#","params":{"tools":[]}"#, r#"{"sampling":{}}"#, Err(-32602)),
            ("sampling/createMessage", r#","params":{}"#, form, Err(-32601)),
            ("roots/list", "", r#"{"roots":{}}"#, Ok(r#"{"method":"roots/list"}"#.into())),
            ("roots/list", ",\"params\":null", r#"{"roots":{}}"#, Ok(r#"{"method":"roots/list"}"#.into())),
            ("roots/list", "", "{}", Err(-32601)),
            ("other", "", form, Err(-32601)),
        ] {
            assert_eq!(embedded(method, params, capabilities), expected, "{method} {params}");
        }
        let server = ServerStamp::of(r#"{"serverInfo":{"name":"s"}}"#);
        let entries = [("elicitation-1".to_owned(), elicit("{}")), ("roots-1".to_owned(), "{}".to_owned())];
        assert_eq!(
            input_required(&entries, "s\"", &server),
            r#"{"resultType":"input_required","inputRequests":{"elicitation-1":{"method":"elicitation/create","params":{}},"roots-1":{}},"requestState":"s\"","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s"}}}"#
        );
    }

    #[test]
    fn answers_become_responses() {
        let sampling = InputKind::Sampling { tools: false };
        let image = r#"{"type":"image","data":""}"#;
        let block = r#"{"type":"text","text":"x"}"#;
        for (kind, answer, version, expected) in [
            (InputKind::Form, r#"{"action":"accept","content":{"n":1}}"#.to_owned(), "2025-11-25", None),
            (
                InputKind::Form,
                r#"{"action":"decline","content":{"n":1}}"#.into(),
                "2025-11-25",
                Some(r#"{"action":"decline"}"#.to_owned()),
            ),
            (
                InputKind::Url,
                r#"{"content":{},"action":"cancel"}"#.into(),
                "2025-11-25",
                Some(r#"{"action":"cancel"}"#.into()),
            ),
            (sampling, format!(r#"{{"role":"assistant","content":[{image},{block}]}}"#), "2025-11-25", None),
            (
                sampling,
                format!(r#"{{"role":"assistant","content":[{image},{block}],"model":"m"}}"#),
                "2025-06-18",
                Some(format!(r#"{{"role":"assistant","content":{block},"model":"m"}}"#)),
            ),
            (
                sampling,
                format!(r#"{{"content":[{image}]}}"#),
                "2024-11-05",
                Some(r#"{"content":{"type":"text","text":""}}"#.into()),
            ),
            (sampling, format!(r#"{{"content":{block}}}"#), "2024-11-05", None),
            (InputKind::Roots, r#"{"roots":[]}"#.into(), "2024-11-05", None),
        ] {
            let expected = expected.unwrap_or_else(|| answer.clone());
            assert_eq!(response("\"i\"", kind, &answer, version), jsonrpc::result("\"i\"", &expected));
        }
        for answer in ["[]", "null", "\"x\""] {
            let text = response("1", InputKind::Form, answer, "2025-11-25");
            assert!(text.contains("-32602"), "{text}");
        }
        assert_eq!(response("1", InputKind::Roots, "{\n}", "2025-11-25"), jsonrpc::result("1", "{ }"));
        for (kind, expected) in [
            (InputKind::Form, r#""result":{"action":"cancel"}"#),
            (InputKind::Url, r#""result":{"action":"cancel"}"#),
            (sampling, r#""code":-1"#),
            (InputKind::Roots, r#""code":-32603"#),
        ] {
            assert!(given_up("1", kind).contains(expected));
        }
        let text = r#"{"a":{"x":1},"b":2}"#;
        for (key, expected) in [("a", Some(r#"{"x":1}"#)), ("b", Some("2")), ("c", None)] {
            assert_eq!(answer(text, Some(&(0..text.len())), key), expected);
        }
        assert_eq!((answer(text, None, "a"), answer("[1]", Some(&(0..3)), "a")), (None, None));
    }

    #[test]
    fn an_error_that_asks_for_urls_becomes_questions() {
        let one = |n: usize| format!(r#"{{"mode":"url","elicitationId":"{n}","url":"u{n}","message":"m"}}"#);
        let error = |list: &str| {
            format!(r#"{{"code":{URL_REQUIRED},"message":"m","data":{{"elicitations":{list}}}}}"#)
        };
        let question = |n: usize| {
            let raw = format!(
                r#"{{"method":"elicitation/create","params":{{"mode":"url","url":"u{n}","message":"m"}}}}"#
            );
            (format!("elicitation-{n}"), raw)
        };
        assert_eq!(url_questions(&error(&format!("[{},{}]", one(1), one(2)))), [question(1), question(2)]);
        for list in ["[]", "{}", "7", "[7,{}]"] {
            assert_eq!(url_questions(&error(list)), []);
        }
        assert_eq!(url_questions("{}"), []);
        let many: Vec<String> = (0..99).map(one).collect();
        assert_eq!(url_questions(&error(&format!("[{}]", many.join(",")))).len(), limits::INPUT_REQUESTS);
    }
}
