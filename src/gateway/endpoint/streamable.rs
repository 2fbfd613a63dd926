//! The Streamable HTTP transport (2025-03-26 to 2025-11-25): one path for POST, GET and DELETE, sessions by header.
//!
//! The answer to a POST is plain JSON when the result is the first thing to say, and an event stream when something
//! that belongs to the request comes before it, or when nothing came for a while: proxies cut an answer that is silent, and
//! a stream can be kept alive. Streams can be resumed.

use std::{
    collections::VecDeque, future::poll_fn, io, ops::ControlFlow, pin::Pin, sync::Arc, task::Poll,
    time::Instant,
};

use futures_lite::AsyncRead;

use crate::{
    auth::Principal,
    gateway::{
        connection::Connection,
        dispatch::refused_notification,
        event_stream::{self, EventIds, StreamEnd},
        responder::{NO_MEMORY, Responder},
        session::{Scope, Session},
        streams::{Attached, NotAttached, STANDALONE},
    },
    http::{
        conn::Step,
        head::Request,
        response::Response,
        types::{Method, StatusCode},
    },
    jsonrpc::{self, Kind, Malformed, Message, elements},
    limits::{self, LOG_WARNINGS},
    mcp,
    net::{
        outbox::{Received, Receiver},
        random,
    },
    session::{self, event_id, read_event_id},
    sse,
};

const SESSION: &str = "Mcp-Session-Id";

/// Serves one request. `None`: it is answered, or the connection has ended.
///
/// # Errors
/// The connection broke, or the client does not read.
pub async fn serve(
    connection: &mut Connection,
    principal: Principal,
    scope: Scope,
    request: &Request,
) -> io::Result<Option<Response>> {
    match request.method() {
        Method::Post => post(connection, principal, scope, request).await,
        Method::Get => get(connection, principal, &scope, request).await,
        _ => Ok(Some(delete(connection, principal, &scope, request))),
    }
}

/// A refusal with a JSON-RPC error in it.
fn refuse(status: StatusCode, id: &str, code: i64, why: &str) -> Response {
    Response::new(status).json(jsonrpc::error(id, code, why))
}

fn bad_request(why: &str) -> Response {
    refuse(StatusCode::BadRequest, "null", jsonrpc::INVALID_REQUEST, why)
}

/// Whether a client sent the one `Accept` that nearly all of them send with a POST: its ranges need not be read.
fn accepts_as_usual(request: &Request) -> bool {
    let mut values = request.fields("accept");
    values.next() == Some("application/json, text/event-stream") && values.next().is_none()
}

/// Whether a client takes a type of answer: the most specific range decides. No `Accept` at all means anything (RFC 9110,
/// section 12.5.1).
fn accepts(request: &Request, kind: &str, family: &str) -> bool {
    let mut specific_first = [kind, family, "*/*"].into_iter();
    let decided = specific_first
        .find_map(|wanted| ranges(request).find(|(range, _)| range.eq_ignore_ascii_case(wanted)));
    decided.map_or(request.field("accept").is_none(), |(_, taken)| taken)
}

/// Whether a client names event streams as answers that it takes.
fn names_events(request: &Request) -> bool {
    accepts_as_usual(request)
        || ranges(request).any(|(range, taken)| taken && range.eq_ignore_ascii_case("text/event-stream"))
}

/// The types of answers that a client names, and whether it takes them: not with a weight of 0.
fn ranges(request: &Request) -> impl Iterator<Item = (&str, bool)> {
    let ranges = request.fields("accept").flat_map(|field| field.split(','));
    ranges.map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.is_some_and(|weight| {
                weight.starts_with('0') && weight.bytes().all(|byte| b"0.".contains(&byte))
            })
        };
        (kind, !parts.any(refused))
    })
}

/// The form of the answer to a POST.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Form {
    /// The client takes both: the messages decide.
    Either,
    /// An event stream.
    Events,
    /// JSON: what comes before the answer is left out.
    Json,
}

impl Form {
    /// What a client takes; `None`: neither.
    fn of(request: &Request) -> Option<Self> {
        if accepts_as_usual(request) {
            return Some(Self::Either);
        }
        let json = accepts(request, "application/json", "application/*");
        match (json, accepts(request, "text/event-stream", "text/*")) {
            (true, true) => Some(Self::Either),
            (true, false) => Some(Self::Json),
            (false, true) => Some(Self::Events),
            (false, false) => None,
        }
    }
}

/// The session that a request names.
fn session(
    connection: &Connection,
    principal: Principal,
    scope: &Scope,
    request: &Request,
) -> Result<Arc<Session>, Response> {
    let mut ids = request.fields(SESSION);
    let id = match (ids.next(), ids.next()) {
        (Some(id), None) => id,
        (None, _) => return Err(bad_request("Mcp-Session-Id is missing; begin with initialize")),
        _ => return Err(bad_request("Mcp-Session-Id stands more than once")),
    };
    let found = connection.gateway.sessions().find(Instant::now(), id, principal);
    let found = found.filter(|client| client.scope() == scope && !client.is_legacy());
    let client = found.ok_or_else(|| {
        refuse(
            StatusCode::NotFound,
            "null",
            jsonrpc::INVALID_REQUEST,
            "no such session; begin with initialize",
        )
    })?;
    match request.field("mcp-protocol-version") {
        Some(version) if !mcp::VERSIONS.contains(&version) => {
            Err(bad_request("this MCP-Protocol-Version is not supported; begin with initialize"))
        }
        _ => Ok(client),
    }
}

fn delete(connection: &Connection, principal: Principal, scope: &Scope, request: &Request) -> Response {
    match session(connection, principal, scope, request) {
        Ok(client) => {
            connection.gateway.close(&client, "the client ended its session");
            Response::new(StatusCode::NoContent)
        }
        Err(response) => response,
    }
}

async fn post(
    connection: &mut Connection,
    principal: Principal,
    scope: Scope,
    request: &Request,
) -> io::Result<Option<Response>> {
    let Some(form) = Form::of(request) else {
        let why = "accept application/json and text/event-stream";
        return Ok(Some(refuse(StatusCode::NotAcceptable, "null", jsonrpc::INVALID_REQUEST, why)));
    };
    if let ControlFlow::Break(answer) = connection.read_json(principal, request).await? {
        return Ok(answer);
    }
    let posted = take(connection, principal, scope, request);
    connection.web.drop_body();
    match posted {
        Ok(Posted::Asked { client, queue, reply, batch }) => {
            answer(connection, &client, queue, (&reply, batch), form, request).await
        }
        Ok(Posted::Begun { client, queue, reply }) => {
            let begun = open(connection, principal, &client, queue, &reply).await?;
            match begun {
                Some(response) if form == Form::Events && response.status() == StatusCode::Ok => {
                    one_event(connection, &response, request).await
                }
                begun => Ok(begun),
            }
        }
        Err(response) => Ok(Some(response)),
        Ok(Posted::Accepted) => Ok(Some(Response::new(StatusCode::Accepted))),
    }
}

/// What a POST was.
enum Posted {
    /// Requests, whose answers come by this queue.
    Asked { client: Arc<Session>, queue: Receiver<()>, reply: Responder, batch: bool },
    /// Nothing that wants an answer.
    Accepted,
    /// The beginning of a session; the answer comes by this queue.
    Begun { client: Arc<Session>, queue: Receiver<()>, reply: Responder },
}

/// Takes what stands in the body.
fn take(
    connection: &Connection,
    principal: Principal,
    scope: Scope,
    request: &Request,
) -> Result<Posted, Response> {
    let body = connection.web.conn.body();
    let malformed = |why: Malformed| {
        if let Ok(client) = session(connection, principal, &scope, request) {
            connection.gateway.answer_refused(&client, body, why);
        }
        refuse(StatusCode::BadRequest, "null", why.code(), why.reason())
    };
    let body = std::str::from_utf8(body).map_err(|_| malformed(Malformed::Syntax))?;
    let messages = match Message::read_strict(body) {
        Ok(message) if message.method() == "initialize" && message.kind() == Kind::Request => {
            return initialize(connection, principal, scope, request, &message);
        }
        Ok(message) => vec![message],
        Err(Malformed::Batch) => Vec::new(),
        Err(why) => return Err(malformed(why)),
    };
    let client = session(connection, principal, &scope, request)?;
    if !client.account().has(limits::BUDGET_SMALL) {
        connection.gateway.stats.memory_refusals.add();
        let id = messages.first().and_then(Message::id).unwrap_or("null");
        return Err(
            refuse(StatusCode::ServiceUnavailable, id, jsonrpc::BUSY, NO_MEMORY).field("Retry-After", "1")
        );
    }
    let batch = messages.is_empty();
    let messages = if batch { read_batch(body, &client, connection)? } else { messages };
    // Before any of them is passed on.
    if let Some(why) = messages.iter().find_map(refused_notification) {
        return Err(bad_request(&why));
    }
    let requests = messages.iter().filter(|message| message.kind() == Kind::Request).count();
    let (sender, queue) = connection.gateway.client_queue(client.account());
    let most = connection.gateway.config.limits.session.batch_bytes;
    let reply = Responder::post(sender, requests, most);
    for message in &messages {
        connection.gateway.dispatch(&client, message, &reply);
    }
    Ok(if requests == 0 { Posted::Accepted } else { Posted::Asked { client, queue, reply, batch } })
}

/// The messages of a batch. Only one protocol version has them, and `initialize` never stands in one.
fn read_batch<'a>(
    body: &'a str,
    client: &Session,
    connection: &Connection,
) -> Result<Vec<Message<'a>>, Response> {
    if client.info().version != "2025-03-26" {
        return Err(bad_request(Malformed::Batch.reason()));
    }
    let start = body.len() - body.trim_start().len();
    let mut messages = Vec::new();
    for span in elements(body, start..body.len()) {
        let message = Message::read_strict(&body[span.clone()]).map_err(|why| {
            connection.gateway.answer_refused(client, body[span].as_bytes(), why);
            refuse(StatusCode::BadRequest, "null", why.code(), why.reason())
        })?;
        if message.method() == "initialize" {
            return Err(bad_request("initialize does not stand in a batch"));
        }
        messages.push(message);
    }
    match messages.len() {
        0 => Err(bad_request("an empty batch")),
        count if count > connection.gateway.config.limits.session.batch => {
            Err(bad_request("the batch has too many messages"))
        }
        _ => Ok(messages),
    }
}

/// Begins a session. The version header does not matter here: a client that has probed may have left it.
fn initialize(
    connection: &Connection,
    principal: Principal,
    scope: Scope,
    request: &Request,
    message: &Message<'_>,
) -> Result<Posted, Response> {
    let id = message.id().unwrap_or_default();
    if request.field(SESSION).is_some() {
        session(connection, principal, &scope, request)?;
        let why = "the session is initialized already";
        return Err(refuse(StatusCode::BadRequest, id, jsonrpc::INVALID_REQUEST, why));
    }
    connection.need_connected(&scope)?;
    let gateway = &connection.gateway;
    let random = random::bytes().map_err(|_| Response::new(StatusCode::InternalServerError))?;
    let account = gateway.account(principal);
    let (outbox, standalone) = gateway.client_queue(&account);
    let limits = &gateway.config.limits.session;
    let client = Session::new(session::id(random), (principal, account), scope, false, outbox, limits);
    client.streams().give_standalone(standalone);
    let (sender, queue) = gateway.client_queue(client.account());
    let reply = Responder::post(sender, 1, gateway.config.limits.session.batch_bytes);
    gateway.dispatch(&client, message, &reply);
    Ok(Posted::Begun { client, queue, reply })
}

/// Opens the session when `initialize` was answered with a result. Nobody knows its id before that.
async fn open(
    connection: &mut Connection,
    principal: Principal,
    client: &Arc<Session>,
    mut queue: Receiver<()>,
    reply: &Responder,
) -> io::Result<Option<Response>> {
    let mut answers = VecDeque::new();
    let mut gathered = gather(connection, &mut queue, reply, &mut answers, None).await;
    while matches!(gathered, Ok(Gathered::Begun)) {
        gathered = gather(connection, &mut queue, reply, &mut answers, None).await;
        // Nothing else can be said to a client before its session has begun.
        answers.retain(|text| is_response(text));
    }
    let gateway = &connection.gateway;
    let answer = match gathered {
        Ok(Gathered::Complete | Gathered::Begun) => answers.pop_front().unwrap_or_default(),
        Ok(Gathered::Gone) | Err(_) => {
            gateway.close(client, "the client left before its session began");
            return gathered.map(|_| None);
        }
    };
    if !client.is_initialized() {
        gateway.close(client, "it was not initialized");
        return Ok(Some(Response::new(StatusCode::Ok).json(answer)));
    }
    if let Err(refusal) = connection.open_session(client, principal) {
        gateway.close(client, "it may not be opened now");
        return Ok(Some(refusal));
    }
    if client.calls().have_ended() {
        // Its process answered and was gone: so is the session, as the client will hear when it uses it.
        gateway.sessions().close(client.id());
    }
    log::debug!("client {} begins a session from {}", client.name(), connection.web.stream.peer());
    Ok(Some(Response::new(StatusCode::Ok).field(SESSION, client.id()).json(answer)))
}

/// Answers requests: as JSON when the answers come first, as an event stream otherwise.
async fn answer(
    connection: &mut Connection,
    client: &Arc<Session>,
    mut queue: Receiver<()>,
    (reply, batch): (&Responder, bool),
    form: Form,
    request: &Request,
) -> io::Result<Option<Response>> {
    let mut messages = VecDeque::new();
    // Whoever does not name them might not know what to do with events.
    let silent = (form == Form::Either && names_events(request))
        .then(|| Instant::now() + connection.gateway.config.limits.session.silence);
    let plain = form != Form::Events
        && loop {
            match gather(connection, &mut queue, reply, &mut messages, silent).await? {
                Gathered::Complete => break true,
                Gathered::Begun if form == Form::Json => {}
                Gathered::Begun => break false,
                // Not a cancellation in this transport: the call goes on, and nobody will see its answer.
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
        // Its bytes are charged until they are written.
        connection.answering = Some(queue);
        return Ok(Some(Response::new(StatusCode::Ok).json(body)));
    }
    let attached = client.streams().begin(queue);
    let head = connection.with_cors(event_stream::head(), request.field("origin"));
    Box::pin(stream(connection, client, attached, head, Vec::new(), messages.into())).await?;
    Ok(None)
}

/// Leaves out what is no answer. The answer to a single request is the last message.
fn leave_answers(messages: &mut VecDeque<String>, batch: bool) {
    if batch {
        messages.retain(|text| is_response(text));
    } else {
        messages.drain(..messages.len().saturating_sub(1));
    }
}

/// Writes the body of an answer as an event stream of one event.
async fn one_event(
    connection: &mut Connection,
    response: &Response,
    request: &Request,
) -> io::Result<Option<Response>> {
    let mut head = connection.with_cors(event_stream::head(), request.field("origin"));
    if let Some(id) = response.get(SESSION) {
        head = head.field(SESSION, id);
    }
    let mut event = Vec::new();
    sse::event("message", &String::from_utf8_lossy(response.body()), &mut event);
    connection.web.start_stream(&head);
    event_stream::write_all(&mut connection.web, &event).await.map(|_| None)
}

fn is_response(text: &str) -> bool {
    Message::read(text).is_ok_and(|message| message.kind() == Kind::Response)
}

enum Gathered {
    /// All answers are here.
    Complete,
    /// Something else came first, or nothing for too long.
    Begun,
    /// The client is gone.
    Gone,
}

/// Waits until it is clear what form the answer has; not beyond `silent`.
async fn gather(
    connection: &mut Connection,
    queue: &mut Receiver<()>,
    reply: &Responder,
    messages: &mut VecDeque<String>,
    silent: Option<Instant>,
) -> io::Result<Gathered> {
    let web = &mut connection.web;
    poll_fn(|context| {
        let complete = loop {
            match queue.poll_take_more(context, messages) {
                Poll::Ready(Received::Some) => {}
                Poll::Ready(Received::Ended(())) => break true,
                Poll::Pending => break false,
            }
        };
        // Looked at after the queue: what is not an answer was marked before it came in.
        if reply.had_other() {
            return Poll::Ready(Ok(Gathered::Begun));
        }
        if complete {
            return Poll::Ready(Ok(Gathered::Complete));
        }
        while let Poll::Ready(read) = Pin::new(&mut web.stream).poll_read(context, web.conn.space()) {
            web.conn.filled(read?);
            if matches!(web.conn.next(Instant::now()), Step::Close) || web.conn.is_ended() {
                return Poll::Ready(Ok(Gathered::Gone));
            }
        }
        match silent.map(|moment| web.poll_until(moment, context)) {
            Some(Poll::Ready(())) => Poll::Ready(Ok(Gathered::Begun)),
            _ => Poll::Pending,
        }
    })
    .await
}

/// Writes an event stream with numbers: first what was missed, under its old numbers, then what came before the stream
/// began, then what comes. Lets it rest when the client is gone before its end.
async fn stream(
    connection: &mut Connection,
    client: &Arc<Session>,
    mut attached: Attached,
    head: Response,
    missed: Vec<(u64, String)>,
    earlier: Vec<String>,
) -> io::Result<()> {
    let Connection { gateway, web, .. } = connection;
    web.start_stream(&head);
    let mut first = Vec::new();
    if client.info().version == "2025-11-25" && attached.sent == 0 {
        // Only this version's clients understand an event without data (basic/transports, resumability).
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
    client.streams().rest(attached);
    match ended {
        // Whoever wants the stream has it by now; the old connection may go on with something else.
        Ok(StreamEnd::Wanted) => event_stream::write_all(web, &[]).await.map(|_| ()),
        ended => ended.map(|_| ()),
    }
}

async fn get(
    connection: &mut Connection,
    principal: Principal,
    scope: &Scope,
    request: &Request,
) -> io::Result<Option<Response>> {
    if !accepts(request, "text/event-stream", "text/*") {
        return Ok(Some(refuse(
            StatusCode::NotAcceptable,
            "null",
            jsonrpc::INVALID_REQUEST,
            "accept text/event-stream",
        )));
    }
    let client = match session(connection, principal, scope, request) {
        Ok(client) => client,
        Err(response) => return Ok(Some(response)),
    };
    let attached = match request.field("last-event-id").and_then(read_event_id) {
        Some((id, seen)) => resume(connection, &client, id, seen).await,
        // What is no event id of ours was never given to this client: it begins, whatever it sends along. The newest
        // connection has the stream: an older one may be dead, and the client without an event of it to name.
        None => {
            let limits = &connection.gateway.config.limits.session;
            client.streams().take_over(STANDALONE, limits).await.map(|attached| (attached, Vec::new()))
        }
    };
    let (attached, missed) = match attached {
        Ok(attached) => attached,
        Err(NotAttached::Taken) => {
            let why = "a newer connection has this stream";
            return Ok(Some(refuse(StatusCode::Conflict, "null", jsonrpc::INVALID_REQUEST, why)));
        }
        Err(NotAttached::Unknown) => return Ok(Some(bad_request("this stream cannot be resumed"))),
    };
    let head = connection.with_cors(event_stream::head(), request.field("origin"));
    Box::pin(stream(connection, &client, attached, head, missed, Vec::new())).await?;
    Ok(None)
}

/// The stream that an event id names, and what was sent on it after that event.
async fn resume(
    connection: &Connection,
    client: &Session,
    id: u32,
    seen: u64,
) -> Result<(Attached, Vec<(u64, String)>), NotAttached> {
    let attached = client.streams().take_over(id, &connection.gateway.config.limits.session).await?;
    let missed = client.streams().after(id, seen, attached.sent);
    match missed {
        Some((missed, true)) => Ok((attached, missed)),
        // What is still to come is worth more than what is lost: above all the answer.
        Some((missed, false)) if attached.queue.is_some() || !missed.is_empty() => {
            let name = client.name();
            let line = format_args!("client {name}: some events of a stream are lost, too much was missed");
            let gateway = &connection.gateway;
            gateway.log_throttled(log::Level::Info, "events_lost", &name.to_string(), LOG_WARNINGS, line);
            Ok((attached, missed))
        }
        _ => {
            let name = client.name();
            let line = format_args!("client {name}: a stream cannot be resumed, nothing of it is kept");
            let gateway = &connection.gateway;
            gateway.log_throttled(log::Level::Info, "not_resumed", &name.to_string(), LOG_WARNINGS, line);
            client.streams().rest(attached);
            Err(NotAttached::Unknown)
        }
    }
}
