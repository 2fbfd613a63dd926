//! Server-sent events as bytes (WHATWG HTML, section 9.2). Neighbours: the event-stream endpoints of `gateway`.

use std::time::Duration;

/// Appends one event. `data` is one line: JSON that was flattened, or a path.
pub fn event(name: &str, data: &str, out: &mut Vec<u8>) {
    debug_assert!(!data.contains(['\n', '\r']), "an event's data is one line");
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\r\ndata: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// Begins an event that has an id; [`event`] follows.
pub fn id(id: &str, out: &mut Vec<u8>) {
    debug_assert!(!id.contains(['\n', '\r', '\0']), "an id is one line");
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Says how long a client that lost the stream is to wait before it comes back.
pub fn retry(delay: Duration, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("retry: {}\r\n", delay.as_millis()).as_bytes());
}

/// The comment that keeps a silent stream open through proxies.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// The decoder of the standard, as far as it matters here.
    fn decode(stream: &str) -> Vec<(String, String)> {
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), None::<String>);
        for line in stream.replace("\r\n", "\n").replace('\r', "\n").split('\n') {
            if line.is_empty() {
                if let Some(data) = data.take() {
                    events.push((std::mem::take(&mut name), data));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.to_owned(),
                "data" => match &mut data {
                    Some(data) => *data = format!("{data}\n{value}"),
                    None => data = Some(value.to_owned()),
                },
                _ => {}
            }
        }
        events
    }

    #[test]
    fn events_round_trip() {
        let mut out = Vec::new();
        let data = ["/messages?session_id=x", "{\"a\":\"data: \\r\\n\u{2028}: b\"}", " leading", ""];
        for data in data {
            event("message", data, &mut out);
            out.extend_from_slice(KEEP_ALIVE);
        }
        let events = decode(std::str::from_utf8(&out).unwrap());
        assert_eq!(events.iter().map(|(_, data)| data.as_str()).collect::<Vec<_>>(), data);
    }
}
