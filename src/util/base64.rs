//! Base64 (RFC 4648): the standard alphabet with padding (section 4), and the URL-safe alphabet
//! without padding (section 5).
//!
//! Decoding is strict: of all texts for the same bytes, only the one that encoding produces is
//! accepted. So an altered text never decodes to the same bytes.

/// The last two characters of an alphabet; the others are the same in both.
type Last = [u8; 2];

const STANDARD: Last = *b"+/";
const URL: Last = *b"-_";

/// Encodes bytes in the standard alphabet, with padding.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = write(bytes, STANDARD);
    while !out.len().is_multiple_of(4) {
        out.push('=');
    }
    out
}

/// Decodes the standard alphabet. `None` for any text that [`encode`] does not produce.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let unpadded = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    read(unpadded, STANDARD)
}

/// Encodes bytes in the URL-safe alphabet, without padding.
pub fn encode_url(bytes: &[u8]) -> String {
    write(bytes, URL)
}

/// Decodes the URL-safe alphabet. `None` for any text that [`encode_url`] does not produce.
pub fn decode_url(text: &str) -> Option<Vec<u8>> {
    read(text, URL)
}

/// Encodes bytes without padding: each group of three as four characters of six bits, and a rest of
/// one or two bytes as two or three characters.
fn write(bytes: &[u8], last: Last) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bits);
        for place in 0..=group.len() {
            let value = (bits >> (18 - 6 * place)) as u8 & 0x3f;
            out.push(char::from(character(value, last)));
        }
    }
    out
}

/// Decodes text without padding.
fn read(text: &str, last: Last) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            let value = group.get(place).map_or(Some(0), |character| value(*character, last))?;
            bits = bits << 6 | u32::from(value);
        }
        let bytes = bits.to_be_bytes();
        let (bytes, unused) = bytes[1..].split_at(group.len() - 1);
        // A single character is less than a byte, and unused bits would make another text for the
        // same bytes.
        if bytes.is_empty() || unused.iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend_from_slice(bytes);
    }
    Some(out)
}

/// Returns the character for six bits.
fn character(value: u8, last: Last) -> u8 {
    match value {
        0..26 => b'A' + value,
        26..52 => b'a' + (value - 26),
        52..62 => b'0' + (value - 52),
        62 => last[0],
        _ => last[1],
    }
}

/// Returns the six bits of a character.
fn value(character: u8, last: Last) -> Option<u8> {
    match character {
        b'A'..=b'Z' => Some(character - b'A'),
        b'a'..=b'z' => Some(character - b'a' + 26),
        b'0'..=b'9' => Some(character - b'0' + 52),
        _ if character == last[0] => Some(62),
        _ if character == last[1] => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("Hello", "SGVsbG8="),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()), "{text}");
            assert_eq!(encode_url(bytes.as_bytes()), text.trim_end_matches('='));
            assert_eq!(decode_url(text.trim_end_matches('=')).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!((encode(b"\xfb\xff\xfe"), encode_url(b"\xfb\xff\xfe")), ("+//+".into(), "-__-".into()));
    }

    #[test]
    fn all_bytes_round_trip() {
        let all: Vec<u8> = (0..=255).collect();
        for end in 0..=all.len() {
            let bytes = &all[..end];
            assert_eq!(decode(&encode(bytes)).as_deref(), Some(bytes));
            assert_eq!(decode_url(&encode_url(bytes)).as_deref(), Some(bytes));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "Z",
            "Zg",
            "Zg=",
            "Zg===",
            "Zm8",
            "Zm8==",
            "Zm9v=",
            "Zm9v====",
            "=",
            "==",
            "====",
            "Z===",
            "Zg==Zg==",
            "Zh==",
            "Zm9=",
            "Zm9v\n",
            " Zg==",
            "Zg= =",
            "SGVs!!!bG8=",
            "-__-",
            "Zm9vé",
        ] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        for text in ["Z", "Zg==", "Zm8=", "Zh", "Zm9", "+//+", "Zm9vZ", "Zg\n", "Zg ", "Zmé"] {
            assert_eq!(decode_url(text), None, "{text:?}");
        }
    }
}
