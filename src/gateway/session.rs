//! A client session, as the rest of the gateway sees it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{responder::StreamResponder, session_stream::SessionStreams, streams::Streams};
use crate::{
    auth::Principal,
    budget::{Account, Charge},
    hub::{
        key::InstanceKey,
        peers::{Responder, SessionStream},
        session::Scope,
    },
    jsonrpc::quote,
    limits::SessionLimits,
    mcp::{LATEST, log_level::Level},
    session::{Calls, PendingServerRequests},
    util,
};

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
    calls: Mutex<Calls<InstanceKey>>,
    info: Mutex<ClientInfo>,
    charges: Mutex<SessionCharges>,
    streams: Arc<SessionStreams>,
    instances: Mutex<SessionInstances>,
    /// Requests of servers that wait for the client's response.
    server_requests: Mutex<PendingServerRequests<InstanceKey>>,
}

impl Session {
    /// Creates a session. `legacy`: it uses the 2024-11-05 transport. `outbox` takes the messages
    /// that belong to no request.
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
        let client_info = Mutex::new(client_info);
        let streams = Arc::new(SessionStreams::new(name_of(&id), legacy, outbox, &account, limits));
        let paid = Mutex::new(SessionCharges { info: account.charge(), subscriptions: account.charge() });
        let (instances, server_requests) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            id,
            principal,
            account,
            scope,
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
        self.streams.is_legacy()
    }

    /// Returns its event streams, for the Streamable transport.
    pub fn streams(&self) -> &Streams {
        self.streams.streams()
    }

    /// Returns where its messages go that belong to no request.
    pub fn stream(&self) -> &dyn SessionStream {
        &*self.streams
    }

    /// Returns where the responses to its requests go in the 2024-11-05 transport.
    pub fn responder(&self) -> Arc<dyn Responder> {
        self.streams.responder()
    }

    /// Returns whether it has open streams or running calls.
    pub fn is_busy(&self) -> bool {
        self.streams.open_streams() > 0 || !self.calls().is_empty()
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

    /// Marks the session as initialized at `now` with this version. Returns false if it already was.
    pub fn initialized(&self, now: Instant, version: &str) -> bool {
        let mut client_info = self.info();
        if client_info.initialized.is_some() {
            return false;
        }
        version.clone_into(&mut client_info.version);
        client_info.initialized = Some(now);
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
        util::escape::show(name_of(&self.id))
    }
}

/// Returns the part of a session id that appears in logs.
fn name_of(id: &str) -> &str {
    id.get(..6).unwrap_or_default()
}
