//! The member names that the gateway reads in a client's message, and the keys that other JSON
//! readers treat as equal to them.
//!
//! Several readers match keys case-insensitively: Go's `encoding/json` (Unicode simple case
//! folding), Newtonsoft, cJSON (ASCII only; a key ends at U+0000), and readers that use Java's
//! `equalsIgnoreCase`. If the gateway read `taskId` and a server read `TaskId`, one client could
//! act on another client's task. Such a message is therefore rejected.

use std::str::Chars;

/// The member names to check in one object, each with the names to check in its value.
pub(super) struct MemberNames(&'static [(&'static str, &'static MemberNames)]);

static NONE: MemberNames = MemberNames(&[]);

/// What is checked in the value of [`VERSION_KEY`]: nothing.
static VERSION: MemberNames = MemberNames(&[]);

/// The members of a message (JSON-RPC 2.0, sections 4 and 5).
pub(super) static ENVELOPE: MemberNames = MemberNames(&[
    ("jsonrpc", &NONE),
    ("id", &NONE),
    ("method", &NONE),
    ("params", &PARAMS),
    ("result", &NONE),
    ("error", &NONE),
]);

static PARAMS: MemberNames = MemberNames(&[
    ("_meta", &META),
    ("arguments", &NONE),
    ("cursor", &NONE),
    ("inputResponses", &NONE),
    ("level", &NONE),
    ("name", &NONE),
    ("notifications", &NONE),
    ("progressToken", &NONE),
    ("protocolVersion", &NONE),
    ("ref", &REFERENCE),
    ("requestId", &NONE),
    ("requestState", &NONE),
    ("taskId", &NONE),
    ("uri", &NONE),
]);

/// The key in `_meta` that every request of MCP 2026-07-28 has.
const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";

static META: MemberNames = MemberNames(&[
    ("progressToken", &NONE),
    (VERSION_KEY, &VERSION),
    ("io.modelcontextprotocol/clientCapabilities", &NONE),
    ("io.modelcontextprotocol/clientInfo", &NONE),
    ("io.modelcontextprotocol/logLevel", &NONE),
    ("io.modelcontextprotocol/subscriptionId", &NONE),
]);

static REFERENCE: MemberNames = MemberNames(&[("name", &NONE), ("type", &NONE), ("uri", &NONE)]);

/// How a key relates to the names of an object.
pub(super) enum NameMatch {
    /// Equal to the name at this index, whose value has these names.
    Name(u32, &'static MemberNames),
    /// Some readers treat it as one of the names, others do not.
    Twin,
    /// Unrelated to any of the names.
    Other,
}

impl MemberNames {
    /// Looks up a key of validated JSON, given without its quotes.
    pub(super) fn find(&self, key: &str) -> NameMatch {
        if let Some((position, (_, inner))) = (0..).zip(self.0).find(|(_, (name, _))| *name == key) {
            return NameMatch::Name(position, inner);
        }
        // Without escapes and non-ASCII letters, which only make a key longer, a key can differ
        // from a name only in case.
        let is_plain = key.bytes().all(|byte| byte.is_ascii() && byte != b'\\');
        for (position, (name, inner)) in (0..).zip(self.0) {
            match is_plain {
                true if key.eq_ignore_ascii_case(name) => return NameMatch::Twin,
                true => {}
                false => match compare(key, name) {
                    (true, _) => return NameMatch::Name(position, inner),
                    (_, true) => return NameMatch::Twin,
                    _ => {}
                },
            }
        }
        NameMatch::Other
    }

    /// Whether these are the names to check in the value of [`VERSION_KEY`].
    pub(super) fn is_version(&self) -> bool {
        std::ptr::eq(self, &raw const VERSION)
    }

    /// Whether there are no names to check.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether some readers mistake a key, given without its quotes, for a member of the envelope.
pub(super) fn is_twin(key: &str) -> bool {
    matches!(ENVELOPE.find(key), NameMatch::Twin)
}

/// Returns whether a key equals a name, and whether some readers treat the two as equal. Stops at
/// the first character that differs.
fn compare(key: &str, name: &str) -> (bool, bool) {
    let (mut key, mut same) = (Unescaped(key.chars()), true);
    for wanted in name.chars() {
        match key.next() {
            Some(found) if found == wanted => {}
            Some(found) if fold(found) == wanted.to_ascii_lowercase() => same = false,
            _ => return (false, false),
        }
    }
    match key.next() {
        None => (same, true),
        // Readers with NUL-terminated strings end the key here.
        Some('\0') => (false, true),
        Some(_) => (false, false),
    }
}

/// Returns the lowercase ASCII letter that some readers treat as equal to a character.
fn fold(found: char) -> char {
    match found {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        // Java compares single characters in upper case and then in lower case.
        '\u{130}' | '\u{131}' => 'i',
        other => other.to_ascii_lowercase(),
    }
}

/// Unescapes a JSON string given without its quotes. Characters that occur in no name may come out
/// as U+FFFD.
struct Unescaped<'a>(Chars<'a>);

impl Iterator for Unescaped<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        let next = self.0.next()?;
        if next != '\\' || self.0.next() != Some('u') {
            return Some(if next == '\\' { char::REPLACEMENT_CHARACTER } else { next });
        }
        let hex = self.0.as_str().get(..4)?;
        self.0.nth(3);
        let code = u32::from_str_radix(hex, 16).ok().and_then(char::from_u32);
        Some(code.unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}
