//! Small pure helpers that every layer may use.
//!
//! - [`name`]: valid names, edit distance. [`parse`]: durations and sizes. [`time`]: dates, RFC
//!   3339. [`uuid`]: random ids.
//! - [`escape`]: untrusted text escaped for a log line.

pub mod escape;
pub mod name;
pub mod parse;
pub mod time;
pub mod uuid;
