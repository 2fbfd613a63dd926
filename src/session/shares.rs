//! Shares: how many units of a limited resource each principal holds.
//!
//! If several principals may use a resource, each gets at most half of it, so that one that takes
//! all it can leaves as much to the others. A single principal gets all of it.

use std::collections::HashMap;

use crate::auth::Principal;

/// Units in use of one resource, counted by principal.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Shares(HashMap<Principal, usize>);

/// Returns how many of `max` units one principal may hold: all, or half (at least one) if
/// `several` principals share them.
pub fn share_of(max: usize, several: bool) -> usize {
    if several { (max / 2).max(1) } else { max }
}

impl Shares {
    /// Takes a unit for a principal that holds fewer than `max`. Returns false if it holds as many.
    #[must_use]
    pub fn take(&mut self, principal: Principal, max: usize) -> bool {
        let count = self.0.entry(principal).or_default();
        if *count < max {
            *count += 1;
            return true;
        }
        if *count == 0 {
            self.0.remove(&principal);
        }
        false
    }

    /// Gives back a unit that a principal has taken.
    pub fn give(&mut self, principal: Principal) {
        if let Some(count) = self.0.get_mut(&principal) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&principal);
            }
        }
    }

    /// Returns the number of units that a principal holds.
    pub fn held(&self, principal: Principal) -> usize {
        self.0.get(&principal).copied().unwrap_or_default()
    }

    /// Whether no unit is taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back() {
        let (mut shares, one, two) = (Shares::default(), Principal::token(1), Principal::token(2));
        assert!(shares.take(one, 2) && shares.take(one, 2));
        assert!(!shares.take(one, 2), "its share is used up");
        assert!(shares.take(two, 2), "another principal has its own");
        assert_eq!((shares.held(one), shares.held(two)), (2, 1));
        shares.give(one);
        assert!(shares.take(one, 2));
        for (principal, held) in [(one, 2), (two, 1)] {
            (0..held).for_each(|_| shares.give(principal));
            shares.give(principal);
        }
        assert!(!shares.take(one, 0));
        assert!(shares.is_empty(), "principals without a unit are not remembered");
    }

    #[test]
    fn half_of_a_resource_is_for_the_others() {
        let limits = [(256, false, 256), (256, true, 128), (3, true, 1), (1, true, 1)];
        for (max, several, expected) in limits {
            assert_eq!(share_of(max, several), expected, "{max} {several}");
        }
    }
}
