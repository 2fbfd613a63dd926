//! Coalesces list changes: clients are notified of each kind at most once in
//! [`limits::CHANGES_PAUSE`].

use std::{collections::BTreeMap, time::Instant};

use crate::limits;

/// List changes that clients are not yet notified of, by the method of the notification.
#[derive(Debug, Default)]
pub struct Changes(BTreeMap<&'static str, Change>);

#[derive(Debug, Default)]
struct Change {
    /// When the last notification was sent.
    told: Option<Instant>,
    /// When the last change happened that is not yet notified.
    changed: Option<Instant>,
}

impl Change {
    /// Returns when the notification is due: for the first change at once, for later ones after a
    /// pause.
    fn due(&self) -> Option<Instant> {
        let changed = self.changed?;
        Some(self.told.map_or(changed, |told| told + limits::CHANGES_PAUSE))
    }
}

impl Changes {
    /// Records a change.
    pub fn add(&mut self, now: Instant, notification: &'static str) {
        self.0.entry(notification).or_default().changed = Some(now);
    }

    /// Takes the notifications that are due, each with the time of its last change.
    pub fn take(&mut self, now: Instant) -> Vec<(&'static str, Instant)> {
        let mut due = Vec::new();
        for (notification, change) in &mut self.0 {
            if change.due().is_some_and(|due| due <= now) {
                change.told = Some(now);
                due.extend(change.changed.take().map(|changed| (*notification, changed)));
            }
        }
        due
    }

    /// Returns when the next notification is due.
    pub fn due(&self) -> Option<Instant> {
        self.0.values().filter_map(Change::due).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn list_changes_are_coalesced_after_the_first() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!((changes.due(), changes.take(start)), (None, vec![]));
        changes.add(at(0), "tools");
        assert_eq!((changes.due(), changes.take(at(0))), (Some(at(0)), vec![("tools", at(0))]));
        for millis in 1..400 {
            changes.add(at(millis), "tools");
            assert_eq!(changes.take(at(millis)), [], "{millis}");
        }
        // Another kind does not wait for the pause of the first.
        changes.add(at(400), "prompts");
        assert_eq!((changes.due(), changes.take(at(400))), (Some(at(400)), vec![("prompts", at(400))]));
        let due = start + limits::CHANGES_PAUSE;
        assert_eq!((changes.due(), changes.take(due)), (Some(due), vec![("tools", at(399))]));
        assert_eq!((changes.due(), changes.take(at(9000))), (None, vec![]));
        changes.add(at(9000), "tools");
        assert_eq!(changes.take(at(9000)), [("tools", at(9000))], "after a rest it is prompt again");
    }
}
