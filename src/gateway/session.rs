//! A client session, as the rest of the gateway sees it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{responder::StreamResponder, streams::Streams};
use crate::{
    auth::Principal,
    hub::{doors::Responder, key::InstanceKey},
    jsonrpc::quote,
    limits::SessionLimits,
    mcp::{LATEST, log_level::Level},
    metrics::Stats,
    net::{
        budget::{Account, Charge},
        outbox::SendError,
    },
    session::{Calls, PendingServerRequests},
    util,
};

/// The servers that a client sees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// All servers, under exposed names.
    All,
    /// One server, under its own names.
    Server(String),
}

/// The client's `initialize` params, and the state negotiated with it.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// When the session was initialized.
    pub initialized: Option<Instant>,
    /// The negotiated protocol version.
    pub version: String,
    /// The lowest level of log messages that the client wants.
    pub level: Option<Level>,
    /// Its `capabilities`, raw JSON, for its isolated instances.
    pub capabilities: String,
    /// Its `clientInfo`, raw JSON, likewise.
    pub info: String,
}

impl ClientInfo {
    /// Returns the `initialize` params for its isolated instances.
    pub fn initialize_params(&self) -> String {
        let (version, capabilities, info) = (quote(&self.version), &self.capabilities, &self.info);
        format!("{{\"protocolVersion\":{version},\"capabilities\":{capabilities},\"clientInfo\":{info}}}")
    }
}

/// Memory charges held for the lifetime of a session.
#[derive(Debug)]
pub struct SessionCharges {
    /// For its [`ClientInfo`].
    pub info: Charge,
    /// For its subscriptions.
    pub subscriptions: Charge,
}

/// The isolated instances of a session.
#[derive(Debug, Default)]
pub struct SessionInstances {
    /// By server name.
    pub by_server: HashMap<String, InstanceKey>,
    /// Whether the session has ended; no more instances are added then.
    pub ended: bool,
}

impl SessionInstances {
    /// Returns all instances.
    pub fn all(&self) -> Vec<InstanceKey> {
        self.by_server.values().copied().collect()
    }
}

/// A client session.
#[derive(Debug)]
pub struct Session {
    id: String,
    principal: Principal,
    /// The account that pays for the bytes buffered for it.
    account: Account,
    scope: Scope,
    /// Whether it uses the 2024-11-05 transport, with one event stream for everything. Otherwise
    /// responses go to the POST that carried the request.
    legacy: bool,
    /// Where messages that belong to no request go, and in the 2024-11-05 transport everything
    /// else too.
    outbox: Arc<StreamResponder>,
    calls: Mutex<Calls<InstanceKey>>,
    info: Mutex<ClientInfo>,
    charges: Mutex<SessionCharges>,
    streams: Streams,
    instances: Mutex<SessionInstances>,
    /// Requests of servers that wait for the client's response.
    server_requests: Mutex<PendingServerRequests<InstanceKey>>,
}

impl Session {
    /// Creates a session; `outbox` takes the messages that belong to no request.
    pub fn new(
        id: String,
        (principal, account): (Principal, Account),
        scope: Scope,
        legacy: bool,
        outbox: StreamResponder,
        limits: &SessionLimits,
    ) -> Arc<Self> {
        let (capabilities, info) = ("{}".into(), "{}".into());
        let client_info =
            ClientInfo { initialized: None, version: LATEST.into(), level: None, capabilities, info };
        let calls = Mutex::new(Calls::new(limits));
        let (client_info, streams) = (Mutex::new(client_info), Streams::new(limits, &account));
        let paid = Mutex::new(SessionCharges { info: account.charge(), subscriptions: account.charge() });
        let (instances, server_requests) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            id,
            principal,
            account,
            scope,
            legacy,
            outbox: Arc::new(outbox),
            calls,
            info: client_info,
            charges: paid,
            streams,
            instances,
            server_requests,
        })
    }

    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the principal that owns the session.
    pub fn principal(&self) -> Principal {
        self.principal
    }

    /// Returns the account that pays for the bytes buffered for it.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the servers that it sees.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns whether it uses the 2024-11-05 transport.
    pub fn is_legacy(&self) -> bool {
        self.legacy
    }

    /// Returns its event streams, for the Streamable transport.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Returns whether it has open streams or running calls.
    pub fn is_busy(&self) -> bool {
        self.open_streams() > 0 || !self.calls().is_empty()
    }

    /// Returns the number of open event streams.
    pub fn open_streams(&self) -> usize {
        if self.legacy { 1 } else { self.streams.attached() }
    }

    /// Returns where the responses to its requests go in the 2024-11-05 transport.
    pub fn responder(&self) -> Arc<dyn Responder> {
        self.outbox.clone()
    }

    /// Queues a message that belongs to no request. In the Streamable transport such a message is
    /// dropped unless the client has opened the standalone stream.
    pub fn send(&self, message: String, stats: &Stats) {
        if (self.legacy || self.streams.was_listened_to()) && !self.keep(message, stats) {
            // The stream is parked or not read; the session continues without this message.
            log::debug!("client {}: dropped a message: its stream is full", self.name());
        }
    }

    /// Queues a notification as [`Session::send`] does, unless an identical one is already queued.
    pub fn notify(&self, notice: &str, stats: &Stats) {
        if !self.outbox.queue().has(notice) {
            self.send(notice.to_owned(), stats);
        }
    }

    /// Queues a message even if no client listens yet: a server's request, which needs an answer.
    /// Returns false if there is no room for it. On the 2024-11-05 transport the stream ends
    /// instead.
    pub fn keep(&self, message: String, stats: &Stats) -> bool {
        if self.legacy {
            self.outbox.send(message, stats);
            return true;
        }
        !matches!(self.outbox.queue().send(message), Err(SendError::Full | SendError::Memory))
    }

    /// Ends the client's event stream after the queued messages.
    pub fn end(&self) {
        self.outbox.queue().end(());
    }

    // These ignore lock poisoning: each change of a table is complete in itself, so a panic
    // elsewhere does not corrupt it.

    /// Returns the running calls.
    pub fn calls(&self) -> MutexGuard<'_, Calls<InstanceKey>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the client's data from `initialize`.
    pub fn info(&self) -> MutexGuard<'_, ClientInfo> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the session's memory charges.
    pub fn charges(&self) -> MutexGuard<'_, SessionCharges> {
        self.charges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns its isolated instances.
    pub fn instances(&self) -> MutexGuard<'_, SessionInstances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the requests of servers that wait for the client's response.
    pub fn server_requests(&self) -> MutexGuard<'_, PendingServerRequests<InstanceKey>> {
        self.server_requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the session as initialized with this version. Returns false if it already was.
    pub fn initialized(&self, version: &str) -> bool {
        let mut client_info = self.info();
        if client_info.initialized.is_some() {
            return false;
        }
        version.clone_into(&mut client_info.version);
        client_info.initialized = Some(Instant::now());
        true
    }

    /// Returns whether the session is initialized, so that notifications may be sent.
    pub fn is_initialized(&self) -> bool {
        self.initialized_at().is_some()
    }

    /// Returns when the session was initialized.
    pub fn initialized_at(&self) -> Option<Instant> {
        self.info().initialized
    }

    /// Returns the session's name for logs: the first 6 characters of the id, since the whole is a
    /// secret.
    pub fn name(&self) -> util::escape::Shown<'_> {
        util::escape::show(self.id.get(..6).unwrap_or_default())
    }
}
