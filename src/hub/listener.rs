//! What a listen is to the hub while it is opened: its client, its resources, and what waits for the
//! servers to accept these.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    key::SessionKey,
    peers::{Responder, SessionStream},
    session::Scope,
};
use crate::{auth::Principal, budget::Account, catalog::UpstreamKey, session::ListenKey};

/// What waits until a server has accepted resources.
#[derive(Debug)]
pub enum ListenWaiter {
    /// A client's listen, which is acknowledged then.
    Listen(ListenKey),
    /// A session's `resources/subscribe`.
    Session(SessionSubscribe),
}

/// The `resources/subscribe` of a session at a modern server.
#[derive(Debug)]
pub struct SessionSubscribe {
    /// The session.
    pub session: SessionKey,
    /// The number of the request in the session.
    pub number: u64,
    /// Its id as the client wrote it.
    pub id: Box<str>,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// The server's own URI of the resource.
    pub uri: String,
}

/// A resource at a legacy server that a listen waits for.
#[derive(Debug)]
pub struct ListenSubscription {
    /// The listen.
    pub listen: ListenKey,
    /// The server.
    pub server: UpstreamKey,
    /// The server's own URI.
    pub uri: String,
}

/// A listen that is not acknowledged yet.
#[derive(Debug, Default)]
pub struct OpeningListen {
    /// The resources that no server has accepted or refused yet.
    pub(super) waiting: Vec<ListenResource>,
    /// The URIs of the accepted ones, as the client knows them.
    pub(super) accepted: BTreeSet<String>,
}

/// A resource of a listen.
#[derive(Clone, Debug)]
pub(super) struct ListenResource {
    /// The server.
    pub server: UpstreamKey,
    /// The server's own URI.
    pub own: String,
    /// The URI that the client knows.
    pub known: String,
}

/// The client that wants to listen.
#[derive(Debug)]
pub struct Listener {
    /// Its principal.
    pub principal: Principal,
    /// The account that pays for what is kept of its listen.
    pub account: Account,
    /// The endpoint: the servers that it sees.
    pub scope: Scope,
    /// The stream of its listen.
    pub stream: Arc<dyn SessionStream>,
}
