//! The member names that the gateway reads in a client's message, and the keys that other JSON readers take for them.
//!
//! Several readers match keys without regard to case: Go's `encoding/json` (Unicode simple case folding), Newtonsoft, cJSON
//! (ASCII; a key ends at U+0000 there), readers that use Java's `equalsIgnoreCase`. Where the gateway would read `taskId` and
//! a server `TaskId`, one client could act on what is another's, so such a message is refused.

use std::str::Chars;

/// The names that matter in one object, each with the names that matter in its value.
pub(super) struct MemberNames(&'static [(&'static str, &'static MemberNames)]);

static NONE: MemberNames = MemberNames(&[]);

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
    ("cursor", &NONE),
    ("level", &NONE),
    ("name", &NONE),
    ("progressToken", &NONE),
    ("protocolVersion", &NONE),
    ("ref", &REFERENCE),
    ("requestId", &NONE),
    ("taskId", &NONE),
    ("uri", &NONE),
]);

static META: MemberNames = MemberNames(&[("progressToken", &NONE)]);

static REFERENCE: MemberNames = MemberNames(&[("name", &NONE), ("type", &NONE), ("uri", &NONE)]);

/// What a key is among the names of an object.
pub(super) enum NameMatch {
    /// The name at this place, whose value has these names.
    Name(u32, &'static MemberNames),
    /// Some reader takes it for a name, others do not.
    Twin,
    /// None of them.
    Other,
}

impl MemberNames {
    /// Looks up a key of a checked text, without its quotes.
    pub(super) fn find(&self, key: &str) -> NameMatch {
        if let Some((place, (_, inner))) = (0..).zip(self.0).find(|(_, (name, _))| *name == key) {
            return NameMatch::Name(place, inner);
        }
        // Without an escape and a letter outside of ASCII, which only make a key longer, the case is all that can differ.
        let is_plain = key.bytes().all(|byte| byte.is_ascii() && byte != b'\\');
        for (place, (name, inner)) in (0..).zip(self.0) {
            match is_plain {
                true if key.eq_ignore_ascii_case(name) => return NameMatch::Twin,
                true => {}
                false => match compare(key, name) {
                    (true, _) => return NameMatch::Name(place, inner),
                    (_, true) => return NameMatch::Twin,
                    _ => {}
                },
            }
        }
        NameMatch::Other
    }

    /// Whether any name matters.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether some reader takes a key, without its quotes, for a member of the envelope that it is not.
pub(super) fn is_twin(key: &str) -> bool {
    matches!(ENVELOPE.find(key), NameMatch::Twin)
}

/// Whether a key is a name, and whether some reader takes it for that. Ends at the first letter that differs.
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
        // Where strings end at U+0000, so does this key.
        Some('\0') => (false, true),
        Some(_) => (false, false),
    }
}

/// The small ASCII letter that some reader takes a character for.
fn fold(found: char) -> char {
    match found {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        // Java compares the upper case and then the lower case of single characters.
        '\u{130}' | '\u{131}' => 'i',
        other => other.to_ascii_lowercase(),
    }
}

/// The characters of a string without its quotes; those that stand in no name may be others.
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
