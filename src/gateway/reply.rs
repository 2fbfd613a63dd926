//! Where the answers to what a client asked go: its event stream, or the answer to its POST.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    jsonrpc,
    net::queue::{Refused, Sender},
    stats::Stats,
};

/// One way back to a client.
#[derive(Clone, Debug)]
pub struct Reply {
    queue: Sender<()>,
    /// For a POST: the requests of it that are not answered. The last answer ends the queue.
    open: Option<Arc<AtomicUsize>>,
}

impl Reply {
    /// By the client's event stream, which goes on after any answer.
    pub fn stream(queue: Sender<()>) -> Self {
        Self { queue, open: None }
    }

    /// By the answer to a POST with so many requests.
    pub fn post(queue: Sender<()>, requests: usize) -> Self {
        Self { queue, open: Some(Arc::new(AtomicUsize::new(requests))) }
    }

    /// Whether it is the answer to a POST, which somebody waits for.
    pub fn is_post(&self) -> bool {
        self.open.is_some()
    }

    /// Queues a message that belongs to a request, before its answer. A client that does not read its event stream is cut
    /// off: the stream ends, so that it notices. The answer to a POST only loses such messages: whoever sent it may come
    /// back for the stream, and the answer matters more.
    pub fn send(&self, message: String, stats: &Stats) {
        if self.queue.send(message) == Err(Refused::Full) {
            stats.slow_clients.add();
            if self.is_post() {
                log::info!("a client does not read; a message before its answer is lost");
            } else {
                log::warn!("a client does not read; its stream ends");
                self.queue.end(());
            }
        }
    }

    /// Queues a question to the client, which finds room in any case: a server waits for the answer, and how many there can
    /// be is bounded elsewhere.
    pub fn ask(&self, question: String) {
        // Nobody reads any more: then the session ends, and the server with it.
        let _ = self.queue.send_anyway(question);
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues the answer to a request.
    pub fn finish(&self, answer: String, stats: &Stats) {
        let Some(open) = &self.open else { return self.send(answer, stats) };
        // There are only so many as there were requests. Nobody may be left to read it.
        let _ = self.queue.send_anyway(answer);
        if open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.end(());
        }
    }

    /// The client has cancelled a request. On an event stream it stays unanswered; a POST has to end.
    pub fn cancelled(&self, id: &str, stats: &Stats) {
        if self.is_post() {
            self.finish(jsonrpc::error(id, jsonrpc::CANCELLED, "the client cancelled the request"), stats);
        }
    }
}
