//! Requests of MCP 2026-07-28: no session, so each is checked, routed and answered by itself.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Instant};

use super::{
    call::{Rewrite, Ticket, not_connected},
    effect::Effects,
    error::{CallError, Declined, listen_error, modern_error, state_error},
    instance::StatelessCall,
    key::{InstanceKey, Sealing},
    lease::{NewStateless, Wanted},
    park::{Return, Returned},
    peers::Responder,
    request::{Named, refused},
    server_list::ServerList,
    session::Scope,
    state::Hub,
    waiting::{PendingCall, WaitingCall},
};
use crate::{
    auth::Principal,
    budget::Account,
    catalog::{Target, UpstreamKey},
    jsonrpc::{Message, RpcError, Span, find, members, object, unquote},
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
    session::{CallDigest, Claims, InstanceRun, LeaseKey, ListenRefused, Retry, StateError, StateKind},
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
    /// The keys of its answers, if it returns to a parked call.
    answers: BTreeSet<String>,
}

/// The sender of a stateless request.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// When it arrived.
    pub now: Instant,
    /// Its principal.
    pub principal: Principal,
    /// The account that pays for what is held for it.
    pub account: &'a Account,
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
    /// The request waits for a process.
    Waiting(PendingCall),
    /// The request repeats a call that was parked.
    Returned(Returned),
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
        let is_parked = matches!(&state, Some(Ok(Claims { kind: StateKind::Parked(_), .. })));
        let answers = params.responses.clone().filter(|_| is_parked).and_then(|span| {
            let span = object(&text[span.clone()]).map(|_| span)?;
            Some(
                members(text, span).filter_map(|(key, _)| unquote(&text[key]).map(Cow::into_owned)).collect(),
            )
        });
        let answers = answers.unwrap_or_default();
        Self { message, params, envelope, name, state, capabilities, answers }
    }

    /// Returns the call.
    fn call(&self, sender: &Sender<'_>) -> StatelessCall {
        StatelessCall {
            principal: sender.principal,
            id: self.message.id().unwrap_or_default().into(),
            sees_all: *sender.scope == Scope::All,
            level: self.envelope.level,
            allowed: self.envelope.capabilities.allowed,
            digest: CallDigest::of(sender.scope.server(), self.message.method(), &self.name),
        }
    }

    /// Returns the client's progress token, raw JSON.
    fn token(&self) -> Option<&'m str> {
        self.params.keys.token.clone().map(|span| &self.message.text()[span])
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
        let offer = match initialized.era {
            Era::Modern => Offer::Modern,
            Era::Legacy => Offer::Legacy { logging: self.is_isolating(server) },
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
        let message = request.message;
        let upstream = self.upstreams.get(&server).ok_or(CallError::declined(Declined::Gone, ""))?;
        let name = upstream.link.name().clone();
        let initialized = upstream.shared.initialized().ok_or_else(|| not_connected(&name))?;
        let era = initialized.era;
        if era == Era::Legacy && !initialized.offers(message.method()) {
            return Err(CallError::UnknownMethod(message.method().to_owned()).into());
        }
        let isolated = upstream.pool.is_some();
        if request.token().is_some_and(|token| token.len() > limits::ID_BYTES) {
            return Err(CallError::TokenTooLong.into());
        }
        if let Some(Ok(claims)) = &request.state
            && let (StateKind::Parked(number), true) = (&claims.kind, isolated)
        {
            return self.repeat_stateless(&sender, request, (server, claims, *number), fx);
        }
        let lease = isolated.then(|| lease_key(&name, era, sender.principal, &request.envelope));
        let state = self.returned_state(request, server, lease.as_ref()).map_err(Refused::State)?;
        let declined = |why| Refused::Call(CallError::declined(why, &name));
        let wanted = |key| {
            let (allowed, account) = (request.envelope.capabilities.allowed, sender.account);
            Wanted { server, key, allowed, account }
        };
        let mut to = InstanceKey::shared(server);
        if let Some(key) = &lease {
            let Some(process) = self.take_process(sender.now, &wanted(key), fx).map_err(declined)? else {
                return self.wait_stateless(&sender, request, (server, key, rename)).map_err(declined);
            };
            to = process;
        }
        let new = NewStateless {
            call: request.call(&sender),
            responder: sender.responder.clone(),
            account: sender.account,
            method: message.method(),
            token: request.token(),
        };
        let begun = self.begin_stateless(sender.now, to, new, fx);
        if begun.is_err() {
            self.give_process(sender.now, to, fx);
        }
        let upstream_id = begun.map_err(declined)?;
        self.stats.calls.add();
        self.set_timer(server, fx);
        let Some((instance, _)) = self.process(to) else { return Err(declined(Declined::Gone)) };
        let rewrite = match era {
            Era::Modern => {
                let may_log = request.envelope.level.is_some() && instance.take_level_slot(upstream_id);
                Rewrite::Pass { state, may_log, capabilities: request.capabilities.clone() }
            }
            Era::Legacy => Rewrite::Unwrap,
        };
        let ticket = Ticket { to, upstream_id, session: None, rename, rewrite, keep: None };
        Ok(StatelessOutcome::Call(ticket))
    }

    /// Lets a request wait for a process.
    fn wait_stateless(
        &mut self,
        sender: &Sender<'_>,
        request: &StatelessRequest<'_>,
        (server, key, rename): (UpstreamKey, &LeaseKey, Option<Named>),
    ) -> Result<StatelessOutcome, Declined> {
        let text = request.message.text();
        let mut charge = sender.account.charge();
        if text.len() > limits::SPLICE_IN_HUB {
            return Err(Declined::Leases);
        }
        if !charge.resize(text.len()) {
            return Err(Declined::Memory);
        }
        let waiting = WaitingCall {
            server,
            call: request.call(sender),
            responder: sender.responder.clone(),
            account: sender.account.clone(),
            text: text.to_owned(),
            rename,
            charge,
        };
        let ticket = self.leases.wait(sender.now, key, Box::new(waiting)).map_err(|_| Declined::Leases)?;
        self.stats.calls.add();
        Ok(StatelessOutcome::Waiting(PendingCall::Waiting(server, ticket)))
    }

    /// Handles the retry of a call that is parked.
    fn repeat_stateless(
        &mut self,
        sender: &Sender<'_>,
        request: &StatelessRequest<'_>,
        (server, claims, number): (UpstreamKey, &Claims, u64),
        fx: &mut Effects<'_>,
    ) -> Result<StatelessOutcome, Refused> {
        let retry = Return {
            server,
            claims,
            number,
            call: request.call(sender),
            responder: sender.responder.clone(),
            token: request.token(),
            answers: &|key| request.answers.contains(key),
        };
        let returned = self.return_to_call(sender.now, retry, fx).map_err(Refused::State)?;
        Ok(StatelessOutcome::Returned(returned))
    }

    /// Returns the server's own state in a retry.
    fn returned_state(
        &self,
        request: &StatelessRequest<'_>,
        server: UpstreamKey,
        lease: Option<&LeaseKey>,
    ) -> Result<Option<String>, StateError> {
        let claims = match &request.state {
            None => return Ok(None),
            Some(claims) => claims.as_ref().map_err(|why| *why)?,
        };
        let state = match &claims.kind {
            StateKind::Wrapped(state) => state,
            // The call is repeated, at any process.
            StateKind::Url => return Ok(None),
            // Its server was isolated.
            StateKind::Parked(_) => return Err(StateError::Restarted),
        };
        let process = InstanceKey { upstream: server, channel: claims.instance.channel };
        let is_reached = match lease {
            None => process.channel.is_none(),
            Some(key) => self.leases.key(process) == Some(key),
        };
        let upstream = self.upstreams.get(&server).filter(|_| is_reached);
        claims.check_instance(upstream.map(|upstream| upstream.instance_run(process.channel)))?;
        Ok(Some(state.clone()))
    }

    /// Cancels a stateless call whose client has gone, and which is answered on this stream. Does
    /// nothing if it is answered.
    pub fn cancel_stateless(
        &mut self,
        now: Instant,
        (call, stream): (PendingCall, usize),
        fx: &mut Effects<'_>,
    ) {
        let place = match call {
            PendingCall::At(instance, _) => self
                .process(instance)
                .and_then(|(instance, _)| Some((instance.key(), instance.find_stream(stream)?))),
            PendingCall::Waiting(server, ticket) => {
                if let Some(waiting) = self.leases.cancel(ticket) {
                    return fx.cancelled(waiting.responder, &waiting.call.id);
                }
                let pool = self.upstreams.get(&server).and_then(|upstream| upstream.pool.as_ref());
                let mut open = pool.into_iter().flat_map(|pool| pool.open.values());
                open.find_map(|instance| Some((instance.key(), instance.find_stream(stream)?)))
            }
        };
        // One whose client was asked meanwhile is answered there by nobody.
        if let Some(call) = place {
            self.cancel(now, call, Err("the client closed the connection"), fx);
        }
    }
}

/// Returns the key of the processes that a call may have at an isolated server.
fn lease_key(server: &str, era: Era, principal: Principal, envelope: &Envelope<'_>) -> LeaseKey {
    let allowed = envelope.capabilities.allowed;
    // The requests and log messages of a legacy server name no call, so there is one at a time.
    let exclusive = era == Era::Legacy && (allowed.any() || envelope.level.is_some());
    LeaseKey { server: server.into(), principal, exclusive: exclusive.then(|| allowed.number()) }
}

impl super::upstream::Upstream {
    /// Returns the run of a process, as a sealed state names it. An isolated one has one run, and its
    /// channel is never used again.
    pub(super) fn instance_run(&self, channel: Option<u32>) -> InstanceRun {
        let run = if channel.is_some() { 0 } else { self.run.number() };
        InstanceRun { upstream: self.key.number(), channel, run }
    }
}
