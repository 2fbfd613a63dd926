//! The current time for the `Date` field of responses.

use std::{cell::Cell, time::SystemTime};

use crate::http::date::Date;

/// Returns the current `Date`, cached per thread for one second.
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
