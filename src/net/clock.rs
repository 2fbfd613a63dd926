//! The time of day, for the answers that carry it.

use std::{cell::Cell, time::SystemTime};

use crate::http::date::Date;

/// The `Date` of an answer that is made now. It is written anew once a second and thread.
pub fn date() -> Date {
    thread_local! {
        static LAST: Cell<Option<(u64, Date)>> = const { Cell::new(None) };
    }
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    match LAST.get() {
        Some((of, date)) if of == seconds => date,
        _ => {
            let date = Date::at(seconds);
            LAST.set(Some((seconds, date)));
            date
        }
    }
}
