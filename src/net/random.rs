//! Randomness from the system, for ids and jitter.

use std::io;

use crate::{error::FatalError, util};

/// Returns `N` random bytes.
///
/// # Errors
/// The system's random source failed, which does not happen on a Linux system that has booted.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Returns a random UUID (version 4).
///
/// # Errors
/// As [`bytes`].
pub fn uuid() -> Result<String, FatalError> {
    bytes()
        .map(util::uuid::uuid)
        .map_err(|error| FatalError::run(format!("no random bytes available: {error}")))
}

/// Returns a random number for jitter, or the middle of the range if there is no randomness.
pub fn jitter() -> u32 {
    bytes().map_or(u32::MAX / 2, u32::from_ne_bytes)
}
