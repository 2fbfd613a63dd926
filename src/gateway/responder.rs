//! Where the responses to a client's requests go: its event stream, or the response to its POST.
//! Both are a [`Responder`] of the hub.

use std::{
    ptr,
    sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
};

use crate::{
    hub::{error::NO_MEMORY, peers::Responder},
    jsonrpc::{self, Message},
    limits,
    metrics::Stats,
    net::outbox::{SendError, Sender},
    runtime::task_tracker::{TaskCounter, TaskTracker},
};

/// Responds in the body of a POST, which the client waits for.
#[derive(Debug)]
pub struct PostResponder {
    queue: Sender<()>,
    /// Counts its requests as running until they are answered.
    running: TaskCounter,
    /// Number of its requests that are not answered yet. The last answer ends the queue.
    open: AtomicUsize,
    /// Whether a message other than a response was queued.
    other: AtomicBool,
    /// Bytes of the responses so far, and their limit (`max`), which the first may exceed.
    bytes: AtomicUsize,
    max: usize,
    /// The code of the error that was the last response; 0, which is no such code, for a result.
    error: AtomicI64,
}

impl PostResponder {
    /// Responds to a POST with this number of requests. All responses together have at most `max`
    /// bytes, but the first may be larger. `running` counts the requests until they are answered.
    pub fn new(queue: Sender<()>, requests: usize, max: usize, running: &TaskTracker) -> Self {
        let (open, other) = (AtomicUsize::new(requests), AtomicBool::new(false));
        Self {
            queue,
            running: running.count(),
            open,
            other,
            bytes: AtomicUsize::new(0),
            max,
            error: AtomicI64::new(0),
        }
    }

    /// Adds the bytes of one more response. Returns false if they exceed the limit.
    fn takes(&self, more: usize) -> bool {
        let grown = |bytes: usize| Some(bytes + more).filter(|sum| bytes == 0 || *sum <= self.max);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
    }

    /// Returns the code of the error that was the last response.
    pub fn error(&self) -> Option<i64> {
        Some(self.error.load(Ordering::Acquire)).filter(|code| *code != 0)
    }

    /// Records that a message other than a response is about to be queued. Called before it is
    /// queued, so that no reader takes that message for a response.
    fn mark(&self) {
        self.other.store(true, Ordering::Release);
    }

    /// Returns whether a message other than a response was queued, or is about to be, since the
    /// last call.
    pub fn had_other(&self) -> bool {
        self.other.swap(false, Ordering::AcqRel)
    }
}

impl Responder for PostResponder {
    fn begin(&self) {
        self.running.begin();
    }

    /// Returns its address, which no other POST has while this one is answered.
    fn stream_key(&self) -> usize {
        ptr::from_ref(self).addr()
    }

    fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// The response only loses the message if the client does not read: the client may come back
    /// for the stream, and the response matters more.
    fn send(&self, message: String, stats: &Stats) {
        self.mark();
        if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send(message) {
            stats.slow_clients.add();
            // At debug level only: a flooding server can cause this at will, and the status counts
            // it.
            log::debug!("{}; dropped a message before its response", reason(refused));
        }
    }

    fn request(&self, request: String) -> bool {
        self.mark();
        queue_request(&self.queue, request)
    }

    fn finish(&self, response: String, stats: &Stats) {
        let response = if self.takes(response.len()) {
            response
        } else {
            replaced(&response, jsonrpc::BUSY, CROWDED_OUT)
        };
        // The number of responses is limited by that of the requests, and their bytes by the
        // budget. A closed queue is ignored: the reader may be gone.
        if let Err((SendError::Full | SendError::Memory, response)) =
            self.queue.try_send_burst(response, usize::MAX)
        {
            stats.memory_refusals.add();
            let _ = self.queue.send_unbounded(replaced(&response, jsonrpc::BUSY, NO_MEMORY));
        }
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.end(());
        }
        self.running.end();
    }

    fn fail(&self, code: i64, response: String, stats: &Stats) {
        self.error.store(code, Ordering::Release);
        self.finish(response, stats);
    }

    /// Responds with an error, since a POST needs a response to end.
    fn cancelled(&self, id: &str, stats: &Stats) {
        self.finish(jsonrpc::error(id, jsonrpc::CANCELLED, "the client cancelled the request"), stats);
    }
}

/// Responds on a client's event stream, which stays open after each response.
#[derive(Debug)]
pub struct StreamResponder {
    queue: Sender<()>,
    /// Counts its requests as running until they are answered.
    running: TaskCounter,
    burst: usize,
}

impl StreamResponder {
    /// Responds through `queue`. Up to `burst` bytes of responses may wait there beyond its limits.
    /// `running` counts the requests until they are answered.
    pub fn new(queue: Sender<()>, burst: usize, running: &TaskTracker) -> Self {
        Self { queue, running: running.count(), burst }
    }

    /// Returns the queue of the stream.
    pub fn queue(&self) -> &Sender<()> {
        &self.queue
    }

    /// Ends the stream, so that a client that does not read notices that it lost a message.
    fn missed(&self, refused: SendError, stats: &Stats) {
        stats.slow_clients.add();
        log::warn!("{}; closing its stream", reason(refused));
        self.queue.end(());
    }

    fn queue_response(&self, response: String, stats: &Stats) {
        match self.queue.try_send_burst(response, self.burst) {
            Err((SendError::Memory, response)) => {
                stats.memory_refusals.add();
                let error = replaced(&response, jsonrpc::BUSY, NO_MEMORY);
                if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send_reserved(error)
                {
                    self.missed(refused, stats);
                }
            }
            Err((SendError::Full, _)) => self.missed(SendError::Full, stats),
            Ok(()) | Err((SendError::Closed, _)) => {}
        }
    }
}

impl Responder for StreamResponder {
    fn begin(&self) {
        self.running.begin();
    }

    /// Returns 0: all requests of the session are answered here.
    fn stream_key(&self) -> usize {
        0
    }

    fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// The stream ends if the client does not read it, so that the client notices.
    fn send(&self, message: String, stats: &Stats) {
        if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send(message) {
            self.missed(refused, stats);
        }
    }

    fn request(&self, request: String) -> bool {
        queue_request(&self.queue, request)
    }

    /// If the budget has no room for the response, queues an error in its place, and the stream
    /// continues.
    fn finish(&self, response: String, stats: &Stats) {
        self.queue_response(response, stats);
        self.running.end();
    }

    /// Leaves the request unanswered, as the specification asks (MCP 2024-11-05, cancellation).
    fn cancelled(&self, _: &str, _: &Stats) {
        self.running.end();
    }
}

/// Queues a server's request, up to [`limits::SERVER_REQUESTS`] messages beyond the queue's limit.
/// Returns false if there is no room.
fn queue_request(queue: &Sender<()>, request: String) -> bool {
    // A closed queue is no failure: the session ends, and its isolated instance with it.
    !matches!(queue.send_more(request, limits::SERVER_REQUESTS), Err(SendError::Full | SendError::Memory))
}

/// Returns why a message was not queued, for a log line.
fn reason(refused: SendError) -> &'static str {
    match refused {
        SendError::Memory => "the memory budget (--max-memory) is used up",
        SendError::Full | SendError::Closed => "a client does not read",
    }
}

const CROWDED_OUT: &str = "the responses of this batch are too large together; send single requests";

/// Returns an error response with the id of the response that it replaces.
fn replaced(answer: &str, code: i64, why: &str) -> String {
    let id = Message::read(answer).ok().and_then(|message| message.id()).unwrap_or("null");
    jsonrpc::error(id, code, why)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_lite::future;

    use super::*;
    use crate::net::outbox::{self, Receiver};

    fn taken(queue: &mut Receiver<()>) -> VecDeque<String> {
        let mut messages = VecDeque::new();
        future::block_on(queue.take(&mut messages));
        messages
    }

    #[test]
    fn a_post_ends_with_its_last_response() {
        let (tracker, stats) = (TaskTracker::new(), Stats::default());
        let (sender, mut queue) = outbox::bounded(9, 99);
        let post = PostResponder::new(sender, 2, 99, &tracker);
        post.begin();
        post.begin();
        post.finish("one".into(), &stats);
        assert_eq!((taken(&mut queue), post.is_closed(), tracker.len()), (["one".into()].into(), false, 1));
        assert!(!post.had_other());
        post.cancelled("7", &stats);
        assert!(post.is_closed() && tracker.is_empty());
        let error = taken(&mut queue).pop_front().unwrap();
        assert!(error.contains("\"id\":7") && error.contains(&jsonrpc::CANCELLED.to_string()), "{error}");
    }

    #[test]
    fn a_stream_stays_open_and_leaves_cancelled_requests_unanswered() {
        let (tracker, stats) = (TaskTracker::new(), Stats::default());
        let (sender, mut queue) = outbox::bounded(9, 99);
        let stream = StreamResponder::new(sender, 0, &tracker);
        stream.begin();
        stream.begin();
        stream.cancelled("7", &stats);
        stream.finish("two".into(), &stats);
        assert_eq!((taken(&mut queue), stream.is_closed()), (["two".into()].into(), false));
        assert!(tracker.is_empty());
    }
}
