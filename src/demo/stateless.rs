//! The client of the demo for MCP 2026-07-28: one POST for each request, and one for the changes of
//! the list of tools.

use std::io;

use futures_lite::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, io::BufReader};
use smol::Timer;

use super::gateway::{DemoGateway, broken, tool_names};
use crate::{
    jsonrpc::{self, Message},
    limits,
    mcp::{
        stateless::{discover::DiscoverResult, meta},
        version::V2026_07_28,
    },
    net::stream::Stream,
};

/// A minimal client without a session. Uses HTTP/1.0, so that no body is chunked.
pub struct StatelessClient<'a> {
    gateway: &'a DemoGateway,
    /// The response to `subscriptions/listen`, as long as it brings changes.
    changes: Option<BufReader<Stream>>,
    last_id: u64,
}

impl<'a> StatelessClient<'a> {
    /// Asks the gateway whether it speaks this version. Returns `None` if it does not.
    pub async fn connect(gateway: &'a DemoGateway) -> io::Result<Option<Self>> {
        let mut client = Self { gateway, changes: None, last_id: 0 };
        let answer = client.answer("server/discover", None, "").await?;
        let message = answer.as_deref().and_then(|answer| Message::read(answer).ok());
        let result = message.as_ref().and_then(Message::result);
        Ok(result.and_then(DiscoverResult::read).is_some().then_some(client))
    }

    /// Waits until `tool` is listed, and returns the names of all tools.
    pub async fn wait_for_tools(&mut self, tool: &str) -> io::Result<Vec<String>> {
        let filter = "\"notifications\":{\"toolsListChanged\":true}";
        self.last_id += 1;
        self.changes = Some(self.post("subscriptions/listen", None, filter).await?);
        // A server that connects after this is announced.
        self.next_change("notifications/subscriptions/acknowledged").await?;
        loop {
            let answer = self.ask("tools/list", None, "").await?;
            let names = tool_names(&answer);
            if names.iter().any(|name| name == tool) {
                return Ok(names);
            }
            if !self.next_change("notifications/tools/list_changed").await? {
                Timer::after(limits::DEMO_POLL).await;
            }
        }
    }

    /// Waits for a notification of a change. Returns false if none will come, because the gateway
    /// refused the request for them or ended the stream.
    async fn next_change(&mut self, method: &str) -> io::Result<bool> {
        let mut line = String::new();
        while let Some(changes) = &mut self.changes {
            line.clear();
            if changes.read_line(&mut line).await? == 0 {
                self.changes = None;
            }
            let data = line.strip_prefix("data: ").map(Message::read);
            if matches!(data, Some(Ok(message)) if message.method() == method) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a request and returns the whole response message. `name`: the tool that it is for.
    /// `params`: members of the params, as JSON.
    pub async fn ask(&mut self, method: &str, name: Option<&str>, params: &str) -> io::Result<String> {
        let answer = self.answer(method, name, params).await?;
        answer.ok_or_else(|| broken("the gateway did not answer a request"))
    }

    /// The same; `None` if the HTTP response has no message that answers the request.
    async fn answer(&mut self, method: &str, name: Option<&str>, params: &str) -> io::Result<Option<String>> {
        self.last_id += 1;
        let id = self.last_id.to_string();
        let mut answer = String::new();
        self.post(method, name, params).await?.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        // The gateway chooses between one message and a stream of events.
        let texts = body.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
        let is_answer =
            |text: &&str| Message::read(text).is_ok_and(|message| message.id() == Some(id.as_str()));
        Ok(texts.into_iter().find(is_answer).map(str::to_owned))
    }

    async fn post(&self, method: &str, name: Option<&str>, params: &str) -> io::Result<BufReader<Stream>> {
        let comma = if params.is_empty() { "" } else { "," };
        let envelope = format!(
            "\"{}\":\"{V2026_07_28}\",\"{}\":{{}},\"{}\":{{\"name\":\"demo\",\"version\":\"1\"}}",
            meta::VERSION,
            meta::CAPABILITIES,
            meta::CLIENT
        );
        let params = format!("{{{params}{comma}\"_meta\":{{{envelope}}}}}");
        let message = jsonrpc::request(&self.last_id.to_string(), method, &params);
        let name = name.map(|name| format!("Mcp-Name: {name}\r\n")).unwrap_or_default();
        let head = format!(
            "POST /mcp HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {V2026_07_28}\r\n\
             Mcp-Method: {method}\r\n{name}\r\n",
            self.gateway.address,
            message.len()
        );
        let mut stream = self.gateway.connect().await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(message.as_bytes()).await?;
        Ok(BufReader::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::{TcpListener, TcpStream},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use super::*;
    use crate::{demo::client::DemoClient, runtime::reactor};

    /// Reads a request, and returns its head, its id and its method.
    fn request(stream: &TcpStream) -> (String, String, String) {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        let length = head.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let message = Message::read(&body).unwrap();
        assert!(body.contains(meta::VERSION), "{body}");
        (head, message.id().unwrap().to_owned(), message.method().to_owned())
    }

    /// A gateway that answers each method as `answer` says: content type and body.
    fn gateway(answer: impl Fn(&str, &str) -> (&'static str, String) + Send + 'static) -> DemoGateway {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let (head, id, method) = request(&stream);
                for field in ["MCP-Protocol-Version: 2026-07-28\r\n", &format!("Mcp-Method: {method}\r\n")] {
                    assert!(head.contains(field), "{head}");
                }
                assert_eq!(head.contains("Mcp-Name: t\r\n"), method == "tools/call", "{head}");
                let (kind, body) = answer(&method, &id);
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n{body}").unwrap();
            }
        });
        DemoGateway { address, tls: None, authority: None }
    }

    const JSON: &str = "application/json";
    const EVENTS: &str = "text/event-stream";

    #[test]
    fn a_tool_that_is_listed_later_is_called() {
        let lists = AtomicUsize::new(0);
        let gateway = gateway(move |method, id| match method {
            "server/discover" => {
                let result = r#"{"resultType":"complete","supportedVersions":["2026-07-28"]}"#;
                (JSON, jsonrpc::result(id, result))
            }
            "subscriptions/listen" => {
                let note = |name: &str| {
                    format!("data: {}\n\n", jsonrpc::notification(&format!("notifications/{name}"), None))
                };
                let changed = note("tools/list_changed");
                (EVENTS, format!(": x\n\n{}{changed}", note("subscriptions/acknowledged")))
            }
            "tools/list" if lists.fetch_add(1, Ordering::Relaxed) == 0 => {
                (JSON, jsonrpc::result(id, "{\"tools\":[]}"))
            }
            "tools/list" => (JSON, jsonrpc::result(id, "{\"tools\":[{\"name\":\"t\"}]}")),
            _ => {
                let progress = jsonrpc::notification("notifications/progress", None);
                let result = jsonrpc::result(id, "{\"content\":[]}");
                (EVENTS, format!("data: {progress}\n\ndata: {result}\n\n"))
            }
        });
        reactor::block_on(async {
            let mut client = DemoClient::connect(&gateway).await.unwrap();
            assert!(matches!(client, DemoClient::Stateless(_)));
            assert_eq!(client.version(), "2026-07-28");
            assert_eq!(client.wait_for_tools("t").await.unwrap(), ["t"]);
            assert_eq!(client.call("t").await.unwrap(), jsonrpc::result("5", "{\"content\":[]}"));
        })
        .unwrap();
    }

    #[test]
    fn tools_are_found_without_announcements() {
        let lists = AtomicUsize::new(0);
        let gateway = gateway(move |method, id| match method {
            "server/discover" => {
                let result = r#"{"resultType":"complete","supportedVersions":["2026-07-28"]}"#;
                (JSON, jsonrpc::result(id, result))
            }
            "tools/list" if lists.fetch_add(1, Ordering::Relaxed) < 2 => {
                (JSON, jsonrpc::result(id, "{\"tools\":[]}"))
            }
            "tools/list" => (JSON, jsonrpc::result(id, "{\"tools\":[{\"name\":\"t\"}]}")),
            _ => (JSON, jsonrpc::error(id, -32601, "no")),
        });
        reactor::block_on(async {
            let mut client = DemoClient::connect(&gateway).await.unwrap();
            assert_eq!(client.wait_for_tools("t").await.unwrap(), ["t"]);
        })
        .unwrap();
    }

    #[test]
    fn a_gateway_that_refuses_the_protocol_is_told_from_one_that_speaks_it() {
        for (result, is_spoken) in [
            (r#""result":{"resultType":"complete","supportedVersions":["2026-07-28"]}"#, true),
            (r#""result":{"resultType":"complete","supportedVersions":["2025-11-25"]}"#, false),
            (r#""error":{"code":-32601,"message":"no"}"#, false),
            ("", false),
        ] {
            let gateway =
                gateway(move |_, id| (JSON, format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},{result}}}")));
            let client = reactor::block_on(StatelessClient::connect(&gateway)).unwrap().unwrap();
            assert_eq!(client.is_some(), is_spoken, "{result}");
        }
    }
}
