//! Which sessions want to hear of which resources. Counted: a server is told of the first and of the last only.

use std::collections::BTreeMap;

/// One session's wish.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subscriber {
    /// The session.
    pub session: String,
    /// The URI under which it knows the resource.
    pub uri: String,
    /// The request that asks the server for it, by the client's id, raw; `None` once that is answered.
    pub asked: Option<String>,
}

/// See the module's documentation. By the name of the server and its own URI.
#[derive(Debug, Default)]
pub struct Subscriptions(BTreeMap<(String, String), Vec<Subscriber>>);

impl Subscriptions {
    /// How many a session has.
    pub fn count(&self, session: &str) -> usize {
        self.0.values().flatten().filter(|subscriber| subscriber.session == session).count()
    }

    /// A session wants to hear of a resource. False: it did before.
    pub fn add(&mut self, server: &str, own: &str, subscriber: Subscriber) -> bool {
        let subscribers = self.0.entry((server.to_owned(), own.to_owned())).or_default();
        let same = |one: &Subscriber| one.session == subscriber.session && one.uri == subscriber.uri;
        let new = !subscribers.iter().any(same);
        if new {
            subscribers.push(subscriber);
        }
        new
    }

    /// A session no longer wants to. True when nobody does any more.
    pub fn remove(&mut self, server: &str, own: &str, session: &str) -> bool {
        let key = (server.to_owned(), own.to_owned());
        let Some(subscribers) = self.0.get_mut(&key) else { return true };
        subscribers.retain(|subscriber| subscriber.session != session);
        let last = subscribers.is_empty();
        if last {
            self.0.remove(&key);
        }
        last
    }

    /// The server answered a session's request to hear of a resource. What it refused is not counted.
    pub fn settle(&mut self, server: &str, session: &str, asked: &str, granted: bool) {
        self.0.retain(|(name, _), subscribers| {
            if name != server {
                return true;
            }
            subscribers.retain_mut(|one| {
                let settled = one.session == session && one.asked.as_deref() == Some(asked);
                one.asked.take_if(|_| settled);
                granted || !settled
            });
            !subscribers.is_empty()
        });
    }

    /// A session is gone. Returns the resources of which nobody wants to hear any more: server and own URI.
    pub fn leave(&mut self, session: &str) -> Vec<(String, String)> {
        let mut unwanted = Vec::new();
        self.0.retain(|key, subscribers| {
            subscribers.retain(|subscriber| subscriber.session != session);
            let wanted = !subscribers.is_empty();
            if !wanted {
                unwanted.push(key.clone());
            }
            wanted
        });
        unwanted
    }

    /// Whether somebody wants to hear of a resource of a server.
    pub fn is_wanted(&self, server: &str, own: &str) -> bool {
        self.0.contains_key(&(server.to_owned(), own.to_owned()))
    }

    /// The resources of a server that somebody wants to hear of.
    pub fn of_server(&self, server: &str) -> Vec<String> {
        self.0.keys().filter(|(name, _)| name == server).map(|(_, own)| own.clone()).collect()
    }

    /// The resources of a server that a session wants to hear of.
    pub fn of_session(&self, server: &str, session: &str) -> Vec<String> {
        let wants = |subscribers: &[Subscriber]| subscribers.iter().any(|one| one.session == session);
        let found = self.0.iter().filter(|((name, _), subscribers)| name == server && wants(subscribers));
        found.map(|((_, own), _)| own.clone()).collect()
    }

    /// Who is to hear that a resource of a server changed. It may lie below the one that was subscribed to.
    pub fn of_update(&self, server: &str, updated: &str) -> Vec<Subscriber> {
        let wanted = |own: &str| {
            updated
                .strip_prefix(own)
                .is_some_and(|rest| rest.is_empty() || own.ends_with('/') || rest.starts_with('/'))
        };
        let found = self.0.iter().filter(|((name, own), _)| name == server && wanted(own));
        found.flat_map(|(_, subscribers)| subscribers.iter().cloned()).collect()
    }

    /// How many resources somebody wants to hear of.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is subscribed to anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(session: &str, uri: &str) -> Subscriber {
        Subscriber { session: session.into(), uri: uri.into(), asked: None }
    }

    #[test]
    fn the_last_one_is_noticed() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add("s", "a://x", who("1", "a://x"));
        subscriptions.add("s", "a://x", who("1", "a://x"));
        subscriptions.add("s", "a://x", who("2", "s+a://x"));
        assert_eq!((subscriptions.count("1"), subscriptions.of_server("s")), (1, vec!["a://x".to_owned()]));
        assert_eq!(
            (subscriptions.of_session("s", "2").len(), subscriptions.of_session("s", "3").len()),
            (1, 0)
        );
        assert!(!subscriptions.remove("s", "a://x", "1"));
        assert!(subscriptions.remove("s", "a://x", "2"));
        assert!(subscriptions.remove("s", "a://x", "2"));
        assert!(subscriptions.is_empty());
    }

    #[test]
    fn what_a_server_refuses_is_not_counted() {
        let mut subscriptions = Subscriptions::default();
        for (session, own, asked) in [("1", "a://x", "7"), ("1", "a://y", "8"), ("2", "a://x", "7")] {
            let asked = Some(asked.to_owned());
            subscriptions.add("s", own, Subscriber { asked, ..who(session, own) });
        }
        subscriptions.settle("t", "1", "7", false);
        subscriptions.settle("s", "1", "8", true);
        subscriptions.settle("s", "1", "8", false);
        assert_eq!(subscriptions.count("1"), 2, "an id that is used again means something else");
        subscriptions.settle("s", "1", "7", false);
        assert_eq!((subscriptions.count("1"), subscriptions.count("2"), subscriptions.len()), (1, 1, 2));
        subscriptions.settle("s", "2", "7", false);
        assert_eq!(subscriptions.of_server("s"), ["a://y"]);
    }

    #[test]
    fn updates_reach_subscribers_only() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add("s", "a://x", who("1", "a://x"));
        subscriptions.add("t", "a://x", who("2", "t+a://x"));
        assert_eq!(subscriptions.of_update("s", "a://x"), [who("1", "a://x")]);
        assert_eq!(subscriptions.of_update("t", "a://x/below"), [who("2", "t+a://x")]);
        assert!(subscriptions.of_update("s", "a://xy").is_empty());
        assert_eq!(subscriptions.leave("2"), [("t".to_owned(), "a://x".to_owned())]);
        assert!(subscriptions.leave("2").is_empty());
    }
}
