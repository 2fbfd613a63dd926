//! Turns for tasks that all have work at the same moment.

use futures_lite::future;
use smol::lock::Mutex;

/// Gives tasks that have the same thing to do their turns one after the other, and lets all others run between two turns: what
/// thousands have to do at the same moment does not keep the rest of the program waiting until all of it is done.
#[derive(Debug, Default)]
pub struct Pacer(Mutex<()>);

impl Pacer {
    /// Waits for the turn of this task, which is the time until it waits for something the next time.
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
    fn paced_tasks_have_one_turn_in_each_round() {
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
            // All of them are looked at in each round, as in the executor.
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
            assert_eq!((turns.get(), paced.len()), (round, 100 - round));
        }
        // The one whose turn it is, and one that waits, are given up.
        paced.drain(..2);
        while !paced.is_empty() {
            paced.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(turns.get(), 98);
    }
}
