//! A stdio MCP server whose behaviour tests control. It belongs to the tests, not to the program.
//!
//! It records its input (`--log FILE`, one line for each line read), so that a test can check what
//! arrived. Flags make it misbehave; its tools do what their names say.

#![allow(
    clippy::disallowed_methods,
    clippy::exit,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "lints for the program; a test may stop"
)]

mod modern;
mod session;

use std::{
    collections::{BTreeMap, HashMap},
    env, fs,
    io::{self, BufRead, Write},
    process, str,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// The parsed flags.
#[derive(Debug, Default)]
struct Options {
    /// File to which all input is written.
    log: Option<String>,
    /// Ignores SIGTERM.
    ignore_term: bool,
    /// Ignores the end of stdin.
    ignore_eof: bool,
    /// Methods that are never answered.
    mute: Vec<String>,
    /// Methods that are answered only once.
    once: Vec<String>,
    /// Methods that are answered with an error.
    refuse: Vec<String>,
    /// Protocol version in the `initialize` result.
    version: Option<String>,
    /// Tools on one page of the list; 0 for all.
    page: usize,
    /// Names of additional tools.
    tools: Vec<String>,
    /// Offers resources, prompts, completion and log levels too.
    rich: bool,
    /// Text of its resources, also named in its instructions.
    label: String,
    /// Additional resource URIs.
    resources: Vec<String>,
    /// Number of additional resources with long URIs.
    many: usize,
    /// Sends requests to its client, and keeps state for it.
    session: bool,
    /// Each start adds a line to this file, and the list of tools shows the number of the start.
    starts: Option<String>,
    /// Methods at which it exits with status 3, without a response.
    quit: Vec<String>,
    /// The first and the last start in which it does so.
    quit_in: (usize, usize),
    /// How it writes request ids and progress tokens, with `ID` in place of the number.
    id_form: Option<String>,
    /// With `session`: `initialize` is not answered before this file exists.
    gate: Option<String>,
    /// The revisions of MCP that it speaks.
    era: modern::Era,
    /// What it does with `server/discover`.
    probe: modern::Probe,
    /// With `--probe slow`: the time in which it reads nothing, in milliseconds.
    probe_ms: u64,
    /// What it does with `subscriptions/listen`.
    listen: modern::Listen,
    /// Methods that are answered with this result, as it is.
    answers: HashMap<String, String>,
    /// The `inputSchema` of additional tools, by name.
    schemas: BTreeMap<String, String>,
    /// Extensions in the `server/discover` result.
    extensions: Vec<String>,
    /// `ttlMs` and `cacheScope` of its results.
    ttl: Option<u64>,
    scope: Option<String>,
    /// Checks the client's capabilities before it asks for input.
    strict: bool,
    /// Answers requests that were cancelled.
    ignore_cancel: bool,
}

const TOOLS: &[&str] = &[
    "ask_client",
    "big",
    "change",
    "crash",
    "deaf",
    "echo",
    "env",
    "fail",
    "hold",
    "is_error",
    "noise",
    "pid",
    "progress",
    "raw",
    "release",
    "sleep",
];

const LEVELS: &[&str] = &["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

struct Server {
    options: Options,
    /// Number of this start, with `--starts`.
    start: usize,
    /// Calls of `hold` that wait for `release`: raw ids by their key.
    held: Mutex<HashMap<String, String>>,
    /// Progress tokens of such calls.
    tokens: Mutex<HashMap<String, Value>>,
    /// Pending requests to the client: raw ids of the calls that wait for the responses, by our id.
    asked: Mutex<HashMap<String, String>>,
    /// Number of requests for each method, and of calls of each tool.
    counts: Mutex<HashMap<String, usize>>,
    /// Number of calls of `count` with each text.
    seen: Mutex<HashMap<String, u64>>,
    /// Number of calls of `change`, each of which adds a tool.
    changes: AtomicUsize,
    session: session::Session,
    modern: modern::State,
    output: Mutex<io::Stdout>,
}

fn main() {
    let options = options();
    let start = options.starts.as_ref().map_or(0, |path| {
        let mut file =
            fs::OpenOptions::new().create(true).append(true).open(path).expect("it can be written");
        file.write_all(format!("{}\n", process::id()).as_bytes()).expect("it can be written");
        fs::read_to_string(path).expect("it can be read").lines().count()
    });
    let server = Arc::new(Server {
        options,
        start,
        held: Mutex::default(),
        tokens: Mutex::default(),
        asked: Mutex::default(),
        counts: Mutex::default(),
        seen: Mutex::default(),
        changes: AtomicUsize::new(0),
        session: session::Session::default(),
        modern: modern::State::default(),
        output: Mutex::new(io::stdout()),
    });
    // A handler that is never polled has the effect of ignoring the signal.
    let _handler =
        server.options.ignore_term.then(|| async_signal::Signals::new([async_signal::Signal::Term]));
    let mut log = server.options.log.as_ref().map(|path| {
        fs::OpenOptions::new().create(true).append(true).open(path).expect("the log can be written")
    });
    if server.options.probe == modern::Probe::Slow {
        thread::sleep(Duration::from_millis(server.options.probe_ms));
    }
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        if let Some(log) = &mut log {
            // One write for each line, because several processes may share the file.
            log.write_all(format!("{line}\n").as_bytes()).expect("the log can be written");
        }
        server.read(&line);
    }
    if server.options.ignore_eof {
        loop {
            thread::park();
        }
    }
}

fn options() -> Options {
    let mut options = Options { quit_in: (0, usize::MAX), probe_ms: 20_000, ..Options::default() };
    let mut words = env::args().skip(1);
    while let Some(flag) = words.next() {
        let mut value = || words.next().expect("the flag has a value");
        match flag.as_str() {
            "--log" => options.log = Some(value()),
            "--ignore-term" => options.ignore_term = true,
            "--ignore-eof" => options.ignore_eof = true,
            "--mute" => options.mute.push(value()),
            "--once" => options.once.push(value()),
            "--refuse" => options.refuse.push(value()),
            "--version" => options.version = Some(value()),
            "--page" => options.page = value().parse().expect("a number"),
            "--tool" => options.tools.push(value()),
            "--session" => {
                options.session = true;
                options.tools.extend(session::TOOLS.iter().map(ToString::to_string));
            }
            "--id-form" => options.id_form = Some(value()),
            "--gate" => options.gate = Some(value()),
            // Invalid output that is not a message.
            "--shout" => {
                eprintln!("shouted\r\x1b[31mred\x07 \u{202e}backwards");
                println!("noise\r\x1b[31mred");
            }
            "--starts" => options.starts = Some(value()),
            "--quit" => options.quit.push(value()),
            "--quit-from" => options.quit_in.0 = value().parse().expect("a number"),
            "--quit-to" => options.quit_in.1 = value().parse().expect("a number"),
            "--rich" => options.rich = true,
            "--label" => options.label = value(),
            "--resource" => options.resources.push(value()),
            "--era" => options.era = modern::Era::read(&value()),
            "--probe" => options.probe = modern::Probe::read(&value()),
            "--probe-ms" => options.probe_ms = value().parse().expect("a number"),
            "--listen" => options.listen = modern::Listen::read(&value()),
            "--answer" => drop(options.answers.insert(value(), value())),
            "--schema" => drop(options.schemas.insert(value(), value())),
            "--extension" => options.extensions.push(value()),
            "--ttl" => options.ttl = Some(value().parse().expect("a number")),
            "--scope" => options.scope = Some(value()),
            "--strict" => options.strict = true,
            "--ignore-cancel" => options.ignore_cancel = true,
            "--many" => options.many = value().parse().expect("a number"),
            other => panic!("unknown flag {other}"),
        }
    }
    options
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panicked")
}

impl Server {
    fn read(self: &Arc<Self>, line: &str) {
        let message: Value = serde_json::from_str(line).expect("a line is JSON");
        let id = message.get("id").map(Value::to_string);
        modern::first_message(self, &message["method"]);
        let (from, to) = self.options.quit_in;
        if (from..=to).contains(&self.start)
            && self.options.quit.iter().any(|method| message["method"] == **method)
        {
            process::exit(3);
        }
        match (message["method"].as_str(), id.map(|id| self.in_form(id))) {
            (Some(method), Some(id)) => self.request(method, &id, &message["params"]),
            (None, Some(id)) => self.answered(&id, &message),
            (Some("notifications/cancelled"), None) if modern::is_on(self) => {
                modern::cancelled(self, &message["params"]["requestId"]);
            }
            _ => {}
        }
    }

    fn request(self: &Arc<Self>, method: &str, id: &str, params: &Value) {
        modern::open(self, id);
        let asked = self.count(method);
        let is_in = |list: &[String]| list.iter().any(|one| one == method);
        if is_in(&self.options.mute) || (is_in(&self.options.once) && asked > 1) {
            return;
        }
        if is_in(&self.options.refuse) {
            return self.error(id, -32603, "not in the mood", None);
        }
        if let Some(result) = self.options.answers.get(method) {
            return self.result(id, result);
        }
        if modern::request(self, method, id, params) {
            return;
        }
        if self.options.session && session::request(self, method, id, params) {
            return;
        }
        match method {
            "initialize" if self.options.session => session::initialize(self, id, params),
            "initialize" => self.initialize(id, params),
            "ping" => self.result(id, "{}"),
            "tools/list" => self.list(id, params),
            "tools/call" => self.call(id, params),
            _ if self.options.rich => self.rich(method, id, params),
            _ => self.error(id, -32601, "method not found", None),
        }
    }

    /// Counts one more of these, and returns their number.
    fn count(&self, what: &str) -> usize {
        let mut counts = lock(&self.counts);
        let count = counts.entry(what.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn initialize(&self, id: &str, params: &Value) {
        let asked = params["protocolVersion"].as_str().unwrap_or_default();
        let version = self.options.version.as_deref().unwrap_or(asked);
        let mut result = json!({
            "protocolVersion": version,
            "capabilities": {"tools": {"listChanged": true}},
            "serverInfo": {"name": "fake", "version": "1"},
        });
        if self.options.rich {
            let both = json!({"listChanged": true, "subscribe": true});
            result["capabilities"] = json!({
                "tools": {"listChanged": true}, "resources": both, "prompts": {"listChanged": true},
                "logging": {}, "completions": {}, "experimental": {"odd": {"x": 1}},
            });
            result["instructions"] = json!(format!("Ask {}.", self.options.label));
            result["unheard"] = json!([1.0, "of"]);
        }
        self.result(id, &result.to_string());
    }

    /// Handles the requests that only a server with `--rich` supports.
    fn rich(&self, method: &str, id: &str, params: &Value) {
        let text = |path: &str| params.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let label = &self.options.label;
        let result = match method {
            "resources/list" => self.resources(params),
            "resources/templates/list" => {
                json!({"resourceTemplates": [{"uriTemplate": format!("{label}://{{id}}/log"), "name": "log"}]})
            }
            "resources/read" if text("/uri").contains("none") => {
                let code = if modern::is_on(self) { -32602 } else { -32002 };
                return self.error(id, code, "no such resource", Some(&json!({"uri": text("/uri")})));
            }
            "resources/read" => {
                json!({"contents": [{"uri": text("/uri"), "text": format!("{} of {label}", text("/uri"))}]})
            }
            "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" => json!({}),
            "prompts/list" if modern::is_on(self) => {
                json!({"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}, {"name": "input", "arguments": [{"name": "plan"}]}]})
            }
            "prompts/list" => json!({"prompts": [{"name": "greet", "arguments": [{"name": "who"}]}]}),
            "prompts/get" => {
                let said = format!("{label} greets {}", text("/arguments/who"));
                json!({"messages": [{"role": "user", "content": {"type": "text", "text": said}}]})
            }
            "completion/complete" => {
                let asked = [text("/ref/name"), text("/ref/uri"), text("/argument/value")].concat();
                json!({"completion": {"values": [format!("{label} {asked}")]}})
            }
            "vendor/echo" => json!({"method": method, "params": params}),
            _ => return self.error(id, -32601, "method not found", None),
        };
        self.complete(id, method, result);
    }

    /// Returns one page of them.
    fn resources(&self, params: &Value) -> Value {
        let many = (0..self.options.many).map(|number| format!("a://{number:04}/{}", "x".repeat(1200)));
        let usual = ["a://one".to_owned()].into_iter().chain(self.options.resources.iter().cloned());
        let uris: Vec<String> = usual.chain(many).collect();
        let (part, next) = self.page(&uris, params);
        let list: Vec<Value> =
            part.iter().map(|uri| json!({"uri": uri, "name": self.options.label})).collect();
        let mut result = json!({"resources": list});
        if let Some(next) = next {
            result["nextCursor"] = json!(next);
        }
        result
    }

    /// Returns the requested part of a list, and the next cursor, which is the position of its
    /// first item.
    fn page<'a>(&self, all: &'a [String], params: &Value) -> (&'a [String], Option<String>) {
        let from: usize = params["cursor"].as_str().map_or(0, |cursor| cursor.parse().expect("our cursor"));
        let page = if self.options.page == 0 { all.len() } else { self.options.page };
        let to = all.len().min(from + page);
        (&all[from..to], (to < all.len()).then(|| to.to_string()))
    }

    fn list(&self, id: &str, params: &Value) {
        let extra = (0..self.changes.load(Ordering::SeqCst)).map(|number| format!("extra{number}"));
        let own = (self.start > 0).then(|| format!("start{}", self.start));
        let names: Vec<String> = TOOLS
            .iter()
            .map(ToString::to_string)
            .chain(self.options.tools.clone())
            .chain(
                modern::is_on(self).then_some(modern::TOOLS).into_iter().flatten().map(ToString::to_string),
            )
            .chain(self.options.schemas.keys().cloned())
            .chain(extra)
            .chain(own)
            .collect();
        let (part, next) = self.page(&names, params);
        let tool = |name: &String| match self.start {
            _ if self.options.schemas.contains_key(name) => {
                let schema: Value = serde_json::from_str(&self.options.schemas[name]).expect("JSON");
                json!({"name": name, "inputSchema": schema})
            }
            0 => json!({"name": name, "inputSchema": {"type": "object"}}),
            start if name == "echo" => {
                json!({"name": name, "description": format!("start {start}"), "inputSchema": {"type": "object"}})
            }
            _ => json!({"name": name, "inputSchema": {"type": "object"}}),
        };
        let tools: Vec<Value> = part.iter().map(tool).collect();
        let mut result = json!({"tools": tools});
        if let Some(next) = next {
            result["nextCursor"] = json!(next);
        }
        self.complete(id, "tools/list", result);
    }

    fn call(self: &Arc<Self>, id: &str, params: &Value) {
        let arguments = &params["arguments"];
        let text = |name: &str| arguments[name].as_str().unwrap_or_default();
        let number = |name: &str| arguments[name].as_u64().unwrap_or_default();
        let tool = params["name"].as_str().unwrap_or_default();
        self.count(&format!("call {tool}"));
        if (self.options.session && session::call(self, id, params))
            || (modern::is_on(self) && modern::call(self, id, params))
        {
            return;
        }
        match tool {
            "echo" => self.text(id, text("text")),
            "env" => self.text(id, &env::var(text("name")).unwrap_or_default()),
            "pid" => self.text(id, &process::id().to_string()),
            "big" => self.text(id, &"x".repeat(number("bytes") as usize)),
            "raw" => self.result(id, text("result")),
            "is_error" => {
                let result = r#"{"content":[{"type":"text","text":"no"}],"isError":true}"#;
                match modern::is_on(self) {
                    true => self.complete(id, "tools/call", serde_json::from_str(result).expect("JSON")),
                    false => self.result(id, result),
                }
            }
            "fail" => {
                self.error(
                    id,
                    arguments["code"].as_i64().unwrap_or(-1),
                    text("message"),
                    arguments.get("data"),
                );
            }
            "sleep" => self.text_after(number("ms"), id, "slept".into()),
            // The text, and how often it was received so far.
            "count" => {
                let seen = {
                    let mut seen = lock(&self.seen);
                    let count = seen.entry(text("text").to_owned()).or_default();
                    *count += 1;
                    *count
                };
                self.text_after(number("ms"), id, format!("{} {seen}", text("text")));
            }
            // The number of texts that `count` received, and how many of them more than once.
            "tally" => {
                let seen = lock(&self.seen);
                let repeated = seen.values().filter(|count| **count > 1).count();
                self.text(id, &format!("{} {repeated}", seen.len()));
            }
            "hold" => {
                let token = params["_meta"]["progressToken"].clone();
                lock(&self.tokens).insert(text("key").to_owned(), token);
                lock(&self.held).insert(text("key").to_owned(), id.to_owned());
            }
            // Sends progress of a held call.
            "tick" => {
                let token = lock(&self.tokens).get(text("key")).cloned();
                for step in number("from")..=number("to") {
                    let params =
                        json!({"progressToken": token, "progress": step, "message": text("message")});
                    self.notify("notifications/progress", &params);
                }
                self.text(id, "ticked");
            }
            "notify" => {
                self.notify(text("method"), &arguments["params"]);
                self.text(id, "notified");
            }
            "release" => {
                if let Some(held) = lock(&self.held).remove(text("key")) {
                    self.text(&held, text("key"));
                }
                self.text(id, "released");
            }
            "progress" => {
                for step in 1..=number("steps") {
                    let token = self.in_form(params["_meta"]["progressToken"].to_string());
                    let token: Value = serde_json::from_str(&token).expect("JSON");
                    let params = json!({"progressToken": token, "progress": step});
                    self.notify("notifications/progress", &params);
                }
                self.text(id, "done");
            }
            "change" => {
                self.changes.fetch_add(1, Ordering::SeqCst);
                match modern::is_on(self) {
                    true => modern::list_changed(self, "tools"),
                    false => self.notify("notifications/tools/list_changed", &json!({})),
                }
                self.text(id, "changed");
            }
            "noise" => {
                self.line("this is no message");
                self.line("[1,2]");
                eprintln!("a word to the people\nand another");
                self.text(id, "loud");
            }
            "ask_client" => {
                let own = format!("\"q{id}\"");
                lock(&self.asked).insert(own.clone(), id.to_owned());
                self.line(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{own},\"method\":\"{}\"}}", text("method")));
            }
            "crash" => process::exit(
                arguments["status"].as_i64().and_then(|status| status.try_into().ok()).unwrap_or(3),
            ),
            // Writes a line that the test chooses in place of a response: `ID` is the id, `PAD`
            // that many bytes; in UTF-8 or Latin-1.
            "say" => {
                let line = text("line").replace("ID", id).replace("PAD", &"x".repeat(number("pad") as usize));
                let latin = line.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect();
                self.bytes(if arguments["latin"] == true { latin } else { line.into_bytes() });
            }
            // Writes this many lines of text, to stderr or, wrongly, to stdout.
            "shout" => {
                let (lines, stdout) = (number("lines"), text("where") == "stdout");
                let line = "x".repeat(number("bytes").max(1) as usize - 1);
                let (server, id) = (self.clone(), id.to_owned());
                thread::spawn(move || {
                    for _ in 0..lines {
                        if stdout { server.line(&line) } else { eprintln!("{line}") }
                    }
                    server.text(&id, "shouted");
                });
            }
            "deaf" => loop {
                thread::park();
            },
            other => self.text(id, &format!("{other} was called")),
        }
    }

    /// Handles the client's response to a request of `ask_client`: the whole response is the text.
    fn answered(&self, id: &str, message: &Value) {
        if let Some(call) = lock(&self.asked).remove(id) {
            return self.text(&call, &message.to_string());
        }
        session::answered(self, message);
    }

    /// The same after a delay.
    fn text_after(self: &Arc<Self>, ms: u64, id: &str, text: String) {
        let (server, id, time) = (self.clone(), id.to_owned(), Duration::from_millis(ms));
        thread::spawn(move || {
            thread::sleep(time);
            server.text(&id, &text);
        });
    }

    fn text(&self, id: &str, text: &str) {
        self.complete(id, "tools/call", json!({"content": [{"type": "text", "text": text}]}));
    }

    /// Answers with a complete result, in the form of the era that the process speaks.
    fn complete(&self, id: &str, method: &str, result: Value) {
        let result = if modern::is_on(self) { modern::stamp(self, method, result) } else { result };
        self.result(id, &result.to_string());
    }

    fn result(&self, id: &str, result: &str) {
        if modern::close(self, id) {
            self.line(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{result}}}"));
        }
    }

    fn error(&self, id: &str, code: i64, message: &str, data: Option<&Value>) {
        let mut error = json!({"code": code, "message": message});
        if let Some(data) = data {
            error["data"] = data.clone();
        }
        if modern::close(self, id) {
            self.line(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{error}}}"));
        }
    }

    fn notify(&self, method: &str, params: &Value) {
        self.line(&format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"params\":{params}}}"));
    }

    /// Returns an id or a progress token in the form that the flags set.
    fn in_form(&self, id: String) -> String {
        match &self.options.id_form {
            Some(form) if id.parse::<u64>().is_ok() => form.replace("ID", &id),
            _ => id,
        }
    }

    fn line(&self, text: &str) {
        self.bytes(text.as_bytes().to_vec());
    }

    /// Ignores errors: the reader may be gone.
    fn bytes(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        let mut output = lock(&self.output);
        let _ = output.write_all(&line).and_then(|()| output.flush());
    }
}
