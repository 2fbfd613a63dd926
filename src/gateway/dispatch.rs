//! What a client's message means at the endpoint that shows all servers, and who answers it.
//!
//! Independent of the transport: answers go to the client's queue.

use std::{sync::Arc, time::Instant};

use super::{
    Gateway,
    client::Client,
    upstream::{Call, Declined},
};
use crate::{
    catalog::Target,
    jsonrpc::{self, Kind, Message, Span, quote, unquote},
    limits, mcp, session, text,
};

/// An error to answer a request with.
type Problem = (i64, String);

impl Gateway {
    /// Takes one message of a client.
    pub fn dispatch(&self, client: &Arc<Client>, message: &Message<'_>) {
        log::debug!("client {}: {:?} {}", client.name(), message.kind(), text::show(message.method()));
        match message.kind() {
            Kind::Request => match self.request(client, message) {
                Ok(Some(result)) => {
                    client.send(jsonrpc::result(message.id().unwrap_or_default(), &result), &self.stats);
                }
                Ok(None) => {}
                Err((code, why)) => {
                    client.send(jsonrpc::error(message.id().unwrap_or_default(), code, &why), &self.stats);
                }
            },
            Kind::Notification => self.notification(client, message),
            // We ask clients nothing, so there is nothing they could answer.
            Kind::Response => self.stats.strays.add(),
        }
    }

    /// Answers a request (`Some`), or passes it on (`None`).
    fn request(&self, client: &Arc<Client>, message: &Message<'_>) -> Result<Option<String>, Problem> {
        if message.id().unwrap_or_default().len() > limits::ID_BYTES {
            return Err((jsonrpc::INVALID_REQUEST, "the request id is too long".into()));
        }
        match message.method() {
            "initialize" => initialize(client, message).map(Some),
            "ping" => Ok(Some("{}".into())),
            "tools/list" => self.list_tools(message).map(Some),
            "tools/call" => self.call_tool(client, message),
            other => Err((jsonrpc::METHOD_NOT_FOUND, format!("method not found: {}", text::show(other)))),
        }
    }

    fn notification(&self, client: &Arc<Client>, message: &Message<'_>) {
        if message.method() != "notifications/cancelled" {
            return;
        }
        let Ok(Some(span)) = message.param(&["requestId"]) else { return };
        let ended = client.calls().end(&message.text()[span.clone()]);
        if let Some((upstream, id)) = ended {
            upstream.cancel(id, Ok((message, span)));
        }
    }

    fn list_tools(&self, message: &Message<'_>) -> Result<String, Problem> {
        let cursor = string_param(message, "cursor")?.map(|(_, cursor)| cursor);
        let page = self.catalog().list(cursor.as_deref());
        page.ok_or_else(|| (jsonrpc::INVALID_PARAMS, "the cursor is not one of ours".into()))
    }

    fn call_tool(&self, client: &Arc<Client>, message: &Message<'_>) -> Result<Option<String>, Problem> {
        let Some((span, name)) = string_param(message, "name")? else {
            return Err((jsonrpc::INVALID_PARAMS, "tools/call without the name of a tool".into()));
        };
        let target = self.catalog().find(&name);
        let (upstream, tool) = match target {
            Some(Target::Server { handle, tool }) => (handle, tool),
            Some(Target::Own) => return Ok(Some(self.list_servers())),
            None => return Err((jsonrpc::INVALID_PARAMS, format!("unknown tool: {}", text::show(&name)))),
        };
        let token = Call::token_of(message).map_err(|why| (why.code(), why.reason().to_owned()))?;
        if token.as_ref().is_some_and(|span| span.len() > limits::ID_BYTES) {
            return Err((jsonrpc::INVALID_PARAMS, "the progress token is too long".into()));
        }
        let call = Call { message, name: Some((span, &tool)), token, patience: self.config.timeout_run_tool };
        self.stats.calls.add();
        upstream
            .call(Instant::now(), client, &call)
            .map(|()| None)
            .map_err(|why| declined(why, upstream.name()))
    }

    /// The result of the gateway's own tool: a text for each server, as the original gives it, and all of them
    /// as structured content.
    fn list_servers(&self) -> String {
        let servers = self.catalog().servers();
        let texts: Vec<String> = servers
            .iter()
            .map(|server| format!("{{\"type\":\"text\",\"text\":{}}}", quote(server)))
            .collect();
        let (texts, servers) = (texts.join(","), servers.join(","));
        format!(
            "{{\"content\":[{texts}],\"structuredContent\":{{\"servers\":[{servers}]}},\"isError\":false}}"
        )
    }
}

fn initialize(client: &Client, message: &Message<'_>) -> Result<String, Problem> {
    let asked = string_param(message, "protocolVersion")?;
    if !client.initialize() {
        return Err((jsonrpc::INVALID_REQUEST, "the session is initialized already".into()));
    }
    let version = mcp::negotiate(asked.as_ref().map_or("", |(_, version)| version));
    Ok(mcp::initialize_result(version))
}

/// A text among the params, and where it stands. An error when it stands there twice, or is no text.
fn string_param(message: &Message<'_>, name: &str) -> Result<Option<(Span, String)>, Problem> {
    let span = message.param(&[name]).map_err(|why| (why.code(), why.reason().to_owned()))?;
    let Some(span) = span else { return Ok(None) };
    match unquote(&message.text()[span.clone()]) {
        Some(value) => Ok(Some((span, value.into_owned()))),
        None => Err((jsonrpc::INVALID_PARAMS, format!("{name} is not a text"))),
    }
}

fn declined(why: Declined, server: &str) -> Problem {
    let invalid = |text: &str| (jsonrpc::INVALID_REQUEST, text.to_owned());
    match why {
        Declined::Client(session::Refused::Busy) => {
            (jsonrpc::BUSY, "too many calls of this session are under way".into())
        }
        Declined::Client(session::Refused::Repeated) => invalid("a call with this id is under way"),
        Declined::Client(session::Refused::Ended) => invalid("the session has ended"),
        Declined::Server => (jsonrpc::BUSY, format!("server '{server}' has too many calls under way")),
        Declined::Link => (jsonrpc::BUSY, format!("the link to server '{server}' does not keep up")),
        Declined::Gone => (jsonrpc::INTERNAL_ERROR, format!("server '{server}' went away")),
    }
}
