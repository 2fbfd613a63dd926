//! Responses of servers on their way to a client: what they mention that the gateway must look up,
//! and the text that the client gets.
//!
//! All scans and copies of a response are here, without the lock of the hub. In between, the hub
//! looks up the tasks and links that they find.

use std::{sync::Arc, time::Duration};

use super::{
    instance::ClientCall,
    key::{InstanceKey, Sealing},
};
use crate::{
    jsonrpc::{Message, Span, elements, find, unquote},
    limits::StatelessLimits,
    mcp::{
        Era, compat, resource_links,
        stateless::{Allowed, result::ServerStamp},
    },
    session::InstanceRun,
};

/// Key in `_meta` under which a result names its task (MCP 2025-11-25, tasks).
const RELATED: &str = "io.modelcontextprotocol/related-task";

/// A change in a response: what to replace, and by what.
pub type Edit = (Span, String);

/// The response to a client's call. The call is no longer pending, so only the holder of this value
/// can answer it.
#[derive(Debug)]
pub struct Conclusion<'m> {
    /// The response as the server sent it.
    pub message: &'m Message<'m>,
    /// The call.
    pub call: ClientCall,
    /// Its method.
    pub method: Box<str>,
    /// The process that has answered.
    pub from: InstanceKey,
    /// The name of its server.
    pub server: Arc<str>,
    /// The era of the server's protocol.
    pub era: Era,
    /// Set for a stateless call.
    pub stateless: Option<Box<StatelessContext>>,
    /// What it takes to ask the client of a session, if the answer does that.
    pub round: Option<Box<RoundContext>>,
    /// The protocol versions of the client and of the server, if they make a difference.
    pub versions: Option<(Arc<str>, Arc<str>)>,
    /// Whether the client sees all servers.
    pub sees_all: bool,
    /// Whether the process is shared and declares tasks.
    pub has_tasks: bool,
}

/// What the response to a stateless call needs from the server and the gateway.
#[derive(Debug)]
pub struct StatelessContext {
    /// The server's name and version, for results.
    pub stamp: Arc<ServerStamp>,
    /// Seals the server's `requestState`.
    pub sealing: Sealing,
    /// The process to which the sealed state is bound.
    pub run: InstanceRun,
    /// When the sealed state expires, as time since the start of the gateway.
    pub expires: Duration,
    /// The limits.
    pub limits: StatelessLimits,
}

/// What it takes to ask the client of a session what a modern server wants to know.
#[derive(Debug)]
pub struct RoundContext {
    /// The id of the answered request.
    pub upstream_id: u64,
    /// The client's progress token, raw JSON.
    pub token: Option<Box<str>>,
    /// The timeout of the request.
    pub timeout: Duration,
    /// What the server may ask for.
    pub allowed: Allowed,
    /// The longest state of the server, in bytes.
    pub max_state: usize,
}

impl Conclusion<'_> {
    /// Returns the response for the client, with these edits.
    pub fn response(&self, edits: Vec<Edit>) -> String {
        let versions = self.versions.as_ref().map(|(client, server)| (&**client, &**server));
        response(self.message, self.call.id(), &self.method, edits, versions)
    }
}

/// The tasks that a response mentions and whose owner matters.
#[derive(Debug, Eq, PartialEq)]
pub enum Tasks {
    /// None.
    Unnamed,
    /// The call has created this task.
    Created(String),
    /// The response is about this task.
    About(String),
    /// The response is a list of tasks.
    Listed(TaskList),
}

impl Tasks {
    /// Finds the tasks in the response of a shared server to `method`. `declared`: the server
    /// declares tasks.
    pub fn read(method: &str, declared: bool, answer: &Message<'_>) -> Self {
        let (text, Some(result)) = (answer.text(), answer.result_span()) else { return Self::Unnamed };
        let at = |path: &[&str]| text_at(text, result.clone(), path);
        let named = match method {
            "tools/call" if declared => at(&["task", "taskId"]).map(Self::Created),
            "tasks/get" | "tasks/cancel" => at(&["taskId"]).map(Self::About),
            "tasks/result" => at(&["_meta", RELATED, "taskId"]).map(Self::About),
            "tasks/list" => TaskList::read(text, result).map(Self::Listed),
            _ => None,
        };
        named.unwrap_or(Self::Unnamed)
    }
}

/// The tasks in a response to `tasks/list`.
#[derive(Debug, Eq, PartialEq)]
pub enum TaskList {
    /// The result has several lists, at this position. It is unknown which of them the client would
    /// read.
    Ambiguous(Span),
    /// The position of the list, and that of each task with its id.
    Tasks(Span, Vec<(Span, Option<String>)>),
}

impl TaskList {
    fn read(text: &str, result: Span) -> Option<Self> {
        match find(text, result.clone(), &["tasks"]) {
            Ok(None) => None,
            Err(_) => Some(Self::Ambiguous(result)),
            Ok(Some(list)) => {
                let tasks = elements(text, list.clone());
                let tasks = tasks.map(|task| (task.clone(), text_at(text, task, &["taskId"])));
                Some(Self::Tasks(list, tasks.collect()))
            }
        }
    }

    /// Returns the edits that leave only those tasks in the list for which `is_visible` is true.
    pub fn only(self, text: &str, is_visible: impl Fn(Option<&str>) -> bool) -> Vec<Edit> {
        match self {
            Self::Ambiguous(result) => vec![(result, "{\"tasks\":[]}".into())],
            Self::Tasks(list, tasks) => {
                let visible = tasks.iter().filter(|(_, id)| is_visible(id.as_deref()));
                let visible: Vec<&str> = visible.map(|(task, _)| &text[task.clone()]).collect();
                if visible.len() == tasks.len() {
                    return Vec::new();
                }
                vec![(list, format!("[{}]", visible.join(",")))]
            }
        }
    }
}

/// Returns the string at a path in a value.
fn text_at(text: &str, value: Span, path: &[&str]) -> Option<String> {
    let span = find(text, value, path).ok()??;
    unquote(&text[span]).map(Into::into)
}

/// Returns the URIs in a response that would lead a client of the aggregate to another server than
/// the one that sent them, each with its position.
pub fn links(method: &str, answer: &Message<'_>) -> Vec<resource_links::ResourceLink> {
    let may_link = match method {
        "resources/read" => true,
        "tools/call" | "prompts/get" => resource_links::may_link(answer),
        _ => false,
    };
    match answer.result_span() {
        Some(result) if may_link => resource_links::in_result(method, answer.text(), result),
        _ => Vec::new(),
    }
}

/// Returns the response to `method` for the client: with its own id (raw JSON), these edits, and
/// content that its protocol version knows. `versions`: those of the client and of the server, if
/// they make a difference (see [`compat::concerns`]).
pub fn response(
    answer: &Message<'_>,
    id: &str,
    method: &str,
    mut edits: Vec<Edit>,
    versions: Option<(&str, &str)>,
) -> String {
    if let Some((client, server)) = versions {
        if !edits.is_empty() {
            // Apply these edits first: the texts that `compat` puts in place of unknown content
            // types must contain the edited values.
            let text = spliced(answer, edits.clone());
            if let Ok(edited) = Message::read(&text) {
                return response(&edited, id, method, Vec::new(), versions);
            }
        }
        edits.extend(compat::edits(method, client, server, answer));
    }
    match answer.id_span().filter(|_| !edits.is_empty()) {
        Some(span) => {
            edits.push((span, id.to_owned()));
            spliced(answer, edits)
        }
        None => answer.with_id(id),
    }
}

fn spliced(answer: &Message<'_>, mut edits: Vec<Edit>) -> String {
    edits.sort_unstable_by_key(|(span, _)| span.start);
    let edits: Vec<(Span, &str)> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
    answer.splice(&edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(result: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":7,"result":{result}}}"#)
    }

    #[test]
    fn tasks_are_found_where_their_method_names_them() {
        let created = || Tasks::Created("t".into());
        let about = || Tasks::About("t".into());
        let related = format!(r#"{{"_meta":{{"{RELATED}":{{"taskId":"t"}}}}}}"#);
        for (method, declared, result, expected) in [
            ("tools/call", true, r#"{"task":{"taskId":"t"}}"#, created()),
            ("tools/call", true, r#"{"task":{"taskId":"\u0074"}}"#, created()),
            ("tools/call", false, r#"{"task":{"taskId":"t"}}"#, Tasks::Unnamed),
            ("tools/call", true, r#"{"taskId":"t"}"#, Tasks::Unnamed),
            ("tasks/get", false, r#"{"taskId":"t"}"#, about()),
            ("tasks/get", false, r#"{"taskId":1}"#, Tasks::Unnamed),
            ("tasks/cancel", false, r#"{"taskId":"t"}"#, about()),
            ("tasks/result", false, &related, about()),
            ("tasks/result", false, r#"{"taskId":"t"}"#, Tasks::Unnamed),
            ("tasks/list", false, "{}", Tasks::Unnamed),
            ("prompts/get", true, r#"{"taskId":"t","task":{"taskId":"t"}}"#, Tasks::Unnamed),
        ] {
            let text = answer(result);
            assert_eq!(Tasks::read(method, declared, &Message::read(&text).unwrap()), expected, "{text}");
        }
        let error = r#"{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"taskId"}}"#;
        assert_eq!(Tasks::read("tasks/get", true, &Message::read(error).unwrap()), Tasks::Unnamed);
    }

    #[test]
    fn a_list_keeps_the_visible_tasks() {
        let only = |result: &str, visible: &[Option<&str>]| {
            let text = answer(result);
            let message = Message::read(&text).unwrap();
            let Tasks::Listed(list) = Tasks::read("tasks/list", false, &message) else { panic!("{text}") };
            let edits = list.only(&text, |id| visible.contains(&id));
            response(&message, "7", "tasks/list", edits, None)
        };
        let list = r#"{"tasks":[{"taskId":"a"}, {"taskId":"b"},{"x":1}],"nextCursor":"c"}"#;
        let all = [Some("a"), Some("b"), None];
        assert_eq!(only(list, &all), answer(list));
        assert_eq!(only(list, &all[1..2]), answer(r#"{"tasks":[{"taskId":"b"}],"nextCursor":"c"}"#));
        assert_eq!(only(list, &[]), answer(r#"{"tasks":[],"nextCursor":"c"}"#));
        assert_eq!(only(r#"{"tasks":[{"taskId":"a"}],"tasks":[]}"#, &all), answer(r#"{"tasks":[]}"#));
    }

    #[test]
    fn links_are_looked_for_in_three_methods() {
        let content = r#"[{"type":"resource_link","uri":"u:x","name":"n"}]"#;
        let read = r#"[{"uri":"u:x","text":"t"}]"#;
        for (method, result, count) in [
            ("tools/call", format!(r#"{{"content":{content}}}"#), 1),
            ("tools/call", r#"{"content":[{"type":"text","text":"u:x"}]}"#.into(), 0),
            ("resources/read", format!(r#"{{"contents":{read}}}"#), 1),
            ("completion/complete", format!(r#"{{"content":{content}}}"#), 0),
        ] {
            let text = answer(&result);
            let found = links(method, &Message::read(&text).unwrap());
            assert_eq!(found.len(), count, "{method} {text}");
            assert!(found.iter().all(|(span, uri)| text[span.clone()] == format!("\"{uri}\"")));
        }
    }

    #[test]
    fn a_response_has_the_client_s_id_and_known_content() {
        let link = r#"{"type":"resource_link","uri":"u:x","name":"n"}"#;
        let text = answer(&format!(r#"{{"content":[{link}]}}"#));
        let message = Message::read(&text).unwrap();
        let with_id = |text: &str| text.replace("\"id\":7", "\"id\":\"mine\"");
        let respond = |edit: Option<&Edit>, versions| {
            let edits = edit.into_iter().cloned().collect();
            response(&message, "\"mine\"", "tools/call", edits, versions)
        };
        let at = text.find("\"u:x\"").unwrap();
        let edit = (at..at + 5, "\"s+u:x\"".to_owned());
        let moved = text.replace("u:x", "s+u:x");

        assert_eq!(respond(None, None), with_id(&text));
        assert_eq!(respond(Some(&edit), None), with_id(&moved));
        let same = Some(("2025-06-18", "2025-06-18"));
        assert_eq!(respond(Some(&edit), same), with_id(&moved));
        // The text block in place of the link names the edited URI.
        let older = respond(Some(&edit), Some(("2025-03-26", "2025-06-18")));
        assert!(older.contains("s+u:x") && !older.contains("resource_link\",\"uri"), "{older}");
        assert!(Message::read(&older).is_ok_and(|message| message.id() == Some("\"mine\"")), "{older}");
    }
}
