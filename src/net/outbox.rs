//! A bounded queue of messages from many tasks to the one task that writes them.
//!
//! [`Queue`] decides which message is accepted and which bytes are charged. This adds what needs a
//! lock: senders and a reader in different tasks, the end, and eviction while there is no reader. The
//! reader takes all messages at once, so that it can write them at once. The lock is never held
//! across an await.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
};

pub use crate::queue::SendError;
use crate::{
    budget::{Account, Evict, Idle},
    queue::{Queue, Room},
    runtime::lock::Lock,
};

/// The result of a read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Received<E> {
    /// Messages were appended to the reader's buffer.
    Some,
    /// All messages were read, and the queue was ended for this reason.
    Ended(E),
}

/// The writing side.
pub struct Sender<E>(Arc<Lock<QueueState<E>>>);

/// The reading side.
pub struct Receiver<E>(Arc<Lock<QueueState<E>>>);

struct QueueState<E> {
    queue: Queue,
    end: Option<E>,
    receiver_dropped: bool,
    /// Set while there is no reader: the messages may then be dropped.
    parked: Option<Parked>,
    reader: Option<Waker>,
    writers: Vec<Waker>,
}

/// What eviction does to a queue that currently has no reader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Parked {
    /// Drops its messages. The queue accepts others.
    Emptied,
    /// Drops its messages and closes it.
    Closed,
}

/// Creates a queue for at most `max_messages` messages and `max_bytes` bytes. `E` is the reason
/// with which it can be ended.
pub fn bounded<E>(max_messages: usize, max_bytes: usize) -> (Sender<E>, Receiver<E>) {
    with_account(max_messages, max_bytes, None)
}

/// Creates a [`bounded`] queue whose bytes are charged to an account.
pub fn with_account<E>(
    max_messages: usize,
    max_bytes: usize,
    account: Option<Account>,
) -> (Sender<E>, Receiver<E>) {
    let state = Arc::new(Lock::new(QueueState {
        queue: Queue::new(max_messages, max_bytes, account),
        end: None,
        receiver_dropped: false,
        parked: None,
        reader: None,
        writers: Vec::new(),
    }));
    (Sender(state.clone()), Receiver(state))
}

impl<E> QueueState<E> {
    /// See [`Queue::push`].
    fn push(&mut self, message: String, more: usize, burst: usize) -> Result<(), (SendError, String)> {
        if self.is_closed() {
            return Err((SendError::Closed, message));
        }
        self.queue.push(message, more, burst)
    }

    /// See [`Queue::push_reserved`].
    fn push_reserved(&mut self, message: String) -> Result<(), SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        self.queue.push_reserved(message)
    }

    /// See [`Queue::push_unbounded`].
    fn push_unbounded(&mut self, message: String) -> Result<(), SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        self.queue.push_unbounded(message);
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.receiver_dropped || self.end.is_some()
    }

    /// Closes the queue for good. Returns what was in it, to be dropped without holding the lock.
    fn close(&mut self) -> (VecDeque<String>, Vec<Waker>) {
        self.receiver_dropped = true;
        (self.queue.clear(), std::mem::take(&mut self.writers))
    }
}

impl<E: Send> Evict for Lock<QueueState<E>> {
    fn evict(&self) {
        let Some(mut state) = self.try_lock() else { return };
        match state.parked {
            None => {}
            Some(Parked::Closed) => drop(state.close()),
            Some(Parked::Emptied) => drop(state.queue.clear()),
        }
    }
}

impl<E> Sender<E> {
    /// Adds a message immediately, or fails.
    ///
    /// # Errors
    /// [`SendError`] with the reason.
    pub fn send(&self, message: String) -> Result<(), SendError> {
        self.try_send(message).map_err(|(refused, _)| refused)
    }

    /// Like [`Sender::send`], but returns the message if it was not accepted.
    ///
    /// # Errors
    /// [`SendError`] with the reason, and the message.
    pub fn try_send(&self, message: String) -> Result<(), (SendError, String)> {
        self.put(|state| state.push(message, 0, 0))
    }

    /// Like [`Sender::send`], with a message limit raised by `more`: for messages that many others
    /// must not keep out. The byte limit is the usual one.
    ///
    /// # Errors
    /// [`SendError`] with the reason.
    pub fn send_more(&self, message: String, more: usize) -> Result<(), SendError> {
        self.put(|state| state.push(message, more, 0)).map_err(|(refused, _)| refused)
    }

    /// Like [`Sender::try_send`], with a byte limit raised by `burst` and no message limit: for
    /// messages whose number is bounded elsewhere.
    ///
    /// # Errors
    /// [`SendError`] with the reason, and the message.
    pub fn try_send_burst(&self, message: String, burst: usize) -> Result<(), (SendError, String)> {
        self.put(|state| state.push(message, usize::MAX, burst))
    }

    /// Like [`Sender::send`], for messages that this end generates itself. They have reserved
    /// capacity beyond the limits ([`crate::limits::RESERVED_MESSAGES`],
    /// [`crate::limits::RESERVED_BYTES`]), so that forwarded messages, whose senders can wait, do
    /// not keep them out.
    ///
    /// # Errors
    /// [`SendError`] with the reason.
    pub fn send_reserved(&self, message: String) -> Result<(), SendError> {
        self.put(|state| state.push_reserved(message))
    }

    /// Adds a message regardless of the limits: for messages that are bounded elsewhere and must
    /// not be lost.
    ///
    /// # Errors
    /// [`SendError::Closed`].
    pub fn send_unbounded(&self, message: String) -> Result<(), SendError> {
        self.put(|state| state.push_unbounded(message))
    }

    /// Adds a message, and returns the reader, which is then to be woken: for a caller that holds a
    /// lock.
    ///
    /// # Errors
    /// [`SendError`] with the reason.
    pub fn add(&self, message: String, room: Room) -> Result<Option<Waker>, SendError> {
        self.put_quietly(|state| match room {
            Room::Normal => state.push(message, 0, 0).map_err(|(refused, _)| refused),
            Room::Reserved => state.push_reserved(message),
            Room::Unbounded => state.push_unbounded(message),
        })
    }

    /// Runs `push` on the state, and wakes the reader if it succeeded.
    fn put<R>(&self, push: impl FnOnce(&mut QueueState<E>) -> Result<(), R>) -> Result<(), R> {
        self.put_quietly(push)?.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// Runs `push` on the state, and returns the reader if it succeeded.
    fn put_quietly<R>(
        &self,
        push: impl FnOnce(&mut QueueState<E>) -> Result<(), R>,
    ) -> Result<Option<Waker>, R> {
        let mut state = self.0.lock();
        push(&mut state)?;
        Ok(state.reader.take())
    }

    /// Adds a message as soon as there is room.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the queue is closed, or [`SendError::Memory`] if the budget is
    /// exhausted.
    pub async fn send_wait(&self, message: String) -> Result<(), SendError> {
        let mut message = Some(message);
        poll_fn(|context| {
            let Some(waiting) = message.take() else { return Poll::Ready(Ok(())) };
            let mut state = self.0.lock();
            match state.push(waiting, 0, 0) {
                Ok(()) => {
                    let waker = state.reader.take();
                    drop(state);
                    waker.into_iter().for_each(Waker::wake);
                    Poll::Ready(Ok(()))
                }
                Err((SendError::Full, back)) => {
                    message = Some(back);
                    // One entry for each writer, however often it is polled while waiting.
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

    /// Ends the queue. Messages in it can still be read. Only the first reason counts.
    pub fn end(&self, reason: E) {
        let wakers = {
            let mut state = self.0.lock();
            state.end.get_or_insert(reason);
            state.reader.take().into_iter().chain(std::mem::take(&mut state.writers)).collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the reader has taken all messages and has since come back for more, so that it holds
    /// none of them any longer.
    pub fn is_settled(&self) -> bool {
        self.0.lock().queue.is_settled()
    }

    /// Whether an equal message is waiting to be read.
    pub fn has(&self, message: &str) -> bool {
        self.0.lock().queue.has(message)
    }

    /// Whether the queue no longer accepts messages.
    pub fn is_closed(&self) -> bool {
        let state = self.0.lock();
        state.receiver_dropped || state.end.is_some()
    }
}

impl<E: Clone> Receiver<E> {
    /// Takes all messages. They stay charged until the next call, because the reader holds them in
    /// memory while it writes them.
    pub fn poll_take(&mut self, context: &mut Context<'_>, into: &mut VecDeque<String>) -> Poll<Received<E>> {
        self.0.lock().queue.settle();
        self.poll_take_more(context, into)
    }

    /// Like [`Receiver::poll_take`], for a reader that keeps the messages taken before: they stay
    /// charged.
    pub fn poll_take_more(
        &mut self,
        context: &mut Context<'_>,
        into: &mut VecDeque<String>,
    ) -> Poll<Received<E>> {
        let mut state = self.0.lock();
        if state.queue.is_empty() {
            if let Some(reason) = &state.end {
                return Poll::Ready(Received::Ended(reason.clone()));
            }
            if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                state.reader = Some(context.waker().clone());
            }
            return Poll::Pending;
        }
        state.queue.take_all(into);
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Poll::Ready(Received::Some)
    }

    /// Takes messages until they reach `bytes` bytes, at least one. They count against the byte
    /// limit until the next call, because the reader holds them in memory while it writes them.
    pub fn poll_take_some(
        &mut self,
        context: &mut Context<'_>,
        into: &mut VecDeque<String>,
        bytes: usize,
    ) -> Poll<Received<E>> {
        let mut state = self.0.lock();
        state.queue.settle();
        state.queue.take_some(into, bytes);
        if into.is_empty() {
            drop(state);
            return self.poll_take(context, into);
        }
        let writers = std::mem::take(&mut state.writers);
        drop(state);
        writers.into_iter().for_each(Waker::wake);
        Poll::Ready(Received::Some)
    }

    /// Marks the queue as having no reader for now: its messages may be dropped when memory is
    /// needed, for as long as the returned entry lives. Returns `None` if the queue has no account.
    pub fn park(&self, parked: Parked) -> Option<Idle>
    where
        E: Send + 'static,
    {
        let mut state = self.0.lock();
        state.queue.settle();
        state.parked = Some(parked);
        let account = state.queue.account().cloned();
        drop(state);
        let queue: Weak<Lock<QueueState<E>>> = Arc::downgrade(&self.0);
        account.map(|account| account.idle(queue))
    }

    /// Marks the queue as having a reader again. Returns false if it was closed meanwhile and its
    /// messages are lost.
    pub fn unpark(&self) -> bool {
        let mut state = self.0.lock();
        state.parked = None;
        !state.receiver_dropped
    }

    /// Waits until the queue is ended, and returns the reason. Leaves its messages in place.
    pub async fn ended(&mut self) -> E
    where
        E: Clone,
    {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if let Some(end) = &state.end {
                return Poll::Ready(end.clone());
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Takes all messages, and waits for one if there is none.
    pub async fn take(&mut self, into: &mut VecDeque<String>) -> Received<E> {
        poll_fn(|context| self.poll_take(context, into)).await
    }
}

impl<E> Drop for Receiver<E> {
    fn drop(&mut self) {
        let (messages, writers) = self.0.lock().close();
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
        let state = self.0.lock();
        write!(f, "Sender({} messages, {} bytes)", state.queue.len(), state.queue.bytes())
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
    use crate::{budget::Budget, limits, net::idle};

    #[test]
    fn bounds_hold_and_one_large_message_passes() {
        let (sender, mut receiver) = bounded::<()>(3, 10);
        assert_eq!(sender.send("x".repeat(100)), Ok(()));
        assert_eq!(sender.send("y".into()), Err(SendError::Full));
        let mut taken = VecDeque::new();
        assert_eq!(block_on(receiver.take(&mut taken)), Received::Some);
        for text in ["a", "b", "c"] {
            assert_eq!(sender.send(text.into()), Ok(()));
        }
        assert_eq!(sender.send("d".into()), Err(SendError::Full));
        block_on(receiver.take(&mut taken));
        assert_eq!(taken.len(), 4);
    }

    #[test]
    fn bytes_in_flight_count_until_written() {
        let (sender, mut receiver) = bounded::<()>(10, 10);
        for text in ["aaaa", "bbbb"] {
            sender.send(text.into()).unwrap();
        }
        let mut take = |taken: &mut VecDeque<String>| {
            block_on(poll_fn(|context| receiver.poll_take_some(context, taken, 1)))
        };
        let mut taken = VecDeque::new();
        assert_eq!((take(&mut taken), taken.len()), (Received::Some, 1));
        assert_eq!(sender.send("cccc".into()), Err(SendError::Full), "the first is not out yet");
        taken.clear();
        assert_eq!((take(&mut taken), taken.len()), (Received::Some, 1));
        assert_eq!(sender.send("cccc".into()), Ok(()));
        sender.end(());
        taken.clear();
        assert_eq!((take(&mut taken), taken.pop_front()), (Received::Some, Some("cccc".into())));
        assert_eq!(take(&mut taken), Received::Ended(()));
    }

    #[test]
    fn bytes_are_charged_until_they_are_written() {
        let budget = Budget::new(30);
        let account = budget.account();
        let queue = || with_account::<()>(9, 10, Some(account.clone()));
        let ((sender, mut receiver), (other, others)) = (queue(), queue());
        assert_eq!(sender.send("a".repeat(10)), Ok(()));
        assert_eq!(sender.send("b".into()), Err(SendError::Full));
        assert_eq!(sender.try_send_burst("b".repeat(10), 10), Ok(()));
        assert_eq!(sender.try_send_burst("c".into(), 10), Err((SendError::Full, "c".into())));
        assert_eq!(other.send("d".repeat(11)), Err(SendError::Memory));
        assert_eq!((other.send("d".repeat(10)), budget.used()), (Ok(()), 30));
        drop((other, others));
        assert_eq!(budget.used(), 20);
        let mut taken = VecDeque::new();
        block_on(poll_fn(|context| receiver.poll_take_some(context, &mut taken, 1)));
        assert_eq!(budget.used(), 20, "it is not written yet");
        block_on(poll_fn(|context| receiver.poll_take_some(context, &mut taken, 1)));
        assert_eq!(budget.used(), 10);
        sender.send_unbounded("e".repeat(100)).unwrap();
        block_on(poll_fn(|context| receiver.poll_take(context, &mut taken)));
        assert_eq!(budget.used(), 100);
        sender.send("f".into()).unwrap_err();
        drop(receiver);
        assert_eq!((budget.used(), account.used()), (0, 0));
        assert_eq!(sender.send("g".into()), Err(SendError::Closed));
    }

    #[test]
    fn taken_messages_are_charged_until_written() {
        let budget = Budget::new(100);
        let (sender, mut receiver) = with_account::<()>(9, 100, Some(budget.account()));
        let mut taken = VecDeque::new();
        for used in [10, 20] {
            sender.send("a".repeat(10)).unwrap();
            block_on(poll_fn(|context| receiver.poll_take_more(context, &mut taken)));
            assert_eq!(budget.used(), used);
        }
        sender.send("b".into()).unwrap();
        block_on(poll_fn(|context| receiver.poll_take_some(context, &mut taken, 1)));
        assert_eq!((budget.used(), taken.len()), (1, 3));
        drop((sender, receiver));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn parked_queues_are_evicted_before_a_reader_is_refused() {
        let budget = idle::budget(30);
        let account = budget.account();
        let queue = || with_account::<()>(9, 30, Some(account.clone()));
        let queues = [queue(), queue(), queue()];
        for (sender, _) in &queues {
            sender.send("a".repeat(10)).unwrap();
        }
        let [(closed, closed_end), (emptied, emptied_end), (read, _reader)] = queues;
        let entries = [closed_end.park(Parked::Closed), emptied_end.park(Parked::Emptied)];
        assert_eq!(read.send("b".repeat(10)), Ok(()));
        assert_eq!(closed.send("b".into()), Err(SendError::Closed));
        assert!(!closed_end.unpark() && emptied_end.unpark());
        drop(entries);
        assert_eq!(read.send("c".into()), Err(SendError::Memory), "nobody is away any more");
        let _entry = emptied_end.park(Parked::Emptied);
        assert_eq!(read.send("c".repeat(10)), Ok(()));
        assert_eq!((emptied.send("b".into()), budget.used()), (Err(SendError::Memory), 30));
    }

    #[test]
    fn control_messages_have_reserved_capacity() {
        let (sender, mut receiver) = bounded::<()>(1, 10);
        sender.send("a".into()).unwrap();
        for _ in 0..limits::RESERVED_MESSAGES {
            assert_eq!(sender.send("b".into()), Err(SendError::Full));
            assert_eq!(sender.send_reserved("own".into()), Ok(()));
        }
        assert_eq!(sender.send_reserved("own".into()), Err(SendError::Full));
        let mut taken = VecDeque::new();
        block_on(receiver.take(&mut taken));
        assert_eq!(taken.len(), 1 + limits::RESERVED_MESSAGES);
        assert_eq!(sender.send("a".into()), Ok(()));
        assert_eq!(sender.send_reserved("x".repeat(10 + limits::RESERVED_BYTES)), Err(SendError::Full));
        drop(receiver);
        assert_eq!(sender.send_reserved("own".into()), Err(SendError::Closed));
    }

    #[test]
    fn messages_before_the_end_are_delivered() {
        let (sender, mut receiver) = bounded(3, 10);
        sender.send("a".into()).unwrap();
        sender.end("first");
        sender.end("second");
        assert_eq!(sender.send("b".into()), Err(SendError::Closed));
        let mut taken = VecDeque::new();
        assert_eq!(block_on(receiver.take(&mut taken)), Received::Some);
        assert_eq!(block_on(receiver.take(&mut taken)), Received::Ended("first"));
        assert_eq!(taken, ["a"]);
    }

    #[test]
    fn a_waiting_sender_resumes_on_room_or_close() {
        let (sender, mut receiver) = bounded::<()>(1, 10);
        block_on(async {
            sender.send("a".into()).unwrap();
            let mut waiting = Box::pin(sender.send_wait("b".into()));
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            assert_eq!(sender.0.lock().writers.len(), 1);
            let mut taken = VecDeque::new();
            receiver.take(&mut taken).await;
            assert_eq!(waiting.await, Ok(()));
            let mut waiting = Box::pin(sender.send_wait("c".into()));
            assert!(futures_lite::future::poll_once(&mut waiting).await.is_none());
            drop(receiver);
            assert_eq!(waiting.await, Err(SendError::Closed));
            assert!(sender.is_closed());
        });
    }
}
