//! The registered servers and what they offer, under the names that clients see.
//!
//! Pure tables. `H` is whatever the program needs to reach a server; lookups hand out clones of it.
//! Exposed names are looked up in a map; nothing is ever split at a separator.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    auth::Principal,
    jsonrpc::quote,
    limits::{CatalogLimits, LIST_PAGE},
    mcp::names::{Tool, exposed, exposed_with_hash},
    text,
};

/// A registration's place in the catalog. Never reused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key(u64);

/// A tool, found by the name that clients use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target<H> {
    /// The gateway's own.
    Own,
    /// A server's.
    Server {
        /// How to reach the server.
        handle: H,
        /// The server's own name for the tool.
        tool: String,
    },
}

/// Why a registration is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NameTaken {
    /// The name.
    pub name: String,
    /// The id of the server that has it.
    pub holder: String,
}

/// One registered server.
#[derive(Debug)]
struct Server<H> {
    id: String,
    name: String,
    principal: Principal,
    handle: H,
    tools: Vec<Tool>,
    /// Names under which its tools are exposed.
    exposed: Vec<String>,
}

#[derive(Debug)]
struct Exposed {
    /// `None`: the gateway's own.
    server: Option<Key>,
    /// The server's own name.
    tool: String,
    /// The description under the exposed name.
    listed: String,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Catalog<H> {
    last: u64,
    servers: BTreeMap<Key, Server<H>>,
    exposed: BTreeMap<String, Exposed>,
    limits: CatalogLimits,
}

impl<H: Clone> Catalog<H> {
    /// A catalog with the gateway's own tools: name and description.
    pub fn new(own: &[(&str, &str)], limits: CatalogLimits) -> Self {
        let own = own.iter().map(|(name, listed)| {
            let entry = Exposed { server: None, tool: (*name).to_owned(), listed: (*listed).to_owned() };
            ((*name).to_owned(), entry)
        });
        Self { last: 0, servers: BTreeMap::new(), exposed: own.collect(), limits }
    }

    /// Registers a server, without tools so far. The same id from the same principal takes over: the handle of
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
            return Err(NameTaken { name: name.to_owned(), holder: holder.id.clone() });
        }
        let replaced = replaced.and_then(|key| self.remove(key));
        self.last += 1;
        let key = Key(self.last);
        let (id, name) = (id.to_owned(), name.to_owned());
        self.servers
            .insert(key, Server { id, name, principal, handle, tools: Vec::new(), exposed: Vec::new() });
        Ok((key, replaced))
    }

    /// Takes a server out with all its names.
    pub fn remove(&mut self, key: Key) -> Option<H> {
        let server = self.servers.remove(&key)?;
        for name in &server.exposed {
            self.exposed.remove(name);
        }
        Some(server.handle)
    }

    /// Sets what a server offers. Returns warnings for the log, or `None` when nothing changed or the server is gone.
    pub fn set_tools(&mut self, key: Key, tools: Vec<Tool>) -> Option<Vec<String>> {
        let server = self.servers.get_mut(&key)?;
        if server.tools == tools {
            return None;
        }
        for name in std::mem::take(&mut server.exposed) {
            self.exposed.remove(&name);
        }
        let mut warnings = Vec::new();
        for tool in &tools {
            match place(&self.exposed, &server.name, tool, &self.limits, &mut warnings) {
                Some(name) => {
                    let listed = tool.under(&name);
                    let entry = Exposed { server: Some(key), tool: tool.name.clone(), listed };
                    self.exposed.insert(name.clone(), entry);
                    server.exposed.push(name);
                }
                None => warnings.push(format!("tool {} is listed twice", text::show(&tool.name))),
            }
        }
        server.tools = tools;
        Some(warnings)
    }

    /// Finds a tool by its exposed name.
    pub fn find(&self, name: &str) -> Option<Target<H>> {
        let entry = self.exposed.get(name)?;
        let Some(key) = entry.server else { return Some(Target::Own) };
        let handle = self.servers.get(&key)?.handle.clone();
        Some(Target::Server { handle, tool: entry.tool.clone() })
    }

    /// One page of the list of all tools, as a result of `tools/list`. `None` when the cursor is not one of ours.
    ///
    /// The order is that of the exposed names, and a cursor names the last one seen: a list that changes between
    /// two pages neither repeats nor skips what stayed.
    pub fn list(&self, cursor: Option<&str>) -> Option<String> {
        use std::ops::Bound;
        let from = match cursor {
            None => Bound::Unbounded,
            Some(cursor) => Bound::Excluded(cursor.strip_prefix(CURSOR)?),
        };
        let mut out = String::from("{\"tools\":[");
        let mut rest = self.exposed.range::<str, _>((from, Bound::Unbounded)).peekable();
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

    /// The servers as JSON objects: id, name, tools_count.
    pub fn servers(&self) -> Vec<String> {
        self.servers
            .values()
            .map(|server| {
                let (id, name, count) = (quote(&server.id), quote(&server.name), server.tools.len());
                format!("{{\"id\":{id},\"name\":{name},\"tools_count\":{count}}}")
            })
            .collect()
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

/// What our cursors begin with.
const CURSOR: &str = "after:";

/// The name for a tool: the plain one, or with a hash where the plain one is taken. `None` when both are.
fn place(
    taken: &BTreeMap<String, Exposed>,
    server: &str,
    tool: &Tool,
    limits: &CatalogLimits,
    warnings: &mut Vec<String>,
) -> Option<String> {
    let plain = exposed(server, &tool.name, limits.exposed_name);
    if !taken.contains_key(&plain) {
        return Some(plain);
    }
    let hashed = exposed_with_hash(server, &tool.name, limits.exposed_name);
    if taken.contains_key(&hashed) {
        return None;
    }
    warnings
        .push(format!("the name {plain} is taken; tool {} is exposed as {hashed}", text::show(&tool.name)));
    Some(hashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Principal = Principal::ANONYMOUS;

    fn catalog() -> Catalog<&'static str> {
        Catalog::new(&[("list_servers", "{\"name\":\"list_servers\"}")], CatalogLimits::default())
    }

    fn tools(names: &[&str]) -> Vec<Tool> {
        names.iter().filter_map(|name| Tool::read(&format!("{{\"name\":\"{name}\"}}"), 128)).collect()
    }

    fn listed(catalog: &Catalog<&'static str>) -> Vec<String> {
        catalog.exposed.keys().cloned().collect()
    }

    fn found(catalog: &Catalog<&'static str>, name: &str) -> Option<(&'static str, String)> {
        match catalog.find(name)? {
            Target::Server { handle, tool } => Some((handle, tool)),
            Target::Own => Some(("own", String::new())),
        }
    }

    #[test]
    fn servers_come_and_go() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "file", US, "h1").unwrap();
        assert_eq!(catalog.set_tools(key, tools(&["read", "write"])), Some(vec![]));
        assert_eq!(catalog.set_tools(key, tools(&["read", "write"])), None);
        assert_eq!(listed(&catalog), ["file_read", "file_write", "list_servers"]);
        assert_eq!(found(&catalog, "file_read"), Some(("h1", "read".into())));
        assert_eq!(found(&catalog, "read"), None);
        assert_eq!(catalog.servers(), [r#"{"id":"1","name":"file","tools_count":2}"#]);
        assert_eq!(catalog.remove(key), Some("h1"));
        assert_eq!(listed(&catalog), ["list_servers"]);
        assert_eq!(catalog.set_tools(key, tools(&["read"])), None);
    }

    #[test]
    fn the_same_id_takes_over_and_another_is_refused() {
        let mut catalog = catalog();
        let (first, _) = catalog.register("1", "file", US, "h1").unwrap();
        catalog.set_tools(first, tools(&["read"]));
        let taken = catalog.register("2", "file", US, "h2").unwrap_err();
        assert_eq!(taken, NameTaken { name: "file".into(), holder: "1".into() });
        assert!(catalog.register("1", "file", Principal::token(3), "h3").is_err());
        let (second, replaced) = catalog.register("1", "files", US, "h4").unwrap();
        assert_eq!((replaced, catalog.len()), (Some("h1"), 1));
        assert_eq!(catalog.remove(first), None);
        assert_eq!(catalog.remove(second), Some("h4"));
    }

    #[test]
    fn the_earlier_keeps_its_name() {
        let mut catalog = catalog();
        let (one, _) = catalog.register("1", "a_b", US, "h1").unwrap();
        let (two, _) = catalog.register("2", "a", US, "h2").unwrap();
        let (own, _) = catalog.register("3", "list", US, "h3").unwrap();
        catalog.set_tools(one, tools(&["c"]));
        assert_eq!(catalog.set_tools(two, tools(&["b_c", "b.c", "b_c"])).unwrap().len(), 3);
        assert_eq!(catalog.set_tools(own, tools(&["servers"])).unwrap().len(), 1);
        assert_eq!(found(&catalog, "a_b_c"), Some(("h1", "c".into())));
        assert_eq!(found(&catalog, &exposed_with_hash("a", "b_c", 64)), Some(("h2", "b_c".into())));
        assert_eq!(found(&catalog, &exposed_with_hash("a", "b.c", 64)), Some(("h2", "b.c".into())));
        assert_eq!(found(&catalog, "list_servers"), Some(("own", String::new())));
    }

    #[test]
    fn long_lists_come_in_pages() {
        let mut catalog = catalog();
        let (key, _) = catalog.register("1", "s", US, "h").unwrap();
        let padding = "x".repeat(LIST_PAGE / 3);
        let many = (0..7).map(|n| format!("{{\"name\":\"t{n}\",\"x\":\"{padding}\"}}"));
        catalog.set_tools(key, many.filter_map(|raw| Tool::read(&raw, 128)).collect());
        let (mut cursor, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
        loop {
            let page = catalog.list(cursor.as_deref()).unwrap();
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
        assert_eq!(seen, listed(&catalog));
        assert_eq!(pages, 4);
        assert_eq!(catalog.list(Some("bogus")), None);
    }
}
