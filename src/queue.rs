//! The counting half of an outgoing queue: which message is accepted, and which bytes are charged.
//!
//! Both the number of messages and their bytes are bounded. A message larger than the byte limit is
//! still accepted if the queue is empty. The bytes may be charged to an [`Account`], until the
//! reader has written them.
//!
//! Pure. `net::outbox` adds the lock, the waiting tasks and the end.

use std::collections::VecDeque;

use crate::{budget::Account, limits};

/// Why a message was not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SendError {
    /// The message or byte limit is reached: the reader does not keep up.
    Full,
    /// The memory budget is exhausted.
    Memory,
    /// The queue was ended or closed, or its receiver is gone.
    Closed,
}

/// How much room a message may take in a queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Room {
    /// The room for messages that are passed on.
    Normal,
    /// Also the capacity reserved for messages of the program itself, so that those passed on, whose
    /// senders can wait, do not keep them out.
    Reserved,
    /// Any: for messages that are bounded elsewhere and must not be lost.
    Unbounded,
}

/// Messages between their senders and the one reader that writes them.
#[derive(Debug)]
pub struct Queue {
    messages: VecDeque<String>,
    /// Bytes of the queued messages, and of those last taken by [`Queue::take_some`]
    /// (`in_flight_bytes`).
    bytes: usize,
    in_flight_bytes: usize,
    /// Bytes of other taken messages that may not be written yet. They stay charged to the account,
    /// but do not count against `max_bytes`.
    held: usize,
    max_messages: usize,
    max_bytes: usize,
    /// The account that `bytes` and `held` are charged to.
    account: Option<Account>,
}

impl Queue {
    /// Creates a queue for at most `max_messages` messages and `max_bytes` bytes, which are charged
    /// to `account`.
    pub fn new(max_messages: usize, max_bytes: usize, account: Option<Account>) -> Self {
        let (messages, bytes, in_flight_bytes, held) = Default::default();
        Self { messages, bytes, in_flight_bytes, held, max_messages, max_bytes, account }
    }

    /// Returns the account that the bytes are charged to.
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Adds a message if it fits, with limits raised by `more` messages and `burst` bytes.
    ///
    /// # Errors
    /// [`SendError::Full`] or [`SendError::Memory`], and the message.
    pub fn push(&mut self, message: String, more: usize, burst: usize) -> Result<(), (SendError, String)> {
        let max_messages = self.max_messages.saturating_add(more);
        let max_bytes = self.max_bytes.saturating_add(burst);
        let fits = self.messages.len() < max_messages && self.bytes + message.len() <= max_bytes;
        if !fits && !self.messages.is_empty() {
            return Err((SendError::Full, message));
        }
        if self.account.as_ref().is_some_and(|account| !account.take(message.len())) {
            return Err((SendError::Memory, message));
        }
        self.add(message);
        Ok(())
    }

    /// Adds a message, using the capacity reserved beyond the limits
    /// ([`limits::RESERVED_MESSAGES`], [`limits::RESERVED_BYTES`]).
    ///
    /// # Errors
    /// [`SendError::Full`] or [`SendError::Memory`].
    pub fn push_reserved(&mut self, message: String) -> Result<(), SendError> {
        let max_messages = self.max_messages.saturating_add(limits::RESERVED_MESSAGES);
        let max_bytes = self.max_bytes.saturating_add(limits::RESERVED_BYTES);
        if self.messages.len() >= max_messages || self.bytes + message.len() > max_bytes {
            return self.push(message, 0, 0).map_err(|(refused, _)| refused);
        }
        self.push_unbounded(message);
        Ok(())
    }

    /// Adds a message regardless of the limits.
    pub fn push_unbounded(&mut self, message: String) {
        if let Some(account) = &self.account {
            account.force(message.len());
        }
        self.add(message);
    }

    /// Adds a message whose bytes are already charged.
    fn add(&mut self, message: String) {
        self.bytes += message.len();
        self.messages.push_back(message);
    }

    /// Moves all messages to the end of `into`. They stay charged until [`Queue::settle`], but no
    /// longer count against the limits.
    pub fn take_all(&mut self, into: &mut VecDeque<String>) {
        self.held += std::mem::take(&mut self.bytes);
        self.in_flight_bytes = 0;
        if into.is_empty() {
            std::mem::swap(into, &mut self.messages);
        } else {
            into.append(&mut self.messages);
        }
    }

    /// Moves messages to the end of `into` until they reach `bytes` bytes, at least one. They stay
    /// charged, and count against the byte limit, until [`Queue::settle`].
    pub fn take_some(&mut self, into: &mut VecDeque<String>, bytes: usize) {
        while self.in_flight_bytes < bytes
            && let Some(message) = self.messages.pop_front()
        {
            self.in_flight_bytes += message.len();
            into.push_back(message);
        }
        if self.messages.is_empty() && !into.is_empty() {
            // Frees the memory of a burst, which would otherwise be held until the queue ends.
            self.messages = VecDeque::new();
        }
    }

    /// Releases the bytes of the messages taken before, which have now been written.
    pub fn settle(&mut self) {
        let in_flight_bytes = std::mem::take(&mut self.in_flight_bytes);
        self.bytes -= in_flight_bytes;
        let held = std::mem::take(&mut self.held);
        self.release(in_flight_bytes + held);
    }

    /// Empties the queue and releases all bytes, also those of taken messages. Returns what was in
    /// it.
    pub fn clear(&mut self) -> VecDeque<String> {
        self.release_all();
        std::mem::take(&mut self.messages)
    }

    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether no message is queued.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Returns the bytes that count against the limit.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether no message is queued, and all taken ones are written.
    pub fn is_settled(&self) -> bool {
        self.messages.is_empty() && self.bytes + self.held == 0
    }

    /// Whether an equal message is queued.
    pub fn has(&self, message: &str) -> bool {
        self.messages.iter().any(|waiting| waiting == message)
    }

    fn release_all(&mut self) {
        let all = std::mem::take(&mut self.bytes) + std::mem::take(&mut self.held);
        self.in_flight_bytes = 0;
        self.release(all);
    }

    /// Returns bytes to the account.
    fn release(&self, bytes: usize) {
        if let Some(account) = self.account.as_ref().filter(|_| bytes > 0) {
            account.give(bytes);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.release_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn text(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    #[test]
    fn one_message_larger_than_the_limit_is_accepted_alone() {
        let mut queue = Queue::new(2, 10, None);
        assert_eq!(queue.push(text(100), 0, 0), Ok(()));
        assert_eq!(queue.push(text(1), 0, 0), Err((SendError::Full, text(1))));
        assert_eq!(queue.push(text(1), 0, 91), Ok(()));
        assert_eq!(queue.push(text(1), 0, 92), Err((SendError::Full, text(1))), "two messages");
        assert_eq!(queue.push(text(1), 1, 92), Ok(()));
        assert_eq!((queue.len(), queue.bytes()), (3, 102));
    }

    #[test]
    fn taken_bytes_are_charged_until_they_are_settled() {
        let budget = Budget::new(1000);
        let mut queue = Queue::new(9, 10, Some(budget.account()));
        let mut taken = VecDeque::new();
        queue.push(text(4), 0, 0).unwrap();
        queue.push(text(6), 0, 0).unwrap();
        queue.take_some(&mut taken, 1);
        assert_eq!((taken.len(), queue.len(), queue.bytes(), budget.used()), (1, 1, 10, 10));
        assert_eq!(queue.push(text(1), 0, 0).map_err(|(why, _)| why), Err(SendError::Full));
        queue.settle();
        assert_eq!((queue.bytes(), budget.used()), (6, 6));
        queue.take_all(&mut taken);
        assert_eq!((taken.len(), queue.bytes(), budget.used(), queue.is_settled()), (2, 0, 6, false));
        assert_eq!(queue.push(text(10), 0, 0), Ok(()), "taken with all others: the limit is free again");
        queue.settle();
        assert_eq!((queue.clear().len(), budget.used(), queue.is_settled()), (1, 0, true));
        queue.push_unbounded(text(500));
        drop(queue);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn reserved_capacity_is_beyond_the_limits_and_memory_is_not() {
        let mut queue = Queue::new(1, 10, None);
        queue.push(text(1), 0, 0).unwrap();
        for _ in 0..limits::RESERVED_MESSAGES {
            assert_eq!(queue.push_reserved(text(1)), Ok(()));
        }
        assert_eq!(queue.push_reserved(text(1)), Err(SendError::Full));
        let mut queue = Queue::new(9, 100, Some(Budget::new(10).account()));
        assert_eq!(queue.push(text(11), 0, 0), Err((SendError::Memory, text(11))));
        assert!(queue.is_empty());
    }
}
