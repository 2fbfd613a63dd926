//! The end of a link, frame by frame: edges and gateways that break some or all rules of the
//! protocol.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    time::Instant,
};

use async_tungstenite::tungstenite::{self, Message, WebSocket, client::IntoClientRequest};

use crate::{harness::TIMEOUT, wire::member};

/// The register frame of `s`.
pub fn introduction(capabilities: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":"x","method":"register","params":{{"name":"s","capabilities":{capabilities}}}}}"#
    )
}

/// Our end of a link.
pub struct End(pub WebSocket<TcpStream>);

impl End {
    fn bounded(stream: &TcpStream) {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
    }

    /// A gateway, for the next edge that connects.
    #[track_caller]
    pub fn accept(listener: &TcpListener) -> Self {
        Self::with(listener.accept().unwrap().0)
    }

    /// The same over an accepted connection.
    #[track_caller]
    pub fn with(stream: TcpStream) -> Self {
        Self::bounded(&stream);
        Self(tungstenite::accept(stream).unwrap())
    }

    /// An edge that has sent nothing yet.
    #[track_caller]
    pub fn connect(gateway: SocketAddr, token: Option<&str>) -> Self {
        let stream = TcpStream::connect(gateway).unwrap();
        Self::bounded(&stream);
        let url = format!("ws://{gateway}/mcp/register");
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("Authorization", format!("Bearer {token}").parse().unwrap());
        }
        Self(tungstenite::client(request, stream).unwrap().0)
    }

    /// An edge that registers `s` with these capabilities, and has a tool `t`.
    #[track_caller]
    pub fn register(gateway: SocketAddr, capabilities: &str) -> Self {
        let mut end = Self::connect(gateway, None);
        let received = end.introduce(capabilities);
        assert!(received.contains("\"received\""), "{received}");
        end.list();
        end
    }

    /// Registers `s`, and returns the response.
    #[track_caller]
    pub fn introduce(&mut self, capabilities: &str) -> String {
        self.say(&introduction(capabilities));
        self.next()
    }

    /// Answers the requests of the gateway to a new server: there is one tool `t`.
    #[track_caller]
    pub fn list(&mut self) {
        let id = self.request("", "initialize");
        self.say(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"protocolVersion":"2025-06-18","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"x","version":"1"}}}}}}"#
        ));
        let id = self.request("", "tools/list");
        self.say(&format!(
            r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[{{"name":"t","inputSchema":{{"type":"object"}}}}]}}}}"#
        ));
    }

    /// Returns the id of the next request of this method behind a prefix, and skips earlier frames.
    #[track_caller]
    pub fn request(&mut self, prefix: &str, method: &str) -> String {
        let wanted = format!("\"{method}\"");
        let frame = self.find(|frame| {
            let message = frame.strip_prefix(prefix);
            message.and_then(|message| member(message, "method")).as_ref() == Some(&wanted)
        });
        member(&frame[prefix.len()..], "id").unwrap()
    }

    #[track_caller]
    pub fn say(&mut self, frame: &str) {
        self.0.send(Message::text(frame)).unwrap();
    }

    /// Returns the next frame.
    #[track_caller]
    pub fn next(&mut self) -> String {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            match self.0.read().unwrap() {
                Message::Text(text) => return text.to_string(),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        panic!("no frame arrived")
    }

    #[track_caller]
    pub fn find(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let frame = self.next();
            if wanted(&frame) {
                return frame;
            }
            assert!(Instant::now() < deadline);
        }
    }

    /// Returns the code and the reason with which the other end closes, and skips earlier frames.
    #[track_caller]
    pub fn close_reason(&mut self) -> (u16, String) {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Message::Close(Some(frame)) = self.0.read().unwrap() {
                return (frame.code.into(), frame.reason.to_string());
            }
        }
        panic!("the other end does not close")
    }
}
