//! The catalog: registered servers and the items they offer, under the names that clients see.
//!
//! Plain tables without I/O. `H` is the program's handle of a server; look-ups return clones of it.
//! Exposed names are found in a map, never by splitting them at a separator.

mod index;
mod instructions;
mod key;
mod templates;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
    time::Instant,
};

pub use self::key::UpstreamKey;
use self::{
    index::{Lookup, NameIndex},
    instructions::Instructions,
    templates::Templates,
};
use crate::{
    auth::Principal,
    jsonrpc::quote,
    limits::{AMBIGUOUS_SERVERS, CatalogLimits, LOG_CHANGES, TAKEOVER_WINDOW, TAKEOVERS, URI_BYTES},
    mcp::{
        listing::{ListItem, ListKind},
        resource_links,
        stateless::headers::HeaderParams,
    },
    util,
};

/// The result of looking up an item by the name or URI that clients use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target<H> {
    /// An item of the gateway itself.
    Own,
    /// An item of a server.
    Server {
        /// The handle of the server.
        handle: H,
        /// The server's own name or URI of the item.
        key: String,
    },
    /// The name or URI is ambiguous, or an older form. Each of these names or URIs means one
    /// item.
    Several(Vec<String>),
}

/// Error: another server has the name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NameTaken {
    /// The name that is taken.
    pub name: String,
    /// The id of the server that has it. `None` if that server belongs to another principal, since
    /// a server's id is shown only to its own principal.
    pub holder: Option<String>,
    /// Whether the link of that server is lost, so that the name may soon be free. False if
    /// `holder` is `None`.
    pub away: bool,
}

/// Error: a server took over its own live link too often in [`TAKEOVER_WINDOW`], so two programs
/// probably use the same id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooOften;

/// One registered server.
#[derive(Debug)]
struct CatalogEntry<H> {
    id: String,
    name: String,
    principal: Principal,
    handle: H,
    /// Whether its link is lost and may come back.
    away: bool,
    offers: BTreeMap<ListKind, Vec<ListItem>>,
    /// The parameters of its tools that clients repeat in header fields, by the name of the tool.
    header_params: HashMap<String, Arc<HeaderParams>>,
    /// The times in [`TAKEOVER_WINDOW`] at which it took over its own link.
    takeovers: Vec<Instant>,
}

/// The registered servers with their names, items and instructions. `H` is the handle of a server.
#[derive(Debug)]
pub struct Catalog<H> {
    last: u64,
    servers: BTreeMap<UpstreamKey, CatalogEntry<H>>,
    /// Servers by principal and id. An id is unique within its principal only: equal ids of two
    /// principals are two servers.
    ids: HashMap<(Principal, String), UpstreamKey>,
    names: HashMap<String, UpstreamKey>,
    /// The servers that declare resources.
    with_resources: BTreeSet<UpstreamKey>,
    /// The servers that ever declared resources.
    only: Only,
    templates: Templates,
    indexes: BTreeMap<ListKind, NameIndex>,
    instructions: Instructions,
}

/// Whether a URI that is not listed can mean only one server. Once a second server has declared
/// resources it never can again, since a client may have kept the URI from the time of the first
/// server.
#[derive(Debug, Default)]
enum Only {
    #[default]
    Nobody,
    /// Only the server of this principal with this name.
    One(Principal, String),
    Several,
}

/// How a URI was resolved to a server.
enum Resolution {
    /// It is listed under this URI. Holds the server's own URI, which may differ.
    Listed(UpstreamKey, String),
    /// It has the form `<server>+<uri>`. Holds the server's own URI.
    Named(UpstreamKey, String),
    /// It matches a template of this server only.
    Template(UpstreamKey),
    /// This is the only server that has or ever had resources.
    Only(UpstreamKey),
    /// It is ambiguous. Each of these URIs means one server.
    Several(Vec<String>),
}

impl<H: Clone> Catalog<H> {
    /// Creates a catalog with the gateway's own tools, given as name and description.
    pub fn new(built_in: &[(&str, &str)], limits: &CatalogLimits) -> Self {
        let mut indexes: BTreeMap<ListKind, NameIndex> =
            ListKind::ALL.into_iter().map(|kind| (kind, NameIndex::new(kind, limits))).collect();
        if let Some(tools) = indexes.get_mut(&ListKind::Tool) {
            built_in.iter().for_each(|(name, listed)| tools.add_own(name, listed));
        }
        let (servers, ids, names) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        let (with_resources, only, templates) = (BTreeSet::new(), Only::default(), Templates::default());
        let instructions = Instructions::default();
        Self { last: 0, servers, ids, names, with_resources, only, templates, indexes, instructions }
    }

    /// Returns the key for a registration that is about to be made.
    pub fn reserve(&mut self) -> UpstreamKey {
        self.last += 1;
        UpstreamKey(self.last)
    }

    /// Registers a server under a new key; see [`Catalog::register_as`].
    ///
    /// # Errors
    /// [`NameTaken`] if another server has the name.
    pub fn register(
        &mut self,
        id: &str,
        name: &str,
        principal: Principal,
        handle: H,
    ) -> Result<(UpstreamKey, Option<H>), NameTaken> {
        let key = self.reserve();
        self.register_as(key, id, name, principal, handle).map(|replaced| (key, replaced))
    }

    /// Registers a server that offers nothing yet, under a reserved key. If the same principal
    /// already has a server with this id, the new one replaces it, and the old handle is returned so
    /// that the caller can close its link.
    ///
    /// # Errors
    /// [`NameTaken`] if another server has the name.
    pub fn register_as(
        &mut self,
        key: UpstreamKey,
        id: &str,
        name: &str,
        principal: Principal,
        handle: H,
    ) -> Result<Option<H>, NameTaken> {
        let replaced = self.ids.get(&(principal, id.to_owned())).copied();
        let holder = self.names.get(name).filter(|key| replaced != Some(**key));
        if let Some(holder) = holder.and_then(|key| self.servers.get(key)) {
            let visible = Some(holder).filter(|holder| holder.principal == principal);
            let (away, holder) =
                (visible.is_some_and(|visible| visible.away), visible.map(|visible| visible.id.clone()));
            return Err(NameTaken { name: name.to_owned(), holder, away });
        }
        let before = replaced.and_then(|key| self.servers.get_mut(&key));
        let takeovers = before.map(|server| std::mem::take(&mut server.takeovers)).unwrap_or_default();
        let replaced = replaced.and_then(|key| self.remove(key)).map(|(handle, _)| handle);
        let (id, name) = (id.to_owned(), name.to_owned());
        self.ids.insert((principal, id.clone()), key);
        self.names.insert(name.clone(), key);
        let (away, offers) = (false, BTreeMap::new());
        let header_params = HashMap::new();
        let server = CatalogEntry { id, name, principal, handle, away, offers, header_params, takeovers };
        self.servers.insert(key, server);
        Ok(replaced)
    }

    /// Counts a takeover that is about to happen: the same principal registers the id again while
    /// the link is `alive`. A lost link is not taken over, so reconnecting does not count, however
    /// often it happens.
    ///
    /// # Errors
    /// [`TooOften`] after [`TAKEOVERS`] takeovers in [`TAKEOVER_WINDOW`].
    pub fn take_over(
        &mut self,
        now: Instant,
        id: &str,
        principal: Principal,
        alive: impl Fn(&H) -> bool,
    ) -> Result<(), TooOften> {
        let entry = self.ids.get(&(principal, id.to_owned())).and_then(|key| self.servers.get_mut(key));
        let Some(server) = entry.filter(|server| !server.away && alive(&server.handle)) else {
            return Ok(());
        };
        server.takeovers.retain(|at| now.saturating_duration_since(*at) < TAKEOVER_WINDOW);
        if server.takeovers.len() >= TAKEOVERS {
            return Err(TooOften);
        }
        server.takeovers.push(now);
        Ok(())
    }

    /// Whether the server with this id belongs to the principal and has a link that is `alive`.
    pub fn is_linked(&self, id: &str, principal: Principal, alive: impl Fn(&H) -> bool) -> bool {
        self.entry_of(id, principal).is_some_and(|server| !server.away && alive(&server.handle))
    }

    /// Returns the handles of the servers whose principals may no longer claim their names.
    pub fn unauthorized(&self, may_claim: impl Fn(Principal, &str) -> bool) -> Vec<H> {
        let out = self.servers.values().filter(|server| !may_claim(server.principal, &server.name));
        out.map(|server| server.handle.clone()).collect()
    }

    /// Removes a server and all its names. Returns its handle, and the kinds of items that it had
    /// listed.
    pub fn remove(&mut self, key: UpstreamKey) -> Option<(H, Vec<ListKind>)> {
        let server = self.servers.remove(&key)?;
        self.names.remove(&server.name);
        self.ids.remove(&(server.principal, server.id));
        self.with_resources.remove(&key);
        self.templates.remove(key);
        self.instructions.remove(server.principal, &server.name);
        let removed = |(kind, index): (&ListKind, &mut NameIndex)| index.remove(key).then_some(*kind);
        let kinds = self.indexes.iter_mut().filter_map(removed).collect();
        Some((server.handle, kinds))
    }

    /// Returns the key and the handle of the server with this id, if it belongs to the principal.
    pub fn holder(&self, id: &str, principal: Principal) -> Option<(UpstreamKey, H)> {
        let key = self.ids.get(&(principal, id.to_owned()))?;
        self.servers.get(key).map(|server| (*key, server.handle.clone()))
    }

    fn entry_of(&self, id: &str, principal: Principal) -> Option<&CatalogEntry<H>> {
        self.servers.get(self.ids.get(&(principal, id.to_owned()))?)
    }

    /// Records whether the server's link is lost and may come back.
    pub fn set_away(&mut self, key: UpstreamKey, away: bool) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.away = away;
        }
    }

    /// Records that the server declares resources.
    pub fn set_has_resources(&mut self, key: UpstreamKey) {
        let Some(CatalogEntry { principal, name, .. }) = self.servers.get(&key) else { return };
        self.with_resources.insert(key);
        match &self.only {
            Only::Nobody => self.only = Only::One(*principal, name.clone()),
            Only::One(owner, other_name) if (owner, other_name) == (principal, name) => {}
            Only::One(..) | Only::Several => self.only = Only::Several,
        }
    }

    /// Sets the `instructions` of a server. An empty text means none.
    pub fn set_instructions(&mut self, key: UpstreamKey, instructions: &str) {
        if let Some(server) = self.servers.get(&key) {
            self.instructions.set(server.principal, &server.name, instructions);
        }
    }

    /// Returns the instructions of all servers, each quoted below its name, as far as they fit.
    pub fn instructions(&mut self) -> Arc<str> {
        self.instructions.text()
    }

    /// Sets the items of one kind that a server offers. Returns warnings for the log, or `None` if
    /// nothing changed or the server is gone.
    pub fn set(&mut self, key: UpstreamKey, kind: ListKind, items: Vec<ListItem>) -> Option<Vec<String>> {
        let server = self.servers.get_mut(&key)?;
        let index = self.indexes.get_mut(&kind)?;
        if server.offers.get(&kind).map_or(items.is_empty(), |before| *before == items) {
            return None;
        }
        let mut warnings =
            server.offers.get(&kind).map_or_else(Vec::new, |before| altered(kind, before, &items));
        warnings.extend(index.set(key, &server.name, &items));
        if kind == ListKind::Template {
            self.templates.set(key, items.iter().map(|item| item.key.as_str()));
        }
        if kind == ListKind::Tool {
            let params = items.iter().map(|tool| (tool, HeaderParams::read(tool.raw())));
            let marked = params.filter(|(_, params)| !params.is_empty());
            server.header_params =
                marked.map(|(tool, params)| (tool.key.clone(), Arc::new(params))).collect();
        }
        server.offers.insert(kind, items);
        Some(warnings)
    }

    /// Returns the parameters of a tool that clients of the server's own endpoint repeat in header
    /// fields, if it has such.
    pub fn header_params(&self, key: UpstreamKey, tool: &str) -> Option<Arc<HeaderParams>> {
        self.servers.get(&key)?.header_params.get(tool).cloned()
    }

    /// Finds a tool or a prompt by its exposed name. For an unknown name that is an older form of
    /// others, returns these as [`Target::Several`].
    pub fn find(&self, kind: ListKind, exposed: &str) -> Option<Target<H>> {
        let index = self.indexes.get(&kind)?;
        match index.find(exposed) {
            Some(Lookup::Own) => Some(Target::Own),
            Some(Lookup::Server(server, key)) => self.target(server, key.to_owned()),
            Some(Lookup::Several(names)) => Some(Target::Several(names)),
            None => {
                let meant = index.meant(exposed, |server| self.names.get(server).copied());
                (!meant.is_empty()).then_some(Target::Several(meant))
            }
        }
    }

    /// Finds the server of a resource. The URI may be listed, have the form `<server>+<uri>`, match
    /// a listed template, or belong to the only server that ever had resources. If it can mean
    /// several servers, none is chosen: a new server must not receive requests that were meant for
    /// another.
    pub fn find_resource(&self, uri: &str) -> Option<Target<H>> {
        self.follow(ListKind::Resource, uri)
    }

    /// Finds the server of a template by its exposed form, or else of a resource as
    /// [`Catalog::find_resource`] does.
    pub fn find_template(&self, uri: &str) -> Option<Target<H>> {
        self.follow(ListKind::Template, uri)
    }

    fn follow(&self, kind: ListKind, uri: &str) -> Option<Target<H>> {
        let Some(lead) = self.lead(kind, uri) else {
            let servers: Vec<UpstreamKey> =
                self.with_resources.iter().copied().take(AMBIGUOUS_SERVERS).collect();
            return (!servers.is_empty()).then(|| Target::Several(self.forms(&servers, uri)));
        };
        match lead {
            Resolution::Listed(server, server_uri) | Resolution::Named(server, server_uri) => {
                self.target(server, server_uri)
            }
            Resolution::Template(server) | Resolution::Only(server) => self.target(server, uri.to_owned()),
            Resolution::Several(uris) => Some(Target::Several(uris)),
        }
    }

    /// Resolves a URI. `None`: it can mean any server that has resources, or no server has any.
    fn lead(&self, kind: ListKind, uri: &str) -> Option<Resolution> {
        let named =
            uri.split_once('+').and_then(|(name, server_uri)| Some((*self.names.get(name)?, server_uri)));
        let other = |server: UpstreamKey| named.is_some_and(|(named, _)| named != server);
        let listed = self.indexes.get(&kind).and_then(|index| index.find(uri));
        let listed = match kind {
            ListKind::Template => listed.or_else(|| self.indexes.get(&ListKind::Resource)?.find(uri)),
            _ => listed,
        };
        match listed {
            Some(Lookup::Server(server, server_uri)) if server_uri == uri && other(server) => {
                return Some(Resolution::Several(self.forms(&[server], uri)));
            }
            Some(Lookup::Server(server, server_uri)) => {
                return Some(Resolution::Listed(server, server_uri.to_owned()));
            }
            Some(Lookup::Several(uris)) => return Some(Resolution::Several(uris)),
            Some(Lookup::Own) | None => {}
        }
        let matching = self.templates.matching(uri);
        match (&matching[..], named) {
            ([], Some((server, server_uri))) => Some(Resolution::Named(server, server_uri.to_owned())),
            ([], None) => match self.only {
                Only::One(..) => self.with_resources.first().copied().map(Resolution::Only),
                Only::Nobody | Only::Several => None,
            },
            ([server], _) if !other(*server) => Some(Resolution::Template(*server)),
            (several, _) => Some(Resolution::Several(self.forms(several, uri))),
        }
    }

    /// Returns the form `<server>+<uri>` of a URI for each of these servers.
    fn forms(&self, servers: &[UpstreamKey], uri: &str) -> Vec<String> {
        let named = servers.iter().filter_map(|server| self.servers.get(server));
        named.map(|server| format!("{}+{uri}", server.name)).collect()
    }

    fn target(&self, server: UpstreamKey, key: String) -> Option<Target<H>> {
        let handle = self.servers.get(&server)?.handle.clone();
        Some(Target::Server { handle, key })
    }

    /// Returns the URI that replaces `uri` in a result of this server, for clients that see all
    /// servers; `None` if it needs no change. The URI that these clients see must resolve to the
    /// same server, or to an error.
    pub fn link(&self, server: &str, uri: &str) -> Option<String> {
        self.link_of(*self.names.get(server)?, uri)
    }

    fn link_of(&self, server: UpstreamKey, uri: &str) -> Option<String> {
        if uri.len() > URI_BYTES {
            // A request with so long a URI is refused, so rewriting it is of no use.
            return None;
        }
        // Clients fetch web resources directly (MCP 2025-11-25, server/resources, "Common URI
        // Schemes").
        let is_web = || ["http://", "https://"].iter().any(|scheme| uri.starts_with(scheme));
        let leads_back = match self.lead(ListKind::Resource, uri) {
            Some(Resolution::Listed(there, server_uri)) => there == server && server_uri == uri,
            Some(Resolution::Template(there)) => there == server,
            Some(Resolution::Only(there)) => there == server || is_web(),
            Some(Resolution::Named(..) | Resolution::Several(_)) => false,
            // A server without resources cannot serve the URI in either form.
            None => is_web() || !self.with_resources.contains(&server),
        };
        if leads_back {
            return None;
        }
        self.servers.get(&server).map(|server| format!("{}+{uri}", server.name))
    }

    /// Returns the handle of the server with this key.
    pub fn get(&self, key: UpstreamKey) -> Option<H> {
        self.servers.get(&key).map(|server| server.handle.clone())
    }

    /// Returns the handle of the server with this name.
    pub fn server(&self, name: &str) -> Option<H> {
        let server = self.servers.get(self.names.get(name)?);
        server.map(|server| server.handle.clone())
    }

    /// Returns one page of a list as the result of its method, or `None` if the cursor is not one
    /// of ours.
    ///
    /// Items are in the order of their exposed names, and a cursor holds the last name that was
    /// sent. So a list that changes between two pages neither repeats nor skips the items that
    /// stayed.
    pub fn list(&self, kind: ListKind, cursor: Option<&str>) -> Option<String> {
        let mend = |server: UpstreamKey, listed: &str| {
            let uris = resource_links::in_description(listed);
            let edits = uris.into_iter().filter_map(|(span, uri)| Some((span, self.link_of(server, &uri)?)));
            resource_links::spliced(listed, &edits.collect::<Vec<_>>())
        };
        self.indexes.get(&kind)?.page(cursor, &mend)
    }

    /// Returns the names and handles of all servers, in the order of their registration.
    pub fn all(&self) -> impl Iterator<Item = (&str, &H)> {
        self.servers.values().map(|server| (server.name.as_str(), &server.handle))
    }

    /// Returns the servers registered after `after`, in the order of their registration: id, name,
    /// handle, number of tools, and whether the link is lost. The id is given only for servers of
    /// `viewer`.
    pub fn overview(
        &self,
        viewer: Principal,
        after: Option<UpstreamKey>,
    ) -> impl Iterator<Item = (UpstreamKey, (Option<&str>, &str, &H, usize, bool))> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.servers.range((from, Bound::Unbounded)).map(move |(key, server)| {
            let tools = server.offers.get(&ListKind::Tool).map_or(0, Vec::len);
            let id = Some(server.id.as_str()).filter(|_| server.principal == viewer);
            (*key, (id, server.name.as_str(), &server.handle, tools, server.away))
        })
    }

    /// Returns the servers as JSON objects: id (only for servers of `viewer`), name, tools_count,
    /// state.
    pub fn servers(&self, viewer: Principal) -> Vec<String> {
        self.servers_behind(viewer, None).map(|(_, server)| server).collect()
    }

    /// Returns the servers registered after `after` in the form of [`Catalog::servers`].
    pub fn servers_behind(
        &self,
        viewer: Principal,
        after: Option<UpstreamKey>,
    ) -> impl Iterator<Item = (UpstreamKey, String)> {
        self.overview(viewer, after).map(|(key, (id, name, _, tools, away))| {
            let id = id.map(|id| format!("\"id\":{},", quote(id))).unwrap_or_default();
            let (name, state) = (quote(name), if away { "reconnecting" } else { "connected" });
            (key, format!("{{{id}\"name\":{name},\"tools_count\":{tools},\"state\":\"{state}\"}}"))
        })
    }

    /// Returns the number of registered servers.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether no server is registered.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }
}

/// Returns a line for each item whose description changed under the same name, at most
/// [`LOG_CHANGES`] and one for the rest. A tool that a user reviewed and approved may have become
/// another one.
fn altered(kind: ListKind, before: &[ListItem], after: &[ListItem]) -> Vec<String> {
    let known: BTreeMap<&str, &ListItem> = before.iter().map(|item| (item.key.as_str(), item)).collect();
    let other = |item: &&ListItem| known.get(item.key.as_str()).is_some_and(|old| old != item);
    let mut others = after.iter().filter(other);
    let line = |item: &ListItem| {
        let old = known.get(item.key.as_str()).map_or(0, |old| old.hash());
        let (noun, name) = (kind.noun(), util::escape::show(&item.key));
        format!("the description of {noun} {name} changed ({old:08x}, now {:08x})", item.hash())
    };
    let mut lines: Vec<String> = others.by_ref().take(LOG_CHANGES).map(line).collect();
    let more = others.count();
    if more > 0 {
        lines.push(format!("the descriptions of {more} more {}s changed", kind.noun()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limits::LIST_PAGE, mcp::exposed_name::exposed_with_hash};

    const US: Principal = Principal::ANONYMOUS;

    fn catalog() -> Catalog<&'static str> {
        Catalog::new(&[("list_servers", "{\"name\":\"list_servers\"}")], &CatalogLimits::default())
    }

    fn items(kind: ListKind, keys: &[&str]) -> Vec<ListItem> {
        let limits = CatalogLimits::default();
        let read = |key: &&str| ListItem::read(kind, &format!("{{\"{}\":\"{key}\"}}", kind.key()), &limits);
        keys.iter().filter_map(read).collect()
    }

    fn tools(names: &[&str]) -> Vec<ListItem> {
        items(ListKind::Tool, names)
    }

    fn listed(catalog: &Catalog<&'static str>, kind: ListKind) -> Vec<String> {
        let page: serde_json::Value = serde_json::from_str(&catalog.list(kind, None).unwrap()).unwrap();
        let keys = page[kind.member()].as_array().unwrap().iter();
        keys.map(|item| item[kind.key()].as_str().unwrap().to_owned()).collect()
    }

    fn shown(target: Option<Target<&'static str>>) -> String {
        match target {
            Some(Target::Server { handle, key }) => format!("{handle} {key}"),
            Some(Target::Own) => "own".into(),
            Some(Target::Several(names)) => format!("one of {}", names.join(" ")),
            None => "none".into(),
        }
    }

    #[test]
    fn servers_come_and_go() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "file", US, "h1").unwrap();
        assert_eq!(catalog.set(key, ListKind::Prompt, vec![]), None);
        assert_eq!(catalog.set(key, ListKind::Tool, tools(&["read", "write"])), Some(vec![]));
        assert_eq!(catalog.set(key, ListKind::Tool, tools(&["read", "write"])), None);
        assert_eq!(listed(&catalog, ListKind::Tool), ["file_read", "file_write", "list_servers"]);
        assert_eq!(shown(catalog.find(ListKind::Tool, "file_read")), "h1 read");
        assert_eq!(shown(catalog.find(ListKind::Tool, "read")), "none");
        assert_eq!(shown(catalog.find(ListKind::Prompt, "file_read")), "none");
        assert_eq!(catalog.servers(US), [r#"{"id":"1","name":"file","tools_count":2,"state":"connected"}"#]);
        assert_eq!(catalog.remove(key), Some(("h1", vec![ListKind::Tool])));
        assert_eq!(listed(&catalog, ListKind::Tool), ["list_servers"]);
        assert_eq!(catalog.set(key, ListKind::Tool, tools(&["read"])), None);
    }

    #[test]
    fn the_same_id_takes_over_and_another_is_refused() {
        let mut catalog = catalog();
        let (first, _) = catalog.register("1", "file", US, "h1").unwrap();
        catalog.set(first, ListKind::Tool, tools(&["read"]));
        let taken = catalog.register("2", "file", US, "h2").unwrap_err();
        assert_eq!(taken, NameTaken { name: "file".into(), holder: Some("1".into()), away: false });
        for id in ["1", "2"] {
            let taken = catalog.register(id, "file", Principal::token(3), "h3").unwrap_err();
            assert_eq!(taken, NameTaken { name: "file".into(), holder: None, away: false }, "{id}");
        }
        let (second, replaced) = catalog.register("1", "files", US, "h4").unwrap();
        assert_eq!((replaced, catalog.len()), (Some("h1"), 1));
        assert_eq!(catalog.remove(first), None);
        assert_eq!(catalog.remove(second), Some(("h4", vec![])));
    }

    #[test]
    fn take_overs_are_counted() {
        let mut catalog = catalog();
        let start = Instant::now();
        let at = |seconds| start + std::time::Duration::from_secs(seconds);
        let living = |_: &&str| true;
        assert_eq!(catalog.take_over(start, "1", US, living), Ok(()), "nobody was there");
        catalog.register("1", "file", US, "h").unwrap();
        for second in 0..5 {
            assert_eq!(catalog.take_over(at(second), "1", US, living), Ok(()), "{second}");
            catalog.register("1", "file", US, "h").unwrap();
        }
        assert_eq!(catalog.take_over(at(5), "1", US, living), Err(TooOften));
        assert_eq!(catalog.take_over(at(59), "1", US, living), Err(TooOften), "a refusal does not count");
        assert_eq!(catalog.take_over(at(6), "1", US, |_| false), Ok(()), "its link was dead");
        let key = catalog.servers.keys().copied().next().unwrap();
        catalog.set_away(key, true);
        assert_eq!(catalog.take_over(at(6), "1", US, living), Ok(()), "it is waited for");
        catalog.set_away(key, false);
        assert_eq!(catalog.take_over(at(6), "1", Principal::token(3), living), Ok(()), "refused elsewhere");
        assert_eq!(catalog.take_over(at(60), "1", US, living), Ok(()));
        assert_eq!(catalog.take_over(at(60), "1", US, living), Err(TooOften));
        let key = catalog.register("1", "file", US, "h").unwrap().0;
        catalog.remove(key);
        catalog.register("1", "file", US, "h").unwrap();
        assert_eq!(catalog.take_over(at(60), "1", US, living), Ok(()), "it begins afresh");
    }

    #[test]
    fn unauthorized_lists_servers_of_revoked_tokens() {
        let mut catalog = catalog();
        let them = Principal::token(1);
        catalog.register("1", "a", US, "h1").unwrap();
        catalog.register("2", "b", them, "h2").unwrap();
        catalog.register("3", "c", them, "h3").unwrap();
        assert_eq!(catalog.unauthorized(|who, name| who == US || name == "c"), ["h2"]);
    }

    #[test]
    fn equal_ids_of_two_principals_are_two_servers() {
        let mut catalog = catalog();
        let them = Principal::token(3);
        let (ours, _) = catalog.register("1", "file", US, "h1").unwrap();
        let (theirs, replaced) = catalog.register("1", "other", them, "h2").unwrap();
        assert_eq!((replaced, catalog.len()), (None, 2));
        let holder =
            |catalog: &Catalog<_>, principal| catalog.holder("1", principal).map(|(_, handle)| handle);
        assert_eq!((holder(&catalog, US), holder(&catalog, them)), (Some("h1"), Some("h2")));
        assert_eq!(
            catalog.servers(them),
            [
                r#"{"name":"file","tools_count":0,"state":"connected"}"#,
                r#"{"id":"1","name":"other","tools_count":0,"state":"connected"}"#
            ]
        );
        assert_eq!(catalog.remove(theirs).map(|(handle, _)| handle), Some("h2"));
        assert_eq!((holder(&catalog, US), holder(&catalog, them)), (Some("h1"), None));
        assert_eq!(catalog.register("1", "file", US, "h3").unwrap().1, Some("h1"));
        assert_eq!(catalog.remove(ours), None);
    }

    /// Exposed names do not depend on the order of the lists: they follow from a rule by which no
    /// two items get the same.
    #[test]
    fn exposed_names_do_not_depend_on_list_order() {
        let hashed = |server, tool| exposed_with_hash(server, tool, 64);
        let (dot, list_servers) = (hashed("a", "b.c"), hashed("list", "servers"));
        for order in [[0, 1], [1, 0]] {
            let mut catalog = catalog();
            let one = catalog.register("1", "a_b", US, "h1").unwrap().0;
            let two = catalog.register("2", "a", US, "h2").unwrap().0;
            let list = catalog.register("3", "list", US, "h3").unwrap().0;
            for server in order {
                let (key, offer) = [(one, &["c", "d"][..]), (two, &["b_c", "b.c", "b_c"])][server];
                catalog.set(key, ListKind::Tool, tools(offer)).unwrap();
            }
            assert_eq!(catalog.set(list, ListKind::Tool, tools(&["servers"])).unwrap().len(), 1);
            let expected = ["a_b__c", "a_b__d", "a_b_c", &dot, "list_servers", &list_servers];
            assert_eq!(listed(&catalog, ListKind::Tool), expected);
            for (name, target) in [
                ("a_b__c", "h1 c"),
                ("a_b_c", "h2 b_c"),
                (&dot, "h2 b.c"),
                (&list_servers, "h3 servers"),
                ("list_servers", "own"),
                ("a_b_d", "one of a_b__d"),
                ("a_b_e", "none"),
            ] {
                assert_eq!(shown(catalog.find(ListKind::Tool, name)), target, "{name}");
            }
            // A name that became free does not lead to another tool.
            catalog.remove(two);
            catalog.set(one, ListKind::Tool, tools(&["c"])).unwrap();
            assert_eq!(shown(catalog.find(ListKind::Tool, "a_b_c")), "one of a_b__c");
            assert_eq!(shown(catalog.find(ListKind::Tool, "a_b__c")), "h1 c");
            catalog.remove(one);
            assert_eq!(shown(catalog.find(ListKind::Tool, "a_b_c")), "none");
        }
    }

    #[test]
    fn old_forms_of_names_get_an_error_with_the_new_ones() {
        let mut catalog = catalog();
        let one = catalog.register("1", "cam.1", US, "h1").unwrap().0;
        let two = catalog.register("2", "cam_1", US, "h2").unwrap().0;
        let offer: Vec<String> = (0..100).map(|number| format!("x_{number}")).collect();
        let offer: Vec<&str> = offer.iter().map(String::as_str).chain(["x"]).collect();
        for key in [one, two] {
            catalog.set(key, ListKind::Tool, tools(&offer)).unwrap();
        }
        let hashed = exposed_with_hash("cam.1", "x", 64);
        assert_eq!(shown(catalog.find(ListKind::Tool, "cam_1_x")), format!("one of cam_1__x {hashed}"));
        let long = "cam_1_".repeat(1_000_000);
        assert_eq!(shown(catalog.find(ListKind::Tool, &long)), "none");
    }

    #[test]
    fn names_that_look_hashed_are_hashed() {
        let mut catalog = catalog();
        let one = catalog.register("1", "a", US, "h1").unwrap().0;
        let imitated = exposed_with_hash("b", "c.", 64);
        let tool = imitated.replacen("b_", "", 1);
        let two = catalog.register("2", "b", US, "h2").unwrap().0;
        catalog.set(one, ListKind::Tool, tools(&["c_0123456789abcdef"]));
        catalog.set(two, ListKind::Tool, tools(&[&tool, "c."]));
        let mut expected = [
            exposed_with_hash("a", "c_0123456789abcdef", 64),
            exposed_with_hash("b", &tool, 64),
            imitated,
            "list_servers".into(),
        ];
        expected.sort();
        assert_eq!(listed(&catalog, ListKind::Tool), expected);
    }

    #[test]
    fn a_uri_of_two_servers_is_ambiguous() {
        let mut catalog = catalog();
        let (one, _) = catalog.register("1", "one", US, "h1").unwrap();
        let (two, _) = catalog.register("2", "two", US, "h2").unwrap();
        for key in [one, two] {
            catalog.set_has_resources(key);
            assert!(catalog.set(key, ListKind::Resource, items(ListKind::Resource, &["a://x"])).is_some());
        }
        catalog.set(two, ListKind::Template, items(ListKind::Template, &["b://{id}/log{?n}"]));
        assert_eq!(listed(&catalog, ListKind::Resource), ["one+a://x", "two+a://x"]);
        assert_eq!(shown(catalog.find_resource("a://x")), "one of one+a://x two+a://x");
        assert_eq!(shown(catalog.find_resource("one+a://x")), "h1 a://x");
        assert_eq!(shown(catalog.find_resource("two+a://x")), "h2 a://x");
        assert_eq!(shown(catalog.find_resource("one+a://unlisted")), "h1 a://unlisted");
        assert_eq!(shown(catalog.find_resource("b://7/log?n=3")), "h2 b://7/log?n=3");
        assert_eq!(shown(catalog.find_resource("c://x")), "one of one+c://x two+c://x");
        assert_eq!(catalog.link("one", "a://x").as_deref(), Some("one+a://x"));
        assert_eq!(catalog.link("two", "b://7/log"), None);
        assert_eq!(catalog.link("one", "b://7/log").as_deref(), Some("one+b://7/log"));
        assert_eq!(catalog.link("one", "https://x"), None);
        catalog.remove(one);
        assert_eq!(shown(catalog.find_resource("c://x")), "one of two+c://x");
        assert_eq!(shown(catalog.find_resource("a://x")), "one of two+a://x");
    }

    #[test]
    fn unlisted_uri_never_leads_to_a_later_server() {
        let mut catalog = catalog();
        let come = |catalog: &mut Catalog<_>, name, principal, handle| {
            let key = catalog.register("1", name, principal, handle).unwrap().0;
            catalog.set_has_resources(key);
            key
        };
        assert_eq!(shown(catalog.find_resource("a://x")), "none");
        // The server may leave and come back, even over another link.
        let one = come(&mut catalog, "one", US, "h1");
        assert_eq!(shown(catalog.find_resource("a://x")), "h1 a://x");
        assert_eq!(catalog.link("one", "ui://x"), None);
        catalog.remove(one);
        assert_eq!(shown(catalog.find_resource("a://x")), "none");
        let one = come(&mut catalog, "one", US, "h2");
        assert_eq!(shown(catalog.find_resource("a://x")), "h2 a://x");
        catalog.remove(one);
        // A server of the same name but of another principal is another server.
        let one = come(&mut catalog, "one", Principal::token(7), "h3");
        assert_eq!(shown(catalog.find_resource("a://x")), "one of one+a://x");
        assert_eq!(catalog.link("one", "ui://x").as_deref(), Some("one+ui://x"));
        catalog.remove(one);
        come(&mut catalog, "one", US, "h4");
        assert_eq!(shown(catalog.find_resource("a://x")), "one of one+a://x", "it may be kept from h3");
        assert_eq!(shown(catalog.find_resource("one+a://x")), "h4 a://x");
    }

    #[test]
    fn listed_uris_take_precedence_over_templates_and_names() {
        let mut catalog = catalog();
        let server = |catalog: &mut Catalog<_>, id, name, handle, listed: &[&str], templates: &[&str]| {
            let key = catalog.register(id, name, US, handle).unwrap().0;
            catalog.set_has_resources(key);
            catalog.set(key, ListKind::Resource, items(ListKind::Resource, listed));
            catalog.set(key, ListKind::Template, items(ListKind::Template, templates));
        };
        server(&mut catalog, "1", "home", "h1", &["file:///home/listed"], &["file:///home{+x}"]);
        server(&mut catalog, "2", "forge", "h2", &["git+ssh://forge/a"], &["git+ssh://{host}/b{+x}"]);
        server(&mut catalog, "3", "root", "h3", &[], &["file:///{+path}"]);
        assert_eq!(shown(catalog.find_resource("git+ssh://forge/a")), "h2 git+ssh://forge/a");
        server(&mut catalog, "4", "git", "h4", &[], &[]);
        for (uri, expected) in [
            ("file:///home/listed", "h1 file:///home/listed"),
            ("file:///home/x", "one of home+file:///home/x root+file:///home/x"),
            ("file:///etc/x", "h3 file:///etc/x"),
            ("home+file:///home/x", "h1 file:///home/x"),
            ("git+ssh://forge/a", "one of forge+git+ssh://forge/a"),
            ("git+ssh://forge/b/c", "one of forge+git+ssh://forge/b/c"),
            ("forge+git+ssh://forge/b/c", "h2 git+ssh://forge/b/c"),
            ("git+ssh://other", "h4 ssh://other"),
        ] {
            assert_eq!(shown(catalog.find_resource(uri)), expected, "{uri}");
        }
        assert_eq!(shown(catalog.find_template("file:///{+path}")), "h3 file:///{+path}");
    }

    #[test]
    fn equal_ui_resources_are_linked_to_their_own_server() {
        let mut catalog = catalog();
        for (id, name) in [("1", "one"), ("2", "two")] {
            let key = catalog.register(id, name, US, "h").unwrap().0;
            catalog.set_has_resources(key);
            let raw = r#"{"name":"t","_meta":{"ui":{"resourceUri":"ui://app"}}}"#;
            catalog.set(
                key,
                ListKind::Tool,
                ListItem::read(ListKind::Tool, raw, &CatalogLimits::default()).into_iter().collect(),
            );
            catalog.set(key, ListKind::Resource, items(ListKind::Resource, &["ui://app"]));
            let page = catalog.list(ListKind::Tool, None).unwrap();
            let bare = page.matches(r#""resourceUri":"ui://app""#).count();
            assert_eq!(bare, usize::from(name == "one"), "{page}");
        }
        let page = catalog.list(ListKind::Tool, None).unwrap();
        assert!(page.contains(r#""one+ui://app""#) && page.contains(r#""two+ui://app""#), "{page}");
    }

    #[test]
    fn long_lists_come_in_pages() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "s", US, "h").unwrap();
        let padding = "x".repeat(LIST_PAGE / 3);
        let many = (0..7).map(|n| format!("{{\"name\":\"t{n}\",\"x\":\"{padding}\"}}"));
        let limits = CatalogLimits::default();
        catalog.set(
            key,
            ListKind::Tool,
            many.filter_map(|raw| ListItem::read(ListKind::Tool, &raw, &limits)).collect(),
        );
        let (mut cursor, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let page = catalog.list(ListKind::Tool, cursor.as_deref()).unwrap();
            let page: serde_json::Value = serde_json::from_str(&page).unwrap();
            seen.extend(
                page["tools"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap().to_owned()),
            );
            pages += 1;
            match page["nextCursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => break,
            }
        }
        let expected: Vec<String> = ["list_servers"]
            .iter()
            .map(|name| (*name).to_owned())
            .chain((0..7).map(|n| format!("s_t{n}")))
            .collect();
        assert_eq!((seen, pages), (expected, 4));
        assert_eq!(catalog.list(ListKind::Tool, Some("bogus")), None);
    }

    #[test]
    fn changed_tool_descriptions_are_reported() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "s", US, "h").unwrap();
        let offer = |tools: &[(&str, &str)]| -> Vec<ListItem> {
            let raw =
                |(name, more): &(&str, &str)| format!("{{\"name\":\"{name}\",\"description\":\"{more}\"}}");
            let limits = CatalogLimits::default();
            tools.iter().filter_map(|tool| ListItem::read(ListKind::Tool, &raw(tool), &limits)).collect()
        };
        let mut set = |tools: &[(&str, &str)]| catalog.set(key, ListKind::Tool, offer(tools));
        assert_eq!(set(&[("a", "reads"), ("b", "writes")]), Some(vec![]));
        assert_eq!(
            set(&[("a", "reads"), ("b", "writes"), ("c", "new")]),
            Some(vec![]),
            "a new one is no other"
        );
        let warnings = set(&[("b", "writes"), ("a", "reads, and sends it away")]).unwrap();
        let hashes = [("a", "reads"), ("a", "reads, and sends it away")].map(|tool| offer(&[tool])[0].hash());
        assert_ne!(hashes[0], hashes[1]);
        let (old, new) = (format!("{:08x}", hashes[0]), format!("{:08x}", hashes[1]));
        assert_eq!(warnings, [format!("the description of tool a changed ({old}, now {new})")]);
        // A change of many items is summarized, and does not flood the log.
        let names: Vec<String> = (0..LOG_CHANGES + 5).map(|number| format!("t{number}")).collect();
        let all = |more| -> Vec<(&str, &str)> { names.iter().map(|name| (name.as_str(), more)).collect() };
        set(&all("x"));
        let warnings = set(&all("y")).unwrap();
        assert_eq!(warnings.len(), LOG_CHANGES + 1);
        assert_eq!(warnings[LOG_CHANGES], "the descriptions of 5 more tools changed");
    }
}
