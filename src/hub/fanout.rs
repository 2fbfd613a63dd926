//! Notifications to several sessions: those of shared servers, and those of changed lists.

use std::{sync::Arc, time::Instant};

use super::{
    effect::{Effects, Text},
    incoming::Notice,
    key::{SessionKey, SubscriberKey},
    peers::SessionStream,
    request::Named,
    session::Session,
    state::Hub,
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::{self, Message, quote},
    mcp::{listing::ListKind, log_level::Level, stateless::listen},
    session::ClientListen,
};

/// A notification of changed lists, with the sessions that are to get it.
pub type ListNotice = (Vec<Arc<dyn SessionStream>>, String);

impl Hub {
    /// Records that lists changed. Sessions of the aggregate endpoint are notified soon.
    pub(super) fn lists_changed(&mut self, now: Instant, kinds: &[ListKind], fx: &mut Effects<'_>) {
        // A session that was initialized before this change may have the old lists, even if the
        // message that caused the change arrived earlier. So may the client of a listen.
        let now = self.last_reader.map_or(now, |last| now.max(last));
        kinds.iter().for_each(|kind| self.changes.add(now, kind.changed()));
        fx.lists_changed |= !kinds.is_empty();
    }

    /// Returns when [`Hub::take_list_notices`] has something to take.
    pub fn list_notices_due(&self) -> Option<Instant> {
        self.changes.due()
    }

    /// Takes the notifications of changed lists that are due. A client that was initialized after
    /// the last change has already seen it, and is left out.
    pub fn take_list_notices(&mut self, now: Instant) -> Vec<ListNotice> {
        let due = self.changes.take(now);
        let listens: Vec<ListNotice> = due.iter().flat_map(|change| self.listen_notices(*change)).collect();
        let notice = |(notification, changed): (&'static str, Instant)| {
            let sessions = self.sessions.at(None).filter_map(|key| self.clients.get(key));
            let sessions = sessions
                .filter(|session| session.info.initialized.is_some_and(|since| since <= changed))
                .map(|session| session.stream.clone());
            (sessions.collect(), jsonrpc::notification(notification, None))
        };
        due.into_iter().map(notice).chain(listens).collect()
    }

    fn listen_notices(&self, (notification, changed): (&'static str, Instant)) -> Vec<ListNotice> {
        let Some(kind) = ListKind::of_notification(notification) else { return Vec::new() };
        let listens = self.listens.of_kind(None, kind).filter(|(_, listen)| listen.since <= changed);
        let notice = |listen: &ClientListen<Arc<dyn SessionStream>>| {
            (vec![listen.stream.clone()], listen::changed(kind, &listen.id))
        };
        listens.map(|(_, listen)| notice(listen)).collect()
    }

    /// Notifies the sessions at a server's own endpoint that a list changed.
    pub(super) fn notify_server_sessions(
        &self,
        server: UpstreamKey,
        notification: String,
        fx: &mut Effects<'_>,
    ) {
        fx.notice(self.server_streams(server, |_| true), notification);
    }

    /// Returns the streams of those initialized sessions at a server's own endpoint for which
    /// `wanted` is true.
    fn server_streams(
        &self,
        server: UpstreamKey,
        wanted: impl Fn(&Session) -> bool,
    ) -> Vec<Arc<dyn SessionStream>> {
        let name = self.name_of(server);
        self.streams(self.sessions.at(Some(&name)), wanted)
    }

    fn streams<'k>(
        &self,
        keys: impl Iterator<Item = &'k SessionKey>,
        wanted: impl Fn(&Session) -> bool,
    ) -> Vec<Arc<dyn SessionStream>> {
        let sessions = keys.filter_map(|key| self.clients.get(key));
        let sessions = sessions.filter(|session| session.is_initialized() && wanted(session));
        sessions.map(|session| session.stream.clone()).collect()
    }

    /// Sends a shared server's notification that belongs to no call to the sessions that it
    /// concerns.
    pub(super) fn broadcast<'m>(
        &self,
        server: UpstreamKey,
        message: &'m Message<'m>,
        notice: &Notice,
        fx: &mut Effects<'m>,
    ) {
        if matches!(notice, Notice::ListChanged(_))
            && let Some(kind) = ListKind::of_notification(message.method())
        {
            self.report_list(Some(&self.name_of(server)), kind, fx);
        }
        if self.is_isolating(server) {
            // Sessions get the notifications of their own instances. The instance on this link is
            // only used for listing.
            return;
        }
        let streams = match notice {
            Notice::Log(None) | Notice::UnknownTask => return,
            Notice::Log(Some(level)) => self.streams_of_level(server, *level),
            Notice::Updated(updated, _) => {
                return self.broadcast_update(server, message, updated.as_ref(), None, fx);
            }
            Notice::Task(id) => self.server_streams(server, |session| {
                self.may_see_task(session.principal, server, id.as_deref())
            }),
            Notice::ListChanged(_) => {
                return self.notify_server_sessions(server, listen::untagged(message, None), fx);
            }
            Notice::Progress(_) | Notice::Cancelled(_) | Notice::Acknowledged(_) | Notice::Other => {
                self.server_streams(server, |_| true)
            }
        };
        fx.deliver(streams, Text::Of(message, Vec::new()));
    }

    fn streams_of_level(&self, server: UpstreamKey, level: Level) -> Vec<Arc<dyn SessionStream>> {
        let name = self.name_of(server);
        self.streams(self.sessions.with_level(&name, level), |_| true)
    }

    /// Sends a resource update to its subscribers (or to `only`), each with the URI that the
    /// subscriber knows.
    pub(super) fn broadcast_update<'m>(
        &self,
        server: UpstreamKey,
        message: &'m Message<'m>,
        updated: Option<&Named>,
        only: Option<SessionKey>,
        fx: &mut Effects<'m>,
    ) {
        let Some((span, updated)) = updated else { return };
        let (name, is_modern) = (self.name_of(server), self.is_modern(server));
        for subscriber in self.subscriptions.of_update(&name, updated) {
            // The subscriber knows the resource, or its parent, under the exposed URI `name+uri`.
            let uri = match subscriber.uri.split_once('+') {
                Some((prefix, _)) if *prefix == *name && !updated.starts_with(&subscriber.uri) => {
                    format!("{name}+{updated}")
                }
                _ => updated.clone(),
            };
            match subscriber.by {
                SubscriberKey::Session(key) if only.is_none_or(|only| only == key) => {
                    let session = self.clients.get(&key).filter(|session| session.is_initialized());
                    let Some(session) = session else { continue };
                    let text = match is_modern {
                        true => Text::Untagged(message, Some((span.clone(), uri))),
                        false => Text::Of(message, vec![(span.clone(), quote(&uri))]),
                    };
                    fx.deliver(vec![session.stream.clone()], text);
                }
                SubscriberKey::Listen(key) if only.is_none() => {
                    let listen = self.listens.get(key).filter(|listen| listen.is_acknowledged);
                    let Some(listen) = listen else { continue };
                    let text = Text::Tagged(message, listen.id.clone(), Some((span.clone(), uri)));
                    fx.deliver(vec![listen.stream.clone()], text);
                }
                SubscriberKey::Session(_) | SubscriberKey::Listen(_) => {}
            }
        }
    }
}
