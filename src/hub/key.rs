//! Keys of what the hub keeps in its tables.

use crate::catalog::UpstreamKey;

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
