//! Resource subscriptions of all sessions and listens. They are counted, so that a server receives
//! only the first subscribe and the last unsubscribe request for a resource. `S` is the program's
//! handle of a subscriber.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    ops::Bound,
    sync::Arc,
};

use crate::limits;

/// The subscription of one client to one resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Subscriber<S> {
    /// The session or listen of the client.
    pub by: S,
    /// The URI under which the client knows the resource.
    pub uri: String,
    /// The number in the session of the call that subscribes; `None` once it is answered.
    pub asked: Option<u64>,
}

impl<S> Subscriber<S> {
    /// Returns the bytes that the subscription takes. `resource` is the server's own URI.
    pub fn bytes(&self, resource: &str) -> usize {
        memory(resource, &self.uri)
    }
}

/// The subscriptions of one client to one resource: the URI under which the client knows it, and
/// the number of the call that waits for a response. At most two, as a resource has no more URIs.
type SubscribedUris = Vec<(String, Option<u64>)>;

/// The clients that are subscribed to one resource.
type Subscribers<S> = BTreeMap<S, SubscribedUris>;

/// Subscriptions, by the name of the server and its own URI, and by subscriber.
#[derive(Debug)]
pub struct Subscriptions<S> {
    /// Subscribers by the name of the server and its own URI.
    servers: HashMap<String, BTreeMap<Arc<str>, Subscribers<S>>>,
    /// Subscriptions by subscriber.
    clients: HashMap<S, ClientSubscriptions>,
    /// Number of resources that have a subscriber.
    resources: usize,
}

/// The subscriptions of one session or listen.
#[derive(Debug, Default)]
struct ClientSubscriptions {
    count: usize,
    bytes: usize,
    /// The servers' own URIs, by the name of the server.
    servers: BTreeMap<String, BTreeSet<Arc<str>>>,
}

impl<S> Default for Subscriptions<S> {
    fn default() -> Self {
        Self { servers: HashMap::new(), clients: HashMap::new(), resources: 0 }
    }
}

impl<S: Copy + Hash + Ord> Subscriptions<S> {
    /// Returns the number of subscriptions of a session or listen.
    pub fn count(&self, by: S) -> usize {
        self.clients.get(&by).map_or(0, |subscriptions| subscriptions.count)
    }

    /// Returns the bytes that the subscriptions of a session or listen take.
    pub fn bytes(&self, by: S) -> usize {
        self.clients.get(&by).map_or(0, |subscriptions| subscriptions.bytes)
    }

    /// Adds a subscription. Returns false if the client has it already.
    pub fn add(&mut self, server: &str, resource: &str, subscriber: Subscriber<S>) -> bool {
        let Subscriber { by, uri, asked } = subscriber;
        let resources = self.servers.entry(server.to_owned()).or_default();
        let resource = resources
            .get_key_value(resource)
            .map_or_else(|| Arc::from(resource), |(resource, _)| resource.clone());
        let subscribers = resources.entry(resource.clone()).or_insert_with(|| {
            self.resources += 1;
            Subscribers::new()
        });
        let subscribed = subscribers.entry(by).or_default();
        if subscribed.iter().any(|(known, _)| *known == uri) {
            return false;
        }
        let bytes = memory(&resource, &uri);
        subscribed.push((uri, asked));
        let all = self.clients.entry(by).or_default();
        all.count += 1;
        all.bytes += bytes;
        all.servers.entry(server.to_owned()).or_default().insert(resource);
        true
    }

    /// Removes the subscriptions of a client to a resource. Returns true if nobody is
    /// subscribed to it any more.
    pub fn remove(&mut self, server: &str, resource: &str, by: S) -> bool {
        self.retain(server, resource, by, |_| false);
        !self.is_wanted(server, resource)
    }

    /// Removes those subscriptions of a client to a resource for which `keep` returns false.
    fn retain(
        &mut self,
        server: &str,
        resource: &str,
        by: S,
        keep: impl FnMut(&mut (String, Option<u64>)) -> bool,
    ) {
        let Some(resources) = self.servers.get_mut(server) else { return };
        let Some(subscribers) = resources.get_mut(resource) else { return };
        let Some(subscribed) = subscribers.get_mut(&by) else { return };
        let bytes = |subscribed: &SubscribedUris| {
            subscribed.iter().map(|(uri, _)| memory(resource, uri)).sum::<usize>()
        };
        let (before, bytes_before) = (subscribed.len(), bytes(subscribed));
        subscribed.retain_mut(keep);
        let (gone, empty) = (before - subscribed.len(), subscribed.is_empty());
        let bytes_gone = bytes_before - bytes(subscribed);
        if empty {
            subscribers.remove(&by);
        }
        if subscribers.is_empty() {
            resources.remove(resource);
            self.resources -= 1;
        }
        if resources.is_empty() {
            self.servers.remove(server);
        }
        let Some(all) = self.clients.get_mut(&by) else { return };
        all.count -= gone;
        all.bytes -= bytes_gone;
        if let Some(uris) = all.servers.get_mut(server).filter(|_| empty) {
            uris.remove(resource);
            if uris.is_empty() {
                all.servers.remove(server);
            }
        }
        if all.count == 0 {
            self.clients.remove(&by);
        }
    }

    /// Records that the call `asked`, which subscribes, was answered or not forwarded. If it was
    /// not `granted`, the subscription is removed.
    pub fn settle(&mut self, server: &str, by: S, asked: u64, granted: bool) {
        for resource in self.uris(server, by) {
            self.retain(server, &resource, by, |(_, waiting)| {
                let settled = waiting.take_if(|waiting| *waiting == asked).is_some();
                granted || !settled
            });
        }
    }

    /// Removes the subscriptions of a session or listen that has ended. Returns the resources that have no
    /// subscriber any more, as server name and own URI.
    pub fn leave(&mut self, by: S) -> Vec<(String, String)> {
        let servers =
            self.clients.get(&by).map(|subscriptions| subscriptions.servers.clone()).unwrap_or_default();
        let mut unwanted = Vec::new();
        for (server, uris) in servers {
            for resource in uris {
                if self.remove(&server, &resource, by) {
                    unwanted.push((server.clone(), resource.to_string()));
                }
            }
        }
        unwanted
    }

    /// Whether anybody is subscribed to a resource of a server.
    pub fn is_wanted(&self, server: &str, resource: &str) -> bool {
        self.servers.get(server).is_some_and(|resources| resources.contains_key(resource))
    }

    /// Returns the own URIs of a server's resources that have a subscriber.
    pub fn of_server(&self, server: &str) -> Vec<String> {
        self.servers.get(server).into_iter().flat_map(BTreeMap::keys).map(ToString::to_string).collect()
    }

    /// Returns the clients that are subscribed to any resource of a server.
    pub fn clients_of(&self, server: &str) -> Vec<S> {
        let subscribers = self.servers.get(server).into_iter().flat_map(BTreeMap::values);
        let clients: BTreeSet<S> = subscribers.flat_map(|all| all.keys().copied()).collect();
        clients.into_iter().collect()
    }

    /// Returns the own URIs of a server's resources that a client is subscribed to.
    pub fn of_client(&self, server: &str, by: S) -> Vec<String> {
        self.uris(server, by).iter().map(ToString::to_string).collect()
    }

    fn uris(&self, server: &str, by: S) -> Vec<Arc<str>> {
        let uris = self.clients.get(&by).and_then(|subscriptions| subscriptions.servers.get(server));
        uris.into_iter().flatten().cloned().collect()
    }

    /// Returns the subscribers of a resource of a server that was updated. It may be a sub-resource
    /// of the one that they subscribed to.
    pub fn of_update(&self, server: &str, updated: &str) -> Vec<Subscriber<S>> {
        let Some(resources) = self.servers.get(server) else { return Vec::new() };
        let mut found = Vec::new();
        // All prefixes of `updated` sort before it. Each step goes to the last URI up to `rest`. If
        // that is not a prefix of `updated`, `rest` becomes the common prefix of both.
        let mut rest = Bound::Included(updated);
        while let Some((resource, subscribers)) =
            resources.range::<str, _>((Bound::Unbounded, rest)).next_back()
        {
            let common = common_prefix(resource, updated);
            if common.len() < resource.len() {
                rest = Bound::Included(common);
                continue;
            }
            let below = &updated[resource.len()..];
            if below.is_empty() || resource.ends_with('/') || below.starts_with('/') {
                let subscribed = subscribers
                    .iter()
                    .flat_map(|(by, subscribed)| subscribed.iter().map(move |entry| (*by, entry)));
                found.extend(subscribed.map(|(by, (uri, asked))| Subscriber {
                    by,
                    uri: uri.clone(),
                    asked: *asked,
                }));
            }
            rest = Bound::Excluded(&updated[..resource.len()]);
        }
        found
    }

    /// Returns the number of clients that are subscribed to anything.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Returns the number of resources that have a subscriber.
    pub fn len(&self) -> usize {
        self.resources
    }

    /// Whether there is no subscription.
    pub fn is_empty(&self) -> bool {
        self.resources == 0
    }
}

/// Returns the bytes that a subscription takes. The own URI counts twice, since an instance of the
/// session's own keeps it to subscribe when it starts.
fn memory(resource: &str, uri: &str) -> usize {
    2 * resource.len() + uri.len() + limits::SUBSCRIPTION_BYTES
}

/// Returns the part of `other` that is a common prefix with `text`.
fn common_prefix<'a>(text: &str, other: &'a str) -> &'a str {
    let pairs = text.chars().zip(other.char_indices());
    let end = pairs.filter(|(one, (_, two))| one != two).map(|(_, (position, _))| position).next();
    &other[..end.unwrap_or(other.len().min(text.len()))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who<S>(by: S, uri: &str) -> Subscriber<S> {
        Subscriber { by, uri: uri.into(), asked: None }
    }

    #[test]
    fn the_last_unsubscribe_is_reported() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add("s", "a://x", who("1", "a://x"));
        subscriptions.add("s", "a://x", who("1", "a://x"));
        subscriptions.add("s", "a://x", who("2", "s+a://x"));
        assert_eq!((subscriptions.count("1"), subscriptions.of_server("s")), (1, vec!["a://x".to_owned()]));
        assert_eq!(
            (subscriptions.of_client("s", "2").len(), subscriptions.of_client("s", "3").len()),
            (1, 0)
        );
        assert!(!subscriptions.remove("s", "a://x", "1"));
        assert!(subscriptions.remove("s", "a://x", "2"));
        assert!(subscriptions.remove("s", "a://x", "2"));
        assert!(subscriptions.is_empty());
    }

    #[test]
    fn a_refused_subscription_is_not_counted() {
        let mut subscriptions = Subscriptions::default();
        for (session, resource, asked) in [("1", "a://x", 7), ("1", "a://y", 8), ("2", "a://x", 7)] {
            let asked = Some(asked);
            subscriptions.add("s", resource, Subscriber { asked, ..who(session, resource) });
        }
        subscriptions.settle("t", "1", 7, false);
        subscriptions.settle("s", "1", 8, true);
        subscriptions.settle("s", "1", 8, false);
        assert_eq!(subscriptions.count("1"), 2, "an id that is used again means something else");
        subscriptions.settle("s", "1", 7, false);
        assert_eq!((subscriptions.count("1"), subscriptions.count("2"), subscriptions.len()), (1, 1, 2));
        subscriptions.settle("s", "2", 7, false);
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

    #[test]
    fn counts_and_indexes_follow_removals() {
        let mut subscriptions = Subscriptions::default();
        for (server, resource, session) in
            [("s", "a", "1"), ("s", "b", "1"), ("t", "a", "1"), ("s", "a", "2")]
        {
            assert!(subscriptions.add(server, resource, who(session, resource)));
            assert!(!subscriptions.add(server, resource, who(session, resource)), "it did before");
        }
        assert!(subscriptions.add("s", "a", who("1", "s+a")), "another name of the same resource counts");
        assert_eq!((subscriptions.count("1"), subscriptions.count("2"), subscriptions.len()), (4, 1, 3));
        assert_eq!(subscriptions.clients_of("s"), ["1", "2"]);
        assert!(!subscriptions.remove("s", "a", "1"));
        assert_eq!((subscriptions.count("1"), subscriptions.of_client("s", "1")), (2, vec!["b".to_owned()]));
        let gone = [("s".to_owned(), "b".to_owned()), ("t".to_owned(), "a".to_owned())];
        assert_eq!(subscriptions.leave("1"), gone);
        assert_eq!(subscriptions.leave("2"), [("s".to_owned(), "a".to_owned())]);
        assert!(subscriptions.servers.is_empty() && subscriptions.clients.is_empty());
    }

    /// Finds the same subscriptions as a comparison with each of them.
    #[test]
    fn updates_match_parents_at_all_levels() {
        let texts = [
            "", "a", "a/", "a/b", "a/b/", "a/b/c", "a/bc", "a/b0", "b", "ä/é", "ä/é/x", "a/b/c/d", "/", "//",
        ];
        let mut subscriptions = Subscriptions::default();
        for resource in texts {
            subscriptions.add("s", resource, who("1", resource));
        }
        for updated in texts.iter().chain(&["a/b/c/d/e", "a/b1", "ä/ê", "c", "a//b"]) {
            let below = |resource: &str| {
                let rest = updated.strip_prefix(resource)?;
                (rest.is_empty() || resource.ends_with('/') || rest.starts_with('/'))
                    .then(|| resource.to_owned())
            };
            let mut expected: Vec<String> = texts.iter().filter_map(|resource| below(resource)).collect();
            let found = subscriptions.of_update("s", updated);
            let mut found: Vec<String> = found.into_iter().map(|one| one.uri).collect();
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "{updated}");
        }
    }

    /// 20 000 subscriptions of 1 000 sessions take seconds if each operation examines all of them.
    #[test]
    fn many_subscriptions_cost_no_search() {
        let mut subscriptions = Subscriptions::default();
        let uri = |number: usize| format!("file:///{number}");
        for number in 0..20_000 {
            let session = number % 1000;
            assert_eq!(subscriptions.count(session), number / 1000);
            let asked = Some(number as u64);
            subscriptions.add("s", &uri(number), Subscriber { asked, ..who(session, &uri(number)) });
            subscriptions.settle("s", session, number as u64, true);
            assert_eq!(subscriptions.of_update("s", &uri(number)).len(), 1);
        }
        for session in 0..1000 {
            assert_eq!(subscriptions.leave(session).len(), 20);
        }
        assert!(subscriptions.is_empty());
    }
}
