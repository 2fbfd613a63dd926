//! The `--session` mode of the fake server: it sends requests to its client, and keeps state for
//! it.

use std::{
    collections::{BTreeMap, BTreeSet},
    process,
    sync::Mutex,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{LEVELS, Server, lock};

/// The tools of this mode.
pub const TOOLS: &[&str] =
    &["ask", "family", "flood", "greeting", "leave", "level", "log", "retract", "subscribed", "touch"];

/// The state kept for the client.
#[derive(Debug, Default)]
pub struct Session {
    /// The params of `initialize`.
    initialize_params: Mutex<String>,
    /// The next request id: each process numbers from 0.
    next: Mutex<u64>,
    questions: Mutex<Questions>,
    level: Mutex<Option<usize>>,
    subscribed: Mutex<BTreeSet<String>>,
}

/// Calls of `ask` that wait for responses.
#[derive(Debug, Default)]
struct Questions {
    /// The raw id of each request's call, by the request's id.
    open: BTreeMap<u64, String>,
    /// The responses so far for each call, by the request's id.
    answers: BTreeMap<String, BTreeMap<u64, Value>>,
}

/// Handles `initialize`: waits for the file of `--gate`, and fails if told to.
pub fn initialize(server: &std::sync::Arc<Server>, id: &str, params: &Value) {
    *lock(&server.session.initialize_params) = params.to_string();
    let version = server.options.version.clone();
    let version =
        version.unwrap_or_else(|| params["protocolVersion"].as_str().unwrap_or_default().to_owned());
    // In a form that no serializer writes, to show whether it was rewritten.
    let result = format!(
        r#"{{ "serverInfo":{{"name":"fake","version":"1"}}, "protocolVersion" : "{version}","capabilities":{{"tools":{{}},"logging":{{}},"resources":{{"subscribe":true}}}},"odd":[1.0,"é\u00e9"]}}"#
    );
    let (server, id, gate) = (server.clone(), id.to_owned(), server.options.gate.clone());
    let Some(gate) = gate else { return server.result(&id, &result) };
    thread::spawn(move || {
        loop {
            match std::fs::read_to_string(&gate) {
                Ok(word) if word == "no" => return server.error(&id, -32603, "not for you", None),
                Ok(word) if word == "quit" => {
                    server.result(&id, &result);
                    process::exit(0);
                }
                Ok(_) => return server.result(&id, &result),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    });
}

/// Handles other requests. Returns false for an unknown one.
pub fn request(server: &Server, method: &str, id: &str, params: &Value) -> bool {
    let session = &server.session;
    let uri = || params["uri"].as_str().unwrap_or_default().to_owned();
    match method {
        "logging/setLevel" => {
            *lock(&session.level) = LEVELS.iter().position(|level| params["level"] == **level);
        }
        "resources/subscribe" => drop(lock(&session.subscribed).insert(uri())),
        "resources/unsubscribe" => drop(lock(&session.subscribed).remove(&uri())),
        "resources/list" => {
            let list =
                json!({"resources": [{"uri": "test://a", "name": "a"}, {"uri": "test://b", "name": "b"}]});
            server.result(id, &list.to_string());
            return true;
        }
        _ => return false,
    }
    server.result(id, "{}");
    true
}

/// Runs a tool. Returns false for an unknown one.
pub fn call(server: &Server, id: &str, params: &Value) -> bool {
    let (session, arguments) = (&server.session, &params["arguments"]);
    let text = |name: &str| arguments[name].as_str().unwrap_or_default();
    match params["name"].as_str().unwrap_or_default() {
        "ask" => ask(server, id, arguments),
        "family" => {
            // A process that ignores the end of stdin and of its parent.
            let started = process::Command::new("sleep").arg("777").stdout(process::Stdio::null()).spawn();
            server.text(id, &started.expect("sleep can be started").id().to_string());
        }
        "flood" => {
            for _ in 0..arguments["count"].as_u64().unwrap_or_default() {
                server.line("{\"jsonrpc\":\"2.0\",\"method\":\"x\"}");
            }
            server.text(id, "flooded");
        }
        "greeting" => server.text(id, &lock(&session.initialize_params).clone()),
        "leave" => {
            server.text(id, "good bye");
            process::exit(0);
        }
        "level" => server.text(id, &format!("{:?}", lock(&session.level).map(|level| LEVELS[level]))),
        "log" => {
            let wanted = *lock(&session.level);
            let level = LEVELS.iter().position(|level| arguments["level"] == **level);
            if level >= wanted {
                server
                    .notify("notifications/message", &json!({"level": text("level"), "data": text("text")}));
            }
            server.text(id, "logged");
        }
        "retract" => {
            let question = question(server, id, arguments);
            server.notify("notifications/cancelled", &json!({"requestId": question, "reason": "never mind"}));
            server.text(id, "retracted");
        }
        "subscribed" => server.text(id, &format!("{:?}", lock(&session.subscribed))),
        "touch" => {
            if lock(&session.subscribed).contains(text("uri")) {
                server.notify("notifications/resources/updated", &json!({"uri": text("uri")}));
            }
            server.text(id, "touched");
        }
        _ => return false,
    }
    true
}

/// Sends the client this many requests at once; the text is all responses, in the order of the
/// requests.
fn ask(server: &Server, id: &str, arguments: &Value) {
    let count = arguments["count"].as_u64().unwrap_or(1);
    lock(&server.session.questions).answers.insert(id.to_owned(), BTreeMap::new());
    // All are recorded before the first can be answered.
    let first = {
        let mut next = lock(&server.session.next);
        *next += count;
        *next - count
    };
    for number in first..first + count {
        lock(&server.session.questions).open.insert(number, id.to_owned());
    }
    for number in first..first + count {
        put(server, number, arguments);
    }
}

fn question(server: &Server, id: &str, arguments: &Value) -> u64 {
    let number = {
        let mut next = lock(&server.session.next);
        *next += 1;
        *next - 1
    };
    lock(&server.session.questions).open.insert(number, id.to_owned());
    put(server, number, arguments);
    number
}

fn put(server: &Server, number: u64, arguments: &Value) {
    let (method, params) = (&arguments["method"], &arguments["params"]);
    server.line(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":{method},\"params\":{params}}}"));
}

/// Handles a response of the client.
pub fn answered(server: &Server, message: &Value) {
    let Some(number) = message["id"].as_u64() else { return };
    let complete = {
        let mut questions = lock(&server.session.questions);
        let Some(call) = questions.open.remove(&number) else { return };
        let waiting = questions.open.values().any(|other| *other == call);
        if let Some(answers) = questions.answers.get_mut(&call) {
            answers.insert(number, message.clone());
        }
        if waiting { None } else { questions.answers.remove(&call).map(|answers| (call, answers)) }
    };
    if let Some((call, answers)) = complete {
        let answers: Vec<Value> = answers.into_values().collect();
        server.text(&call, &Value::from(answers).to_string());
    }
}
