//! Requests of MCP 2026-07-28: no session, so each is checked, routed and answered by itself.

use std::{sync::Arc, time::Instant};

use super::{
    call::{Rewrite, Ticket, not_connected},
    effect::Effects,
    error::{CallError, Declined, listen_error, modern_error, state_error},
    instance::{Caller, ClientCall, NewCall, Origin, StatelessCall},
    key::{InstanceKey, Sealing},
    peers::Responder,
    request::{Named, refused},
    server_list::ServerList,
    session::Scope,
    state::Hub,
};
use crate::{
    auth::Principal,
    catalog::{Target, UpstreamKey},
    jsonrpc::{Message, RpcError, Span, find, unquote},
    limits,
    mcp::{
        Era,
        listing::ListKind,
        stateless::{
            Envelope, Params, Rejection,
            discover::{self, Offer},
            headers::HeaderParams,
            result::{Cache, own_result},
        },
    },
    session::{CallDigest, Claims, InstanceRun, ListenRefused, Retry, StateError, StateKind},
};

/// A request of a stateless client, with all that the hub reads of it.
#[derive(Debug)]
pub struct StatelessRequest<'m> {
    /// The request as it was sent.
    pub message: &'m Message<'m>,
    /// Its params.
    pub params: Params,
    /// What it declares of its client: protocol version, capabilities, log level.
    pub envelope: Envelope<'m>,
    /// The name or URI that it is about; empty if there is none.
    name: String,
    /// The opened `requestState` of a retry, or why it cannot be opened.
    state: Option<Result<Claims, StateError>>,
    /// Its client's capabilities, if extensions are cut from them.
    capabilities: Option<String>,
}

/// The sender of a stateless request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// When it arrived.
    pub now: Instant,
    /// Its principal.
    pub principal: Principal,
    /// The endpoint: the servers that it sees.
    pub scope: &'a Scope,
    /// Where the response goes.
    pub responder: &'a Arc<dyn Responder>,
}

/// The outcome of a stateless request.
#[derive(Debug)]
pub enum StatelessOutcome {
    /// The result, available at once.
    Now(String),
    /// The request is pending. Its text for the server is to be made without the lock of the hub,
    /// and then given to [`Hub::commit`].
    Call(Ticket),
}

impl<'m> StatelessRequest<'m> {
    /// Parses a request whose envelope was checked.
    pub fn read(
        (message, params, envelope): (&'m Message<'m>, Params, Envelope<'m>),
        sender: &Sender<'_>,
        sealing: &Sealing,
        limits: &limits::StatelessLimits,
    ) -> Self {
        let text = message.text();
        let string = |span: &Span| unquote(&text[span.clone()]).unwrap_or_default().into_owned();
        let name = params.name.as_ref().or(params.uri.as_ref()).map(string).unwrap_or_default();
        let retry = Retry {
            principal: sender.principal,
            digest: CallDigest::of(sender.scope.server(), message.method(), &name),
            now: sender.now.saturating_duration_since(sealing.started),
        };
        let state = params.state.as_ref().map(|span| match unquote(&text[span.clone()]) {
            Some(state) => Claims::open(&state, &sealing.key, &retry, limits),
            None => Err(StateError::Invalid),
        });
        let capabilities = envelope.capabilities.with_extensions(|id| id != discover::TASKS);
        Self { message, params, envelope, name, state, capabilities }
    }

    /// Returns the position of the name or URI, and itself.
    fn named(&self) -> Result<Named, CallError> {
        let span = self.params.name.clone().or_else(|| self.params.uri.clone());
        match span {
            Some(_) if self.name.len() > limits::URI_BYTES => Err(CallError::UriTooLong),
            Some(span) => Ok((span, self.name.clone())),
            None => {
                let path: &[&str] =
                    if self.message.method() == "resources/read" { &["uri"] } else { &["name"] };
                Err(CallError::Missing { path, method: self.message.method().to_owned() })
            }
        }
    }
}

/// Why a stateless request gets an error from the gateway.
#[derive(Debug)]
pub enum Refused {
    /// For a reason that requests of sessions have too.
    Call(CallError),
    /// Its `requestState` is refused.
    State(StateError),
    /// Its header fields differ from its body.
    Header(Rejection),
    /// It is a listen, and refused.
    Listen(ListenRefused),
}

impl From<CallError> for Refused {
    fn from(why: CallError) -> Self {
        Self::Call(why)
    }
}

impl Refused {
    /// Returns the error for the response.
    pub fn rpc(&self) -> RpcError {
        match self {
            Self::Call(why) => modern_error(why),
            Self::State(why) => state_error(*why),
            Self::Header(why) => why.rpc(),
            Self::Listen(why) => listen_error(*why),
        }
    }
}

impl Hub {
    /// Returns the key that seals each `requestState` in this run, and the parameters of the tool that
    /// clients repeat in header fields, if a request at a server's own endpoint calls one with such.
    pub fn checks(
        &self,
        scope: &Scope,
        message: &Message<'_>,
        params: &Params,
    ) -> (Sealing, Option<Arc<HeaderParams>>) {
        let tool = params.name.as_ref().filter(|_| message.method() == "tools/call");
        let server = scope.server().and_then(|name| self.catalog.server(name));
        let marked = server.zip(tool).and_then(|(server, tool)| {
            self.catalog.header_params(server, &unquote(&message.text()[tool.clone()])?)
        });
        (self.config.sealing.clone(), marked)
    }

    /// Handles a stateless request.
    ///
    /// # Errors
    /// Why it is refused; nothing was sent then.
    pub fn call_stateless(
        &mut self,
        sender: Sender<'_>,
        request: &StatelessRequest<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<StatelessOutcome, Refused> {
        let message = request.message;
        if self.draining {
            return Err(CallError::Draining.into());
        }
        if let Some(why) = refused(message) {
            return Err(why.into());
        }
        match sender.scope {
            Scope::Server(name) => {
                let server = self.catalog.server(name).ok_or_else(|| not_connected(name))?;
                if message.method() == "server/discover" {
                    return self.describe(server).map_err(Refused::Call);
                }
                self.forward_stateless(sender, request, (server, None), fx)
            }
            Scope::All => self.ask_all_stateless(sender, request, fx),
        }
    }

    /// Answers `server/discover` at the endpoint of a server.
    fn describe(&self, server: UpstreamKey) -> Result<StatelessOutcome, CallError> {
        let upstream = self.upstreams.get(&server);
        let initialized = upstream.and_then(|upstream| upstream.shared.initialized());
        let initialized = initialized.ok_or_else(|| not_connected(&self.name_of(server)))?;
        if self.is_isolating(server) {
            return Err(CallError::UnknownMethod("server/discover".into()));
        }
        let offer = match initialized.era {
            Era::Modern => Offer::Modern,
            Era::Legacy => Offer::Legacy { logging: false },
        };
        Ok(StatelessOutcome::Now(discover::discover_result(&initialized.result, offer, Cache::NONE)))
    }

    /// Handles a request at the aggregate of all servers.
    fn ask_all_stateless(
        &mut self,
        sender: Sender<'_>,
        request: &StatelessRequest<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<StatelessOutcome, Refused> {
        let message = request.message;
        let method = message.method();
        if let Some(kind) = ListKind::of_method(method) {
            return self.list_stateless(request, kind).map_err(Refused::Call);
        }
        let (server, named) = match method {
            "server/discover" => {
                let instructions = self.catalog.instructions();
                return Ok(StatelessOutcome::Now(discover::aggregate_discover_result(&instructions)));
            }
            "tools/call" | "prompts/get" => {
                let kind = if method == "tools/call" { ListKind::Tool } else { ListKind::Prompt };
                let (span, name) = request.named()?;
                match self.catalog.find(kind, &name) {
                    Some(Target::Server { handle, key }) => (handle, (span, key)),
                    Some(Target::Own) => return Ok(self.list_servers_stateless(sender.principal)),
                    Some(Target::Several(forms)) => {
                        return Err(CallError::Ambiguous { kind, name, forms }.into());
                    }
                    None => return Err(CallError::Unknown { kind, name }.into()),
                }
            }
            "resources/read" => {
                let uri = request.named()?;
                super::call::resource_target(self.catalog.find_resource(&uri.1), &uri)?
            }
            "completion/complete" => self.completed(request)?,
            _ => return Err(CallError::UnknownMethod(method.to_owned()).into()),
        };
        self.forward_stateless(sender, request, (server, Some(named)), fx)
    }

    /// Finds the server that completes an argument.
    fn completed(&self, request: &StatelessRequest<'_>) -> Result<(UpstreamKey, Named), CallError> {
        let text = request.message.text();
        let reference = request.params.reference.clone().ok_or(CallError::UnknownReference)?;
        let member = |name: &'static str| {
            let span = find(text, reference.clone(), &[name])?.ok_or(CallError::UnknownReference)?;
            let value = unquote(&text[span.clone()]).ok_or(CallError::UnknownReference)?;
            Ok::<Named, CallError>((span, value.into_owned()))
        };
        match member("type")?.1.as_str() {
            "ref/prompt" => {
                let (span, name) = member("name")?;
                let kind = ListKind::Prompt;
                match self.catalog.find(kind, &name) {
                    Some(Target::Server { handle, key }) => Ok((handle, (span, key))),
                    Some(Target::Several(forms)) => Err(CallError::Ambiguous { kind, name, forms }),
                    Some(Target::Own) | None => Err(CallError::Unknown { kind, name }),
                }
            }
            "ref/resource" => {
                let uri = member("uri")?;
                super::call::resource_target(self.catalog.find_template(&uri.1), &uri)
            }
            _ => Err(CallError::UnknownReference),
        }
    }

    fn list_stateless(
        &self,
        request: &StatelessRequest<'_>,
        kind: ListKind,
    ) -> Result<StatelessOutcome, CallError> {
        let text = request.message.text();
        let cursor = match request.params.cursor.clone().map(|span| &text[span]) {
            None | Some("null") => None,
            Some(raw) => Some(unquote(raw).ok_or(CallError::BadCursor)?).filter(|cursor| !cursor.is_empty()),
        };
        let page = self.catalog.list(kind, cursor.as_deref()).ok_or(CallError::BadCursor)?;
        let members = page.strip_prefix('{').and_then(|page| page.strip_suffix('}')).unwrap_or_default();
        Ok(StatelessOutcome::Now(own_result(&format!("{members},"), kind.method(), Cache::NONE)))
    }

    fn list_servers_stateless(&self, viewer: Principal) -> StatelessOutcome {
        let mut list = ServerList::new(viewer);
        list.add(&self.catalog, usize::MAX);
        let result = list.result();
        let members =
            result.strip_prefix('{').and_then(|result| result.strip_suffix('}')).unwrap_or_default();
        StatelessOutcome::Now(own_result(&format!("{members},"), "tools/call", Cache::NONE))
    }

    /// Adds a request to the pending ones of a server.
    fn forward_stateless(
        &mut self,
        sender: Sender<'_>,
        request: &StatelessRequest<'_>,
        (server, rename): (UpstreamKey, Option<Named>),
        fx: &mut Effects<'_>,
    ) -> Result<StatelessOutcome, Refused> {
        let several = self.tokens.have_several_clients();
        let message = request.message;
        let upstream = self.upstreams.get_mut(&server).ok_or(CallError::declined(Declined::Gone, ""))?;
        let name = upstream.link.name().clone();
        let initialized = upstream.shared.initialized().ok_or_else(|| not_connected(&name))?;
        let era = initialized.era;
        if upstream.pool.is_some() || (era == Era::Legacy && !initialized.offers(message.method())) {
            return Err(CallError::UnknownMethod(message.method().to_owned()).into());
        }
        let state = match &request.state {
            None => None,
            Some(Err(why)) => return Err(Refused::State(*why)),
            Some(Ok(claims)) => {
                claims.check_instance(Some(upstream.instance_run(None))).map_err(Refused::State)?;
                match &claims.kind {
                    StateKind::Wrapped(state) => Some(state.clone()),
                    StateKind::Parked(_) | StateKind::Url => None,
                }
            }
        };
        let token = request.params.keys.token.clone().map(|span| &message.text()[span]);
        if token.is_some_and(|token| token.len() > limits::ID_BYTES) {
            return Err(CallError::TokenTooLong.into());
        }
        let timeout = match message.method() {
            "tools/call" => self.config.timeout_run_tool,
            _ => self.config.timeout_rpc,
        };
        let declined = |why| Refused::Call(CallError::declined(why, &name));
        let share = upstream.shared.take_share(sender.principal, several).map_err(declined)?;
        let call = StatelessCall {
            principal: sender.principal,
            id: message.id().unwrap_or_default().into(),
            sees_all: *sender.scope == Scope::All,
            level: request.envelope.level,
            allowed: request.envelope.capabilities.allowed,
            digest: CallDigest::of(sender.scope.server(), message.method(), &request.name),
        };
        let origin = Origin::Stateless(Box::new(call));
        let caller =
            Caller::Client(ClientCall { origin, responder: sender.responder.clone(), share, repeat: None });
        let call = NewCall { caller, method: message.method(), token, timeout };
        let upstream_id = upstream.shared.open(sender.now, call).map_err(declined)?;
        self.stats.calls.add();
        let may_log = request.envelope.level.is_some() && upstream.shared.take_level_slot(upstream_id);
        self.set_timer(server, fx);
        let rewrite = match era {
            Era::Modern => Rewrite::Pass { state, may_log, capabilities: request.capabilities.clone() },
            Era::Legacy => Rewrite::Unwrap,
        };
        let to = InstanceKey::shared(server);
        Ok(StatelessOutcome::Call(Ticket { to, upstream_id, session: None, rename, rewrite, keep: None }))
    }

    /// Cancels a stateless call whose client has gone. Does nothing if it is answered.
    pub fn cancel_stateless(&mut self, now: Instant, call: (InstanceKey, u64), fx: &mut Effects<'_>) {
        self.cancel(now, call, Err("the client closed the connection"), fx);
    }
}

impl super::upstream::Upstream {
    /// Returns the run of a process, as a sealed state names it.
    pub(super) fn instance_run(&self, channel: Option<u32>) -> InstanceRun {
        InstanceRun { upstream: self.key.number(), channel, run: self.run.number() }
    }
}
