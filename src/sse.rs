//! Encoding of server-sent events (WHATWG HTML, section 9.2), for the event-stream endpoints of
//! `gateway`.

use std::time::Duration;

/// Appends an event. `data` must be a single line: JSON without line breaks, or a path.
pub fn event(name: &str, data: &str, out: &mut Vec<u8>) {
    debug_assert!(!data.contains(['\n', '\r']), "an event's data is one line");
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\r\ndata: ");
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends an event id; [`event`] must follow.
pub fn id(id: &str, out: &mut Vec<u8>) {
    debug_assert!(!id.contains(['\n', '\r', '\0']), "an id is one line");
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends the time that a client must wait before it reconnects, in milliseconds.
pub fn retry(delay: Duration, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("retry: {}\r\n", delay.as_millis()).as_bytes());
}

/// A comment that keeps proxies from closing an idle stream.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    /// A decoder as the standard describes it, reduced to what these tests need.
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
