//! Whose the tasks are that shared servers work on (MCP 2025-11-25, tasks). A server that all clients share cannot tell who asks
//! for one, so the gateway remembers who had it begun: a task is bound to the principal, since it outlives the session.

use crate::{auth::Principal, limits};

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Tasks {
    begun: u64,
    /// In the order of server and id.
    owned: Vec<Owned>,
}

#[derive(Debug)]
struct Owned {
    server: String,
    /// The server's own.
    id: String,
    principal: Principal,
    /// Its place in the order in which they were begun.
    number: u64,
}

impl Tasks {
    /// A server has begun a task for somebody. Beyond [`limits::TASKS`] the principal's oldest is forgotten, and so is at once
    /// one with a longer id than [`limits::ID_BYTES`]: nobody's, as if it was begun before the gateway.
    pub fn begin(&mut self, server: &str, id: &str, principal: Principal) {
        // Whoever had an id keeps it: a server that gives one twice must not give it away.
        let Err(place) = self.find(server, id) else { return };
        if id.len() > limits::ID_BYTES {
            return;
        }
        self.begun += 1;
        let owned = Owned { server: server.to_owned(), id: id.to_owned(), principal, number: self.begun };
        self.owned.insert(place, owned);
        let own = || self.owned.iter().enumerate().filter(|(_, owned)| owned.principal == principal);
        if own().count() > limits::TASKS {
            let oldest = own().min_by_key(|(_, owned)| owned.number).map(|(place, _)| place);
            oldest.map(|place| self.owned.remove(place));
        }
    }

    /// Who had it begun, as far as that is known.
    pub fn owner(&self, server: &str, id: &str) -> Option<Principal> {
        self.find(server, id).ok().map(|place| self.owned[place].principal)
    }

    /// Its place, or that where it would be.
    fn find(&self, server: &str, id: &str) -> Result<usize, usize> {
        self.owned.binary_search_by(|owned| (&*owned.server, &*owned.id).cmp(&(server, id)))
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
