//! The edge's end of a link, against any gateway and any child: frames, lines and reconnects in any order. Events are
//! separated by a record separator; the first letter of an event says what it is.
//!
//! | event | meaning |
//! |---|---|
//! | `d FRAME`, `u LINE` | any text from the gateway, from the child |
//! | `qN` | the gateway asks something under the id N, unless it did so on this link before |
//! | `cN` | it cancels N |
//! | `aN`, `pN`, `eN` | the child answers the Nth question that it got in its life, tells its progress, or refuses it |
//! | `x` | the link is lost, and another comes |
//! | anything else | a frame of a channel |
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use mcpport::jsonrpc::{Kind, Message};
use mcpport::tunnel::channel::{self, Frame};
use mcpport::tunnel::edge::{Down, Edge, Up};
use mcpport::tunnel::handshake::Status;

fuzz_target!(|data: &[u8]| {
    let Ok(script) = std::str::from_utf8(data) else { return };
    let mut world = World::default();
    for event in script.split('\u{1e}') {
        let mut letters = event.chars();
        match (letters.next(), letters.as_str()) {
            (Some('d'), frame) => world.down(frame),
            (Some('u'), line) => up(&mut world.edge, line),
            (Some('q'), id) => world.ask(id),
            (Some('c'), id) => world.cancel(id),
            (Some(word @ ('a' | 'p' | 'e')), place) => world.reply(word, place),
            (Some('x'), _) => world.lose(),
            _ => channels(event),
        }
    }
});

/// A question that the child got.
struct Question {
    /// The id that the child knows.
    known: u64,
    /// The id that the gateway gave it.
    asked: u64,
    link: u32,
    open: bool,
}

/// What must be known to say what has to come out.
#[derive(Default)]
struct World {
    edge: Edge,
    /// Number of the present link.
    link: u32,
    questions: Vec<Question>,
    /// Ids of this link, with the place of their question.
    asked: HashMap<u64, usize>,
    /// The gateway said something of its own making: from then on only what holds for any gateway is looked at.
    wild: bool,
}

impl World {
    /// Any frame from the gateway.
    fn down(&mut self, frame: &str) {
        self.wild = true;
        let message = Message::read(frame);
        match self.edge.from_gateway(frame) {
            Down::Child(line) => {
                let (before, after) =
                    (message.expect("came as a message"), Message::read(&line).expect("a message"));
                assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
                assert!(!line.contains(['\n', '\r']));
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
            Down::Drop(_) => {}
        }
    }

    /// A question with a progress token, as our gateway asks: no id twice on one link.
    fn ask(&mut self, id: &str) {
        let Some(id) = small(id).filter(|id| !self.asked.contains_key(id)) else { return };
        let frame = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"_meta\":{{\"progressToken\":{id}}}}}}}"
        );
        let Down::Child(line) = self.edge.from_gateway(&frame) else { panic!("a call is for the child") };
        let message = Message::read(&line).expect("a message");
        let known = message.id().and_then(|id| id.parse().ok()).expect("a number");
        let token = message.param(&["_meta", "progressToken"]).expect("one").expect("a token");
        assert_eq!(line[token], known.to_string(), "the id and the token move together");
        if !self.wild {
            assert!(self.questions.iter().all(|old| old.known != known), "the child gets an id twice");
        }
        self.asked.insert(id, self.questions.len());
        self.questions.push(Question { known, asked: id, link: self.link, open: true });
    }

    fn cancel(&mut self, id: &str) {
        let Some(id) = small(id) else { return };
        let frame = format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{id}}}}}"
        );
        match (self.edge.from_gateway(&frame), self.asked.get(&id)) {
            (Down::Child(line), Some(place)) => {
                let question = &mut self.questions[*place];
                let message = Message::read(&line).expect("a message");
                let span = message.param(&["requestId"]).expect("one").expect("an id");
                assert_eq!(line[span], question.known.to_string());
                question.open = false;
            }
            (Down::Child(_), None) => {}
            (Down::Drop(_), _) if self.wild => {}
            (other, _) => panic!("{other:?}"),
        }
    }

    /// The child says something about a question that it got at some time.
    fn reply(&mut self, word: char, place: &str) {
        let (wild, link) = (self.wild, self.link);
        let Some(question) = place.parse().ok().and_then(|place: usize| self.questions.get_mut(place)) else {
            return;
        };
        let (known, asked) = (question.known, question.asked);
        let line = match word {
            'a' => format!("{{\"jsonrpc\":\"2.0\",\"id\":{known},\"result\":{{\"n\":{known}}}}}"),
            'e' => {
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{known},\"error\":{{\"code\":1,\"message\":\"no\"}}}}")
            }
            _ => format!(
                "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{known}}}}}"
            ),
        };
        question.open &= word == 'p';
        let came = self.edge.from_child(&line);
        if wild {
            return;
        }
        match came {
            Up::Gateway(frame) => {
                assert_eq!(question.link, link, "a word about a question of an earlier link");
                let message = Message::read(&frame).expect("a message");
                let token = message.param(&["progressToken"]).expect("one").map(|span| &frame[span]);
                assert_eq!(message.id().or(token), Some(asked.to_string().as_str()));
            }
            Up::Stale => assert_ne!(question.link, link, "a word about a question of this link is dropped"),
            Up::Noise => panic!("{line}"),
        }
    }

    /// Exactly what is open is cancelled, and nobody hears of it again.
    fn lose(&mut self) {
        let lines = self.edge.disconnected();
        let mut cancelled = Vec::new();
        for line in &lines {
            let message = Message::read(line).expect("a message");
            assert_eq!(message.method(), "notifications/cancelled");
            let span = message.param(&["requestId"]).expect("one").expect("an id");
            cancelled.push(line[span].parse::<u64>().expect("a number"));
        }
        if !self.wild {
            let open = self.questions.iter_mut().filter(|question| std::mem::take(&mut question.open));
            let mut open: Vec<u64> = open.map(|question| question.known).collect();
            open.sort_unstable();
            assert_eq!(cancelled, open);
        }
        self.link += 1;
        self.asked.clear();
    }
}

/// The ids that our gateway mints are small for the life of any link.
fn small(id: &str) -> Option<u64> {
    id.parse().ok().filter(|id| *id < 1 << 32)
}

fn up(edge: &mut Edge, line: &str) {
    match edge.from_child(line) {
        Up::Gateway(frame) => {
            let (before, after) =
                (Message::read(line).expect("a message"), Message::read(&frame).expect("a message"));
            assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
            assert_eq!(before.result().is_some(), after.result().is_some());
            assert!(!frame.contains(['\n', '\r']));
            assert_eq!(Status::read(&frame), None, "what a child says is never taken for the gateway's word");
        }
        Up::Noise | Up::Stale => {}
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
