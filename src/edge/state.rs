//! The state that the tasks of the edge share: the link, the reader of the shared server, the
//! supervisor and the health check.
//!
//! `edge::proxy` decides what happens to a message; this module keeps its decision and the queues in
//! step.

use std::{
    sync::{Arc, MutexGuard},
    time::Instant,
};

use smol::Timer;

use super::{
    backend::{Delivery, LineOutcome, LineSink},
    instances::Instances,
    throttled_log::ThrottledLog,
    uplink::Uplink,
};
use crate::{
    edge::proxy::{ChildStart, NotTaken, ProxyState, ToChild, ToGateway},
    limits::{self, LOG_WARNINGS},
    net::{
        outbound::Unacknowledged,
        outbox::{SendError, Sender},
    },
    runtime::{lock::Lock, task_tracker::TaskTracker},
    tunnel::close::CloseReason,
};

/// State shared by the tasks of the edge.
pub struct EdgeState {
    /// Guards the order of what the proxy decides and what is put on a queue. Taken for each frame
    /// and line, and by supervisor and health check; while it is held, only the locks of the queues
    /// and of the log are taken.
    tables: Lock<Tables>,
    /// One guard for each line of the server that waits for space in the queue of the link.
    delivering: TaskTracker,
    instances: Arc<Instances>,
    log: Arc<ThrottledLog>,
}

#[derive(Debug, Default)]
struct Tables {
    server: ServerState,
    link: LinkState,
    /// The program is stopping: no further link.
    leaving: bool,
}

/// The shared server, from the start of the program to its end.
#[derive(Debug, Default)]
struct ServerState {
    proxy: ProxyState,
    /// The queue of messages for the server; `None` while it is down.
    input: Option<Sender<()>>,
    run: Run,
}

/// The current link, or the lost one that may be resumed.
#[derive(Debug, Default)]
struct LinkState {
    /// The queue towards the gateway.
    uplink: Option<Uplink>,
    /// Frames sent on the link that the gateway has not acknowledged.
    unacknowledged: Unacknowledged,
    registration: Registration,
}

/// Whether the gateway has accepted a registration.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Registration {
    /// Not since the program started.
    #[default]
    Never,
    /// Of the current link.
    Current,
    /// Of an earlier link only.
    Earlier,
}

/// One run of the shared server: the number of its start, from 1. 0: before the first.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Run(u64);

impl Run {
    /// Whether this is the first start of the program.
    pub fn is_first(self) -> bool {
        self.0 == 1
    }
}

impl LinkState {
    /// The link is lost: its registration is one of an earlier link.
    fn lose_registration(&mut self) {
        if self.registration == Registration::Current {
            self.registration = Registration::Earlier;
        }
    }
}

impl EdgeState {
    /// Creates the state without a server or a link. `instances` are the processes of single
    /// sessions.
    pub fn new(instances: Arc<Instances>, log: Arc<ThrottledLog>) -> Arc<Self> {
        Arc::new(Self { tables: Lock::default(), delivering: TaskTracker::new(), instances, log })
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }

    /// Logs a warning about the server, at most [`LOG_WARNINGS`] per `kind`, with the number left
    /// out.
    fn warn_throttled(&self, kind: &'static str, what: &str) {
        self.log.line(log::Level::Warn, kind, LOG_WARNINGS, what);
    }

    /// Whether the gateway has accepted the current registration.
    pub fn is_registered(&self) -> bool {
        self.lock().link.registration == Registration::Current
    }

    /// Whether the gateway has ever accepted a registration of this program.
    pub fn was_registered(&self) -> bool {
        self.lock().link.registration != Registration::Never
    }

    /// Whether the server accepts requests.
    pub fn is_served(&self) -> bool {
        self.lock().server.proxy.is_up()
    }

    /// Whether this is the current run, a restart that has not answered `initialize` yet.
    pub fn is_initializing(&self, run: Run) -> bool {
        let server = &self.lock().server;
        server.run == run && server.proxy.is_initializing()
    }

    /// Returns the current run, or the last one while the server is down.
    pub fn run(&self) -> Run {
        self.lock().server.run
    }

    /// Installs a run of the server that is being started and reads from `input`.
    pub fn started(&self, input: Sender<()>) -> Run {
        let Tables { server, link, .. } = &mut *self.lock();
        match (server.proxy.child_back(), &link.uplink) {
            (ChildStart::Lines(lines), _) => {
                for line in lines {
                    // The queue is new, so it has space.
                    let _ = input.send_unbounded(line);
                }
            }
            (ChildStart::Report(frame), Some(uplink)) => {
                // It is small, at most one per start, and must not be lost.
                let _ = uplink.queue().send_unbounded(frame);
            }
            (ChildStart::Report(_) | ChildStart::Up, _) => {}
        }
        server.input = Some(input);
        server.run = Run(server.run.0 + 1);
        server.run
    }

    /// Handles the end of the server: sends error responses for its open requests to the gateway.
    /// See [`ProxyState::child_gone`].
    pub fn ended(&self, why: &str, due: Option<Instant>) {
        let Tables { server, link, .. } = &mut *self.lock();
        server.input = None;
        for frame in server.proxy.child_gone(why, due) {
            // The responses are small, at most one per open request, and must not be lost.
            if let Some(uplink) = &link.uplink {
                let _ = uplink.queue().send_unbounded(frame);
            }
        }
    }

    /// Applies `read` to the proxy state and sends the resulting lines. Returns the frames to be
    /// delivered.
    fn deliver(&self, run: Run, read: impl FnOnce(&mut ProxyState) -> ToGateway) -> LineOutcome {
        let (up, uplink, delivering) = {
            let Tables { server, link, .. } = &mut *self.lock();
            if server.run != run {
                log::debug!("dropped a line of an earlier process");
                return LineOutcome::Message(Delivery::none());
            }
            let mut up = read(&mut server.proxy);
            if let (ToGateway::Ready { lines, .. }, Some(input)) = (&mut up, &server.input) {
                for line in lines.drain(..) {
                    // At most the held frames; sent under the lock, so that no later message
                    // overtakes them.
                    let _ = input.send_unbounded(line);
                }
            }
            // Counts as being delivered before its call stops counting as running.
            (up, link.uplink.clone(), self.delivering.track())
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
        let Some(uplink) = uplink else {
            if first.is_some() || !more.is_empty() {
                log::debug!("dropped a message of the server: no link");
            }
            return LineOutcome::Message(Delivery::none());
        };
        let mut delivery = Delivery::new(uplink, delivering);
        for frame in first.into_iter().chain(more) {
            if let Err(Some(refusal)) = delivery.add(frame) {
                self.refuse(run, refusal);
            }
        }
        LineOutcome::Message(delivery)
    }

    /// Answers a request of the server on behalf of the gateway.
    fn refuse(&self, run: Run, refusal: String) {
        let server = &self.lock().server;
        if let Some(input) = server.input.as_ref().filter(|_| server.run == run) {
            // Best effort: dropped if the server does not read its input.
            let _ = input.send(refusal);
        }
    }

    /// Handles a frame from the gateway. Returns `None` if the message was queued for the child. If
    /// the child's queue is full or closed, a request is answered with an error.
    pub fn on_gateway_frame(&self, now: Instant, frame: &str) -> Option<ToChild> {
        let server = &mut self.lock().server;
        let (line, input) = match (server.proxy.on_gateway_frame(now, frame), &server.input) {
            (ToChild::Child(line), Some(input)) => (line, input),
            (other, _) => return Some(other),
        };
        let Err((error, line)) = input.try_send(line) else { return None };
        let why = match error {
            SendError::Full | SendError::Memory => NotTaken::Full,
            SendError::Closed => NotTaken::Closed,
        };
        let outcome = server.proxy.not_taken(&line, why);
        if why == NotTaken::Full || matches!(outcome, ToChild::Gateway(_)) {
            let reason = why.reason();
            self.warn_throttled(reason, &format!("rejected a message for the server: {reason}"));
        }
        Some(outcome)
    }

    /// Refuses new requests from now on, also for the per-session processes.
    pub fn stop(&self) {
        self.lock().server.proxy.stop();
        self.instances.stop();
    }

    /// Returns the number of unanswered requests.
    pub fn running(&self) -> usize {
        self.lock().server.proxy.running() + self.instances.running()
    }

    /// Waits until every running call is answered and the responses are queued on the link.
    pub async fn answered(&self) {
        while !self.is_answered() {
            Timer::after(limits::DRAIN_POLL).await;
        }
    }

    /// Whether every running call is answered and the responses are queued on the link.
    pub fn is_answered(&self) -> bool {
        // Check in this order: a response counts as being delivered before its call stops counting
        // as running.
        self.running() == 0 && self.delivering.is_empty() && !self.instances.is_delivering()
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
        let link = &self.lock().link;
        // Check in this order: a frame counts as unacknowledged before it leaves the queue.
        link.uplink.as_ref().is_none_or(|uplink| uplink.queue().is_settled())
            && link.unacknowledged.count() == 0
    }

    /// Closes the current link with code 1001 and prevents further ones.
    pub fn leave(&self, reason: &str) {
        let mut tables = self.lock();
        tables.leaving = true;
        if let Some(uplink) = &tables.link.uplink {
            uplink.queue().end(CloseReason::new(1001, reason));
        }
    }

    /// Installs a new link. Returns false if the program is stopping.
    pub fn link_up(&self, uplink: Uplink, unacknowledged: Unacknowledged) -> bool {
        let mut tables = self.lock();
        tables.link.uplink = Some(uplink);
        tables.link.unacknowledged = unacknowledged;
        !tables.leaving
    }

    /// Whether [`EdgeState::leave`] was called.
    pub fn is_leaving(&self) -> bool {
        self.lock().leaving
    }

    /// Records that the gateway has accepted the registration.
    pub fn registered(&self) {
        self.lock().link.registration = Registration::Current;
    }

    /// Records that the gateway of the current link reads status frames.
    pub fn gateway_reads_status_frames(&self) {
        self.lock().server.proxy.gateway_reads_status_frames();
    }

    /// Records that the gateway of the current link finds out the era of the server.
    pub fn gateway_finds_era(&self) {
        self.lock().server.proxy.gateway_finds_era();
    }

    /// Whether the run, which has ended, got `server/discover` and nothing else.
    pub fn got_only_probe(&self, run: Run) -> bool {
        let server = &self.lock().server;
        server.run == run && server.proxy.got_only_probe()
    }

    /// Returns the log of the program.
    pub fn log(&self) -> &Arc<ThrottledLog> {
        &self.log
    }

    /// Returns the processes of single sessions.
    pub fn instances(&self) -> &Arc<Instances> {
        &self.instances
    }

    /// Marks the link as lost but resumable. Only the health check changes; the rest goes on.
    pub fn suspend(&self) {
        self.lock().link.lose_registration();
    }

    /// Handles the final loss of a link: cancels the open requests at the child and closes all
    /// sessions.
    pub fn link_down(&self) {
        self.instances.close_all();
        let Tables { server, link, .. } = &mut *self.lock();
        (link.uplink, link.unacknowledged) = (None, Unacknowledged::default());
        link.lose_registration();
        for line in server.proxy.disconnected() {
            // Best effort: a server that does not read its input misses the cancellations.
            let _ = server.input.as_ref().map(|input| input.send(line));
        }
    }
}

/// Takes the messages of one run of the shared server.
pub struct SharedSink {
    state: Arc<EdgeState>,
    run: Run,
}

impl SharedSink {
    /// Creates the sink of a run, see [`EdgeState::started`].
    pub fn new(state: Arc<EdgeState>, run: Run) -> Self {
        Self { state, run }
    }
}

impl LineSink for SharedSink {
    fn message(&self, text: &str) -> LineOutcome {
        self.state.deliver(self.run, |proxy| proxy.on_child_line(text))
    }

    fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome {
        self.state.deliver(self.run, |proxy| proxy.unusable(id, why))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_lite::future;

    use super::*;
    use crate::{
        edge::tests::{FakeServers, config},
        jsonrpc,
        net::outbox::{self, Receiver},
    };

    const CALL: &str = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;

    /// The state with a link whose queue holds one frame.
    fn linked() -> (Arc<EdgeState>, Receiver<CloseReason>) {
        let start = FakeServers::new([]).start();
        let state = EdgeState::new(Instances::new(&config(), start, Arc::default()), Arc::default());
        let (queue, frames) = outbox::bounded(1, 1 << 20);
        assert!(state.link_up(Uplink::new(queue, None, Arc::default()), Unacknowledged::default()));
        (state, frames)
    }

    /// Starts a run whose queue holds one message.
    fn start(state: &Arc<EdgeState>) -> (SharedSink, Receiver<()>) {
        let (input, messages) = outbox::bounded(1, 1 << 20);
        (SharedSink::new(state.clone(), state.started(input)), messages)
    }

    fn taken<E: Clone>(queue: &mut Receiver<E>) -> VecDeque<String> {
        let mut taken = VecDeque::new();
        let _ = smol::block_on(future::poll_once(queue.take(&mut taken)));
        taken
    }

    fn delivery(outcome: LineOutcome) -> Delivery {
        match outcome {
            LineOutcome::Message(delivery) => delivery,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_response_counts_until_it_is_queued() {
        let (state, mut frames) = linked();
        let (sink, mut messages) = start(&state);
        assert!(state.on_gateway_frame(Instant::now(), CALL).is_none());
        assert_eq!(taken(&mut messages), [CALL]);
        assert_eq!(state.running(), 1);
        let delivery = delivery(sink.message(ANSWER));
        assert_eq!(state.running(), 0);
        smol::block_on(async {
            assert!(future::poll_once(state.answered()).await.is_none(), "it is not queued yet");
            delivery.finish().await;
            assert!(future::poll_once(state.answered()).await.is_some());
        });
        assert!(!state.is_delivered(), "it is queued and not sent");
        assert_eq!(taken(&mut frames), [ANSWER]);
    }

    #[test]
    fn lines_of_an_earlier_run_are_dropped() {
        let (state, mut frames) = linked();
        let note = r#"{"jsonrpc":"2.0","method":"note"}"#;
        let (earlier, _messages) = start(&state);
        state.ended("it exited", None);
        let (current, mut messages) = start(&state);
        assert!(state.on_gateway_frame(Instant::now(), CALL).is_none());
        smol::block_on(delivery(earlier.message(note)).finish());
        smol::block_on(delivery(earlier.message(ANSWER)).finish());
        assert_eq!((taken(&mut frames).len(), state.running()), (0, 1));
        smol::block_on(delivery(current.message(note)).finish());
        assert_eq!(taken(&mut frames), [note]);
        assert_eq!(taken(&mut messages), [CALL]);
    }

    #[test]
    fn a_request_that_the_server_does_not_take_is_answered() {
        let (state, _frames) = linked();
        let (_sink, messages) = start(&state);
        assert!(state.on_gateway_frame(Instant::now(), CALL).is_none());
        let second = CALL.replace('1', "2");
        let refused = |state: &EdgeState| match state.on_gateway_frame(Instant::now(), &second) {
            Some(ToChild::Gateway(response)) => response,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(&state), jsonrpc::error("2", jsonrpc::BUSY, "the server does not read its input"));
        drop(messages);
        assert_eq!(refused(&state), jsonrpc::error("2", jsonrpc::DOWN, "the server has exited"));
        assert_eq!(state.running(), 1, "the first call alone is open");
    }

    #[test]
    fn a_registration_is_remembered_when_its_link_is_lost() {
        let (state, _frames) = linked();
        let registered = || (state.is_registered(), state.was_registered());
        state.suspend();
        state.link_down();
        assert_eq!(registered(), (false, false));
        state.registered();
        assert_eq!(registered(), (true, true));
        state.suspend();
        assert_eq!(registered(), (false, true));
        state.registered();
        state.link_down();
        assert_eq!(registered(), (false, true));
    }
}
