//! MCP 2026-07-28 in the fake server: `--era` and `--probe`, with the tools that only this revision
//! has.

use std::{
    collections::{BTreeMap, BTreeSet},
    process,
    sync::{Arc, Mutex},
};

use serde_json::{Map, Value, json};

use crate::{LEVELS, Server, lock};

const VERSION: &str = "2026-07-28";
const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";

const INVALID_PARAMS: i64 = -32602;
const NOT_FOUND: i64 = -32601;
const MISSING_CAPABILITY: i64 = -32021;
const UNSUPPORTED_VERSION: i64 = -32022;

/// Methods of earlier revisions that this one does not have.
const REMOVED: &[&str] = &[
    "logging/setLevel",
    "ping",
    "resources/subscribe",
    "resources/unsubscribe",
    "tasks/list",
    "tasks/result",
];

/// Methods whose complete results have `ttlMs` and `cacheScope`.
const CACHEABLE: &[&str] = &[
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "server/discover",
    "tools/list",
];

/// The tools of this revision.
pub const TOOLS: &[&str] =
    &["cancelled", "counts", "end_listens", "input", "listens", "log", "need", "params", "touch"];

/// The revisions that the server speaks (`--era`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Era {
    /// Only those with `initialize`.
    #[default]
    Legacy,
    /// Only 2026-07-28.
    Modern,
    /// Both. `server/discover` does not decide the era of the process, any other request does.
    Both,
    /// Both. The first request decides the era of the process, also if it is `server/discover`.
    First,
}

/// What the server does with `server/discover` (`--probe`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Probe {
    /// It answers in its era.
    #[default]
    Answer,
    /// It exits at any first message but `initialize` and `ping`.
    Die,
    /// It does not answer.
    Silent,
    /// It answers with a line that is no JSON.
    Garbage,
    /// It reads nothing for the time of `--probe-ms`.
    Slow,
    /// It answers without `resultType`.
    Untyped,
    /// It answers with versions among which 2026-07-28 is not.
    Older,
    /// It answers with this error.
    Error(i64),
}

/// What the server does with `subscriptions/listen` (`--listen`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Listen {
    #[default]
    Accept,
    /// The method does not exist.
    Unknown,
    /// It is refused if the filter has URIs.
    NoUris,
}

/// The state of a process that speaks the revision.
#[derive(Debug, Default)]
pub struct State {
    /// Whether the process has decided for 2026-07-28, or for `initialize`.
    decided: Mutex<Option<bool>>,
    /// Something was read.
    begun: Mutex<bool>,
    /// Raw ids of the requests that are neither answered nor cancelled.
    open: Mutex<BTreeSet<String>>,
    /// Raw ids of the cancelled requests, in order.
    cancelled: Mutex<Vec<String>>,
    /// The honoured filters of the open listens, by raw id.
    listens: Mutex<BTreeMap<String, Value>>,
    /// Calls that wait for input, by their `requestState`. One can be used more than once.
    rounds: Mutex<BTreeMap<String, Round>>,
}

/// A call that waits for input.
#[derive(Clone, Debug, Default)]
struct Round {
    method: String,
    /// The params without `_meta`, `inputResponses` and `requestState`: they may not change.
    params: Value,
    /// The answers of the complete rounds.
    complete: Vec<Value>,
    /// The answers of this round so far.
    answers: Map<String, Value>,
}

impl Era {
    pub fn read(word: &str) -> Self {
        match word {
            "legacy" => Self::Legacy,
            "modern" => Self::Modern,
            "both" => Self::Both,
            "first" => Self::First,
            other => panic!("unknown era {other}"),
        }
    }
}

impl Probe {
    pub fn read(word: &str) -> Self {
        match word {
            "die" => Self::Die,
            "silent" => Self::Silent,
            "garbage" => Self::Garbage,
            "slow" => Self::Slow,
            "untyped" => Self::Untyped,
            "older" => Self::Older,
            code => Self::Error(code.parse().expect("a kind of probe, or an error code")),
        }
    }
}

impl Listen {
    pub fn read(word: &str) -> Self {
        match word {
            "unknown" => Self::Unknown,
            "no-uris" => Self::NoUris,
            other => panic!("unknown kind of listen {other}"),
        }
    }
}

/// Ends the process if `--probe die` says so.
pub fn first_message(server: &Server, method: &Value) {
    let first = !std::mem::replace(&mut *lock(&server.modern.begun), true);
    if first && server.options.probe == Probe::Die && *method != "initialize" && *method != "ping" {
        process::exit(3);
    }
}

/// Whether the process speaks 2026-07-28 now.
pub fn is_on(server: &Server) -> bool {
    match server.options.era {
        Era::Legacy => false,
        Era::Modern => true,
        Era::Both | Era::First => *lock(&server.modern.decided) == Some(true),
    }
}

/// Handles a request of this revision, and one that is refused because of the era. Returns false
/// if it is a request of an earlier revision.
pub fn request(server: &Arc<Server>, method: &str, id: &str, params: &Value) -> bool {
    if method == "server/discover" && probe(server, id) {
        return true;
    }
    let decided = match server.options.era {
        Era::Legacy => return false,
        Era::Modern => Some(true),
        Era::Both | Era::First => *lock(&server.modern.decided),
    };
    let enveloped = params["_meta"].get(PROTOCOL_VERSION).is_some();
    match (decided, method) {
        (Some(true), "initialize") => {
            unsupported(server, id, &params["protocolVersion"]);
            return true;
        }
        (Some(false), _) if enveloped => {
            server.error(id, -32600, "this process was initialized", None);
            return true;
        }
        (Some(false), _) => return false,
        (None, "initialize") => {
            *lock(&server.modern.decided) = Some(false);
            return false;
        }
        _ => {}
    }
    if check_envelope(server, id, params) {
        if method != "server/discover" || server.options.era == Era::First {
            *lock(&server.modern.decided) = Some(true);
        }
        dispatch(server, method, id, params);
    }
    true
}

/// Handles `server/discover` if the flags say how.
fn probe(server: &Server, id: &str) -> bool {
    match server.options.probe {
        Probe::Answer | Probe::Slow | Probe::Die => return false,
        Probe::Silent => {}
        Probe::Garbage => {
            server.line("starting up");
            server.line(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{\"supported"));
        }
        Probe::Untyped => server.result(id, &json!({"supportedVersions": [VERSION]}).to_string()),
        Probe::Older => {
            let result = json!({"resultType": "complete", "supportedVersions": ["2025-11-25"]});
            server.result(id, &result.to_string());
        }
        Probe::Error(code) => server.error(id, code, "not this", None),
    }
    true
}

fn unsupported(server: &Server, id: &str, requested: &Value) {
    let data = json!({"supported": [VERSION], "requested": requested});
    server.error(id, UNSUPPORTED_VERSION, "Unsupported protocol version", Some(&data));
}

/// Answers a request whose envelope is invalid, and returns false for it.
fn check_envelope(server: &Server, id: &str, params: &Value) -> bool {
    let meta = &params["_meta"];
    let (version, level) = (&meta[PROTOCOL_VERSION], meta.get(LOG_LEVEL));
    let why = if !version.is_string() {
        format!("_meta has no {PROTOCOL_VERSION}")
    } else if !meta[CAPABILITIES].is_object() {
        format!("_meta has no {CAPABILITIES}")
    } else if level.is_some_and(|level| !LEVELS.iter().any(|known| level == known)) {
        "unknown log level".to_owned()
    } else if version != VERSION {
        unsupported(server, id, version);
        return false;
    } else {
        return true;
    };
    server.error(id, INVALID_PARAMS, &why, None);
    false
}

fn dispatch(server: &Arc<Server>, method: &str, id: &str, params: &Value) {
    if let Some(capability) = server.options.strict.then(|| undeclared(params)).flatten() {
        return missing(server, id, &capability);
    }
    let asks =
        |path: &str| params.pointer(path).and_then(Value::as_str).is_some_and(|it| it.starts_with("input"));
    match method {
        _ if REMOVED.contains(&method) => server.error(id, NOT_FOUND, "method not found", None),
        // Also while the era is undecided.
        "server/discover" => server.result(id, &stamp(server, method, discover_result(server)).to_string()),
        "subscriptions/listen" => listen(server, id, params),
        "tools/list" => server.list(id, params),
        "tools/call" => server.call(id, params),
        "prompts/get" if server.options.rich && asks("/name") => {
            let plan = params.pointer("/arguments/plan").and_then(Value::as_str).unwrap_or("{}");
            let plan = serde_json::from_str(plan).expect("the plan of a prompt is JSON");
            input(server, method, id, params, &plan);
        }
        "resources/read" if server.options.rich && asks("/uri") => {
            input(server, method, id, params, &json!({}));
        }
        _ if server.options.rich => server.rich(method, id, params),
        _ => server.error(id, NOT_FOUND, "method not found", None),
    }
}

fn discover_result(server: &Server) -> Value {
    let mut capabilities = json!({"tools": {"listChanged": true}, "logging": {}});
    if server.options.rich {
        capabilities["resources"] = json!({"listChanged": true, "subscribe": true});
        capabilities["prompts"] = json!({"listChanged": true});
        capabilities["completions"] = json!({});
        capabilities["experimental"] = json!({"odd": {"x": 1}});
    }
    for extension in &server.options.extensions {
        capabilities["extensions"][extension] = json!({});
    }
    let mut result = json!({"supportedVersions": [VERSION], "capabilities": capabilities});
    if server.options.rich {
        result["instructions"] = json!(format!("Ask {}.", server.options.label));
    }
    result
}

/// Adds what a complete result of this revision has.
pub fn stamp(server: &Server, method: &str, mut result: Value) -> Value {
    result["resultType"] = json!("complete");
    result["_meta"][SERVER_INFO] = json!({"name": "fake", "version": "1"});
    if CACHEABLE.contains(&method) {
        result["ttlMs"] = json!(server.options.ttl.unwrap_or(60_000));
        result["cacheScope"] = json!(server.options.scope.as_deref().unwrap_or("public"));
    }
    result
}

/// Records a request.
pub fn open(server: &Server, id: &str) {
    lock(&server.modern.open).insert(id.to_owned());
}

/// Closes a request. Returns false if it was cancelled, so that nothing may be sent for it.
pub fn close(server: &Server, id: &str) -> bool {
    lock(&server.modern.open).remove(id) || server.options.ignore_cancel || !is_on(server)
}

/// Handles `notifications/cancelled`.
pub fn cancelled(server: &Server, id: &Value) {
    let id = server.in_form(id.to_string());
    lock(&server.modern.open).remove(&id);
    lock(&server.modern.listens).remove(&id);
    lock(&server.modern.cancelled).push(id);
}

/// Runs a tool. Returns false for an unknown one.
pub fn call(server: &Server, id: &str, params: &Value) -> bool {
    let arguments = &params["arguments"];
    let text = |name: &str| arguments[name].as_str().unwrap_or_default();
    match params["name"].as_str().unwrap_or_default() {
        // The raw ids of the cancelled requests, in order.
        "cancelled" => server.text(id, &json!(*lock(&server.modern.cancelled)).to_string()),
        // The number of requests with each method, and of calls of each tool.
        "counts" => {
            let counts: BTreeMap<String, usize> = lock(&server.counts).clone().into_iter().collect();
            server.text(id, &json!(counts).to_string());
        }
        "end_listens" => {
            let ended: Vec<String> = std::mem::take(&mut *lock(&server.modern.listens)).into_keys().collect();
            for listen in &ended {
                end_listen(server, listen, text("how"));
            }
            server.text(id, &format!("{} ended", ended.len()));
        }
        "input" => input(server, "tools/call", id, params, arguments),
        // The honoured filters of the open listens, by raw id.
        "listens" => server.text(id, &json!(*lock(&server.modern.listens)).to_string()),
        "log" => {
            let rank = |level: &Value| LEVELS.iter().position(|known| level == known);
            let wanted = rank(&params["_meta"][LOG_LEVEL]);
            let sent = wanted.is_some() && rank(&arguments["level"]) >= wanted;
            if sent {
                server
                    .notify("notifications/message", &json!({"level": text("level"), "data": text("text")}));
            }
            server.text(id, if sent { "logged" } else { "not logged" });
        }
        // Needs a capability of the client.
        "need" => match params["_meta"][CAPABILITIES].get(text("capability")) {
            Some(_) => server.text(id, "declared"),
            None => missing(server, id, text("capability")),
        },
        // The params as the server got them.
        "params" => server.text(id, &params.to_string()),
        // A change of a resource, or of a list.
        "touch" => {
            let uri = text("uri");
            match text("kind") {
                "" => updated(server, uri),
                kind => list_changed(server, kind),
            }
            server.text(id, "touched");
        }
        _ => return false,
    }
    true
}

fn missing(server: &Server, id: &str, capability: &str) {
    let data = json!({"requiredCapabilities": {capability: {}}});
    server.error(id, MISSING_CAPABILITY, "the client lacks a capability", Some(&data));
}

/// With `--strict`: a capability that the client would need for the input of this call and has not
/// declared.
fn undeclared(params: &Value) -> Option<String> {
    let requests = params.pointer("/arguments/requests")?.as_object()?;
    let kind = |request: &Value| match request["method"].as_str() {
        Some("elicitation/create") => "elicitation",
        Some("sampling/createMessage") => "sampling",
        _ => "roots",
    };
    let kinds = requests.values().map(kind);
    let lacks = |kind: &&str| params["_meta"][CAPABILITIES].get(kind).is_none();
    kinds.into_iter().find(lacks).map(str::to_owned)
}

/// A request that asks its client for input, as `plan` says: `requests` (`inputRequests`; none for
/// a result with `requestState` alone), `rounds` (how often it asks), `stateless` (no
/// `requestState`; one round only) and `pad` (bytes added to the state). The text of the result is
/// a list of the answers of each round.
fn input(server: &Server, method: &str, id: &str, params: &Value, plan: &Value) {
    let elicitation = json!({"method": "elicitation/create", "params": {"mode": "form", "message": "name?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}});
    let default = Map::from_iter([("k".to_owned(), elicitation)]);
    let requests = plan["requests"].as_object().unwrap_or(&default);
    let (state, responses) = (&params["requestState"], &params["inputResponses"]);
    let mut own = params.clone();
    for member in ["_meta", "inputResponses", "requestState"] {
        own.as_object_mut().expect("params are an object").remove(member);
    }
    let fresh = Round { method: method.to_owned(), params: own, ..Round::default() };
    let mut round = match state.as_str() {
        Some(state) => match lock(&server.modern.rounds).get(state) {
            Some(round) if round.method == fresh.method && round.params == fresh.params => round.clone(),
            _ => return server.error(id, INVALID_PARAMS, "Invalid or expired requestState", None),
        },
        None if responses.is_object() && plan["stateless"] == true => fresh,
        None if responses.is_null() || plan["stateless"] != true => {
            return ask(server, id, plan, requests, fresh);
        }
        None => return server.error(id, INVALID_PARAMS, "inputResponses must be an object", None),
    };
    for (key, answer) in responses.as_object().into_iter().flatten() {
        if requests.contains_key(key) {
            round.answers.insert(key.clone(), answer.clone());
        }
    }
    if requests.keys().any(|key| !round.answers.contains_key(key)) {
        return ask(server, id, plan, requests, round);
    }
    round.complete.push(Value::Object(std::mem::take(&mut round.answers)));
    if (round.complete.len() as u64) < plan["rounds"].as_u64().unwrap_or(1) {
        return ask(server, id, plan, requests, round);
    }
    server.count("input complete");
    let text = Value::Array(round.complete).to_string();
    let content = json!({"type": "text", "text": text});
    let result = match method {
        "tools/call" => json!({"content": [content]}),
        "prompts/get" => json!({"messages": [{"role": "user", "content": content}]}),
        _ => json!({"contents": [{"uri": params["uri"], "text": text}]}),
    };
    server.complete(id, method, result);
}

/// Answers with the requests whose answers are missing.
fn ask(server: &Server, id: &str, plan: &Value, requests: &Map<String, Value>, round: Round) {
    let mut result = json!({"resultType": "input_required"});
    let open: Map<String, Value> = requests
        .iter()
        .filter(|(key, _)| !round.answers.contains_key(*key))
        .map(|(key, request)| (key.clone(), request.clone()))
        .collect();
    if !open.is_empty() {
        result["inputRequests"] = Value::Object(open);
    }
    if plan["stateless"] != true {
        let pad = "x".repeat(plan["pad"].as_u64().unwrap_or_default() as usize);
        let mut rounds = lock(&server.modern.rounds);
        let state = format!("state {} of {} \u{e9}{pad}", rounds.len(), process::id());
        result["requestState"] = json!(state);
        rounds.insert(state, round);
    }
    server.result(id, &result.to_string());
}

fn listen(server: &Server, id: &str, params: &Value) {
    let Some(filter) = params["notifications"].as_object() else {
        return server.error(id, INVALID_PARAMS, "no filter", None);
    };
    let uris: Vec<&str> = filter
        .get("resourceSubscriptions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    match server.options.listen {
        Listen::Unknown => return server.error(id, NOT_FOUND, "method not found", None),
        Listen::NoUris if !uris.is_empty() => {
            return server.error(id, INVALID_PARAMS, "no such resource", None);
        }
        Listen::Accept | Listen::NoUris => {}
    }
    let mut honoured = json!({});
    for kind in ["toolsListChanged", "promptsListChanged", "resourcesListChanged"] {
        if filter.get(kind) == Some(&json!(true)) && (server.options.rich || kind == "toolsListChanged") {
            honoured[kind] = json!(true);
        }
    }
    if server.options.rich && filter.contains_key("resourceSubscriptions") {
        let known = uris.iter().filter(|uri| !uri.contains("none"));
        honoured["resourceSubscriptions"] = known.copied().collect();
    }
    lock(&server.modern.listens).insert(id.to_owned(), honoured.clone());
    let params = json!({"notifications": honoured, "_meta": {SUBSCRIPTION: number(id)}});
    server.notify("notifications/subscriptions/acknowledged", &params);
}

fn end_listen(server: &Server, id: &str, how: &str) {
    match how {
        "error" => server.error(id, -32603, "no more", None),
        "cancelled" => {
            close(server, id);
            server.notify("notifications/cancelled", &json!({"requestId": number(id)}));
        }
        _ => {
            let result = json!({"resultType": "complete", "_meta": {SUBSCRIPTION: number(id)}});
            server.result(id, &result.to_string());
        }
    }
}

/// Tells the listens that asked for it that a list has changed: `tools`, `prompts` or `resources`.
pub fn list_changed(server: &Server, kind: &str) {
    let asked = |filter: &Value| filter[format!("{kind}ListChanged")] == true;
    tell(server, &format!("notifications/{kind}/list_changed"), &json!({}), asked);
}

/// Tells the listens with this URI, or with one that it begins with, of a change of the resource.
fn updated(server: &Server, uri: &str) {
    let asked = |filter: &Value| {
        let uris = filter["resourceSubscriptions"].as_array().into_iter().flatten();
        uris.filter_map(Value::as_str).any(|one| uri.starts_with(one))
    };
    tell(server, "notifications/resources/updated", &json!({"uri": uri}), asked);
}

fn tell(server: &Server, method: &str, params: &Value, asked: impl Fn(&Value) -> bool) {
    for (id, filter) in &*lock(&server.modern.listens) {
        if asked(filter) {
            let mut params = params.clone();
            params["_meta"] = json!({SUBSCRIPTION: number(id)});
            server.notify(method, &params);
        }
    }
}

/// The value of a raw id.
fn number(id: &str) -> Value {
    serde_json::from_str(id).expect("an id is JSON")
}
