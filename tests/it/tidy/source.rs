//! Parses Rust source as far as the architecture rules in `tidy` need it: code without comments,
//! literals and tests, and the paths named in it.

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
    /// The same lines, with comments, tests and the contents of literals blanked.
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
    let code = if module.ends_with("tests") { String::new() } else { without_tests(&bare(&text)) };
    Source { top, depth, code, text, name }
}

/// Blanks comments and the contents of literals; keeps the line structure.
fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => closing(rest),
            'r' if !out.ends_with(is_word) && raw_string(rest).is_some() => raw_string(rest).unwrap_or(1),
            '\'' => character(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (gone, after) = rest.split_at(length);
        let kept = |c: char| if c == '\n' || c == '"' { c } else { ' ' };
        out.extend(gone.chars().map(kept));
        rest = after;
    }
    out
}

/// Returns the length of a string literal including its quotes.
fn closing(text: &str) -> usize {
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return place + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

fn raw_string(text: &str) -> Option<usize> {
    let hashes = text[1..].find(|c| c != '#')?;
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(2 + hashes + body.find(&end)? + end.len())
}

/// Returns the length of a character literal; 0 for a lifetime.
fn character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3..].find('\'').map_or(0, |end| end + 4),
        Some(_) => chars.next().map_or(0, |(place, c)| if c == '\'' { place + 1 } else { 0 }),
        None => 0,
    }
}

/// Blanks each item after `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let item = &out[start..];
        let brace = item.find('{').unwrap_or(item.len());
        let end = match item.find(';') {
            Some(semicolon) if semicolon < brace => semicolon + 1,
            _ => brace + block(&item[brace..]),
        };
        let blank: String = item[..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        out.replace_range(start..start + end, &blank);
    }
    out
}

/// Returns the length of a block including its braces.
pub fn block(code: &str) -> usize {
    let mut depth = 0;
    for (place, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return place + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns the line number of a position in a text, counted from 1.
pub fn line(text: &str, place: usize) -> usize {
    text[..place].matches('\n').count() + 1
}

/// Returns all paths named in the code, with their positions; `use` trees are expanded.
pub fn paths(code: &str) -> Vec<(usize, String)> {
    let tokens = tokens(code);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at].1.starts_with(is_word) {
            spread(&tokens, &mut at, "", &mut out);
        } else {
            at += 1;
        }
    }
    out
}

fn spread(tokens: &[(usize, &str)], at: &mut usize, before: &str, out: &mut Vec<(usize, String)>) {
    let (place, mut path) = (tokens[*at].0, before.to_owned());
    while let Some((_, token)) = tokens.get(*at).filter(|(_, token)| token.starts_with(is_word)) {
        path.push_str(token);
        *at += 1;
        if tokens.get(*at).is_none_or(|(_, token)| *token != "::") {
            break;
        }
        path.push_str("::");
        *at += 1;
    }
    if !(path.ends_with("::") && tokens.get(*at).is_some_and(|(_, token)| *token == "{")) {
        return out.push((place, path));
    }
    *at += 1;
    while let Some((_, token)) = tokens.get(*at) {
        match *token {
            "}" => {
                *at += 1;
                return;
            }
            token if token.starts_with(is_word) => spread(tokens, at, &path, out),
            _ => *at += 1,
        }
    }
}

/// Splits code into words, `::`, and single other characters.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let mut place = 0;
    while let Some(first) = code[place..].chars().next() {
        let rest = &code[place..];
        let length = match first {
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        if !first.is_whitespace() {
            out.push((place, &rest[..length]));
        }
        place += length;
    }
    out
}

#[test]
fn code_is_separated_from_comments_and_literals() {
    let text = "let a = \"x // {\\\" y\"; // tail {\nfn f<'a>(c: &'a str) { '{'; '\\''; r#\"}\"\"#; b'\"' }\n#[cfg(test)]\nmod tests { fn g() { } }\nlet z;";
    let code = without_tests(&bare(text));
    assert_eq!(code.lines().count(), text.lines().count());
    for gone in ["x", "y", "tail", "tests", "g()"] {
        assert!(!code.contains(gone), "{gone}: {code}");
    }
    assert!(code.contains("fn f<'a>(c: &'a str) {") && code.contains("let z;"), "{code}");
    assert_eq!(code.matches(['{', '}']).count(), 2, "{code}");
}

#[test]
fn use_trees_are_flattened() {
    let code = "use crate::{a::{b, c as d}, e};\nx::y(1, super::z::w());";
    let paths: Vec<String> = paths(code).into_iter().map(|(_, path)| path).collect();
    for path in ["crate::a::b", "crate::a::c", "crate::e", "x::y", "super::z::w"] {
        assert!(paths.iter().any(|found| found == path), "{path}: {paths:?}");
    }
}
