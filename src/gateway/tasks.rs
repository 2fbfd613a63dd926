//! Tasks (MCP 2025-11-25) at the endpoint of a server that its clients share: whoever had one begun can ask for it, see it in
//! the list and hear of it. What is remembered of that is in `session`; `forward` asks here.
//!
//! Of a task whose beginning the gateway has not seen, the id is what opens it, as it is without a gateway; but where several
//! principals have client tokens it is shown to none of them.

use super::{
    Gateway,
    dispatch::{Problem, string_param},
    session::Session,
    upstream::Upstream,
};
use crate::{
    auth::Principal,
    jsonrpc::{self, Message, Span, elements, find, unquote},
    session::TaskOwner,
};

/// What servers say of an id that they do not know.
pub const NOT_FOUND: &str = "task not found";
/// Where a result names its task (MCP 2025-11-25, tasks).
const RELATED: &str = "io.modelcontextprotocol/related-task";

impl Gateway {
    /// Whether a client may ask for the task that a request names.
    ///
    /// # Errors
    /// What servers say of an id that they do not know.
    pub fn may_ask_for_task(
        &self,
        client: &Session,
        upstream: &Upstream,
        message: &Message<'_>,
    ) -> Result<(), Problem> {
        let Some((_, id)) = string_param(message, &["taskId"])? else { return Ok(()) };
        if self.may_have_task(client.principal(), upstream, &id) {
            Ok(())
        } else {
            Err((jsonrpc::INVALID_PARAMS, NOT_FOUND.into()))
        }
    }

    fn may_have_task(&self, principal: Principal, upstream: &Upstream, id: &str) -> bool {
        let owner = self.tasks().owner(upstream.run(), id);
        match owner {
            TaskOwner::Known(owner) => owner == principal,
            TaskOwner::Unknown => true,
            TaskOwner::Forgotten => !self.authn.tokens().have_several_clients(),
        }
    }

    /// Whether an answer tells a client of a task of another principal: it asked before the gateway knew whose task would
    /// have this id.
    pub fn is_of_foreign_task(
        &self,
        client: &Session,
        upstream: &Upstream,
        method: &str,
        answer: &Message<'_>,
    ) -> bool {
        let path: &[&str] = match method {
            "tasks/get" | "tasks/cancel" => &["taskId"],
            "tasks/result" => &["_meta", RELATED, "taskId"],
            _ => return false,
        };
        let result = answer.result_span().filter(|_| upstream.instance().is_none());
        let id = result.and_then(|result| text_at(answer.text(), result, path));
        id.is_some_and(|id| !self.may_have_task(client.principal(), upstream, &id))
    }

    /// A server has answered a call: with a task, if it was asked for one.
    pub fn note_task(&self, client: &Session, upstream: &Upstream, answer: &Message<'_>) {
        let Some(result) = answer.result_span().filter(|_| upstream.has_tasks()) else { return };
        if let Some(id) = text_at(answer.text(), result, &["task", "taskId"]) {
            self.tasks().begin(upstream.run(), &id, client.principal());
        }
    }

    /// What must be changed in an answer to `tasks/list`: tasks that are not the client's go.
    pub fn only_own_tasks(
        &self,
        client: &Session,
        upstream: &Upstream,
        answer: &Message<'_>,
    ) -> Vec<(Span, String)> {
        let text = answer.text();
        let Some(result) = answer.result_span() else { return Vec::new() };
        let list = match find(text, result.clone(), &["tasks"]) {
            Ok(Some(list)) => list,
            Ok(None) => return Vec::new(),
            // Nobody can tell which of them the client would take.
            Err(_) => return vec![(result, "{\"tasks\":[]}".into())],
        };
        let all: Vec<Span> = elements(text, list.clone()).collect();
        let is_own = |task: &&Span| {
            let id = text_at(text, (*task).clone(), &["taskId"]);
            self.may_see_task(client.principal(), upstream, id.as_deref())
        };
        let own: Vec<&str> = all.iter().filter(is_own).map(|task| &text[task.clone()]).collect();
        if own.len() == all.len() { Vec::new() } else { vec![(list, format!("[{}]", own.join(",")))] }
    }

    /// Whether somebody is shown a task.
    pub fn may_see_task(&self, principal: Principal, upstream: &Upstream, id: Option<&str>) -> bool {
        match id.map(|id| self.tasks().owner(upstream.run(), id)) {
            Some(TaskOwner::Known(owner)) => owner == principal,
            _ => !self.authn.tokens().have_several_clients(),
        }
    }
}

/// The text at a place in a value.
fn text_at(text: &str, value: Span, path: &[&str]) -> Option<String> {
    let span = find(text, value, path).ok()??;
    unquote(&text[span]).map(Into::into)
}
