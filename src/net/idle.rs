//! The registry of bytes held for absent clients: replay buffers of sessions without a stream, and
//! parked queues. They are evicted, oldest first, when others need the memory.
//!
//! `crate::budget` counts the bytes; this adds the lock that its layer must not have. The lock is
//! held while holders are evicted, so [`Evict::evict`] must not wait for another.

use std::{collections::BTreeMap, sync::Weak};

use crate::{
    budget::{Account, Budget, Evict, Priority, Reclaim},
    runtime::lock::Lock,
};

#[derive(Default)]
struct IdleRegistry(Lock<Entries>);

#[derive(Default)]
struct Entries {
    last: u64,
    holders: BTreeMap<u64, (Account, Weak<dyn Evict>)>,
}

/// Creates a budget of `size` bytes from which bytes held for absent clients are evicted.
pub fn budget(size: usize) -> Budget {
    Budget::evicting(size, Box::<IdleRegistry>::default())
}

impl Reclaim for IdleRegistry {
    fn add(&self, account: Account, holder: Weak<dyn Evict>) -> u64 {
        let mut entries = self.0.lock();
        entries.last += 1;
        let number = entries.last;
        entries.holders.insert(number, (account, holder));
        number
    }

    fn remove(&self, entry: u64) {
        let removed = self.0.lock().holders.remove(&entry);
        // Dropped without the lock: it may be the last reference to the account.
        drop(removed);
    }

    /// Evicts first what this account holds, then what accounts that hold more do.
    fn take(&self, account: &Account, bytes: usize) -> bool {
        let mine = account.used().saturating_add(bytes);
        let richer = |owner: &Account| !owner.is(account) && owner.used() > mine;
        let entries = self.0.lock();
        let candidates = |which: &dyn Fn(&Account) -> bool| {
            for (_, holder) in entries.holders.values().filter(|(owner, _)| which(owner)) {
                let Some(holder) = holder.upgrade() else { continue };
                holder.evict();
                if account.try_take(bytes, Priority::Normal) {
                    return true;
                }
            }
            false
        };
        candidates(&|owner| owner.is(account)) || candidates(&richer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::{Charge, Idle};

    /// Test data held for an absent client.
    struct Held(Lock<Charge>);

    impl Held {
        fn new(account: &Account, bytes: usize) -> Arc<Self> {
            let mut charge = account.charge();
            assert!(charge.resize(bytes));
            Arc::new(Self(Lock::new(charge)))
        }

        fn bytes(&self) -> usize {
            self.0.lock().bytes()
        }
    }

    impl Evict for Held {
        fn evict(&self) {
            assert!(self.0.lock().resize(0));
        }
    }

    fn idle(account: &Account, kept: &Arc<Held>) -> Idle {
        let weak: Weak<Held> = Arc::downgrade(kept);
        account.idle(weak)
    }

    #[test]
    fn buffers_of_absent_clients_are_evicted_first() {
        let budget = budget(1000);
        let account = budget.account();
        let kept = [300, 300, 300].map(|bytes| Held::new(&account, bytes));
        let entries: Vec<Idle> = kept.iter().map(|kept| idle(&account, kept)).collect();
        assert!(account.take(300));
        assert_eq!(kept.each_ref().map(|kept| kept.bytes()), [0, 300, 300]);
        drop(entries);
        assert!(!account.take(300), "nobody is away any more");
    }

    #[test]
    fn eviction_spares_smaller_accounts() {
        let budget = budget(1000);
        budget.share(true);
        let (rich, poor) = (budget.account(), budget.account());
        let (his, hers) = (Held::new(&rich, 400), Held::new(&poor, 200));
        let _entries = [idle(&rich, &his), idle(&poor, &hers)];
        assert!(!rich.take(700));
        assert_eq!((his.bytes(), hers.bytes()), (0, 200), "his own only");
        let his = Held::new(&rich, 400);
        let _entry = idle(&rich, &his);
        assert!(poor.take(250));
        assert_eq!((his.bytes(), hers.bytes()), (400, 0), "her own first");
        assert!(poor.take(100), "then of who has more");
        assert_eq!(his.bytes(), 0);
    }
}
