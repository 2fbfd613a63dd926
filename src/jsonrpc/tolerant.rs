//! Recovery of malformed server output. Repairs a message where its meaning is clear; otherwise
//! finds the call that it was meant to answer, so that the call fails at once.
//!
//! Used only for text that [`Message::read`] rejects, and for messages with a key that differs from
//! a JSON-RPC name only in case. Such a key is removed, so that every later reader sees the message
//! as it was read here. For client messages only [`answer_id`] is used.

use super::{Malformed, Message, Span, elements, is_same, members, quote, unquote};
use crate::limits::{BATCH_PARTS, ID_BYTES};

/// A part of a server's output.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MessagePart {
    /// A message, repaired if necessary.
    Message(String),
    /// A response that cannot be used.
    Unusable(Unusable),
    /// Not a message: a banner or debug output.
    Noise,
}

/// A response that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unusable {
    /// The raw id of the request that it answers; `None` if it cannot be found.
    pub id: Option<String>,
    /// The reason.
    pub why: &'static str,
}

/// Splits output that is not a valid message into its parts. A batch gives one part for each
/// element, up to [`BATCH_PARTS`].
pub fn parts(bytes: &[u8]) -> Vec<MessagePart> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return vec![unsound(bytes, "not UTF-8")];
    };
    let text = text.trim_matches('\0');
    match Message::read(text) {
        Err(Malformed::Batch) => {
            let start = text.find('[').unwrap_or_default();
            let all = elements(text, start..text.len()).take(BATCH_PARTS);
            all.map(|span| part(&text[span])).collect()
        }
        _ => vec![part(text)],
    }
}

/// Reads one message or one element of a batch.
fn part(text: &str) -> MessagePart {
    match Message::read(text) {
        Ok(message) if message.has_twin() => rest(text, Malformed::Envelope),
        Ok(message) => MessagePart::Message(message.splice(&[])),
        Err(why) => rest(text, why),
    }
}

fn rest(text: &str, why: Malformed) -> MessagePart {
    let why = match why {
        Malformed::Envelope => match mended(text) {
            Ok(part) => return part,
            Err(why) => why,
        },
        Malformed::NotObject | Malformed::Batch => return MessagePart::Noise,
        Malformed::Syntax => "invalid or truncated JSON",
        other => other.reason(),
    };
    unsound(text.as_bytes(), why)
}

/// Repairs a JSON object whose members do not form a valid message. The error states the defect.
fn mended(text: &str) -> Result<MessagePart, &'static str> {
    let object = super::object(text).ok_or("not a JSON object")?;
    let (mut found, mut others) = ([None; 6], 0_usize);
    const NAMES: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
    for (key, value) in members(text, object) {
        let name = unquote(&text[key]);
        match NAMES.iter().zip(&mut found).find(|(known, _)| name.as_deref() == Some(known)) {
            Some((_, position)) => *position = Some(&text[value]),
            None => others += 1,
        }
    }
    let null_result = found[4] == Some("null");
    let [version, id, method, params, result, error] =
        found.map(|value| value.filter(|value| *value != "null"));
    let known = |value: &Option<&str>, first: &[u8]| {
        value.is_none_or(|value| value.bytes().next().is_some_and(|byte| first.contains(&byte)))
    };
    let id = id.filter(|id| known(&Some(*id), b"\"-0123456789"));
    let mut out = String::from("{\"jsonrpc\":\"2.0\"");
    let mut add = |name: &str, value: &str| {
        out.push_str(",\"");
        out.push_str(name);
        out.push_str("\":");
        out.push_str(value);
    };
    id.iter().for_each(|id| add("id", id));
    match (method, result, error) {
        (Some(method), None, None)
            if method.starts_with('"') && known(&params, b"{[") && (version.is_some() || others == 0) =>
        {
            add("method", method);
            params.iter().for_each(|params| add("params", params));
        }
        (None, Some(_), Some(_)) => return Err("both result and error are present"),
        (None, Some(result), None) if id.is_some() => add("result", result),
        (None, None, Some(error)) if error.starts_with('{') && (id.is_some() || version.is_some()) => {
            add("error", error)
        }
        // Some servers send a plain string as the error.
        (None, None, Some(error)) if id.is_some() => {
            let words = unquote(error).map_or_else(|| error.to_owned(), Into::into);
            add("error", &format!("{{\"code\":{},\"message\":{}}}", super::INTERNAL_ERROR, quote(&words)));
        }
        (None, None, None) if id.is_some() && null_result => add("result", "null"),
        (None, None, None) if version.is_some() => return Err("neither result nor error is present"),
        (None, Some(_), None) if version.is_some() => return Err("missing id"),
        _ => return Ok(MessagePart::Noise),
    }
    out.push('}');
    // Removes line breaks, as for any other message.
    let message = Message::read(&out).map(|message| message.splice(&[]));
    message.map(MessagePart::Message).map_err(Malformed::reason)
}

/// Examines the start of a line that could not be parsed. `None` if it does not look like a
/// response.
pub fn unusable(start: &[u8], why: &'static str) -> Option<Unusable> {
    let seen = Glimpse::of(start);
    let is_answer = !seen.method && (seen.answer || (seen.cut && seen.id.is_some()));
    is_answer.then_some(Unusable { id: seen.id, why })
}

/// Returns the id of a client's response that was rejected. `None` if it is not a response or has
/// no single id.
pub fn answer_id(bytes: &[u8]) -> Option<String> {
    let seen = Glimpse::of(bytes);
    seen.id.filter(|_| seen.outcome && !seen.method && !seen.cut)
}

/// Finds the id in the last bytes of a response.
pub fn id_at_end(end: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\"id\"";
    let position = end.windows(KEY.len()).rposition(|window| window == KEY)? + KEY.len();
    let colon = white(end, position);
    let (id, after) =
        scalar(end, white(end, end.get(colon).filter(|byte| **byte == b':').map(|_| colon + 1)?))?;
    // The id belongs to the outermost object only if that object alone is closed after it.
    let rest = end.get(after..)?;
    let closed = rest.iter().filter(|byte| matches!(byte, b'}' | b']')).count();
    let opened = rest.iter().any(|byte| matches!(byte, b'{' | b'['));
    (closed == 1 && !opened && rest.trim_ascii_end().ends_with(b"}")).then_some(id)
}

fn unsound(bytes: &[u8], why: &'static str) -> MessagePart {
    unusable(bytes, why).map_or(MessagePart::Noise, MessagePart::Unusable)
}

/// The members seen in an object that may be malformed at any point.
#[derive(Debug, Default)]
struct Glimpse {
    /// `None` also if several `id` members disagree.
    id: Option<String>,
    has_id: bool,
    method: bool,
    /// It has a `result` or an `error`, which only a response has.
    outcome: bool,
    /// It has one of those or a `jsonrpc`.
    answer: bool,
    /// It ends before the object is closed.
    cut: bool,
}

impl Glimpse {
    fn of(bytes: &[u8]) -> Self {
        let mut seen = Self::default();
        let mut at = white(bytes, 0);
        if bytes.get(at) != Some(&b'{') {
            return seen;
        }
        let mut depth = 0_usize;
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match byte {
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 1 => return seen,
                b'}' | b']' => depth -= 1,
                b'"' => {
                    let Some(end) = string_end(bytes, at) else { break };
                    let colon = white(bytes, end);
                    if depth == 1 && bytes.get(colon) == Some(&b':') {
                        seen.member(bytes, at..end - 1, colon + 1);
                    }
                    at = end;
                }
                _ => {}
            }
        }
        seen.cut = true;
        seen
    }

    fn member(&mut self, bytes: &[u8], key: Span, value: usize) {
        let quoted = bytes.get(key.start - 1..key.end + 1).and_then(|key| std::str::from_utf8(key).ok());
        match quoted.and_then(unquote).as_deref() {
            Some("id") => {
                let id = scalar(bytes, white(bytes, value)).map(|(id, _)| id);
                let same = |one: &String| id.as_ref().is_some_and(|other| is_same(one, other));
                self.id = if self.has_id { self.id.take().filter(same) } else { id };
                self.has_id = true;
            }
            Some("method") => self.method = true,
            Some("result" | "error") => (self.outcome, self.answer) = (true, true),
            Some("jsonrpc") => self.answer = true,
            _ => {}
        }
    }
}

/// Returns the string or number at `start`, and the offset of its end. `None` for other values, and
/// for a value that may continue after the last byte.
fn scalar(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let end = match bytes.get(start)? {
        b'"' => string_end(bytes, start + 1)?,
        b'-' | b'0'..=b'9' => {
            let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
            start + bytes.get(start..)?.iter().position(|byte| !is_part(byte))?
        }
        _ => return None,
    };
    let id = std::str::from_utf8(bytes.get(start..end)?).ok()?;
    (id.len() <= ID_BYTES && super::is_value(id)).then(|| (id.to_owned(), end))
}

/// Returns the offset after the closing quote of a string.
fn string_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the offset of the first byte from `from` on that is not whitespace.
fn white(bytes: &[u8], from: usize) -> usize {
    let rest = bytes.get(from..).unwrap_or_default();
    from + rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Vec<MessagePart> {
        vec![MessagePart::Message(text.into())]
    }

    #[test]
    fn repairable_lines_are_repaired() {
        let sound = r#"{"jsonrpc":"2.0","id":1,"result":{"a":1.0}}"#;
        for odd in [
            r#"{"jsonrpc":"2.0","id":1,"result":{"a":1.0},"error":null}"#,
            r#"{"error":null,"id":1,"result":{"a":1.0}}"#,
            r#"{"jsonrpc":"1.0","id":1,"result":{"a":1.0}}"#,
            r#"{"jsonrpc":2.0,"id":1,"result":{"a":1.0},"method":null}"#,
            "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"a\":1.0}}",
            r#"{"jsonrpc":"2.0","id":1,"result":{"a":1.0},"params":null,"error":null,"x":1}"#,
            r#"[{"jsonrpc":"2.0","id":1,"result":{"a":1.0}}]"#,
        ] {
            assert_eq!(parts(odd.as_bytes()), message(sound), "{odd}");
        }
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"x"}}"#;
        assert_eq!(
            parts(error.replace(",\"error\"", ",\"result\":null,\"error\"").as_bytes()),
            message(error)
        );
        let words = r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no way"}}"#;
        assert_eq!(parts(br#"{"jsonrpc":"2.0","id":1,"error":"no way"}"#), message(words));
        assert_eq!(parts(br#"{"id":1,"result":null}"#), message(r#"{"jsonrpc":"2.0","id":1,"result":null}"#));
        let asks = r#"{"jsonrpc":"2.0","id":"a","method":"ping","params":{}}"#;
        assert_eq!(parts(br#"{"id":"a","method":"ping","params":{}}"#), message(asks));
        let tells = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
        for odd in
            [r#"{"method":"notifications/x"}"#, r#"{"jsonrpc":"2.0","id":null,"method":"notifications/x"}"#]
        {
            assert_eq!(parts(odd.as_bytes()), message(tells), "{odd}");
        }
    }

    #[test]
    fn batches_are_taken_apart() {
        let batch = r#"[{"jsonrpc":"2.0","id":1,"result":{}},7,{"id":2,"result":{},"error":null},{"jsonrpc":"2.0","id":3}]"#;
        let made = |id: u8| MessagePart::Message(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
        let unusable = Unusable { id: Some("3".into()), why: "neither result nor error is present" };
        assert_eq!(
            parts(batch.as_bytes()),
            [made(1), MessagePart::Noise, made(2), MessagePart::Unusable(unusable)]
        );
        assert_eq!(parts(b"[]"), []);
    }

    #[test]
    fn unreadable_answers_name_their_call() {
        let deep = format!(r#"{{"jsonrpc":"2.0","result":{}{},"id":3}}"#, "[".repeat(150), "]".repeat(150));
        for (bytes, id, why) in [
            (&br#"{"jsonrpc":"2.0","id":3,"result":{"a":NaN}}"#[..], Some("3"), "invalid or truncated JSON"),
            (
                br#"{"jsonrpc":"2.0","result":{"a":NaN},"id" : "x" }"#,
                Some("\"x\""),
                "invalid or truncated JSON",
            ),
            (b"{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{\"a\":\"\xe9\"}}", Some("3"), "not UTF-8"),
            (deep.as_bytes(), Some("3"), "nested too deeply"),
            (br#"{"jsonrpc":"2.0","id":3,"result":{"con"#, Some("3"), "truncated JSON"),
            (br#"{"id":3,"resu"#, Some("3"), "truncated JSON"),
            (br#"{"jsonrpc":"2.0","result":{"id":4},"#, None, "truncated JSON"),
            (br#"{"jsonrpc":"2.0","id":3"#, None, "truncated JSON"),
            (br#"{"jsonrpc":"2.0","id":3,"result":1,"error":{}}"#, Some("3"), "both result and error"),
            (br#"{"jsonrpc":"2.0","id":3}"#, Some("3"), "neither result nor error"),
            (br#"{"jsonrpc":"2.0","id":null,"result":{}}"#, None, "missing id"),
            (br#"{"jsonrpc":"2.0","id":3,"result":1,"result":2}"#, Some("3"), "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":3,"id":3.0,"result":1}"#, Some("3"), "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":3,"id":4,"result":1}"#, None, "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":3,"\u0069d":4,"result":1}"#, None, "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":null,"result":1,"id":4}"#, None, "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":3,"id":{},"id":3,"result":1}"#, None, "duplicate member"),
            (br#"{"jsonrpc":"2.0","id":3,"ID":4,"result":NaN}"#, Some("3"), "truncated JSON"),
        ] {
            let shown = String::from_utf8_lossy(bytes);
            let [MessagePart::Unusable(found)] = &parts(bytes)[..] else {
                panic!("{shown}: {:?}", parts(bytes))
            };
            assert_eq!(found.id.as_deref(), id, "{shown}");
            assert!(found.why.contains(why), "{shown}: {}", found.why);
        }
    }

    #[test]
    fn case_variants_of_members_are_removed() {
        let sound = r#"{"jsonrpc":"2.0","id":1,"result":{"ID":[ 3]}}"#;
        for odd in [
            r#"{"jsonrpc":"2.0","ID":2,"id":1,"result":{"ID":[ 3]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"ID":[ 3]},"Id":2}"#,
            "{\"jsonrpc\":\"2.0\",\"id\":1,\n\"i\\u0044\":2,\"result\":{\"ID\":[\n3]}}",
            r#"{"jsonrpc":"2.0","id":1,"result":{"ID":[ 3]},"RESULT":4,"Error":{},"METHOD":"m"}"#,
        ] {
            assert_eq!(parts(odd.as_bytes()), message(sound), "{odd}");
            assert_eq!(parts(format!("[{odd}]").as_bytes()), message(sound), "{odd}");
        }
        let asks = r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1}}"#;
        assert_eq!(parts(asks.replace("\"params", "\"Method\":\"m\",\"params").as_bytes()), message(asks));
    }

    #[test]
    fn ids_of_refused_answers_are_found() {
        let half = "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":\"\\ud800\"}";
        for text in [
            half,
            r#"{"jsonrpc":"2.0","id":3,"ID":4,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":3,"result":NaN}"#,
            r#"{"jsonrpc":"2.0","id":3,"result":1,"result":2}"#,
            r#"{"id":3,"error":{}}"#,
        ] {
            assert_eq!(answer_id(text.as_bytes()).as_deref(), Some("3"), "{text}");
        }
        for text in [
            r#"{"jsonrpc":"2.0","id":3,"id":4,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":3,"method":"m","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":3}"#,
            r#"{"jsonrpc":"2.0","id":3,"result":{"#,
            r#"[{"jsonrpc":"2.0","id":3,"result":{}}]"#,
            r#"{"jsonrpc":"2.0","result":{"id":3}}"#,
        ] {
            assert_eq!(answer_id(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn noise_is_not_taken_for_a_response() {
        for noise in [
            &b"listening on port 3"[..],
            b"{",
            b"}",
            b"{}",
            b"7",
            b"[INFO] id: 3",
            br#"{"level":"info","id":3,"msg":"x"}"#,
            br#"{"level":"info","method":"GET","path":"/"}"#,
            br#"{"error":"boom"}"#,
            br#"{"error":{"code":1}}"#,
            b"{\"id\":3,\"msg\":\"\xe9\"}",
            br#"{"jsonrpc":"2.0","id":3,"method":"x","params":{"a":NaN}}"#,
            br#"  "id": 3,"#,
            b"",
        ] {
            assert_eq!(parts(noise), [MessagePart::Noise], "{}", String::from_utf8_lossy(noise));
        }
    }

    #[test]
    fn ids_are_found_at_the_end() {
        for (end, id) in [
            (&br#"xxx"}]},"id":3}"#[..], Some("3")),
            (b"xxx\"}]}, \"id\" : \"a}\" , \"jsonrpc\":\"2.0\" } \r", Some("\"a}\"")),
            (br#"xxx"}],"id":3}}"#, None),
            (br#"xxx"}],"id":3},"x":{}}"#, None),
            (br#"text \"id\":3}"#, None),
            (br#"xxx"}]},"jsonrpc":"2.0"}"#, None),
            (br#""id":3"#, None),
            (b"", None),
        ] {
            assert_eq!(id_at_end(end).as_deref(), id, "{}", String::from_utf8_lossy(end));
        }
    }
}
