//! The items that a server lists: tools, prompts, resources, resource templates.
//!
//! An item is stored as the server wrote it; only the value of its key is ever replaced.

use super::exposed_name;
use crate::{
    jsonrpc,
    limits::{self, CatalogLimits},
    util,
};

/// The kind of a list.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ListKind {
    /// `tools/list`.
    Tool,
    /// `prompts/list`.
    Prompt,
    /// `resources/list`.
    Resource,
    /// `resources/templates/list`.
    Template,
}

impl ListKind {
    /// All kinds, in the order in which they are requested from a server.
    pub const ALL: [Self; 4] = [Self::Tool, Self::Prompt, Self::Resource, Self::Template];

    /// Returns the method that lists this kind.
    pub fn method(self) -> &'static str {
        match self {
            Self::Prompt => "prompts/list",
            Self::Resource => "resources/list",
            Self::Template => "resources/templates/list",
            Self::Tool => "tools/list",
        }
    }

    /// Returns the kind that a method lists.
    pub fn of_method(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.method() == method)
    }

    /// Returns the member of the result that holds the items.
    pub fn member(self) -> &'static str {
        match self {
            Self::Prompt => "prompts",
            Self::Resource => "resources",
            Self::Template => "resourceTemplates",
            Self::Tool => "tools",
        }
    }

    /// Returns the server capability that covers this kind.
    pub fn capability(self) -> &'static str {
        match self {
            Self::Prompt => "prompts",
            Self::Resource | Self::Template => "resources",
            Self::Tool => "tools",
        }
    }

    /// Returns the notification that the list changed.
    pub fn changed(self) -> &'static str {
        match self {
            Self::Prompt => "notifications/prompts/list_changed",
            Self::Resource | Self::Template => "notifications/resources/list_changed",
            Self::Tool => "notifications/tools/list_changed",
        }
    }

    /// Returns a kind whose change a notification reports.
    pub fn of_notification(method: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.changed() == method)
    }

    /// Returns the member that identifies an item: its name, URI or URI template.
    pub fn key(self) -> &'static str {
        match self {
            Self::Prompt | Self::Tool => "name",
            Self::Resource => "uri",
            Self::Template => "uriTemplate",
        }
    }

    /// Returns the noun for one item, for the log.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Resource => "resource",
            Self::Template => "resource template",
            Self::Tool => "tool",
        }
    }

    fn is_key(self, key: &str, limits: &CatalogLimits) -> bool {
        let longest = match self {
            Self::Prompt | Self::Tool => limits.tool_name,
            Self::Resource | Self::Template => limits.uri,
        };
        // The key must consist of printable characters, without control or bidirectional formatting
        // characters, so that it cannot be displayed as something else.
        let shown = util::escape::show_up_to(key, key.len()).to_string();
        !key.is_empty() && key.chars().count() <= longest && shown == key
    }
}

/// An item of a server's list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListItem {
    /// The server's own name or URI for the item.
    pub key: String,
    /// The whole item, as raw JSON.
    raw: String,
    /// The span of the key's value in `raw`.
    span: jsonrpc::Span,
}

impl ListItem {
    /// Reads one element of a list. `None` if it does not have exactly one valid key.
    pub fn read(kind: ListKind, raw: &str, limits: &CatalogLimits) -> Option<Self> {
        let span = jsonrpc::find(raw, 0..raw.len(), &[kind.key()]).ok()??;
        let key = jsonrpc::unquote(&raw[span.clone()])?.into_owned();
        // Messages to clients are one line. Line breaks can only occur between tokens (RFC 8259,
        // section 2).
        kind.is_key(&key, limits).then(|| Self { key, raw: raw.replace(['\n', '\r'], " "), span })
    }

    /// Returns the item as raw JSON under another key; everything else stays as the server wrote
    /// it.
    pub fn under(&self, exposed: &str) -> String {
        let (before, after) = (&self.raw[..self.span.start], &self.raw[self.span.end..]);
        format!("{before}{}{after}", jsonrpc::quote(exposed))
    }

    /// Returns the whole item, as raw JSON.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// Returns a short hash of the whole item, for the log.
    pub fn hash(&self) -> u32 {
        exposed_name::short_hash(self.raw.bytes())
    }

    /// Returns the bytes of memory that the item takes: the raw item, its key here and in an index,
    /// and the overhead.
    pub fn memory(&self) -> usize {
        self.raw.len() + 2 * self.key.len() + limits::ITEM_BYTES
    }

    /// Returns the length in bytes of the raw item.
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }
}

/// Replaces the key in the raw JSON of a [`ListItem`].
pub fn rename(kind: ListKind, listed: &str, exposed: &str) -> String {
    match jsonrpc::find(listed, 0..listed.len(), &[kind.key()]) {
        Ok(Some(span)) => {
            format!("{}{}{}", &listed[..span.start], jsonrpc::quote(exposed), &listed[span.end..])
        }
        _ => listed.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: ListKind, raw: &str) -> Option<ListItem> {
        ListItem::read(kind, raw, &CatalogLimits::default())
    }

    #[test]
    fn renaming_an_item_changes_only_its_name() {
        let raw = "{\"x\": 1.0, \"name\" : \"re\\u0061d\", \"inputSchema\":{\"name\":\"y\"}}";
        let tool = read(ListKind::Tool, raw).unwrap();
        assert_eq!(tool.key, "read");
        assert_eq!(tool.under("f_read"), raw.replace("\"re\\u0061d\"", "\"f_read\""));
        let broken = read(ListKind::Tool, &raw.replace(", ", ",\r\n")).unwrap();
        assert_eq!(broken.under("f_read"), tool.under("f_read").replace(", ", ",  "));
        let resource = read(ListKind::Resource, "{\"uri\":\"a://b\",\"name\":\"c\"}").unwrap();
        assert_eq!(resource.under("s+a://b"), "{\"uri\":\"s+a://b\",\"name\":\"c\"}");
    }

    #[test]
    fn unusable_keys() {
        for bad in [
            "{}",
            "[]",
            "{\"name\":1}",
            "{\"name\":\"\"}",
            "{\"name\":\"a\",\"name\":\"b\"}",
            "{\"name\":\"a\\nb\"}",
            "{\"name\":\"a\\u202eb\"}",
        ] {
            assert_eq!(read(ListKind::Tool, bad), None, "{bad}");
        }
        assert_eq!(read(ListKind::Tool, &format!("{{\"name\":\"{}\"}}", "n".repeat(129))), None);
        assert_eq!(read(ListKind::Template, "{\"name\":\"x\",\"uri\":\"y\"}"), None);
    }

    #[test]
    fn methods_and_kinds() {
        for kind in ListKind::ALL {
            assert_eq!(ListKind::of_method(kind.method()), Some(kind));
        }
        assert_eq!(ListKind::of_method("tools/call"), None);
    }
}
