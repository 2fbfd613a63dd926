//! Keys of the tables of the hub, and the key that seals the `requestState` of stateless clients.

use std::{sync::Arc, time::Instant};

use crate::{
    catalog::UpstreamKey,
    secret::seal::SealKey,
    session::{ListenKey, RoundKey},
};

/// The key of a process of a server. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InstanceKey {
    /// The server.
    pub upstream: UpstreamKey,
    /// The channel of an isolated instance. `None`: the process that all sessions share.
    pub channel: Option<u32>,
}

impl InstanceKey {
    /// Returns the key of the process that all sessions share.
    pub fn shared(upstream: UpstreamKey) -> Self {
        Self { upstream, channel: None }
    }
}

/// The key of a client session. Never reused, and no secret, unlike the session's id.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SessionKey(pub(super) u64);

/// Who gets the client's response to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asker {
    /// The isolated instance that has sent it.
    Instance(InstanceKey),
    /// A call of the client whose server has asked: the question at this place of a round.
    Round(RoundKey, usize),
}

/// Who is subscribed to a resource.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum SubscriberKey {
    /// A session.
    Session(SessionKey),
    /// A listen of a client without a session.
    Listen(ListenKey),
}

/// The key that seals each `requestState` in one run of the gateway.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// The key.
    pub key: Arc<SealKey>,
    /// When the gateway was started: the expiry of a sealed state counts from then.
    pub started: Instant,
}
