//! The interface between a link and the program at its end.
//!
//! `net::ws_link` calls it with each incoming frame; the edge's session and the gateway's driver of
//! a server implement it.

use std::time::Instant;

use super::close::CloseReason;

/// Handles the incoming frames at one end of a link.
pub trait LinkHandler {
    /// Handles a text frame.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    fn frame(&mut self, now: Instant, text: &str) -> Result<(), CloseReason>;
    /// Returns when to call [`LinkHandler::tick`].
    fn deadline(&self) -> Option<Instant>;
    /// Handles the passing of time.
    ///
    /// # Errors
    /// A [`CloseReason`] that ends the link.
    fn tick(&mut self, now: Instant) -> Result<(), CloseReason>;
}
