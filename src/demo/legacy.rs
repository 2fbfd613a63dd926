//! The client of the demo for gateways that do not speak MCP 2026-07-28: HTTP+SSE of MCP 2024-11-05.

use std::io;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, io::BufReader};

use super::gateway::{DemoGateway, broken, tool_names};
use crate::{
    jsonrpc::{self, Message},
    mcp,
    net::stream::Stream,
};

/// A minimal client with a session. Uses HTTP/1.0, so that the event stream is not chunked.
pub struct SessionClient<'a> {
    gateway: &'a DemoGateway,
    events: BufReader<Stream>,
    endpoint: String,
    last_id: u64,
}

impl<'a> SessionClient<'a> {
    /// Opens the event stream and initializes the session.
    pub async fn connect(gateway: &'a DemoGateway) -> io::Result<Self> {
        let mut stream = gateway.connect().await?;
        let address = gateway.address;
        stream.write_all(format!("GET /sse HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut client =
            Self { gateway, events: BufReader::new(stream), endpoint: String::new(), last_id: 0 };
        client.endpoint = client.event().await?;
        let params = format!(
            "{{\"protocolVersion\":\"{}\",\"capabilities\":{{}},\"clientInfo\":{{\"name\":\"demo\",\"version\":\"1\"}}}}",
            mcp::LATEST
        );
        client.ask("initialize", &params).await?;
        client.post(&jsonrpc::notification("notifications/initialized", None)).await?;
        Ok(client)
    }

    /// Waits until `tool` is listed, and returns the names of all tools. The server may connect
    /// later; the gateway then sends `notifications/tools/list_changed`.
    pub async fn wait_for_tools(&mut self, tool: &str) -> io::Result<Vec<String>> {
        loop {
            let answer = self.ask("tools/list", "{}").await?;
            let names = tool_names(&answer);
            if names.iter().any(|name| name == tool) {
                return Ok(names);
            }
            while !self.event().await?.contains("notifications/tools/list_changed") {}
        }
    }

    /// Sends a request and returns the whole response message.
    pub async fn ask(&mut self, method: &str, params: &str) -> io::Result<String> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        self.post(&jsonrpc::request(&id, method, params)).await?;
        loop {
            let event = self.event().await?;
            if Message::read(&event).is_ok_and(|message| message.id() == Some(&id)) {
                return Ok(event);
            }
        }
    }

    async fn post(&self, message: &str) -> io::Result<()> {
        let (address, endpoint) = (self.gateway.address, &self.endpoint);
        let mut stream = self.gateway.connect().await?;
        let head = format!(
            "POST {endpoint} HTTP/1.0\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            message.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(message.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if answer.starts_with("HTTP/1.1 202 ") {
            Ok(())
        } else {
            Err(broken("the gateway did not accept a message"))
        }
    }

    /// Returns the data of the next event.
    async fn event(&mut self) -> io::Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.events.read_line(&mut line).await? == 0 {
                return Err(broken("the event stream ended"));
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Ok(data.to_owned());
            }
        }
    }
}
