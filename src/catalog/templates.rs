//! The resource templates of all servers, indexed by the literal text before their first
//! expression.
//!
//! A look-up hashes the URI once, and compares it with each template that begins in the same way,
//! up to [`TEMPLATE_WORK`] bytes.

use std::{
    collections::{BTreeMap, HashMap, hash_map::DefaultHasher},
    hash::Hasher,
    sync::Arc,
};

use super::key::UpstreamKey;
use crate::limits::{AMBIGUOUS_SERVERS, TEMPLATE_WORK};

/// Templates by server.
type Servers = BTreeMap<UpstreamKey, Vec<Arc<str>>>;

/// The resource templates of all servers; see the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Templates {
    /// Templates by the length of their literal prefix, and then by its hash.
    beginnings: BTreeMap<usize, HashMap<u64, Servers>>,
    held: HashMap<UpstreamKey, Vec<Arc<str>>>,
}

impl Templates {
    /// Replaces the templates of a server.
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

    /// Removes all templates of a server.
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

    /// Returns the servers with a template that can expand to this URI, in the order of
    /// registration, at most [`AMBIGUOUS_SERVERS`]. Beyond [`TEMPLATE_WORK`] a server counts as a
    /// match without a comparison; if that makes the URI ambiguous, the client has to name the
    /// server.
    pub(super) fn matching(&self, uri: &str) -> Vec<UpstreamKey> {
        self.look(uri).0
    }

    /// Returns the servers as [`Templates::matching`] does, and the number of bytes compared.
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

/// Returns the key of a template: the length and the hash of its literal prefix.
fn place(template: &str) -> (usize, u64) {
    let beginning = template.split('{').next().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    hasher.write(beginning.as_bytes());
    (beginning.len(), hasher.finish())
}

/// Whether a template can expand to this URI (RFC 6570): the literal parts must occur in order,
/// with any text in place of the expressions. An exact check would need the variables, so the
/// server itself decides in the end.
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
            Some(position) => rest = &rest[position + literal.len()..],
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
        // Templates with another prefix cost nothing, however many there are.
        let others: Vec<String> = (0..5000).map(|number| format!("b://{number}/{{x}}")).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let uri = format!("a://{}", "x".repeat(URI_BYTES - 4));
        let all = of(&[(1, &others), (2, &["a://{x}y"])]);
        assert_eq!(all.look(&uri), (vec![], "a://{x}y".len() + URI_BYTES - 4));
        // Of the templates with the same prefix only some are compared. The server of the others
        // counts as a match.
        let same: Vec<String> = (0..5000).map(|number| format!("a://{{x}}y{number}")).collect();
        let same: Vec<&str> = same.iter().map(String::as_str).collect();
        let all = of(&[(1, &same[..10]), (2, &same), (3, &["a://{x}"])]);
        let (found, work) = all.look(&uri);
        assert_eq!(found, [UpstreamKey(2), UpstreamKey(3)]);
        assert!(work < TEMPLATE_WORK + 3 * URI_BYTES, "{work}");
        assert_eq!(all.matching("a://short"), [UpstreamKey(3)], "a usual URI is compared with all of them");
    }
}
