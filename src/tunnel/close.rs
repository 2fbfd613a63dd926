//! How a link ends: the code and reason of a Close frame, and which side or fault ended the link.
//!
//! `net::ws_link` reports the end of a link with these types; `gateway` and `edge` decide by them
//! whether the link may resume. The codes are listed in [`crate::tunnel`].

use std::{fmt, time::Duration};

use crate::{limits::CLOSE_REASON, util};

/// A close code and reason, as in a Close frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CloseReason {
    /// Close code (RFC 6455, section 7.4, and [`crate::tunnel`]).
    pub code: u16,
    /// Human-readable reason.
    pub reason: String,
}

impl CloseReason {
    /// Creates a close reason.
    pub fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// Returns the reason, truncated to the length that a Close frame can hold
    /// ([`CLOSE_REASON`] bytes).
    pub fn clipped(&self) -> &str {
        let mut end = self.reason.len().min(CLOSE_REASON);
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        self.reason.get(..end).unwrap_or_default()
    }
}

/// Why a link ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LinkEnd {
    /// The peer closed the link.
    ByPeer(CloseReason),
    /// We closed the link.
    ByUs(CloseReason),
    /// The connection broke, for this reason.
    Lost(String),
    /// Nothing was received from the peer for this long.
    Silent(Duration),
}

impl LinkEnd {
    /// Whether neither side closed the link on purpose, so that it may resume over another
    /// connection.
    pub fn is_accident(&self) -> bool {
        matches!(self, Self::Lost(_) | Self::Silent(_))
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer(why) if why.reason.is_empty() => {
                write!(f, "the peer closed the link (code {})", why.code)
            }
            Self::ByPeer(why) => {
                write!(f, "the peer closed the link (code {}: {})", why.code, util::escape::show(&why.reason))
            }
            Self::ByUs(why) => write!(f, "we closed the link (code {}: {})", why.code, why.reason),
            Self::Lost(why) => write!(f, "the link was lost: {why}"),
            Self::Silent(time) => write!(f, "no data from the peer for {} s", time.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_clipped_at_a_character() {
        let clipped = |text: &str| CloseReason::new(1000, text).clipped().to_owned();
        assert_eq!(clipped("short"), "short");
        assert_eq!(clipped(&"x".repeat(CLOSE_REASON + 1)), "x".repeat(CLOSE_REASON));
        let umlauts = clipped(&"\u{fc}".repeat(CLOSE_REASON));
        assert_eq!((umlauts.len(), umlauts.chars().count()), (CLOSE_REASON - 1, CLOSE_REASON / 2));
    }

    #[test]
    fn only_a_lost_or_silent_link_is_an_accident() {
        let why = || CloseReason::new(1001, "the edge is stopping");
        let ends = [
            (LinkEnd::ByPeer(why()), false, "the peer closed the link (code 1001: the edge is stopping)"),
            (LinkEnd::ByPeer(CloseReason::new(1005, "")), false, "the peer closed the link (code 1005)"),
            (LinkEnd::ByUs(why()), false, "we closed the link (code 1001: the edge is stopping)"),
            (LinkEnd::Lost("reset".into()), true, "the link was lost: reset"),
            (LinkEnd::Silent(Duration::from_secs(45)), true, "no data from the peer for 45 s"),
        ];
        for (end, is_accident, text) in ends {
            assert_eq!((end.is_accident(), end.to_string().as_str()), (is_accident, text));
        }
    }
}
