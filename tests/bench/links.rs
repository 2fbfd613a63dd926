//! Edges without a server, in any number. Each registers with hand-written frames, lists its tools,
//! and is idle from then on.

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use mcpport::{config::EraPin, jsonrpc, jsonrpc::Message, tunnel::handshake::Registration};

use crate::Outcome;

const TIMEOUT: Duration = Duration::from_secs(20);

/// A registered, idle link.
pub struct Link {
    socket: BufReader<TcpStream>,
    tools: usize,
    resumes: bool,
}

impl Link {
    /// Registers with one tool, and answers until it is listed.
    pub fn register(address: SocketAddr, name: &str) -> Outcome<Self> {
        Self::register_with(address, name, 1, true)
    }

    /// Sends an unsolicited pong, so that the gateway sees a live link (RFC 6455, section 5.5.3).
    pub fn pong(&mut self) -> Outcome<()> {
        Ok(self.socket.get_mut().write_all(&[0x8a, 0x80, 0, 0, 0, 0])?)
    }

    /// Same as `register`, with `tools` tools. `resumes`: the edge supports resuming, so the
    /// gateway waits for it after a loss.
    pub fn register_with(address: SocketAddr, name: &str, tools: usize, resumes: bool) -> Outcome<Self> {
        let socket = TcpStream::connect_timeout(&address, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_nodelay(true)?;
        let mut link = Self { socket: BufReader::with_capacity(1024, socket), tools, resumes };
        let request = format!(
            "GET /mcp/register HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        );
        link.socket.get_mut().write_all(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            link.socket.read_exact(&mut byte)?;
            head.extend(byte);
        }
        if !head.starts_with(b"HTTP/1.1 101") {
            return Err(String::from_utf8_lossy(&head).into_owned().into());
        }
        let original = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":\"{name}\",\"method\":\"register\",\"params\":{{\"name\":\"{name}\",\"version\":\"1.0.0\",\"capabilities\":{{}}}}}}"
        );
        link.send(&if resumes {
            Registration::frame(name, name, usize::MAX, None, EraPin::Auto, None)
        } else {
            original
        })?;
        while !link.answer()? {}
        Ok(link)
    }

    /// Reads a frame and answers it. Returns true when all tools are listed.
    fn answer(&mut self) -> Outcome<bool> {
        let text = self.read()?;
        if text.contains("\"status\":\"error\"") {
            return Err(text.into());
        }
        let Ok(message) = Message::read(&text) else {
            return Ok(text.contains("\"status\":\"registered\""));
        };
        let Some(id) = message.id() else { return Ok(false) };
        let result = match message.method() {
            "initialize" => {
                "{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{\"tools\":{}},\"serverInfo\":{\"name\":\"idle\",\"version\":\"1\"}}".to_owned()
            }
            _ => {
                let tool = |number: usize| {
                    let number = if number == 0 { String::new() } else { format!("-{number}") };
                    format!("{{\"name\":\"nothing{number}\",\"description\":\"Does nothing\",\"inputSchema\":{{\"type\":\"object\"}}}}")
                };
                format!("{{\"tools\":[{}]}}", (0..self.tools).map(tool).collect::<Vec<_>>().join(","))
            }
        };
        self.send(&jsonrpc::result(id, &result))?;
        // The gateway sends a status after the listing only to edges that support resuming.
        Ok(!self.resumes && message.method() == "tools/list")
    }

    /// Returns the next text frame. All frames in this benchmark are short.
    fn read(&mut self) -> Outcome<String> {
        loop {
            let mut head = [0; 2];
            self.socket.read_exact(&mut head)?;
            let mut length = usize::from(head[1] & 0x7f);
            if length == 126 {
                let mut more = [0; 2];
                self.socket.read_exact(&mut more)?;
                length = u16::from_be_bytes(more).into();
            }
            if length == 127 {
                return Err("a frame that is too long".into());
            }
            let mut body = vec![0; length];
            self.socket.read_exact(&mut body)?;
            match head[0] & 0x0f {
                1 => return Ok(String::from_utf8(body)?),
                8 => return Err("the gateway closed the link".into()),
                _ => {}
            }
        }
    }

    /// Sends a masked text frame; a mask of zeros leaves the bytes unchanged.
    fn send(&mut self, text: &str) -> Outcome<()> {
        let length = u16::try_from(text.len())?;
        let mut frame = vec![0x81, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(text.bytes());
        Ok(self.socket.get_mut().write_all(&frame)?)
    }
}
