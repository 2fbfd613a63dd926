//! Plays a scenario with the official Rust SDK and prints the outcomes. Like `client.py`, which
//! describes the form of scenario and transcript; it knows the steps that checks of both eras use.
//! Without `mode` it begins with `initialize`.

#![expect(deprecated, reason = "sampling, roots, log messages and subscriptions are played too")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, ClientCapabilities, CompleteRequestParams, CreateMessageRequestParams,
    CreateMessageResult, ElicitRequestParams, ElicitResult, GetPromptRequestParams, Implementation,
    InitializeRequestParams, ListRootsResult, LoggingMessageNotificationParam, PaginatedRequestParams,
    ProgressNotificationParam, ProtocolVersion, ReadResourceRequestParams, RequestMetaObject,
    ResourceUpdatedNotificationParam, SubscriptionFilter,
};
use rmcp::service::{
    ClientLifecycleMode, NotificationContext, RequestContext, RoleClient, RunningService, ServiceError,
    Subscription, serve_client_with_lifecycle,
};
use rmcp::transport::{StreamableHttpClientTransport, TokioChildProcess};
use rmcp::{ClientHandler, ErrorData};
use serde_json::{Map, Value, from_value, json, to_value};

/// The steps that are played.
const KINDS: [&str; 16] = [
    "ask",
    "asked",
    "await_tool",
    "call",
    "cancel",
    "discover",
    "level",
    "list",
    "listen",
    "logs",
    "parallel",
    "silence",
    "told",
    "unlisten",
    "until",
    "version",
];
const STEP: Duration = Duration::from_secs(60);
const MODERN: &str = "2026-07-28";
const LEVEL: &str = "io.modelcontextprotocol/logLevel";
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the client heard and was asked.
#[derive(Default)]
struct Heard {
    questions: Vec<Value>,
    logs: Vec<Value>,
    progress: Vec<Value>,
    /// URIs of changed resources, from servers that begin with `initialize`.
    updates: Vec<String>,
}

/// The person and the model behind the client: each question is answered by its form alone.
#[derive(Clone)]
struct User {
    name: Option<String>,
    heard: Arc<Mutex<Heard>>,
}

impl User {
    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().expect("no thread panics while it holds the lock")
    }

    /// Keeps a question, without what differs between the eras of the protocol.
    fn remember(&self, method: &str, mut params: Value) {
        if let Some(members) = params.as_object_mut() {
            members.shift_remove("_meta");
            members.shift_remove("task");
            if members.get("mode") == Some(&json!("form")) {
                members.shift_remove("mode");
            }
        }
        self.heard().questions.push(json!({"method": method, "params": params}));
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("nobody")
    }

    /// Returns a value for a field of a form: its default, the first choice, or one by its type.
    fn value(&self, name: &str, rule: &Value) -> Value {
        if let Some(value) = rule.get("default") {
            return value.clone();
        }
        let rules = if rule["type"] == "array" { &rule["items"] } else { rule };
        let choice = ["oneOf", "anyOf"].iter().find_map(|key| rules.get(*key)).map(|all| &all[0]["const"]);
        let choice = choice.or_else(|| rules.get("enum").map(|all| &all[0])).cloned();
        match (choice, rule["type"].as_str(), rule["format"].as_str()) {
            (Some(choice), Some("array"), _) => json!([choice]),
            (Some(choice), ..) => choice,
            (_, Some("boolean"), _) => json!(true),
            (_, Some("integer"), _) => json!(7),
            (_, Some("number"), _) => json!(1.5),
            (_, _, Some("email")) => json!("peer@example.org"),
            (_, _, Some("uri")) => json!("https://example.org/"),
            (_, _, Some("date")) => json!(MODERN),
            _ => json!(format!("{name} of {}", self.name())),
        }
    }
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

impl ClientHandler for User {
    async fn create_message(
        &self,
        params: CreateMessageRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<CreateMessageResult, ErrorData> {
        let asked = to_value(params).map_err(internal)?;
        let last = asked["messages"].as_array().and_then(|all| all.last()).cloned().unwrap_or_default();
        self.remember("sampling/createMessage", asked);
        let text = format!("{} read: {}", self.name(), last["content"]["text"].as_str().unwrap_or_default());
        let content = json!({"type": "text", "text": text});
        let answer =
            json!({"role": "assistant", "content": content, "model": "peer", "stopReason": "endTurn"});
        from_value(answer).map_err(internal)
    }

    async fn list_roots(&self, _: RequestContext<RoleClient>) -> Result<ListRootsResult, ErrorData> {
        self.remember("roots/list", json!({}));
        from_value(json!({"roots": [{"uri": "file:///peers", "name": self.name()}]})).map_err(internal)
    }

    async fn create_elicitation(
        &self,
        params: ElicitRequestParams,
        _: RequestContext<RoleClient>,
    ) -> Result<ElicitResult, ErrorData> {
        let asked = to_value(params).map_err(internal)?;
        let rules = asked["requestedSchema"]["properties"].as_object().cloned().unwrap_or_default();
        self.remember("elicitation/create", asked);
        let content: Map<String, Value> =
            rules.iter().map(|(name, rule)| (name.clone(), self.value(name, rule))).collect();
        from_value(json!({"action": "accept", "content": content})).map_err(internal)
    }

    async fn on_progress(&self, params: ProgressNotificationParam, _: NotificationContext<RoleClient>) {
        let said = json!([params.progress, params.total, params.message]);
        self.heard().progress.push(said);
    }

    async fn on_logging_message(
        &self,
        params: LoggingMessageNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.heard().logs.push(to_value(params).unwrap_or_default());
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _: NotificationContext<RoleClient>,
    ) {
        self.heard().updates.push(params.uri);
    }

    fn get_info(&self) -> InitializeRequestParams {
        let capabilities = match self.name {
            Some(_) => json!({"elicitation": {}, "sampling": {}, "roots": {}}),
            None => json!({}),
        };
        let capabilities: ClientCapabilities = from_value(capabilities).unwrap_or_default();
        let mut info = InitializeRequestParams::new(capabilities, Implementation::new("peers", "1"));
        info.protocol_version = ProtocolVersion::V_2025_11_25;
        info
    }
}

struct Player {
    client: RunningService<RoleClient, User>,
    user: User,
    prefix: String,
    level: Option<String>,
    listening: Vec<Subscription>,
}

impl Player {
    fn version(&self) -> String {
        self.client.peer_info().map(|info| info.protocol_version.to_string()).unwrap_or_default()
    }

    fn modern(&self) -> bool {
        self.version() == MODERN
    }

    /// Plays one step. Returns its outcome.
    async fn play(&mut self, step: &Value) -> Result<Value, Failure> {
        let members = step.as_object().ok_or("a step is an object")?;
        let kind = KINDS.iter().find(|kind| members.contains_key(**kind));
        let kind = *kind.ok_or_else(|| format!("no such step: {step}"))?;
        let text = step[kind].as_str().unwrap_or_default();
        match kind {
            "ask" => Ok(self.ask(text, &step["params"]).await),
            "asked" => Ok(self.asked()),
            "await_tool" => self.await_tool(text).await,
            "call" => Ok(self.call(step).await),
            "cancel" => Ok(self.cancel(&step["cancel"]).await),
            "discover" => self.discover().await,
            "level" => self.set_level(text).await,
            "list" => self.tools().await,
            "listen" => self.listen(&step["listen"]).await,
            "logs" => self.logs(usize::try_from(step["logs"].as_u64().unwrap_or_default())?).await,
            "parallel" => self.parallel(step["parallel"].as_array().ok_or("no list")?).await,
            "silence" => self.silence(text).await,
            "told" => self.told(text).await,
            "unlisten" => self.unlisten(&step["unlisten"]).await,
            "until" => Ok(self.until(text, &step["text"]).await),
            _ => Ok(json!(self.version())),
        }
    }

    /// Waits for a tool, by the changes that are listened to.
    async fn await_tool(&mut self, name: &str) -> Result<Value, Failure> {
        let listed =
            |tools: &Value| tools.as_array().is_some_and(|all| all.iter().any(|tool| tool["name"] == name));
        while !listed(&self.tools().await?) {
            self.told("notifications/tools/list_changed").await?;
        }
        Ok(Value::Null)
    }

    /// Gives up a call after its first progress.
    async fn cancel(&self, step: &Value) -> Value {
        let progressed = async {
            while self.user.heard().progress.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            biased;
            _ = self.call(step) => {}
            () = progressed => {}
        }
        Value::Null
    }

    /// Repeats a call until it returns the wanted text.
    async fn until(&self, tool: &str, wanted: &Value) -> Value {
        while self.call(&json!({"call": tool})).await["result"]["content"][0]["text"] != *wanted {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Value::Null
    }

    async fn tools(&self) -> Result<Value, Failure> {
        let mut tools = bare(to_value(self.client.list_all_tools().await?)?, "name", &self.prefix);
        sort(&mut tools, "name");
        Ok(tools)
    }

    async fn call(&self, step: &Value) -> Value {
        self.user.heard().progress.clear();
        let name = format!("{}{}", self.prefix, step["call"].as_str().unwrap_or_default());
        let mut params =
            json!({"name": name, "arguments": step.get("args").cloned().unwrap_or_else(|| json!({}))});
        if let Some(level) = self.level.as_ref().filter(|_| self.modern()) {
            params["_meta"] = json!({LEVEL: level});
        }
        let outcome = match from_value::<CallToolRequestParams>(params) {
            Ok(params) => self.client.call_tool(params).await,
            Err(error) => return json!({"error": {"sdk": error.to_string()}}),
        };
        let mut out = match outcome {
            Ok(result) => json!({"result": result}),
            Err(error) => json!({"error": described(&error)}),
        };
        if step["progress"] == true {
            // The SDK may deliver progress after the result that came behind it.
            tokio::time::sleep(Duration::from_millis(100)).await;
            out["progress"] = json!(self.user.heard().progress);
        }
        out
    }

    /// Calls at once. Their progress is not told apart, so it is left out.
    async fn parallel(&self, steps: &[Value]) -> Result<Value, Failure> {
        let mut quiet = steps.to_vec();
        for step in quiet.iter_mut().filter_map(Value::as_object_mut) {
            step.shift_remove("progress");
        }
        Ok(json!(futures::future::join_all(quiet.iter().map(|step| self.call(step))).await))
    }

    /// Sends any request other than a call, by the SDK's method for it.
    async fn ask(&self, method: &str, params: &Value) -> Value {
        match self.answer(method, params).await {
            Ok(value) => value,
            Err(error) => json!({"error": described(&error)}),
        }
    }

    async fn answer(&self, method: &str, params: &Value) -> Result<Value, ServiceError> {
        let mut params = params.clone();
        let page = || Some(PaginatedRequestParams::default());
        let found = match method {
            "completion/complete" => {
                if params["ref"]["type"] == "ref/prompt" {
                    params["ref"]["name"] = self.exposed(&params["ref"]["name"]);
                }
                to_value(self.client.complete(typed::<CompleteRequestParams>(params)?).await?)
            }
            "prompts/get" => {
                params["name"] = self.exposed(&params["name"]);
                to_value(self.client.get_prompt(typed::<GetPromptRequestParams>(params)?).await?)
            }
            "prompts/list" => to_value(self.client.list_prompts(page()).await?),
            "resources/list" => to_value(self.client.list_resources(page()).await?),
            "resources/read" => {
                to_value(self.client.read_resource(typed::<ReadResourceRequestParams>(params)?).await?)
            }
            "resources/templates/list" => to_value(self.client.list_resource_templates(page()).await?),
            other => return Err(ServiceError::McpError(internal(format!("{other} is not played")))),
        };
        let mut result = found.map_err(|error| ServiceError::McpError(internal(error)))?;
        for (kind, key) in [("prompts", "name"), ("resources", "uri"), ("resourceTemplates", "uriTemplate")] {
            if let Some(list) = result.get_mut(kind) {
                if kind == "prompts" {
                    *list = bare(list.take(), "name", &self.prefix);
                }
                sort(list, key);
            }
        }
        Ok(result)
    }

    fn exposed(&self, name: &Value) -> Value {
        json!(format!("{}{}", self.prefix, name.as_str().unwrap_or_default()))
    }

    /// Returns the answer to `server/discover`, as the SDK keeps it.
    async fn discover(&self) -> Result<Value, Failure> {
        let info = self.user.get_info();
        let version = ProtocolVersion::V_2026_07_28;
        let meta = RequestMetaObject::with_client_context(version, info.client_info, info.capabilities);
        Ok(to_value(self.client.discover(meta).await?)?)
    }

    /// Returns the different questions since the last such step, in one order.
    fn asked(&self) -> Value {
        let mut questions: Vec<Value> = self.user.heard().questions.drain(..).map(sorted).collect();
        questions.sort_by_key(Value::to_string);
        questions.dedup();
        json!(questions)
    }

    /// Asks for log messages of each call from now on.
    async fn set_level(&mut self, level: &str) -> Result<Value, Failure> {
        self.level = Some(level.to_owned());
        if !self.modern() {
            self.client.set_level(from_value(json!({"level": level}))?).await?;
        }
        Ok(Value::Null)
    }

    async fn logs(&self, wanted: usize) -> Result<Value, Failure> {
        while self.user.heard().logs.len() < wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(json!(self.user.heard().logs.drain(..wanted).collect::<Vec<_>>()))
    }

    /// Waits a moment; returns the number of notifications of a kind.
    async fn silence(&mut self, kind: &str) -> Result<Value, Failure> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let logs = self.user.heard().logs.drain(..).count();
        // Changes are heard by subscriptions alone, and those end with `unlisten`.
        Ok(json!(if kind == "notifications/message" { logs } else { self.listening.len() }))
    }

    async fn listen(&mut self, wanted: &Value) -> Result<Value, Failure> {
        if !self.modern() {
            for uri in wanted["uris"].as_array().into_iter().flatten() {
                self.client.subscribe(from_value(json!({"uri": uri}))?).await?;
            }
            return Ok(Value::Null);
        }
        let mut filter = Map::new();
        for kind in wanted["kinds"].as_array().into_iter().flatten() {
            filter.insert(format!("{}ListChanged", kind.as_str().unwrap_or_default()), json!(true));
        }
        if let Some(uris) = wanted.get("uris") {
            filter.insert("resourceSubscriptions".to_owned(), uris.clone());
        }
        let opened = self.client.listen(from_value::<SubscriptionFilter>(Value::Object(filter))?).await?;
        let agreed = to_value(opened.acknowledged())?;
        self.listening.push(opened);
        Ok(agreed)
    }

    /// Waits for a notification; returns the URI of an update.
    async fn told(&mut self, wanted: &str) -> Result<Value, Failure> {
        if !self.modern() {
            while self.user.heard().updates.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            return Ok(json!(self.user.heard().updates.remove(0)));
        }
        let open = self.listening.last_mut().ok_or("nothing is listened to")?;
        loop {
            let heard = to_value(open.next().await?.ok_or("the subscription ended")?)?;
            if heard["method"] == wanted {
                return Ok(heard["params"]["uri"].clone());
            }
        }
    }

    async fn unlisten(&mut self, uris: &Value) -> Result<Value, Failure> {
        if !self.modern() {
            for uri in uris.as_array().into_iter().flatten() {
                self.client.unsubscribe(from_value(json!({"uri": uri}))?).await?;
            }
        }
        for mut open in self.listening.drain(..) {
            open.cancel().await?;
        }
        Ok(Value::Null)
    }
}

fn typed<T: serde::de::DeserializeOwned>(params: Value) -> Result<T, ServiceError> {
    from_value(params).map_err(|error| ServiceError::McpError(internal(error)))
}

/// Returns an error response, or the SDK's own error.
fn described(error: &ServiceError) -> Value {
    match error {
        ServiceError::McpError(data) => to_value(data).unwrap_or_default(),
        other => json!({"sdk": other.to_string()}),
    }
}

/// Returns the items whose name begins with the prefix, without it.
fn bare(items: Value, key: &str, prefix: &str) -> Value {
    let Value::Array(items) = items else { return items };
    let mine = items.into_iter().filter_map(|mut item| {
        let name = item[key].as_str()?.strip_prefix(prefix)?.to_owned();
        item[key] = json!(name);
        Some(item)
    });
    mine.collect()
}

fn sort(items: &mut Value, key: &str) {
    if let Some(items) = items.as_array_mut() {
        items.sort_by(|one, other| one[key].as_str().cmp(&other[key].as_str()));
    }
}

/// Returns a value with the members of its objects in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.into_iter().map(|(key, item)| (key, sorted(item))).collect();
            members.sort_by(|one, other| one.0.cmp(&other.0));
            Value::Object(members.into_iter().collect())
        }
        other => other,
    }
}

fn lifecycle(mode: Option<&str>) -> ClientLifecycleMode {
    let preferred_versions = vec![ProtocolVersion::V_2026_07_28];
    match mode {
        Some("auto") => ClientLifecycleMode::Auto {
            preferred_versions,
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
        Some(MODERN) => ClientLifecycleMode::Discover { preferred_versions },
        _ => ClientLifecycleMode::Initialize,
    }
}

async fn connected(target: &Value, user: User) -> Result<RunningService<RoleClient, User>, Failure> {
    let lifecycle = lifecycle(target["mode"].as_str());
    if let Some(url) = target["http"].as_str() {
        let transport = StreamableHttpClientTransport::from_uri(url);
        return Ok(serve_client_with_lifecycle(user, transport, lifecycle).await?);
    }
    let words: Vec<&str> =
        target["stdio"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (program, arguments) = words.split_first().ok_or("no target")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments);
    let (transport, _) = TokioChildProcess::builder(command).stderr(std::process::Stdio::null()).spawn()?;
    Ok(serve_client_with_lifecycle(user, transport, lifecycle).await?)
}

async fn run(scenario: &Value) -> Result<(), Failure> {
    let user = User { name: scenario["user"].as_str().map(str::to_owned), heard: Arc::default() };
    let client = connected(&scenario["target"], user.clone()).await?;
    let prefix = scenario["prefix"].as_str().unwrap_or_default().to_owned();
    let mut player = Player { client, user, prefix, level: None, listening: Vec::new() };
    println!("{}", json!({"ready": {"version": player.version()}}));
    for step in scenario["steps"].as_array().ok_or("no steps")? {
        let out = tokio::time::timeout(STEP, player.play(step)).await??;
        println!("{}", json!({"out": out}));
    }
    println!("{}", json!({"done": true}));
    player.client.cancel().await?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let scenario = std::env::args().nth(1).unwrap_or_default();
    let scenario: Value = serde_json::from_str(&scenario).unwrap_or_default();
    if let Err(error) = run(&scenario).await {
        println!("{}", json!({"broken": error.to_string()}));
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
