//! A client session, as its transport sees it: its immutable properties and its streams. Its
//! mutable state is in the hub.

use std::{any::Any, sync::Arc, time::Instant};

use super::{responder::StreamResponder, state::Gateway, streams::Streams};
use crate::{
    auth::Principal,
    budget::Account,
    hub::{
        entry::{Client, Enter},
        key::SessionKey,
        peers::{Responder, SessionStream},
        session::{NewSession, Scope, SessionView, name_of},
    },
    metrics::Stats,
    net::outbox::{Receiver, SendError},
    util,
};

/// A session, looked up for one request.
#[derive(Debug)]
pub struct Session {
    /// Its key in the hub.
    pub key: SessionKey,
    /// The protocol version negotiated so far.
    pub version: Arc<str>,
    streams: Arc<SessionStreams>,
}

impl Session {
    /// Creates a session that no client can find yet. `legacy`: it uses the 2024-11-05 transport.
    /// Returns it with the reading end of its queue for messages that belong to no request.
    pub fn begin(
        gateway: &Arc<Gateway>,
        id: String,
        principal: Principal,
        scope: Scope,
        legacy: bool,
    ) -> (SessionGuard, Receiver<()>) {
        let account = gateway.account(principal);
        let (outbox, receiver) = gateway.session_outbox(&account);
        let streams = Arc::new(SessionStreams {
            id: id.clone(),
            scope: scope.clone(),
            account: account.clone(),
            legacy,
            outbox: Arc::new(outbox),
            streams: Streams::new(&gateway.config.limits.session, &account),
        });
        let new = NewSession { id, principal, account, scope, stream: streams.clone() };
        let key = gateway.enter(|hub, _| hub.begin_session(new));
        let version = Arc::from("");
        let guard = SessionGuard {
            gateway: gateway.clone(),
            session: Self { key, version, streams },
            reason: Some("the client disconnected before its session began"),
        };
        (guard, receiver)
    }

    /// Returns the session to the principal that opened it, and counts as a use.
    pub fn find(gateway: &Gateway, id: &str, principal: Principal) -> Option<Self> {
        let now = Instant::now();
        let SessionView { key, version, stream } = gateway.enter(|hub, _| hub.session(now, id, principal))?;
        let streams = stream.into_any().downcast().ok()?;
        Some(Self { key, version, streams })
    }

    /// Returns the session's id.
    pub fn id(&self) -> &str {
        &self.streams.id
    }

    /// Returns the session as the hub needs it for the client's messages.
    pub fn client(&self) -> Client<'_> {
        Client { key: self.key, id: self.id(), scope: &self.streams.scope }
    }

    /// Returns the account that pays for the bytes buffered for it.
    pub fn account(&self) -> &Account {
        &self.streams.account
    }

    /// Returns the servers that it sees.
    pub fn scope(&self) -> &Scope {
        &self.streams.scope
    }

    /// Returns whether it uses the 2024-11-05 transport.
    pub fn is_legacy(&self) -> bool {
        self.streams.legacy
    }

    /// Returns its event streams, for the Streamable transport.
    pub fn streams(&self) -> &Streams {
        &self.streams.streams
    }

    /// Returns where the responses to its requests go in the 2024-11-05 transport.
    pub fn responder(&self) -> Arc<dyn Responder> {
        self.streams.outbox.clone()
    }

    /// Returns the session's name for logs.
    pub fn name(&self) -> util::escape::Shown<'_> {
        name_of(self.id())
    }
}

/// Closes a session when dropped, so also when its task is cancelled or panics.
#[derive(Debug)]
pub struct SessionGuard {
    gateway: Arc<Gateway>,
    session: Session,
    /// Why the session is closed; `None`: it stays open.
    reason: Option<&'static str>,
}

impl SessionGuard {
    /// Returns the session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sets why the session is closed.
    pub fn set_reason(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// Leaves the session open.
    pub fn keep(mut self) {
        self.reason = None;
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        if let Some(reason) = self.reason {
            let key = self.session.key;
            self.gateway.enter(|hub, fx| hub.close_session(Instant::now(), key, reason, fx));
        }
    }
}

/// The streams of a session, and its immutable properties.
#[derive(Debug)]
struct SessionStreams {
    id: String,
    scope: Scope,
    /// The account that pays for the bytes buffered for it.
    account: Account,
    /// Whether it uses the 2024-11-05 transport, with one event stream for everything. Otherwise
    /// responses go to the POST that carried the request.
    legacy: bool,
    /// Where messages that belong to no request go, and in the 2024-11-05 transport everything
    /// else too.
    outbox: Arc<StreamResponder>,
    streams: Streams,
}

impl SessionStream for SessionStreams {
    fn open_streams(&self) -> usize {
        if self.legacy { 1 } else { self.streams.attached() }
    }

    /// In the Streamable transport the message is dropped unless the client has opened the
    /// standalone stream.
    fn send(&self, message: String, stats: &Stats) {
        if (self.legacy || self.streams.was_listened_to()) && !self.request(message, stats) {
            // The stream is parked or not read; the session continues without this message.
            log::debug!("client {}: dropped a message: its stream is full", name_of(&self.id));
        }
    }

    fn notice(&self, notice: &str, stats: &Stats) {
        if !self.outbox.queue().has(notice) {
            self.send(notice.to_owned(), stats);
        }
    }

    /// On the 2024-11-05 transport the stream ends if there is no room.
    fn request(&self, message: String, stats: &Stats) -> bool {
        if self.legacy {
            self.outbox.send(message, stats);
            return true;
        }
        !matches!(self.outbox.queue().send(message), Err(SendError::Full | SendError::Memory))
    }

    fn end(&self) {
        self.outbox.queue().end(());
    }

    fn close(&self) {
        self.streams.close();
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
