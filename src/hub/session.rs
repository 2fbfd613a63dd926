//! A client session, as the hub knows it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use super::{
    key::{Asker, InstanceKey, SessionKey},
    peers::SessionStream,
};
use crate::{
    auth::Principal,
    budget::{Account, Charge},
    jsonrpc::quote,
    limits::SessionLimits,
    mcp::{
        LATEST,
        log_level::Level,
        stateless::{Allowed, Capabilities, wrap},
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

impl Scope {
    /// Returns the server whose endpoint it is; `None`: the aggregate of all servers.
    pub fn server(&self) -> Option<&str> {
        match self {
            Self::All => None,
            Self::Server(name) => Some(name),
        }
    }
}

/// The client's `initialize` params, and the state negotiated with it.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    /// When the session was initialized.
    pub initialized: Option<Instant>,
    /// The negotiated protocol version.
    pub version: Arc<str>,
    /// The lowest level of log messages that the client wants.
    pub level: Option<Level>,
    /// Its `capabilities`, raw JSON, for its isolated instances.
    pub capabilities: String,
    /// Its `clientInfo`, raw JSON, likewise.
    pub info: String,
    /// What its requests to modern servers need, once there was one.
    envelope: Option<SessionEnvelope>,
}

/// What the requests of a session to modern servers state of its client.
#[derive(Clone, Debug)]
pub struct SessionEnvelope {
    /// The reserved keys.
    pub members: Arc<str>,
    /// What a server may ask the client for.
    pub allowed: Allowed,
}

impl ClientInfo {
    /// Returns the `initialize` params for its isolated instances.
    pub fn initialize_params(&self) -> String {
        let (version, capabilities, info) = (quote(&self.version), &self.capabilities, &self.info);
        format!("{{\"protocolVersion\":{version},\"capabilities\":{capabilities},\"clientInfo\":{info}}}")
    }
}

/// A session that is about to begin.
#[derive(Debug)]
pub struct NewSession {
    /// Its id, a secret of its client.
    pub id: String,
    /// The principal that owns it.
    pub principal: Principal,
    /// The account that pays for the bytes held for it.
    pub account: Account,
    /// The servers that it sees.
    pub scope: Scope,
    /// Where its messages go that belong to no request.
    pub stream: Arc<dyn SessionStream>,
}

/// A client session.
#[derive(Debug)]
pub struct Session {
    /// Its key in the hub.
    pub key: SessionKey,
    /// Its id, a secret of its client.
    pub id: String,
    /// The principal that owns it.
    pub principal: Principal,
    /// The account that pays for the bytes held for it.
    pub account: Account,
    /// The servers that it sees.
    pub scope: Scope,
    /// Where its messages go that belong to no request.
    pub stream: Arc<dyn SessionStream>,
    /// Its running calls.
    pub calls: Calls<InstanceKey>,
    /// The client's data from `initialize`.
    pub info: ClientInfo,
    /// Memory charged for `info`.
    pub info_charge: Charge,
    /// Memory charged for its subscriptions.
    pub subscriptions_charge: Charge,
    /// Its isolated instances, by the name of their server.
    pub instances: BTreeMap<Arc<str>, InstanceKey>,
    /// Requests of servers that wait for the client's response.
    pub server_requests: PendingServerRequests<Asker>,
}

impl Session {
    /// Creates the state of a session that is not initialized.
    pub fn new(key: SessionKey, new: NewSession, limits: &SessionLimits) -> Self {
        let NewSession { id, principal, account, scope, stream } = new;
        let (capabilities, info) = ("{}".into(), "{}".into());
        let info = ClientInfo {
            initialized: None,
            version: LATEST.into(),
            level: None,
            capabilities,
            info,
            envelope: None,
        };
        let (info_charge, subscriptions_charge) = (account.charge(), account.charge());
        Self {
            key,
            id,
            principal,
            account,
            scope,
            stream,
            calls: Calls::new(limits),
            info,
            info_charge,
            subscriptions_charge,
            instances: BTreeMap::new(),
            server_requests: PendingServerRequests::default(),
        }
    }

    /// Returns whether it has open streams or running calls.
    pub fn is_busy(&self) -> bool {
        self.stream.open_streams() > 0 || !self.calls.is_empty()
    }

    /// Returns whether it is at the endpoint of all servers.
    pub fn sees_all(&self) -> bool {
        self.scope == Scope::All
    }

    /// Returns whether it is initialized, so that notifications may be sent.
    pub fn is_initialized(&self) -> bool {
        self.info.initialized.is_some()
    }

    /// Marks it as initialized at `now` with this version. Returns false if it already was.
    pub fn initialized(&mut self, now: Instant, version: &str) -> bool {
        if self.is_initialized() {
            return false;
        }
        self.info.version = version.into();
        self.info.initialized = Some(now);
        true
    }

    /// Returns what its requests to modern servers state of its client.
    pub fn envelope(&mut self) -> SessionEnvelope {
        let ClientInfo { version, capabilities, info, envelope, .. } = &mut self.info;
        if let Some(envelope) = envelope {
            return envelope.clone();
        }
        let capabilities = wrap::session_capabilities(version, capabilities);
        let members: Arc<str> = wrap::session_members(&capabilities, info).into();
        // Not much more than what is charged already.
        self.info_charge.resize_anyway(self.info_charge.bytes() + members.len());
        let allowed = Capabilities::read(&capabilities).map(|capabilities| capabilities.allowed);
        envelope.insert(SessionEnvelope { members, allowed: allowed.unwrap_or_default() }).clone()
    }

    /// Returns its name for logs.
    pub fn name(&self) -> impl fmt::Display {
        name_of(&self.id)
    }
}

/// Returns the name of a session for logs: the first 6 characters of its id, since the whole is a
/// secret.
pub fn name_of(id: &str) -> util::escape::Shown<'_> {
    util::escape::show(id.get(..6).unwrap_or_default())
}

/// What the transport of a client needs to know of its session.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// Its key in the hub.
    pub key: SessionKey,
    /// The negotiated protocol version.
    pub version: Arc<str>,
    /// Its streams.
    pub stream: Arc<dyn SessionStream>,
}
