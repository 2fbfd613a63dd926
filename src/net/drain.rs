//! Reads what a peer still sends after the sending direction is closed.
//!
//! Closing a socket with unread data sends a TCP reset, which can destroy the last bytes sent: a
//! response, a TLS alert, a Close frame. Callers first shut down the sending direction, then drain,
//! both within one time limit. `http::conn` has a state for this instead, since it does no I/O and
//! counts what its parser holds already.

use futures_lite::{AsyncRead, AsyncReadExt, future};

/// How draining ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// The peer closed its direction too: it has read everything, or does not care.
    Ended,
    /// More bytes came than permitted.
    TooMuch,
    /// The connection failed.
    Failed,
}

/// Reads and discards at most about `bytes` bytes. Yields between reads, so that a time limit around
/// it is checked even if the peer never stops sending.
pub async fn drain(input: &mut (impl AsyncRead + Unpin), bytes: usize) -> Drained {
    let mut scratch = [0; 512];
    let mut left = bytes;
    loop {
        match input.read(&mut scratch).await {
            Ok(0) => return Drained::Ended,
            Ok(count) => match left.checked_sub(count) {
                Some(rest) => left = rest,
                None => return Drained::TooMuch,
            },
            Err(_) => return Drained::Failed,
        }
        future::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_ends_at_its_limit() {
        let drained = |sent: usize, bytes| future::block_on(drain(&mut &vec![0; sent][..], bytes));
        for (sent, bytes, expected) in [
            (0, 0, Drained::Ended),
            (1, 0, Drained::TooMuch),
            (2000, 2000, Drained::Ended),
            (2001, 2000, Drained::TooMuch),
        ] {
            assert_eq!(drained(sent, bytes), expected, "{sent} of {bytes}");
        }
    }
}
