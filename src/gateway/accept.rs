//! Connection permits, and the 503 or 429 sent when no permit is left.

use std::{
    fmt::Display,
    net::IpAddr,
    sync::{Arc, PoisonError},
    time::Instant,
};

use futures_lite::AsyncWriteExt;

use super::Gateway;
use crate::{
    admission::Rejection,
    http::{
        response::{self, Response},
        types::StatusCode,
    },
    limits::{LOG_LINK_EVENTS, LOG_WARNINGS, LogLimit},
    net::{clock, drain::drain, stream::Stream, timeout},
    runtime::{
        executor,
        shutdown::{Shutdown, ShutdownTrigger},
    },
};

/// The permit of one connection. Dropping it releases the permit.
pub struct ConnectionPermit {
    gateway: Arc<Gateway>,
    address: IpAddr,
    number: u64,
    /// Ends the connection when dropped. Held from the first authenticated request on; until then
    /// the limiter holds it, to evict the connection.
    eviction_trigger: Option<ShutdownTrigger>,
}

impl ConnectionPermit {
    /// Acquires a permit for a connection. The returned [`Shutdown`] triggers when the connection
    /// is evicted for a newer one.
    ///
    /// # Errors
    /// [`Rejection`], with the limit that is reached.
    pub fn acquire(gateway: &Arc<Gateway>, address: IpAddr) -> Result<(Self, Shutdown), Rejection> {
        let (trigger, evicted) = crate::runtime::shutdown::shutdown();
        let admitted = gateway.connections().admit(address, trigger)?;
        if admitted.evicted.is_some() {
            gateway.stats.evicted.add();
            let line = "closed an idle connection to admit another";
            gateway.warn_throttled("pushed_out", address, line);
        }
        let permit =
            Self { gateway: gateway.clone(), address, number: admitted.number, eviction_trigger: None };
        Ok((permit, evicted))
    }

    /// Marks the connection as authenticated, so that it is no longer evicted for newer ones.
    pub fn authenticated(&mut self) {
        if self.eviction_trigger.is_none() {
            self.eviction_trigger = self.gateway.connections().authenticated(self.number);
        }
    }

    /// Releases the permit early. The connection's task keeps running until the returned trigger is
    /// dropped.
    pub fn release(mut self) -> Option<ShutdownTrigger> {
        self.eviction_trigger.take()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.gateway.connections().release(self.number, self.address);
    }
}

impl Gateway {
    /// Logs a warning that peers can cause at will: at most one per kind and source in each
    /// [`LOG_EVERY`](crate::limits::LOG_EVERY).
    pub(super) fn warn_throttled(&self, kind: &'static str, source: impl ToString, line: impl Display) {
        self.log_throttled(log::Level::Warn, kind, &source.to_string(), LOG_WARNINGS, line);
    }

    /// Logs a state change of a link, throttled by the name of its server.
    pub(super) fn log_link_event(
        &self,
        level: log::Level,
        kind: &'static str,
        server: &str,
        line: impl Display,
    ) {
        self.log_throttled(level, kind, server, LOG_LINK_EVENTS, line);
    }

    /// Logs a line that a peer can cause at will, throttled by `kind` and `source` (a name or an
    /// address) within `limit`.
    pub(super) fn log_throttled(
        &self,
        level: log::Level,
        kind: &'static str,
        source: &str,
        limit: LogLimit,
        line: impl Display,
    ) {
        let now = Instant::now();
        let due =
            self.log_throttle.lock().unwrap_or_else(PoisonError::into_inner).due(now, kind, source, limit);
        if let Some(left_out) = due {
            log::log!(level, "{line}{left_out}");
        }
    }
}

/// Rejects a connection without a permit: sends 503 or 429 with `Retry-After`. With TLS, or when
/// `rejecting` rejections are already being sent, the connection is closed without a response.
pub fn reject(gateway: &Arc<Gateway>, stream: Stream, why: Rejection) {
    gateway.stats.rejected.add();
    let (status, text) = match why {
        Rejection::Full => (StatusCode::ServiceUnavailable, "too many connections (--max-connections)\n"),
        Rejection::Address => (
            StatusCode::TooManyRequests,
            "too many connections from this address (--max-connections-per-address)\n",
        ),
    };
    let from = stream.peer().ip();
    gateway.warn_throttled(
        "turned_away",
        from,
        format_args!("rejected a connection from {from}: {}", text.trim_end()),
    );
    let limits = &gateway.config.limits.http;
    if gateway.config.tls.is_some() || gateway.rejecting.len() >= limits.rejecting {
        return;
    }
    let response = Response::new(status).field("Retry-After", "1").text(text);
    let (guard, drain) = (gateway.rejecting.track(), (limits.drain_time, limits.drain_bytes));
    let told = async move {
        let _held = guard;
        // Best effort: the peer may not read the response.
        let _ = timeout::within(drain.0, tell(stream, &response, drain)).await;
    };
    executor::spawn_guarded(told, || {});
}

/// Writes a response, then reads and discards what the peer was sending, see [`drain`].
async fn tell(
    mut stream: Stream,
    response: &Response,
    (time, bytes): (std::time::Duration, usize),
) -> std::io::Result<()> {
    let mut out = Vec::new();
    response::whole(response, Some(clock::date()), true, false, &mut out);
    stream.write_all(&out).await?;
    stream.finish(time).await?;
    drain(&mut stream, bytes).await;
    Ok(())
}
