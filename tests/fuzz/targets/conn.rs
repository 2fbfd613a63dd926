//! Whole connections: the events do not depend on the sizes of the reads, buffers stay within
//! bounds, and the output is well formed. The first two bytes choose the caller and the sizes.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mcpport::http::conn::{Conn, Step};
use mcpport::http::response::Response;
use mcpport::http::types::StatusCode;
use mcpport::http::upgrade::Upgrade;
use mcpport::limits::HttpLimits;

fuzz_target!(|data: &[u8]| {
    let [caller, sizes, data @ ..] = data else { return };
    let limits = HttpLimits {
        head_bytes: 512,
        target_bytes: 128,
        fields: 8,
        requests: 5,
        body_bytes: 1024,
        drain_bytes: 64,
        read_bytes: 32 + usize::from(*sizes),
        read_burst: 256,
        watch_bytes: 8,
        ..HttpLimits::default()
    };
    let whole = run(data, &limits, *caller, |_| data.len());
    let single = run(data, &limits, *caller, |_| 1);
    assert_eq!(whole, single);
    let mixed = run(data, &limits, *caller, |turn| 1 + usize::from(sizes.rotate_left(turn % 8)) % 37);
    assert_eq!(whole, mixed);
});

/// Feeds everything and then the end; returns the events and the output.
fn run(data: &[u8], limits: &HttpLimits, caller: u8, size: impl Fn(u32) -> usize) -> (Vec<String>, Vec<u8>) {
    let now = Instant::now();
    let mut conn = Conn::new(now, limits);
    let (mut rest, mut out, mut events) = (data, Vec::new(), Vec::new());
    let mut turn = 0;
    loop {
        turn += 1;
        assert!(turn < 20_000 + data.len() as u32 * 4, "no progress");
        let step = conn.next(now);
        events.extend(note(&step, &conn));
        match step {
            Step::Close => return (events, out),
            Step::Read | Step::Drain => {
                assert!(conn.deadline().is_some());
                rest = read(&mut conn, rest, size(turn), limits);
            }
            Step::Refuse(response) => conn.respond(now, &response, &mut out),
            Step::Request(request) => match caller % 4 {
                0 | 1 => conn.take_body(now, &mut out),
                2 => conn.respond(now, &Response::new(StatusCode::Unauthorized).text("no"), &mut out),
                _ => match Upgrade::check(&request) {
                    Ok(upgrade) => {
                        let mut leftover = conn.upgrade(&upgrade, &mut out);
                        leftover.extend_from_slice(rest);
                        events.push(format!("{leftover:?}"));
                        return (events, out);
                    }
                    Err(response) => conn.respond(now, &response, &mut out),
                },
            },
            Step::Body if caller % 4 == 1 => {
                conn.start_stream(&Response::new(StatusCode::Ok), &mut out);
                conn.stream(b"one", &mut out);
                conn.stream(b"", &mut out);
                conn.end_stream(now + Duration::from_millis(1), &mut out);
            }
            Step::Body => conn.respond(now, &Response::new(StatusCode::Ok).json("{}"), &mut out),
        }
    }
}

/// The part of a step that must not depend on how the bytes were cut.
fn note(step: &Step, conn: &Conn) -> Option<String> {
    match step {
        Step::Body => Some(format!("body {:?}", conn.body())),
        Step::Refuse(response) => Some(format!("refuse {}", response.status())),
        Step::Request(request) => Some(format!("request {request:?} {}", request.target())),
        Step::Close | Step::Drain | Step::Read => None,
    }
}

fn read<'a>(conn: &mut Conn, rest: &'a [u8], size: usize, limits: &HttpLimits) -> &'a [u8] {
    let space = conn.space();
    assert!(!space.is_empty() && space.len() <= limits.read_bytes.max(limits.read_burst) + limits.body_bytes);
    let count = space.len().min(size).min(rest.len());
    let (now, later) = rest.split_at(count);
    space[..count].copy_from_slice(now);
    conn.filled(count);
    later
}
