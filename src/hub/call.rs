//! Requests of clients: finds the server of each, and forwards it.

use std::{sync::Arc, time::Instant};

use super::{
    effect::Effects,
    error::{CallError, Declined},
    instance::{Caller, ClientCall, KeptRequest, NewCall, Origin, declined_by_link},
    key::{InstanceKey, SessionKey},
    peers::Responder,
    request::{Named, Reference, Request, ResourceMethod, What},
    session::SessionEnvelope,
    state::Hub,
    waiting::PendingCall,
};
use crate::{
    auth::Principal,
    catalog::{Target, UpstreamKey},
    jsonrpc::{Message, Span, edit},
    limits::SPLICE_IN_HUB,
    mcp::{
        listing::ListKind,
        log_level::Level,
        stateless::{
            Params,
            input::may_ask,
            wrap::{self, Forward, Pass, StateEdit},
        },
    },
    session::{CallId, CallRefused},
};

/// A client's request, on its way through the hub.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// When it arrived.
    pub now: Instant,
    /// The client's session.
    pub session: SessionKey,
    /// The parsed request.
    pub request: &'a Request<'a>,
    /// Where the response goes.
    pub responder: &'a Arc<dyn Responder>,
}

/// The outcome of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The result, available at once.
    Now(String),
    /// The response follows later, mostly from a server.
    Later,
    /// The text for the server is to be made without the lock of the hub, and then given to
    /// [`Hub::commit`].
    Splice(Ticket),
    /// The list of all servers is to be made in several steps, for this principal.
    Servers(Principal),
}

/// A call that is pending, and whose frame is not queued yet.
#[derive(Debug)]
pub struct Ticket {
    /// The process that it is for, and its id there.
    pub(super) to: InstanceKey,
    pub(super) upstream_id: u64,
    /// The call in its session, if it has one.
    pub(super) session: Option<(SessionKey, CallId)>,
    /// Position of the name that the client used, and the server's own name to put there.
    pub(super) rename: Option<Named>,
    pub(super) rewrite: Rewrite,
    /// Set if the text is kept.
    pub(super) keep: Option<Keep>,
}

/// How the text of a call is kept, since its modern server may ask the client of the session, and
/// then gets the call again.
#[derive(Debug)]
pub(super) struct Keep {
    /// When the call arrived.
    began: Instant,
    /// The longest text that is kept, in bytes.
    max: usize,
    /// The text, once it is made.
    text: Option<Arc<str>>,
}

/// How a request is changed for its server, besides its id and name.
#[derive(Debug)]
pub(super) enum Rewrite {
    /// For a client and a server that both use `initialize`: the gateway's id replaces the progress
    /// token at this position.
    Token(Option<Span>),
    /// For a modern client and a modern server.
    Pass {
        /// The server's own state, in a retry.
        state: Option<String>,
        /// Whether the server may send log messages.
        may_log: bool,
        /// The client's capabilities, if they are cut (raw JSON).
        capabilities: Option<String>,
    },
    /// For a modern client and a legacy server: without the envelope.
    Unwrap,
    /// For a session and a modern server: with the envelope.
    Wrap {
        /// The reserved keys of the session's requests.
        members: Arc<str>,
        /// The level of log messages that the server may send.
        level: Option<Level>,
    },
}

impl Ticket {
    /// Returns where the request is pending.
    pub fn pending(&self) -> PendingCall {
        PendingCall::At(self.to, self.upstream_id)
    }

    /// Returns the request of a session for the server.
    pub fn text(&mut self, message: &Message<'_>) -> String {
        let text = match &self.rewrite {
            Rewrite::Token(token) => edit::request(message, self.upstream_id, self.name(), token.clone()),
            // Params that occur twice are refused when a request is parsed.
            _ => self.stateless_text(message, &Params::read(message).unwrap_or_default()),
        };
        if let Some(keep) = self.keep.as_mut().filter(|keep| text.len() <= keep.max) {
            keep.text = Some(text.as_str().into());
        }
        text
    }

    /// Returns the request with these params for the server, where client or server is stateless.
    pub fn stateless_text(&self, message: &Message<'_>, params: &Params) -> String {
        let forward = Forward { id: self.upstream_id, name: self.name() };
        match &self.rewrite {
            Rewrite::Token(token) => edit::request(message, self.upstream_id, self.name(), token.clone()),
            Rewrite::Pass { state, may_log, capabilities } => {
                let state = match state {
                    Some(state) => StateEdit::Replace(state),
                    None => StateEdit::Remove,
                };
                let pass = Pass { forward, state, may_log: *may_log, capabilities: capabilities.as_deref() };
                wrap::pass(message, params, &pass)
            }
            Rewrite::Unwrap => wrap::unwrap(message, params, &forward),
            Rewrite::Wrap { members, level } => wrap::wrap(message, params, members, *level, &forward),
        }
    }

    fn name(&self) -> Option<(Span, &str)> {
        self.rename.as_ref().map(|(span, name)| (span.clone(), name.as_str()))
    }
}

impl Hub {
    /// Handles a client's request. Anything but [`Outcome::Later`] is for the caller to finish.
    ///
    /// # Errors
    /// Why the request is refused; nothing was sent then.
    pub fn call(&mut self, asked: Asked<'_>, fx: &mut Effects<'_>) -> Result<Outcome, CallError> {
        let request = asked.request;
        match (&request.refused, &request.what) {
            _ if self.draining && request.message.method() != "ping" => return Err(CallError::Draining),
            (Some(why), _) => return Err(why.clone()),
            (None, What::Ping) => return Ok(Outcome::Now("{}".into())),
            // Part of the stateless protocol. Clients that probe with it fall back on this error.
            (None, What::Discover) => return Err(unknown_method(request)),
            _ => {}
        }
        let session = self.clients.get(&asked.session).ok_or_else(session_ended)?;
        let own =
            session.scope.server().map(|name| self.catalog.server(name).ok_or_else(|| not_connected(name)));
        if let Some(Ok(server)) = &own
            && self.is_isolating(*server)
        {
            return self.call_isolated(asked, *server, fx);
        }
        match (&request.what, own) {
            (What::Initialize(params), _) => self.initialize(asked.now, asked.session, checked(params)?),
            (What::SetLevel(level), _) => self.set_level(asked, level.ok_or(CallError::UnknownLevel)?, fx),
            (_, Some(server)) => self.ask_server(asked, server?, fx),
            (_, None) => self.ask_all(asked, fx),
        }
    }

    /// Returns whether a server has an instance for each session.
    pub(super) fn is_isolating(&self, server: UpstreamKey) -> bool {
        self.upstreams.get(&server).is_some_and(|upstream| upstream.pool.is_some())
    }

    /// Handles a request at the endpoint of a server that has an instance for each session.
    fn call_isolated(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        let session = self.clients.get(&asked.session).ok_or_else(session_ended)?;
        match &asked.request.what {
            What::Initialize(_) if session.is_initialized() => Err(CallError::AlreadyInitialized),
            What::Initialize(_) => self.forward(asked, server, None, None, fx),
            _ if !session.instances.is_empty() => self.ask_server(asked, server, fx),
            _ if session.is_initialized() => {
                // The session was initialized while all sessions shared the server's process.
                self.close_session(asked.now, asked.session, "the server's session mode has changed", fx);
                Err(CallError::SessionReplaced)
            }
            _ => Err(CallError::NotInitialized),
        }
    }

    /// Handles a request at the endpoint of one server. It is forwarded unchanged, except that
    /// subscriptions are counted and task requests are checked where sessions share the server.
    fn ask_server(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        match &asked.request.what {
            What::Resource(method, uri) => {
                let named = checked(uri)?.clone();
                self.resource(asked, server, (*method, named), fx)
            }
            What::Task(task) if !self.is_isolating(server) => {
                if let Some(id) = checked(task)?
                    && !self.may_have_task(asked.session, server, id)
                {
                    return Err(CallError::TaskNotFound);
                }
                self.forward(asked, server, None, None, fx)
            }
            _ => self.forward(asked, server, None, None, fx),
        }
    }

    /// Handles a request at the aggregate of all servers.
    fn ask_all(&mut self, asked: Asked<'_>, fx: &mut Effects<'_>) -> Result<Outcome, CallError> {
        match &asked.request.what {
            What::List(kind, cursor) => {
                let page = self.catalog.list(*kind, checked(cursor)?.as_deref());
                page.map(Outcome::Now).ok_or(CallError::BadCursor)
            }
            What::Tool(name) => match self.find(ListKind::Tool, checked(name)?)? {
                Found::Own => self.list_servers(asked.session),
                Found::Server(server, named) => self.forward(asked, server, Some(named), None, fx),
            },
            What::Prompt(name) => self.forward_prompt(asked, checked(name)?, fx),
            What::Resource(method, uri) => {
                let uri = checked(uri)?;
                let (server, named) = resource_target(self.catalog.find_resource(&uri.1), uri)?;
                self.resource(asked, server, (*method, named), fx)
            }
            What::Complete(reference) => match checked(reference)? {
                Reference::Prompt(name) => self.forward_prompt(asked, name, fx),
                Reference::Template(uri) => {
                    let (server, named) = resource_target(self.catalog.find_template(&uri.1), uri)?;
                    self.forward(asked, server, Some(named), None, fx)
                }
            },
            _ => Err(unknown_method(asked.request)),
        }
    }

    fn forward_prompt(
        &mut self,
        asked: Asked<'_>,
        name: &Named,
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        match self.find(ListKind::Prompt, name)? {
            Found::Own => Err(unknown_method(asked.request)),
            Found::Server(server, named) => self.forward(asked, server, Some(named), None, fx),
        }
    }

    /// Looks up a tool or prompt.
    fn find(&self, kind: ListKind, (span, name): &Named) -> Result<Found, CallError> {
        match self.catalog.find(kind, name) {
            Some(Target::Server { handle, key }) => Ok(Found::Server(handle, (span.clone(), key))),
            Some(Target::Own) => Ok(Found::Own),
            Some(Target::Several(forms)) => Err(CallError::Ambiguous { kind, name: name.clone(), forms }),
            None => Err(CallError::Unknown { kind, name: name.clone() }),
        }
    }

    /// Forwards a request to a server, as the session's call `number` if that was reserved for it.
    pub(super) fn forward(
        &mut self,
        asked: Asked<'_>,
        server: UpstreamKey,
        named: Option<Named>,
        number: Option<u64>,
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        let message = asked.request.message;
        checked(&asked.request.token)?;
        if let Some(upstream) = self.upstreams.get(&server).filter(|upstream| upstream.is_undecided()) {
            return Err(not_connected(upstream.link.name()));
        }
        let process = self.instance_for(asked.now, asked.session, server, fx);
        let process = process.map_err(|why| self.declined(server, why))?;
        self.stats.calls.add();
        let mut ticket =
            self.begin(asked, process, named, number).map_err(|why| self.declined(server, why))?;
        self.set_timer(server, fx);
        // A subscription is queued at once, so that requests about one resource reach the server in
        // the order in which they changed the table.
        let is_subscription = matches!(
            asked.request.what,
            What::Resource(ResourceMethod::Subscribe | ResourceMethod::Unsubscribe, _)
        );
        if message.text().len() > SPLICE_IN_HUB && !is_subscription {
            return Ok(Outcome::Splice(ticket));
        }
        let text = ticket.text(message);
        self.commit(asked.now, &ticket, text, fx).map(|()| Outcome::Later)
    }

    /// Adds a call to the tables of its session and of its process.
    fn begin(
        &mut self,
        asked: Asked<'_>,
        process: InstanceKey,
        named: Option<Named>,
        number: Option<u64>,
    ) -> Result<Ticket, Declined> {
        let several = self.tokens.have_several_clients();
        let timeout = match asked.request.message.method() {
            "tools/call" | "tasks/result" | "initialize" => self.config.timeout_run_tool,
            _ => self.config.timeout_rpc,
        };
        let ended = Declined::Session(CallRefused::Ended);
        let session = self.clients.get_mut(&asked.session).ok_or(ended)?;
        let upstream = self.upstreams.get_mut(&process.upstream).ok_or(Declined::Gone)?;
        let (instance, _) = upstream.process(process.channel).ok_or(Declined::Gone)?;
        let message = asked.request.message;
        let number = number.unwrap_or_else(|| session.calls.reserve());
        let raw_id = message.id().unwrap_or_default();
        let id = session.calls.may_begin_as(number, raw_id, asked.responder.stream_key());
        let id = id.map_err(Declined::Session)?;
        let share = instance.take_share(session.principal, several)?;
        let call = ClientCall {
            origin: Origin::Session(asked.session, id.clone()),
            responder: asked.responder.clone(),
            share,
            repeat: None,
        };
        let token = asked.request.token.as_ref().ok().cloned().flatten();
        let call = NewCall {
            caller: Caller::Client(call),
            method: message.method(),
            token: token.clone().map(|span| &message.text()[span]),
            timeout,
        };
        let upstream_id = instance.open(asked.now, call)?;
        session.calls.begin(&id, process, upstream_id);
        // An isolated instance serves one client only, so its progress tokens are unique as they
        // are.
        let token = token.filter(|_| process.channel.is_none());
        let (rewrite, keep) = if instance.is_modern() {
            let SessionEnvelope { members, allowed } = session.envelope();
            let level = session.info.level.filter(|_| instance.take_level_slot(upstream_id));
            let max = self.config.limits.stateless.round_bytes;
            let keep = (allowed.any() && may_ask(message.method())).then_some(Keep {
                began: asked.now,
                max,
                text: None,
            });
            (Rewrite::Wrap { members, level }, keep)
        } else {
            (Rewrite::Token(token), None)
        };
        let session = Some((asked.session, id));
        Ok(Ticket { to: process, upstream_id, session, rename: named, rewrite, keep })
    }

    /// Queues the frame of a pending call. A call that was cancelled meanwhile, or failed with its
    /// server, is answered already; nothing is sent then.
    ///
    /// # Errors
    /// Why the link does not take the frame; the call is no longer pending then.
    pub fn commit(
        &mut self,
        now: Instant,
        ticket: &Ticket,
        text: String,
        fx: &mut Effects<'_>,
    ) -> Result<(), CallError> {
        let kept = self.kept(ticket);
        let Some((instance, link)) = self.process(ticket.to) else { return Ok(()) };
        if instance.mux().get(ticket.upstream_id).is_none() {
            return Ok(());
        }
        if let Some(kept) = kept {
            instance.keep(ticket.upstream_id, kept);
        }
        let sent = match link.excess(ticket.to.channel, &text) {
            Some(declined) => Err(declined),
            None => instance.send_call(link, Some(ticket.upstream_id), text, fx).map_err(declined_by_link),
        };
        let Err(declined) = sent else { return Ok(()) };
        let starting = declined == Declined::Link && instance.is_starting();
        if let Some(pending) = instance.close(ticket.upstream_id) {
            self.has_left(now, ticket.to, &pending.caller, fx);
        }
        let declined = if starting { Declined::Starting } else { declined };
        if let Some((session, id)) = &ticket.session
            && let Some(session) = self.clients.get_mut(session)
        {
            session.calls.end(id);
        }
        Err(self.declined(ticket.to.upstream, declined))
    }

    /// Charges the session of a call for its text, if that is kept and there is memory for it.
    fn kept(&self, ticket: &Ticket) -> Option<KeptRequest> {
        let Keep { began, text, .. } = ticket.keep.as_ref()?;
        let (text, (session, _)) = (text.clone()?, ticket.session.as_ref()?);
        let mut charge = self.clients.get(session)?.account.charge();
        charge.resize(text.len()).then_some(KeptRequest { text, began: *began, charge })
    }

    /// Returns the error for a call that was not passed to a server.
    pub(super) fn declined(&self, server: UpstreamKey, why: Declined) -> CallError {
        let name = self.upstreams.get(&server).map(|upstream| &**upstream.link.name());
        CallError::declined(why, name.unwrap_or_default())
    }

    /// Cancels a call at its process. `notification`: the client's own with the position of its
    /// request id, or else the reason.
    pub(super) fn cancel(
        &mut self,
        now: Instant,
        (process, upstream_id): (InstanceKey, u64),
        notification: Result<(&Message<'_>, Span), &str>,
        fx: &mut Effects<'_>,
    ) {
        let Some((instance, link)) = self.process(process) else { return };
        let Some(pending) = instance.close(upstream_id) else {
            return self.cancel_round((process, upstream_id), fx);
        };
        let text = match notification {
            Ok((message, span)) => edit::cancellation(message, span, upstream_id),
            Err(reason) => edit::cancelled(upstream_id, reason),
        };
        // The server must stop in any case. Only what the client added can make it too large, so
        // leave that out.
        let text = match link.excess(process.channel, &text) {
            Some(_) => edit::cancelled(upstream_id, "the client cancelled the request"),
            None => text,
        };
        // Best effort: if the link is full, the server's late response is dropped as unmatched.
        let _ = instance.send(link, now, text, fx);
        self.has_left(now, process, &pending.caller, fx);
        if let Caller::Client(call) = pending.caller {
            fx.cancelled(call.responder.clone(), call.id());
            self.forget_round(&call);
        }
    }
}

/// The result of looking up a tool or prompt.
enum Found {
    Own,
    Server(UpstreamKey, Named),
}

/// Returns the server of a resource, and where to put its own URI for it.
pub(super) fn resource_target(
    target: Option<Target<UpstreamKey>>,
    (span, uri): &Named,
) -> Result<(UpstreamKey, Named), CallError> {
    match target {
        Some(Target::Server { handle, key }) => Ok((handle, (span.clone(), key))),
        Some(Target::Several(forms)) => {
            Err(CallError::Ambiguous { kind: ListKind::Resource, name: uri.clone(), forms })
        }
        _ => Err(CallError::NoResource { uri: uri.clone() }),
    }
}

/// Returns a parameter, or the error that was found in it.
pub(super) fn checked<T>(param: &Result<T, CallError>) -> Result<&T, CallError> {
    param.as_ref().map_err(Clone::clone)
}

pub(super) fn unknown_method(request: &Request<'_>) -> CallError {
    CallError::UnknownMethod(request.message.method().to_owned())
}

pub(super) fn not_connected(server: &str) -> CallError {
    CallError::NotConnected { server: server.to_owned() }
}

pub(super) fn session_ended() -> CallError {
    CallError::declined(Declined::Session(CallRefused::Ended), "")
}
