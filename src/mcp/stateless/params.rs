//! The params of a request that the gateway reads, found in one pass over `params` and `_meta`.
//!
//! The other modules use these spans instead of a search of their own for each value, since each
//! search scans the params from the start.

use super::meta;
use crate::jsonrpc::{Malformed, Message, ParamsPlace, Span, members, unquote};

/// The params of a request that the gateway reads, as spans of its text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Params {
    /// The params themselves, if they are an object.
    pub object: Option<Span>,
    /// `_meta`, of any type.
    pub meta: Option<Span>,
    /// `name`: a tool or a prompt.
    pub name: Option<Span>,
    /// `uri`: a resource.
    pub uri: Option<Span>,
    /// `ref`: what a completion is for.
    pub reference: Option<Span>,
    /// `taskId`.
    pub task: Option<Span>,
    /// `cursor` of a list.
    pub cursor: Option<Span>,
    /// `requestState` of a retry.
    pub state: Option<Span>,
    /// `inputResponses` of a retry.
    pub responses: Option<Span>,
    /// `arguments` of a tool or a prompt.
    pub arguments: Option<Span>,
    /// `notifications`, the filter of `subscriptions/listen`.
    pub notifications: Option<Span>,
    /// The reserved keys of `_meta`.
    pub keys: MetaKeys,
}

/// The reserved keys of a request's `_meta`, as spans of its text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MetaKeys {
    /// [`meta::VERSION`].
    pub version: Option<Span>,
    /// [`meta::CAPABILITIES`].
    pub capabilities: Option<Span>,
    /// [`meta::CLIENT`].
    pub info: Option<Span>,
    /// [`meta::LEVEL`].
    pub level: Option<Span>,
    /// [`meta::SUBSCRIPTION`], in a notification of a server.
    pub subscription: Option<Span>,
    /// `progressToken`, if it is a string or a number as MCP requires.
    pub token: Option<Span>,
}

impl Params {
    /// Finds the params of a message. All are `None` if its params are no object.
    ///
    /// # Errors
    /// [`Malformed::Duplicate`] if one of them occurs twice.
    pub fn read(message: &Message<'_>) -> Result<Self, Malformed> {
        let mut params = Self::default();
        let ParamsPlace::Object(object) = message.params_place() else { return Ok(params) };
        let text = message.text();
        for (key, value) in members(text, object.clone()) {
            let place = match unquote(&text[key]).as_deref() {
                Some("_meta") => &mut params.meta,
                Some("name") => &mut params.name,
                Some("uri") => &mut params.uri,
                Some("ref") => &mut params.reference,
                Some("taskId") => &mut params.task,
                Some("cursor") => &mut params.cursor,
                Some("requestState") => &mut params.state,
                Some("inputResponses") => &mut params.responses,
                Some("arguments") => &mut params.arguments,
                Some("notifications") => &mut params.notifications,
                _ => continue,
            };
            put(place, value)?;
        }
        params.object = Some(object);
        if let Some(meta) = params.meta.clone() {
            params.keys = MetaKeys::read(text, meta)?;
        }
        Ok(params)
    }
}

impl MetaKeys {
    fn read(text: &str, meta: Span) -> Result<Self, Malformed> {
        let mut keys = Self::default();
        for (key, value) in members(text, meta) {
            let place = match unquote(&text[key]).as_deref() {
                Some(meta::VERSION) => &mut keys.version,
                Some(meta::CAPABILITIES) => &mut keys.capabilities,
                Some(meta::CLIENT) => &mut keys.info,
                Some(meta::LEVEL) => &mut keys.level,
                Some(meta::SUBSCRIPTION) => &mut keys.subscription,
                Some("progressToken") => &mut keys.token,
                _ => continue,
            };
            put(place, value)?;
        }
        let first = |span: &Span| text.as_bytes().get(span.start).copied();
        keys.token = keys.token.filter(|span| matches!(first(span), Some(b'"' | b'-' | b'0'..=b'9')));
        Ok(keys)
    }
}

fn put(place: &mut Option<Span>, value: Span) -> Result<(), Malformed> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Malformed::Duplicate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(params: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m"{params}}}"#)
    }

    /// Returns everything that was found, as `name=value` in the order of the struct.
    fn found(params: &str) -> String {
        let text = text(params);
        let params = Params::read(&Message::read(&text).unwrap()).unwrap();
        let MetaKeys { version, capabilities, info, level, subscription, token } = params.keys;
        [
            ("object", params.object),
            ("meta", params.meta),
            ("name", params.name),
            ("uri", params.uri),
            ("ref", params.reference),
            ("task", params.task),
            ("cursor", params.cursor),
            ("state", params.state),
            ("responses", params.responses),
            ("arguments", params.arguments),
            ("notifications", params.notifications),
            ("version", version),
            ("capabilities", capabilities),
            ("info", info),
            ("level", level),
            ("subscription", subscription),
            ("token", token),
        ]
        .into_iter()
        .filter_map(|(name, span)| Some(format!("{name}={}", &text[span?])))
        .collect::<Vec<_>>()
        .join(" ")
    }

    #[test]
    fn each_param_is_found_where_it_belongs() {
        let whole = |inner: &str, rest: &str| match rest {
            "" => format!("object={{{inner}}}"),
            rest => format!("object={{{inner}}} {rest}"),
        };
        for (inner, rest) in [
            ("", ""),
            (r#""name":"t""#, r#"name="t""#),
            (r#" "n\u0061me" : "t" "#, r#"name="t""#),
            (r#""name":null,"uri":7"#, "name=null uri=7"),
            (r#""uri":"x:1","ref":{"name":"y"}"#, r#"uri="x:1" ref={"name":"y"}"#),
            (r#""taskId":"k","cursor":"""#, r#"task="k" cursor="""#),
            (r#""requestState":"s","inputResponses":{"a":1}"#, r#"state="s" responses={"a":1}"#),
            (r#""arguments":{"name":"x","uri":"y"}"#, r#"arguments={"name":"x","uri":"y"}"#),
            (r#""notifications":{}"#, "notifications={}"),
            (r#""Name":1,"\ud800":2,"x":{"name":3}"#, ""),
            (r#""_meta":7"#, "meta=7"),
            (r#""_meta":{"progressToken":0}"#, r#"meta={"progressToken":0} token=0"#),
            (r#""_meta":{"progressToken":"a"}"#, r#"meta={"progressToken":"a"} token="a""#),
            (r#""_meta":{"progressToken":true}"#, r#"meta={"progressToken":true}"#),
            (r#""_meta":{"io.modelcontextprotocol/other":1}"#, r#"meta={"io.modelcontextprotocol/other":1}"#),
        ] {
            assert_eq!(found(&format!(",\"params\":{{{inner}}}")), whole(inner, rest));
        }
        for params in ["", ",\"params\":null", ",\"params\":[{\"name\":\"t\"}]"] {
            assert_eq!(found(params), "", "{params}");
        }
    }

    #[test]
    fn reserved_keys_are_found_in_any_order() {
        let keys = [
            ("protocolVersion", "version"),
            ("clientCapabilities", "capabilities"),
            ("clientInfo", "info"),
            ("logLevel", "level"),
            ("subscriptionId", "subscription"),
        ];
        for first in 0..keys.len() {
            let mut members: Vec<String> = (0..keys.len())
                .map(|n| format!("\"{}{}\":{n}", meta::PREFIX, keys[(first + n) % keys.len()].0))
                .collect();
            members.insert(first, "\"traceparent\":\"00-\"".into());
            let meta = format!("{{{}}}", members.join(" , "));
            let expected: Vec<String> = (0..keys.len())
                .map(|n| format!("{}={}", keys[n].1, (n + keys.len() - first) % keys.len()))
                .collect();
            assert_eq!(
                found(&format!(",\"params\":{{\"_meta\":{meta}}}")),
                format!("object={{\"_meta\":{meta}}} meta={meta} {}", expected.join(" "))
            );
        }
    }

    #[test]
    fn a_param_that_occurs_twice_is_refused() {
        let names = [
            "_meta",
            "name",
            "uri",
            "ref",
            "taskId",
            "cursor",
            "requestState",
            "inputResponses",
            "arguments",
            "notifications",
        ];
        let mut twice: Vec<String> =
            names.iter().map(|name| format!(r#"{{"{name}":1,"x":2,"{name}":3}}"#)).collect();
        for key in [meta::VERSION, meta::CAPABILITIES, meta::CLIENT, meta::LEVEL, meta::SUBSCRIPTION] {
            twice.push(format!(r#"{{"_meta":{{"{key}":1,"{}":1}}}}"#, key.replace('/', "\\u002f")));
        }
        twice.push(r#"{"_meta":{"progressToken":true,"progressToken":1}}"#.into());
        for params in twice {
            let text = text(&format!(",\"params\":{params}"));
            assert_eq!(Params::read(&Message::read(&text).unwrap()), Err(Malformed::Duplicate), "{text}");
            assert_eq!(Message::read_strict(&text).err(), Some(Malformed::Duplicate), "{text}");
        }
    }
}
