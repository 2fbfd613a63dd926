//! The key by which the catalog and the tables beside it know a registered server.

/// The key of a registration in the catalog. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UpstreamKey(pub(super) u64);
