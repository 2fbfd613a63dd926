//! A trivial MCP server on stdin and stdout, used behind every measured path. It has two tools:
//! `echo` returns its text, `big` also appends a given number of bytes. All lines of one read are
//! answered in one write.

use std::io::{self, Read, Write};

use mcpport::{
    jsonrpc::{self, Message},
    mcp,
    ndjson::Lines,
};

use crate::Outcome;

/// Maximum line length.
const LONGEST: usize = 4 << 20;
/// Maximum result size of `big`.
const BIGGEST: usize = 2 << 20;

/// Returns the bytes after the text of a `big` result. Client and server compute the same bytes,
/// and they differ from page to page.
pub fn filler(count: usize) -> String {
    (0..count).map(|place| char::from(b'a' + ((place * 7 + place / 4096) % 26) as u8)).collect()
}

/// Serves until the end of stdin.
pub fn run() -> Outcome<()> {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    let (mut lines, mut out) = (Lines::new(LONGEST), Vec::new());
    let mut big = String::new();
    loop {
        let count = stdin.read(lines.space())?;
        if count == 0 {
            return Ok(());
        }
        lines.filled(count);
        while let Some(line) = lines.next_line()? {
            answer(std::str::from_utf8(line)?, &mut big, &mut out)?;
        }
        stdout.write_all(&out)?;
        stdout.flush()?;
        out.clear();
    }
}

fn answer(line: &str, big: &mut String, out: &mut Vec<u8>) -> Outcome<()> {
    // The Python mcpport also forwards messages meant for itself.
    let Ok(message) = Message::read(line) else { return Ok(()) };
    let Some(id) = message.id() else { return Ok(()) };
    match message.method() {
        "tools/call" => return call(&message, id, big, out),
        "initialize" => {
            let asked = argument(&message, &["protocolVersion"])?.unwrap_or_default().trim_matches('"');
            // The Python mcpport requests a version that it does not support itself.
            let version = if mcp::VERSIONS.contains(&asked) { asked } else { "2024-11-05" };
            let result = format!(
                "{{\"protocolVersion\":\"{version}\",\"capabilities\":{{\"tools\":{{}}}},\"serverInfo\":{{\"name\":\"echo\",\"version\":\"1\"}}}}"
            );
            out.extend(jsonrpc::result(id, &result).bytes());
        }
        "tools/list" => {
            let tool = |name: &str, argument: &str, kind: &str| {
                format!(
                    "{{\"name\":\"{name}\",\"description\":\"{name}\",\"inputSchema\":{{\"type\":\"object\",\"properties\":{{\"text\":{{\"type\":\"string\"}},\"{argument}\":{{\"type\":\"{kind}\"}}}}}}}}"
                )
            };
            let tools = [tool("echo", "text", "string"), tool("big", "bytes", "integer")].join(",");
            out.extend(jsonrpc::result(id, &format!("{{\"tools\":[{tools}]}}")).bytes());
        }
        "ping" => out.extend(jsonrpc::result(id, "{}").bytes()),
        _ => out.extend(jsonrpc::error(id, jsonrpc::METHOD_NOT_FOUND, "no such method").bytes()),
    }
    out.push(b'\n');
    Ok(())
}

/// Answers a call; the raw text of the argument is returned unchanged.
fn call(message: &Message<'_>, id: &str, big: &mut String, out: &mut Vec<u8>) -> Outcome<()> {
    let text = argument(message, &["arguments", "text"])?.unwrap_or("\"\"").trim_matches('"');
    let bytes = argument(message, &["arguments", "bytes"])?.map_or(Ok(0), str::parse::<usize>)?.min(BIGGEST);
    if bytes > big.len() {
        *big = filler(bytes);
    }
    out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b",\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"");
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(big.get(..bytes).unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\"}]}}\n");
    Ok(())
}

fn argument<'a>(message: &Message<'a>, path: &[&str]) -> Outcome<Option<&'a str>> {
    let span = message.param(path).map_err(|why| why.reason())?;
    Ok(span.and_then(|span| message.text().get(span)))
}
