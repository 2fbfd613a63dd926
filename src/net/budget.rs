//! The budget of bytes of a program, shared out among accounts.
//!
//! Whoever is about to keep bytes for somebody (a queue, a body, a list) takes them from an [`Account`] first, and gives them
//! back when they are gone. While the budget is [shared](Budget::share), an account holds no more than what is still free, so
//! that one that takes all it can get has half, two have a third each, and the next one always finds something.
//!
//! What is kept for a client that is away can be [registered](Account::idle): it is dropped, oldest first, before anybody is
//! refused. Taking and giving are two atomic operations each; the lock is for that register only.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::limits;

/// Something that holds bytes for a client that is away.
pub trait Evict: Send + Sync {
    /// Drops them, and gives them back to their account. Must not wait for a lock: it may be held by who is refused.
    fn evict(&self);
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Total>);

struct Total {
    size: usize,
    used: AtomicUsize,
    shared: AtomicBool,
    idle: Mutex<Register>,
}

#[derive(Default)]
struct Register {
    last: u64,
    entries: BTreeMap<u64, (Arc<Purse>, Weak<dyn Evict>)>,
}

/// The bytes that one principal holds.
#[derive(Clone, Debug)]
pub struct Account(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    total: Arc<Total>,
    used: AtomicUsize,
}

/// How much has to stay free when bytes are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Priority {
    /// Large amounts leave a part for small ones ([`limits::BUDGET_SMALL`]), so that small calls still pass where large ones
    /// are refused.
    Normal,
    /// Half, and nothing is evicted: what is kept only in case somebody wants it.
    Spare,
}

impl Budget {
    /// A budget of so many bytes, for one account after the other.
    pub fn new(size: usize) -> Self {
        let idle = Mutex::default();
        Self(Arc::new(Total { size, used: AtomicUsize::new(0), shared: AtomicBool::new(false), idle }))
    }

    /// Whether there are several principals, so that none may have all of it.
    pub fn share(&self, shared: bool) {
        self.0.shared.store(shared, Ordering::Relaxed);
    }

    /// A new account.
    pub fn account(&self) -> Account {
        Account(Arc::new(Purse { total: self.0.clone(), used: AtomicUsize::new(0) }))
    }

    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Account {
    /// Takes so many bytes, after dropping what is kept for clients that are away if need be. False: there are not so many,
    /// and none is taken.
    #[must_use]
    pub fn take(&self, bytes: usize) -> bool {
        self.try_take(bytes, Priority::Normal) || self.take_evicting(bytes)
    }

    /// Whether so many bytes could be taken, after dropping what is kept for clients that are away if need be.
    #[must_use]
    pub fn has(&self, bytes: usize) -> bool {
        let has = self.take(bytes);
        if has {
            self.give(bytes);
        }
        has
    }

    /// Takes so many bytes if they are free.
    #[must_use]
    pub fn try_take(&self, bytes: usize, priority: Priority) -> bool {
        let Purse { total, used } = &*self.0;
        let reserve = match priority {
            Priority::Normal if bytes <= limits::BUDGET_SMALL => 0,
            Priority::Normal => total.size / limits::BUDGET_RESERVE,
            Priority::Spare => total.size / 2,
        };
        let most = total.size - reserve;
        let grown = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= most);
        let Ok(before) = total.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown) else {
            return false;
        };
        let own = used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let free = total.size.saturating_sub(before + bytes);
        if total.shared.load(Ordering::Relaxed) && own > free {
            self.give(bytes);
            return false;
        }
        true
    }

    /// Takes so many bytes whether they are there or not: for what is small and must not be lost.
    pub fn force(&self, bytes: usize) {
        self.0.total.used.fetch_add(bytes, Ordering::Relaxed);
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives so many bytes back.
    pub fn give(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::Relaxed);
        self.0.total.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that it holds.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Whether more than half of the budget is taken, by whomever.
    pub fn is_scarce(&self) -> bool {
        let total = &self.0.total;
        total.used.load(Ordering::Relaxed) > total.size / 2
    }

    /// Whether nothing is held and nobody else knows of it.
    pub fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1 && self.used() == 0
    }

    /// Whether both are the same account.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A charge to this account, of nothing yet.
    pub fn charge(&self) -> Charge {
        Charge { account: self.clone(), bytes: 0 }
    }

    /// Registers what is held for a client that is away, as long as the entry lives.
    pub fn idle(&self, holder: Weak<dyn Evict>) -> Idle {
        let mut register = self.0.total.register();
        register.last += 1;
        let number = register.last;
        register.entries.insert(number, (self.0.clone(), holder));
        Idle { total: self.0.total.clone(), number }
    }

    /// Drops what is kept for clients that are away until there is room: of this account, then of those that hold more.
    fn take_evicting(&self, bytes: usize) -> bool {
        let own = |owner: &Arc<Purse>| Arc::ptr_eq(owner, &self.0);
        let mine = self.used().saturating_add(bytes);
        let richer = |owner: &Arc<Purse>| !own(owner) && owner.used.load(Ordering::Relaxed) > mine;
        let register = self.0.total.register();
        let candidates = |which: &dyn Fn(&Arc<Purse>) -> bool| {
            for (_, holder) in register.entries.values().filter(|(owner, _)| which(owner)) {
                let Some(holder) = holder.upgrade() else { continue };
                holder.evict();
                if self.try_take(bytes, Priority::Normal) {
                    return true;
                }
            }
            false
        };
        candidates(&own) || candidates(&richer)
    }
}

impl Total {
    fn register(&self) -> MutexGuard<'_, Register> {
        // Each change of the register is complete in itself, so a panic elsewhere does not spoil it.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Total({} of {} bytes)", self.used.load(Ordering::Relaxed), self.size)
    }
}

/// An entry among what is dropped first. Dropping it removes the entry.
#[derive(Debug)]
pub struct Idle {
    total: Arc<Total>,
    number: u64,
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.total.register().entries.remove(&self.number);
    }
}

/// Bytes taken from an account, given back when this is dropped.
#[derive(Debug)]
pub struct Charge {
    account: Account,
    bytes: usize,
}

impl Charge {
    /// Where the bytes come from.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// How many bytes it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Makes it so many bytes. False: there are not so many, and it stays as it is.
    #[must_use]
    pub fn resize(&mut self, bytes: usize) -> bool {
        self.resize_as(bytes, |account, more| account.take(more))
    }

    /// The same for what is kept only in case somebody wants it.
    #[must_use]
    pub fn resize_spare(&mut self, bytes: usize) -> bool {
        self.resize_as(bytes, |account, more| account.try_take(more, Priority::Spare))
    }

    /// The same whether they are there or not.
    pub fn resize_anyway(&mut self, bytes: usize) {
        // What is forced is always granted.
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

    /// What a test keeps for a client that is away.
    struct Kept(Mutex<Charge>);

    impl Kept {
        fn new(account: &Account, bytes: usize) -> Arc<Self> {
            let mut charge = account.charge();
            assert!(charge.resize(bytes));
            Arc::new(Self(Mutex::new(charge)))
        }

        fn bytes(&self) -> usize {
            self.0.lock().unwrap().bytes()
        }
    }

    impl Evict for Kept {
        fn evict(&self) {
            assert!(self.0.lock().unwrap().resize(0));
        }
    }

    fn idle(account: &Account, kept: &Arc<Kept>) -> Idle {
        let weak: Weak<Kept> = Arc::downgrade(kept);
        account.idle(weak)
    }

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
    fn one_of_several_gets_half_and_the_next_finds_some() {
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

    #[test]
    fn buffers_of_absent_clients_are_evicted_first() {
        let budget = Budget::new(1000);
        let account = budget.account();
        let kept = [300, 300, 300].map(|bytes| Kept::new(&account, bytes));
        let entries: Vec<Idle> = kept.iter().map(|kept| idle(&account, kept)).collect();
        assert!(account.take(300));
        assert_eq!(kept.each_ref().map(|kept| kept.bytes()), [0, 300, 300]);
        drop(entries);
        assert!(!account.take(300), "nobody is away any more");
    }

    #[test]
    fn eviction_spares_smaller_accounts() {
        let budget = Budget::new(1000);
        budget.share(true);
        let (rich, poor) = (budget.account(), budget.account());
        let (his, hers) = (Kept::new(&rich, 400), Kept::new(&poor, 200));
        let _entries = [idle(&rich, &his), idle(&poor, &hers)];
        assert!(!rich.take(700));
        assert_eq!((his.bytes(), hers.bytes()), (0, 200), "his own only");
        let his = Kept::new(&rich, 400);
        let _entry = idle(&rich, &his);
        assert!(poor.take(250));
        assert_eq!((his.bytes(), hers.bytes()), (400, 0), "her own first");
        assert!(poor.take(100), "then of who has more");
        assert_eq!(his.bytes(), 0);
    }
}
