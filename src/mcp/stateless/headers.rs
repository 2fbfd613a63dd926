//! The header fields that repeat parts of the body, so that proxies can route a request without
//! reading it (MCP 2026-07-28, basic/transports): `MCP-Protocol-Version`, `Mcp-Method`, `Mcp-Name`,
//! and `Mcp-Param-*` for parameters that a tool marks in its schema. A field that differs from the
//! body is refused, since a proxy and the server would act on different requests.
//!
//! `gateway` passes the fields in; the schemas come from `catalog`.

use std::borrow::Cow;

use super::{params::Params, status::Rejection};
use crate::{
    jsonrpc::{Message, Span, decimal, elements, find, members, object, unquote},
    limits,
    mcp::version::{Era, era},
    util::{base64, escape::show},
};

/// The name of the field for the protocol version.
pub const VERSION: &str = "MCP-Protocol-Version";
/// The name of the field for the method.
pub const METHOD: &str = "Mcp-Method";
/// The name of the field for the tool, prompt, resource or task.
pub const NAME: &str = "Mcp-Name";
/// The start of the names of the fields for parameters of a tool.
pub const PARAM: &str = "Mcp-Param-";

/// The keyword in a tool's schema that names the field for a parameter.
const MARK: &str = "x-mcp-header";

/// The keywords whose value has a member for each name, with a schema.
const NAMING: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// A header field of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Header<'h> {
    /// The field is missing.
    Absent,
    /// The field occurs once, with this value.
    One(&'h str),
    /// The field occurs more than once.
    Repeated,
}

impl<'h> Header<'h> {
    /// Reads a field from all values that a request has for its name.
    pub fn read(mut values: impl Iterator<Item = &'h str>) -> Self {
        match (values.next(), values.next()) {
            (None, _) => Self::Absent,
            (Some(value), None) => Self::One(value.trim_matches([' ', '\t'])),
            (Some(_), Some(_)) => Self::Repeated,
        }
    }
}

/// The field `MCP-Protocol-Version`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum VersionHeader<'h> {
    /// The field is missing.
    Absent,
    /// A version of the stateless protocol.
    Modern(&'h str),
    /// A version that starts with `initialize`.
    Legacy(&'h str),
    /// An unknown version.
    Unknown(&'h str),
    /// The field occurs more than once, at least once with a version of the stateless protocol.
    Repeated,
}

impl<'h> VersionHeader<'h> {
    /// Reads the field from all values that a request has for its name. Repeated fields without a
    /// version of the stateless protocol count as the first of them.
    pub fn read(values: impl Iterator<Item = &'h str>) -> Self {
        let mut first = Self::Absent;
        for (position, value) in values.enumerate() {
            let value = value.trim_matches([' ', '\t']);
            let version = match era(value) {
                Some(Era::Modern) => Self::Modern(value),
                Some(Era::Legacy) => Self::Legacy(value),
                None => Self::Unknown(value),
            };
            match (position, first, version) {
                (0, ..) => first = version,
                (_, Self::Modern(_), _) | (_, _, Self::Modern(_)) => return Self::Repeated,
                _ => {}
            }
        }
        first
    }

    /// Whether the request is one of the stateless protocol by this field alone.
    pub fn is_modern(self) -> bool {
        matches!(self, Self::Modern(_))
    }
}

/// The fields of every stateless request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RoutingHeaders<'h> {
    /// [`VERSION`].
    pub version: VersionHeader<'h>,
    /// [`METHOD`].
    pub method: Header<'h>,
    /// [`NAME`].
    pub name: Header<'h>,
}

/// Decodes the value of `Mcp-Name` or `Mcp-Param-*`: `=?base64?…?=` is Base64 of UTF-8, anything
/// else stands for itself. `None`: the value cannot be decoded, or has characters that must be
/// encoded.
pub fn decode(value: &str) -> Option<Cow<'_, str>> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => String::from_utf8(base64::decode(encoded)?).ok().map(Cow::Owned),
        None => value.bytes().all(|byte| matches!(byte, b' '..=b'~')).then_some(Cow::Borrowed(value)),
    }
}

/// Compares the fields with the body, whose `version` is that of the envelope.
///
/// # Errors
/// [`Rejection::HeaderMismatch`] for the first field that is missing, repeated, or different.
pub fn check(
    headers: &RoutingHeaders<'_>,
    message: &Message<'_>,
    version: &str,
    params: &Params,
) -> Result<(), Rejection> {
    let version_header = match headers.version {
        VersionHeader::Absent => Header::Absent,
        VersionHeader::Repeated => Header::Repeated,
        VersionHeader::Modern(value) | VersionHeader::Legacy(value) | VersionHeader::Unknown(value) => {
            Header::One(value)
        }
    };
    compare(VERSION, version_header, version, false)?;
    compare(METHOD, headers.method, message.method(), false)?;
    match named(message, params) {
        Some(name) => compare(NAME, headers.name, &name, true),
        None if headers.name == Header::Repeated => Err(repeated(NAME)),
        None => Ok(()),
    }
}

/// Returns the parameter that `Mcp-Name` repeats. `None` if the method has none, or if it is
/// missing or no string, which the handler of the method refuses.
fn named<'m>(message: &'m Message<'_>, params: &Params) -> Option<Cow<'m, str>> {
    let span = match message.method() {
        "tools/call" | "prompts/get" => &params.name,
        "resources/read" => &params.uri,
        "tasks/get" | "tasks/update" | "tasks/cancel" => &params.task,
        _ => return None,
    };
    unquote(&message.text()[span.clone()?])
}

/// Compares a field with the value in the body. `encoded`: the field may be encoded.
fn compare(field: &str, header: Header<'_>, body: &str, encoded: bool) -> Result<(), Rejection> {
    let value = match header {
        Header::Absent => return Err(missing(field)),
        Header::Repeated => return Err(repeated(field)),
        Header::One(value) if encoded => decode(value).ok_or_else(|| undecodable(field))?,
        Header::One(value) => Cow::Borrowed(value),
    };
    if value == body { Ok(()) } else { Err(different(field, &value, body)) }
}

fn missing(field: &str) -> Rejection {
    Rejection::HeaderMismatch(format!("missing header {}", show(field)))
}

/// Returns the rejection of a request that has a field more than once.
pub fn repeated(field: &str) -> Rejection {
    Rejection::HeaderMismatch(format!("header {} occurs more than once", show(field)))
}

fn undecodable(field: &str) -> Rejection {
    Rejection::HeaderMismatch(format!("header {} cannot be decoded", show(field)))
}

fn different(field: &str, value: &str, body: &str) -> Rejection {
    Rejection::HeaderMismatch(format!(
        "header {} is '{}', and the body has '{}'",
        show(field),
        show(value),
        show(body)
    ))
}

/// The parameters of one tool that a client repeats in `Mcp-Param-*`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HeaderParams(Vec<HeaderParam>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct HeaderParam {
    /// The name of the field.
    field: Box<str>,
    /// The names that lead from the arguments to the parameter.
    path: Vec<Box<str>>,
    kind: ParamKind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ParamKind {
    String,
    Integer,
    Boolean,
}

impl HeaderParams {
    /// Finds the marked parameters in a tool, as its server listed it. Empty if a mark is invalid:
    /// conforming clients do not call such a tool.
    pub fn read(tool: &str) -> Self {
        let mut found = Vec::new();
        // Most tools have no mark.
        if !may_mark(tool) {
            return Self::default();
        }
        let properties = schema(tool).and_then(|schema| member(tool, schema, "properties"));
        let mut path = Vec::new();
        match properties.map(|properties| collect(tool, properties, &mut path, &mut found)) {
            Some(Some(())) => Self(found),
            _ => Self::default(),
        }
    }

    /// Whether no parameter is marked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares the fields of a call with its arguments. `field` returns a field of the request.
    ///
    /// # Errors
    /// [`Rejection::HeaderMismatch`] for the first parameter that differs from its field.
    pub fn check<'h>(
        &self,
        message: &Message<'_>,
        params: &Params,
        field: &dyn Fn(&str) -> Header<'h>,
    ) -> Result<(), Rejection> {
        self.0.iter().try_for_each(|param| param.check(message.text(), params.arguments.clone(), field))
    }
}

impl HeaderParam {
    fn check<'h>(
        &self,
        text: &str,
        arguments: Option<Span>,
        field: &dyn Fn(&str) -> Header<'h>,
    ) -> Result<(), Rejection> {
        let path: Vec<&str> = self.path.iter().map(|name| &**name).collect();
        let argument = match arguments.map(|arguments| find(text, arguments, &path)) {
            Some(Ok(found)) => found.map(|span| &text[span]).filter(|raw| *raw != "null"),
            // Two values of one name: it is unknown which of them the server would read.
            Some(Err(why)) => return Err(Rejection::Malformed(why)),
            None => None,
        };
        let header = field(&self.field);
        let Some(argument) = argument else {
            return match header {
                Header::Absent => Ok(()),
                _ => Err(Rejection::HeaderMismatch(format!(
                    "header {} has no argument in the body",
                    show(&self.field)
                ))),
            };
        };
        match (self.kind, header) {
            (ParamKind::Integer, Header::One(value)) if is_same_integer(argument, value) => Ok(()),
            (ParamKind::String, _) => {
                let argument = unquote(argument).unwrap_or(Cow::Borrowed(argument));
                compare(&self.field, header, &argument, true)
            }
            (ParamKind::Integer | ParamKind::Boolean, _) => compare(&self.field, header, argument, true),
        }
    }
}

/// Whether an argument and the value of a field are the same integer.
fn is_same_integer(argument: &str, value: &str) -> bool {
    let split = |raw: &str| match raw.strip_prefix('-') {
        Some(rest) => (true, decimal(rest)),
        None => (false, decimal(raw)),
    };
    let (argument, value) = match argument.starts_with('"') || value.starts_with('"') {
        true => return false,
        false => (split(argument), split(value)),
    };
    match (argument, value) {
        ((_, Some(0)), (_, Some(0))) => true,
        ((negative, Some(number)), value) => value == (negative, Some(number)),
        _ => false,
    }
}

/// Returns a tool without marks, as it is listed under another name. Without them, clients send no
/// fields for its parameters.
pub fn without_marks(tool: &str) -> Cow<'_, str> {
    let mut marks = Vec::new();
    if let Some(schema) = schema(tool).filter(|_| may_mark(tool)) {
        collect_marks(tool, schema, false, &mut marks);
    }
    if marks.is_empty() {
        return Cow::Borrowed(tool);
    }
    let (mut out, mut from) = (String::with_capacity(tool.len()), 0);
    for mark in marks {
        out.push_str(tool.get(from..mark.start).unwrap_or_default());
        from = mark.end;
    }
    out.push_str(tool.get(from..).unwrap_or_default());
    Cow::Owned(out)
}

/// Whether a tool may have marks: a cheap check.
fn may_mark(tool: &str) -> bool {
    tool.contains(MARK) || tool.contains("\\u")
}

fn schema(tool: &str) -> Option<Span> {
    member(tool, object(tool)?, "inputSchema")
}

fn member(text: &str, object: Span, name: &str) -> Option<Span> {
    find(text, object, &[name]).ok().flatten()
}

/// Adds the marked parameters below the `properties` of a schema. `None`: a mark is invalid.
fn collect(
    text: &str,
    properties: Span,
    path: &mut Vec<Box<str>>,
    found: &mut Vec<HeaderParam>,
) -> Option<()> {
    if path.len() == limits::HEADER_PARAM_DEPTH {
        return Some(());
    }
    for (key, schema) in members(text, properties) {
        path.push(unquote(&text[key])?.into());
        if let Some(mark) = find(text, schema.clone(), &[MARK]).ok()? {
            let name = unquote(&text[mark])?;
            let kind = match &text[member(text, schema.clone(), "type")?] {
                "\"string\"" => ParamKind::String,
                "\"integer\"" => ParamKind::Integer,
                "\"boolean\"" => ParamKind::Boolean,
                _ => return None,
            };
            let field: Box<str> = format!("{PARAM}{name}").into();
            let is_new = !found.iter().any(|other| other.field.eq_ignore_ascii_case(&field));
            if !is_token(&name) || !is_new || found.len() == limits::HEADER_PARAMS {
                return None;
            }
            found.push(HeaderParam { field, path: path.clone(), kind });
        }
        if let Some(inner) = member(text, schema, "properties") {
            collect(text, inner, path, found)?;
        }
        path.pop();
    }
    Some(())
}

/// Whether a text is a token (RFC 9110, section 5.6.2), which may be part of a field's name.
fn is_token(name: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(is_token)
}

/// Adds the marks in a schema or a part of it, each a whole member with one comma, in text order and
/// apart from each other. `names`: the members of this object are properties
/// of any name, not keywords.
fn collect_marks(text: &str, value: Span, names: bool, spans: &mut Vec<Span>) {
    elements(text, value.clone()).for_each(|element| collect_marks(text, element, false, spans));
    let (mut kept, mut end) = (false, value.start);
    let mut all = members(text, value).peekable();
    while let Some((key, inner)) = all.next() {
        let name = unquote(&text[key.clone()]).unwrap_or_default();
        if !names && name == MARK {
            // With the comma before it, or with the one behind it if no member is left before it.
            let start = if kept { end } else { key.start };
            let next = all.peek().filter(|_| !kept).map(|(key, _)| key.start);
            spans.push(start..next.unwrap_or(inner.end));
        } else {
            kept = true;
            // Values that are no schemas are left as they are.
            if names || !matches!(&*name, "const" | "default" | "enum" | "examples") {
                collect_marks(text, inner.clone(), !names && NAMING.contains(&&*name), spans);
            }
        }
        end = inner.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the reason of a mismatch, or nothing.
    fn why(checked: Result<(), Rejection>) -> String {
        match checked {
            Ok(()) => String::new(),
            Err(Rejection::HeaderMismatch(why)) => why,
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn fields_are_read() {
        let read = |values: &[&'static str]| {
            (Header::read(values.iter().copied()), VersionHeader::read(values.iter().copied()))
        };
        for (values, header, version) in [
            (&[][..], Header::Absent, VersionHeader::Absent),
            (&["2026-07-28"], Header::One("2026-07-28"), VersionHeader::Modern("2026-07-28")),
            (&[" 2026-07-28\t"], Header::One("2026-07-28"), VersionHeader::Modern("2026-07-28")),
            (&["2025-03-26"], Header::One("2025-03-26"), VersionHeader::Legacy("2025-03-26")),
            (&["v1"], Header::One("v1"), VersionHeader::Unknown("v1")),
            (&[""], Header::One(""), VersionHeader::Unknown("")),
            (&["2026-07-28", "2026-07-28"], Header::Repeated, VersionHeader::Repeated),
            (&["2025-03-26", "x", "2026-07-28"], Header::Repeated, VersionHeader::Repeated),
            (&["2026-07-28", "x"], Header::Repeated, VersionHeader::Repeated),
            (&["2025-03-26", "x"], Header::Repeated, VersionHeader::Legacy("2025-03-26")),
        ] {
            assert_eq!(read(values), (header, version), "{values:?}");
        }
        assert!(VersionHeader::Modern("x").is_modern() && !VersionHeader::Repeated.is_modern());
    }

    #[test]
    fn values_are_decoded() {
        for (value, expected) in [
            ("plain name", Some("plain name")),
            ("", Some("")),
            ("=?base64?SGVsbG8=?=", Some("Hello")),
            ("=?base64?w6nwn5iA?=", Some("\u{e9}\u{1f600}")),
            ("=?base64?ID0/?=", Some(" =?")),
            ("=?base64?PT9iYXNlNjQ/SGk9Pz0=?=", Some("=?base64?Hi=?=")),
            ("=?base64??=", Some("")),
            // Half a marker, or one in another case, stands for itself.
            ("=?base64?SGVsbG8=", Some("=?base64?SGVsbG8=")),
            ("SGVsbG8=?=", Some("SGVsbG8=?=")),
            ("=?BASE64?SGVsbG8=?=", Some("=?BASE64?SGVsbG8=?=")),
            ("=?base64?=", Some("=?base64?=")),
            ("=?base64?SGVsbG8?=", None),
            ("=?base64?SGVs!!!bG8=?=", None),
            ("=?base64?SGVsbG9=?=", None),
            ("=?base64?/w==?=", None),
            ("\u{e9}", None),
            ("a\tb", None),
        ] {
            assert_eq!(decode(value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn routing_fields_are_compared_with_the_body() {
        use Header::{Absent, One, Repeated};
        const MODERN: VersionHeader = VersionHeader::Modern("2026-07-28");
        let tool = (r#"{"name":"t"}"#, "tools/call");
        let same = One("tools/call");
        let name_is =
            |value: &str, body: &str| format!("header Mcp-Name is '{value}', and the body has '{body}'");
        for ((params, method), version, header, name, expected) in [
            (tool, MODERN, same, One("t"), String::new()),
            (tool, VersionHeader::Absent, same, One("t"), "missing header MCP-Protocol-Version".into()),
            (
                tool,
                VersionHeader::Repeated,
                same,
                One("t"),
                "header MCP-Protocol-Version occurs more than once".into(),
            ),
            (
                tool,
                VersionHeader::Legacy("2025-11-25"),
                same,
                One("t"),
                "header MCP-Protocol-Version is '2025-11-25', and the body has '2026-07-28'".into(),
            ),
            (
                tool,
                VersionHeader::Unknown("v1\n"),
                same,
                One("t"),
                "header MCP-Protocol-Version is 'v1\\n', and the body has '2026-07-28'".into(),
            ),
            (tool, MODERN, Absent, One("t"), "missing header Mcp-Method".into()),
            (tool, MODERN, Repeated, One("t"), "header Mcp-Method occurs more than once".into()),
            (
                tool,
                MODERN,
                One("TOOLS/CALL"),
                One("t"),
                "header Mcp-Method is 'TOOLS/CALL', and the body has 'tools/call'".into(),
            ),
            (tool, MODERN, same, Absent, "missing header Mcp-Name".into()),
            (tool, MODERN, same, Repeated, "header Mcp-Name occurs more than once".into()),
            (tool, MODERN, same, One("T"), name_is("T", "t")),
            (tool, MODERN, same, One("=?base64?dA==?="), String::new()),
            (tool, MODERN, same, One("=?base64?dA?="), "header Mcp-Name cannot be decoded".into()),
            // The handler of the method says what is wrong with the name.
            (("{}", "tools/call"), MODERN, same, Absent, String::new()),
            ((r#"{"name":7}"#, "tools/call"), MODERN, same, One("x"), String::new()),
            (("{}", "tools/call"), MODERN, same, Repeated, "header Mcp-Name occurs more than once".into()),
            (
                (r#"{"name":"p\u00e9"}"#, "prompts/get"),
                MODERN,
                One("prompts/get"),
                One("=?base64?cMOp?="),
                String::new(),
            ),
            (
                (r#"{"uri":"x:1"}"#, "resources/read"),
                MODERN,
                One("resources/read"),
                One("x:1"),
                String::new(),
            ),
            (
                (r#"{"uri":"x:1"}"#, "resources/read"),
                MODERN,
                One("resources/read"),
                One("x:2"),
                name_is("x:2", "x:1"),
            ),
            ((r#"{"taskId":"k"}"#, "tasks/get"), MODERN, One("tasks/get"), One("k"), String::new()),
            (
                (r#"{"taskId":"k"}"#, "tasks/update"),
                MODERN,
                One("tasks/update"),
                Absent,
                "missing header Mcp-Name".into(),
            ),
            ((r#"{"taskId":"k"}"#, "tasks/cancel"), MODERN, One("tasks/cancel"), One(""), name_is("", "k")),
            // Other methods have no name.
            ((r#"{"name":"t"}"#, "tools/list"), MODERN, One("tools/list"), Absent, String::new()),
            ((r#"{"name":"t"}"#, "tools/list"), MODERN, One("tools/list"), One("x"), String::new()),
        ] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
            let message = Message::read(&text).unwrap();
            let headers = RoutingHeaders { version, method: header, name };
            let params = Params::read(&message).unwrap();
            assert_eq!(why(check(&headers, &message, "2026-07-28", &params)), expected, "{text} {headers:?}");
        }
        // The version is compared before it is known whether it is supported.
        let headers = RoutingHeaders { version: MODERN, method: One("m"), name: Absent };
        let message = Message::read(r#"{"jsonrpc":"2.0","id":1,"method":"m"}"#).unwrap();
        assert_ne!(why(check(&headers, &message, "v999.0.0", &Params::default())), "");
        let headers = RoutingHeaders { version: VersionHeader::Unknown("v999.0.0"), ..headers };
        assert_eq!(why(check(&headers, &message, "v999.0.0", &Params::default())), "");
    }

    fn tool(schema: &str) -> String {
        format!(r#"{{"name":"t","inputSchema":{schema}}}"#)
    }

    #[test]
    fn marked_parameters_are_found() {
        let found = |schema: &str| {
            let show =
                |param: &HeaderParam| format!("{} {} {:?}", param.field, param.path.join("."), param.kind);
            HeaderParams::read(&tool(schema)).0.iter().map(show).collect::<Vec<_>>().join(", ")
        };
        for (schema, expected) in [
            (r#"{"type":"object"}"#, ""),
            (r#"{"properties":{"a":{"type":"string","x-mcp-header":"A"}}}"#, "Mcp-Param-A a String"),
            (
                r#"{"properties":{"a":{"type":"integer","x-mcp-header":"A"},"b":{"x-mcp-header":"B-2","type":"boolean"},"c":{"type":"string"}}}"#,
                "Mcp-Param-A a Integer, Mcp-Param-B-2 b Boolean",
            ),
            (
                r#"{"properties":{"o":{"type":"object","properties":{"a":{"type":"string","x-mcp-header":"A"}}}}}"#,
                "Mcp-Param-A o.a String",
            ),
            (r#"{"properties":{"x-mcp-header":{"type":"string"}}}"#, ""),
            (r#"{"properties":{"a":{"type":"string","x\u002dmcp-header":"A"}}}"#, "Mcp-Param-A a String"),
            // Not reached through `properties` alone.
            (r#"{"items":{"properties":{"a":{"type":"string","x-mcp-header":"A"}}}}"#, ""),
            // Invalid marks: no conforming client calls such a tool.
            (r#"{"properties":{"a":{"type":"number","x-mcp-header":"A"}}}"#, ""),
            (r#"{"properties":{"a":{"x-mcp-header":"A"}}}"#, ""),
            (r#"{"properties":{"a":{"type":["string"],"x-mcp-header":"A"}}}"#, ""),
            (r#"{"properties":{"a":{"type":"string","x-mcp-header":7}}}"#, ""),
            (r#"{"properties":{"a":{"type":"string","x-mcp-header":""}}}"#, ""),
            (r#"{"properties":{"a":{"type":"string","x-mcp-header":"a b"}}}"#, ""),
            (
                r#"{"properties":{"a":{"type":"string","x-mcp-header":"A"},"b":{"type":"string","x-mcp-header":"a"}}}"#,
                "",
            ),
            ("7", ""),
        ] {
            assert_eq!(found(schema), expected, "{schema}");
        }
        let many = |count: usize| {
            let one = |n: usize| format!(r#""p{n}":{{"type":"string","x-mcp-header":"H{n}"}}"#);
            tool(&format!(r#"{{"properties":{{{}}}}}"#, (0..count).map(one).collect::<Vec<_>>().join(",")))
        };
        assert_eq!(HeaderParams::read(&many(limits::HEADER_PARAMS)).0.len(), limits::HEADER_PARAMS);
        assert!(HeaderParams::read(&many(limits::HEADER_PARAMS + 1)).is_empty());
    }

    #[test]
    fn parameters_are_compared_with_their_fields() {
        use Header::{Absent, One, Repeated};
        let params = HeaderParams::read(&tool(
            r#"{"properties":{"s":{"type":"string","x-mcp-header":"S"},"o":{"properties":{"n":{"type":"integer","x-mcp-header":"N"}}},"b":{"type":"boolean","x-mcp-header":"B"}}}"#,
        ));
        let checked = |arguments: &str, s: Header<'static>, n: Header<'static>, b: Header<'static>| {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{arguments}}}"#);
            let message = Message::read(&text).unwrap();
            let field = |name: &str| match name {
                "Mcp-Param-S" => s,
                "Mcp-Param-N" => n,
                "Mcp-Param-B" => b,
                other => panic!("{other}"),
            };
            why(params.check(&message, &Params::read(&message).unwrap(), &field))
        };
        let all =
            |s: &str, n: &str, b: &str| format!(r#"{{"arguments":{{"s":{s},"o":{{"n":{n}}},"b":{b}}}}}"#);
        let is = |field: &str, value: &str, body: &str| {
            format!("header Mcp-Param-{field} is '{value}', and the body has '{body}'")
        };
        for (arguments, s, n, b, expected) in [
            (all(r#""Hello""#, "42", "true"), One("Hello"), One("42"), One("true"), String::new()),
            (
                all(r#""Hello""#, "42.0", "false"),
                One("=?base64?SGVsbG8=?="),
                One("42"),
                One("false"),
                String::new(),
            ),
            (
                all(r#""=?base64?SGVsbG8=""#, "-7", "true"),
                One("=?base64?SGVsbG8="),
                One("-7"),
                One("true"),
                String::new(),
            ),
            (all("null", "null", "null"), Absent, Absent, Absent, String::new()),
            ("{}".into(), Absent, Absent, Absent, String::new()),
            (r#"{"arguments":{}}"#.into(), Absent, Absent, Absent, String::new()),
            (r#"{"arguments":{"o":7}}"#.into(), Absent, Absent, Absent, String::new()),
            (all(r#""x""#, "1", "true"), Absent, One("1"), One("true"), "missing header Mcp-Param-S".into()),
            (
                all(r#""x""#, "1", "true"),
                Repeated,
                One("1"),
                One("true"),
                "header Mcp-Param-S occurs more than once".into(),
            ),
            (
                all(r#""x""#, "1", "true"),
                One("=?base64?SGVsbG8?="),
                One("1"),
                One("true"),
                "header Mcp-Param-S cannot be decoded".into(),
            ),
            (all(r#""x""#, "1", "true"), One("X"), One("1"), One("true"), is("S", "X", "x")),
            (all(r#""x""#, "1", "true"), One("x"), One("-1"), One("true"), is("N", "-1", "1")),
            (all(r#""x""#, "1", "true"), One("x"), One("\"1\""), One("true"), is("N", "\"1\"", "1")),
            (all(r#""x""#, "1", "true"), One("x"), One("x"), One("true"), is("N", "x", "1")),
            (all(r#""x""#, "-0", "true"), One("x"), One("0"), One("true"), String::new()),
            (all(r#""x""#, "1", "true"), One("x"), One("1"), One("True"), is("B", "True", "true")),
            (all("7", "1", "true"), One(""), One("1"), One("true"), is("S", "", "7")),
            ("{}".into(), One("x"), Absent, Absent, "header Mcp-Param-S has no argument in the body".into()),
            (
                all("null", "1", "true"),
                Repeated,
                One("1"),
                One("true"),
                "header Mcp-Param-S has no argument in the body".into(),
            ),
            (
                r#"{"arguments":{"s":"a","s":"b"}}"#.into(),
                One("a"),
                Absent,
                Absent,
                "Malformed(Duplicate)".into(),
            ),
        ] {
            assert_eq!(checked(&arguments, s, n, b), expected, "{arguments}");
        }
    }

    #[test]
    fn marks_are_removed() {
        for (schema, expected) in [
            (r#"{"type":"object","x":1}"#, r#"{"type":"object","x":1}"#),
            (
                r#"{"properties":{"a":{"type":"string","x-mcp-header":"A"}}}"#,
                r#"{"properties":{"a":{"type":"string"}}}"#,
            ),
            (
                r#"{"properties":{"a":{ "x-mcp-header" : "A" , "type":"string"}}}"#,
                r#"{"properties":{"a":{ "type":"string"}}}"#,
            ),
            (r#"{"properties":{"a":{"x-mcp-header":"A"}}}"#, r#"{"properties":{"a":{}}}"#),
            (
                r#"{"properties":{"a":{"x-mcp-header":"A","x-mcp-header":"B","x\u002dmcp-header":"C"}}}"#,
                r#"{"properties":{"a":{}}}"#,
            ),
            (r#"{"x-mcp-header":1,"y":2,"x-mcp-header":3,"x-mcp-header":4,"z":5}"#, r#"{"y":2,"z":5}"#),
            (
                r#"{"anyOf":[{"x-mcp-header":"A"},{"items":{"x-mcp-header":"B","type":"string"}}]}"#,
                r#"{"anyOf":[{},{"items":{"type":"string"}}]}"#,
            ),
            // A property of this name, and values, are no marks.
            (
                r#"{"properties":{"x-mcp-header":{"x-mcp-header":"A","default":{"x-mcp-header":1}},"properties":{"enum":[{"x-mcp-header":2}],"x-mcp-header":"B"}}}"#,
                r#"{"properties":{"x-mcp-header":{"default":{"x-mcp-header":1}},"properties":{"enum":[{"x-mcp-header":2}]}}}"#,
            ),
        ] {
            let tool_ = tool(schema);
            let out = without_marks(&tool_);
            assert_eq!(out, tool(expected), "{schema}");
            assert!(object(&out).is_some());
        }
        for unmarked in [r#"{"x-mcp-header":1,"inputSchema":[]}"#, r#"{"inputSchema":{}}"#, "[]"] {
            assert!(matches!(without_marks(unmarked), Cow::Borrowed(tool) if tool == unmarked));
        }
    }
}
