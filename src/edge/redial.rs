//! How an attempt to link to the gateway ended. `edge::connect` and `edge::link` report it.

/// How a connection attempt or a link ended.
#[derive(Debug)]
pub enum Outcome {
    /// The connection or the gateway was lost: try again.
    Lost(String),
    /// A failure that may pass without a change here: a refusal by a proxy or captive portal
    /// instead of our gateway, a certificate that is not trusted, or a server that was too slow.
    Transient(String),
    /// The gateway refuses this registration.
    Refused(String),
    /// The gateway refuses the registration for now: use the long delay, even on the first attempt.
    NotNow(String),
    /// The program is stopping.
    Stopped,
}
