//! A scanner for the JSON grammar (RFC 8259) that neither allocates nor builds values.
//!
//! It finds where values begin and end. Strings are scanned eight bytes at a time, because they
//! hold most bytes of a large result.

use super::{
    error::Malformed,
    strict::{self, MemberNames, NameMatch},
    text::Span,
};
use crate::limits::JSON_DEPTH;

/// Properties of a scanned text, apart from its members.
pub(super) struct Scanned {
    /// There are line breaks between tokens.
    pub line_breaks: bool,
    /// A string has a lone surrogate.
    pub lone_surrogate: bool,
    /// A string has a lowercase ASCII letter written as an escape. Common encoders do not do that.
    pub escaped_letter: bool,
    /// `params._meta` has the version of a stateless request. Only known for a strict scan.
    pub stateless: bool,
}

/// Scans an object that makes up the whole text, and passes the spans of each member's key and
/// value to `member`.
///
/// `strict`: the text comes from a client. Rejects it if two readers could disagree about a value
/// that the gateway reads; see [`strict`].
pub(super) fn envelope(
    text: &str,
    strict: bool,
    member: &mut dyn FnMut(Span, Span) -> Result<(), Malformed>,
) -> Result<Scanned, Malformed> {
    let mut scanner = JsonScanner::new(text.as_bytes(), 0);
    scanner.white();
    // A syntax error is reported in preference to any other defect.
    let sound = match scanner.peek() {
        Some(b'{') => {
            let mut sound = Ok(());
            let names = strict.then_some((text, &strict::ENVELOPE));
            scanner.object(1, names, &mut |key, value| {
                if sound.is_ok() {
                    sound = member(key, value);
                }
            })?;
            sound
        }
        other => {
            scanner.value(0)?;
            Err(if other == Some(b'[') { Malformed::Batch } else { Malformed::NotObject })
        }
    };
    scanner.end()?;
    sound.and(scanner.flaw.map_or(Ok(()), Err))?;
    let JsonScanner { line_breaks, lone_surrogate, escaped_letter, stateless, .. } = scanner;
    Ok(Scanned { line_breaks, lone_surrogate, escaped_letter, stateless })
}

/// Whether the text is a single value.
pub(super) fn value(text: &str) -> bool {
    let mut scanner = JsonScanner::new(text.as_bytes(), 0);
    scanner.value(0).and_then(|()| scanner.end()).is_ok()
}

/// Iterates over the members of an object in validated JSON, as spans of key and value. Empty for
/// other values.
pub fn members(text: &str, span: Span) -> impl Iterator<Item = (Span, Span)> + '_ {
    let mut scanner = JsonScanner::new(text.as_bytes(), span.start);
    let mut more = scanner.eat(b'{');
    std::iter::from_fn(move || {
        scanner.white();
        if !more || scanner.peek() == Some(b'}') {
            return None;
        }
        let pair = scanner.member(1).ok()?;
        scanner.white();
        more = scanner.eat(b',');
        Some(pair)
    })
}

/// Iterates over the elements of an array in validated JSON. Empty for other values.
pub fn elements(text: &str, span: Span) -> impl Iterator<Item = Span> + '_ {
    let mut scanner = JsonScanner::new(text.as_bytes(), span.start);
    let mut more = scanner.eat(b'[');
    std::iter::from_fn(move || {
        scanner.white();
        if !more || scanner.peek() == Some(b']') {
            return None;
        }
        let start = scanner.at;
        scanner.value(1).ok()?;
        let span = start..scanner.at;
        scanner.white();
        more = scanner.eat(b',');
        Some(span)
    })
}

struct JsonScanner<'a> {
    bytes: &'a [u8],
    at: usize,
    line_breaks: bool,
    /// A string had a lone surrogate.
    lone_surrogate: bool,
    /// A string had the character U+0000.
    null_character: bool,
    /// A string had a lowercase ASCII letter written as an escape.
    escaped_letter: bool,
    /// `params._meta` had the version of a stateless request.
    stateless: bool,
    /// The first violation of the rules for a client's message.
    flaw: Option<Malformed>,
}

impl<'a> JsonScanner<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            line_breaks: false,
            lone_surrogate: false,
            null_character: false,
            escaped_letter: false,
            stateless: false,
            flaw: None,
        }
    }

    /// Checks that only whitespace is left.
    fn end(&mut self) -> Result<(), Malformed> {
        self.white();
        if self.at == self.bytes.len() { Ok(()) } else { Err(Malformed::Syntax) }
    }

    /// Scans an object whose members are at nesting level `depth`. `strict`: the text, and the
    /// names to check in the object.
    fn object(
        &mut self,
        depth: u32,
        strict: Option<(&'a str, &'static MemberNames)>,
        member: &mut dyn FnMut(Span, Span),
    ) -> Result<(), Malformed> {
        let mut seen = 0;
        self.expect(b'{')?;
        self.white();
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let (key, value) = match strict {
                Some((text, names)) => self.strict_member(depth, text, names, &mut seen)?,
                None => self.member(depth)?,
            };
            member(key, value);
            self.white();
            if self.eat(b'}') {
                return Ok(());
            }
            self.expect(b',')?;
            self.white();
        }
    }

    fn member(&mut self, depth: u32) -> Result<(Span, Span), Malformed> {
        let start = self.at;
        self.string()?;
        let key = start..self.at;
        self.white();
        self.expect(b':')?;
        self.white();
        let start = self.at;
        self.value(depth)?;
        Ok((key, start..self.at))
    }

    /// Scans a member of an object whose names are checked, and records a defect. `seen`: the names
    /// found so far, one bit each.
    fn strict_member(
        &mut self,
        depth: u32,
        text: &'a str,
        names: &'static MemberNames,
        seen: &mut u32,
    ) -> Result<(Span, Span), Malformed> {
        let is_envelope = depth == 1;
        let earlier = std::mem::take(&mut self.lone_surrogate);
        let start = self.at;
        self.string()?;
        let key = start..self.at;
        if is_envelope && self.lone_surrogate {
            self.note(Malformed::Surrogate);
        }
        let found = names.find(&text[key.start + 1..key.end - 1]);
        self.white();
        self.expect(b':')?;
        self.white();
        let start = self.at;
        let first = self.peek();
        self.null_character = false;
        match found {
            NameMatch::Name(_, inner) if first == Some(b'{') && !inner.is_empty() => {
                self.object(depth + 1, Some((text, inner)), &mut |_, _| {})?;
            }
            _ => self.value(depth)?,
        }
        if first == Some(b'"') {
            if is_envelope && self.lone_surrogate {
                self.note(Malformed::Surrogate);
            }
            if self.null_character && matches!(found, NameMatch::Name(..)) {
                self.note(Malformed::Twin);
            }
        }
        self.lone_surrogate |= earlier;
        self.stateless |= matches!(found, NameMatch::Name(_, inner) if inner.is_version());
        match found {
            NameMatch::Name(position, _) if *seen & 1 << position != 0 => self.note(Malformed::Duplicate),
            NameMatch::Name(position, _) => *seen |= 1 << position,
            NameMatch::Twin => self.note(Malformed::Twin),
            NameMatch::Other => {}
        }
        Ok((key, start..self.at))
    }

    /// Records a defect, if it is the first.
    fn note(&mut self, flaw: Malformed) {
        self.flaw.get_or_insert(flaw);
    }

    /// Scans a value at nesting level `depth`. Iterative, so that deep nesting cannot overflow the
    /// stack: one bit for each open bracket tells an object from an array.
    fn value(&mut self, depth: u32) -> Result<(), Malformed> {
        let mut open = depth;
        let mut objects: u128 = 0;
        loop {
            let object = match self.peek() {
                Some(b'{') => true,
                Some(b'[') => false,
                _ => {
                    self.scalar()?;
                    if self.close(&mut open, depth, &mut objects)? {
                        return Ok(());
                    }
                    continue;
                }
            };
            self.at += 1;
            open += 1;
            if open > JSON_DEPTH {
                return Err(Malformed::Depth);
            }
            objects = objects << 1 | u128::from(object);
            self.white();
            let empty = self.peek() == Some(if object { b'}' } else { b']' });
            if empty {
                if self.close(&mut open, depth, &mut objects)? {
                    return Ok(());
                }
            } else if object {
                self.key()?;
            }
        }
    }

    /// Called after a value: closes the brackets that end here and moves on to the next value.
    /// Returns true when the outermost value is complete.
    fn close(&mut self, open: &mut u32, depth: u32, objects: &mut u128) -> Result<bool, Malformed> {
        while *open > depth {
            self.white();
            let object = *objects & 1 == 1;
            match (self.peek(), object) {
                (Some(b','), _) => {
                    self.at += 1;
                    self.white();
                    if object {
                        self.key()?;
                    }
                    return Ok(false);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    *open -= 1;
                    *objects >>= 1;
                }
                _ => return Err(Malformed::Syntax),
            }
        }
        Ok(true)
    }

    fn key(&mut self) -> Result<(), Malformed> {
        self.string()?;
        self.white();
        self.expect(b':')?;
        self.white();
        Ok(())
    }

    fn scalar(&mut self) -> Result<(), Malformed> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            _ => Err(Malformed::Syntax),
        }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), Malformed> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(Malformed::Syntax)
        }
    }

    fn number(&mut self) -> Result<(), Malformed> {
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Malformed> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(Malformed::Syntax) }
    }

    fn string(&mut self) -> Result<(), Malformed> {
        self.expect(b'"')?;
        loop {
            self.plain();
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                // A raw control character, or the end of the text.
                _ => return Err(Malformed::Syntax),
            }
        }
    }

    /// Skips the bytes of a string up to a quote, a backslash or a control character.
    fn plain(&mut self) {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        // Most strings are short. This returns before the setup that the loop needs.
        if let Some(stops @ 1..) = rest.first_chunk().map(stops) {
            self.at += stops.trailing_zeros() as usize / 8;
            return;
        }
        let (words, last) = rest.as_chunks();
        self.at += match words.iter().position(|word| stops(word) != 0) {
            Some(position) => position * 8 + stops(&words[position]).trailing_zeros() as usize / 8,
            None => words.len() * 8 + last.iter().take_while(|byte| is_plain(**byte)).count(),
        };
    }

    fn escape(&mut self) -> Result<(), Malformed> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let code = self.code_unit(self.at).ok_or(Malformed::Syntax)?;
                self.at += 6;
                match code {
                    0 => self.null_character = true,
                    0x61..=0x7a => self.escaped_letter = true,
                    0xd800..=0xdbff => match self.code_unit(self.at) {
                        Some(0xdc00..=0xdfff) => self.at += 6,
                        _ => self.lone_surrogate = true,
                    },
                    0xdc00..=0xdfff => self.lone_surrogate = true,
                    _ => {}
                }
            }
            _ => return Err(Malformed::Syntax),
        }
        Ok(())
    }

    /// Returns the UTF-16 code unit of the `\u` escape at `at`; `None` if there is no such escape.
    fn code_unit(&self, at: usize) -> Option<u32> {
        let escape = self.bytes.get(at..at + 6)?;
        let digit = |code: u32, byte: &u8| Some(code << 4 | char::from(*byte).to_digit(16)?);
        let (start, digits) = escape.split_at(2);
        if start == b"\\u" { digits.iter().try_fold(0, digit) } else { None }
    }

    fn white(&mut self) {
        while let Some(byte @ (b' ' | b'\t' | b'\n' | b'\r')) = self.peek() {
            self.line_breaks |= matches!(byte, b'\n' | b'\r');
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Malformed> {
        if self.eat(byte) { Ok(()) } else { Err(Malformed::Syntax) }
    }
}

/// Whether a byte may occur unescaped in a string and does not end it.
fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// Sets the high bit of each byte that is not plain. False bits can only follow the first true one
/// in text order, so the first set bit is always right.
fn stops(word: &[u8; 8]) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    let word = u64::from_le_bytes(*word);
    // With bit 1 inverted, the quote (0x22) directly follows the last control character (0x1f).
    let quote_or_control = (word ^ (ONES * 2)).wrapping_sub(ONES * 0x21);
    let backslash = (word ^ (ONES * 0x5c)).wrapping_sub(ONES);
    (quote_or_control | backslash) & !word & HIGHS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the scanner with serde_json on every text of four tokens.
    #[test]
    fn the_scanner_agrees_with_serde_json() {
        let tokens = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u00e9\"",
            "\"\\x\"",
            "1",
            "-0.5e+3",
            "01",
            "1.",
            "true",
            "nul",
            " ",
            "\n",
            "\"\t\"",
            "-",
            "\"",
        ];
        let count = tokens.len();
        for number in 0..count * count * count * count {
            let digits = [number, number / count, number / count / count, number / count / count / count];
            let text: String = digits.iter().map(|digit| tokens[digit % count]).collect();
            for text in [format!("[{text}]"), format!("{{\"k\":{text}}}"), text] {
                let mut scanner = JsonScanner::new(text.as_bytes(), 0);
                scanner.white();
                let ours = scanner.value(0).and_then(|()| scanner.end()).is_ok();
                let theirs = serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok();
                assert_eq!(ours, theirs, "{text:?}");
            }
        }
    }

    #[test]
    fn strings_may_end_at_any_offset() {
        for length in 0..40 {
            for (stop, good) in [("\"", true), ("\u{1f}\"", false), ("\\\"\"", true), ("\u{7f}é\"", true)] {
                let text = format!("\"{}{stop}", "é".repeat(length / 2) + &"x".repeat(length));
                let mut scanner = JsonScanner::new(text.as_bytes(), 0);
                assert_eq!(scanner.string().is_ok() && scanner.at == text.len(), good, "{text:?}");
            }
        }
    }

    #[test]
    fn members_and_elements() {
        let text = r#" {"a" : [1, {"b":2} ,"x"], "c":{} } "#;
        let pairs: Vec<_> = members(text, 1..text.len()).map(|(k, v)| (&text[k], &text[v])).collect();
        assert_eq!(pairs, [("\"a\"", r#"[1, {"b":2} ,"x"]"#), ("\"c\"", "{}")]);
        let array = text.find('[').unwrap();
        let items: Vec<_> = elements(text, array..text.len()).map(|v| &text[v]).collect();
        assert_eq!(items, ["1", r#"{"b":2}"#, "\"x\""]);
        assert_eq!(members("[1]", 0..3).count(), 0);
        assert_eq!(elements("{}", 0..2).count(), 0);
    }
}
