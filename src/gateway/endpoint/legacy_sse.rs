//! The 2024-11-05 transport (HTTP with SSE): `GET /sse` opens a session and its event stream, `POST
//! /messages` carries the client's messages.

use std::{io, ops::ControlFlow, time::Instant};

use crate::{
    gateway::{
        dispatch::dispatch,
        event_stream,
        exchange::{Exchange, busy},
        session::{Session, SessionGuard},
    },
    http::{response::Response, types::StatusCode},
    hub::{entry, error::NO_MEMORY, session::Scope},
    jsonrpc::{self, Message},
    limits,
    net::{outbox::Receiver, random},
    session, sse,
};

/// Opens a session.
///
/// # Errors
/// The response that refuses it.
pub fn admit(exchange: &Exchange<'_>, scope: Scope) -> Result<(SessionGuard, Receiver<()>), Response> {
    exchange.need_connected(&scope)?;
    let (gateway, principal) = (exchange.gateway, exchange.principal);
    let random = random::bytes().map_err(|_| Response::new(StatusCode::InternalServerError))?;
    let (mut guard, queue) = Session::begin(gateway, session::id(random), principal, scope, true);
    guard.set_reason("the client closed its event stream");
    let session = guard.session();
    exchange.open_session(session.key)?;
    log::debug!("client {} opened an event stream from {}", session.name(), exchange.web.stream.peer());
    Ok((guard, queue))
}

/// Serves the event stream of an opened session until the client leaves or does not read, or the
/// gateway stops. `prefix` precedes the path in the `endpoint` event.
///
/// # Errors
/// The connection broke, or the client does not read.
pub async fn serve(
    exchange: &mut Exchange<'_>,
    prefix: String,
    (guard, mut queue): (SessionGuard, Receiver<()>),
) -> io::Result<()> {
    let (gateway, client) = (exchange.gateway, guard.session());
    exchange.start_stream(event_stream::head());
    let path = match client.scope() {
        Scope::All => gateway.config.messages_path.clone(),
        Scope::Server(name) => format!("/servers/{name}/messages"),
    };
    let mut first = Vec::new();
    sse::event("endpoint", &format!("{prefix}{path}?session_id={}", client.id()), &mut first);
    event_stream::write(gateway, exchange.web, &mut queue, first, None).await.map(|_| ())
}

/// Handles one message of a session. Returns `None` if the connection has ended meanwhile.
///
/// # Errors
/// The connection broke.
pub async fn messages(exchange: &mut Exchange<'_>) -> io::Result<Option<Response>> {
    let found = match exchange.request.query("session_id") {
        None => return Ok(Some(Response::new(StatusCode::BadRequest).text("session_id is missing\n"))),
        Some(id) => Session::find(exchange.gateway, &id, exchange.principal),
    };
    let Some(client) = found.filter(|client| client.is_legacy()) else {
        return Ok(Some(Response::new(StatusCode::NotFound).text("unknown session\n")));
    };
    if !client.account().has(limits::BUDGET_SMALL) {
        exchange.gateway.stats.memory_refusals.add();
        return Ok(Some(busy(&format!("{NO_MEMORY}\n"))));
    }
    if let ControlFlow::Break(answer) = exchange.read_json().await? {
        return Ok(answer);
    }
    let body = exchange.web.conn.body();
    let text = std::str::from_utf8(body).map_err(|_| jsonrpc::Malformed::Syntax);
    Ok(Some(match text.and_then(Message::read_strict) {
        Ok(message) => {
            dispatch(exchange.gateway, &client, &message, &client.responder());
            Response::new(StatusCode::Accepted).text("Accepted")
        }
        Err(why) => {
            entry::refused_response(&**exchange.gateway, Instant::now(), client.key, body, why);
            let error = jsonrpc::error("null", why.code(), why.reason());
            Response::new(StatusCode::BadRequest).json(error)
        }
    }))
}
