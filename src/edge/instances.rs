//! A process of its own for each client session (`--sessions isolated`): opened and closed by the gateway, one channel
//! of the link each, and none of them longer than the link.

use std::{
    collections::{HashMap, HashSet},
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use futures_lite::future;
use smol::lock::Semaphore;

use super::{
    backend::stdio::{Channel, Outlet, StdioBackend},
    uplink::Uplink,
};
use crate::{
    config::RegisterConfig,
    edge::proxy::STOPPING,
    jsonrpc::{self, Kind, Message, decimal},
    limits::{EDGE_OPEN, ID_BYTES, LOG_GROUPS},
    log_throttle::LogThrottle,
    net::outbox::{self, Receiver, SendError},
    runtime::{
        shutdown::{Shutdown, ShutdownTrigger},
        task_tracker::TaskTracker,
        tasks::Spawner,
    },
    tunnel::frame,
};

/// All channels of the present link.
#[derive(Debug)]
pub struct Instances {
    config: RegisterConfig,
    table: Mutex<InstanceTable>,
    /// As many processes as may run. One that is being ended still counts.
    permits: Semaphore,
    tasks: TaskTracker,
    spawner: Spawner,
    /// Limits how often lines that the gateway can cause at will are logged.
    throttle: Mutex<LogThrottle>,
}

#[derive(Debug, Default)]
struct InstanceTable {
    open: HashMap<u32, OpenInstance>,
    /// Sessions begun so far: the next link gives the same numbers again, while those of this one may still be ending.
    begun: u64,
    /// New sessions and new requests are refused.
    stopping: bool,
}

/// The requests that the process of one session has not answered, by id.
#[derive(Clone, Debug, Default)]
pub struct OpenRequests(Arc<Mutex<HashSet<String>>>);

impl OpenRequests {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        // Each change is complete in itself, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: &str) {
        let mut open = self.lock();
        // The gateway bounds both; one that does not only loses the wait for a call when we stop.
        if open.len() < EDGE_OPEN && id.len() <= ID_BYTES {
            open.insert(id.to_owned());
        }
    }

    /// A request was answered or cancelled. Servers may write the number of its id in another form. Gives the id as it
    /// was sent; `None`: there is no such request.
    pub fn remove(&self, id: &str) -> Option<String> {
        let mut open = self.lock();
        let number = decimal(id).map(|number| number.to_string());
        let text = number.as_ref().map(|number| format!("\"{number}\""));
        [Some(id.to_owned()), number, text].into_iter().flatten().find(|id| open.remove(id))
    }

    /// Takes out the only request without an answer.
    pub fn remove_only(&self) -> Option<String> {
        let mut open = self.lock();
        let only = open.iter().next().filter(|_| open.len() == 1).cloned()?;
        open.remove(&only);
        Some(only)
    }

    fn len(&self) -> usize {
        self.lock().len()
    }
}

#[derive(Debug)]
struct OpenInstance {
    begun: u64,
    input: outbox::Sender<()>,
    calls: OpenRequests,
    /// Dropping it ends the process.
    _stop: ShutdownTrigger,
}

/// What the task of one session has.
struct Instance {
    number: u32,
    begun: u64,
    calls: OpenRequests,
    input: outbox::Sender<()>,
    lines: Receiver<()>,
    stopped: Shutdown,
    link: Uplink,
}

impl Instances {
    /// No session so far. When the group of `spawner` goes, it takes the processes with it.
    pub fn new(config: &RegisterConfig, spawner: Spawner) -> Arc<Self> {
        let room = Semaphore::new(config.sessions.unwrap_or_default() as usize);
        let (table, crew, throttle) = (Mutex::default(), TaskTracker::new(), Mutex::default());
        Arc::new(Self { config: config.clone(), table, permits: room, tasks: crew, spawner, throttle })
    }

    fn table(&self) -> MutexGuard<'_, InstanceTable> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs what the gateway can cause as often as it likes.
    fn log(&self, level: log::Level, kind: &'static str, line: impl Display) {
        let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left_out) = throttle.due(Instant::now(), kind, "", LOG_GROUPS) {
            log::log!(level, "{line}{left_out}");
        }
    }

    /// The gateway opens a channel: its process starts as soon as there is room, or the gateway is told why not.
    ///
    /// # Errors
    /// The link takes no more: the gateway asks and does not read.
    pub fn start(self: &Arc<Self>, number: u32, link: &Uplink) -> Result<(), SendError> {
        let (input, lines) = StdioBackend::queue(&self.config);
        let (stop, stopped) = crate::runtime::shutdown::shutdown();
        let calls = OpenRequests::default();
        let begun = {
            let mut table = self.table();
            if table.stopping {
                return link.queue().send_reserved(frame::close(number, STOPPING));
            }
            if table.open.len() >= self.config.sessions.unwrap_or_default() as usize {
                let why = "the edge runs as many sessions as it may (--max-sessions)";
                let line = format_args!("session {number} is not started: {why}");
                self.log(log::Level::Warn, "not_started", line);
                return link.queue().send_reserved(frame::close(number, why));
            }
            table.begun += 1;
            let begun = table.begun;
            table.open.insert(
                number,
                OpenInstance { begun, input: input.clone(), calls: calls.clone(), _stop: stop },
            );
            begun
        };
        let session = Instance { number, begun, calls, input, lines, stopped, link: link.clone() };
        let (sessions, badge) = (self.clone(), self.tasks.track());
        let life = async move {
            let _held = badge;
            sessions.run(session).await;
        };
        self.spawner.spawn(life, || log::error!("a session ended in a panic; the others go on"));
        Ok(())
    }

    async fn run(&self, session: Instance) {
        let (number, begun, link) = (session.number, session.begun, session.link.clone());
        let ended = self.serve(session).await;
        {
            let mut table = self.table();
            if table.open.get(&number).is_none_or(|open| open.begun != begun) {
                return;
            }
            table.open.remove(&number);
        }
        if let Some(why) = ended {
            self.log(log::Level::Info, "ends", format_args!("session {number} ends: {why}"));
            // When the link is gone, nobody needs to be told.
            let _ = link.queue().send_wait(frame::close(number, &why)).await;
        }
    }

    /// Runs the process of a session. `None`: it was stopped; otherwise why it ended or could not begin.
    async fn serve(&self, session: Instance) -> Option<String> {
        let Instance { number, calls, input, lines, stopped, link, .. } = session;
        // Those that were there before may not have ended yet, and never need long for that.
        let _room = unless_stopped(&stopped, self.permits.acquire()).await?;
        let outlet = Outlet::Channel(Channel { number, link, calls, input: input.clone() });
        let mut server = match StdioBackend::start(&self.config, outlet, input, lines) {
            Ok(server) => server,
            Err(fault) => return Some(fault.to_string()),
        };
        let limits = &self.config.limits.child;
        let ended = unless_stopped(&stopped, server.ended(limits)).await;
        let exit = server.stop(limits).await;
        Some(ended?.unwrap_or_else(|| exit.to_string()))
    }

    /// A message for a session's process.
    ///
    /// # Errors
    /// The link takes no more: the gateway asks and does not read.
    pub fn message(&self, number: u32, text: &str, link: &Uplink) -> Result<(), SendError> {
        let (stopping, open) = {
            let table = self.table();
            let open = table.open.get(&number).map(|open| (open.input.clone(), open.calls.clone()));
            (table.stopping, open)
        };
        let Some((input, calls)) = open else { return Ok(()) };
        let Ok(message) = Message::read(text) else { return Ok(()) };
        match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) if stopping => {
                let refusal = jsonrpc::error(id, jsonrpc::DOWN, STOPPING);
                return link.queue().send_reserved(frame::message(number, &refusal));
            }
            (Kind::Request, Some(id)) => calls.add(id),
            (Kind::Notification, _) if message.method() == "notifications/cancelled" => {
                if let Ok(Some(id)) = message.param(&["requestId"]) {
                    calls.remove(&text[id]);
                }
            }
            _ => {}
        }
        match input.send(message.splice(&[])) {
            // Of a process that has ended the gateway is about to be told, with how it ended; that answers its calls.
            Ok(()) | Err(SendError::Closed) => return Ok(()),
            Err(SendError::Full | SendError::Memory) => {}
        }
        let busy = "the server does not read its input";
        let line = format_args!("a message for session {number} is turned away: {busy}");
        self.log(log::Level::Warn, "turned_away", line);
        match (message.kind(), message.id()) {
            (Kind::Request, Some(id)) => {
                calls.remove(id);
                link.queue().send_reserved(frame::message(number, &jsonrpc::error(id, jsonrpc::BUSY, busy)))
            }
            _ => Ok(()),
        }
    }

    /// The gateway closes a channel: its process is ended.
    pub fn close(&self, number: u32) {
        self.table().open.remove(&number);
    }

    /// Refuses new sessions and new requests from now on.
    pub fn stop(&self) {
        self.table().stopping = true;
    }

    /// Number of requests without an answer, of all sessions.
    pub fn running(&self) -> usize {
        self.table().open.values().map(|open| open.calls.len()).sum()
    }

    /// The link is gone, and all sessions with it.
    pub fn close_all(&self) {
        self.table().open.clear();
    }

    /// Waits until no process is left.
    pub async fn gone(&self) {
        self.tasks.wait_idle().await;
    }
}

/// Waits for something unless it is to be stopped before.
pub(super) async fn unless_stopped<T>(stopped: &Shutdown, wanted: impl Future<Output = T>) -> Option<T> {
    let stopped = async {
        stopped.wait().await;
        None
    };
    future::or(stopped, async { Some(wanted.await) }).await
}
