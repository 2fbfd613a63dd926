//! The state that the tasks of the edge share: the link, the reader of the shared server, the
//! supervisor and the health check.
//!
//! `edge::proxy` decides what happens to a message; this module keeps its decision and the queues in
//! step.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use smol::Timer;

use super::{
    backend::{Delivery, LineOutcome, LineSink},
    instances::Instances,
    uplink::Uplink,
};
use crate::{
    edge::proxy::{ProxyState, ToChild, ToGateway},
    jsonrpc::{self, Kind, Message},
    limits::{self, LOG_WARNINGS},
    log_throttle::LogThrottle,
    net::{
        outbound::Unacknowledged,
        outbox::{SendError, Sender},
    },
    runtime::task_tracker::TaskTracker,
    tunnel::close::CloseReason,
};

/// State shared by the tasks of the edge.
pub struct EdgeState {
    tables: Mutex<EdgeTables>,
    /// One guard for each line of the child that waits for space in the queue of the link.
    delivering: TaskTracker,
    instances: Arc<Instances>,
    /// Limits how often warnings about unexpected messages of the server are logged.
    log_throttle: Mutex<LogThrottle>,
}

#[derive(Debug, Default)]
struct EdgeTables {
    proxy: ProxyState,
    /// The stdin queue of the child.
    child: Option<Sender<()>>,
    /// Number of child starts, including the current child.
    generation: u64,
    /// The queue towards the gateway, of the current link or of one that may be resumed.
    link: Option<Uplink>,
    /// Frames sent on that link that the gateway has not acknowledged.
    unacknowledged: Unacknowledged,
    /// The current link is registered.
    registered: bool,
    /// At least one link was registered since the program started.
    was_registered: bool,
    leaving: bool,
}

impl EdgeState {
    /// Creates the state without a child or a link. `instances` are the per-session processes.
    pub fn new(instances: Arc<Instances>) -> Arc<Self> {
        let (tables, delivering, throttle) = (Mutex::default(), TaskTracker::new(), Mutex::default());
        Arc::new(Self { tables, delivering, instances, log_throttle: throttle })
    }

    fn lock(&self) -> MutexGuard<'_, EdgeTables> {
        // Each change is atomic, so a poisoned lock leaves the state consistent.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a warning about the server, at most once a second per `kind`, with the number left out.
    fn warn_throttled(&self, kind: &'static str, what: &str) {
        let mut throttle = self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = throttle.due(Instant::now(), kind, "", LOG_WARNINGS) {
            log::warn!("{what}{left_out}");
        }
    }

    /// Whether the gateway has accepted the current registration.
    pub fn is_registered(&self) -> bool {
        self.lock().registered
    }

    /// Whether the gateway has ever accepted a registration of this program.
    pub fn was_registered(&self) -> bool {
        self.lock().was_registered
    }

    /// Whether the child accepts requests.
    pub fn is_served(&self) -> bool {
        self.lock().proxy.is_up()
    }

    /// Whether the child of this generation was restarted and has not answered `initialize` yet.
    pub fn is_initializing(&self, generation: u64) -> bool {
        let shared = self.lock();
        shared.generation == generation && shared.proxy.is_initializing()
    }

    /// Returns the generation of the current child. It changes with every start.
    pub fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// Installs a child that is being started and reads from `input`. Returns its generation.
    pub fn child_up(&self, input: Sender<()>) -> u64 {
        let mut shared = self.lock();
        if let Some(initialize) = shared.proxy.child_back() {
            // The queue is new, so it has space.
            let _ = input.send(initialize);
        }
        shared.child = Some(input);
        shared.generation += 1;
        shared.generation
    }

    /// Handles the exit of the child: sends error responses for its open requests to the gateway.
    /// See [`ProxyState::child_gone`].
    pub fn child_down(&self, why: &str, due: Option<Instant>) {
        let mut shared = self.lock();
        shared.child = None;
        for frame in shared.proxy.child_gone(why, due) {
            // The responses are small, at most one per open request, and must not be lost.
            if let Some(link) = &shared.link {
                let _ = link.queue().send_unbounded(frame);
            }
        }
    }

    /// Applies `read` to the proxy state and sends the resulting lines. Returns the frames to be
    /// delivered.
    fn deliver(&self, generation: u64, read: impl FnOnce(&mut ProxyState) -> ToGateway) -> LineOutcome {
        let (up, link, delivering) = {
            let mut shared = self.lock();
            if shared.generation != generation {
                log::debug!("dropped a line of an earlier process");
                return LineOutcome::Message(Delivery::none());
            }
            let mut up = read(&mut shared.proxy);
            if let (ToGateway::Ready { lines, .. }, Some(child)) = (&mut up, &shared.child) {
                for line in lines.drain(..) {
                    // At most the held frames; sent under the lock, so that no later message
                    // overtakes them.
                    let _ = child.send_unbounded(line);
                }
            }
            // Counts as being delivered before its call stops counting as running.
            (up, shared.link.clone(), self.delivering.track())
        };
        let (first, more) = match up {
            ToGateway::Gateway(frame) => (Some(frame), Vec::new()),
            ToGateway::Unmatched(frame) => {
                self.warn_throttled("stray", "the server sent a response without a matching request");
                (Some(frame), Vec::new())
            }
            ToGateway::Ready { frames, .. } => {
                log::info!("server reinitialized");
                (None, frames)
            }
            ToGateway::Stale => {
                log::debug!("dropped a response for an earlier link");
                (None, Vec::new())
            }
            ToGateway::Refused => return LineOutcome::End("it rejected reinitialization"),
            ToGateway::Noise => return LineOutcome::Noise,
        };
        let Some(link) = link else {
            if first.is_some() || !more.is_empty() {
                log::debug!("dropped a message of the server: no link");
            }
            return LineOutcome::Message(Delivery::none());
        };
        let mut delivery = Delivery::new(link, delivering);
        for frame in first.into_iter().chain(more) {
            if let Err(Some(refusal)) = delivery.add(frame) {
                self.refuse(generation, refusal);
            }
        }
        LineOutcome::Message(delivery)
    }

    /// Answers a request of the child on behalf of the gateway.
    fn refuse(&self, generation: u64, refusal: String) {
        let shared = self.lock();
        if let Some(child) = shared.child.as_ref().filter(|_| shared.generation == generation) {
            // Best effort: dropped if the server does not read its input.
            let _ = child.send(refusal);
        }
    }

    /// Handles a frame from the gateway. Returns `None` if the message was queued for the child. If
    /// the child's queue is full or closed, a request is answered with an error.
    pub fn on_gateway_frame(&self, now: Instant, frame: &str) -> Option<ToChild> {
        let mut shared = self.lock();
        let (line, child) = match (shared.proxy.on_gateway_frame(now, frame), &shared.child) {
            (ToChild::Child(line), Some(child)) => (line, child),
            (other, _) => return Some(other),
        };
        let begins = |line: &str| Message::read(line).is_ok_and(|message| message.method() == "initialize");
        let (code, why, line) = match child.try_send(line) {
            Ok(()) => return None,
            // The child has exited, and the supervisor is about to notice. The next child gets the
            // `initialize`.
            Err((SendError::Closed, line)) if begins(&line) => {
                return Some(ToChild::Drop("initialize for a child that has exited"));
            }
            Err((SendError::Full | SendError::Memory, line)) => {
                (jsonrpc::BUSY, "the server does not read its input", line)
            }
            Err((SendError::Closed, line)) => (jsonrpc::DOWN, "the server has exited", line),
        };
        self.warn_throttled(why, &format!("rejected a message for the server: {why}"));
        let message = Message::read(&line).ok().filter(|message| message.kind() == Kind::Request)?;
        // The proxy maps the id back to the one that the gateway uses.
        match shared.proxy.on_child_line(&jsonrpc::error(message.id()?, code, why)) {
            ToGateway::Gateway(frame) | ToGateway::Unmatched(frame) => Some(ToChild::Gateway(frame)),
            _ => None,
        }
    }

    /// Refuses new requests from now on, also for the per-session processes.
    pub fn stop(&self) {
        self.lock().proxy.stop();
        self.instances.stop();
    }

    /// Returns the number of unanswered requests.
    pub fn running(&self) -> usize {
        self.lock().proxy.running() + self.instances.running()
    }

    /// Waits until every running call is answered and the responses are queued on the link.
    pub async fn answered(&self) {
        // Check in this order: a response counts as being delivered before its call stops counting
        // as running.
        while self.running() > 0 || !self.delivering.is_empty() || self.instances.is_delivering() {
            Timer::after(limits::DRAIN_POLL).await;
        }
    }

    /// Waits until the gateway has received everything queued on the link, if it acknowledges
    /// frames.
    pub async fn delivered(&self) {
        while !self.is_delivered() {
            Timer::after(limits::DRAIN_POLL).await;
        }
    }

    /// Whether the gateway has received everything queued on the link. True without a link.
    pub fn is_delivered(&self) -> bool {
        let shared = self.lock();
        // Check in this order: a frame counts as unacknowledged before it leaves the queue.
        shared.link.as_ref().is_none_or(|link| link.queue().is_settled())
            && shared.unacknowledged.count() == 0
    }

    /// Closes the current link with code 1001 and prevents further ones.
    pub fn leave(&self, reason: &str) {
        let mut shared = self.lock();
        shared.leaving = true;
        if let Some(link) = &shared.link {
            link.queue().end(CloseReason::new(1001, reason));
        }
    }

    /// Installs a new link. Returns false if the program is stopping.
    pub fn link_up(&self, link: Uplink, unacknowledged: Unacknowledged) -> bool {
        let mut shared = self.lock();
        shared.link = Some(link);
        shared.unacknowledged = unacknowledged;
        !shared.leaving
    }

    /// Whether [`EdgeState::leave`] was called.
    pub fn is_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// Records that the gateway has accepted the registration.
    pub fn registered(&self) {
        let mut shared = self.lock();
        shared.registered = true;
        shared.was_registered = true;
    }

    /// Records that the gateway of the current link reads status frames.
    pub fn gateway_reads_status_frames(&self) {
        self.lock().proxy.gateway_reads_status_frames();
    }

    /// Returns the processes of single sessions.
    pub fn instances(&self) -> &Arc<Instances> {
        &self.instances
    }

    /// Marks the link as lost but resumable. Only the health check changes; the rest goes on.
    pub fn suspend(&self) {
        let mut shared = self.lock();
        shared.registered = false;
    }

    /// Handles the final loss of a link: cancels the open requests at the child and closes all
    /// sessions.
    pub fn link_down(&self) {
        self.instances.close_all();
        let mut shared = self.lock();
        shared.link = None;
        shared.unacknowledged = Unacknowledged::default();
        shared.registered = false;
        for line in shared.proxy.disconnected() {
            // Best effort: a child that does not read its input misses the cancellations.
            let _ = shared.child.as_ref().map(|child| child.send(line));
        }
    }
}

/// Takes the messages of one run of the shared server.
pub struct SharedSink {
    state: Arc<EdgeState>,
    generation: u64,
}

impl SharedSink {
    /// Creates the sink for the run with this generation, see [`EdgeState::child_up`].
    pub fn new(state: Arc<EdgeState>, generation: u64) -> Self {
        Self { state, generation }
    }
}

impl LineSink for SharedSink {
    fn message(&self, text: &str) -> LineOutcome {
        self.state.deliver(self.generation, |proxy| proxy.on_child_line(text))
    }

    fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome {
        self.state.deliver(self.generation, |proxy| proxy.unusable(id, why))
    }
}
