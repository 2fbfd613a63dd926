//! Tasks (MCP 2025-11-25) at the endpoint of a server shared by several clients: only the principal
//! that created a task can query it, see it in lists and receive its notifications. The table of
//! owners is in `session`.
//!
//! A task that the gateway did not see created is available to anyone who knows its id, as without
//! a gateway. A task whose owner may have been forgotten is not, if several principals have client
//! tokens. Neither is shown in lists or notifications to any of several principals.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use super::{Gateway, dispatch::string_param, session::Session, upstream::Upstream};
use crate::{
    auth::Principal,
    hub::error::CallError,
    jsonrpc::{Message, Span, elements, find, unquote},
    session::TaskOwner,
};

/// Key in `_meta` under which a result names its task (MCP 2025-11-25, tasks).
const RELATED: &str = "io.modelcontextprotocol/related-task";

impl Gateway {
    /// Checks whether a client may query the task that a request names.
    ///
    /// # Errors
    /// Returns the error that servers send for an unknown task id.
    pub fn may_ask_for_task(
        &self,
        client: &Session,
        upstream: &Upstream,
        message: &Message<'_>,
    ) -> Result<(), CallError> {
        let Some((_, id)) = string_param(message, &["taskId"])? else { return Ok(()) };
        if self.may_have_task(client.principal(), upstream, &id) {
            Ok(())
        } else {
            Err(CallError::TaskNotFound)
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

    /// Returns whether a response is about a task of another principal: the request may have been
    /// sent before the gateway knew the owner of this id.
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

    /// Records the owner of a task, if the response to a call created one.
    pub fn note_task(&self, client: &Session, upstream: &Upstream, answer: &Message<'_>) {
        let Some(result) = answer.result_span().filter(|_| upstream.has_tasks()) else { return };
        if let Some(id) = text_at(answer.text(), result, &["task", "taskId"]) {
            self.tasks().begin(upstream.run(), &id, client.principal());
        }
    }

    /// Returns the edits that remove other principals' tasks from a response to `tasks/list`.
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
            // Ambiguous: it is unknown which of the lists the client would read.
            Err(_) => return vec![(result, "{\"tasks\":[]}".into())],
        };
        let all: Vec<Span> = elements(text, list.clone()).collect();
        let is_own = |task: &&Span| {
            let id = text_at(text, (*task).clone(), &["taskId"]);
            self.may_see_task(client.principal(), upstream, id.as_deref())
        };
        let visible: Vec<&str> = all.iter().filter(is_own).map(|task| &text[task.clone()]).collect();
        if visible.len() == all.len() { Vec::new() } else { vec![(list, format!("[{}]", visible.join(",")))] }
    }

    /// Returns whether a task is shown to a principal, in lists and notifications.
    pub fn may_see_task(&self, principal: Principal, upstream: &Upstream, id: Option<&str>) -> bool {
        match id.map(|id| self.tasks().owner(upstream.run(), id)) {
            Some(TaskOwner::Known(owner)) => owner == principal,
            _ => !self.authn.tokens().have_several_clients(),
        }
    }
}

/// Returns the string at a path in a value.
fn text_at(text: &str, value: Span, path: &[&str]) -> Option<String> {
    let span = find(text, value, path).ok()??;
    unquote(&text[span]).map(Into::into)
}
