//! A handmade edge: the test chooses each byte of its WebSocket.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::wire::{UPGRADE, host, tcp, text};

pub struct Raw {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

/// A frame as a client sends it, with a mask of zeros. `first` is its first byte: FIN, RSV and
/// opcode.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = head(first, payload.len() as u64);
    frame.extend_from_slice(payload);
    frame
}

/// The head of a frame that has, or only announces, this many bytes.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    let mut head = vec![first];
    match length {
        0..126 => head.push(0x80 | length as u8),
        126..65536 => {
            head.push(0x80 | 126);
            head.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend_from_slice(&length.to_be_bytes());
        }
    }
    head.extend_from_slice(&[0; 4]);
    head
}

/// A whole text frame.
pub const TEXT: u8 = 0x81;
pub const PING: u8 = 0x89;

/// The register frame of an edge.
pub fn registration(name: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":"id-{name}","method":"register","params":{{"name":"{name}"}}}}"#)
}

impl Raw {
    /// A link that is upgraded and has sent nothing.
    #[track_caller]
    pub fn upgraded(address: SocketAddr) -> Self {
        Self::upgraded_with(address, &[])
    }

    /// The same with bytes that are sent together with the request.
    #[track_caller]
    pub fn upgraded_with(address: SocketAddr, leftover: &[u8]) -> Self {
        Self::upgraded_by(address, &[], leftover)
    }

    /// The same with these lines in its head.
    #[track_caller]
    pub fn upgraded_by(address: SocketAddr, lines: &[&str], leftover: &[u8]) -> Self {
        let mut raw = Self { stream: tcp(address), buffer: Vec::new() };
        let host = host(address);
        let request = text("GET", "/mcp/register", &[&[host.as_str()], UPGRADE, lines].concat(), "");
        raw.send(&[request.as_bytes(), leftover].concat());
        let end = loop {
            if let Some(place) = raw.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break place + 4;
            }
            assert!(raw.fill() > 0, "the connection ended during the upgrade");
        };
        let head: Vec<u8> = raw.buffer.drain(..end).collect();
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        raw
    }

    /// A server with one listed tool, `echo`. Like the Python edge: every frame is JSON-RPC.
    #[track_caller]
    pub fn registered(address: SocketAddr, name: &str) -> Self {
        let mut raw = Self::upgraded(address);
        raw.text(&registration(name));
        raw.text_with("\"status\"");
        let initialize = raw.text_with("\"initialize\"");
        raw.answer(
            &initialize,
            r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"raw","version":"1"}}"#,
        );
        let list = raw.text_with("\"tools/list\"");
        raw.answer(&list, r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#);
        // Answered in order, so the list has been read by then.
        raw.text(r#"{"jsonrpc":"2.0","id":"listed","method":"ping"}"#);
        raw.text_with("\"listed\"");
        raw
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    #[track_caller]
    pub fn text(&mut self, text: &str) {
        self.send(&frame(TEXT, text.as_bytes()));
    }

    /// Answers a request.
    #[track_caller]
    pub fn answer(&mut self, request: &str, result: &str) {
        let id = crate::wire::member(request, "id").unwrap();
        self.text(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#));
    }

    fn fill(&mut self) -> usize {
        let mut bytes = [0; 16 * 1024];
        let count = self.stream.read(&mut bytes).unwrap_or_default();
        self.buffer.extend_from_slice(&bytes[..count]);
        count
    }

    /// Returns the next frame: its first byte and its payload. `None` if the connection has ended.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((first, start, length)) = self.parsed()
                && self.buffer.len() >= start + length
            {
                let payload = self.buffer[start..start + length].to_vec();
                self.buffer.drain(..start + length);
                return Some((first, payload));
            }
            if self.fill() == 0 {
                return None;
            }
        }
    }

    fn parsed(&self) -> Option<(u8, usize, usize)> {
        let bytes = &self.buffer;
        let (first, short) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let long = |range: std::ops::Range<usize>| {
            Some(bytes.get(range)?.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        };
        match short {
            126 => Some((first, 4, long(2..4)?)),
            127 => Some((first, 10, long(2..10)?)),
            _ => Some((first, 2, short)),
        }
    }

    /// Returns the first text frame that contains this.
    #[track_caller]
    pub fn text_with(&mut self, wanted: &str) -> String {
        loop {
            let (first, payload) = self.frame().unwrap_or_else(|| panic!("the link ended before {wanted}"));
            let text = String::from_utf8_lossy(&payload).into_owned();
            assert_ne!(first & 15, 8, "the link was closed before {wanted}: {text}");
            if text.contains(wanted) {
                return text;
            }
        }
    }

    /// Returns the code and the reason with which the link is closed, and skips earlier frames.
    #[track_caller]
    pub fn closed(&mut self) -> (u16, String) {
        self.try_closed().expect("a close frame before the end")
    }

    /// The same; `None` if the connection ends without a close frame.
    pub fn try_closed(&mut self) -> Option<(u16, String)> {
        loop {
            let (first, payload) = self.frame()?;
            if first & 15 == 8 {
                let code = u16::from_be_bytes([payload[0], payload[1]]);
                return Some((code, String::from_utf8_lossy(&payload[2..]).into_owned()));
            }
        }
    }
}
