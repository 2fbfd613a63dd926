//! Where the responses to a client's requests go: its event stream, or the response to its POST.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{
    jsonrpc::{self, Message},
    limits,
    metrics::Stats,
    net::outbox::{SendError, Sender},
    runtime::task_tracker::TaskGuard,
};

/// Sends responses, and messages related to them, to a client.
#[derive(Clone, Debug)]
pub struct Responder {
    queue: Sender<()>,
    post: Option<Arc<Post>>,
    /// Counts the request as running until every copy of this is dropped.
    _running: Option<TaskGuard>,
    burst: usize,
}

/// The state of the response to a POST.
#[derive(Debug)]
struct Post {
    /// Number of its requests that are not answered yet. The last answer ends the queue.
    open: AtomicUsize,
    /// Whether a message other than a response was queued.
    other: AtomicBool,
    /// Bytes of the responses so far, and their limit (`max`), which the first may exceed.
    bytes: AtomicUsize,
    max: usize,
}

impl Post {
    /// Adds the bytes of one more response. Returns false if they exceed the limit.
    fn takes(&self, more: usize) -> bool {
        let grown = |bytes: usize| Some(bytes + more).filter(|sum| bytes == 0 || *sum <= self.max);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
    }
}

impl Responder {
    /// Responds on the client's event stream, which stays open after each response. Up to `burst`
    /// bytes of responses may wait there beyond the queue's limits.
    pub fn stream(queue: Sender<()>, burst: usize) -> Self {
        Self { queue, post: None, burst, _running: None }
    }

    /// Responds in the body of a POST with this number of requests. All responses together have at
    /// most `max` bytes, but the first may be larger.
    pub fn post(queue: Sender<()>, requests: usize, max: usize) -> Self {
        let (open, other) = (AtomicUsize::new(requests), AtomicBool::new(false));
        let post = Post { open, other, bytes: AtomicUsize::new(0), max };
        Self { queue, post: Some(Arc::new(post)), burst: 0, _running: None }
    }

    /// Returns a copy for one request, which counts as running until it is answered.
    pub fn counted(&self, guard: TaskGuard) -> Self {
        Self { _running: Some(guard), ..self.clone() }
    }

    /// Returns whether this is the response to a POST, which the client waits for.
    pub fn is_post(&self) -> bool {
        self.post.is_some()
    }

    /// Returns a key that differs between the streams of one session: one per POST, and 0 for the
    /// event stream that carries all responses.
    pub fn stream_key(&self) -> usize {
        self.post.as_ref().map_or(0, |post| Arc::as_ptr(post).addr())
    }

    /// Queues a message that belongs to a request, before its response. If a client does not read
    /// its event stream, the stream ends, so that the client notices. The response to a POST only
    /// loses the message: the client may come back for the stream, and the response matters more.
    pub fn send(&self, message: String, stats: &Stats) {
        self.mark();
        self.queue_message(message, stats);
    }

    fn queue_message(&self, message: String, stats: &Stats) {
        if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send(message) {
            self.missed(refused, stats);
        }
    }

    /// Handles a message that did not fit in the queue.
    fn missed(&self, refused: SendError, stats: &Stats) {
        stats.slow_clients.add();
        let why = if refused == SendError::Memory {
            "the memory budget (--max-memory) is used up"
        } else {
            "a client does not read"
        };
        if self.is_post() {
            // At debug level only: a flooding server can cause this at will, and the status counts
            // it.
            log::debug!("{why}; dropped a message before its response");
        } else {
            log::warn!("{why}; closing its stream");
            self.queue.end(());
        }
    }

    /// Queues a server's request to the client. The server waits for the answer, so up to
    /// [`limits::SERVER_REQUESTS`] messages beyond the queue's limit are allowed. Returns false if
    /// the client does not read and too much is queued already.
    pub fn request(&self, request: String) -> bool {
        self.mark();
        // A closed queue is no failure: the session ends, and its isolated instance with it.
        !matches!(
            self.queue.send_more(request, limits::SERVER_REQUESTS),
            Err(SendError::Full | SendError::Memory)
        )
    }

    /// Records that a message other than a response is about to be queued. Called before it is
    /// queued, so that no reader takes that message for a response.
    fn mark(&self) {
        if let Some(post) = &self.post {
            post.other.store(true, Ordering::Release);
        }
    }

    /// Returns whether a message other than a response was queued, or is about to be, since the
    /// last call.
    pub fn had_other(&self) -> bool {
        self.post.as_ref().is_some_and(|post| post.other.swap(false, Ordering::AcqRel))
    }

    /// Returns whether the reader is gone.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues the response to a request.
    pub fn finish(&self, answer: String, stats: &Stats) {
        let Some(post) = &self.post else { return self.stream_answer(answer, stats) };
        let answer =
            if post.takes(answer.len()) { answer } else { replaced(&answer, jsonrpc::BUSY, CROWDED_OUT) };
        // The number of responses is limited by that of the requests, and their bytes by the
        // budget. A closed queue is ignored: the reader may be gone.
        if let Err((SendError::Full | SendError::Memory, answer)) =
            self.queue.try_send_burst(answer, usize::MAX)
        {
            stats.memory_refusals.add();
            let _ = self.queue.send_unbounded(replaced(&answer, jsonrpc::BUSY, NO_MEMORY));
        }
        if post.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.end(());
        }
    }

    /// Queues a response on an event stream. If the budget has no room for it, queues an error in
    /// its place, and the stream continues.
    fn stream_answer(&self, answer: String, stats: &Stats) {
        match self.queue.try_send_burst(answer, self.burst) {
            Err((SendError::Memory, answer)) => {
                stats.memory_refusals.add();
                let error = replaced(&answer, jsonrpc::BUSY, NO_MEMORY);
                if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send_reserved(error)
                {
                    self.missed(refused, stats);
                }
            }
            Err((SendError::Full, _)) => self.missed(SendError::Full, stats),
            Ok(()) | Err((SendError::Closed, _)) => {}
        }
    }

    /// Handles the client's cancellation of a request: on an event stream the request stays
    /// unanswered; a POST gets an error, since it needs a response to end.
    pub fn cancelled(&self, id: &str, stats: &Stats) {
        if self.is_post() {
            self.finish(jsonrpc::error(id, jsonrpc::CANCELLED, "the client cancelled the request"), stats);
        }
    }
}

const CROWDED_OUT: &str = "the responses of this batch are too large together; send single requests";
/// The error text for an exhausted memory budget.
pub const NO_MEMORY: &str = "the gateway's memory budget (--max-memory) is used up; try again";

/// Returns an error response with the id of the response that it replaces.
fn replaced(answer: &str, code: i64, why: &str) -> String {
    let id = Message::read(answer).ok().and_then(|message| message.id()).unwrap_or("null");
    jsonrpc::error(id, code, why)
}
