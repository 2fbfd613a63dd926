//! A connected client, as the rest of the gateway sees it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{responder::Responder, streams::Streams, upstream::Upstream};
use crate::{
    auth::Principal,
    jsonrpc::quote,
    limits::SessionLimits,
    mcp::{LATEST, log_level::Level},
    metrics::Stats,
    net::{
        budget::{Account, Charge},
        outbox::{SendError, Sender},
    },
    session::{Calls, PendingServerRequests},
    util,
};

/// What a client sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// All servers, under exposed names.
    All,
    /// One server, as it is.
    Server(String),
}

/// What a client said about itself in `initialize`.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// When the session was initialized.
    pub initialized: Option<Instant>,
    /// The negotiated protocol version.
    pub version: String,
    /// From which level it wants log messages.
    pub level: Option<Level>,
    /// Its capabilities and its name, raw, for the processes of its own.
    pub capabilities: String,
    /// See `capabilities`.
    pub info: String,
}

impl ClientInfo {
    /// What a process of its own is told in `initialize`.
    pub fn initialize_params(&self) -> String {
        let (version, capabilities, info) = (quote(&self.version), &self.capabilities, &self.info);
        format!("{{\"protocolVersion\":{version},\"capabilities\":{capabilities},\"clientInfo\":{info}}}")
    }
}

/// Charges for what is kept of a session as long as it lives.
#[derive(Debug)]
pub struct SessionCharges {
    /// For what it said of itself.
    pub info: Charge,
    /// For its subscriptions.
    pub subscriptions: Charge,
}

/// The processes of a session's own.
#[derive(Debug, Default)]
pub struct SessionInstances {
    /// By the name of the server.
    pub by_server: HashMap<String, Arc<Upstream>>,
    /// The session has ended, and gets no more.
    pub ended: bool,
}

impl SessionInstances {
    /// All of them.
    pub fn all(&self) -> Vec<Arc<Upstream>> {
        self.by_server.values().cloned().collect()
    }
}

/// One client session.
#[derive(Debug)]
pub struct Session {
    id: String,
    principal: Principal,
    /// Where the bytes that are kept for it come from.
    account: Account,
    scope: Scope,
    /// It has one event stream for everything (2024-11-05); otherwise answers go to the POST that asked.
    legacy: bool,
    /// Messages that belong to no request.
    outbox: Sender<()>,
    /// See [`SessionLimits::queue_burst`].
    burst: usize,
    calls: Mutex<Calls<Arc<Upstream>>>,
    info: Mutex<ClientInfo>,
    paid: Mutex<SessionCharges>,
    streams: Streams,
    instances: Mutex<SessionInstances>,
    /// What they ask it.
    server_requests: Mutex<PendingServerRequests<Arc<Upstream>>>,
}

impl Session {
    /// A client; `outbox` takes what belongs to no request.
    pub fn new(
        id: String,
        (principal, account): (Principal, Account),
        scope: Scope,
        legacy: bool,
        outbox: Sender<()>,
        limits: &SessionLimits,
    ) -> Arc<Self> {
        let (capabilities, info) = ("{}".into(), "{}".into());
        let facts = ClientInfo { initialized: None, version: LATEST.into(), level: None, capabilities, info };
        let calls = Mutex::new(Calls::new(limits));
        let (facts, streams) = (Mutex::new(facts), Streams::new(limits, &account));
        let paid = Mutex::new(SessionCharges { info: account.charge(), subscriptions: account.charge() });
        let (own, asks) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            id,
            principal,
            account,
            scope,
            legacy,
            outbox,
            burst: limits.queue_burst,
            calls,
            info: facts,
            paid,
            streams,
            instances: own,
            server_requests: asks,
        })
    }

    /// The session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whose session it is.
    pub fn principal(&self) -> Principal {
        self.principal
    }

    /// Where the bytes that are kept for it come from.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// What it sees.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whether it speaks the 2024-11-05 transport.
    pub fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// Its streams, for the Streamable transport.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Whether it has something under way.
    pub fn is_busy(&self) -> bool {
        self.open_streams() > 0 || !self.calls().is_empty()
    }

    /// How many event streams are open.
    pub fn open_streams(&self) -> usize {
        if self.legacy { 1 } else { self.streams.attached() }
    }

    /// The way back that does not belong to a request.
    pub fn outbox(&self) -> Responder {
        Responder::stream(self.outbox.clone(), self.burst)
    }

    /// Queues a message that belongs to no request. In the Streamable transport a client has to ask for the stream of
    /// such messages; before it does, they are for nobody.
    pub fn send(&self, message: String, stats: &Stats) {
        if (self.legacy || self.streams.was_listened_to()) && !self.keep(message, stats) {
            // Its stream rests, or is not read; the session goes on without this message.
            log::debug!("client {}: a message found no room on its stream", self.name());
        }
    }

    /// Queues a notice as [`Session::send`] does, unless the same notice waits to be read already.
    pub fn notice(&self, notice: &str, stats: &Stats) {
        if !self.outbox.has(notice) {
            self.send(notice.to_owned(), stats);
        }
    }

    /// Queues a message even if nobody listens yet: a question, which somebody waits to have answered. False: there is
    /// no room for it.
    pub fn keep(&self, message: String, stats: &Stats) -> bool {
        if self.legacy {
            self.outbox().send(message, stats);
            return true;
        }
        !matches!(self.outbox.send(message), Err(SendError::Full | SendError::Memory))
    }

    /// Ends the client's event stream, after what is queued.
    pub fn end(&self) {
        self.outbox.end(());
    }

    // Each change of these tables is complete in itself, so a panic elsewhere does not spoil them.

    /// The calls under way.
    pub fn calls(&self) -> MutexGuard<'_, Calls<Arc<Upstream>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the client.
    pub fn info(&self) -> MutexGuard<'_, ClientInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is charged for it.
    pub fn paid(&self) -> MutexGuard<'_, SessionCharges> {
        self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes of its own.
    pub fn instances(&self) -> MutexGuard<'_, SessionInstances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What they ask it.
    pub fn server_requests(&self) -> MutexGuard<'_, PendingServerRequests<Arc<Upstream>>> {
        self.server_requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session is initialized with this version. False when it was before.
    pub fn initialized(&self, version: &str) -> bool {
        let mut facts = self.info();
        if facts.initialized.is_some() {
            return false;
        }
        version.clone_into(&mut facts.version);
        facts.initialized = Some(Instant::now());
        true
    }

    /// Whether notifications may be sent to it.
    pub fn is_initialized(&self) -> bool {
        self.initialized_at().is_some()
    }

    /// When it was initialized.
    pub fn initialized_at(&self) -> Option<Instant> {
        self.info().initialized
    }

    /// The session's name in a log: a part of the id, since the whole of it is a secret.
    pub fn name(&self) -> util::escape::Shown<'_> {
        util::escape::show(self.id.get(..6).unwrap_or_default())
    }
}
