//! The registered servers and what they offer, under the names that clients see.
//!
//! Pure tables. `H` is whatever the program needs to reach a server; lookups hand out clones of it.
//! Exposed names are looked up in a map; nothing is ever split at a separator.

mod board;

use std::{collections::BTreeMap, ops::Bound, time::Instant};

use self::board::Board;
use crate::{
    auth::Principal,
    jsonrpc::quote,
    limits::{CatalogLimits, LOG_CHANGES, TAKEOVER_WINDOW, TAKEOVERS},
    mcp::offer::{Item, Kind},
    text,
};

/// A registration's place in the catalog. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(u64);

/// Something that is offered, found by the name or URI that clients use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target<H> {
    /// The gateway's own.
    Own,
    /// A server's.
    Server {
        /// How to reach the server.
        handle: H,
        /// The server's own name or URI for it.
        key: String,
    },
}

/// Why a registration is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NameTaken {
    /// The name.
    pub name: String,
    /// The id of the server that has it; nobody's business but of the principal whose server that is.
    pub holder: Option<String>,
    /// That one's link is lost: the name may soon be free.
    pub away: bool,
}

/// A server took over its own living link too often in the last minute: it is another program with the same id.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooOften;

/// One registered server.
#[derive(Debug)]
struct Server<H> {
    id: String,
    name: String,
    principal: Principal,
    handle: H,
    /// Its link is lost, and may come back.
    away: bool,
    /// It declares resources, so it may have some that it does not list.
    has_resources: bool,
    offers: BTreeMap<Kind, Vec<Item>>,
    /// When it took over from itself, in the last minute.
    takeovers: Vec<Instant>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Catalog<H> {
    last: u64,
    servers: BTreeMap<Key, Server<H>>,
    boards: BTreeMap<Kind, Board>,
    limits: CatalogLimits,
}

impl<H: Clone> Catalog<H> {
    /// A catalog with the gateway's own tools: name and description.
    pub fn new(own: &[(&str, &str)], limits: CatalogLimits) -> Self {
        let mut boards: BTreeMap<Kind, Board> =
            Kind::ALL.into_iter().map(|kind| (kind, Board::new(kind))).collect();
        for (name, listed) in own {
            boards.entry(Kind::Tool).or_insert_with(|| Board::new(Kind::Tool)).add_own(name, listed);
        }
        Self { last: 0, servers: BTreeMap::new(), boards, limits }
    }

    /// Registers a server that offers nothing so far. The same id from the same principal takes over: the handle of
    /// the one that had it is returned, to be told.
    ///
    /// # Errors
    /// [`NameTaken`] when another server has the name, or the id belongs to another principal.
    pub fn register(
        &mut self,
        id: &str,
        name: &str,
        principal: Principal,
        handle: H,
    ) -> Result<(Key, Option<H>), NameTaken> {
        let replaced = self.servers.iter().find(|(_, server)| server.id == id).map(|(key, _)| *key);
        let conflict = self.servers.iter().find(|(key, server)| {
            let same_id = replaced == Some(**key);
            (same_id && server.principal != principal) || (!same_id && server.name == name)
        });
        if let Some((_, holder)) = conflict {
            let own = Some(holder).filter(|holder| holder.principal == principal);
            let (away, holder) = (own.is_some_and(|own| own.away), own.map(|own| own.id.clone()));
            return Err(NameTaken { name: name.to_owned(), holder, away });
        }
        let before = replaced.and_then(|key| self.servers.get_mut(&key));
        let takeovers = before.map(|server| std::mem::take(&mut server.takeovers)).unwrap_or_default();
        let replaced = replaced.and_then(|key| self.remove(key)).map(|(handle, _)| handle);
        self.last += 1;
        let key = Key(self.last);
        let (id, name) = (id.to_owned(), name.to_owned());
        let (away, has_resources, offers) = (false, false, BTreeMap::new());
        let server = Server { id, name, principal, handle, away, has_resources, offers, takeovers };
        self.servers.insert(key, server);
        Ok((key, replaced))
    }

    /// Counts a take-over that is about to happen: the id is registered by the same principal, and its link is `alive`.
    /// A link that has ended is not taken over, however often its line drops.
    ///
    /// # Errors
    /// [`TooOften`]: it was the last of too many.
    pub fn take_over(
        &mut self,
        now: Instant,
        id: &str,
        principal: Principal,
        alive: impl Fn(&H) -> bool,
    ) -> Result<(), TooOften> {
        let mut servers = self.servers.values_mut();
        let own = servers.find(|server| server.id == id && server.principal == principal);
        let Some(server) = own.filter(|server| !server.away && alive(&server.handle)) else { return Ok(()) };
        server.takeovers.retain(|at| now.saturating_duration_since(*at) < TAKEOVER_WINDOW);
        if server.takeovers.len() >= TAKEOVERS {
            return Err(TooOften);
        }
        server.takeovers.push(now);
        Ok(())
    }

    /// Whether the server with this id belongs to the principal, and has a link that is `alive`.
    pub fn is_linked(&self, id: &str, principal: Principal, alive: impl Fn(&H) -> bool) -> bool {
        self.own(id, principal).is_some_and(|server| !server.away && alive(&server.handle))
    }

    /// The handles of the servers that their principals may not have under their names any more.
    pub fn unauthorized(&self, may_claim: impl Fn(Principal, &str) -> bool) -> Vec<H> {
        let out = self.servers.values().filter(|server| !may_claim(server.principal, &server.name));
        out.map(|server| server.handle.clone()).collect()
    }

    /// Takes a server out with all its names. Returns its handle, and the kinds of which something was listed.
    pub fn remove(&mut self, key: Key) -> Option<(H, Vec<Kind>)> {
        let server = self.servers.remove(&key)?;
        let removed = |(kind, board): (&Kind, &mut Board)| board.remove(key).then_some(*kind);
        let kinds = self.boards.iter_mut().filter_map(removed).collect();
        Some((server.handle, kinds))
    }

    /// The handle of the server with this id, if it belongs to the principal.
    pub fn holder(&self, id: &str, principal: Principal) -> Option<H> {
        self.own(id, principal).map(|server| server.handle.clone())
    }

    fn own(&self, id: &str, principal: Principal) -> Option<&Server<H>> {
        self.servers.values().find(|server| server.id == id && server.principal == principal)
    }

    /// The server's link is lost and may come back, or is back.
    pub fn set_away(&mut self, key: Key, away: bool) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.away = away;
        }
    }

    /// The server declares resources.
    pub fn set_has_resources(&mut self, key: Key) {
        if let Some(server) = self.servers.get_mut(&key) {
            server.has_resources = true;
        }
    }

    /// Sets what a server offers of a kind. Returns warnings for the log, or `None` when nothing changed or the server
    /// is gone.
    pub fn set(&mut self, key: Key, kind: Kind, items: Vec<Item>) -> Option<Vec<String>> {
        let server = self.servers.get_mut(&key)?;
        let board = self.boards.get_mut(&kind)?;
        if server.offers.get(&kind).map_or(items.is_empty(), |before| *before == items) {
            return None;
        }
        board.remove(key);
        let mut warnings =
            server.offers.get(&kind).map_or_else(Vec::new, |before| altered(kind, before, &items));
        for item in &items {
            warnings.extend(board.add(key, &server.name, item, &self.limits));
        }
        server.offers.insert(kind, items);
        Some(warnings)
    }

    /// Finds a tool or a prompt by its exposed name, a template by its exposed form.
    pub fn find(&self, kind: Kind, exposed: &str) -> Option<Target<H>> {
        let (server, key) = self.boards.get(&kind)?.find(exposed)?;
        self.target(server, key)
    }

    /// Finds the server of a resource: listed under this URI, named in front of it as `<server>+<uri>`, of the form of
    /// a listed template, or of the only server that has resources.
    pub fn find_resource(&self, uri: &str) -> Option<Target<H>> {
        if let Some(target) = self.find(Kind::Resource, uri) {
            return Some(target);
        }
        let named = uri.split_once('+').and_then(|(name, rest)| Some((self.named(name)?, rest)));
        if let Some((server, rest)) = named {
            return Some(Target::Server { handle: server.handle.clone(), key: rest.to_owned() });
        }
        if let Some(server) = self.boards.get(&Kind::Template).and_then(|board| board.matching(uri)) {
            return self.target(Some(server), uri);
        }
        let mut with_resources = self.servers.values().filter(|server| server.has_resources);
        match (with_resources.next(), with_resources.next()) {
            (Some(only), None) => Some(Target::Server { handle: only.handle.clone(), key: uri.to_owned() }),
            _ => None,
        }
    }

    fn target(&self, server: Option<Key>, key: &str) -> Option<Target<H>> {
        let Some(server) = server else { return Some(Target::Own) };
        let handle = self.servers.get(&server)?.handle.clone();
        Some(Target::Server { handle, key: key.to_owned() })
    }

    fn named(&self, name: &str) -> Option<&Server<H>> {
        self.servers.values().find(|server| server.name == name)
    }

    /// The server with this name.
    pub fn server(&self, name: &str) -> Option<H> {
        self.named(name).map(|server| server.handle.clone())
    }

    /// One page of a list, as the result of its method. `None` when the cursor is not one of ours.
    ///
    /// The order is that of the exposed names, and a cursor names the last one seen: a list that changes between
    /// two pages neither repeats nor skips what stayed.
    pub fn list(&self, kind: Kind, cursor: Option<&str>) -> Option<String> {
        self.boards.get(&kind)?.page(cursor)
    }

    /// The handles of all servers with their names, in the order of their registration.
    pub fn all(&self) -> impl Iterator<Item = (&str, &H)> {
        self.servers.values().map(|server| (server.name.as_str(), &server.handle))
    }

    /// The servers behind one in the order of their registration, with what they are: id, name, handle, number of tools,
    /// whether it is away.
    pub fn overview(&self, after: Option<Key>) -> impl Iterator<Item = (Key, (&str, &str, &H, usize, bool))> {
        self.behind(after).map(|(key, server)| {
            let tools = server.offers.get(&Kind::Tool).map_or(0, Vec::len);
            (*key, (server.id.as_str(), server.name.as_str(), &server.handle, tools, server.away))
        })
    }

    fn behind(&self, after: Option<Key>) -> impl Iterator<Item = (&Key, &Server<H>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.servers.range((from, Bound::Unbounded))
    }

    /// The servers as JSON objects: id, name, tools_count, state.
    pub fn servers(&self) -> Vec<String> {
        self.servers_behind(None).map(|(_, server)| server).collect()
    }

    /// The same of the servers behind one in the order of their registration.
    pub fn servers_behind(&self, after: Option<Key>) -> impl Iterator<Item = (Key, String)> {
        self.behind(after).map(|(key, server)| {
            let count = server.offers.get(&Kind::Tool).map_or(0, Vec::len);
            let (id, name) = (quote(&server.id), quote(&server.name));
            let state = if server.away { "reconnecting" } else { "connected" };
            (*key, format!("{{\"id\":{id},\"name\":{name},\"tools_count\":{count},\"state\":\"{state}\"}}"))
        })
    }

    /// How many servers are registered.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether no server is registered.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }
}

/// What describes itself otherwise than before under the same name, one line each. A tool that was looked at and
/// approved may have become another one.
fn altered(kind: Kind, before: &[Item], after: &[Item]) -> Vec<String> {
    let known: BTreeMap<&str, &Item> = before.iter().map(|item| (item.key.as_str(), item)).collect();
    let other = |item: &&Item| known.get(item.key.as_str()).is_some_and(|old| old != item);
    let mut others = after.iter().filter(other);
    let line = |item: &Item| {
        let old = known.get(item.key.as_str()).map_or(0, |old| old.hash());
        let (noun, name) = (kind.noun(), text::show(&item.key));
        format!(
            "the description of {noun} {name} is another one than before ({old:08x}, now {:08x})",
            item.hash()
        )
    };
    let mut lines: Vec<String> = others.by_ref().take(LOG_CHANGES).map(line).collect();
    let more = others.count();
    if more > 0 {
        lines.push(format!("and those of {more} more {}s", kind.noun()));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{limits::LIST_PAGE, mcp::names::exposed_with_hash};

    const US: Principal = Principal::ANONYMOUS;

    fn catalog() -> Catalog<&'static str> {
        Catalog::new(&[("list_servers", "{\"name\":\"list_servers\"}")], CatalogLimits::default())
    }

    fn items(kind: Kind, keys: &[&str]) -> Vec<Item> {
        let limits = CatalogLimits::default();
        let read = |key: &&str| Item::read(kind, &format!("{{\"{}\":\"{key}\"}}", kind.key()), &limits);
        keys.iter().filter_map(read).collect()
    }

    fn tools(names: &[&str]) -> Vec<Item> {
        items(Kind::Tool, names)
    }

    fn listed(catalog: &Catalog<&'static str>, kind: Kind) -> Vec<String> {
        let page: serde_json::Value = serde_json::from_str(&catalog.list(kind, None).unwrap()).unwrap();
        let keys = page[kind.member()].as_array().unwrap().iter();
        keys.map(|item| item[kind.key()].as_str().unwrap().to_owned()).collect()
    }

    fn shown(target: Option<Target<&'static str>>) -> String {
        match target {
            Some(Target::Server { handle, key }) => format!("{handle} {key}"),
            Some(Target::Own) => "own".into(),
            None => "none".into(),
        }
    }

    #[test]
    fn servers_come_and_go() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "file", US, "h1").unwrap();
        assert_eq!(catalog.set(key, Kind::Prompt, vec![]), None);
        assert_eq!(catalog.set(key, Kind::Tool, tools(&["read", "write"])), Some(vec![]));
        assert_eq!(catalog.set(key, Kind::Tool, tools(&["read", "write"])), None);
        assert_eq!(listed(&catalog, Kind::Tool), ["file_read", "file_write", "list_servers"]);
        assert_eq!(shown(catalog.find(Kind::Tool, "file_read")), "h1 read");
        assert_eq!(shown(catalog.find(Kind::Tool, "read")), "none");
        assert_eq!(shown(catalog.find(Kind::Prompt, "file_read")), "none");
        assert_eq!(catalog.servers(), [r#"{"id":"1","name":"file","tools_count":2,"state":"connected"}"#]);
        assert_eq!(catalog.remove(key), Some(("h1", vec![Kind::Tool])));
        assert_eq!(listed(&catalog, Kind::Tool), ["list_servers"]);
        assert_eq!(catalog.set(key, Kind::Tool, tools(&["read"])), None);
    }

    #[test]
    fn the_same_id_takes_over_and_another_is_refused() {
        let mut catalog = catalog();
        let (first, _) = catalog.register("1", "file", US, "h1").unwrap();
        catalog.set(first, Kind::Tool, tools(&["read"]));
        let taken = catalog.register("2", "file", US, "h2").unwrap_err();
        assert_eq!(taken, NameTaken { name: "file".into(), holder: Some("1".into()), away: false });
        for (id, name) in [("1", "file"), ("1", "other"), ("2", "file")] {
            let taken = catalog.register(id, name, Principal::token(3), "h3").unwrap_err();
            assert_eq!(taken, NameTaken { name: name.into(), holder: None, away: false }, "{id} {name}");
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
    fn servers_whose_token_is_gone() {
        let mut catalog = catalog();
        let them = Principal::token(1);
        catalog.register("1", "a", US, "h1").unwrap();
        catalog.register("2", "b", them, "h2").unwrap();
        catalog.register("3", "c", them, "h3").unwrap();
        assert_eq!(catalog.unauthorized(|who, name| who == US || name == "c"), ["h2"]);
    }

    #[test]
    fn the_earlier_keeps_its_name() {
        let mut catalog = catalog();
        let (one, _) = catalog.register("1", "a_b", US, "h1").unwrap();
        let (two, _) = catalog.register("2", "a", US, "h2").unwrap();
        let (own, _) = catalog.register("3", "list", US, "h3").unwrap();
        catalog.set(one, Kind::Tool, tools(&["c"]));
        assert_eq!(catalog.set(two, Kind::Tool, tools(&["b_c", "b.c", "b_c"])).unwrap().len(), 3);
        assert_eq!(catalog.set(own, Kind::Tool, tools(&["servers"])).unwrap().len(), 1);
        assert_eq!(shown(catalog.find(Kind::Tool, "a_b_c")), "h1 c");
        assert_eq!(shown(catalog.find(Kind::Tool, &exposed_with_hash("a", "b_c", 64))), "h2 b_c");
        assert_eq!(shown(catalog.find(Kind::Tool, &exposed_with_hash("a", "b.c", 64))), "h2 b.c");
        assert_eq!(shown(catalog.find(Kind::Tool, "list_servers")), "own");
    }

    #[test]
    fn resources_keep_their_uri_where_they_can() {
        let mut catalog = catalog();
        let (one, _) = catalog.register("1", "one", US, "h1").unwrap();
        let (two, _) = catalog.register("2", "two", US, "h2").unwrap();
        for key in [one, two] {
            catalog.set_has_resources(key);
            assert!(catalog.set(key, Kind::Resource, items(Kind::Resource, &["a://x"])).is_some());
        }
        catalog.set(two, Kind::Template, items(Kind::Template, &["b://{id}/log{?n}"]));
        assert_eq!(listed(&catalog, Kind::Resource), ["a://x", "two+a://x"]);
        assert_eq!(shown(catalog.find_resource("a://x")), "h1 a://x");
        assert_eq!(shown(catalog.find_resource("two+a://x")), "h2 a://x");
        assert_eq!(shown(catalog.find_resource("one+a://unlisted")), "h1 a://unlisted");
        assert_eq!(shown(catalog.find_resource("b://7/log?n=3")), "h2 b://7/log?n=3");
        assert_eq!(shown(catalog.find_resource("c://x")), "none");
        catalog.remove(one);
        assert_eq!(shown(catalog.find_resource("c://x")), "h2 c://x");
    }

    #[test]
    fn long_lists_come_in_pages() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "s", US, "h").unwrap();
        let padding = "x".repeat(LIST_PAGE / 3);
        let many = (0..7).map(|n| format!("{{\"name\":\"t{n}\",\"x\":\"{padding}\"}}"));
        let limits = CatalogLimits::default();
        catalog.set(key, Kind::Tool, many.filter_map(|raw| Item::read(Kind::Tool, &raw, &limits)).collect());
        let (mut cursor, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let page = catalog.list(Kind::Tool, cursor.as_deref()).unwrap();
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
        assert_eq!(catalog.list(Kind::Tool, Some("bogus")), None);
    }

    #[test]
    fn a_tool_that_describes_itself_otherwise_is_named() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "s", US, "h").unwrap();
        let offer = |tools: &[(&str, &str)]| -> Vec<Item> {
            let raw =
                |(name, more): &(&str, &str)| format!("{{\"name\":\"{name}\",\"description\":\"{more}\"}}");
            let limits = CatalogLimits::default();
            tools.iter().filter_map(|tool| Item::read(Kind::Tool, &raw(tool), &limits)).collect()
        };
        let mut set = |tools: &[(&str, &str)]| catalog.set(key, Kind::Tool, offer(tools));
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
        assert_eq!(
            warnings,
            [format!("the description of tool a is another one than before ({old}, now {new})")]
        );
        // A list of many says so, and does not fill the log.
        let names: Vec<String> = (0..LOG_CHANGES + 5).map(|number| format!("t{number}")).collect();
        let all = |more| -> Vec<(&str, &str)> { names.iter().map(|name| (name.as_str(), more)).collect() };
        set(&all("x"));
        let warnings = set(&all("y")).unwrap();
        assert_eq!(warnings.len(), LOG_CHANGES + 1);
        assert_eq!(warnings[LOG_CHANGES], "and those of 5 more tools");
    }
}
