//! The names under which clients see the tools of all servers.
//!
//! A pure function of server and tool: it does not depend on who else is connected. Model APIs refuse other
//! characters than `[A-Za-z0-9_-]`, and more than 64 of them; so does this.

use crate::jsonrpc;

/// Length of the hash suffix with its separator.
const SUFFIX: usize = 9;

/// `<server>_<name>`, made fit; cut and given a hash when it is longer than `longest`.
pub fn exposed(server: &str, name: &str, longest: usize) -> String {
    let plain = plain(server, name);
    if plain.len() <= longest { plain } else { cut(plain, server, name, longest) }
}

/// The same with the hash in any case: for a name that collides with another.
pub fn exposed_with_hash(server: &str, name: &str, longest: usize) -> String {
    cut(plain(server, name), server, name, longest)
}

fn plain(server: &str, name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    server.chars().chain(['_']).chain(name.chars()).map(fit).collect()
}

fn cut(mut plain: String, server: &str, name: &str, longest: usize) -> String {
    plain.truncate(longest.saturating_sub(SUFFIX));
    format!("{plain}_{:08x}", hash(server, name))
}

/// FNV-1a, folded to 32 bits. Stable for ever: clients remember tool names.
fn hash(server: &str, name: &str) -> u32 {
    let bytes = server.bytes().chain([0]).chain(name.bytes());
    let wide = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (wide >> 32) as u32 ^ wide as u32
}

/// Whether a server may call a tool so: any printable text without control or direction characters,
/// up to `longest` characters.
pub fn is_own_name(name: &str, longest: usize) -> bool {
    let shown = crate::text::show_up_to(name, name.len()).to_string();
    !name.is_empty() && name.chars().count() <= longest && shown == name
}

/// A tool as its server describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tool {
    /// The server's own name for it.
    pub name: String,
    /// The whole description, raw.
    raw: String,
    /// Where the name's value lies in it.
    name_span: jsonrpc::Span,
}

impl Tool {
    /// Reads one element of a `tools/list` result. `None` when it has no single usable name.
    pub fn read(raw: &str, longest: usize) -> Option<Self> {
        let name_span = jsonrpc::find(raw, 0..raw.len(), &["name"]).ok()??;
        let name = jsonrpc::unquote(&raw[name_span.clone()])?.into_owned();
        is_own_name(&name, longest).then(|| Self { name, raw: raw.to_owned(), name_span })
    }

    /// The description under another name; all else as the server wrote it.
    pub fn under(&self, exposed: &str) -> String {
        let (before, after) = (&self.raw[..self.name_span.start], &self.raw[self.name_span.end..]);
        format!("{before}{}{after}", jsonrpc::quote(exposed))
    }

    /// Bytes of the description.
    pub fn bytes(&self) -> usize {
        self.raw.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_where_they_can_be() {
        assert_eq!(exposed("file", "read_file", 64), "file_read_file");
        assert_eq!(exposed("cam.1", "é/x", 64), "cam_1___x");
        assert_eq!(exposed("a", &"b".repeat(62), 64).len(), 64);
    }

    #[test]
    fn long_names_keep_their_difference() {
        let long = "x".repeat(100);
        let (one, two) = (exposed("s", &format!("{long}1"), 64), exposed("s", &format!("{long}2"), 64));
        assert_eq!((one.len(), two.len()), (64, 64));
        assert_ne!(one, two);
        assert_eq!(exposed_with_hash("a", "b", 64), "a_b_".to_owned() + &format!("{:08x}", hash("a", "b")));
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(exposed_with_hash("file", "read", 64), format!("file_read_{:08x}", hash("file", "read")));
        assert_ne!(hash("a", "b_c"), hash("a_b", "c"));
        assert_eq!(hash("", ""), 0x2962_0a93);
    }

    #[test]
    fn tools_are_renamed_and_nothing_else() {
        let raw = "{\"x\": 1.0, \"name\" : \"re\\u0061d\", \"inputSchema\":{\"name\":\"y\"}}";
        let tool = Tool::read(raw, 128).unwrap();
        assert_eq!(tool.name, "read");
        assert_eq!(tool.under("f_read"), raw.replace("\"re\\u0061d\"", "\"f_read\""));
        for bad in [
            "{}",
            "[]",
            "{\"name\":1}",
            "{\"name\":\"\"}",
            "{\"name\":\"a\",\"name\":\"b\"}",
            "{\"name\":\"a\\nb\"}",
            "{\"name\":\"a\\u202eb\"}",
        ] {
            assert_eq!(Tool::read(bad, 128), None, "{bad}");
        }
        assert_eq!(Tool::read(&format!("{{\"name\":\"{}\"}}", "n".repeat(129)), 128), None);
    }
}
