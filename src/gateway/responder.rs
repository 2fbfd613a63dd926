//! Where the answers to what a client asked go: its event stream, or the answer to its POST.

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

/// One way back to a client.
#[derive(Clone, Debug)]
pub struct Responder {
    queue: Sender<()>,
    post: Option<Arc<Post>>,
    /// Counts the request among the running ones until every copy of this is gone.
    _running: Option<TaskGuard>,
    burst: usize,
}

/// What is known of the answer to a POST.
#[derive(Debug)]
struct Post {
    /// The requests of it that are not answered. The last answer ends the queue.
    open: AtomicUsize,
    /// Something else than an answer was queued.
    other: AtomicBool,
    /// Bytes of the answers so far, and how many they may have; the first may have more.
    bytes: AtomicUsize,
    max: usize,
}

impl Post {
    /// Whether one more answer finds room.
    fn takes(&self, more: usize) -> bool {
        let grown = |bytes: usize| Some(bytes + more).filter(|sum| bytes == 0 || *sum <= self.max);
        self.bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, grown).is_ok()
    }
}

impl Responder {
    /// By the client's event stream, which goes on after any answer.
    /// So many bytes of answers may wait there beyond the bounds of the queue.
    pub fn stream(queue: Sender<()>, burst: usize) -> Self {
        Self { queue, post: None, burst, _running: None }
    }

    /// By the answer to a POST with so many requests; beyond the first, their answers have so many bytes at most.
    pub fn post(queue: Sender<()>, requests: usize, most: usize) -> Self {
        let (open, other) = (AtomicUsize::new(requests), AtomicBool::new(false));
        let post = Post { open, other, bytes: AtomicUsize::new(0), max: most };
        Self { queue, post: Some(Arc::new(post)), burst: 0, _running: None }
    }

    /// The same for one request, counted among the running ones until it is answered.
    pub fn counted(&self, badge: TaskGuard) -> Self {
        Self { _running: Some(badge), ..self.clone() }
    }

    /// Whether it is the answer to a POST, which somebody waits for.
    pub fn is_post(&self) -> bool {
        self.post.is_some()
    }

    /// Tells streams of one session apart: the answers to two POSTs, or the event stream that takes all answers.
    pub fn stream_key(&self) -> usize {
        self.post.as_ref().map_or(0, |post| Arc::as_ptr(post).addr())
    }

    /// Queues a message that belongs to a request, before its answer. A client that does not read its event stream is cut
    /// off: the stream ends, so that it notices. The answer to a POST only loses such messages: whoever sent it may come
    /// back for the stream, and the answer matters more.
    pub fn send(&self, message: String, stats: &Stats) {
        self.mark();
        self.queue_message(message, stats);
    }

    fn queue_message(&self, message: String, stats: &Stats) {
        if let Err(refused @ (SendError::Full | SendError::Memory)) = self.queue.send(message) {
            self.missed(refused, stats);
        }
    }

    /// A message found no room.
    fn missed(&self, refused: SendError, stats: &Stats) {
        stats.slow_clients.add();
        let why = if refused == SendError::Memory {
            "the memory budget (--max-memory) is used up"
        } else {
            "a client does not read"
        };
        if self.is_post() {
            // A server that floods brings this about as often as it likes; the count is in the status.
            log::debug!("{why}; a message before its answer is lost");
        } else {
            log::warn!("{why}; its stream ends");
            self.queue.end(());
        }
    }

    /// Queues a question to the client: a server waits for the answer, so other messages do not keep it out. False: the
    /// client does not read, and too much waits for it already.
    pub fn request(&self, question: String) -> bool {
        self.mark();
        // Where nobody reads any more, the session ends, and the server with it.
        !matches!(self.queue.send_more(question, limits::ASKS), Err(SendError::Full | SendError::Memory))
    }

    /// Something else than an answer is about to be queued: told before, so that nobody who finds it takes it for one.
    fn mark(&self) {
        if let Some(post) = &self.post {
            post.other.store(true, Ordering::Release);
        }
    }

    /// Whether something else than an answer was queued, or is about to be, since the last look.
    pub fn had_other(&self) -> bool {
        self.post.as_ref().is_some_and(|post| post.other.swap(false, Ordering::AcqRel))
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues the answer to a request.
    pub fn finish(&self, answer: String, stats: &Stats) {
        let Some(post) = &self.post else { return self.stream_answer(answer, stats) };
        let answer =
            if post.takes(answer.len()) { answer } else { replaced(&answer, jsonrpc::BUSY, CROWDED_OUT) };
        // There are only so many as there were requests, and the budget bounds their bytes. Nobody may be left to read it.
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

    /// Queues an answer on an event stream. What has no room in the budget is answered with an error: the stream goes on.
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

    /// The client has cancelled a request. On an event stream it stays unanswered; a POST has to end.
    pub fn cancelled(&self, id: &str, stats: &Stats) {
        if self.is_post() {
            self.finish(jsonrpc::error(id, jsonrpc::CANCELLED, "the client cancelled the request"), stats);
        }
    }
}

const CROWDED_OUT: &str = "the answers of this batch are too large together; ask one by one";
/// The budget of bytes is used up.
pub const NO_MEMORY: &str = "the gateway's memory budget (--max-memory) is used up; try again";

/// An error in the place of an answer.
fn replaced(answer: &str, code: i64, why: &str) -> String {
    let id = Message::read(answer).ok().and_then(|message| message.id()).unwrap_or("null");
    jsonrpc::error(id, code, why)
}
