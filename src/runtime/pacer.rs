//! Spreads out the work of many tasks that become ready at the same moment.

use futures_lite::future;
use smol::lock::Mutex;

/// Lets the tasks that share it run one after the other, and yields to all other tasks between two
/// of them. Thousands of tasks with work at the same moment then do not block the rest of the
/// program until all of them are done.
#[derive(Debug, Default)]
pub struct Pacer(Mutex<()>);

impl Pacer {
    /// Waits for this task's turn. The turn lasts until the task's next await point that is
    /// pending.
    pub async fn turn(&self) {
        let _turn = self.0.lock().await;
        future::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, task::Context};

    use super::*;

    #[test]
    fn the_pacer_admits_one_task_per_round() {
        let (pacer, turns) = (Pacer::default(), std::cell::Cell::new(0));
        let paced = |_| {
            Box::pin(async {
                pacer.turn().await;
                turns.set(turns.get() + 1);
            })
        };
        let mut paced: Vec<_> = (0..100).map(paced).collect();
        let mut context = Context::from_waker(std::task::Waker::noop());
        for round in 0..50 {
            // Every task is polled in each round, as in the executor.
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            assert_eq!((turns.get(), paced.len()), (round, 100 - round));
        }
        // Drops the task whose turn it is, and one that waits.
        paced.drain(..2);
        while !paced.is_empty() {
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(turns.get(), 98);
    }
}
