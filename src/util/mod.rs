//! Small pure helpers that every layer may use.
//!
//! - [`address`]: client addresses as limits count them. [`authority`]: `host:port`. [`name`]: valid names, edit distance.
//!   [`parse`]: numbers, durations and sizes. [`time`]: dates, RFC 3339. [`uuid`]: random ids.
//! - [`backoff`]: exponential delays with jitter. [`escape`]: untrusted text escaped for a log line. [`base64`]: bytes as text.

pub mod address;
pub mod authority;
pub mod backoff;
pub mod base64;
pub mod escape;
pub mod name;
pub mod parse;
pub mod time;
pub mod uuid;
