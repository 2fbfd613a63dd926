//! A bounded queue of messages from many tasks to the one task that writes them.
//!
//! Bounded in messages and in bytes. The reader takes all there is at once, so that it can write it at once.
//! A single message larger than the byte limit is still taken when nothing else waits. Queues of the same kind may have a
//! [`Pool`] of bytes in common: a burst of large messages finds room there, and yet all queues together are bounded. The lock is never held
//! across an await.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use crate::limits;

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// The reader does not keep up.
    Full,
    /// The queue was ended, or its reader is gone.
    Closed,
}

/// What the reader finds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Taken<E> {
    /// Messages were added to what it passed in.
    Some,
    /// All was read and the queue was ended, for this reason.
    Ended(E),
}

/// The writing side.
pub struct Sender<E>(Arc<Mutex<State<E>>>);

/// The reading side.
pub struct Receiver<E>(Arc<Mutex<State<E>>>);

/// Bytes that several queues may use beyond their own.
#[derive(Clone, Debug)]
pub struct Pool(Arc<AtomicUsize>);

impl Pool {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    /// Takes so many out. False: there are fewer, and none is taken.
    pub fn take(&self, bytes: usize) -> bool {
        let taken = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, taken).is_ok()
    }

    /// Gives so many back.
    pub fn give(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

struct State<E> {
    messages: VecDeque<String>,
    /// Bytes of the messages, and of those that were taken by [`Receiver::poll_take_some`] last.
    bytes: usize,
    lent: usize,
    most_messages: usize,
    most_bytes: usize,
    pool: Option<Pool>,
    /// Bytes from there.
    borrowed: usize,
    end: Option<E>,
    deaf: bool,
    reader: Option<Waker>,
    writers: Vec<Waker>,
}

/// A queue for so many messages and bytes. `E` is the reason with which it can be ended.
pub fn bounded<E>(most_messages: usize, most_bytes: usize) -> (Sender<E>, Receiver<E>) {
    with_pool(most_messages, most_bytes, None)
}

/// The same, and bytes beyond those may come from a pool.
pub fn with_pool<E>(most_messages: usize, most_bytes: usize, pool: Option<Pool>) -> (Sender<E>, Receiver<E>) {
    let state = Arc::new(Mutex::new(State {
        messages: VecDeque::new(),
        bytes: 0,
        lent: 0,
        most_messages,
        most_bytes,
        pool,
        borrowed: 0,
        end: None,
        deaf: false,
        reader: None,
        writers: Vec::new(),
    }));
    (Sender(state.clone()), Receiver(state))
}

fn lock<E>(state: &Mutex<State<E>>) -> MutexGuard<'_, State<E>> {
    // The state is sound between any two statements, so a panic elsewhere does not spoil it.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<E> State<E> {
    /// Puts in what finds room, with room for so many messages more than usual.
    fn push(&mut self, message: String, more: usize) -> Result<(), (Refused, String)> {
        if self.is_closed() {
            return Err((Refused::Closed, message));
        }
        let most = self.most_messages.saturating_add(more);
        let fits = self.messages.len() < most && self.has_bytes(message.len());
        if !fits && !self.messages.is_empty() {
            return Err((Refused::Full, message));
        }
        self.add(message);
        Ok(())
    }

    /// Puts in what has its share beyond the bounds.
    fn push_own(&mut self, message: String) -> Result<(), Refused> {
        let most_messages = self.most_messages.saturating_add(limits::OWN_MESSAGES);
        let most_bytes = self.most_bytes.saturating_add(limits::OWN_BYTES);
        if self.messages.len() >= most_messages || self.bytes + message.len() > most_bytes {
            return self.push(message, 0).map_err(|(refused, _)| refused);
        }
        self.push_anyway(message)
    }

    /// Puts in without a look at the bounds.
    fn push_anyway(&mut self, message: String) -> Result<(), Refused> {
        if self.is_closed() {
            return Err(Refused::Closed);
        }
        self.add(message);
        Ok(())
    }

    fn add(&mut self, message: String) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    fn is_closed(&self) -> bool {
        self.deaf || self.end.is_some()
    }

    /// Whether so many bytes more find room, here or in the pool.
    fn has_bytes(&mut self, more: usize) -> bool {
        let over = (self.bytes + more).saturating_sub(self.most_bytes);
        let Some(missing) = over.checked_sub(self.borrowed).filter(|missing| *missing > 0) else {
            return true;
        };
        let found = self.pool.as_ref().is_some_and(|pool| pool.take(missing));
        if found {
            self.borrowed += missing;
        }
        found
    }

    /// Gives back to the pool what is not needed any more.
    fn settle(&mut self) {
        let needed = self.bytes.saturating_sub(self.most_bytes);
        let spare = self.borrowed.saturating_sub(needed);
        if let Some(pool) = self.pool.as_ref().filter(|_| spare > 0) {
            pool.give(spare);
            self.borrowed -= spare;
        }
    }
}

impl<E> Drop for State<E> {
    fn drop(&mut self) {
        self.bytes = 0;
        self.settle();
    }
}

impl<E> Sender<E> {
    /// Puts a message in, at once or not at all.
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    pub fn send(&self, message: String) -> Result<(), Refused> {
        self.offer(message).map_err(|(refused, _)| refused)
    }

    /// As [`Sender::send`], and gives the message back when it is refused.
    ///
    /// # Errors
    /// [`Refused`], with the reason, and the message.
    pub fn offer(&self, message: String) -> Result<(), (Refused, String)> {
        self.put(|state| state.push(message, 0))
    }

    /// As [`Sender::send`], with room for so many messages more: for what is not to be kept out by many others. Bytes
    /// have no more room than usual.
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    pub fn send_more(&self, message: String, more: usize) -> Result<(), Refused> {
        self.put(|state| state.push(message, more)).map_err(|(refused, _)| refused)
    }

    /// As [`Sender::send`], for what this end says of its own: that has a share beyond the bounds, so that the messages of others,
    /// who wait for room, do not keep it out ([`limits::OWN_MESSAGES`]).
    ///
    /// # Errors
    /// [`Refused`], with the reason.
    pub fn send_own(&self, message: String) -> Result<(), Refused> {
        self.put(|state| state.push_own(message))
    }

    /// Puts a message in even if there is no room: for what is bounded elsewhere and must not be lost.
    ///
    /// # Errors
    /// [`Refused::Closed`].
    pub fn send_anyway(&self, message: String) -> Result<(), Refused> {
        self.put(|state| state.push_anyway(message))
    }

    /// Changes the state, and wakes the reader when that was taken.
    fn put<R>(&self, push: impl FnOnce(&mut State<E>) -> Result<(), R>) -> Result<(), R> {
        let waker = {
            let mut state = lock(&self.0);
            push(&mut state)?;
            state.reader.take()
        };
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Puts a message in, as soon as there is room.
    ///
    /// # Errors
    /// [`Refused::Closed`] when there will be none.
    pub async fn send_wait(&self, message: String) -> Result<(), Refused> {
        let mut message = Some(message);
        poll_fn(|context| {
            let Some(waiting) = message.take() else { return Poll::Ready(Ok(())) };
            let mut state = lock(&self.0);
            match state.push(waiting, 0) {
                Ok(()) => {
                    let waker = state.reader.take();
                    drop(state);
                    waker.into_iter().for_each(Waker::wake);
                    Poll::Ready(Ok(()))
                }
                Err((Refused::Full, back)) => {
                    message = Some(back);
                    // One entry for each writer, however often it is polled while it waits.
                    if !state.writers.iter().any(|waker| waker.will_wake(context.waker())) {
                        state.writers.push(context.waker().clone());
                    }
                    Poll::Pending
                }
                Err((refused, _)) => Poll::Ready(Err(refused)),
            }
        })
        .await
    }

    /// Ends the queue: what is in it is still read. Only the first reason counts.
    pub fn end(&self, reason: E) {
        let wakers = {
            let mut state = lock(&self.0);
            state.end.get_or_insert(reason);
            state.reader.take().into_iter().chain(std::mem::take(&mut state.writers)).collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether no message waits to be taken by the reader.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).messages.is_empty()
    }

    /// Whether this very message waits to be read.
    pub fn has(&self, message: &str) -> bool {
        lock(&self.0).messages.iter().any(|waiting| waiting == message)
    }

    /// Whether nothing more is taken.
    pub fn is_closed(&self) -> bool {
        let state = lock(&self.0);
        state.deaf || state.end.is_some()
    }
}

impl<E: Clone> Receiver<E> {
    /// Takes all messages there are.
    pub fn poll_take(&mut self, context: &mut Context<'_>, into: &mut VecDeque<String>) -> Poll<Taken<E>> {
        let mut state = lock(&self.0);
        if state.messages.is_empty() {
            if let Some(reason) = &state.end {
                return Poll::Ready(Taken::Ended(reason.clone()));
            }
            if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                state.reader = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        (state.bytes, state.lent) = (0, 0);
        state.settle();
        if into.is_empty() {
            std::mem::swap(into, &mut state.messages);
        } else {
            into.append(&mut state.messages);
        }
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Poll::Ready(Taken::Some)
    }

    /// Takes messages until they have so many bytes, at least one. They count as waiting until the next call: whoever writes
    /// them out has them as long in memory.
    pub fn poll_take_some(
        &mut self,
        context: &mut Context<'_>,
        into: &mut VecDeque<String>,
        bytes: usize,
    ) -> Poll<Taken<E>> {
        let mut state = lock(&self.0);
        state.bytes -= std::mem::take(&mut state.lent);
        state.settle();
        while state.lent < bytes
            && let Some(message) = state.messages.pop_front()
        {
            state.lent += message.len();
            into.push_back(message);
        }
        if into.is_empty() {
            drop(state);
            return self.poll_take(context, into);
        }
        if state.messages.is_empty() {
            // A burst must not be paid for until the queue ends.
            state.messages = VecDeque::new();
        }
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Poll::Ready(Taken::Some)
    }

    /// Waits until the queue is ended, and gives the reason; what is in it stays there.
    pub async fn ended(&mut self) -> E
    where
        E: Clone,
    {
        poll_fn(|context| {
            let mut state = lock(&self.0);
            if let Some(end) = &state.end {
                return Poll::Ready(end.clone());
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Takes all messages there are, and waits for one if there is none.
    pub async fn take(&mut self, into: &mut VecDeque<String>) -> Taken<E> {
        poll_fn(|context| self.poll_take(context, into)).await
    }
}

impl<E> Drop for Receiver<E> {
    fn drop(&mut self) {
        let (messages, writers) = {
            let mut state = lock(&self.0);
            state.deaf = true;
            state.bytes = 0;
            state.settle();
            (std::mem::take(&mut state.messages), std::mem::take(&mut state.writers))
        };
        drop(messages);
        writers.into_iter().for_each(Waker::wake);
    }
}

impl<E> Clone for Sender<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E> fmt::Debug for Sender<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.0);
        write!(f, "Sender({} messages, {} bytes)", state.messages.len(), state.bytes)
    }
}

impl<E> fmt::Debug for Receiver<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver")
    }
}

#[cfg(test)]
mod tests {
    use smol::block_on;

    use super::*;

    #[test]
    fn bounds_hold_and_one_large_message_passes() {
        let (sender, mut receiver) = bounded::<()>(3, 10);
        assert_eq!(sender.send("x".repeat(100)), Ok(()));
        assert_eq!(sender.send("y".into()), Err(Refused::Full));
        let mut taken = VecDeque::new();
        assert_eq!(block_on(receiver.take(&mut taken)), Taken::Some);
        for text in ["a", "b", "c"] {
            assert_eq!(sender.send(text.into()), Ok(()));
        }
        assert_eq!(sender.send("d".into()), Err(Refused::Full));
        block_on(receiver.take(&mut taken));
        assert_eq!(taken.len(), 4);
    }

    #[test]
    fn what_is_written_counts_until_it_is_written() {
        let (sender, mut receiver) = bounded::<()>(10, 10);
        for text in ["aaaa", "bbbb"] {
            sender.send(text.into()).unwrap();
        }
        let mut take = |taken: &mut VecDeque<String>| {
            block_on(poll_fn(|context| receiver.poll_take_some(context, taken, 1)))
        };
        let mut taken = VecDeque::new();
        assert_eq!((take(&mut taken), taken.len()), (Taken::Some, 1));
        assert_eq!(sender.send("cccc".into()), Err(Refused::Full), "the first is not out yet");
        taken.clear();
        assert_eq!((take(&mut taken), taken.len()), (Taken::Some, 1));
        assert_eq!(sender.send("cccc".into()), Ok(()));
        sender.end(());
        taken.clear();
        assert_eq!((take(&mut taken), taken.pop_front()), (Taken::Some, Some("cccc".into())));
        assert_eq!(take(&mut taken), Taken::Ended(()));
    }

    #[test]
    fn a_burst_finds_room_in_the_pool_and_gives_it_back() {
        let pool = Pool::new(10);
        let queue = || with_pool::<()>(9, 10, Some(pool.clone()));
        let ((sender, mut receiver), (other, others)) = (queue(), queue());
        for text in ["aaaaaaaa", "bbbbbb", "cccc"] {
            assert_eq!(sender.send(text.into()), Ok(()));
        }
        assert_eq!(pool.left(), 2);
        assert_eq!(sender.send("ddd".into()), Err(Refused::Full));
        assert_eq!(other.send("x".repeat(11)), Ok(()));
        assert_eq!((other.send("yy".into()), pool.left()), (Err(Refused::Full), 1));
        drop((other, others));
        assert_eq!(pool.left(), 2);
        let mut taken = VecDeque::new();
        block_on(poll_fn(|context| receiver.poll_take_some(context, &mut taken, 1)));
        assert_eq!(pool.left(), 2, "what is written counts until it is written");
        block_on(poll_fn(|context| receiver.poll_take_some(context, &mut taken, 1)));
        assert_eq!(pool.left(), 10);
        sender.send("e".repeat(9)).unwrap();
        assert!(pool.left() < 10);
        drop(receiver);
        assert_eq!(pool.left(), 10);
    }

    #[test]
    fn what_an_end_says_of_its_own_has_a_share() {
        let (sender, mut receiver) = bounded::<()>(1, 10);
        sender.send("a".into()).unwrap();
        for _ in 0..limits::OWN_MESSAGES {
            assert_eq!(sender.send("b".into()), Err(Refused::Full));
            assert_eq!(sender.send_own("own".into()), Ok(()));
        }
        assert_eq!(sender.send_own("own".into()), Err(Refused::Full));
        let mut taken = VecDeque::new();
        block_on(receiver.take(&mut taken));
        assert_eq!(taken.len(), 1 + limits::OWN_MESSAGES);
        assert_eq!(sender.send("a".into()), Ok(()));
        assert_eq!(sender.send_own("x".repeat(10 + limits::OWN_BYTES)), Err(Refused::Full));
        drop(receiver);
        assert_eq!(sender.send_own("own".into()), Err(Refused::Closed));
    }

    #[test]
    fn what_was_sent_before_the_end_is_read() {
        let (sender, mut receiver) = bounded(3, 10);
        sender.send("a".into()).unwrap();
        sender.end("first");
        sender.end("second");
        assert_eq!(sender.send("b".into()), Err(Refused::Closed));
        let mut taken = VecDeque::new();
        assert_eq!(block_on(receiver.take(&mut taken)), Taken::Some);
        assert_eq!(block_on(receiver.take(&mut taken)), Taken::Ended("first"));
        assert_eq!(taken, ["a"]);
    }

    #[test]
    fn a_waiting_writer_goes_on_when_there_is_room_or_nobody() {
        let (sender, mut receiver) = bounded::<()>(1, 10);
        block_on(async {
            sender.send("a".into()).unwrap();
            let mut waiting = Box::pin(sender.send_wait("b".into()));
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            assert_eq!(lock(&sender.0).writers.len(), 1);
            let mut taken = VecDeque::new();
            receiver.take(&mut taken).await;
            assert_eq!(waiting.await, Ok(()));
            let mut waiting = Box::pin(sender.send_wait("c".into()));
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            drop(receiver);
            assert_eq!(waiting.await, Err(Refused::Closed));
            assert!(sender.is_closed());
        });
    }
}
