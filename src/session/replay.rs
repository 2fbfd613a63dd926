//! Events sent on the streams of one session, kept for a client that lost its connection and
//! resumes with `Last-Event-ID`.
//!
//! Bounded: the oldest events are dropped first, whatever their stream. [`Replay::after`] reports
//! whether events of a stream are missing.

use std::collections::VecDeque;

use crate::{limits::SessionLimits, util::parse::digits};

#[derive(Debug)]
struct Event {
    stream: u32,
    number: u64,
    text: String,
}

/// The sent events of one session that are kept, within limits of number and bytes.
#[derive(Debug)]
pub struct Replay {
    events: VecDeque<Event>,
    bytes: usize,
    max_messages: usize,
    max_bytes: usize,
}

impl Replay {
    /// Creates an empty buffer.
    pub fn new(limits: &SessionLimits) -> Self {
        let (max_messages, max_bytes) = (limits.replay_messages, limits.replay_bytes);
        Self { events: VecDeque::new(), bytes: 0, max_messages, max_bytes }
    }

    /// Adds an event. The numbers of one stream count from 1 without gaps.
    pub fn keep(&mut self, stream: u32, number: u64, text: String) {
        self.bytes += text.len();
        self.events.push_back(Event { stream, number, text });
        while self.events.len() > self.max_messages || self.bytes > self.max_bytes {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
    }

    /// Returns the bytes of all events that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Drops the oldest events until at most `bytes` bytes are kept.
    pub fn trim(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.text.len();
        }
        if self.events.is_empty() {
            self.events = VecDeque::new();
        }
    }

    /// Returns the events of a stream after number `seen` that are kept, and whether these are all
    /// up to `last`. `None` if event `seen` was never sent.
    pub fn after(&self, stream: u32, seen: u64, last: u64) -> Option<(Vec<(u64, String)>, bool)> {
        let sent = last.checked_sub(seen)?;
        let missed: Vec<(u64, String)> = self
            .events
            .iter()
            .filter(|event| event.stream == stream && event.number > seen)
            .map(|event| (event.number, event.text.clone()))
            .collect();
        let complete = missed.len() as u64 == sent;
        Some((missed, complete))
    }
}

/// Formats the id of an event: its stream and its number.
pub fn event_id(stream: u32, number: u64) -> String {
    format!("{stream}-{number}")
}

/// Parses the id of an event.
pub fn read_event_id(id: &str) -> Option<(u32, u64)> {
    let (stream, number) = id.split_once('-')?;
    Some((digits(stream)?.try_into().ok()?, digits(number)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_events_are_replayed_or_reported_lost() {
        let limits = SessionLimits { replay_messages: 4, replay_bytes: 100, ..SessionLimits::default() };
        let mut replay = Replay::new(&limits);
        for number in 1..=3 {
            replay.keep(7, number, format!("m{number}"));
        }
        replay.keep(8, 1, "other".into());
        assert_eq!(replay.after(7, 1, 3), Some((vec![(2, "m2".into()), (3, "m3".into())], true)));
        assert_eq!(replay.after(7, 3, 3), Some((vec![], true)));
        assert_eq!(replay.after(7, 4, 3), None);
        replay.keep(8, 2, "x".into());
        let counted =
            |missed: Option<(Vec<(u64, String)>, bool)>| missed.map(|(events, all)| (events.len(), all));
        assert_eq!(counted(replay.after(7, 0, 3)), Some((2, false)));
        assert_eq!(counted(replay.after(7, 1, 3)), Some((2, true)));
        replay.trim(100);
        assert_eq!((replay.bytes(), counted(replay.after(7, 1, 3))), (10, Some((2, true))));
        replay.keep(8, 3, "y".repeat(100));
        assert_eq!(counted(replay.after(7, 1, 3)), Some((0, false)));
        assert_eq!(counted(replay.after(8, 2, 3)), Some((1, true)));
        replay.trim(99);
        assert_eq!((replay.bytes(), counted(replay.after(8, 2, 3))), (0, Some((0, false))));
    }

    #[test]
    fn event_ids() {
        assert_eq!(read_event_id(&event_id(3, 17)), Some((3, 17)));
        for bad in ["", "3", "3-", "-1", "a-b", "3-1-2", "99999999999-1"] {
            assert_eq!(read_event_id(bad), None, "{bad}");
        }
    }
}
