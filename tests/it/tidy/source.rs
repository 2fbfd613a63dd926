//! Reads Rust source as far as the architecture rules in `tidy` need it: the lines without comments
//! and tests, and the paths named in them.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A file in `src/`.
pub struct Source {
    /// Path relative to `src/`, with `/`: `http/conn.rs`.
    pub name: String,
    /// Top-level module: `http`.
    pub top: String,
    /// Module depth: 1 for `auth.rs` and `http/mod.rs`, 2 for `http/conn.rs`.
    pub depth: usize,
    /// The whole text.
    pub text: String,
    /// The same lines without comments, up to the tests.
    pub code: String,
}

/// Returns all files in `src/`, sorted by path.
pub fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    gather(&root, &mut files);
    files.sort();
    let sources: Vec<Source> = files.iter().map(|file| read(&root, file)).collect();
    assert!(sources.len() > 50, "src/ was not read");
    sources
}

fn gather(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(root: &Path, file: &Path) -> Source {
    let name = file.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    from_text(name, fs::read_to_string(file).unwrap())
}

/// Returns the source of a file with this path relative to `src/`, and this text.
pub fn from_text(name: String, text: String) -> Source {
    let module = name.trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = if matches!(module, "lib" | "main") { 0 } else { module.split('/').count() };
    let top = module.split('/').next().unwrap_or_default().to_owned();
    let code = if module.ends_with("tests") { String::new() } else { code(&text) };
    Source { top, depth, code, text, name }
}

/// Returns the lines with comments removed, up to the tests: rustfmt puts comments on lines of their
/// own or after a blank, and a file ends with its tests.
fn code(text: &str) -> String {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
    let code = lines.map(|line| match line.trim_start().starts_with("//") {
        true => "",
        false => line.split_once(" // ").map_or(line, |(code, _)| code),
    });
    code.collect::<Vec<_>>().join("\n")
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the line number of a position in a text, counted from 1.
pub fn line(text: &str, place: usize) -> usize {
    text[..place].matches('\n').count() + 1
}

/// Returns all paths named in the code, with their positions; `use` trees are expanded. A path has
/// two parts at least.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let (mut out, mut place) = (Vec::new(), 0);
    while let Some(start) = code[place..].find(is_word) {
        place += start;
        place += tree(&code[place..], place, "", &mut out);
    }
    out.retain(|(_, path)| path.contains("::"));
    out
}

/// Adds the paths of the tree at the beginning of `code`, and returns its length.
fn tree(code: &str, place: usize, before: &str, out: &mut Vec<(usize, String)>) -> usize {
    let mut end = 0;
    loop {
        end += code[end..].find(|c| !is_word(c)).unwrap_or(code.len() - end);
        let colons = code[end..].strip_prefix("::");
        if !colons.is_some_and(|rest| rest.starts_with(is_word)) {
            break;
        }
        end += 2;
    }
    let path = format!("{before}{}", &code[..end]);
    if !code[end..].starts_with("::{") {
        out.push((place, path));
        return end;
    }
    end += 3;
    while let Some(next) = code[end..].find(|c| is_word(c) || c == '}') {
        end += next;
        if code[end..].starts_with('}') {
            return end + 1;
        }
        end += tree(&code[end..], place + end, &format!("{path}::"), out);
    }
    code.len()
}

#[test]
fn comments_and_tests_are_no_code() {
    let text =
        "//! a::b\nuse c::d; // e::f\n    // g::h\nlet i = \"http://j\";\n#[cfg(test)]\nmod tests {}\n";
    assert_eq!(code(text), "\nuse c::d;\n\nlet i = \"http://j\";");
}

#[test]
fn use_trees_are_flattened() {
    let code = "use crate::{a::{b, c as d}, e};\nx::y(1, super::z::w()); for f in g::<h::I>() {}";
    let paths: Vec<String> = paths(code).into_iter().map(|(_, path)| path).collect();
    for path in ["crate::a::b", "crate::a::c", "crate::e", "x::y", "super::z::w", "h::I"] {
        assert!(paths.iter().any(|found| found == path), "{path}: {paths:?}");
    }
}
