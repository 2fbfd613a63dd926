//! The messages of `subscriptions/listen` (MCP 2026-07-28, subscriptions): its filter, the
//! acknowledgement, the notifications and the end.
//!
//! Every message on a listen has the id of its request, in `_meta`. Clients listen to the gateway,
//! and the gateway listens to each modern server once; [`crate::mcp::listen_filter`] compares the
//! filters.

use super::{
    discover,
    edits::{Edit, edit_members, splice},
    meta,
    params::Params,
    result::ServerStamp,
};
use crate::{
    jsonrpc::{
        self, INVALID_PARAMS, Message, ParamsPlace, RpcError, Span, elements, members, notification, quote,
        unquote,
    },
    limits,
    mcp::{
        listen_filter::{Filter, Kinds},
        listing::ListKind,
    },
};

/// The members of a filter that stand for the changes of one list.
const LISTS: [(&str, ListKind); 3] = [
    ("toolsListChanged", ListKind::Tool),
    ("promptsListChanged", ListKind::Prompt),
    ("resourcesListChanged", ListKind::Resource),
];

/// Reads the filter of a client's request. `max`: how many resources, and how many tasks it may name.
///
/// # Errors
/// The error for the response.
pub fn filter(text: &str, params: &Params, max: usize) -> Result<Filter, RpcError> {
    match &params.notifications {
        Some(span) => read(text, span.clone(), max),
        None => Err(invalid("missing notifications in subscriptions/listen")),
    }
}

/// Returns the part of a filter that a server has accepted, given its acknowledgement. `None` if that
/// is not valid.
pub fn honoured(message: &Message<'_>) -> Option<Filter> {
    let span = message.param(&["notifications"]).ok()??;
    read(message.text(), span, usize::MAX).ok()
}

/// Returns the position of the id that a notification of a server names as its listen.
pub fn subscription(message: &Message<'_>) -> Option<Span> {
    message.param(&["_meta", meta::SUBSCRIPTION]).ok().flatten()
}

fn read(text: &str, span: Span, max: usize) -> Result<Filter, RpcError> {
    if !text[span.clone()].starts_with('{') {
        return Err(invalid("notifications is no object"));
    }
    let mut filter = Filter::default();
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in members(text, span) {
        let Some(name) = unquote(&text[key]) else { continue };
        let list = LISTS.iter().find(|(list, _)| *list == name).map(|(_, kind)| *kind);
        if list.is_none() && !matches!(&*name, "resourceSubscriptions" | "taskIds") {
            continue;
        }
        if seen.iter().any(|other| *other == name) {
            return Err(invalid(&format!("{name} occurs twice")));
        }
        match (&text[value.clone()], list) {
            ("null", _) => {}
            ("true", Some(kind)) => filter.kinds = filter.kinds.union(Kinds::of(kind)),
            ("false", Some(_)) => {}
            (_, Some(_)) => return Err(invalid(&format!("{name} is neither true nor false"))),
            (_, None) => {
                let (set, longest) = match &*name {
                    "taskIds" => (&mut filter.tasks, limits::ID_BYTES),
                    _ => (&mut filter.uris, limits::URI_BYTES),
                };
                for text in texts(text, value, &name, max, longest)? {
                    set.insert(text);
                }
            }
        }
        seen.push(name.into_owned());
    }
    Ok(filter)
}

/// Reads an array of strings.
fn texts(text: &str, list: Span, name: &str, max: usize, longest: usize) -> Result<Vec<String>, RpcError> {
    if !text[list.clone()].starts_with('[') {
        return Err(invalid(&format!("{name} is no array")));
    }
    let mut found = Vec::new();
    for element in elements(text, list) {
        let element =
            unquote(&text[element]).ok_or_else(|| invalid(&format!("{name} has more than strings")))?;
        if element.len() > longest {
            return Err(invalid(&format!("an element of {name} is longer than {longest} bytes")));
        }
        if found.len() == max {
            return Err(invalid(&format!("{name} has more than {max} elements; listen several times")));
        }
        found.push(element.into_owned());
    }
    Ok(found)
}

fn invalid(why: &str) -> RpcError {
    RpcError::new(INVALID_PARAMS, why)
}

/// Returns a filter as JSON.
pub fn raw(filter: &Filter) -> String {
    let lists = LISTS.iter().filter(|(_, kind)| filter.kinds.contains(*kind));
    let mut all: Vec<String> = lists.map(|(name, _)| format!("\"{name}\":true")).collect();
    for (name, set) in [("resourceSubscriptions", &filter.uris), ("taskIds", &filter.tasks)] {
        if !set.is_empty() {
            let elements: Vec<String> = set.iter().map(|text| quote(text)).collect();
            all.push(format!("\"{name}\":[{}]", elements.join(",")));
        }
    }
    format!("{{{}}}", all.join(","))
}

/// Returns the params of the gateway's own request to a server.
pub fn request_params(filter: &Filter) -> String {
    format!("{{\"notifications\":{},\"_meta\":{{{}}}}}", raw(filter), discover::own_members())
}

/// Returns the notification that begins a client's listen. `id`: that of its request, as written.
pub fn acknowledged(id: &str, honoured: &Filter) -> String {
    let params = format!("{{\"notifications\":{},\"_meta\":{{{}}}}}", raw(honoured), member(id));
    notification("notifications/subscriptions/acknowledged", Some(&params))
}

/// Returns the response that ends a client's listen.
pub fn ended(id: &str) -> String {
    let meta = format!("{},{}", member(id), ServerStamp::gateway().member());
    jsonrpc::result(id, &format!("{{\"resultType\":\"complete\",\"_meta\":{{{meta}}}}}"))
}

/// Returns the notification on a client's listen that a list changed.
pub fn changed(kind: ListKind, id: &str) -> String {
    notification(kind.changed(), Some(&format!("{{\"_meta\":{{{}}}}}", member(id))))
}

/// Returns a server's notification for a client's listen, under the client's id. `uri`: the position of
/// the URI, and the client's form of it.
pub fn tagged(message: &Message<'_>, id: &str, uri: Option<(Span, &str)>) -> String {
    let text = message.text();
    let member = member(id);
    let alone = format!("\"_meta\":{{{member}}}");
    let mut edits: Vec<Edit> = uri.map(|(span, uri)| (span, quote(uri))).into_iter().collect();
    match message.params_place() {
        ParamsPlace::Object(object) => match meta_object(text, object.clone()) {
            Some(meta) => edit_members(text, meta, &format!("{member},"), &mut edits, is_subscription),
            None => edit_members(text, object, &format!("{alone},"), &mut edits, |name, _| name == "_meta"),
        },
        ParamsPlace::Null(span) => edits.push((span, format!("{{{alone}}}"))),
        ParamsPlace::Absent { end } => edits.push((end..end, format!(",\"params\":{{{alone}}}"))),
        ParamsPlace::Array(_) => {}
    }
    splice(message, edits)
}

/// Returns a modern server's notification for a session, which has no listen.
pub fn untagged(message: &Message<'_>, uri: Option<(Span, &str)>) -> String {
    let text = message.text();
    let mut edits: Vec<Edit> = uri.map(|(span, uri)| (span, quote(uri))).into_iter().collect();
    if let ParamsPlace::Object(object) = message.params_place()
        && let Some(meta) = meta_object(text, object)
    {
        edit_members(text, meta, "", &mut edits, is_subscription);
    }
    splice(message, edits)
}

/// Returns the last `_meta` of an object, if it is an object.
fn meta_object(text: &str, object: Span) -> Option<Span> {
    let is_meta = |(key, _): &(Span, Span)| unquote(&text[key.clone()]).as_deref() == Some("_meta");
    let (_, meta) = members(text, object).filter(is_meta).last()?;
    text[meta.clone()].starts_with('{').then_some(meta)
}

fn is_subscription(name: &str, _: &Span) -> bool {
    name == meta::SUBSCRIPTION
}

/// Returns the member of `_meta` that names a listen.
fn member(id: &str) -> String {
    format!("\"{}\":{id}", meta::SUBSCRIPTION)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUB: &str = "\"io.modelcontextprotocol/subscriptionId\"";

    fn show(filter: &Filter) -> String {
        raw(filter)
    }

    fn listen(params: &str, max: usize) -> Result<String, String> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{params}}}"#);
        let message = Message::read_strict(&text).unwrap();
        let filter = filter(&text, &Params::read(&message).unwrap(), max);
        filter.map(|filter| show(&filter)).map_err(|error| {
            assert_eq!(error.code, -32602);
            error.message
        })
    }

    #[test]
    fn filters_are_read_and_written() {
        let listen = |notifications: &str| listen(&format!(r#"{{"notifications":{notifications}}}"#), 2);
        for (given, expected) in [
            ("{}", "{}"),
            (r#"{"toolsListChanged":true}"#, r#"{"toolsListChanged":true}"#),
            (
                r#"{"resourcesListChanged":true,"promptsListChanged":true,"toolsListChanged":true}"#,
                r#"{"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":true}"#,
            ),
            (r#"{"toolsListChanged":false,"promptsListChanged":null,"taskIds":null}"#, "{}"),
            (
                r#"{"resourceSubscriptions":["b:\"","a\u003a"],"taskIds":["k"],"other":7}"#,
                r#"{"resourceSubscriptions":["a:","b:\""],"taskIds":["k"]}"#,
            ),
            (r#"{"resourceSubscriptions":[],"taskIds":["k","k"]}"#, r#"{"taskIds":["k"]}"#),
        ] {
            assert_eq!(listen(given).as_deref(), Ok(expected), "{given}");
            assert_eq!(listen(expected).as_deref(), Ok(expected));
        }
        for (given, expected) in [
            ("7", "notifications is no object"),
            (r#"{"toolsListChanged":1}"#, "toolsListChanged is neither true nor false"),
            (r#"{"toolsListChanged":true,"toolsListChanged":false}"#, "toolsListChanged occurs twice"),
            (r#"{"resourceSubscriptions":"a"}"#, "resourceSubscriptions is no array"),
            (r#"{"taskIds":["a",7]}"#, "taskIds has more than strings"),
            (
                r#"{"resourceSubscriptions":["a","b","c"]}"#,
                "resourceSubscriptions has more than 2 elements; listen several times",
            ),
        ] {
            assert_eq!(listen(given), Err(expected.to_owned()), "{given}");
        }
        let long = |bytes: usize| format!(r#"{{"resourceSubscriptions":["{}"]}}"#, "u".repeat(bytes));
        assert!(listen(&long(limits::URI_BYTES)).is_ok() && listen(&long(limits::URI_BYTES + 1)).is_err());
        let long = |bytes: usize| format!(r#"{{"taskIds":["{}"]}}"#, "k".repeat(bytes));
        assert!(listen(&long(limits::ID_BYTES)).is_ok() && listen(&long(limits::ID_BYTES + 1)).is_err());
    }

    #[test]
    fn a_listen_needs_a_filter() {
        let expected = Err("missing notifications in subscriptions/listen".to_owned());
        assert_eq!(listen("{}", 1), expected);
    }

    #[test]
    fn messages_of_a_listen_name_its_request() {
        let mut filter = Filter::of_kinds(Kinds::of(ListKind::Prompt));
        filter.uris.insert("a:b".into());
        for id in ["1", "\"1\""] {
            let text = acknowledged(id, &filter);
            assert_eq!(
                text,
                format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{{"notifications":{{"promptsListChanged":true,"resourceSubscriptions":["a:b"]}},"_meta":{{{SUB}:{id}}}}}}}"#
                )
            );
            let message = Message::read(&text).unwrap();
            assert_eq!(honoured(&message), Some(filter.clone()));
            assert_eq!(subscription(&message).map(|span| &text[span]), Some(id));
            let text = ended(id);
            let message = Message::read(&text).unwrap();
            let (start, server) =
                (format!(r#"{{"resultType":"complete","_meta":{{{SUB}:{id},"#), ServerStamp::gateway());
            assert_eq!(message.id(), Some(id));
            assert_eq!(message.result(), Some(&*format!("{start}{}}}}}", server.member())));
            assert_eq!(
                changed(ListKind::Template, id),
                format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/resources/list_changed","params":{{"_meta":{{{SUB}:{id}}}}}}}"#
                )
            );
        }
        for params in ["{}", "{\"notifications\":7}", "null"] {
            let text = notification("notifications/subscriptions/acknowledged", Some(params));
            let message = Message::read(&text).unwrap();
            assert_eq!((honoured(&message), subscription(&message)), (None, None));
        }
    }

    #[test]
    fn own_listens_have_an_envelope() {
        let text = jsonrpc::request("1", "subscriptions/listen", &request_params(&Filter::default()));
        let message = Message::read_strict(&text).unwrap();
        let params = Params::read(&message).unwrap();
        assert!(message.is_stateless());
        assert_eq!(filter(&text, &params, 0), Ok(Filter::default()));
    }

    #[test]
    fn notifications_get_the_id_of_each_listen() {
        let given = |params: &str| {
            format!(r#"{{"jsonrpc":"2.0","method":"notifications/resources/updated"{params}}}"#)
        };
        let ours = format!("{SUB}:7");
        let theirs = format!("{SUB}:\"x\"");
        for (params, tagged_, untagged_) in [
            (
                format!(r#","params":{{"uri":"a:b","_meta":{{{ours}}}}}"#),
                format!(r#","params":{{"uri":"s+a:b","_meta":{{{theirs}}}}}"#),
                r#","params":{"uri":"s+a:b","_meta":{}}"#.to_owned(),
            ),
            (
                format!(r#","params":{{"_meta":{{"a":1,{ours},"b":2}},"uri":"a:b"}}"#),
                format!(r#","params":{{"_meta":{{{theirs},"a":1,"b":2}},"uri":"s+a:b"}}"#),
                r#","params":{"_meta":{"a":1,"b":2},"uri":"s+a:b"}"#.into(),
            ),
            (
                r#","params":{"uri":"a:b"}"#.into(),
                format!(r#","params":{{"_meta":{{{theirs}}},"uri":"s+a:b"}}"#),
                r#","params":{"uri":"s+a:b"}"#.into(),
            ),
            (
                r#","params":{"_meta":7,"uri":"a:b"}"#.into(),
                format!(r#","params":{{"_meta":{{{theirs}}},"uri":"s+a:b"}}"#),
                r#","params":{"_meta":7,"uri":"s+a:b"}"#.into(),
            ),
            (
                format!(r#","params":{{"uri":"a:b","_meta":{{{ours},{ours}}}}}"#),
                format!(r#","params":{{"uri":"s+a:b","_meta":{{{theirs}}}}}"#),
                r#","params":{"uri":"s+a:b","_meta":{}}"#.into(),
            ),
            (String::new(), format!(r#","params":{{"_meta":{{{theirs}}}}}"#), String::new()),
            (
                r#","params":null"#.into(),
                format!(r#","params":{{"_meta":{{{theirs}}}}}"#),
                r#","params":{}"#.into(),
            ),
            (r#","params":[1]"#.into(), r#","params":[1]"#.into(), r#","params":[1]"#.into()),
        ] {
            let text = given(&params);
            let message = Message::read(&text).unwrap();
            let uri = || message.param(&["uri"]).ok().flatten().map(|span| (span, "s+a:b"));
            assert_eq!(tagged(&message, "\"x\"", uri()), given(&tagged_));
            assert_eq!(untagged(&message, uri()), given(&untagged_));
        }
    }
}
