//! Owners of the tasks on shared servers (MCP 2025-11-25, tasks). A server that all clients share
//! cannot tell which client asks for a task, so the gateway remembers which principal began it. A
//! task outlives its session, so the session cannot be the owner.
//!
//! Owners are bound to one run of a server program. After a restart or a new registration, the same
//! ids may belong to other tasks.

use std::collections::{BTreeMap, HashMap};

use crate::{auth::Principal, limits, secret::Digest};

/// One run of a server program. Never reused.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Run(u64);

impl Run {
    /// Returns the number of the run, which no other has.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// The result of looking up a task's owner.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TaskOwner {
    /// This principal began the task.
    Known(Principal),
    /// The gateway did not see the task begin.
    Unknown,
    /// The task may be one whose owner the gateway no longer remembers.
    Forgotten,
}

/// The digest of a task id, so that an entry has the same size however long the id is.
type TaskId = u128;

/// The owners of tasks, by run and by principal.
#[derive(Debug, Default)]
pub struct TaskOwners {
    runs: u64,
    begun: u64,
    owned: usize,
    by_run: HashMap<Run, RunTasks>,
    /// The tasks of each principal, in the order in which they began.
    by_principal: HashMap<Principal, BTreeMap<u64, (Run, TaskId)>>,
}

/// The tasks of one run.
#[derive(Debug, Default)]
struct RunTasks {
    /// The owner of each task, and the task's number in the order of all tasks.
    owners: HashMap<TaskId, (Principal, u64)>,
    /// Whether the owner of any task was forgotten.
    forgot: bool,
}

impl TaskOwners {
    /// Starts a run of a server program.
    pub fn start(&mut self) -> Run {
        self.runs += 1;
        Run(self.runs)
    }

    /// Ends a run and removes its tasks.
    pub fn end(&mut self, run: Run) {
        let Some(known) = self.by_run.remove(&run) else { return };
        for (principal, number) in known.owners.into_values() {
            self.take_out(principal, number);
        }
    }

    /// Records the owner of a task. Beyond [`limits::TASKS_PER_PRINCIPAL`] the principal's oldest
    /// task is forgotten; beyond [`limits::TASKS_ALL`] it is the oldest of the principal with the
    /// most tasks.
    pub fn begin(&mut self, run: Run, id: &str, principal: Principal) {
        let id = Digest::of(id.as_bytes()).number();
        let known = self.by_run.entry(run).or_default();
        // The first owner stays: a server that gives an id twice must not hand the task to another.
        if known.owners.contains_key(&id) {
            return;
        }
        self.begun += 1;
        self.owned += 1;
        known.owners.insert(id, (principal, self.begun));
        let tasks = self.by_principal.entry(principal).or_default();
        tasks.insert(self.begun, (run, id));
        if tasks.len() > limits::TASKS_PER_PRINCIPAL {
            self.forget_oldest(principal);
        } else if self.owned > limits::TASKS_ALL {
            let largest =
                self.by_principal.iter().max_by_key(|(principal, tasks)| (tasks.len(), **principal));
            let largest = largest.map(|(largest, _)| *largest);
            largest.into_iter().for_each(|largest| self.forget_oldest(largest));
        }
    }

    /// Returns the owner of a task.
    pub fn owner(&self, run: Run, id: &str) -> TaskOwner {
        let Some(known) = self.by_run.get(&run) else { return TaskOwner::Unknown };
        match known.owners.get(&Digest::of(id.as_bytes()).number()) {
            Some((principal, _)) => TaskOwner::Known(*principal),
            None if known.forgot => TaskOwner::Forgotten,
            None => TaskOwner::Unknown,
        }
    }

    /// Forgets the tasks of principals that may no longer ask for them.
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) {
        let gone: Vec<Principal> = self.by_principal.keys().copied().filter(|who| !may_stay(*who)).collect();
        for principal in gone {
            while self.by_principal.contains_key(&principal) {
                self.forget_oldest(principal);
            }
        }
    }

    /// Returns the number of tasks whose owner is remembered.
    pub fn len(&self) -> usize {
        self.owned
    }

    /// Whether no owner is remembered.
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
        let Some(tasks) = self.by_principal.get_mut(&principal) else { return };
        self.owned -= usize::from(tasks.remove(&number).is_some());
        if tasks.is_empty() {
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
    fn tasks_belong_to_a_principal_and_a_server() {
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
    fn owners_are_forgotten_with_run_and_principal() {
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
        for number in 0..=limits::TASKS_PER_PRINCIPAL {
            tasks.begin(run, &number.to_string(), ONE());
        }
        let last = limits::TASKS_PER_PRINCIPAL.to_string();
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
            // One principal with 128 tasks, and others with 64 each.
            let who = if number < 128 { 3 } else { 4 + number / 64 };
            tasks.begin(run, &number.to_string(), Principal::token(who));
        }
        assert_eq!(tasks.len(), limits::TASKS_ALL);
        assert_eq!(tasks.owner(run, "mine"), TaskOwner::Known(TWO()));
        assert_eq!(tasks.owner(run, "0"), TaskOwner::Forgotten, "the one with the most gives way");
    }
}
