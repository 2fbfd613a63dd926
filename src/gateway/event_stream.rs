//! Writes messages as an event stream until the stream or its client comes to an end.

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

use super::{Gateway, streams::Streams};
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

/// Why writing ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamEnd {
    /// The client closed the connection.
    ByClient,
    /// All was written, and no more will come.
    Complete,
    /// Another connection wants the stream.
    Wanted,
}

/// Numbers on the events of a stream, so that a client can come back to it.
pub struct EventIds<'a> {
    /// Where sent events are kept.
    pub streams: &'a Streams,
    /// The stream's number.
    pub stream: u32,
    /// Number of the last event.
    pub sent: u64,
    /// Thrown when another connection wants the stream.
    pub wanted: Shutdown,
}

/// The head of an event stream.
pub fn head() -> Response {
    Response::new(StatusCode::Ok)
        .field("Content-Type", "text/event-stream")
        .field("Cache-Control", "no-store")
        .field("X-Accel-Buffering", "no")
}

/// Writes events until the end. `first` is written before all else; the head of the answer is out already.
///
/// # Errors
/// The connection broke, or the client does not read.
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
        // The head of the answer may wait there, and a client waits for it.
        if !first.is_empty() || !web.out.is_empty() {
            web.conn.stream(&first, &mut web.out);
            // It may take a client long to read what stands in `out`; once is enough.
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

/// Writes what is to be written. A client that comes back for its stream does not wait until an old connection, which
/// may be dead, has taken everything: that connection ends in the middle.
async fn flush(web: &mut HttpConnection, wanted: Option<&Shutdown>) -> io::Result<()> {
    let wanted = async {
        match wanted {
            Some(wanted) => wanted.wait().await,
            None => std::future::pending().await,
        }
        Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the stream goes on over another connection"))
    };
    future::or(web.flush(), wanted).await
}

/// Writes the last events of a stream, and its end.
///
/// # Errors
/// The connection broke, or the client does not read.
pub async fn write_all(web: &mut HttpConnection, events: &[u8]) -> io::Result<StreamEnd> {
    web.conn.stream(events, &mut web.out);
    web.end_stream();
    web.flush().await.map(|()| StreamEnd::Complete)
}

/// Puts messages into events. What has a number is kept before it is sent: nobody knows how much of it will arrive.
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

/// Waits for messages, for the end of the client, or for the time of a keep-alive.
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
        // Before messages, which may come without end: who wants the stream does not wait for a pause.
        if wanted.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(Wake::End(StreamEnd::Wanted)));
        }
        let mut messages = VecDeque::new();
        match queue.poll_take_some(context, &mut messages, gateway.config.limits.session.write_bytes) {
            Poll::Ready(Received::Some) => return Poll::Ready(Ok(Wake::Messages(messages))),
            Poll::Ready(Received::Ended(())) => return Poll::Ready(Ok(Wake::End(StreamEnd::Complete))),
            Poll::Pending => {}
        }
        // What the client sends on this connection does not matter; that it closes it does.
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
