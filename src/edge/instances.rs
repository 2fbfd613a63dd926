//! One process per client session (`--sessions isolated`). The gateway opens and closes each on its
//! own channel of the link; none outlives the link.
//!
//! The process starts when its session first uses the server and ends with the session. If it exits
//! before, the session's calls fail and the process is not restarted.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, MutexGuard},
};

use smol::lock::Semaphore;

use super::{
    backend::{self, BackendEnd, BackendIo, Delivery, LineOutcome, LineSink, StartBackend},
    open_requests::OpenRequests,
    throttled_log::ThrottledLog,
    uplink::Uplink,
};
use crate::{
    config::RegisterConfig,
    edge::proxy::STOPPING,
    jsonrpc::{self, Kind, Message},
    limits::{LOG_GROUPS, Limits},
    net::outbox::{self, Receiver, SendError},
    runtime::{
        lock::Lock,
        shutdown::{Shutdown, ShutdownTrigger},
        task_tracker::{TaskGuard, TaskTracker},
    },
    tunnel::frame,
};

/// All channels of the current link.
pub struct Instances {
    limits: Limits,
    /// Most sessions at a time.
    max: usize,
    start: StartBackend,
    table: Lock<InstanceTable>,
    /// One permit per running process, up to `--max-sessions`. A process that is being stopped
    /// keeps its permit.
    permits: Semaphore,
    /// One guard for each [`Instance`].
    tasks: TaskTracker,
    /// One guard for each message of a process that waits for space in the queue of the link.
    delivering: TaskTracker,
    log: Arc<ThrottledLog>,
}

#[derive(Debug, Default)]
struct InstanceTable {
    open: HashMap<u32, OpenInstance>,
    /// Number of sessions started so far. It tells sessions with the same channel number apart: the
    /// next link reuses the numbers while sessions of this one may still be ending.
    begun: u64,
    /// New sessions and new requests are refused.
    stopping: bool,
}

/// The channel of one session's process.
#[derive(Debug)]
struct Channel {
    uplink: Uplink,
    /// The requests that the process has not answered.
    calls: OpenRequests,
    /// The stdin queue of the process.
    input: outbox::Sender<()>,
}

#[derive(Debug)]
struct OpenInstance {
    begun: u64,
    channel: Arc<Channel>,
    /// Dropping it stops the process.
    _stop: ShutdownTrigger,
}

/// One session with a process of its own. Its channel is open, and its process starts in
/// [`Instance::run`].
pub struct Instance {
    instances: Arc<Instances>,
    number: u32,
    begun: u64,
    channel: Arc<Channel>,
    messages: Receiver<()>,
    stopped: Shutdown,
    _task: TaskGuard,
}

/// Starts the task of an instance.
pub type Spawn = Arc<dyn Fn(Instance) + Send + Sync>;

/// Takes the messages of one session's process.
struct InstanceSink {
    channel: Arc<Channel>,
    delivering: TaskTracker,
}

impl InstanceSink {
    /// Sends a message of the process to the gateway. `guard` counts it.
    fn send(&self, text: String, guard: TaskGuard) -> LineOutcome {
        let Channel { uplink, input, .. } = &*self.channel;
        let mut delivery = Delivery::new(uplink.clone(), guard);
        if let Err(Some(refusal)) = delivery.add(text) {
            // Best effort: dropped if the server does not read its input.
            let _ = input.send(refusal);
        }
        LineOutcome::Message(delivery)
    }
}

impl LineSink for InstanceSink {
    fn message(&self, text: &str) -> LineOutcome {
        let Ok(message) = Message::read(text) else { return LineOutcome::Noise };
        // Counts as being delivered before its call stops counting as running.
        let guard = self.delivering.track();
        if let (Kind::Response, Some(id)) = (message.kind(), message.id()) {
            self.channel.calls.remove(id);
        }
        self.send(message.splice(&[]), guard)
    }

    fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome {
        let (calls, guard) = (&self.channel.calls, self.delivering.track());
        let known = id.map_or_else(|| calls.remove_only(), |id| calls.remove(id));
        match known {
            Some(id) => self.send(jsonrpc::error(&id, jsonrpc::INTERNAL_ERROR, why), guard),
            None => LineOutcome::Noise,
        }
    }
}

impl Instances {
    /// Creates an empty table. `start` starts the process of a session.
    pub fn new(config: &RegisterConfig, start: StartBackend, log: Arc<ThrottledLog>) -> Arc<Self> {
        let max = config.sessions.unwrap_or_default() as usize;
        Arc::new(Self {
            limits: config.limits.clone(),
            max,
            start,
            table: Lock::default(),
            permits: Semaphore::new(max),
            tasks: TaskTracker::new(),
            delivering: TaskTracker::new(),
            log,
        })
    }

    fn table(&self) -> MutexGuard<'_, InstanceTable> {
        self.table.lock()
    }

    /// Writes a throttled log line, for events that the gateway can trigger at will.
    fn log(&self, level: log::Level, kind: &'static str, line: impl Display) {
        self.log.line(level, kind, LOG_GROUPS, line);
    }

    /// Opens a channel for the gateway. The caller runs the instance in a task of its own. Returns
    /// `None` if the channel is closed at once, with the reason.
    ///
    /// # Errors
    /// The queue of the link is full: the gateway sends requests and does not read.
    pub fn open(self: &Arc<Self>, number: u32, link: &Uplink) -> Result<Option<Instance>, SendError> {
        let (input, messages) = backend::queue(&self.limits);
        let (stop, stopped) = crate::runtime::shutdown::shutdown();
        let (uplink, calls) = (link.on_channel(number), OpenRequests::default());
        let channel = Arc::new(Channel { uplink, calls, input });
        let begun = {
            let mut table = self.table();
            if table.stopping {
                link.queue().send_reserved(frame::close(number, STOPPING))?;
                return Ok(None);
            }
            if table.open.len() >= self.max {
                let why = "the edge has reached its session limit (--max-sessions)";
                let line = format_args!("session {number} not started: {why}");
                self.log(log::Level::Warn, "not_started", line);
                link.queue().send_reserved(frame::close(number, why))?;
                return Ok(None);
            }
            table.begun += 1;
            let begun = table.begun;
            table.open.insert(number, OpenInstance { begun, channel: channel.clone(), _stop: stop });
            begun
        };
        let (instances, task) = (self.clone(), self.tasks.track());
        Ok(Some(Instance { instances, number, begun, channel, messages, stopped, _task: task }))
    }

    /// Runs the process of a session. Returns `None` if it was stopped, otherwise why it exited or
    /// could not start.
    async fn serve(
        &self,
        channel: Arc<Channel>,
        messages: Receiver<()>,
        stopped: Shutdown,
    ) -> Option<String> {
        // Processes of closed sessions may still be stopping and holding permits; stopping takes a
        // bounded time.
        let _room = stopped.race(self.permits.acquire()).await?;
        let input = channel.input.clone();
        let sink = Arc::new(InstanceSink { channel, delivering: self.delivering.clone() });
        let mut server = match (self.start)(BackendIo { input, messages, sink }) {
            Ok(server) => server,
            Err(fault) => return Some(fault.to_string()),
        };
        let ended = stopped.race(server.ended()).await;
        let exit = server.stop().await;
        Some(match ended? {
            BackendEnd::Unusable(why) => why,
            BackendEnd::Exited => exit.brief,
        })
    }

    /// Sends a message to a session's process.
    ///
    /// # Errors
    /// The queue of the link is full: the gateway sends requests and does not read.
    pub fn message(&self, number: u32, text: &str) -> Result<(), SendError> {
        let (stopping, open) = {
            let table = self.table();
            (table.stopping, table.open.get(&number).map(|open| open.channel.clone()))
        };
        let Some(channel) = open else { return Ok(()) };
        let Channel { uplink, calls, input } = &*channel;
        let Ok(message) = Message::read(text) else { return Ok(()) };
        match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) if stopping => {
                return uplink.send_error(jsonrpc::error(id, jsonrpc::DOWN, STOPPING));
            }
            (Kind::Request, _) => calls.add(&message),
            (Kind::Notification, _) if message.method() == "notifications/cancelled" => {
                if let Ok(Some(id)) = message.param(&["requestId"]) {
                    calls.remove(&text[id]);
                }
            }
            _ => {}
        }
        match input.send(message.splice(&[])) {
            // If the process has exited, the close frame with its exit status follows and fails its
            // calls.
            Ok(()) | Err(SendError::Closed) => return Ok(()),
            Err(SendError::Full | SendError::Memory) => {}
        }
        let busy = "the server does not read its input";
        let line = format_args!("rejected a message for session {number}: {busy}");
        self.log(log::Level::Warn, "turned_away", line);
        match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) => {
                calls.remove(id);
                uplink.send_error(jsonrpc::error(id, jsonrpc::BUSY, busy))
            }
            _ => Ok(()),
        }
    }

    /// Closes a channel for the gateway, which stops its process.
    pub fn close(&self, number: u32) {
        self.table().open.remove(&number);
    }

    /// Refuses new sessions and new requests from now on.
    pub fn stop(&self) {
        self.table().stopping = true;
    }

    /// Returns the number of unanswered requests in all sessions.
    pub fn running(&self) -> usize {
        self.table().open.values().map(|open| open.channel.calls.len()).sum()
    }

    /// Whether a message of a process waits for space in the queue of the link.
    pub fn is_delivering(&self) -> bool {
        !self.delivering.is_empty()
    }

    /// Closes all sessions; called when the link is gone.
    pub fn close_all(&self) {
        self.table().open.clear();
    }

    /// Waits until all processes have ended.
    pub async fn gone(&self) {
        self.tasks.wait_idle().await;
    }
}

impl Instance {
    /// Runs the session's process as soon as a permit is free, until one of them ends. If the process
    /// ends first, closes the channel with the reason. Dropping the future kills the process.
    pub async fn run(self) {
        let Self { instances, number, begun, channel, messages, stopped, _task } = self;
        let ended = instances.serve(channel.clone(), messages, stopped).await;
        {
            let mut table = instances.table();
            if table.open.get(&number).is_none_or(|open| open.begun != begun) {
                return;
            }
            table.open.remove(&number);
        }
        if let Some(why) = ended {
            instances.log(log::Level::Info, "ends", format_args!("session {number} ended: {why}"));
            // Fails only if the link is gone, and then there is nobody to notify.
            let _ = channel.uplink.queue().send_wait(frame::close(number, &why)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_lite::future;

    use super::*;
    use crate::{
        edge::tests::{Behaviour, FakeServers, config},
        net::outbox::Received,
        runtime::tasks::TaskGroup,
    };

    /// A call counts as running or as being delivered until its response is on the queue.
    #[test]
    fn a_response_counts_until_it_is_queued() {
        let (config, group) = (RegisterConfig { sessions: Some(1), ..config() }, TaskGroup::new());
        let servers = FakeServers::new([Behaviour::Serves]);
        let instances = Instances::new(&config, servers.start(), Arc::default());
        let (queue, mut frames) = outbox::bounded(1, 1 << 20);
        let link = Uplink::new(queue, None, Arc::default());
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#;
        smol::block_on(group.run(async {
            let instance = instances.open(7, &link).unwrap().unwrap();
            group.spawner().spawn(instance.run(), || panic!("the task of the instance panicked"));
            instances.message(7, call).unwrap();
            let mut server = servers.next().await;
            assert_eq!(server.next_message().await, call);
            assert_eq!((instances.running(), instances.is_delivering()), (1, false));
            let responses =
                [r#"{"jsonrpc":"2.0","id":1,"result":{}}"#.to_owned(), jsonrpc::error("2", 1, "x")];
            for (number, response) in responses.iter().enumerate() {
                let LineOutcome::Message(delivery) = server.sink.message(response) else {
                    panic!("{response}")
                };
                assert_eq!((instances.running(), instances.is_delivering()), (0, true));
                let mut delivered = Box::pin(delivery.finish());
                let mut sent = VecDeque::new();
                if number == 1 {
                    assert!(future::poll_once(delivered.as_mut()).await.is_none(), "the queue is full");
                    assert!(instances.is_delivering());
                    assert_eq!(frames.take(&mut sent).await, Received::Some);
                    assert_eq!(sent, [frame::message(7, &responses[0])]);
                }
                delivered.await;
                assert!(!instances.is_delivering());
            }
        }));
    }

    #[test]
    fn an_unusable_response_fails_the_open_request() {
        let (config, group) = (RegisterConfig { sessions: Some(1), ..config() }, TaskGroup::new());
        let servers = FakeServers::new([Behaviour::Serves]);
        let instances = Instances::new(&config, servers.start(), Arc::default());
        let (queue, mut frames) = outbox::bounded(8, 1 << 20);
        let link = Uplink::new(queue, None, Arc::default());
        smol::block_on(group.run(async {
            let instance = instances.open(7, &link).unwrap().unwrap();
            group.spawner().spawn(instance.run(), || panic!("the task of the instance panicked"));
            let server = servers.next().await;
            assert!(matches!(server.sink.unusable(None, "x"), LineOutcome::Noise));
            instances.message(7, r#"{"jsonrpc":"2.0","id":5,"method":"m"}"#).unwrap();
            assert!(matches!(server.sink.unusable(Some("6"), "x"), LineOutcome::Noise));
            let LineOutcome::Message(delivery) = server.sink.unusable(None, "too large") else {
                panic!("one is open")
            };
            assert_eq!((instances.running(), instances.is_delivering()), (0, true));
            delivery.finish().await;
            let mut sent = VecDeque::new();
            assert_eq!(frames.take(&mut sent).await, Received::Some);
            let error = jsonrpc::error("5", jsonrpc::INTERNAL_ERROR, "too large");
            assert_eq!(sent, [frame::message(7, &error)]);
            assert!(matches!(server.sink.message("no message"), LineOutcome::Noise));
        }));
    }
}
