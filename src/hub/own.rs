//! Requests that the gateway answers itself.

use std::time::Instant;

use super::{
    call::{Asked, Outcome, not_connected, session_ended, unknown_method},
    effect::Effects,
    error::CallError,
    key::SessionKey,
    request::InitializeParams,
    server_list::ServerList,
    session::Scope,
    state::Hub,
};
use crate::{
    catalog::UpstreamKey,
    limits,
    mcp::{self, Era, log_level::Level, stateless::discover},
};

impl Hub {
    /// Initializes a session at the aggregate, or at the endpoint of a server that all sessions
    /// share.
    pub(super) fn initialize(
        &mut self,
        now: Instant,
        session: SessionKey,
        params: &InitializeParams<'_>,
    ) -> Result<Outcome, CallError> {
        let session = self.clients.get_mut(&session).ok_or_else(session_ended)?;
        let asked = &params.version;
        let (version, result) = match &session.scope {
            Scope::All => {
                let version = mcp::negotiate(asked).to_owned();
                let result = mcp::initialize_result(&version, &self.catalog.instructions());
                (version, result)
            }
            Scope::Server(name) => {
                let upstream = self.catalog.server(name).and_then(|server| self.upstreams.get(&server));
                let initialized = upstream.and_then(|upstream| upstream.shared.initialized());
                let initialized = initialized.ok_or_else(|| not_connected(name))?;
                match initialized.era {
                    Era::Legacy => mcp::initialize_result_for(&initialized.result, asked),
                    Era::Modern => {
                        let (result, declared) = (&initialized.result, params.capabilities);
                        let (version, result) =
                            discover::initialize_result_for_legacy(result, asked, declared);
                        (version.to_owned(), result)
                    }
                }
            }
        };
        if !session.info_charge.resize(params.capabilities.len() + params.info.len()) {
            self.stats.memory_refusals.add();
            return Err(CallError::NoMemory);
        }
        if !session.initialized(now, &version) {
            return Err(CallError::AlreadyInitialized);
        }
        session.info.capabilities = params.capabilities.to_owned();
        session.info.info = params.info.to_owned();
        self.last_reader = self.last_reader.max(Some(now));
        Ok(Outcome::Now(result))
    }

    /// Stores the client's log level, and requests from each shared server the lowest level of all
    /// its sessions.
    pub(super) fn set_level(
        &mut self,
        asked: Asked<'_>,
        level: Level,
        fx: &mut Effects<'_>,
    ) -> Result<Outcome, CallError> {
        let session = self.clients.get(&asked.session).ok_or_else(session_ended)?;
        let servers: Vec<UpstreamKey> = match session.scope.server() {
            None => self.catalog.all().map(|(_, server)| *server).collect(),
            Some(name) => {
                // The aggregate accepts the level for servers that register later. A single server
                // must be connected and support logging.
                let server = self.catalog.server(name).ok_or_else(|| not_connected(name))?;
                if !self.upstreams.get(&server).is_some_and(|upstream| upstream.shared.has("logging")) {
                    return Err(unknown_method(asked.request));
                }
                vec![server]
            }
        };
        let Some(session) = self.clients.get_mut(&asked.session) else { return Err(session_ended()) };
        session.info.level = Some(level);
        let instances: Vec<_> = session.instances.values().copied().collect();
        self.sessions.set_level(&session.id, Some(level));
        for server in servers {
            self.send_level(asked.now, server, fx);
        }
        for instance in instances {
            self.send_level_to_instance(asked.now, instance, fx);
        }
        Ok(Outcome::Now("{}".into()))
    }

    /// Answers a call of the gateway's own tool, `list_servers`. With more than
    /// [`limits::YIELD_EVERY`] servers, returns [`Outcome::Servers`] instead.
    pub(super) fn list_servers(&self, session: SessionKey) -> Result<Outcome, CallError> {
        let viewer = self.clients.get(&session).ok_or_else(session_ended)?.principal;
        if self.catalog.len() > limits::YIELD_EVERY {
            return Ok(Outcome::Servers(viewer));
        }
        let mut list = ServerList::new(viewer);
        list.add(&self.catalog, usize::MAX);
        Ok(Outcome::Now(list.result()))
    }

    /// Adds the next servers to a list, at most [`limits::YIELD_EVERY`]. Returns false if there
    /// were none left.
    pub fn add_servers(&self, list: &mut ServerList) -> bool {
        list.add(&self.catalog, limits::YIELD_EVERY)
    }
}
