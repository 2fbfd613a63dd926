//! Dispatches client messages, independent of the transport.
//!
//! - Here: requests that the gateway answers itself, and the aggregate of all servers.
//! - `forward`: requests and notifications for one server.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{sync::Arc, time::Instant};

use super::{
    Gateway,
    session::{Scope, Session},
    upstream::Upstream,
};
use crate::{
    catalog::Target,
    hub::{
        doors::Responder,
        error::{CallError, LONE_SURROGATE},
    },
    jsonrpc::{self, Kind as MessageKind, Message, Span, unquote},
    limits::{self, LOG_GROUPS},
    mcp::{self, listing::ListKind, log_level::Level},
    util,
};

/// The outcome of a request.
pub enum Outcome {
    /// The result, available at once.
    Now(String),
    /// The response follows later, mostly from a server.
    Later,
}

impl Gateway {
    /// Handles one message of a client. A request gets exactly one response, through `responder`,
    /// or none if the client cancels it on the 2024-11-05 transport.
    pub fn dispatch(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) {
        log::debug!(
            "client {}: {:?} {}",
            client.name(),
            message.kind(),
            util::escape::show(message.method())
        );
        match message.kind() {
            MessageKind::Request => {
                let id = message.id().unwrap_or_default();
                // Id and method are limited in length because both are kept while the call runs.
                // The request is counted before the draining flag is read: the drain waits for
                // every request that passes it.
                responder.begin();
                let answer = match () {
                    () if self.draining.is_triggered() && message.method() != "ping" => {
                        Err(CallError::Draining)
                    }
                    () if id.len() > limits::ID_BYTES => Err(CallError::IdTooLong),
                    () if message.method().len() > limits::METHOD_BYTES => Err(CallError::MethodTooLong),
                    () if message.has_lone_surrogate() => Err(CallError::LoneSurrogate),
                    () if is_notification(message.method()) => Err(CallError::NotificationWithId),
                    () => self.request(now, client, message, responder),
                };
                match answer {
                    Ok(Outcome::Now(result)) => responder.finish(jsonrpc::result(id, &result), &self.stats),
                    Ok(Outcome::Later) => {}
                    Err(why) => {
                        let error = why.rpc();
                        if error.code == jsonrpc::BUSY {
                            self.stats.busy.add();
                        }
                        responder.finish(error.response(id), &self.stats);
                    }
                }
            }
            MessageKind::Notification => self.notification(now, client, message),
            MessageKind::Response => self.on_client_response(now, client, message),
        }
    }

    fn request(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        if let Some(upstream) = self.isolated(client) {
            return match message.method() {
                "ping" => Ok(Outcome::Now("{}".into())),
                "initialize" if client.is_initialized() => Err(CallError::AlreadyInitialized),
                "initialize" => self.forward(now, client, &upstream, message, None, responder),
                "server/discover" => Err(unknown_method(message)),
                _ if !client.instances().by_server.is_empty() => {
                    self.ask_server(now, client, &upstream, message, responder)
                }
                _ if client.is_initialized() => {
                    // The session was initialized while all sessions shared the server's process.
                    self.close(now, client, "the server's session mode has changed");
                    Err(CallError::SessionReplaced)
                }
                _ => Err(CallError::NotInitialized),
            };
        }
        match (message.method(), client.scope()) {
            ("initialize", _) => self.initialize(now, client, message).map(Outcome::Now),
            ("ping", _) => Ok(Outcome::Now("{}".into())),
            // Part of the stateless protocol. Clients that probe with it fall back on this error.
            ("server/discover", _) => Err(unknown_method(message)),
            ("logging/setLevel", _) => self.set_level(now, client, message).map(Outcome::Now),
            (_, Scope::Server(name)) => {
                let upstream = self.catalog().server(name);
                let upstream = upstream.ok_or_else(|| not_connected(name))?;
                self.ask_server(now, client, &upstream, message, responder)
            }
            (_, Scope::All) => self.ask_all(now, client, message, responder),
        }
    }

    /// Returns the session's server if it runs a separate instance for each session. `None` at the
    /// aggregate endpoint.
    fn isolated(&self, client: &Session) -> Option<Arc<Upstream>> {
        let Scope::Server(name) = client.scope() else { return None };
        self.catalog().server(name).filter(|upstream| upstream.instance_pool().is_some())
    }

    fn notification(&self, now: Instant, client: &Arc<Session>, message: &Message<'_>) {
        if let Some(why) = refused_notification(message) {
            let method = util::escape::show(message.method());
            let name = client.name().to_string();
            let line = format_args!("client {name}: dropped {method}: {why}");
            self.log_throttled(log::Level::Info, "dropped", &name, LOG_GROUPS, line);
            return;
        }
        let method = message.method();
        let for_instances = method != "notifications/cancelled"
            && (method == "notifications/roots/list_changed" || *client.scope() != Scope::All);
        let instances: Vec<Arc<Upstream>> =
            if for_instances { self.instances_of(client) } else { Vec::new() };
        for instance in &instances {
            // Best effort: a notification has no response that could report the failure.
            let _ = instance.send(now, message.splice(&[]));
        }
        if !instances.is_empty() {
            return;
        }
        match (method, client.scope()) {
            ("notifications/cancelled", _) => {
                let Ok(Some(span)) = message.param(&["requestId"]) else { return };
                let ended = client.calls().cancel(&message.text()[span.clone()]);
                if let Some((upstream, id)) = ended.and_then(|(key, id)| Some((self.upstream(key)?, id))) {
                    upstream.cancel(now, id, Ok((message, span)), &self.stats);
                }
            }
            // The gateway itself has sent `initialized` to a shared server. It declared no roots,
            // and forwards none of that server's requests, so a client has no progress to report.
            (
                "notifications/initialized" | "notifications/roots/list_changed" | "notifications/progress",
                _,
            ) => {}
            (_, Scope::Server(name)) => {
                let upstream = self.catalog().server(name);
                if let Some(upstream) = upstream.filter(|upstream| upstream.instance_pool().is_none()) {
                    let _ = upstream.send(now, message.splice(&[]));
                }
            }
            (_, Scope::All) => {}
        }
    }

    /// Handles a request at the aggregate of all servers.
    fn ask_all(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        let method = message.method();
        if let Some(kind) = ListKind::of_method(method) {
            return self.list(kind, message).map(Outcome::Now);
        }
        match method {
            "tools/call" => match self.find(ListKind::Tool, message, &["name"])? {
                FoundTool::Own => Ok(self.list_servers(client, message, responder)),
                FoundTool::Server(upstream, rename) => {
                    self.forward(now, client, &upstream, message, Some(rename), responder)
                }
            },
            "prompts/get" => self.forward_found(now, client, ListKind::Prompt, &["name"], message, responder),
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                let (upstream, rename) = self.find_resource(message, &["uri"])?;
                self.resource(now, client, &upstream, message, rename, responder)
            }
            "completion/complete" => {
                let kind = string_param(message, &["ref", "type"])?.map(|(_, kind)| kind);
                match kind.as_deref() {
                    Some("ref/prompt") => self.forward_found(
                        now,
                        client,
                        ListKind::Prompt,
                        &["ref", "name"],
                        message,
                        responder,
                    ),
                    Some("ref/resource") => {
                        let (upstream, rename) = self.find_resource(message, &["ref", "uri"])?;
                        self.forward(now, client, &upstream, message, Some(rename), responder)
                    }
                    _ => Err(CallError::UnknownReference),
                }
            }
            _ => Err(unknown_method(message)),
        }
    }

    fn forward_found(
        &self,
        now: Instant,
        client: &Arc<Session>,
        kind: ListKind,
        path: &'static [&'static str],
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        match self.find(kind, message, path)? {
            FoundTool::Own => Err(unknown_method(message)),
            FoundTool::Server(upstream, rename) => {
                self.forward(now, client, &upstream, message, Some(rename), responder)
            }
        }
    }

    /// Looks up the tool, prompt or resource that the parameter at `path` names.
    fn find(
        &self,
        kind: ListKind,
        message: &Message<'_>,
        path: &'static [&'static str],
    ) -> Result<FoundTool, CallError> {
        let (span, name) = needed_param(message, path)?;
        match self.catalog().find(kind, &name) {
            Some(Target::Server { handle, key }) => Ok(FoundTool::Server(handle, (span, key))),
            Some(Target::Own) => Ok(FoundTool::Own),
            Some(Target::Several(forms)) => Err(CallError::Ambiguous { kind, name, forms }),
            None => Err(CallError::Unknown { kind, name }),
        }
    }

    fn find_resource(
        &self,
        message: &Message<'_>,
        path: &'static [&'static str],
    ) -> Result<(Arc<Upstream>, (Span, String)), CallError> {
        let (span, uri) = needed_param(message, path)?;
        if uri.len() > limits::URI_BYTES {
            return Err(CallError::UriTooLong);
        }
        let catalog = self.catalog();
        let target = match path {
            // A completion refers to a resource template.
            ["ref", ..] => catalog.find_template(&uri),
            _ => catalog.find_resource(&uri),
        };
        match target {
            Some(Target::Server { handle, key }) => Ok((handle, (span, key))),
            Some(Target::Several(forms)) => {
                Err(CallError::Ambiguous { kind: ListKind::Resource, name: uri, forms })
            }
            _ => Err(CallError::NoResource { uri }),
        }
    }

    fn list(&self, kind: ListKind, message: &Message<'_>) -> Result<String, CallError> {
        // Some clients send the cursor of the first page as null or as an empty string.
        let is_null =
            matches!(message.param(&["cursor"]), Ok(Some(span)) if &message.text()[span.clone()] == "null");
        let cursor = if is_null { None } else { string_param(message, &["cursor"])? };
        let cursor = cursor.map(|(_, cursor)| cursor).filter(|cursor| !cursor.is_empty());
        let page = self.catalog().list(kind, cursor.as_deref());
        page.ok_or(CallError::BadCursor)
    }

    fn initialize(&self, now: Instant, client: &Session, message: &Message<'_>) -> Result<String, CallError> {
        let asked =
            string_param(message, &["protocolVersion"])?.map(|(_, version)| version).unwrap_or_default();
        let (version, result) = match client.scope() {
            Scope::All => {
                let version = mcp::negotiate(&asked).to_owned();
                let result = mcp::initialize_result(&version, &self.catalog().instructions());
                (version, result)
            }
            Scope::Server(name) => {
                let upstream = self.catalog().server(name);
                let initialize_result = upstream.as_ref().and_then(|upstream| upstream.initialize_result());
                mcp::initialize_result_for(&initialize_result.ok_or_else(|| not_connected(name))?, &asked)
            }
        };
        let raw = |name: &str| match message.param(&[name]) {
            Ok(Some(span)) if span.len() <= limits::CLIENT_INFO_BYTES => message.text()[span].to_owned(),
            _ => "{}".to_owned(),
        };
        let (capabilities, info) = (raw("capabilities"), raw("clientInfo"));
        if !client.charges().info.resize(capabilities.len() + info.len()) {
            self.stats.memory_refusals.add();
            return Err(CallError::NoMemory);
        }
        if !client.initialized(now, &version) {
            return Err(CallError::AlreadyInitialized);
        }
        let mut client_info = client.info();
        (client_info.capabilities, client_info.info) = (capabilities, info);
        Ok(result)
    }

    /// Stores the client's log level, and requests from each shared server the lowest level of all
    /// its sessions.
    fn set_level(&self, now: Instant, client: &Session, message: &Message<'_>) -> Result<String, CallError> {
        let level = Level::of(message).ok_or(CallError::UnknownLevel)?;
        let servers: Vec<Arc<Upstream>> = match client.scope() {
            Scope::All => self.catalog().all().map(|(_, upstream)| upstream.clone()).collect(),
            Scope::Server(name) => self.catalog().server(name).into_iter().collect(),
        };
        // The aggregate accepts the level for servers that register later. A single server must be
        // connected and support logging.
        match (client.scope(), servers.first()) {
            (Scope::Server(name), None) => return Err(not_connected(name)),
            (Scope::Server(_), Some(upstream)) if !upstream.has("logging") => {
                return Err(unknown_method(message));
            }
            _ => {}
        }
        let _ordered = self.subscription_order();
        client.info().level = Some(level);
        self.sessions().set_level(client.id(), Some(level));
        for upstream in servers.iter().filter(|upstream| upstream.instance_pool().is_none()) {
            self.send_level(now, upstream);
        }
        let instances = self.instances_of(client);
        for instance in instances {
            self.send_level_to_instance(now, client, &instance);
        }
        Ok("{}".into())
    }
}

enum FoundTool {
    Own,
    Server(Arc<Upstream>, (Span, String)),
}

/// Returns whether `method` is the name of a notification.
fn is_notification(method: &str) -> bool {
    method.starts_with("notifications/")
}

/// Returns why a message without an id is refused, or `None` if it is accepted. The checks on
/// requests depend on their method; they must not be bypassed by leaving out the id.
pub fn refused_notification(message: &Message<'_>) -> Option<&'static str> {
    match message.kind() {
        MessageKind::Notification if !is_notification(message.method()) => {
            Some("only notifications/* may omit the id; a request must have one")
        }
        MessageKind::Notification if message.has_lone_surrogate() => Some(LONE_SURROGATE),
        _ => None,
    }
}

/// Returns a string parameter and its position in the message.
///
/// # Errors
/// The parameter appears more than once, or is not a string.
pub fn string_param(
    message: &Message<'_>,
    path: &'static [&'static str],
) -> Result<Option<(Span, String)>, CallError> {
    let Some(span) = message.param(path)? else { return Ok(None) };
    match unquote(&message.text()[span.clone()]) {
        Some(value) => Ok(Some((span, value.into_owned()))),
        None => Err(CallError::NotText { path }),
    }
}

fn needed_param(message: &Message<'_>, path: &'static [&'static str]) -> Result<(Span, String), CallError> {
    string_param(message, path)?
        .ok_or_else(|| CallError::Missing { path, method: message.method().to_owned() })
}

fn unknown_method(message: &Message<'_>) -> CallError {
    CallError::UnknownMethod(message.method().to_owned())
}

fn not_connected(server: &str) -> CallError {
    CallError::NotConnected { server: server.to_owned() }
}
