//! The edge of a link: any frames, lines, reconnects and restarts. Each line of the input is one event; its first byte says which.
#![no_main]

use std::{collections::HashSet, time::Instant};

use libfuzzer_sys::fuzz_target;
use mcpport::jsonrpc::{Kind, Message};
use mcpport::limits::SERVER_ID;
use mcpport::text;
use mcpport::tunnel::channel::{self, Frame};
use mcpport::tunnel::edge::{Down, Edge, Up};
use mcpport::tunnel::handshake::{Registration, Status};

fuzz_target!(|data: &[u8]| {
    let Ok(script) = std::str::from_utf8(data) else { return };
    let (mut edge, mut asked) = (Edge::default(), HashSet::new());
    for event in script.split('\u{1e}') {
        let mut letters = event.chars();
        match (letters.next(), letters.as_str()) {
            (Some('d'), frame) => down(&mut edge, frame, &mut asked),
            (Some('u'), line) => up(&mut edge, line),
            (Some('x'), _) => {
                lines_are_cancellations(&edge.disconnected());
                asked.clear();
            }
            (Some('g'), why) => {
                for frame in edge.child_gone(why, None) {
                    let error = Message::read(&frame).expect("a message");
                    assert!(error.error().is_some());
                    asked.remove(error.id().expect("it answers a request"));
                }
            }
            (Some('b'), _) => {
                let line = edge.child_back();
                assert!(line.is_none_or(|line| Message::read(&line).expect("a message").method() == "initialize"));
            }
            (_, frame) => {
                first_frames(frame);
                channels(frame);
            }
        }
    }
});

/// `asked` are the ids of this link so far.
fn down(edge: &mut Edge, frame: &str, asked: &mut HashSet<String>) {
    let message = Message::read(frame);
    match edge.from_gateway(Instant::now(), frame) {
        Down::Child(line) => {
            let (before, after) =
                (message.expect("came as a message"), Message::read(&line).expect("a message"));
            assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
            assert!(!line.contains(['\n', '\r']));
            if before.kind() == Kind::Request && asked.insert(before.id().unwrap_or_default().to_owned()) {
                echo(edge, before.id().unwrap_or_default(), after.id().unwrap_or_default());
            }
        }
        Down::Gateway(answer) => {
            let (before, after) =
                (message.expect("came as a message"), Message::read(&answer).expect("a message"));
            assert_eq!(
                (before.kind(), after.kind(), before.id()),
                (Kind::Request, Kind::Response, after.id())
            );
        }
        Down::Status(status) => {
            assert!(message.is_err());
            assert_eq!(Status::read(frame), Some(status));
        }
        Down::Held | Down::Drop(_) => {}
    }
}

/// A child that answers at once, most of the time: the answer goes back under the id that the gateway chose.
fn echo(edge: &mut Edge, asked: &str, known: &str) {
    // One text can be written in several ways, and the edge gives back the one that it was asked with first.
    if known.len() % 3 == 0 || known.contains('\\') {
        return;
    }
    match edge.from_child(&format!("{{\"jsonrpc\":\"2.0\",\"id\":{known},\"result\":{{}}}}")) {
        Up::Gateway(frame) => assert_eq!(Message::read(&frame).expect("a message").id(), Some(asked)),
        // What the child is asked before it has answered `initialize` is an answer to its own question.
        Up::Ready { .. } | Up::Refused => {}
        other => panic!("{other:?}"),
    }
}

fn up(edge: &mut Edge, line: &str) {
    match edge.from_child(line) {
        Up::Gateway(frame) => {
            let (before, after) =
                (Message::read(line).expect("a message"), Message::read(&frame).expect("a message"));
            assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
            assert_eq!((before.result(), before.error()).0.is_some(), after.result().is_some());
            assert!(!frame.contains(['\n', '\r']));
            assert_eq!(Status::read(&frame), None, "what a child says is never taken for the gateway's word");
        }
        Up::Ready { lines, frames } => {
            assert!(lines.iter().all(|line| Message::read(line).is_ok()));
            assert!(frames.iter().all(|frame| Message::read(frame).is_ok() || Status::read(frame).is_some()));
        }
        Up::Refused | Up::Noise | Up::Stale => {}
    }
}

fn lines_are_cancellations(lines: &[String]) {
    for line in lines {
        assert_eq!(Message::read(line).expect("a message").method(), "notifications/cancelled");
    }
}

fn channels(frame: &str) {
    let again = match channel::read(frame) {
        Frame::Plain(text) => return assert_eq!(text, frame),
        Frame::Message(number, text) => channel::message(number, text),
        Frame::Open(number) => channel::open(number),
        Frame::Close(number, why) => channel::close(number, why),
    };
    assert_eq!(channel::read(&again), channel::read(frame));
    assert!(Message::read(frame).is_err(), "no message looks like a frame of a channel");
}

fn first_frames(frame: &str) {
    if let Ok(registration) = Registration::read(frame, 64) {
        let Registration { id, name, .. } = &registration;
        assert!(id.as_ref().is_none_or(|id| id.len() <= SERVER_ID && !id.chars().any(char::is_control)));
        assert!(name.as_ref().is_none_or(|name| text::is_name(name, 64)));
        if let (Some(id), Some(name)) = (id, name) {
            let again = Registration::read(&Registration::frame(id, name, None), 64);
            assert_eq!(again, Ok(Registration { ours: true, ..registration.clone() }));
            assert!(Status::read(&Status::received(id, true, false)).is_some_and(|status| status.ours));
        }
    }
    if let Some(status) = Status::read(frame) {
        let again = Status::read(&Status::error(&status.message)).expect("a status frame");
        assert_eq!(again.message, status.message);
        assert!(Message::read(frame).is_err(), "a frame is one or the other");
    }
}
