//! Sends `list_changed` notifications to the sessions of the aggregate endpoint. Changes are
//! coalesced and sent to a few clients at a time, so that a burst of registrations costs each
//! client only a few notifications.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Instant,
};

use futures_lite::future;

use super::{Gateway, session::Session};
use crate::{jsonrpc, limits, mcp::listing::ListKind, net::timeout, session::Changes};

impl Gateway {
    fn changes(&self) -> MutexGuard<'_, Changes> {
        // A panic elsewhere cannot leave the table half changed: each change of it is complete in
        // itself.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that lists changed. Sessions of the aggregate endpoint are notified soon.
    pub fn lists_changed(&self, kinds: &[ListKind]) {
        if kinds.is_empty() {
            return;
        }
        let mut changes = self.changes();
        // Read after the change and under the lock: with an earlier time, a session that was
        // initialized meanwhile and has the old lists would be taken for one that has the new.
        let now = Instant::now();
        kinds.iter().for_each(|kind| changes.add(now, kind.changed()));
        drop(changes);
        // A full channel has a wake-up pending already; a closed one means that the gateway has
        // stopped.
        let _ = self.changed.0.try_send(());
    }

    /// Sends the notifications of recorded changes. Never returns.
    pub(super) async fn notify_changes(self: Arc<Self>) {
        loop {
            let due = self.changes().due();
            let recorded = async {
                // The sender is in the same struct as the receiver, so this cannot fail.
                let _ = self.changed.1.recv().await;
            };
            future::or(recorded, timeout::until(due)).await;
            let due = self.changes().take(Instant::now());
            if !due.is_empty() {
                self.notify_all(&due).await;
            }
        }
    }

    /// Notifies all sessions of the aggregate endpoint. A client that was initialized after the
    /// last change has already seen it, and is skipped.
    async fn notify_all(&self, due: &[(&'static str, Instant)]) {
        let clients: Vec<Arc<Session>> = self.sessions().at(None).cloned().collect();
        for chunk in clients.chunks(limits::YIELD_EVERY) {
            for client in chunk {
                let Some(since) = client.initialized_at() else { continue };
                for (notification, _) in due.iter().filter(|(_, changed)| since <= *changed) {
                    client.stream().notice(&jsonrpc::notification(notification, None), &self.stats);
                }
            }
            future::yield_now().await;
        }
    }
}
