//! One list that clients see: what all servers offer of one kind, by exposed name.

use std::{collections::BTreeMap, fmt::Write, ops::Bound};

use super::Key;
use crate::{
    jsonrpc::quote,
    limits::{CatalogLimits, LIST_PAGE},
    mcp::{
        names::{exposed, exposed_with_hash},
        offer::{Item, Kind},
    },
    text,
};

/// What our cursors begin with.
const CURSOR: &str = "after:";

#[derive(Debug)]
struct Entry {
    /// `None`: the gateway's own.
    server: Option<Key>,
    /// The server's own name or URI.
    key: String,
    /// The description under the exposed name.
    listed: String,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Board {
    kind: Kind,
    entries: BTreeMap<String, Entry>,
}

impl Board {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, entries: BTreeMap::new() }
    }

    /// Adds something of the gateway's own.
    pub(super) fn add_own(&mut self, name: &str, listed: &str) {
        let entry = Entry { server: None, key: name.to_owned(), listed: listed.to_owned() };
        self.entries.insert(name.to_owned(), entry);
    }

    /// Adds an item of a server. Returns a warning when its plain name is taken.
    pub(super) fn add(
        &mut self,
        server: Key,
        name: &str,
        item: &Item,
        limits: &CatalogLimits,
    ) -> Option<String> {
        let (plain, other) = self.names(name, &item.key, limits);
        let noun = self.kind.noun();
        let holder = self.entries.get(&plain);
        let taken = holder.is_some();
        let again = holder.is_some_and(|entry| entry.server == Some(server) && entry.key == item.key);
        let exposed = if taken { other } else { plain.clone() };
        if again || self.entries.contains_key(&exposed) {
            return Some(format!("{noun} {} is listed twice", text::show(&item.key)));
        }
        let entry = Entry { server: Some(server), key: item.key.clone(), listed: item.under(&exposed) };
        let warning = taken.then(|| {
            let (plain, shown) = (text::show(&plain), text::show(&item.key));
            format!("the name {plain} is taken; {noun} {shown} is exposed as {}", text::show(&exposed))
        });
        self.entries.insert(exposed, entry);
        warning
    }

    /// The name that an item has, and the one that it has when that is taken. Resources keep their URI.
    fn names(&self, server: &str, key: &str, limits: &CatalogLimits) -> (String, String) {
        match self.kind {
            Kind::Prompt | Kind::Tool => {
                let longest = limits.exposed_name;
                (exposed(server, key, longest), exposed_with_hash(server, key, longest))
            }
            Kind::Resource | Kind::Template => (key.to_owned(), format!("{server}+{key}")),
        }
    }

    /// Takes out all of a server. False when there was nothing.
    pub(super) fn remove(&mut self, server: Key) -> bool {
        let before = self.entries.len();
        self.entries.retain(|_, entry| entry.server != Some(server));
        self.entries.len() < before
    }

    /// Whose it is, and the server's own name for it.
    pub(super) fn find(&self, exposed: &str) -> Option<(Option<Key>, &str)> {
        self.entries.get(exposed).map(|entry| (entry.server, entry.key.as_str()))
    }

    /// The server that has a template of which this URI can be made.
    pub(super) fn matching(&self, uri: &str) -> Option<Key> {
        self.entries.values().find(|entry| fits(&entry.key, uri)).and_then(|entry| entry.server)
    }

    /// One page, as the result of the list method. `None` when the cursor is not one of ours.
    pub(super) fn page(&self, cursor: Option<&str>) -> Option<String> {
        let from = match cursor {
            None => Bound::Unbounded,
            Some(cursor) => Bound::Excluded(cursor.strip_prefix(CURSOR)?),
        };
        let mut out = format!("{{\"{}\":[", self.kind.member());
        let mut rest = self.entries.range::<str, _>((from, Bound::Unbounded)).peekable();
        while let Some((name, entry)) = rest.next() {
            out.push_str(&entry.listed);
            let Some((_, following)) = rest.peek() else { break };
            if out.len() + following.listed.len() > LIST_PAGE {
                // Writing to a String cannot fail.
                let _ = write!(out, "],\"nextCursor\":{}}}", quote(&format!("{CURSOR}{name}")));
                return Some(out);
            }
            out.push(',');
        }
        out.push_str("]}");
        Some(out)
    }
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
    use super::fits;

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
}
