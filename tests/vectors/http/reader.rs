//! Reads the vectors of this directory; used by the tests and by the seeds of the fuzz targets.
//!
//! ```text
//! == name
//! limits body_bytes=16 fields=3       (optional)
//! caller refuses                      (optional: answers 401 instead of taking bodies; or: upgrades)
//! < GET / HTTP/1.1\r\n                (bytes: all such lines in a row, without the line ends of the file)
//! eof                                 (optional: the peer closes its side behind the bytes)
//! > request GET /                     (what happens, one line each)
//! > open                              (at last: `open` or `closed`)
//! ```
//!
//! Escapes: `\r \n \t \0 \\ \{ \} \xHH`; `{text*17}` repeats.

use std::path::Path;

/// One vector.
#[derive(Debug, Default)]
pub struct Vector {
    /// The file, and the name in it.
    pub name: String,
    /// Limits that differ from the default.
    pub limits: Vec<(String, usize)>,
    /// Behaviour of the caller; empty for one that takes every body.
    pub caller: String,
    /// The bytes that the peer sends.
    pub bytes: Vec<u8>,
    /// The peer closes its side afterwards.
    pub eof: bool,
    /// The expected events.
    pub expected: Vec<String>,
}

/// Returns all vectors of a directory, in the order of the file names.
pub fn read(folder: &Path) -> Vec<Vector> {
    let entries = std::fs::read_dir(folder).expect("the folder of the vectors");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    let mut vectors = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).expect("a file of vectors");
        let file = path.file_stem().unwrap_or_default().to_string_lossy();
        for line in text.lines() {
            read_line(line, &file, &mut vectors);
        }
    }
    vectors
}

fn read_line(line: &str, file: &str, vectors: &mut Vec<Vector>) {
    if line.is_empty() || line.starts_with('#') {
        return;
    }
    if let Some(name) = line.strip_prefix("== ") {
        vectors.push(Vector { name: format!("{file}: {name}"), ..Vector::default() });
        return;
    }
    let vector = vectors.last_mut().expect("a name before anything else");
    if let Some(bytes) = line.strip_prefix("< ") {
        unescape(bytes.as_bytes(), &mut vector.bytes);
    } else if let Some(event) = line.strip_prefix("> ") {
        vector.expected.push(event.to_owned());
    } else if let Some(limits) = line.strip_prefix("limits ") {
        let pairs = limits.split(' ').map(|pair| pair.split_once('=').expect("name=number"));
        vector.limits =
            pairs.map(|(name, number)| (name.to_owned(), number.parse().expect("a number"))).collect();
    } else if let Some(caller) = line.strip_prefix("caller ") {
        vector.caller = caller.to_owned();
    } else if line == "eof" {
        vector.eof = true;
    } else {
        panic!("{}: what is {line:?}?", vector.name);
    }
}

fn unescape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\\', [b'x', high, low, tail @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).expect("two digits");
                out.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
                rest = tail;
            }
            (b'\\', [letter, tail @ ..]) => {
                out.push(match letter {
                    b'r' => b'\r',
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'0' => b'\0',
                    b'\\' | b'{' | b'}' => *letter,
                    _ => panic!("unknown escape in {:?}", String::from_utf8_lossy(text)),
                });
                rest = tail;
            }
            (b'{', _) => {
                let end = after.iter().position(|&byte| byte == b'}').expect("an end of the repetition");
                let inner = std::str::from_utf8(&after[..end]).expect("text");
                let (piece, count) = inner.rsplit_once('*').expect("text*count");
                let mut once = Vec::new();
                unescape(piece.as_bytes(), &mut once);
                out.extend(once.repeat(count.parse().expect("a count")));
                rest = &after[end + 1..];
            }
            _ => out.push(byte),
        }
    }
}
