//! Index of the exposed names of one kind of item, over all servers.
//!
//! The exposed name of a tool or prompt is a pure function of the server and the item
//! (`mcp::exposed_name`). A URI that two servers list is given to neither of them: both items are
//! exposed under their longer forms, `<server>+<uri>`, whichever server registered first, and the
//! URI alone is an error that names these forms. It stays contested as long as one of its claimants
//! is registered, so that it never changes its meaning from one running server to another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    ops::Bound,
    sync::Arc,
};

use super::key::UpstreamKey;
use crate::{
    jsonrpc::quote,
    limits::{AMBIGUOUS_SERVERS, CatalogLimits, LIST_PAGE, YIELD_EVERY},
    mcp::{
        exposed_name::{exposed, exposed_with_hash, is_hashed},
        listing::{ListItem, ListKind, rename},
        resource_links,
        stateless::headers,
    },
    util,
};

/// Prefix of the gateway's cursors.
const CURSOR: &str = "after:";

#[derive(Debug)]
struct IndexEntry {
    /// The server that offers the item; `None`: the gateway itself.
    server: Option<UpstreamKey>,
    /// The server's own name or URI of the item.
    key: String,
    /// The JSON description of the item, with its exposed name.
    listed: String,
    /// Whether the description may link to a resource.
    links: bool,
}

/// The exposed names of one server.
#[derive(Debug)]
struct ServerNames {
    name: String,
    /// The exposed names that the server has or claims.
    names: Vec<Arc<str>>,
}

/// The result of looking up an exposed name.
pub(super) enum Lookup<'a> {
    /// An item of the gateway itself.
    Own,
    /// An item of a server, with the server's own name or URI of it.
    Server(UpstreamKey, &'a str),
    /// Several items claim this name. Holds the longer names of at most [`AMBIGUOUS_SERVERS`] of
    /// them.
    Several(Vec<String>),
}

/// The exposed names of one kind of item; see the module's documentation.
#[derive(Debug)]
pub(super) struct NameIndex {
    kind: ListKind,
    longest: usize,
    entries: BTreeMap<Arc<str>, IndexEntry>,
    /// Contested names with their claimants: the server, and its own name or URI of the item.
    contested: BTreeMap<Arc<str>, BTreeSet<(UpstreamKey, String)>>,
    held: BTreeMap<UpstreamKey, ServerNames>,
}

impl NameIndex {
    pub(super) fn new(kind: ListKind, limits: &CatalogLimits) -> Self {
        let (entries, contested, held) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { kind, longest: limits.exposed_name, entries, contested, held }
    }

    /// Adds an item of the gateway itself.
    pub(super) fn add_own(&mut self, name: &str, listed: &str) {
        let entry =
            IndexEntry { server: None, key: name.to_owned(), listed: listed.to_owned(), links: false };
        self.entries.insert(name.into(), entry);
    }

    /// Adds an item of a server. Returns a warning if it is listed twice or does not get its plain
    /// name.
    fn add(&mut self, server: UpstreamKey, name: &str, item: &ListItem) -> Option<String> {
        self.held.entry(server).or_insert_with(|| ServerNames { name: name.to_owned(), names: Vec::new() });
        let (noun, shown) = (self.kind.noun(), util::escape::show(&item.key));
        let names = self.names(name, &item.key);
        if names.iter().any(|exposed| self.is_held(exposed, server, &item.key)) {
            return Some(format!("{noun} {shown} is listed twice"));
        }
        let plain = &names[0];
        let listed = match self.kind {
            // Marks are for clients of the server's own endpoint.
            ListKind::Tool => headers::without_marks(&item.under(plain)).into_owned(),
            _ => item.under(plain),
        };
        let links = resource_links::may_link_description(&listed);
        let entry = IndexEntry { server: Some(server), key: item.key.clone(), listed, links };
        let exposed = self.place(entry, &names, 0);
        let taken = util::escape::show(plain);
        match exposed {
            Some(exposed) if *exposed == **plain => None,
            Some(exposed) => Some(format!(
                "name {taken} is already in use; {noun} {shown} is exposed as {}",
                util::escape::show(&exposed)
            )),
            None => Some(format!("name {taken} is already in use; {noun} {shown} is not exposed")),
        }
    }

    /// Whether this item has or claims the exposed name.
    fn is_held(&self, exposed: &str, server: UpstreamKey, key: &str) -> bool {
        let has = |entry: &IndexEntry| entry.server == Some(server) && entry.key == key;
        let claims =
            |claimants: &BTreeSet<(UpstreamKey, String)>| claimants.contains(&(server, key.to_owned()));
        self.entries.get(exposed).is_some_and(has) || self.contested.get(exposed).is_some_and(claims)
    }

    /// Exposes an item under the first of its `names`, from index `from` on, that no other item has
    /// or claims. An item that already has one of these names loses it and gets its next one.
    /// Returns the name, or `None` if there is none left.
    fn place(&mut self, mut entry: IndexEntry, names: &[String; 2], from: usize) -> Option<Arc<str>> {
        let server = entry.server?;
        for (number, name) in names.iter().enumerate().skip(from) {
            if number > 0 && name == &names[number - 1] {
                continue;
            }
            let name: Arc<str> = name.as_str().into();
            let owner = self.entries.get(&name).map(|holder| holder.server);
            let is_free = owner.is_none() && !self.contested.contains_key(&name);
            if owner != Some(None) {
                self.held.get_mut(&server)?.names.push(name.clone());
            }
            if is_free {
                entry.listed = rename(self.kind, &entry.listed, &name);
                self.entries.insert(name.clone(), entry);
                return Some(name);
            }
            if owner == Some(None) {
                continue;
            }
            let claimants = self.contested.entry(name.clone()).or_default();
            claimants.insert((server, entry.key.clone()));
            if let Some(other) = self.entries.remove(&name) {
                claimants.extend(other.server.map(|server| (server, other.key.clone())));
                self.displace(other, &name);
            }
        }
        None
    }

    /// Moves an item whose name became contested to its next name, if it has one.
    fn displace(&mut self, entry: IndexEntry, name: &str) {
        let held = entry.server.and_then(|server| self.held.get(&server));
        let names = held.map(|held| self.names(&held.name, &entry.key));
        if let Some(names) = names.filter(|[plain, _]| plain == name) {
            self.place(entry, &names, 1);
        }
    }

    /// Returns the plain name of an item, and the longer one that it gets if the plain name is
    /// contested or belongs to the gateway. The plain name of a resource is its URI.
    fn names(&self, server: &str, key: &str) -> [String; 2] {
        match self.kind {
            ListKind::Prompt | ListKind::Tool => {
                [exposed(server, key, self.longest), exposed_with_hash(server, key, self.longest)]
            }
            ListKind::Resource | ListKind::Template => [key.to_owned(), format!("{server}+{key}")],
        }
    }

    /// Replaces the items of a server. Returns warnings for the log.
    pub(super) fn set(&mut self, server: UpstreamKey, name: &str, items: &[ListItem]) -> Vec<String> {
        let before = self.take_out(server);
        let warnings = items.iter().filter_map(|item| self.add(server, name, item)).collect();
        // Released only after the new items are added. Otherwise a contested name would become
        // plain when a server sends its list again.
        self.release(&before);
        warnings
    }

    /// Removes all items of a server. Returns false if there were none.
    pub(super) fn remove(&mut self, server: UpstreamKey) -> bool {
        let names = self.take_out(server);
        self.release(&names);
        !names.is_empty()
    }

    fn take_out(&mut self, server: UpstreamKey) -> Vec<Arc<str>> {
        let names = self.held.remove(&server).map(|held| held.names).unwrap_or_default();
        for name in &names {
            if self.entries.get(name).is_some_and(|entry| entry.server == Some(server)) {
                self.entries.remove(name);
            }
            if let Some(claimants) = self.contested.get_mut(name) {
                claimants.retain(|(claimant, _)| *claimant != server);
            }
        }
        names
    }

    /// Removes names that no item claims any more from `contested`.
    fn release(&mut self, names: &[Arc<str>]) {
        for name in names {
            if self.contested.get(name).is_some_and(BTreeSet::is_empty) {
                self.contested.remove(name);
            }
        }
    }

    /// Finds the item with an exposed name.
    pub(super) fn find(&self, exposed: &str) -> Option<Lookup<'_>> {
        if let Some(entry) = self.entries.get(exposed) {
            return Some(entry.server.map_or(Lookup::Own, |server| Lookup::Server(server, &entry.key)));
        }
        let claimants = self.contested.get(exposed)?;
        let form = |(server, key): &(UpstreamKey, String)| {
            Some(self.names(&self.held.get(server)?.name, key)[1].clone())
        };
        Some(Lookup::Several(claimants.iter().take(AMBIGUOUS_SERVERS).filter_map(form).collect()))
    }

    /// Returns the exposed names that a client may have meant by an unknown name: it may assume
    /// that all names have the form `<server>_<tool>`, as with the Python mcpport. `server` finds a
    /// server by its name.
    pub(super) fn meant(&self, name: &str, server: impl Fn(&str) -> Option<UpstreamKey>) -> Vec<String> {
        if name.len() > self.longest {
            return Vec::new();
        }
        let of_pair = |(position, _): (usize, &str)| {
            let (server_name, key) = (&name[..position], &name[position + 1..]);
            let (server, exposed) = (server(server_name)?, exposed(server_name, key, self.longest));
            self.is_held(&exposed, server, key).then_some(exposed)
        };
        let begins = format!("{name}_");
        let from = (Bound::Excluded(begins.as_str()), Bound::Unbounded);
        let behind = self.entries.range::<str, _>(from).take(YIELD_EVERY).map(|(other, _)| other);
        let hashed = behind.filter(|other| {
            is_hashed(other) && other.rsplit_once('_').is_some_and(|(shown, _)| shown == name)
        });
        let all = name.match_indices('_').filter_map(of_pair).chain(hashed.map(|other| other.to_string()));
        let mut all: Vec<String> = all.take(AMBIGUOUS_SERVERS).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Returns one page as the result of the list method, or `None` if the cursor is not one of
    /// ours.
    ///
    /// `mend` rewrites the resource links in a server's description; `None` leaves it unchanged.
    pub(super) fn page(
        &self,
        cursor: Option<&str>,
        mend: &dyn Fn(UpstreamKey, &str) -> Option<String>,
    ) -> Option<String> {
        let from = match cursor {
            None => Bound::Unbounded,
            Some(cursor) => Bound::Excluded(cursor.strip_prefix(CURSOR)?),
        };
        let mut out = format!("{{\"{}\":[", self.kind.member());
        let mut rest = self.entries.range::<str, _>((from, Bound::Unbounded)).peekable();
        while let Some((name, entry)) = rest.next() {
            let mended = entry.server.filter(|_| entry.links).and_then(|server| mend(server, &entry.listed));
            out.push_str(mended.as_deref().unwrap_or(&entry.listed));
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
