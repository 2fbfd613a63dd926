//! Owners of the tasks that shared servers work on (MCP 2025-11-25, tasks). A server that all clients share cannot tell who
//! asks for a task, so the gateway remembers which principal began it: the task outlives the session.
//!
//! Bound to one run of a server program: one that starts again, or registers again, may give the same ids to others.

use std::collections::{BTreeMap, HashMap};

use crate::{auth::Principal, limits, secret::Digest};

/// A run of a server program. Never reused.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Run(u64);

/// What is known of a task's owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskOwner {
    /// This principal began it.
    Known(Principal),
    /// The gateway has not seen its beginning.
    Unknown,
    /// It may be one whose owner the gateway no longer remembers.
    Forgotten,
}

/// Task ids by digest, so that an entry has the same size however long the id is.
type TaskId = u128;

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct TaskOwners {
    runs: u64,
    begun: u64,
    owned: usize,
    by_run: HashMap<Run, RunTasks>,
    /// By the order in which they began.
    by_principal: HashMap<Principal, BTreeMap<u64, (Run, TaskId)>>,
}

/// The tasks of one run.
#[derive(Debug, Default)]
struct RunTasks {
    /// With each task's place in the order of all.
    owners: HashMap<TaskId, (Principal, u64)>,
    /// The owner of some task was forgotten.
    forgot: bool,
}

impl TaskOwners {
    /// Begins the run of a server program.
    pub fn start(&mut self) -> Run {
        self.runs += 1;
        Run(self.runs)
    }

    /// Ends a run: its tasks are gone with it.
    pub fn end(&mut self, run: Run) {
        let Some(known) = self.by_run.remove(&run) else { return };
        for (principal, number) in known.owners.into_values() {
            self.take_out(principal, number);
        }
    }

    /// Records who began a task. Beyond [`limits::TASKS`] the principal's oldest task is forgotten, and beyond
    /// [`limits::TASKS_ALL`] that of the principal with the most tasks.
    pub fn begin(&mut self, run: Run, id: &str, principal: Principal) {
        let id = Digest::of(id.as_bytes()).number();
        let known = self.by_run.entry(run).or_default();
        // The first owner keeps it: a server that gives an id twice must not give the task away.
        if known.owners.contains_key(&id) {
            return;
        }
        self.begun += 1;
        self.owned += 1;
        known.owners.insert(id, (principal, self.begun));
        let own = self.by_principal.entry(principal).or_default();
        own.insert(self.begun, (run, id));
        if own.len() > limits::TASKS {
            self.forget_oldest(principal);
        } else if self.owned > limits::TASKS_ALL {
            let most = self.by_principal.iter().max_by_key(|(_, own)| own.len()).map(|(most, _)| *most);
            most.into_iter().for_each(|most| self.forget_oldest(most));
        }
    }

    /// The owner of a task.
    pub fn owner(&self, run: Run, id: &str) -> TaskOwner {
        let Some(known) = self.by_run.get(&run) else { return TaskOwner::Unknown };
        match known.owners.get(&Digest::of(id.as_bytes()).number()) {
            Some((principal, _)) => TaskOwner::Known(*principal),
            None if known.forgot => TaskOwner::Forgotten,
            None => TaskOwner::Unknown,
        }
    }

    /// Forgets the tasks of principals that may not ask for them any more.
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) {
        let gone: Vec<Principal> = self.by_principal.keys().copied().filter(|who| !may_stay(*who)).collect();
        for principal in gone {
            while self.by_principal.contains_key(&principal) {
                self.forget_oldest(principal);
            }
        }
    }

    /// How many owners are remembered.
    pub fn len(&self) -> usize {
        self.owned
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.owned == 0
    }

    fn forget_oldest(&mut self, principal: Principal) {
        let oldest = self.by_principal.get(&principal).and_then(BTreeMap::first_key_value);
        let Some((number, (run, id))) = oldest.map(|(number, task)| (*number, *task)) else { return };
        self.take_out(principal, number);
        if let Some(known) = self.by_run.get_mut(&run) {
            known.owners.remove(&id);
            known.forgot = true;
        }
    }

    fn take_out(&mut self, principal: Principal, number: u64) {
        let Some(own) = self.by_principal.get_mut(&principal) else { return };
        self.owned -= usize::from(own.remove(&number).is_some());
        if own.is_empty() {
            self.by_principal.remove(&principal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: fn() -> Principal = || Principal::token(1);
    const TWO: fn() -> Principal = || Principal::token(2);

    #[test]
    fn a_task_is_its_principals_and_its_servers() {
        let mut tasks = TaskOwners::default();
        let (a, b) = (tasks.start(), tasks.start());
        tasks.begin(a, "t", ONE());
        tasks.begin(b, "t", TWO());
        assert_eq!(
            (tasks.owner(a, "t"), tasks.owner(b, "t")),
            (TaskOwner::Known(ONE()), TaskOwner::Known(TWO()))
        );
        assert_eq!((tasks.owner(a, "u"), tasks.owner(Run(9), "t")), (TaskOwner::Unknown, TaskOwner::Unknown));
        tasks.begin(a, "t", TWO());
        assert_eq!(tasks.owner(a, "t"), TaskOwner::Known(ONE()), "the first keeps it");
        let long = "x".repeat(limits::ID_BYTES + 1);
        tasks.begin(a, &long, ONE());
        assert_eq!(tasks.owner(a, &long), TaskOwner::Known(ONE()));
    }

    #[test]
    fn owners_end_with_the_run_and_with_the_principal() {
        let mut tasks = TaskOwners::default();
        let (a, b) = (tasks.start(), tasks.start());
        for (run, id, who) in [(a, "1", ONE()), (a, "2", TWO()), (b, "1", ONE())] {
            tasks.begin(run, id, who);
        }
        tasks.end(a);
        assert_eq!((tasks.owner(a, "1"), tasks.len()), (TaskOwner::Unknown, 1));
        let again = tasks.start();
        tasks.begin(again, "1", TWO());
        assert_eq!(
            tasks.owner(again, "1"),
            TaskOwner::Known(TWO()),
            "an id that is used again is another task"
        );
        tasks.expel(|who| who == TWO());
        assert_eq!((tasks.owner(b, "1"), tasks.len()), (TaskOwner::Forgotten, 1), "nobody else gets it");
        tasks.end(b);
        tasks.end(again);
        assert!(tasks.is_empty() && tasks.by_run.is_empty() && tasks.by_principal.is_empty());
    }

    #[test]
    fn tasks_are_bounded_for_each_principal() {
        let mut tasks = TaskOwners::default();
        let run = tasks.start();
        tasks.begin(run, "mine", TWO());
        for number in 0..=limits::TASKS {
            tasks.begin(run, &number.to_string(), ONE());
        }
        let last = limits::TASKS.to_string();
        assert_eq!(
            (tasks.owner(run, "0"), tasks.owner(run, "1")),
            (TaskOwner::Forgotten, TaskOwner::Known(ONE()))
        );
        assert_eq!(tasks.owner(run, &last), TaskOwner::Known(ONE()));
        assert_eq!(tasks.owner(run, "mine"), TaskOwner::Known(TWO()));
    }

    #[test]
    fn tasks_are_bounded_over_all_principals() {
        let mut tasks = TaskOwners::default();
        let run = tasks.start();
        tasks.begin(run, "mine", TWO());
        for number in 0..limits::TASKS_ALL {
            // Principals with 64 tasks each, and one with twice as many.
            let who = if number < 128 { 3 } else { 4 + number / 64 };
            tasks.begin(run, &number.to_string(), Principal::token(who));
        }
        assert_eq!(tasks.len(), limits::TASKS_ALL);
        assert_eq!(tasks.owner(run, "mine"), TaskOwner::Known(TWO()));
        assert_eq!(tasks.owner(run, "0"), TaskOwner::Forgotten, "the one with the most gives way");
    }
}
