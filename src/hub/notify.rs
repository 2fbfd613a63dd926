//! Notifications of clients.

use std::time::Instant;

use super::{effect::Effects, key::SessionKey, request::Notification, state::Hub, upstream::Upstream};
use crate::jsonrpc::Message;

impl Hub {
    /// Handles a notification of a client.
    pub fn notify(
        &mut self,
        now: Instant,
        session: SessionKey,
        (message, notification): (&Message<'_>, Notification),
        fx: &mut Effects<'_>,
    ) {
        match notification {
            Notification::Cancel(Some(span)) => {
                let Some(client) = self.clients.get_mut(&session) else { return };
                if let Some(call) = client.calls.cancel(&message.text()[span.clone()]) {
                    self.cancel(now, call, Ok((message, span)), fx);
                }
            }
            Notification::Cancel(None) | Notification::Dropped => {}
            Notification::Instances => {
                self.notify_instances(now, session, message, fx);
            }
            Notification::Server => {
                if !self.notify_instances(now, session, message, fx) {
                    self.notify_server(now, session, message, fx);
                }
            }
        }
    }

    /// Sends a notification to the session's isolated instances. Returns whether there are any.
    fn notify_instances(
        &mut self,
        now: Instant,
        session: SessionKey,
        message: &Message<'_>,
        fx: &mut Effects<'_>,
    ) -> bool {
        let Some(client) = self.clients.get(&session) else { return false };
        let keys: Vec<_> = client.instances.values().copied().collect();
        for key in &keys {
            if let Some((instance, link)) = self.process(*key).filter(|(instance, _)| !instance.is_modern()) {
                // Best effort: a notification has no response that could report the failure.
                let _ = instance.send(link, now, message.splice(&[]), fx);
            }
        }
        !keys.is_empty()
    }

    /// Sends a notification to the shared server of the session's endpoint. A modern server knows
    /// none that a client of a session could send.
    fn notify_server(
        &mut self,
        now: Instant,
        session: SessionKey,
        message: &Message<'_>,
        fx: &mut Effects<'_>,
    ) {
        let name = self.clients.get(&session).and_then(|client| client.scope.server());
        let server = name.and_then(|name| self.catalog.server(name));
        let upstream = server.and_then(|server| self.upstreams.get_mut(&server));
        let takes = |upstream: &&mut Box<Upstream>| {
            upstream.pool.is_none() && !upstream.shared.is_modern() && !upstream.is_undecided()
        };
        if let Some(upstream) = upstream.filter(takes) {
            // Best effort likewise.
            let _ = upstream.link.send(now, None, message.splice(&[]), fx);
        }
    }
}
