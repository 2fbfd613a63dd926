//! Whose the tasks are that shared servers work on (MCP 2025-11-25, tasks). A server that all clients share cannot tell who asks
//! for one, so the gateway remembers who had it begun: a task is bound to the principal, since it outlives the session.

use std::collections::HashMap;

use crate::{auth::Principal, limits};

/// See the module's documentation. By the name of the server and its own id.
#[derive(Debug, Default)]
pub struct Tasks {
    begun: u64,
    owned: HashMap<(String, String), Owned>,
}

#[derive(Debug)]
struct Owned {
    principal: Principal,
    /// Its place in the order in which they were begun.
    number: u64,
}

impl Tasks {
    /// A server has begun a task for somebody. Beyond [`limits::TASKS`] the principal's oldest is forgotten, and so is at once
    /// one with a longer id than [`limits::ID_BYTES`]: nobody's, as if it was begun before the gateway.
    pub fn begin(&mut self, server: &str, id: &str, principal: Principal) {
        if id.len() > limits::ID_BYTES {
            return;
        }
        self.begun += 1;
        // Whoever had an id keeps it: a server that gives one twice must not give it away.
        let key = (server.to_owned(), id.to_owned());
        self.owned.entry(key).or_insert(Owned { principal, number: self.begun });
        let own = || self.owned.iter().filter(|(_, owned)| owned.principal == principal);
        if own().count() > limits::TASKS {
            let oldest = own().min_by_key(|(_, owned)| owned.number).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.owned.remove(&key));
        }
    }

    /// Who had it begun, as far as that is known.
    pub fn owner(&self, server: &str, id: &str) -> Option<Principal> {
        self.owned.get(&(server.to_owned(), id.to_owned())).map(|owned| owned.principal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: fn() -> Principal = || Principal::token(1);
    const TWO: fn() -> Principal = || Principal::token(2);

    #[test]
    fn a_task_is_its_principals_and_its_servers() {
        let mut tasks = Tasks::default();
        tasks.begin("a", "t", ONE());
        tasks.begin("b", "t", TWO());
        assert_eq!((tasks.owner("a", "t"), tasks.owner("b", "t")), (Some(ONE()), Some(TWO())));
        assert_eq!((tasks.owner("a", "u"), tasks.owner("c", "t")), (None, None));
        tasks.begin("a", "t", TWO());
        assert_eq!(tasks.owner("a", "t"), Some(ONE()), "the first keeps it");
    }

    #[test]
    fn tasks_are_bounded_for_each_principal() {
        let mut tasks = Tasks::default();
        tasks.begin("s", "mine", TWO());
        for number in 0..=limits::TASKS {
            tasks.begin("s", &number.to_string(), ONE());
        }
        let last = limits::TASKS.to_string();
        assert_eq!((tasks.owner("s", "0"), tasks.owner("s", "1")), (None, Some(ONE())));
        assert_eq!((tasks.owner("s", &last), tasks.owner("s", "mine")), (Some(ONE()), Some(TWO())));
        let long = "x".repeat(limits::ID_BYTES + 1);
        tasks.begin("s", &long, ONE());
        assert_eq!(tasks.owner("s", &long), None);
    }
}
