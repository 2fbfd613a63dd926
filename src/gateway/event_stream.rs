//! Writes messages as a server-sent event stream, until the stream or its client ends.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::Poll,
    time::Instant,
};

use futures_lite::{AsyncRead, future};
use smol::Timer;

use super::{state::Gateway, streams::Streams};
use crate::{
    http::{conn::Step, response::Response, types::StatusCode},
    net::{
        http_conn::HttpConnection,
        outbox::{Received, Receiver},
    },
    runtime::shutdown::Shutdown,
    session::event_id,
    sse,
};

/// Why an event stream is no longer written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamEnd {
    /// The client closed the connection.
    ByClient,
    /// Everything was written, and no more messages will come.
    Complete,
    /// Another connection takes the stream over.
    TakenOver,
}

/// The ids of the events of a stream, with which a client can resume it.
pub struct EventIds<'a> {
    /// Keeps sent events for replay.
    pub streams: &'a Streams,
    /// The stream's number.
    pub stream: u32,
    /// Number of the last event.
    pub sent: u64,
    /// Triggered when another connection takes the stream over.
    pub wanted: Shutdown,
}

/// Returns the response head of an event stream.
pub fn head() -> Response {
    Response::new(StatusCode::Ok)
        .field("Content-Type", "text/event-stream")
        .field("Cache-Control", "no-store")
        .field("X-Accel-Buffering", "no")
}

/// Writes events until the stream ends. `first` is written before any message. The response head
/// must be in `web.out` or sent already.
pub async fn write(
    gateway: &Gateway,
    web: &mut HttpConnection,
    queue: &mut Receiver<()>,
    mut first: Vec<u8>,
    mut numbers: Option<&mut EventIds<'_>>,
) -> io::Result<StreamEnd> {
    let every = gateway.config.limits.session.keep_alive;
    let mut timer = Timer::after(every);
    let mut written = Instant::now();
    let ended = loop {
        // `out` may hold the response head, and the client waits for it.
        if !first.is_empty() || !web.out.is_empty() {
            web.conn.stream(&first, &mut web.out);
            // Frees the memory: a slow client may take long to read `out`, and one copy of the
            // bytes is enough.
            first = Vec::new();
            flush(web, numbers.as_ref().map(|numbers| &numbers.wanted)).await?;
            written = Instant::now();
        }
        let wanted = numbers.as_ref().map(|numbers| numbers.wanted.clone());
        match next(gateway, web, queue, &mut timer, wanted).await? {
            Wake::Messages(messages) => append(messages, numbers.as_deref_mut(), &mut first),
            Wake::Timer => {
                if written.elapsed() >= every {
                    first.extend_from_slice(sse::KEEP_ALIVE);
                }
                timer.set_at(if first.is_empty() { written } else { Instant::now() } + every);
            }
            Wake::End(ended) => break ended,
        }
    };
    if ended == StreamEnd::Complete { write_all(web, &[]).await } else { Ok(ended) }
}

/// Writes `out`. Returns early with `ConnectionAborted` when another connection takes the stream
/// over: a client that resumes must not wait until its old connection, which may be dead, has taken
/// every byte.
async fn flush(web: &mut HttpConnection, wanted: Option<&Shutdown>) -> io::Result<()> {
    let wanted = async {
        match wanted {
            Some(wanted) => wanted.wait().await,
            None => std::future::pending().await,
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "the stream was resumed over another connection",
        ))
    };
    future::or(web.flush(), wanted).await
}

/// Writes `events` and the end of the stream.
pub async fn write_all(web: &mut HttpConnection, events: &[u8]) -> io::Result<StreamEnd> {
    web.conn.stream(events, &mut web.out);
    web.end_stream();
    web.flush().await.map(|()| StreamEnd::Complete)
}

/// Formats messages as events. With `numbers`, each event gets an id and is kept for replay before
/// it is sent, because it is unknown how much of it will arrive.
pub fn append(messages: VecDeque<String>, numbers: Option<&mut EventIds<'_>>, out: &mut Vec<u8>) {
    match numbers {
        None => messages.iter().for_each(|message| sse::event("message", message, out)),
        Some(numbers) => {
            for message in messages {
                numbers.sent += 1;
                sse::id(&event_id(numbers.stream, numbers.sent), out);
                sse::event("message", &message, out);
                numbers.streams.keep(numbers.stream, numbers.sent, message);
            }
        }
    }
}

enum Wake {
    Messages(VecDeque<String>),
    Timer,
    End(StreamEnd),
}

/// Waits for messages, for the end of the stream or the client, or for the next keep-alive.
async fn next(
    gateway: &Gateway,
    web: &mut HttpConnection,
    queue: &mut Receiver<()>,
    timer: &mut Timer,
    wanted: Option<Shutdown>,
) -> io::Result<Wake> {
    let mut stopped = std::pin::pin!(gateway.stopped.wait());
    let mut wanted = std::pin::pin!(async {
        match wanted {
            Some(wanted) => wanted.wait().await,
            None => std::future::pending().await,
        }
    });
    poll_fn(|context| {
        // Checked before the messages: a constant flow of messages must not delay a takeover.
        if wanted.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(Wake::End(StreamEnd::TakenOver)));
        }
        let mut messages = VecDeque::new();
        match queue.poll_take_some(context, &mut messages, gateway.config.limits.session.write_bytes) {
            Poll::Ready(Received::Some) => return Poll::Ready(Ok(Wake::Messages(messages))),
            Poll::Ready(Received::Ended(())) => return Poll::Ready(Ok(Wake::End(StreamEnd::Complete))),
            Poll::Pending => {}
        }
        // Input is discarded; it is read only to notice that the client closes the connection.
        while let Poll::Ready(read) = Pin::new(&mut web.stream).poll_read(context, web.conn.space()) {
            web.conn.filled(read?);
            if matches!(web.conn.next(Instant::now()), Step::Close) || web.conn.is_ended() {
                return Poll::Ready(Ok(Wake::End(StreamEnd::ByClient)));
            }
        }
        if Pin::new(&mut *timer).poll(context).is_ready() {
            return Poll::Ready(Ok(Wake::Timer));
        }
        match stopped.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Ok(Wake::End(StreamEnd::Complete))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
