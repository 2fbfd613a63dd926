//! The 2024-11-05 transport: `GET /sse` opens a session and is its way back, `POST /messages` is the way in.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use futures_lite::AsyncRead;
use smol::Timer;

use super::{
    client::Client,
    connection::{Connection, busy},
};
use crate::{
    auth::Principal,
    http::{conn::Step, head::Request, respond::Response, vocab::StatusCode},
    jsonrpc::{self, Message},
    net::{
        queue::{Receiver, Taken},
        random,
    },
    session, sse,
};

/// Opens a session, or gives the refusal.
pub fn admit(connection: &Connection, principal: Principal) -> Result<(Arc<Client>, Receiver<()>), Response> {
    let gateway = &connection.gateway;
    let random = random::bytes().map_err(|_| Response::new(StatusCode::InternalServerError))?;
    let (client, queue) = Client::new(session::id(random), &gateway.config.limits.session);
    let opened = gateway.sessions().open(client.id().to_owned(), principal, client.clone());
    opened.map_err(|session::Full| busy("too many sessions are open\n"))?;
    log::debug!("client {} opens an event stream from {}", client.name(), connection.web.stream.peer());
    Ok((client, queue))
}

/// The head of an event stream.
pub fn head() -> Response {
    Response::new(StatusCode::Ok)
        .field("Content-Type", "text/event-stream")
        .field("Cache-Control", "no-store")
        .field("X-Accel-Buffering", "no")
}

/// Ends a session in any case: also when its task is cancelled or panics.
struct Session<'a> {
    client: &'a Arc<Client>,
    connection: &'a mut Connection,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.connection.gateway.sessions().close(self.client.id());
        let open = self.client.calls().end_all();
        log::debug!("client {} is gone, {} calls are cancelled", self.client.name(), open.len());
        for (upstream, id) in open {
            upstream.cancel(id, Err("the client closed its event stream"));
        }
    }
}

/// Serves an event stream until the client goes away, does not read, or the gateway stops.
pub async fn serve(
    connection: &mut Connection,
    head: Response,
    client: Arc<Client>,
    mut queue: Receiver<()>,
) -> io::Result<()> {
    let session = Session { client: &client, connection };
    let connection = &mut *session.connection;
    connection.web.conn.start_stream(&head, &mut connection.web.out);
    let endpoint = format!("{}?session_id={}", connection.gateway.config.messages_path, client.id());
    let mut events = Vec::new();
    sse::event("endpoint", &endpoint, &mut events);
    let every = connection.gateway.config.limits.session.keep_alive;
    let mut timer = Timer::after(every);
    let mut written = Instant::now();
    loop {
        if !events.is_empty() {
            connection.web.conn.stream(&events, &mut connection.web.out);
            connection.web.flush().await?;
            events = Vec::new();
            written = Instant::now();
        }
        match next(connection, &client, &mut queue, &mut timer).await? {
            Wake::Messages(messages) => {
                for message in messages {
                    sse::event("message", &message, &mut events);
                }
            }
            Wake::Timer => {
                if written.elapsed() >= every {
                    events.extend_from_slice(sse::KEEP_ALIVE);
                }
                timer.set_at(if events.is_empty() { written } else { Instant::now() } + every);
            }
            Wake::End => break,
        }
    }
    connection.web.conn.end_stream(Instant::now(), &mut connection.web.out);
    connection.web.flush().await
}

enum Wake {
    Messages(VecDeque<String>),
    Timer,
    End,
}

/// Waits for messages, for the end of the client, or for the time of a keep-alive.
async fn next(
    connection: &mut Connection,
    client: &Client,
    queue: &mut Receiver<()>,
    timer: &mut Timer,
) -> io::Result<Wake> {
    let stopped = connection.gateway.stopped.clone();
    let mut stopped = std::pin::pin!(stopped.wait());
    poll_fn(|context| {
        let mut messages = VecDeque::new();
        match queue.poll_take(context, &mut messages) {
            Poll::Ready(Taken::Some) => return Poll::Ready(Ok(Wake::Messages(messages))),
            Poll::Ready(Taken::Ended(())) => return Poll::Ready(Ok(Wake::End)),
            Poll::Pending => {}
        }
        // What the client sends on this connection does not matter; that it closes it does.
        while let Poll::Ready(read) =
            Pin::new(&mut connection.web.stream).poll_read(context, connection.web.conn.space())
        {
            connection.web.conn.filled(read?);
            if matches!(connection.web.conn.next(Instant::now()), Step::Close)
                || connection.web.conn.is_ended()
            {
                return Poll::Ready(Ok(Wake::End));
            }
        }
        if Pin::new(&mut *timer).poll(context).is_ready() {
            return Poll::Ready(Ok(Wake::Timer));
        }
        if stopped.as_mut().poll(context).is_ready() {
            // What is queued is still written.
            client.end();
            if let Poll::Ready(taken) = queue.poll_take(context, &mut messages) {
                return Poll::Ready(Ok(match taken {
                    Taken::Some => Wake::Messages(messages),
                    Taken::Ended(()) => Wake::End,
                }));
            }
        }
        Poll::Pending
    })
    .await
}

/// Takes one message of a session. Returns the answer, or `None` when the connection's end is to be seen by the caller.
pub async fn messages(
    connection: &mut Connection,
    principal: Principal,
    request: &Request,
) -> io::Result<Option<Response>> {
    let found = match request.query("session_id") {
        None => return Ok(Some(Response::new(StatusCode::BadRequest).text("session_id is missing\n"))),
        Some(id) => connection.gateway.sessions().find(&id, principal),
    };
    let Some(client) = found else {
        return Ok(Some(Response::new(StatusCode::NotFound).text("no such session\n")));
    };
    if !is_json(request) {
        return Ok(Some(Response::new(StatusCode::UnsupportedMediaType).text("send application/json\n")));
    }
    connection.web.conn.take_body(Instant::now(), &mut connection.web.out);
    match connection.web.advance().await? {
        Step::Body => {}
        Step::Refuse(response) => return Ok(Some(response)),
        _ => return Ok(None),
    }
    let body = std::str::from_utf8(connection.web.conn.body()).map_err(|_| jsonrpc::Malformed::Syntax);
    Ok(Some(match body.and_then(Message::read) {
        Ok(message) => {
            connection.gateway.dispatch(&client, &message);
            Response::new(StatusCode::Accepted).text("Accepted")
        }
        Err(why) => {
            let error = jsonrpc::error("null", why.code(), why.reason());
            Response::new(StatusCode::BadRequest).json(error)
        }
    }))
}

/// Whether the body says that it is JSON. A message without a type is taken, as the original takes it.
fn is_json(request: &Request) -> bool {
    let Some(field) = request.field("content-type") else { return true };
    let kind = field.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("application/json")
}
