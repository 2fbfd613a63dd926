//! The resource templates of all servers, by what stands before their first expression.
//!
//! A look-up costs what the URI has bytes, and some for each template that begins as the URI does, up to a bound.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::Hasher,
    sync::Arc,
};

use super::UpstreamKey;
use crate::limits::{AMBIGUOUS_SERVERS, TEMPLATE_WORK};

/// Templates of servers.
type Servers = BTreeMap<UpstreamKey, Vec<Arc<str>>>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// By the length of the beginning, and then by its hash.
    beginnings: BTreeMap<usize, HashMap<u64, Servers>>,
    held: HashMap<UpstreamKey, Vec<Arc<str>>>,
}

impl Templates {
    /// Puts these templates of a server in the place of those before.
    pub(super) fn set<'a>(&mut self, server: UpstreamKey, templates: impl Iterator<Item = &'a str>) {
        self.remove(server);
        let templates: Vec<Arc<str>> = templates.map(Arc::from).collect();
        for template in &templates {
            let (length, hash) = place(template);
            let servers = self.beginnings.entry(length).or_default().entry(hash).or_default();
            servers.entry(server).or_default().push(template.clone());
        }
        if !templates.is_empty() {
            self.held.insert(server, templates);
        }
    }

    /// Takes out all of a server.
    pub(super) fn remove(&mut self, server: UpstreamKey) {
        for template in self.held.remove(&server).unwrap_or_default() {
            let (length, hash) = place(&template);
            let Some(hashes) = self.beginnings.get_mut(&length) else { continue };
            if let Some(servers) = hashes.get_mut(&hash) {
                servers.remove(&server);
                if servers.is_empty() {
                    hashes.remove(&hash);
                }
            }
            if hashes.is_empty() {
                self.beginnings.remove(&length);
            }
        }
    }

    /// Servers that have a template of which this URI can be made, by age: as many as an error names, at most. Where there are
    /// too many to look at, a server counts as one of them: whoever asks then has to name it.
    pub(super) fn matching(&self, uri: &str) -> Vec<UpstreamKey> {
        self.look(uri).0
    }

    /// The same, and the work that it was.
    fn look(&self, uri: &str) -> (Vec<UpstreamKey>, usize) {
        let (mut found, mut work) = (Vec::new(), 0);
        let (mut hasher, mut hashed) = (DefaultHasher::new(), 0);
        for (length, hashes) in self.beginnings.range(..=uri.len()) {
            hasher.write(&uri.as_bytes()[hashed..*length]);
            hashed = *length;
            for (server, templates) in hashes.get(&hasher.finish()).into_iter().flatten() {
                let mut can_be = |template: &Arc<str>| {
                    work += template.len() + uri.len() - length;
                    work > TEMPLATE_WORK || fits(template, uri)
                };
                if found.len() < AMBIGUOUS_SERVERS
                    && !found.contains(server)
                    && templates.iter().any(&mut can_be)
                {
                    found.push(*server);
                }
            }
            if found.len() == AMBIGUOUS_SERVERS {
                break;
            }
        }
        found.sort_unstable();
        (found, work)
    }
}

/// Where a template is kept: the length and the hash of its beginning.
fn place(template: &str) -> (usize, u64) {
    let beginning = template.split('{').next().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    hasher.write(beginning.as_bytes());
    (beginning.len(), hasher.finish())
}

/// Whether a URI can come of a template (RFC 6570): its literal parts in their order, anything where an expression
/// stands. Deciding more would need the variables; the server itself has the last word.
fn fits(template: &str, uri: &str) -> bool {
    let Some((head, mut rest_of_template)) = template.split_once('{') else { return template == uri };
    let Some(mut rest) = uri.strip_prefix(head) else { return false };
    while let Some((_, after)) = rest_of_template.split_once('}') {
        let (literal, following) = match after.split_once('{') {
            Some((literal, following)) => (literal, Some(following)),
            None => (after, None),
        };
        let Some(following) = following else { return rest.ends_with(literal) };
        match rest.find(literal) {
            Some(place) => rest = &rest[place + literal.len()..],
            None => return false,
        }
        rest_of_template = following;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::URI_BYTES;

    #[test]
    fn templates() {
        for (template, uri, expected) in [
            ("a://x", "a://x", true),
            ("a://x", "a://y", false),
            ("a://{id}", "a://7", true),
            ("a://{id}/b", "a://7/b", true),
            ("a://{id}/b", "a://7/c", false),
            ("a://{id}/b/{+path}", "a://7/b/c/d", true),
            ("a://{id}/b/{+path}", "a://7/c/d", false),
            ("a://{x}{?q}", "a://7?q=1", true),
            ("{+any}", "z://", true),
            ("a://{broken", "a://7", false),
        ] {
            assert_eq!(fits(template, uri), expected, "{template} {uri}");
        }
    }

    fn of(servers: &[(u64, &[&str])]) -> Templates {
        let mut all = Templates::default();
        servers.iter().for_each(|(key, templates)| all.set(UpstreamKey(*key), templates.iter().copied()));
        all
    }

    #[test]
    fn templates_are_found_by_their_beginning() {
        let mut all = of(&[
            (1, &["a://é/{x}", "a://é/b/{x}"]),
            (2, &["a://é/{x}/c", "a://exact"]),
            (3, &["{+any}z", "b://{broken"]),
        ]);
        for (uri, expected) in [
            ("a://é/b/c", &[1, 2][..]),
            ("a://é/b", &[1]),
            ("a://exact", &[2]),
            ("a://exact/", &[]),
            ("a://é/z", &[1, 3]),
            ("b://7", &[]),
            ("a:", &[]),
            ("", &[]),
        ] {
            let expected: Vec<UpstreamKey> = expected.iter().copied().map(UpstreamKey).collect();
            assert_eq!(all.matching(uri), expected, "{uri}");
        }
        all.set(UpstreamKey(1), std::iter::empty());
        all.remove(UpstreamKey(3));
        assert_eq!(all.matching("a://é/b/c"), [UpstreamKey(2)]);
        all.remove(UpstreamKey(2));
        assert!(all.beginnings.is_empty() && all.held.is_empty());
    }

    #[test]
    fn work_is_bounded_by_the_uri_and_the_templates_that_begin_so() {
        // Others cost nothing, however many they are.
        let others: Vec<String> = (0..5000).map(|number| format!("b://{number}/{{x}}")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let uri = format!("a://{}", "x".repeat(URI_BYTES - 4));
        let all = of(&[(1, &others), (2, &["a://{x}y"])]);
        assert_eq!(all.look(&uri), (vec![], "a://{x}y".len() + URI_BYTES - 4));
        // Of those that begin in the same way only some are tried; the server is then one of those that can be meant.
        let same: Vec<String> = (0..5000).map(|number| format!("a://{{x}}y{number}")).collect();
        let same: Vec<&str> = same.iter().map(String::as_str).collect();
        let all = of(&[(1, &same[..10]), (2, &same), (3, &["a://{x}"])]);
        let (found, work) = all.look(&uri);
        assert_eq!(found, [UpstreamKey(2), UpstreamKey(3)]);
        assert!(work < TEMPLATE_WORK + 3 * URI_BYTES, "{work}");
        assert_eq!(all.matching("a://short"), [UpstreamKey(3)], "a usual URI is compared with all of them");
    }
}
