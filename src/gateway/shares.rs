//! Shares: how many places of a bounded resource each principal has taken.
//!
//! Where several principals may use a resource, none of them gets more than half of it: a principal that takes all it can
//! get leaves as much to the others. With a single principal there is nobody to leave it to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::auth::Principal;

/// Places taken of one resource, counted by principal.
#[derive(Clone, Debug, Default)]
pub struct Shares(Arc<Mutex<HashMap<Principal, usize>>>);

/// One place of a principal. Dropping it gives the place back.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    principal: Principal,
}

/// The places that one principal may have of `most`: all of them, or half (at least one) where `several` principals
/// share them.
pub fn limit(most: usize, several: bool) -> usize {
    if several { (most / 2).max(1) } else { most }
}

impl Shares {
    /// Takes a place for a principal that has fewer than `most`.
    pub fn take(&self, principal: Principal, most: usize) -> Option<Share> {
        let mut taken = self.taken();
        let count = taken.entry(principal).or_default();
        if *count >= most {
            if *count == 0 {
                taken.remove(&principal);
            }
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), principal })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Principal, usize>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        if let Some(count) = taken.get_mut(&self.principal) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.principal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back_on_drop() {
        let (shares, one, two) = (Shares::default(), Principal::token(1), Principal::token(2));
        let held: Vec<Share> = (0..2).filter_map(|_| shares.take(one, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(shares.take(one, 2).is_none(), "its share is used up");
        assert!(shares.take(two, 2).is_some(), "another principal has its own");
        drop(held);
        assert!(shares.take(one, 2).is_some());
        assert!(shares.take(one, 0).is_none());
        assert!(shares.taken().is_empty(), "principals without a place are not remembered");
    }

    #[test]
    fn half_of_a_resource_is_for_the_others() {
        let limits = [(256, false, 256), (256, true, 128), (3, true, 1), (1, true, 1)];
        for (most, several, expected) in limits {
            assert_eq!(limit(most, several), expected, "{most} {several}");
        }
    }
}
