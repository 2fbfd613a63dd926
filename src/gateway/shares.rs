//! Shares: how many units of a limited resource each principal holds.
//!
//! If several principals may use a resource, each gets at most half of it, so that one that takes
//! all it can leaves as much to the others. A single principal gets all of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::auth::Principal;

/// Units in use of one resource, counted by principal.
#[derive(Clone, Debug, Default)]
pub struct Shares(Arc<Mutex<HashMap<Principal, usize>>>);

/// One unit held by a principal; returned when dropped.
#[derive(Debug)]
pub struct Share {
    shares: Shares,
    principal: Principal,
}

/// Returns how many of `max` units one principal may hold: all, or half (at least one) if
/// `several` principals share them.
pub fn limit(max: usize, several: bool) -> usize {
    if several { (max / 2).max(1) } else { max }
}

impl Shares {
    /// Takes a unit for a principal that holds fewer than `max`.
    pub fn take(&self, principal: Principal, max: usize) -> Option<Share> {
        let mut taken = self.taken();
        let count = taken.entry(principal).or_default();
        if *count >= max {
            if *count == 0 {
                taken.remove(&principal);
            }
            return None;
        }
        *count += 1;
        Some(Share { shares: self.clone(), principal })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Principal, usize>> {
        // Each change of the table is complete in itself, so a panic elsewhere does not corrupt it.
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
        for (max, several, expected) in limits {
            assert_eq!(limit(max, several), expected, "{max} {several}");
        }
    }
}
