//! The minimal MCP client of the demo.

use std::{io, net::SocketAddr, path::PathBuf};

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, io::BufReader};

use crate::{
    jsonrpc::{self, Message, elements, find, unquote},
    mcp,
    net::{stream::Stream, tls::Connector},
};

/// Address of the gateway, and how to connect to it.
pub struct DemoGateway {
    /// Address of the gateway.
    pub address: SocketAddr,
    /// TLS settings and certificate verification, if the gateway uses TLS.
    pub tls: Option<Connector>,
    /// PEM file with the CA of the gateway's certificate.
    pub authority: Option<PathBuf>,
}

impl DemoGateway {
    /// Appends `s` to `plain` if the gateway uses TLS: `http` or `https`, `ws` or `wss`.
    pub fn scheme(&self, plain: &str) -> String {
        let secure = if self.tls.is_some() { "s" } else { "" };
        format!("{plain}{secure}")
    }

    async fn connect(&self) -> io::Result<Stream> {
        let stream = Stream::connect(self.address).await?;
        let Some(tls) = &self.tls else { return Ok(stream) };
        let secured = tls.connect(stream, &self.address.ip().to_string()).await;
        secured.map_err(|error| broken(&tls.explain(&error, &self.address.to_string())))
    }
}

/// A minimal client of the HTTP+SSE transport (MCP 2024-11-05). Uses HTTP/1.0, so that the event
/// stream is not chunked.
pub struct DemoClient<'a> {
    gateway: &'a DemoGateway,
    events: BufReader<Stream>,
    endpoint: String,
    last_id: u64,
}

impl<'a> DemoClient<'a> {
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

fn tool_names(answer: &str) -> Vec<String> {
    let Ok(Some(list)) = find(answer, 0..answer.len(), &["result", "tools"]) else { return Vec::new() };
    let name = |tool| {
        let span = find(answer, tool, &["name"]).ok()??;
        unquote(&answer[span]).map(|name| name.into_owned())
    };
    elements(answer, list).filter_map(name).collect()
}

/// Returns an error for an unexpected reply.
pub fn broken(why: &str) -> io::Error {
    io::Error::other(why)
}
