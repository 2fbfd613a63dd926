//! The frames sent and received by one end of a link, over one or more connections: like
//! `net::ws_link` without sockets.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    time::Instant,
};

use mcpport::{
    limits::LinkLimits,
    tunnel::resume::{self, Resume},
};

#[derive(Default)]
pub struct Line {
    /// Counts frames, if the link can be resumed.
    resume: Option<Resume<String>>,
    /// Sent before all other frames: acknowledgements and retransmissions.
    first: VecDeque<String>,
    waiting: VecDeque<String>,
    /// Running hashes of the counted frames, each including all earlier frames: those sent for the
    /// first time, and those received.
    said: Vec<u64>,
    heard: Vec<u64>,
}

/// Appends the running hash for a frame.
fn note(book: &mut Vec<u64>, frame: &str) {
    let mut hasher = DefaultHasher::new();
    (book.last(), frame).hash(&mut hasher);
    book.push(hasher.finish());
}

impl Line {
    /// Creates a line. `counted`: it can be resumed over another connection.
    pub fn new(counted: bool) -> Self {
        Self { resume: counted.then(Resume::new), ..Self::default() }
    }

    /// Queues a frame. Returns false if the queue is full.
    pub fn offer(&mut self, frame: String, limits: &LinkLimits) -> bool {
        let fits = self.waiting.len() < limits.queue_messages;
        if fits {
            self.waiting.push_back(frame);
        }
        fits
    }

    /// Queues a frame without a limit; the real sender waits for space.
    pub fn put(&mut self, frame: String) {
        self.waiting.push_back(frame);
    }

    /// Returns the next frame that may be sent.
    pub fn next(&mut self, limits: &LinkLimits) -> Option<String> {
        if let Some(frame) = self.first.pop_front() {
            return Some(frame);
        }
        let Some(resume) = &mut self.resume else { return self.waiting.pop_front() };
        if !resume.has_room(limits) {
            return None;
        }
        let frame = self.waiting.pop_front()?;
        resume.sent(frame.clone(), frame.len());
        note(&mut self.said, &frame);
        Some(frame)
    }

    /// Handles a received frame if it is an acknowledgement. Returns whether it is one.
    pub fn acknowledges(&mut self, frame: &str) -> bool {
        let Some(resume) = &mut self.resume else { return false };
        let Some(count) = resume::read(frame) else { return false };
        resume.acknowledge(count).expect("an honest peer acknowledges what it got");
        true
    }

    /// Counts a received frame that is not an acknowledgement.
    pub fn arrived(&mut self, now: Instant, frame: &str, limits: &LinkLimits) {
        let Some(resume) = &mut self.resume else { return };
        resume.received(now, frame.len());
        note(&mut self.heard, frame);
        self.first.extend(resume.due_acknowledgement(limits));
    }

    /// Returns the number of frames received, if they are counted.
    pub fn received(&self) -> Option<u64> {
        self.resume.as_ref().map(Resume::count)
    }

    /// Whether the peer has acknowledged more than `received` frames.
    pub fn is_past(&self, received: u64) -> bool {
        self.resume.as_ref().is_some_and(|resume| received < resume.acknowledged())
    }

    /// Resumes over a new connection; the peer has received `received` frames. Returns false if
    /// that is impossible.
    pub fn back(&mut self, received: u64) -> bool {
        let again = self.resume.as_mut().map(|resume| resume.resume(received));
        let Some(Ok(again)) = again else { return false };
        self.first = again.into();
        true
    }

    /// Returns when an acknowledgement is due.
    pub fn due(&self, limits: &LinkLimits) -> Option<Instant> {
        self.resume.as_ref().and_then(|resume| resume.due(limits))
    }

    /// Queues an acknowledgement if one is due.
    pub fn tick(&mut self, now: Instant, limits: &LinkLimits) {
        if self.due(limits).is_some_and(|due| due <= now)
            && let Some(resume) = &mut self.resume
        {
            self.first.push_back(resume.acknowledgement());
        }
    }

    /// Checks that each end received the frames that the other sent, from the first on, in order
    /// and exactly once.
    pub fn check_against(&self, other: &Self) {
        for (heard, said) in [(&self.heard, &other.said), (&other.heard, &self.said)] {
            assert!(heard.len() <= said.len(), "{} frames came, and {} were sent", heard.len(), said.len());
            assert_eq!(heard.last(), heard.len().checked_sub(1).and_then(|last| said.get(last)));
        }
    }

    pub fn check(&self, limits: &LinkLimits) {
        let kept = self.resume.as_ref().map_or(0, Resume::unacknowledged);
        assert!(kept <= limits.resume_messages, "{kept} frames are kept");
    }
}
