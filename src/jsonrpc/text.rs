//! Places in JSON text, and JSON strings.

use std::{borrow::Cow, ops::Range};

/// The byte range of a value in its text.
pub type Span = Range<usize>;

/// Returns the content of a JSON string, given its quoted form. `None` when it is not a string or
/// UTF-8 cannot encode it.
pub fn unquote(raw: &str) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(raw).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// Returns a string as a quoted JSON string.
pub fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
