//! Connection permits, and the 503 or 429 sent when no permit is left.

use std::{net::IpAddr, sync::Arc};

use futures_lite::AsyncWriteExt;

use super::state::Gateway;
use crate::{
    admission::Rejection,
    http::{
        response::{self, Response},
        types::StatusCode,
    },
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
        let admitted = gateway.connections.lock().admit(address, trigger)?;
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
            self.eviction_trigger = self.gateway.connections.lock().authenticated(self.number);
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
        self.gateway.connections.lock().release(self.number, self.address);
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
