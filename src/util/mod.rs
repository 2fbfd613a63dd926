//! Small pure helpers that every layer may use.
//!
//! - [`name`]: which names are allowed. [`parse`]: durations and sizes. [`time`]: dates, RFC 3339. [`uuid`]: random ids.
//! - [`escape`]: foreign text escaped for a log line.

pub mod escape;
pub mod name;
pub mod parse;
pub mod time;
pub mod uuid;
