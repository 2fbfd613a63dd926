//! Tells clients at the aggregate that lists changed: coalesced, and a few clients at a time, so that a storm of
//! registrations costs no more than a few notices for each client.

use std::{
    sync::{Arc, MutexGuard, PoisonError},
    time::Instant,
};

use futures_lite::future;

use super::{Gateway, session::Session};
use crate::{jsonrpc, limits, mcp::listing::ListKind, net::timeout, session::Changes};

impl Gateway {
    fn changes(&self) -> MutexGuard<'_, Changes> {
        // Each change of the table is complete in itself, so a panic elsewhere does not spoil it.
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that lists changed. Sessions at the aggregate are told soon.
    pub fn lists_changed(&self, kinds: &[ListKind]) {
        if kinds.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut changes = self.changes();
        kinds.iter().for_each(|kind| changes.add(now, kind.changed()));
        drop(changes);
        // Full: it is going to look anyway. Closed: the gateway has stopped.
        let _ = self.changed.0.try_send(());
    }

    /// Tells of changes, for ever.
    pub(super) async fn tell_changes(self: Arc<Self>) {
        loop {
            let due = self.changes().due();
            let ringing = async {
                // The sender is in the same place as the receiver, so this cannot fail.
                let _ = self.changed.1.recv().await;
            };
            future::or(ringing, timeout::until(due)).await;
            let due = self.changes().take(Instant::now());
            if !due.is_empty() {
                self.tell_all(&due).await;
            }
        }
    }

    /// Sends notices to all sessions at the aggregate. A client that began after the last change has not missed it.
    async fn tell_all(&self, due: &[(&'static str, Instant)]) {
        let clients: Vec<Arc<Session>> = self.sessions().at(None).cloned().collect();
        for piece in clients.chunks(limits::PIECE) {
            for client in piece {
                let Some(since) = client.initialized_at() else { continue };
                for (notification, _) in due.iter().filter(|(_, changed)| since <= *changed) {
                    client.notice(&jsonrpc::notification(notification, None), &self.stats);
                }
            }
            future::yield_now().await;
        }
    }
}
