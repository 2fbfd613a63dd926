//! The Streamable HTTP transport (MCP 2025-03-26 to 2025-11-25): one path for POST, GET and DELETE,
//! sessions by header.
//!
//! The response to a POST is plain JSON when the result is the first message. It is an event stream
//! when another message of the request comes before the result, or when nothing came for a while:
//! proxies cut off a response that stays silent, and an event stream can send keep-alives. Event
//! streams can be resumed.

use std::{collections::VecDeque, io, ops::ControlFlow, sync::Arc, time::Instant};

use super::{
    listen::Listen,
    post::{Form, Gathered, accepts, bad_request, gather, is_response, leave_answers, names_events, refuse},
    stateless::{self, Begun, StatelessCall},
};
use crate::{
    gateway::{
        dispatch::dispatch,
        event_stream::{self, EventIds, StreamEnd},
        exchange::Exchange,
        responder::PostResponder,
        session::{Session, SessionGuard},
        state::Gateway,
        streams::{Attached, NotAttached, STANDALONE},
    },
    http::{
        response::Response,
        types::{Method, StatusCode},
    },
    hub::{
        entry::{self, Enter},
        error::NO_MEMORY,
        peers::Responder,
        request::refused_notification,
        session::Scope,
    },
    jsonrpc::{self, Kind, Malformed, Message, elements},
    limits::{self, LOG_WARNINGS},
    mcp::{
        self,
        version::{allows_batches, allows_empty_events},
    },
    net::{outbox::Receiver, random},
    session::{self, event_id, read_event_id},
    sse,
};

const SESSION: &str = "Mcp-Session-Id";

/// Serves one request. Returns `None` if it was answered already, or the connection has ended.
///
/// # Errors
/// The connection broke, or the client does not read.
pub async fn serve(exchange: &mut Exchange<'_>, scope: Scope) -> io::Result<Option<Response>> {
    match exchange.request.method() {
        Method::Post => post(exchange, scope).await,
        _ if stateless::is_stateless(exchange.request) => Ok(Some(stateless::only_post())),
        Method::Get => get(exchange, &scope).await,
        _ => Ok(Some(delete(exchange, &scope))),
    }
}

/// Returns the session that a request names, or the response that refuses the request.
fn session(exchange: &Exchange<'_>, scope: &Scope) -> Result<Session, Response> {
    let mut ids = exchange.request.fields(SESSION);
    let id = match (ids.next(), ids.next()) {
        (Some(id), None) => id,
        (None, _) => return Err(bad_request("Mcp-Session-Id is missing; begin with initialize")),
        _ => return Err(bad_request("more than one Mcp-Session-Id")),
    };
    let found = Session::find(exchange.gateway, id, exchange.principal);
    let found = found.filter(|client| client.scope() == scope && !client.is_legacy());
    let client = found.ok_or_else(|| {
        refuse(
            StatusCode::NotFound,
            "null",
            jsonrpc::INVALID_REQUEST,
            "unknown session; begin with initialize",
        )
    })?;
    match exchange.request.field("mcp-protocol-version") {
        Some(version) if !mcp::VERSIONS.contains(&version) => {
            Err(bad_request("this MCP-Protocol-Version is not supported; begin with initialize"))
        }
        _ => Ok(client),
    }
}

fn delete(exchange: &Exchange<'_>, scope: &Scope) -> Response {
    match session(exchange, scope) {
        Ok(client) => {
            let reason = "the client ended its session";
            exchange.gateway.enter(|hub, fx| hub.close_session(Instant::now(), client.key, reason, fx));
            Response::new(StatusCode::NoContent)
        }
        Err(response) => response,
    }
}

async fn post(exchange: &mut Exchange<'_>, scope: Scope) -> io::Result<Option<Response>> {
    let Some(form) = Form::of(exchange.request) else {
        let why = "Accept must include application/json and text/event-stream";
        return Ok(Some(refuse(StatusCode::NotAcceptable, "null", jsonrpc::INVALID_REQUEST, why)));
    };
    if let ControlFlow::Break(answer) = exchange.read_json().await? {
        return Ok(answer);
    }
    let posted = take(exchange, scope);
    exchange.web.drop_body();
    match posted {
        Ok(Posted::Asked { client, queue, responder, batch }) => {
            answer(exchange, &client, queue, (&responder, batch), form).await
        }
        Ok(Posted::Begun { guard, queue, responder }) => {
            let begun = open(exchange, guard, queue, &responder).await?;
            match begun {
                Some(response) if form == Form::Events && response.status() == StatusCode::Ok => {
                    one_event(exchange, &response).await
                }
                begun => Ok(begun),
            }
        }
        Ok(Posted::Stateless(call)) => call.answer(exchange, form).await,
        Ok(Posted::Listen(listen)) => listen.answer(exchange, form).await,
        Err(response) => Ok(Some(response)),
        Ok(Posted::Accepted) => Ok(Some(Response::new(StatusCode::Accepted))),
    }
}

/// The outcome of handling the messages of a POST.
enum Posted {
    /// It has requests. Their responses arrive through `queue`.
    Asked { client: Session, queue: Receiver<()>, responder: Arc<PostResponder>, batch: bool },
    /// It has only notifications and responses.
    Accepted,
    /// It is a request of a client without a session.
    Stateless(StatelessCall),
    /// It is a listen of such a client.
    Listen(Listen),
    /// It is an `initialize`. Its response arrives through `queue`.
    Begun { guard: SessionGuard, queue: Receiver<()>, responder: Arc<PostResponder> },
}

/// Parses the body and dispatches its messages.
///
/// # Errors
/// The response that refuses the request.
fn take(exchange: &Exchange<'_>, scope: Scope) -> Result<Posted, Response> {
    let body = exchange.web.conn.body();
    let malformed = |why: Malformed| {
        if let Ok(client) = session(exchange, &scope) {
            entry::refused_response(&**exchange.gateway, Instant::now(), client.key, body, why);
        }
        refuse(StatusCode::BadRequest, "null", why.code(), why.reason())
    };
    let body = std::str::from_utf8(body).map_err(|_| malformed(Malformed::Syntax))?;
    let read = Message::read_strict(body);
    match stateless::begin(exchange, &scope, read.as_ref().map_err(|why| *why)) {
        Begun::Legacy => {}
        Begun::Dropped => return Ok(Posted::Accepted),
        Begun::Refused(response) => return Err(response),
        Begun::Call(call) => return Ok(Posted::Stateless(call)),
        Begun::Listen(listen) => return Ok(Posted::Listen(listen)),
    }
    let messages = match read {
        Ok(message) if message.method() == "initialize" && message.kind() == Kind::Request => {
            return initialize(exchange, scope, &message);
        }
        Ok(message) => vec![message],
        Err(Malformed::Batch) => Vec::new(),
        Err(why) => return Err(malformed(why)),
    };
    let client = session(exchange, &scope)?;
    if !client.account().has(limits::BUDGET_SMALL) {
        exchange.gateway.stats.memory_refusals.add();
        let id = messages.first().and_then(Message::id).unwrap_or("null");
        return Err(
            refuse(StatusCode::ServiceUnavailable, id, jsonrpc::BUSY, NO_MEMORY).field("Retry-After", "1")
        );
    }
    let batch = messages.is_empty();
    let messages = if batch { read_batch(body, &client, exchange.gateway)? } else { messages };
    // Checked before any message is forwarded.
    if let Some(why) = messages.iter().find_map(refused_notification) {
        return Err(bad_request(why));
    }
    let requests = messages.iter().filter(|message| message.kind() == Kind::Request).count();
    let (sender, queue) = exchange.gateway.client_queue(client.account());
    let max = exchange.gateway.config.limits.session.batch_bytes;
    let running = &exchange.gateway.running;
    let responder = Arc::new(PostResponder::new(sender, requests, max, running));
    let answered: Arc<dyn Responder> = responder.clone();
    for message in &messages {
        dispatch(exchange.gateway, &client, message, &answered);
    }
    Ok(if requests == 0 { Posted::Accepted } else { Posted::Asked { client, queue, responder, batch } })
}

/// Parses the messages of a batch. Only protocol version 2025-03-26 has batches, and `initialize`
/// is not allowed in one.
fn read_batch<'a>(body: &'a str, client: &Session, gateway: &Gateway) -> Result<Vec<Message<'a>>, Response> {
    if !allows_batches(&client.version) {
        return Err(bad_request(Malformed::Batch.reason()));
    }
    let start = body.len() - body.trim_start().len();
    let mut messages = Vec::new();
    for span in elements(body, start..body.len()) {
        let message = Message::read_strict(&body[span.clone()]).map_err(|why| {
            entry::refused_response(gateway, Instant::now(), client.key, body[span].as_bytes(), why);
            refuse(StatusCode::BadRequest, "null", why.code(), why.reason())
        })?;
        if message.method() == "initialize" {
            return Err(bad_request("initialize must not be part of a batch"));
        }
        messages.push(message);
    }
    match messages.len() {
        0 => Err(bad_request("the batch is empty")),
        count if count > gateway.config.limits.session.batch => {
            Err(bad_request("the batch has too many messages"))
        }
        _ => Ok(messages),
    }
}

/// Handles `initialize`, which creates a session. The `MCP-Protocol-Version` header is ignored: a
/// client that probed for another version may still send it.
fn initialize(exchange: &Exchange<'_>, scope: Scope, message: &Message<'_>) -> Result<Posted, Response> {
    let id = message.id().unwrap_or_default();
    if exchange.request.field(SESSION).is_some() {
        session(exchange, &scope)?;
        let why = "the session is already initialized";
        return Err(refuse(StatusCode::BadRequest, id, jsonrpc::INVALID_REQUEST, why));
    }
    exchange.need_connected(&scope)?;
    let (gateway, principal) = (exchange.gateway, exchange.principal);
    let random = random::bytes().map_err(|_| Response::new(StatusCode::InternalServerError))?;
    let (guard, standalone) = Session::begin(gateway, session::id(random), principal, scope, false);
    let client = guard.session();
    client.streams().give_standalone(standalone);
    let (sender, queue) = gateway.client_queue(client.account());
    let (max, running) = (gateway.config.limits.session.batch_bytes, &gateway.running);
    let responder = Arc::new(PostResponder::new(sender, 1, max, running));
    let answered: Arc<dyn Responder> = responder.clone();
    dispatch(gateway, client, message, &answered);
    Ok(Posted::Begun { guard, queue, responder })
}

/// Opens the session once `initialize` was answered with a result. Until then its id is not known
/// to any client.
async fn open(
    exchange: &mut Exchange<'_>,
    mut guard: SessionGuard,
    mut queue: Receiver<()>,
    responder: &PostResponder,
) -> io::Result<Option<Response>> {
    let mut answers = VecDeque::new();
    let mut gathered = gather(exchange.web, &mut queue, responder, &mut answers, None).await;
    while matches!(gathered, Ok(Gathered::Begun)) {
        gathered = gather(exchange.web, &mut queue, responder, &mut answers, None).await;
        // Other messages cannot be sent to a client whose session is not open yet.
        answers.retain(|text| is_response(text));
    }
    let answer = match gathered {
        Ok(Gathered::Complete | Gathered::Begun) => answers.pop_front().unwrap_or_default(),
        Ok(Gathered::Gone) | Err(_) => return gathered.map(|_| None),
    };
    if !is_result(&answer) {
        guard.set_reason("initialize failed");
        return Ok(Some(Response::new(StatusCode::Ok).json(answer)));
    }
    // If the session's instance exited right after its response, the session has ended. The client
    // gets a 404 on its next request.
    if let Err(refusal) = exchange.open_session(guard.session().key) {
        guard.set_reason("the session could not be opened");
        return Ok(Some(refusal));
    }
    let session = guard.session();
    log::debug!("client {} opened a session from {}", session.name(), exchange.web.stream.peer());
    let response = Response::new(StatusCode::Ok).field(SESSION, session.id()).json(answer);
    guard.keep();
    Ok(Some(response))
}

/// Sends the responses of a POST: as JSON if they come before anything else, as an event stream
/// otherwise.
async fn answer(
    exchange: &mut Exchange<'_>,
    client: &Session,
    mut queue: Receiver<()>,
    (responder, batch): (&PostResponder, bool),
    form: Form,
) -> io::Result<Option<Response>> {
    let mut messages = VecDeque::new();
    // A client that did not list text/event-stream may not handle it, so silence does not start a
    // stream for it.
    let silent = (form == Form::Either && names_events(exchange.request))
        .then(|| Instant::now() + exchange.gateway.config.limits.session.stream_after);
    let plain = form != Form::Events
        && loop {
            match gather(exchange.web, &mut queue, responder, &mut messages, silent).await? {
                Gathered::Complete => break true,
                Gathered::Begun if form == Form::Json => {}
                Gathered::Begun => break false,
                // A disconnect does not cancel the request in this transport: the call goes on, and
                // its response is dropped.
                Gathered::Gone => return Ok(None),
            }
            leave_answers(&mut messages, batch);
        };
    if form == Form::Json {
        leave_answers(&mut messages, batch);
    }
    if plain && (batch || messages.len() == 1) {
        let bodies: Vec<String> = messages.into();
        let body = if batch {
            format!("[{}]", bodies.join(","))
        } else {
            bodies.into_iter().next().unwrap_or_default()
        };
        exchange.keep_charged(queue);
        return Ok(Some(Response::new(StatusCode::Ok).json(body)));
    }
    let attached = client.streams().begin(queue);
    Box::pin(stream(exchange, client, attached, Vec::new(), messages.into())).await?;
    Ok(None)
}

/// Writes the body of `response` as an event stream of one event.
async fn one_event(exchange: &mut Exchange<'_>, response: &Response) -> io::Result<Option<Response>> {
    let mut head = event_stream::head();
    if let Some(id) = response.get(SESSION) {
        head = head.field(SESSION, id);
    }
    let mut event = Vec::new();
    sse::event("message", &String::from_utf8_lossy(response.body()), &mut event);
    exchange.start_stream(head);
    event_stream::write_all(exchange.web, &event).await.map(|_| None)
}

fn is_result(text: &str) -> bool {
    Message::read(text).is_ok_and(|message| message.result().is_some())
}

/// Writes an event stream with ids: first the `missed` events under their old ids, then the
/// `earlier` messages, then new ones. Parks the stream for resumption if the client disconnects
/// before its end.
async fn stream(
    exchange: &mut Exchange<'_>,
    client: &Session,
    mut attached: Attached,
    missed: Vec<(u64, String)>,
    earlier: Vec<String>,
) -> io::Result<()> {
    exchange.start_stream(event_stream::head());
    let Exchange { gateway, web, .. } = exchange;
    let mut first = Vec::new();
    if allows_empty_events(&client.version) && attached.sent == 0 {
        sse::retry(gateway.config.limits.session.retry, &mut first);
        sse::id(&event_id(attached.id, 0), &mut first);
        sse::event("message", "", &mut first);
    }
    for (number, message) in &missed {
        sse::id(&event_id(attached.id, *number), &mut first);
        sse::event("message", message, &mut first);
    }
    let mut numbers = EventIds {
        streams: client.streams(),
        stream: attached.id,
        sent: attached.sent,
        wanted: attached.wanted.clone(),
    };
    event_stream::append(earlier.into(), Some(&mut numbers), &mut first);
    let ended = match &mut attached.queue {
        Some(queue) => event_stream::write(gateway, web, queue, first, Some(&mut numbers)).await,
        None => event_stream::write_all(web, &first).await,
    };
    attached.sent = numbers.sent;
    if matches!(ended, Ok(StreamEnd::Complete)) {
        attached.queue = None;
    }
    client.streams().detach(attached);
    match ended {
        // The new connection has the stream by now. The old one may go on with other requests.
        Ok(StreamEnd::TakenOver) => event_stream::write_all(web, &[]).await.map(|_| ()),
        ended => ended.map(|_| ()),
    }
}

async fn get(exchange: &mut Exchange<'_>, scope: &Scope) -> io::Result<Option<Response>> {
    if !accepts(exchange.request, "text/event-stream", "text/*") {
        return Ok(Some(refuse(
            StatusCode::NotAcceptable,
            "null",
            jsonrpc::INVALID_REQUEST,
            "Accept must include text/event-stream",
        )));
    }
    let client = match session(exchange, scope) {
        Ok(client) => client,
        Err(response) => return Ok(Some(response)),
    };
    let attached = match exchange.request.field("last-event-id").and_then(read_event_id) {
        Some((id, seen)) => resume(exchange.gateway, &client, id, seen).await,
        // Any other value is not an event id that the gateway gave to this client, so it is ignored
        // and the standalone stream is attached. The newest connection gets it: the older one may
        // be dead, and the client may have no event id from it.
        None => {
            let limits = &exchange.gateway.config.limits.session;
            client.streams().take_over(STANDALONE, limits).await.map(|attached| (attached, Vec::new()))
        }
    };
    let (attached, missed) = match attached {
        Ok(attached) => attached,
        Err(NotAttached::Taken) => {
            let why = "replaced by a newer connection";
            return Ok(Some(refuse(StatusCode::Conflict, "null", jsonrpc::INVALID_REQUEST, why)));
        }
        Err(NotAttached::Unknown) => return Ok(Some(bad_request("this stream cannot be resumed"))),
    };
    Box::pin(stream(exchange, &client, attached, missed, Vec::new())).await?;
    Ok(None)
}

/// Takes over the stream that an event id names. Returns it with the events sent after that event.
///
/// # Errors
/// [`NotAttached`], with the reason.
async fn resume(
    gateway: &Gateway,
    client: &Session,
    id: u32,
    seen: u64,
) -> Result<(Attached, Vec<(u64, String)>), NotAttached> {
    let attached = client.streams().take_over(id, &gateway.config.limits.session).await?;
    let missed = client.streams().after(id, seen, attached.sent);
    match missed {
        Some((missed, true)) => Ok((attached, missed)),
        // Resumed despite the gap: what is still to come matters more than what is lost, above all
        // the response.
        Some((missed, false)) if attached.queue.is_some() || !missed.is_empty() => {
            let name = client.name();
            let line = format_args!("client {name}: resumed a stream with lost events: too many were missed");
            gateway.log_throttled(log::Level::Info, "events_lost", &name.to_string(), LOG_WARNINGS, line);
            Ok((attached, missed))
        }
        _ => {
            let name = client.name();
            let line = format_args!("client {name}: cannot resume a stream: its events are no longer stored");
            gateway.log_throttled(log::Level::Info, "not_resumed", &name.to_string(), LOG_WARNINGS, line);
            client.streams().detach(attached);
            Err(NotAttached::Unknown)
        }
    }
}
