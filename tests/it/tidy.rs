//! Checks the architecture rules against the source: permitted imports and style. The layers come
//! from the table in `src/lib.rs`. Clippy checks the length of functions, `unwrap` and the like, and
//! who reads the clock (`Cargo.toml`, `clippy.toml`). Reviewers check the rest, such as names and the
//! truth of comments.

mod cycles;
mod rules;
mod source;

use std::{collections::BTreeMap, fs, path::Path};

use source::{Source, line, paths};

/// Permitted imports within a layer, with the reason. Must not form a cycle.
const SIDEWAYS: &[(&str, &str, &str)] = &[
    ("util", "limits", "how much foreign text a log line takes"),
    ("config", "command", "a configuration holds a command line"),
    ("config", "limits", "and limits"),
    ("config", "secret", "and tokens"),
    ("config", "util", "and writes `host:port`"),
    ("catalog", "auth", "a server belongs to a principal"),
    ("session", "auth", "so does a session"),
    ("session", "budget", "what is kept for a client without a session is charged to an account"),
    ("queue", "budget", "queued bytes are charged to an account"),
    ("hub", "auth", "sessions and servers belong to principals"),
    ("hub", "budget", "what the hub keeps is charged to accounts"),
    ("hub", "catalog", "the hub owns the catalog"),
    ("hub", "log_throttle", "peers cause log lines"),
    ("hub", "metrics", "the hub counts"),
    ("hub", "queue", "a link refuses a frame as its queue does"),
    ("hub", "session", "the hub owns the tables of sessions"),
    ("mcp", "jsonrpc", "MCP messages are JSON-RPC"),
    ("net", "runtime", "sockets are polled by the reactor"),
    ("process", "net", "waits are bounded by `net::timeout`"),
    ("process", "runtime", "pipes are polled by the reactor"),
    ("tunnel", "jsonrpc", "so are most frames of a link"),
];

/// Paths forbidden below the io layer, because I/O and randomness are arguments there. So is time:
/// `clippy.toml`, and `src/lib.rs` names the modules that may read the clock.
const WORLD: &[&str] = &[
    "smol",
    "async_io",
    "async_channel",
    "async_signal",
    "async_tungstenite",
    "futures_",
    "getrandom",
    "mio",
    "rustix",
    "rustls",
    "std::env::",
    "std::fs",
    "std::net::Tcp",
    "std::net::ToSocketAddrs",
    "std::net::Udp",
    "std::os",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::thread",
];

/// Exceptions: file, path, reason.
const WORLDLY: &[(&str, &str, &str)] = &[(
    "http/upgrade.rs",
    "async_tungstenite::tungstenite::handshake::derive_accept_key",
    "a pure function: the SHA-1 of RFC 6455, section 4.2.2",
)];

/// Modules with I/O or locks of their own, which the files of [`PURE`] may not use either. The layers
/// keep the lower modules from them.
const INPUT_OUTPUT: &[&str] = &["crate::net", "crate::process", "crate::runtime"];

/// Files in higher layers that must be as pure as the lower layers.
const PURE: &[&str] = &[
    "edge/backend/lines.rs",
    "edge/backoff.rs",
    "edge/proxy.rs",
    "edge/redial.rs",
    "edge/request_ids.rs",
    "edge/restart.rs",
];

/// The attribute of these files.
const NO_CLOCK: &str = "#![cfg_attr(not(test), deny(clippy::disallowed_methods, ";

/// Libraries that only the given modules may use, so that they can be replaced.
const HOMES: &[(&str, &[&str])] = &[
    ("argh", &["cli", "cli/args"]),
    ("async_signal", &["runtime/signals", "process"]),
    ("async_tungstenite", &["net/ws_link", "net/outbound", "edge/connect", "http/upgrade"]),
    ("env_logger", &["main"]),
    ("futures_rustls", &["net/"]),
    ("getrandom", &["net/random"]),
    ("http_types", &["http/types"]),
    ("httparse", &["http/head"]),
    ("mio", &["runtime/reactor"]),
    ("ring", &["net/tls", "secret"]),
    ("rustix", &["net/", "runtime/", "process/", "device/"]),
    ("rustls_native_certs", &["net/tls"]),
    ("rustls_pki_types", &["net/tls"]),
    ("serde_json", &["jsonrpc", "device/"]),
    ("webpki_roots", &["net/tls"]),
    ("std::process::Command", &["process"]),
    // Everywhere else: `runtime::lock`.
    ("std::sync::Mutex", &["runtime/lock"]),
    ("smol::process", &["process"]),
];

/// Permitted dependencies: named by the design, already required by one of those, or justified by a
/// measurement in `Cargo.toml`.
const DEPENDENCIES: &[&str] = &[
    "argh",
    "async-channel",
    "async-io",
    "async-signal",
    "async-tungstenite",
    "env_logger",
    "futures-lite",
    "futures-rustls",
    "futures-sink",
    "getrandom",
    "http-types",
    "httparse",
    "idna_adapter",
    "log",
    "mio",
    "ring",
    "rustix",
    "rustls-native-certs",
    "rustls-pki-types",
    "serde_json",
    "smol",
    "webpki-roots",
];

/// Fails with all violations at once.
#[track_caller]
fn check(rule: &str, complaints: &[String]) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}

/// Formats a violation at a position in a file.
fn at(source: &Source, place: usize, what: &str) -> String {
    format!("src/{}:{}: {what}", source.name, line(&source.code, place))
}

/// Returns the layer of each module, from the table in `src/lib.rs`.
fn layers(sources: &[Source]) -> BTreeMap<String, u32> {
    let map = &sources.iter().find(|source| source.name == "lib.rs").unwrap().text;
    let mut layers = BTreeMap::new();
    for row in map.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let Some(layer) = row.chars().next().and_then(|c| c.to_digit(10)) else { continue };
        for top in row.split('`').skip(1).step_by(2) {
            assert_eq!(layers.insert(top.to_owned(), layer), None, "{top} is on two layers");
        }
    }
    layers.insert("lib".into(), 5);
    layers
}

/// Returns the module that a path in a file refers to, or `None` if it does not refer to one.
fn target<'a>(source: &Source, path: &'a str) -> Option<&'a str> {
    let mut parts = path.split("::").peekable();
    let mut up = 0;
    match parts.next()? {
        "crate" | "mcpport" => {}
        "super" => {
            up += 1;
            while parts.next_if_eq(&"super").is_some() {
                up += 1;
            }
            if up < source.depth {
                return None;
            }
        }
        _ => return None,
    }
    parts.next().filter(|part| part.starts_with(char::is_lowercase))
}

/// Returns the imports that do not go to a lower layer.
fn climbing_imports(sources: &[Source]) -> Vec<String> {
    let layers = layers(sources);
    let mut complaints = Vec::new();
    for source in sources {
        let Some(own) = layers.get(&source.top) else {
            complaints
                .push(format!("src/{}: the table in src/lib.rs does not name this module", source.name));
            continue;
        };
        for (place, path) in paths(&source.code) {
            let Some(top) = target(source, &path).filter(|top| *top != source.top) else { continue };
            let sideways = SIDEWAYS.iter().any(|(from, to, _)| *from == source.top && *to == top);
            match layers.get(top) {
                Some(layer) if layer < own || sideways || *own == 5 => {}
                Some(layer) => complaints.push(at(
                    source,
                    place,
                    &format!("{} is on layer {own} and names {path}, layer {layer}", source.top),
                )),
                None => complaints.push(at(source, place, &format!("{path}: no module of the table"))),
            }
        }
    }
    complaints
}

#[test]
fn imports_go_to_lower_layers_only() {
    check("an import climbs (layers: src/lib.rs)", &climbing_imports(&source::all()));
}

#[test]
fn an_import_that_climbs_is_found() {
    let tree = |imported: &str| {
        let map = "//! | 3 io | [`net`] |\n//! | 2 state | [`hub`], [`router`] |\n//! | 0 | [`util`] |\n";
        [
            ("lib.rs", map.to_owned()),
            ("hub/mod.rs", format!("//! Hub.\nuse crate::{{util::Name, {imported}::Item}};\n")),
            ("net.rs", "//! Net.\nuse crate::hub::Hub;\n".to_owned()),
        ]
        .map(|(name, text)| source::from_text(name.into(), text))
    };
    assert_eq!(climbing_imports(&tree("util")), [""; 0]);
    assert_eq!(
        climbing_imports(&tree("net")),
        ["src/hub/mod.rs:2: hub is on layer 2 and names crate::net::Item, layer 3"]
    );
    assert_eq!(climbing_imports(&tree("router")).len(), 1, "a neighbour that SIDEWAYS does not permit");
    assert_eq!(
        climbing_imports(&tree("other")),
        ["src/hub/mod.rs:2: crate::other::Item: no module of the table"]
    );
}

#[test]
fn neighbours_have_no_cycle() {
    for (from, to, _) in SIDEWAYS {
        let (mut seen, mut next) = (vec![*to], vec![*to]);
        while let Some(top) = next.pop() {
            assert_ne!(top, *from, "{from} leads to itself by way of {to}");
            for (_, further, _) in SIDEWAYS.iter().filter(|(near, _, _)| *near == top) {
                if !seen.contains(further) {
                    seen.push(further);
                    next.push(further);
                }
            }
        }
    }
}

#[test]
fn lower_layers_are_pure() {
    let sources = source::all();
    let layers = layers(&sources);
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| {
        PURE.contains(&source.name.as_str()) || layers.get(&source.top).is_some_and(|layer| *layer <= 2)
    }) {
        let pure = PURE.contains(&source.name.as_str());
        if pure && !source.text.contains(NO_CLOCK) {
            complaints.push(format!("src/{}: a pure file has {NO_CLOCK}", source.name));
        }
        for (place, path) in paths(&source.code) {
            let own = pure && INPUT_OUTPUT.iter().any(|module| path.starts_with(module));
            let worldly = own || WORLD.iter().any(|world| path.starts_with(world));
            let allowed = WORLDLY.iter().any(|(file, name, _)| *file == source.name && path == *name);
            if worldly && !allowed {
                complaints.push(at(source, place, &path));
            }
        }
    }
    check("a pure module names the world (I/O and randomness are arguments there)", &complaints);
}

#[test]
fn libraries_are_used_in_their_modules_only() {
    let mut complaints = Vec::new();
    for source in source::all() {
        let module = source.name.trim_end_matches(".rs");
        for (place, path) in paths(&source.code) {
            let home = HOMES.iter().find(|(library, _)| {
                path.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            });
            let Some((library, homes)) = home else { continue };
            let here = homes.iter().any(|home| {
                module == *home
                    || module
                        .strip_prefix(home)
                        .is_some_and(|rest| home.ends_with('/') || rest.starts_with('/'))
            });
            if !here {
                complaints.push(at(&source, place, &format!("{path}: {library} is used in {homes:?} only")));
            }
        }
    }
    check("a library is used outside its home", &complaints);
}

/// Unsafe code is allowed in one place only, under a SAFETY comment. The compiler enforces the rest
/// (`Cargo.toml`).
#[test]
fn unsafe_code_is_in_one_place() {
    let mut places = Vec::new();
    for source in source::all() {
        for word in ["unsafe {", "unsafe fn", "unsafe impl", "(unsafe_code"] {
            let count = source.code.matches(word).count();
            places.extend((0..count).map(|_| format!("{}: {word}", source.name)));
        }
        assert_eq!(source.code.matches("unsafe {").count(), source.text.matches("// SAFETY: ").count());
    }
    assert_eq!(places, ["process/session.rs: unsafe {", "process/session.rs: (unsafe_code"]);
}

/// The end of the program is the return value of `main`. (`clippy::exit` permits it in `main`.)
#[test]
fn no_code_ends_the_process() {
    let mut complaints = Vec::new();
    for source in source::all() {
        for (place, path) in paths(&source.code) {
            if path.ends_with("process::exit") || path.ends_with("process::abort") {
                complaints.push(at(&source, place, &path));
            }
        }
    }
    check("code that ends the program", &complaints);
}

#[test]
fn no_todo_comments() {
    let mut complaints = Vec::new();
    for source in source::all() {
        for (number, text) in source.text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", "HACK"] {
                if text.contains(word) {
                    complaints.push(format!("src/{}:{}: {word}", source.name, number + 1));
                }
            }
        }
    }
    check("left for later", &complaints);
}

/// The rules read a file up to its tests.
#[test]
fn tests_end_a_file() {
    let mut complaints = Vec::new();
    for source in source::all() {
        let mut lines = source.text.lines().skip_while(|line| *line != "#[cfg(test)]").skip(1);
        let begun = lines.next().is_none_or(|line| line.starts_with("mod "));
        // Items at the margin, where the lines of a long string may stand, too.
        let words = [
            "pub",
            "fn",
            "async",
            "unsafe",
            "use",
            "impl",
            "struct",
            "enum",
            "union",
            "const",
            "static",
            "type",
            "trait",
            "extern",
            "macro_rules!",
        ];
        let is_item = |line: &str| {
            let word = line.split([' ', '<', '(']).next().unwrap_or_default();
            words.contains(&word) || line.starts_with("#[") && line != "#[cfg(test)]"
        };
        if !begun || lines.any(is_item) {
            complaints.push(format!("src/{}", source.name));
        }
    }
    check("code behind #[cfg(test)]", &complaints);
}

#[test]
fn modules_open_with_a_doc_comment() {
    let silent = |source: &Source| {
        let opening = source.text.lines().next().unwrap_or_default();
        let tests = source.name.ends_with("/tests.rs");
        (!tests && !opening.starts_with("//! ")).then(|| format!("src/{}:1", source.name))
    };
    check("a module opens without //!", &source::all().iter().filter_map(silent).collect::<Vec<_>>());
}

/// The section of dependencies that only static binaries have.
const STATIC: &str = "[target.'cfg(target_env = \"musl\")'.dependencies]";

#[test]
fn every_dependency_has_a_reason() {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let (mut section, mut before, mut complaints, mut seen) = ("", "", Vec::new(), 0);
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        } else if section.contains("dependencies") && line.contains('=') {
            let name = line.split(['=', '.']).next().unwrap_or_default().trim();
            seen += 1;
            if !before.starts_with('#') {
                complaints.push(format!("Cargo.toml: {name} has no comment above it"));
            }
            let known = match section {
                "[dependencies]" => DEPENDENCIES.contains(&name),
                STATIC => name == "dlmalloc",
                _ => true,
            };
            if !known {
                complaints.push(format!("Cargo.toml: the design does not name {name}"));
            }
        } else if section.starts_with("[dependencies.") || section.starts_with("[target") && section != STATIC
        {
            complaints.push(format!("Cargo.toml: {section} is a form that this test does not read"));
        }
        before = line;
    }
    assert!(seen >= DEPENDENCIES.len() / 2, "Cargo.toml was not read");
    check("dependencies", &complaints);
}
