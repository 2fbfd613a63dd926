//! Random names that collide. Whatever the order in which servers come and go, each exposed name
//! refers to one tool of one server, and never to another tool.

use std::collections::{BTreeMap, BTreeSet};

use mcpport::{
    auth::Principal,
    catalog::{Catalog, Target, UpstreamKey},
    limits::CatalogLimits,
    mcp::{
        exposed_name::{exposed, exposed_with_hash},
        listing::{ListItem, ListKind},
    },
};

use super::{Named, Random};

/// Few letters, many collisions if names were simply joined: `a` + `b_c` and `a_b` + `c`, `a` +
/// `_b__c` and `a__b` + `_c`; also `.`, `/` and `_`, and names that are too long.
const SERVERS: [&str; 11] =
    ["a", "a_b", "a.b", "b", "a_b_c", "list", "a_", "_a", "a__b", "a_b_", "aVeryLongNameIndeedAndMore"];
const TOOLS: [&str; 16] = [
    "c",
    "b_c",
    "b.c",
    "b/c",
    "servers",
    "_",
    "ééé",
    "aVeryLongNameIndeed1",
    "aVeryLongNameIndeed2",
    "c_d",
    "_c",
    "__c",
    "b__c",
    "_b__c",
    "b_",
    "b_0123456789abcdef",
];

/// Maximum name length; short, so that names are truncated.
const LONGEST: usize = 26;

struct Books {
    catalog: Catalog<usize>,
    /// Registered servers by index: key and offered tools.
    servers: BTreeMap<usize, (UpstreamKey, Vec<&'static str>)>,
    /// The tool that each name has ever referred to.
    exposed: BTreeMap<String, (usize, &'static str)>,
    limits: CatalogLimits,
}

impl Books {
    fn new() -> Self {
        let limits = CatalogLimits { exposed_name: LONGEST, ..CatalogLimits::default() };
        let own = [("list_servers", "{\"name\":\"list_servers\"}")];
        let catalog = Catalog::new(&own, &limits);
        Self { catalog, servers: BTreeMap::new(), exposed: BTreeMap::new(), limits }
    }

    fn step(&mut self, random: &mut Random) {
        let place = random.below(SERVERS.len());
        match self.servers.get(&place) {
            None => {
                let (id, name) = (format!("id-{place}"), SERVERS[place]);
                let registered = self.catalog.register(&id, name, Principal::ANONYMOUS, place);
                self.servers.insert(place, (registered.unwrap().0, Vec::new()));
            }
            Some((key, _)) if random.chance(25) => {
                assert_eq!(self.catalog.remove(*key).map(|(handle, _)| handle), Some(place));
                self.servers.remove(&place);
            }
            Some((key, _)) => {
                let offer: Vec<_> = (0..random.below(6)).map(|_| TOOLS[random.below(TOOLS.len())]).collect();
                self.offer(place, *key, offer);
            }
        }
    }

    fn offer(&mut self, place: usize, key: UpstreamKey, offer: Vec<&'static str>) {
        let item =
            |name: &&str| ListItem::read(ListKind::Tool, &format!("{{\"name\":\"{name}\"}}"), &self.limits);
        let items: Vec<ListItem> = offer.iter().map(|name| item(name).expect("a usable name")).collect();
        self.catalog.set(key, ListKind::Tool, items);
        self.servers.insert(place, (key, offer));
    }

    /// Checks that every listed name resolves, every tool is listed once, and no name changed its
    /// meaning.
    fn check(&mut self) {
        let mut found = BTreeMap::new();
        for name in self.listed() {
            assert!(name.len() <= LONGEST, "{name} is too long");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{name}");
            match self.catalog.find(ListKind::Tool, &name).expect("what is listed can be found") {
                Target::Several(names) => panic!("{name} is listed and means one of {names:?}"),
                Target::Own => assert_eq!(name, "list_servers"),
                Target::Server { handle, key } => {
                    let tool = *TOOLS.iter().find(|tool| **tool == key).unwrap();
                    let f = if exposed(SERVERS[handle], tool, LONGEST) == "list_servers" {
                        exposed_with_hash
                    } else {
                        exposed
                    };
                    assert_eq!(name, f(SERVERS[handle], tool, LONGEST), "{} {tool}", SERVERS[handle]);
                    assert_eq!(found.insert((handle, tool), name), None, "{tool} is listed twice");
                }
            }
        }
        let offered = |(place, (_, tools)): (&usize, &(UpstreamKey, Vec<_>))| -> Vec<_> {
            tools.iter().map(|tool| (*place, *tool)).collect()
        };
        let offered: BTreeSet<(usize, &str)> = self.servers.iter().flat_map(offered).collect();
        assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), offered);
        for (tool, name) in found {
            let before = self.exposed.insert(name.clone(), tool);
            assert!(before.is_none_or(|before| before == tool), "{name} means another tool than before");
        }
        let names = self.exposed.keys();
        let led = names.filter_map(|name| Some((name, self.catalog.find(ListKind::Tool, name)?)));
        for (name, target) in led {
            if let Target::Server { handle, key } = target {
                assert_eq!((handle, key.as_str()), self.exposed[name], "{name} leads to another tool");
            }
        }
    }

    fn listed(&self) -> Vec<String> {
        let page = self.catalog.list(ListKind::Tool, None).unwrap();
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        let tools = page["tools"].as_array().unwrap().iter();
        tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn exposed_names_are_unique_and_stable() {
    for seed in 0..200 {
        let (_named, mut random, mut books) = (Named(seed), Random(seed), Books::new());
        for _ in 0..40 {
            books.step(&mut random);
            books.check();
        }
    }
}
