//! Checks that the files of one folder of `src/` do not import each other in a circle. A subfolder
//! counts as one file of its folder, and its own files are checked in turn. Tests do not count.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    check,
    source::{self, Source, paths},
};

/// Imports between files of one folder: folder, importing file, imported file.
type Imports = BTreeSet<(String, String, String)>;

/// For each module (`net::tls`), the paths in its `use` items: its submodules can name these too.
type Modules = BTreeMap<String, Vec<String>>;

fn module(source: &Source) -> String {
    let path = source.name.trim_end_matches(".rs").trim_end_matches("/mod");
    if matches!(path, "lib" | "main") { String::new() } else { path.replace('/', "::") }
}

fn modules(sources: &[Source]) -> Modules {
    let used = |source: &Source| {
        let trees = source.code.split(';').filter_map(|item| Some(&item[item.rfind("use ")? + 4..]));
        trees.flat_map(paths).map(|(_, path)| path).collect()
    };
    sources.iter().map(|source| (module(source), used(source))).collect()
}

fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}::{name}") }
}

fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// Returns the module that defines what `path` names in the module `own`. `None`: not in this crate.
fn definition(modules: &Modules, own: &str, path: &str) -> Option<String> {
    let mut parts = path.split("::").filter(|part| !part.is_empty()).peekable();
    let mut at = match *parts.peek()? {
        "crate" | "mcpport" => String::new(),
        "self" | "super" => own.to_owned(),
        first if modules.contains_key(&join(own, first)) => own.to_owned(),
        _ => return None,
    };
    for part in parts {
        match part {
            "crate" | "mcpport" | "self" => {}
            "super" => at = parent(&at).to_owned(),
            _ if modules.contains_key(&join(&at, part)) => at = join(&at, part),
            _ => {
                let from = modules.get(&at)?.iter().find(|used| used.ends_with(&format!("::{part}")));
                let elsewhere = from.filter(|_| at != own).and_then(|used| definition(modules, &at, used));
                return Some(elsewhere.unwrap_or(at));
            }
        }
    }
    Some(at)
}

/// Returns the imports of all files.
fn imports(sources: &[Source]) -> Imports {
    let modules = modules(sources);
    let mut imports = Imports::new();
    for source in sources {
        let own = module(source);
        for (_, path) in paths(&source.code) {
            let Some(target) = definition(&modules, &own, &path) else { continue };
            let (from, to): (Vec<&str>, Vec<&str>) =
                (own.split("::").collect(), target.split("::").collect());
            let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
            if shared > 0 && from != to {
                let file = |parts: &[&str]| (*parts.get(shared).unwrap_or(&"mod")).to_owned();
                imports.insert((from[..shared].join("/"), file(&from), file(&to)));
            }
        }
    }
    imports
}

/// Returns the files from `from` to `to`, each importing the next, if `to` is reached.
fn route<'a>(imports: &'a Imports, folder: &str, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut routes = vec![vec![from]];
    let mut seen = BTreeSet::from([from]);
    let mut next = 0;
    while let Some(route) = routes.get(next).cloned() {
        let last = *route.last()?;
        if last == to {
            return Some(route);
        }
        let further = imports.iter().filter(|(near, file, _)| near == folder && file == last);
        for (_, _, file) in further {
            if seen.insert(file) {
                routes.push([&route[..], &[file]].concat());
            }
        }
        next += 1;
    }
    None
}

/// Returns each cycle once.
fn complaints(imports: &Imports) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut left = imports.clone();
    for import in imports {
        let (folder, from, to) = import;
        if let Some(back) = route(&left, folder, to, from) {
            complaints.push(format!("src/{folder}: {from} -> {}", back.join(" -> ")));
            left.remove(import);
        }
    }
    complaints
}

#[test]
fn files_of_a_folder_have_no_import_cycle() {
    check("files import each other", &complaints(&imports(&source::all())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Imports {
        let files = files.iter().map(|(name, code)| source::from_text(name.to_string(), code.to_string()));
        imports(&files.collect::<Vec<_>>())
    }

    #[test]
    fn a_cycle_is_found() {
        let imports = tree(&[
            ("hub/mod.rs", "pub mod call;\npub mod frame;\npub mod request;\n"),
            ("hub/call.rs", "use super::{frame::Frame, request};\n"),
            ("hub/frame.rs", "use std::fmt;\nfn f() { crate::hub::request::read(); }\n"),
            ("hub/request.rs", "pub(super) fn g(call: &super::call::Call) {}\n"),
        ]);
        assert_eq!(
            complaints(&imports),
            ["src/hub: call -> frame -> request -> call", "src/hub: call -> request -> call"]
        );
    }

    #[test]
    fn folders_and_reexports_count_where_their_code_is() {
        let imports = tree(&[
            ("net/mod.rs", "mod tls;\nmod stream;\npub use tls::files::Files;\npub struct Own;\n"),
            ("net/stream.rs", "use super::{Files, Own};\nuse crate::util;\n"),
            ("net/tls.rs", "mod files;\nuse super::stream::Stream;\nuse files::Files;\n"),
            ("net/tls/files.rs", "#[cfg(test)]\nmod tests {\n    use super::super::verify;\n}\n"),
        ]);
        let import = |folder: &str, from: &str, to: &str| (folder.into(), from.into(), to.into());
        let expected = [
            import("net", "mod", "tls"),
            import("net", "stream", "mod"),
            import("net", "stream", "tls"),
            import("net", "tls", "stream"),
            import("net/tls", "mod", "files"),
        ];
        assert_eq!(imports, Imports::from(expected));
        assert_eq!(complaints(&imports).len(), 2, "stream and tls, and stream, mod and tls");
    }
}
