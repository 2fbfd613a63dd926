//! The key by which the catalog and the tables beside it know a registered server.

/// The key of a registration in the catalog. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UpstreamKey(pub(super) u64);

impl UpstreamKey {
    /// Returns the number of the registration, which no other has.
    pub fn number(self) -> u64 {
        self.0
    }
}
