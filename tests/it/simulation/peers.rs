//! The simulated transports of clients: what the hub sends goes to one list, in order, and the
//! clients read it when the present step is over.

use std::{
    any::Any,
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use mcpport::{
    hub::peers::{Responder, SessionStream},
    jsonrpc,
    metrics::Stats,
};

/// What a client receives.
#[derive(Debug)]
pub enum Delivered {
    /// The response to a request.
    Response(String),
    /// Any other message.
    Message(String),
    /// A request with this id ended without a response.
    Cancelled(String),
    /// The session has ended.
    Closed,
}

/// Something that a client receives, and where.
#[derive(Debug)]
pub struct Delivery {
    pub client: usize,
    /// The number of the session.
    pub session: u64,
    /// The number of the stream: of a POST, or of the session for its own stream.
    pub stream: u64,
    pub what: Delivered,
}

/// What clients have yet to read.
#[derive(Debug, Default)]
pub struct Inbox {
    deliveries: Mutex<VecDeque<Delivery>>,
    /// Requests whose responder was dropped before they were answered.
    unanswered: AtomicUsize,
    /// Requests that are not answered yet.
    open: AtomicUsize,
}

impl Inbox {
    pub fn take(&self) -> Option<Delivery> {
        self.deliveries.lock().unwrap().pop_front()
    }

    /// Returns the number of requests that are not answered.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of requests that will never be answered.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

/// The address of a stream of a client.
#[derive(Clone, Debug)]
pub struct Address {
    pub inbox: Arc<Inbox>,
    pub client: usize,
    pub session: u64,
    pub stream: u64,
}

impl Address {
    fn deliver(&self, what: Delivered) {
        let Self { client, session, stream, .. } = *self;
        self.inbox.deliveries.lock().unwrap().push_back(Delivery { client, session, stream, what });
    }
}

/// Where the responses to requests go: a POST with one request, or the event stream of the
/// 2024-11-05 transport.
#[derive(Debug)]
pub struct SimResponder {
    address: Address,
    legacy: bool,
    /// Whether the client has hung up. The test still sees what the client does not.
    closed: AtomicBool,
    open: AtomicUsize,
    requests: AtomicUsize,
}

impl SimResponder {
    pub fn new(address: Address, legacy: bool) -> Self {
        let (closed, open, requests) = Default::default();
        Self { address, legacy, closed, open, requests }
    }

    /// The client no longer reads.
    pub fn hang_up(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        let open = self.open.fetch_sub(1, Ordering::Relaxed);
        assert!(open > 0, "a request of client {} is answered twice", self.address.client);
        self.address.inbox.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Responder for SimResponder {
    fn begin(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.address.inbox.open.fetch_add(1, Ordering::Relaxed);
    }

    fn stream_key(&self) -> usize {
        if self.legacy { 0 } else { self.address.stream as usize }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn send(&self, message: String, _: &Stats) {
        self.address.deliver(Delivered::Message(message));
    }

    fn request(&self, request: String) -> bool {
        // Now and then, too much is queued.
        if self.requests.fetch_add(1, Ordering::Relaxed) % 8 == 7 {
            return false;
        }
        self.address.deliver(Delivered::Message(request));
        true
    }

    fn finish(&self, response: String, _: &Stats) {
        self.end();
        self.address.deliver(Delivered::Response(response));
    }

    fn cancelled(&self, id: &str, stats: &Stats) {
        if self.legacy {
            self.end();
            self.address.deliver(Delivered::Cancelled(id.to_owned()));
        } else {
            self.finish(jsonrpc::error(id, jsonrpc::CANCELLED, "cancelled"), stats);
        }
    }
}

impl Drop for SimResponder {
    fn drop(&mut self) {
        self.address.inbox.unanswered.fetch_add(*self.open.get_mut(), Ordering::Relaxed);
    }
}

/// The streams of a session for what belongs to no request.
#[derive(Debug)]
pub struct SimStream {
    address: Address,
    /// Whether the client reads them.
    reads: bool,
    requests: AtomicUsize,
    ended: AtomicBool,
}

impl SimStream {
    pub fn new(address: Address, reads: bool) -> Self {
        let (requests, ended) = Default::default();
        Self { address, reads, requests, ended }
    }
}

impl SessionStream for SimStream {
    fn open_streams(&self) -> usize {
        usize::from(self.reads)
    }

    fn send(&self, message: String, _: &Stats) {
        let client = self.address.client;
        assert!(!self.ended.load(Ordering::Relaxed), "the session of client {client} has ended: {message}");
        if self.reads {
            self.address.deliver(Delivered::Message(message));
        }
    }

    fn notice(&self, notice: &str, stats: &Stats) {
        self.send(notice.to_owned(), stats);
    }

    fn request(&self, message: String, stats: &Stats) -> bool {
        // Now and then, too much is queued.
        if self.requests.fetch_add(1, Ordering::Relaxed) % 8 == 7 {
            return false;
        }
        self.send(message, stats);
        true
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn close(&self) {
        assert!(self.ended.load(Ordering::Relaxed), "a stream is closed before its end");
        self.address.deliver(Delivered::Closed);
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
