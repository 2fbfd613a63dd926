//! What one end of a link sends and has received, over one connection or several: as `net::ws_link` does it, without sockets.

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
    /// Where both ends count frames.
    resume: Option<Resume<String>>,
    /// Goes out before anything else: acknowledgements, and what is sent again.
    first: VecDeque<String>,
    waiting: VecDeque<String>,
    /// What the counted frames were, each with all before it: those that went out the first time, and those that came.
    said: Vec<u64>,
    heard: Vec<u64>,
}

/// Adds a frame to those before it.
fn note(book: &mut Vec<u64>, frame: &str) {
    let mut hasher = DefaultHasher::new();
    (book.last(), frame).hash(&mut hasher);
    book.push(hasher.finish());
}

impl Line {
    /// A line that can go on over another connection, or one that cannot.
    pub fn new(counted: bool) -> Self {
        Self { resume: counted.then(Resume::new), ..Self::default() }
    }

    /// Puts a frame in. False: there is no room.
    pub fn offer(&mut self, frame: String, limits: &LinkLimits) -> bool {
        let fits = self.waiting.len() < limits.queue_messages;
        if fits {
            self.waiting.push_back(frame);
        }
        fits
    }

    /// Puts a frame in; who says it waits until there is room.
    pub fn put(&mut self, frame: String) {
        self.waiting.push_back(frame);
    }

    /// The next frame that may go out.
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

    /// Whether an arriving frame is an acknowledgement; then that is all that it is.
    pub fn acknowledges(&mut self, frame: &str) -> bool {
        let Some(resume) = &mut self.resume else { return false };
        let Some(count) = resume::read(frame) else { return false };
        resume.acknowledge(count).expect("an honest peer acknowledges what it got");
        true
    }

    /// A frame that is none has arrived.
    pub fn arrived(&mut self, now: Instant, frame: &str, limits: &LinkLimits) {
        let Some(resume) = &mut self.resume else { return };
        resume.received(now, frame.len());
        note(&mut self.heard, frame);
        self.first.extend(resume.owed(limits));
    }

    /// How many frames have arrived, where that is counted.
    pub fn received(&self) -> Option<u64> {
        self.resume.as_ref().map(Resume::count)
    }

    /// Whether the peer has acknowledged more frames than these.
    pub fn is_past(&self, received: u64) -> bool {
        self.resume.as_ref().is_some_and(|resume| received < resume.acknowledged())
    }

    /// Over a new connection: the peer has received so many frames. False: it cannot go on.
    pub fn back(&mut self, received: u64) -> bool {
        let again = self.resume.as_mut().map(|resume| resume.resume(received));
        let Some(Ok(again)) = again else { return false };
        self.first = again.into();
        true
    }

    /// When an acknowledgement is due.
    pub fn due(&self, limits: &LinkLimits) -> Option<Instant> {
        self.resume.as_ref().and_then(|resume| resume.due(limits))
    }

    /// Says how much has arrived, if it is time.
    pub fn tick(&mut self, now: Instant, limits: &LinkLimits) {
        if self.due(limits).is_some_and(|due| due <= now)
            && let Some(resume) = &mut self.resume
        {
            self.first.push_back(resume.tell());
        }
    }

    /// What one end has heard is what the other has said, from the first frame on, in order, once.
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
