//! Dispatches client messages, independent of the transport.
//!
//! - Here: requests that the gateway answers itself, and the aggregate of all servers.
//! - `forward`: requests and notifications for one server.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{sync::Arc, time::Instant};

use super::{Gateway, session::Session, upstream::Upstream};
use crate::{
    catalog::Target,
    hub::{
        error::CallError,
        peers::Responder,
        request::{InitializeParams, Named, Notification, Reference, Request, What},
        session::Scope,
    },
    jsonrpc::{self, Kind, Message},
    limits::LOG_GROUPS,
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
            Kind::Request => self.answer_request(now, client, message, responder),
            Kind::Notification => self.on_notification(now, client, message),
            Kind::Response => self.on_client_response(now, client, message),
        }
    }

    fn answer_request(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        message: &Message<'_>,
        responder: &Arc<dyn Responder>,
    ) {
        let id = message.id().unwrap_or_default();
        let request = Request::read(client.scope(), message);
        // The request is counted before the draining flag is read: the drain waits for every
        // request that passes it.
        responder.begin();
        let outcome = match &request.refused {
            _ if self.draining.is_triggered() && message.method() != "ping" => Err(CallError::Draining),
            Some(why) => Err(why.clone()),
            None => self.request(now, client, &request, responder),
        };
        match outcome {
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

    fn request(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        request: &Request<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        match &request.what {
            What::Ping => return Ok(Outcome::Now("{}".into())),
            // Part of the stateless protocol. Clients that probe with it fall back on this error.
            What::Discover => return Err(unknown_method(request)),
            _ => {}
        }
        if let Some(upstream) = self.isolated(client) {
            return match &request.what {
                What::Initialize(_) if client.is_initialized() => Err(CallError::AlreadyInitialized),
                What::Initialize(_) => self.forward(now, client, &upstream, request, None, responder),
                _ if !client.instances().by_server.is_empty() => {
                    self.ask_server(now, client, &upstream, request, responder)
                }
                _ if client.is_initialized() => {
                    // The session was initialized while all sessions shared the server's process.
                    self.close(now, client, "the server's session mode has changed");
                    Err(CallError::SessionReplaced)
                }
                _ => Err(CallError::NotInitialized),
            };
        }
        match (&request.what, client.scope()) {
            (What::Initialize(params), _) => self.initialize(now, client, checked(params)?).map(Outcome::Now),
            (What::SetLevel(level), _) => {
                let level = level.ok_or(CallError::UnknownLevel)?;
                self.set_level(now, client, request, level).map(Outcome::Now)
            }
            (_, Scope::Server(name)) => {
                let upstream = self.catalog().server(name);
                let upstream = upstream.ok_or_else(|| not_connected(name))?;
                self.ask_server(now, client, &upstream, request, responder)
            }
            (_, Scope::All) => self.ask_all(now, client, request, responder),
        }
    }

    /// Returns the session's server if it runs a separate instance for each session. `None` at the
    /// aggregate endpoint.
    fn isolated(&self, client: &Session) -> Option<Arc<Upstream>> {
        let Scope::Server(name) = client.scope() else { return None };
        self.catalog().server(name).filter(|upstream| upstream.instance_pool().is_some())
    }

    fn on_notification(&self, now: Instant, client: &Arc<Session>, message: &Message<'_>) {
        match Notification::read(client.scope(), message) {
            Err(why) => {
                let method = util::escape::show(message.method());
                let name = client.name().to_string();
                let line = format_args!("client {name}: dropped {method}: {why}");
                self.log_throttled(log::Level::Info, "dropped", &name, LOG_GROUPS, line);
            }
            Ok(Notification::Cancel(Some(span))) => {
                let ended = client.calls().cancel(&message.text()[span.clone()]);
                if let Some((upstream, id)) = ended.and_then(|(key, id)| Some((self.upstream(key)?, id))) {
                    upstream.cancel(now, id, Ok((message, span)), &self.stats);
                }
            }
            Ok(Notification::Cancel(None) | Notification::Dropped) => {}
            Ok(Notification::Instances) => {
                self.notify_instances(now, client, message);
            }
            Ok(Notification::Server) => {
                let Scope::Server(name) = client.scope() else { return };
                if self.notify_instances(now, client, message) {
                    return;
                }
                let upstream = self.catalog().server(name);
                if let Some(upstream) = upstream.filter(|upstream| upstream.instance_pool().is_none()) {
                    // Best effort: a notification has no response that could report the failure.
                    let _ = upstream.send(now, message.splice(&[]));
                }
            }
        }
    }

    /// Sends a notification to the session's isolated instances. Returns whether there are any.
    fn notify_instances(&self, now: Instant, client: &Session, message: &Message<'_>) -> bool {
        let instances = self.instances_of(client);
        for instance in &instances {
            // Best effort: a notification has no response that could report the failure.
            let _ = instance.send(now, message.splice(&[]));
        }
        !instances.is_empty()
    }

    /// Handles a request at the aggregate of all servers.
    fn ask_all(
        self: &Arc<Self>,
        now: Instant,
        client: &Arc<Session>,
        request: &Request<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        match &request.what {
            What::List(kind, cursor) => {
                let page = self.catalog().list(*kind, checked(cursor)?.as_deref());
                page.map(Outcome::Now).ok_or(CallError::BadCursor)
            }
            What::Tool(name) => match self.find(ListKind::Tool, checked(name)?)? {
                FoundTool::Own => Ok(self.list_servers(client, request.message, responder)),
                FoundTool::Server(upstream, rename) => {
                    self.forward(now, client, &upstream, request, Some(rename), responder)
                }
            },
            What::Prompt(name) => self.forward_prompt(now, client, checked(name)?, request, responder),
            What::Resource(method, uri) => {
                let uri = checked(uri)?;
                let target = self.catalog().find_resource(&uri.1);
                let (upstream, rename) = resource_target(target, uri)?;
                self.resource(now, client, &upstream, request, (*method, rename), responder)
            }
            What::Complete(reference) => match checked(reference)? {
                Reference::Prompt(name) => self.forward_prompt(now, client, name, request, responder),
                Reference::Template(uri) => {
                    let target = self.catalog().find_template(&uri.1);
                    let (upstream, rename) = resource_target(target, uri)?;
                    self.forward(now, client, &upstream, request, Some(rename), responder)
                }
            },
            _ => Err(unknown_method(request)),
        }
    }

    fn forward_prompt(
        &self,
        now: Instant,
        client: &Arc<Session>,
        name: &Named,
        request: &Request<'_>,
        responder: &Arc<dyn Responder>,
    ) -> Result<Outcome, CallError> {
        match self.find(ListKind::Prompt, name)? {
            FoundTool::Own => Err(unknown_method(request)),
            FoundTool::Server(upstream, rename) => {
                self.forward(now, client, &upstream, request, Some(rename), responder)
            }
        }
    }

    /// Looks up a tool or prompt.
    fn find(&self, kind: ListKind, (span, name): &Named) -> Result<FoundTool, CallError> {
        match self.catalog().find(kind, name) {
            Some(Target::Server { handle, key }) => Ok(FoundTool::Server(handle, (span.clone(), key))),
            Some(Target::Own) => Ok(FoundTool::Own),
            Some(Target::Several(forms)) => Err(CallError::Ambiguous { kind, name: name.clone(), forms }),
            None => Err(CallError::Unknown { kind, name: name.clone() }),
        }
    }

    fn initialize(
        &self,
        now: Instant,
        client: &Session,
        params: &InitializeParams<'_>,
    ) -> Result<String, CallError> {
        let asked = &params.version;
        let (version, result) = match client.scope() {
            Scope::All => {
                let version = mcp::negotiate(asked).to_owned();
                let result = mcp::initialize_result(&version, &self.catalog().instructions());
                (version, result)
            }
            Scope::Server(name) => {
                let upstream = self.catalog().server(name);
                let initialize_result = upstream.as_ref().and_then(|upstream| upstream.initialize_result());
                mcp::initialize_result_for(&initialize_result.ok_or_else(|| not_connected(name))?, asked)
            }
        };
        if !client.charges().info.resize(params.capabilities.len() + params.info.len()) {
            self.stats.memory_refusals.add();
            return Err(CallError::NoMemory);
        }
        if !client.initialized(now, &version) {
            return Err(CallError::AlreadyInitialized);
        }
        let mut client_info = client.info();
        client_info.capabilities = params.capabilities.to_owned();
        client_info.info = params.info.to_owned();
        Ok(result)
    }

    /// Stores the client's log level, and requests from each shared server the lowest level of all
    /// its sessions.
    fn set_level(
        &self,
        now: Instant,
        client: &Session,
        request: &Request<'_>,
        level: Level,
    ) -> Result<String, CallError> {
        let servers: Vec<Arc<Upstream>> = match client.scope() {
            Scope::All => self.catalog().all().map(|(_, upstream)| upstream.clone()).collect(),
            Scope::Server(name) => self.catalog().server(name).into_iter().collect(),
        };
        // The aggregate accepts the level for servers that register later. A single server must be
        // connected and support logging.
        match (client.scope(), servers.first()) {
            (Scope::Server(name), None) => return Err(not_connected(name)),
            (Scope::Server(_), Some(upstream)) if !upstream.has("logging") => {
                return Err(unknown_method(request));
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
    Server(Arc<Upstream>, Named),
}

/// Returns the server of a resource, and where to put its own URI for it.
fn resource_target(
    target: Option<Target<Arc<Upstream>>>,
    (span, uri): &Named,
) -> Result<(Arc<Upstream>, Named), CallError> {
    match target {
        Some(Target::Server { handle, key }) => Ok((handle, (span.clone(), key))),
        Some(Target::Several(forms)) => {
            Err(CallError::Ambiguous { kind: ListKind::Resource, name: uri.clone(), forms })
        }
        _ => Err(CallError::NoResource { uri: uri.clone() }),
    }
}

/// Returns a parameter, or the error that was found in it.
pub fn checked<T>(param: &Result<T, CallError>) -> Result<&T, CallError> {
    param.as_ref().map_err(Clone::clone)
}

fn unknown_method(request: &Request<'_>) -> CallError {
    CallError::UnknownMethod(request.message.method().to_owned())
}

fn not_connected(server: &str) -> CallError {
    CallError::NotConnected { server: server.to_owned() }
}
