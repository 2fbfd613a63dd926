//! Randomness from the system, for ids and jitter.

use std::io;

use crate::{error::FatalError, util};

/// So many random bytes.
///
/// # Errors
/// The system has no randomness to give; it has, on every Linux that has booted.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// A fresh UUID.
///
/// # Errors
/// As [`bytes`].
pub fn uuid() -> Result<String, FatalError> {
    bytes().map(util::uuid::uuid).map_err(|error| FatalError::run(format!("no randomness: {error}")))
}

/// A random number for jitter; without randomness, the middle.
pub fn jitter() -> u32 {
    bytes().map_or(u32::MAX / 2, u32::from_ne_bytes)
}
