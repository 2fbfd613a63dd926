//! The memory budget of the process, divided among accounts.
//!
//! Code that is about to hold bytes for a peer (a queue, a body, a list) first takes them from an
//! [`Account`], and gives them back when it frees them. While the budget is
//! [shared](Budget::share), an account holds no more than what is still free: one greedy account
//! gets half, two get a third each, and there is always something left for the next.
//!
//! Bytes held for an absent client can be [registered](Account::idle): they are evicted, oldest
//! first, before a request is refused. Taking and giving are two atomic operations each; only that
//! registry needs a lock, so it is behind a trait: `net::idle` implements it.
//!
//! The HTTP side answers a refused body with 413 and a refused request with 503, and replaces a
//! refused response by an error that names `--max-memory`. A large frame of a link waits
//! (`memory_wait` in [`limits::LinkLimits`]); then its link is closed with code 1013.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::limits;

/// A holder of bytes for an absent client.
pub trait Evict: Send + Sync {
    /// Drops the bytes, and returns them to their account. Must not wait for a lock: the caller
    /// that needs the bytes may hold it.
    fn evict(&self);
}

/// The registry of the bytes held for absent clients.
pub trait Reclaim: Send + Sync {
    /// Adds bytes that are charged to `account`. Returns the number of the entry.
    fn add(&self, account: Account, holder: Weak<dyn Evict>) -> u64;
    /// Removes an entry.
    fn remove(&self, entry: u64);
    /// Evicts until `bytes` can be taken from `account`, and takes them. Returns false, and takes
    /// nothing, if there is not enough to evict.
    fn take(&self, account: &Account, bytes: usize) -> bool;
}

/// A budget of bytes; see the module documentation.
#[derive(Clone, Debug)]
pub struct Budget(Arc<BudgetState>);

struct BudgetState {
    size: usize,
    used: AtomicUsize,
    shared: AtomicBool,
    registry: Option<Box<dyn Reclaim>>,
}

/// The bytes held by one principal.
#[derive(Clone, Debug)]
pub struct Account(Arc<AccountState>);

#[derive(Debug)]
struct AccountState {
    budget: Arc<BudgetState>,
    used: AtomicUsize,
}

/// How much must stay free when bytes are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// Large amounts must leave a part ([`limits::BUDGET_RESERVE`]) for small ones
    /// ([`limits::BUDGET_SMALL`]), so that small calls still succeed when large ones are refused.
    Normal,
    /// Half of the budget must stay free, and nothing is evicted: for data that is only kept in
    /// case it is needed.
    Spare,
}

impl Budget {
    /// Creates a budget of `size` bytes that evicts nothing. It is not shared: one account may take
    /// all of it.
    pub fn new(size: usize) -> Self {
        Self::create(size, None)
    }

    /// Like [`Budget::new`], but bytes held for absent clients are evicted when others need them.
    pub fn evicting(size: usize, registry: Box<dyn Reclaim>) -> Self {
        Self::create(size, Some(registry))
    }

    fn create(size: usize, registry: Option<Box<dyn Reclaim>>) -> Self {
        let (used, shared) = Default::default();
        Self(Arc::new(BudgetState { size, used, shared, registry }))
    }

    /// Sets whether there are several principals, so that none may take the whole budget.
    pub fn share(&self, shared: bool) {
        self.0.shared.store(shared, Ordering::Relaxed);
    }

    /// Creates an account.
    pub fn account(&self) -> Account {
        Account(Arc::new(AccountState { budget: self.0.clone(), used: AtomicUsize::new(0) }))
    }

    /// Returns the total size in bytes.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Returns the number of bytes taken.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Account {
    /// Takes `bytes`, evicting data held for absent clients if necessary. Returns false, and takes
    /// nothing, if there is not enough.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        self.try_take(bytes, Priority::Normal)
            || self.0.budget.registry.as_ref().is_some_and(|registry| registry.take(self, bytes))
    }

    /// Whether `bytes` could be taken, evicting data held for absent clients if necessary.
    #[must_use]
    pub fn has(&self, bytes: usize) -> bool {
        let has = self.take(bytes);
        if has {
            self.give(bytes);
        }
        has
    }

    /// Takes `bytes` if they are free, without evicting anything.
    #[must_use]
    pub fn try_take(&self, bytes: usize, priority: Priority) -> bool {
        let AccountState { budget, used } = &*self.0;
        let reserve = match priority {
            Priority::Normal if bytes <= limits::BUDGET_SMALL => 0,
            Priority::Normal => budget.size / limits::BUDGET_RESERVE,
            Priority::Spare => budget.size / 2,
        };
        let max = budget.size - reserve;
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= max);
        let Ok(before) = budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) else {
            return false;
        };
        let account_used = used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let free = budget.size.saturating_sub(before + bytes);
        if budget.shared.load(Ordering::Relaxed) && account_used > free {
            self.give(bytes);
            return false;
        }
        true
    }

    /// Takes `bytes` even if they are not free: for small data that must not be lost.
    pub fn force(&self, bytes: usize) {
        self.0.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        self.0.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns the number of bytes that this account holds.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether more than half of the budget is taken, by any account.
    pub fn is_scarce(&self) -> bool {
        let budget = &self.0.budget;
        budget.used.load(Ordering::Relaxed) > budget.size / 2
    }

    /// Whether the account holds nothing and this is the only reference to it.
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.used() == 0
    }

    /// Whether both refer to the same account.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Creates an empty charge to this account.
    pub fn charge(&self) -> Charge {
        Charge { account: self.clone(), bytes: 0 }
    }

    /// Registers bytes held for an absent client, for as long as the returned entry lives.
    pub fn idle(&self, holder: Weak<dyn Evict>) -> Idle {
        let budget = self.0.budget.clone();
        let entry = budget.registry.as_ref().map(|registry| registry.add(self.clone(), holder));
        Idle { budget, entry }
    }
}

impl fmt::Debug for BudgetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BudgetState({} of {} bytes)", self.used.load(Ordering::Relaxed), self.size)
    }
}

/// An entry in the registry of evictable data. Dropping it removes the entry.
#[derive(Debug)]
pub struct Idle {
    budget: Arc<BudgetState>,
    entry: Option<u64>,
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let (Some(registry), Some(entry)) = (&self.budget.registry, self.entry) {
            registry.remove(entry);
        }
    }
}

/// Bytes taken from an account, given back on drop.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Returns the account that the bytes are charged to.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the number of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the charge to `bytes`. Returns false, and changes nothing, if there are not enough.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        self.resize_as(bytes, |account, more| account.take(more))
    }

    /// Like [`Charge::resize`], with [`Priority::Spare`]: for data that is only kept in case it is
    /// needed.
    #[must_use]
    pub fn resize_spare(&mut self, bytes: usize) -> bool {
        self.resize_as(bytes, |account, more| account.try_take(more, Priority::Spare))
    }

    /// Like [`Charge::resize`], but succeeds even if the bytes are not free.
    pub fn resize_anyway(&mut self, bytes: usize) {
        // Forcing never fails.
        let _ = self.resize_as(bytes, |account, more| {
            account.force(more);
            true
        });
    }

    fn resize_as(&mut self, bytes: usize, take: impl FnOnce(&Account, usize) -> bool) -> bool {
        match bytes.checked_sub(self.bytes) {
            Some(0) => {}
            Some(more) if !take(&self.account, more) => return false,
            Some(_) => {}
            None => self.account.give(self.bytes - bytes),
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.give(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_given_back() {
        let budget = Budget::new(1000);
        let account = budget.account();
        let mut charge = account.charge();
        assert!(charge.resize(600));
        assert!(!charge.resize(1001));
        assert_eq!((budget.used(), account.used(), charge.bytes()), (600, 600, 600));
        assert!(charge.resize(100));
        assert_eq!(budget.used(), 100);
        assert!(!account.is_unused());
        drop(charge);
        assert_eq!((budget.used(), account.used()), (0, 0));
        assert!(account.is_unused());
    }

    #[test]
    fn one_of_several_accounts_gets_half() {
        let budget = Budget::new(1200);
        let (greedy, other) = (budget.account(), budget.account());
        assert!(greedy.take(1200), "nobody else is there");
        greedy.give(1200);
        budget.share(true);
        assert!(!greedy.take(601));
        assert!(greedy.take(600));
        assert!(!greedy.take(1));
        assert!(other.take(300));
        assert!(!other.take(1), "and the third finds some");
        assert!(budget.account().take(150));
        assert_eq!(budget.used(), 1050);
    }

    #[test]
    fn small_amounts_pass_where_large_ones_are_refused() {
        let small = limits::BUDGET_SMALL;
        let budget = Budget::new(64 * small);
        let account = budget.account();
        let large = 64 * small - 64 * small / limits::BUDGET_RESERVE;
        assert!(account.take(large));
        assert!(!account.take(small + 1));
        assert!(account.take(small));
        account.force(100 * small);
        assert!(!account.take(1));
        account.give(101 * small + large);
        assert!(account.try_take(32 * small, Priority::Spare));
        assert!(!account.try_take(1, Priority::Spare));
    }
}
