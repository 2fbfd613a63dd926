//! The ways into the hub: one for the messages of clients, one for the frames of servers.
//!
//! A message is parsed before the hub is entered, and large texts are made between two entries, so
//! that the lock of the hub is held for microseconds. Another thread may change the tables in
//! between, so the second entry looks its call up again. The simulation runs these same functions,
//! with other events in between.

use std::{sync::Arc, time::Instant};

use super::{
    answer::{Answer, answer},
    call::{Asked, Outcome},
    conclusion::{self, Conclusion, Tasks},
    effect::Effects,
    error::{CallError, ServerRequestError},
    frame::{Mentions, Next},
    incoming::{self, Incoming, Notice, Part, UnexpectedChannel},
    instance::Initialized,
    key::{Asker, InstanceKey, SessionKey},
    listener::Listener,
    park::{Answering, Returned},
    peers::Responder,
    request::{Notification, Request},
    rounds,
    session::{Scope, name_of},
    state::Hub,
    stateless::{Refused, Sender, StatelessOutcome, StatelessRequest},
    waiting::PendingCall,
};
use crate::{
    auth::Principal,
    catalog::UpstreamKey,
    jsonrpc::{self, Kind, Malformed, Message, RpcError, Span, tolerant},
    limits::{LOG_GROUPS, StatelessLimits},
    mcp::{
        discovery::error_text,
        stateless::{
            Envelope, Params,
            headers::Header,
            input::{self, Embedded},
            listen as messages,
        },
    },
    metrics::Stats,
    session::ListenKey,
    tunnel::close::CloseReason,
    util::escape::show,
};

/// Enters the hub.
pub trait Enter {
    /// Runs `work` with the hub locked, then applies its [`Effects`] with the hub unlocked.
    fn enter<'m, R>(&self, work: impl FnOnce(&mut Hub, &mut Effects<'m>) -> R) -> R;

    /// Returns the counters.
    fn stats(&self) -> &Stats;
}

/// The session that a client's message belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The key of the session.
    pub key: SessionKey,
    /// Its id.
    pub id: &'a str,
    /// The servers that it sees.
    pub scope: &'a Scope,
}

/// A call of the tool `list_servers`, whose result is built in several steps.
#[derive(Debug)]
pub struct ServersWanted {
    /// The principal of the client.
    pub viewer: Principal,
    /// The id of the request, raw JSON.
    pub id: String,
}

/// Handles one message of a client. A request gets exactly one response, through `responder`, or
/// none if the client cancels it on the 2024-11-05 transport. If a [`ServersWanted`] is returned,
/// the caller sends that response.
pub fn message(
    hub: &impl Enter,
    now: Instant,
    client: Client<'_>,
    message: &Message<'_>,
    responder: &Arc<dyn Responder>,
) -> Option<ServersWanted> {
    log::debug!("client {}: {:?} {}", name_of(client.id), message.kind(), show(message.method()));
    match message.kind() {
        Kind::Request => return request(hub, now, client, message, responder),
        Kind::Notification => notification(hub, now, client, message),
        Kind::Response => response(hub, now, client, message),
    }
    None
}

fn request(
    hub: &impl Enter,
    now: Instant,
    client: Client<'_>,
    message: &Message<'_>,
    responder: &Arc<dyn Responder>,
) -> Option<ServersWanted> {
    let id = message.id().unwrap_or_default();
    let request = Request::read(client.scope, message);
    // Counted before the hub is entered, so that the drain waits for every request that the hub did
    // not refuse.
    responder.begin();
    let asked = Asked { now, session: client.key, request: &request, responder };
    let outcome = match hub.enter(|hub, fx| hub.call(asked, fx)) {
        Ok(Outcome::Splice(mut ticket)) => {
            let text = ticket.text(message);
            hub.enter(|hub, fx| hub.commit(now, &ticket, text, fx)).map(|()| Outcome::Later)
        }
        outcome => outcome,
    };
    match outcome {
        Ok(Outcome::Now(result)) => responder.finish(jsonrpc::result(id, &result), hub.stats()),
        Ok(Outcome::Later | Outcome::Splice(_)) => {}
        Ok(Outcome::Servers(viewer)) => return Some(ServersWanted { viewer, id: id.to_owned() }),
        Err(why) => {
            let error = why.rpc();
            if error.code == jsonrpc::BUSY {
                hub.stats().busy.add();
            }
            responder.finish(error.response(id), hub.stats());
        }
    }
    None
}

/// Handles a request of a stateless client, which gets exactly one response. Returns the pending
/// call, for [`Hub::cancel_stateless`], or `None` if it is answered. `field`: returns a header field
/// of the request.
pub fn stateless<'h>(
    hub: &impl Enter,
    sender: Sender<'_>,
    parsed: (&Message<'_>, Params, Envelope<'_>),
    field: &dyn Fn(&str) -> Header<'h>,
    limits: &StatelessLimits,
) -> Option<PendingCall> {
    let (message, id) = (parsed.0, parsed.0.id().unwrap_or_default());
    log::debug!("stateless request: {}", show(message.method()));
    sender.responder.begin();
    let (sealing, marked) = hub.enter(|hub, _| hub.checks(sender.scope, message, &parsed.1));
    let checked = marked.map_or(Ok(()), |marked| marked.check(message, &parsed.1, field));
    let request = StatelessRequest::read(parsed, &sender, &sealing, limits);
    let outcome = checked.map_err(Refused::Header);
    let outcome = outcome.and_then(|()| hub.enter(|hub, fx| hub.call_stateless(sender, &request, fx)));
    let refused = match outcome {
        Ok(StatelessOutcome::Now(result)) => {
            sender.responder.finish(jsonrpc::result(id, &result), hub.stats());
            return None;
        }
        Ok(StatelessOutcome::Call(ticket)) => {
            let text = ticket.stateless_text(message, &request.params);
            match hub.enter(|hub, fx| hub.commit(sender.now, &ticket, text, fx)) {
                Ok(()) => return Some(ticket.pending()),
                Err(why) => Refused::Call(why),
            }
        }
        Ok(StatelessOutcome::Waiting(call)) => return Some(call),
        Ok(StatelessOutcome::Returned(returned)) => match repeated(hub, &sender, &request, returned) {
            Ok(call) => return call,
            Err(why) => Refused::Call(why),
        },
        Err(why) => why,
    };
    let error = refused.rpc();
    if error.code == jsonrpc::MODERN_BUSY {
        hub.stats().busy.add();
    }
    sender.responder.fail(error.code, error.response(id), hub.stats());
    None
}

/// Opens a listen of a stateless client. It is acknowledged on its stream, and lasts until
/// [`Hub::close_listen`], or until the hub ends its stream.
///
/// # Errors
/// The error for the response.
pub fn listen(
    hub: &impl Enter,
    now: Instant,
    listener: Listener,
    (message, params): (&Message<'_>, &Params),
    limits: &StatelessLimits,
) -> Result<ListenKey, RpcError> {
    let wanted = messages::filter(message.text(), params, limits.listen_uris)?;
    let opened = hub.enter(|hub, fx| hub.open_listen(now, listener, (message, &wanted), fx));
    opened.map_err(|why| {
        let error = why.rpc();
        if error.code == jsonrpc::MODERN_BUSY {
            hub.stats().busy.add();
        }
        error
    })
}

/// Goes on with a parked call for the request that repeats it. Returns the pending call, or `None` if
/// it is answered.
fn repeated(
    hub: &impl Enter,
    sender: &Sender<'_>,
    request: &StatelessRequest<'_>,
    returned: Returned,
) -> Result<Option<PendingCall>, CallError> {
    let (message, now) = (request.message, sender.now);
    match returned {
        Returned::Resumed(from, id, Answering { requests, version }) => {
            let answers = requests.iter().map(|asked| {
                let answer = input::answer(message.text(), request.params.responses.as_ref(), &asked.key);
                match answer {
                    Some(answer) => input::response(&asked.id, asked.kind, answer, &version),
                    None => input::given_up(&asked.id, asked.kind),
                }
            });
            let answers = answers.collect();
            hub.enter(|hub, fx| hub.answer_questions(now, from, answers, fx));
            Ok(Some(PendingCall::At(from, id)))
        }
        Returned::Again(result) => {
            let response = jsonrpc::result(message.id().unwrap_or_default(), &result);
            sender.responder.finish(response, hub.stats());
            Ok(None)
        }
        Returned::Finished(from, call, finished) => {
            let response = Message::read(&finished.response)?;
            let call = (call, message.method().into(), None);
            let mut conclusion = hub.enter(|hub, _| hub.conclude(now, from, call, &response));
            conclude(hub, now, &mut conclusion);
            Ok(None)
        }
        Returned::Lost => Err(CallError::NoMemory),
    }
}

fn notification(hub: &impl Enter, now: Instant, client: Client<'_>, message: &Message<'_>) {
    let notification = Notification::read(client.scope, message);
    hub.enter(|hub, fx| match notification {
        Err(why) => {
            let name = name_of(client.id).to_string();
            let line = || format!("client {name}: dropped {}: {why}", show(message.method()));
            hub.log_throttled(now, log::Level::Info, ("dropped", &name, LOG_GROUPS), fx, line);
        }
        Ok(notification) => hub.notify(now, client.key, (message, notification), fx),
    });
}

fn response(hub: &impl Enter, now: Instant, client: Client<'_>, message: &Message<'_>) {
    let id = message.id().unwrap_or_default();
    let Some((asker, own_id)) = hub.enter(|hub, _| hub.take_server_request(client.key, id)) else {
        return hub.stats().unmatched.add();
    };
    let to = match asker {
        Asker::Instance(to) => to,
        Asker::Round(round, place) => {
            let answer = message.result().filter(|_| !message.has_lone_surrogate()).map(str::to_owned);
            return hub.enter(|hub, fx| hub.answer_round(now, (round, place), answer, fx));
        }
    };
    let answer = match message.has_lone_surrogate() {
        true => Err(ServerRequestError::LoneSurrogate),
        false => Ok(message.with_id(&own_id)),
    };
    hub.enter(|hub, fx| hub.answer_server_request(now, (to, &own_id), answer, fx));
}

/// Handles a client's message that was refused. If it is the response to a server's request,
/// that request fails at once, because no other response will follow.
pub fn refused_response(hub: &impl Enter, now: Instant, session: SessionKey, body: &[u8], why: Malformed) {
    let Some(id) = tolerant::answer_id(body) else { return };
    let asked = hub.enter(|hub, _| hub.take_server_request(session, &id));
    match asked {
        Some((Asker::Instance(to), own_id)) => {
            let answer = Err(ServerRequestError::InvalidResponse(why));
            hub.enter(|hub, fx| hub.answer_server_request(now, (to, &own_id), answer, fx));
        }
        Some((Asker::Round(round, place), _)) => {
            hub.enter(|hub, fx| hub.answer_round(now, (round, place), None, fx));
        }
        None => {}
    }
}

/// What a link and its edge agreed on at registration.
#[derive(Clone, Copy, Debug)]
pub struct LinkTraits {
    /// The server behind it.
    pub server: UpstreamKey,
    /// The server can have isolated instances.
    pub is_isolating: bool,
    /// The edge is mcpport's own and sends status frames.
    pub reads_status_frames: bool,
}

/// Handles a frame of a link.
///
/// # Errors
/// A [`CloseReason`] that ends the link.
pub fn frame(hub: &impl Enter, now: Instant, link: LinkTraits, frame: &str) -> Result<(), CloseReason> {
    let (channel, text) = match Incoming::read(frame, link.is_isolating, link.reads_status_frames) {
        Ok(Incoming::Shared(text)) => (None, text),
        Ok(Incoming::Instance(channel, text)) => (Some(channel), text),
        Ok(Incoming::Closed(channel, reason)) => {
            hub.enter(|hub, fx| hub.instance_gone(now, (link.server, channel), reason, fx));
            return Ok(());
        }
        Err(UnexpectedChannel) => {
            return Err(CloseReason::new(1008, "channel frame without negotiated sessions"));
        }
    };
    let from = InstanceKey { upstream: link.server, channel };
    // Only the shared process sends status frames.
    let has_status = link.reads_status_frames && channel.is_none();
    incoming::parts(text, has_status, |part| match part {
        Part::Message(message) => server_message(hub, now, from, message),
        Part::Unusable(answer) => hub.enter(|hub, fx| hub.on_unusable(now, from, answer, fx)),
        Part::Noise(malformed) => {
            hub.enter(|hub, fx| hub.on_noise(now, from, malformed, fx));
            Ok(())
        }
        Part::Twin => {
            hub.enter(|hub, fx| hub.on_twin(now, from, fx));
            Ok(())
        }
        Part::Restarted => hub.enter(|hub, fx| hub.on_restart(now, from.upstream, fx)),
    })
}

fn server_message(
    hub: &impl Enter,
    now: Instant,
    from: InstanceKey,
    message: &Message<'_>,
) -> Result<(), CloseReason> {
    let notice = Notice::read(message);
    match hub.enter(|hub, fx| hub.on_message(now, from, (message, &notice), fx))? {
        Next::Done => Ok(()),
        Next::Conclude(mut conclusion) => {
            conclude(hub, now, &mut conclusion);
            Ok(())
        }
        Next::Discover(mut discovery, question) => {
            let step = discovery.answered(question, message);
            hub.enter(|hub, fx| hub.discovered(now, from.upstream, (*discovery, step), fx))
        }
        Next::Ask(allowed) => {
            let asked = (message.id().unwrap_or_default(), Embedded::read(message, allowed));
            hub.enter(|hub, fx| hub.asked(now, from, asked, fx));
            Ok(())
        }
        Next::Initialize => {
            let initialized = message.result().map(Initialized::read).ok_or_else(|| error_text(message));
            hub.enter(|hub, fx| hub.instance_initialized(now, from, initialized, fx));
            Ok(())
        }
    }
}

/// Delivers the response to a client's call.
fn conclude(hub: &impl Enter, now: Instant, conclusion: &mut Conclusion<'_>) {
    if conclusion.round.is_some() {
        let questions = rounds::questions(conclusion);
        if hub.enter(|hub, fx| hub.on_repeatable(now, conclusion, questions, fx)) {
            return;
        }
    }
    let edits = match mentions(conclusion) {
        Some(found) => hub.enter(|hub, _| hub.resolve(now, conclusion, found)),
        None => Ok(Vec::new()),
    };
    let Answer { text, error } = match edits {
        Ok(edits) => answer(conclusion, edits),
        Err(why) => Answer::error(conclusion.call.id(), &why.rpc()),
    };
    match error {
        None => conclusion.call.responder.finish(text, hub.stats()),
        Some(code) => conclusion.call.responder.fail(code, text, hub.stats()),
    }
}

/// Returns what the hub must look up for a response, or `None` if there is nothing.
fn mentions(conclusion: &Conclusion<'_>) -> Option<Mentions> {
    let Conclusion { message, method, .. } = conclusion;
    let tasks = match conclusion.from.channel {
        None => Tasks::read(method, conclusion.has_tasks, message),
        Some(_) => Tasks::Unnamed,
    };
    let links =
        if conclusion.sees_all { conclusion::links(method, message) } else { Vec::<(Span, String)>::new() };
    let is_session = conclusion.call.session().is_some();
    let result = message.result().filter(|_| is_session && &**method == "initialize");
    let found = Mentions { tasks, links, initialized: result.map(Initialized::read) };
    let is_empty = found.tasks == Tasks::Unnamed && found.links.is_empty() && found.initialized.is_none();
    (!is_empty).then_some(found)
}
