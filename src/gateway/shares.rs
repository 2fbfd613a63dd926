//! Units of a limited resource that are given back when dropped: for connections and links, whose
//! tasks may end at any point. The counting is in `session::shares`.

use std::sync::Arc;

use crate::{auth::Principal, runtime::lock::Lock, session::Shares};

/// Units in use of one resource, counted by principal.
#[derive(Clone, Debug, Default)]
pub struct SharedShares(Arc<Lock<Shares>>);

/// One unit held by a principal; given back when dropped.
#[derive(Debug)]
pub struct Share {
    shares: SharedShares,
    principal: Principal,
}

impl SharedShares {
    /// Takes a unit for a principal that holds fewer than `max`.
    pub fn take(&self, principal: Principal, max: usize) -> Option<Share> {
        let taken = self.0.lock().take(principal, max);
        taken.then(|| Share { shares: self.clone(), principal })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shares.0.lock().give(self.principal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back_on_drop() {
        let (shares, one) = (SharedShares::default(), Principal::token(1));
        let held: Vec<Share> = (0..2).filter_map(|_| shares.take(one, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(shares.take(one, 2).is_none());
        drop(held);
        assert!(shares.take(one, 2).is_some());
        assert!(shares.0.lock().is_empty());
    }
}
