//! The edge's end of a link, against any gateway and any child: frames, lines, reconnects and
//! restarts in any order. Events are separated by a record separator and begin with a letter:
//!
//! | event | meaning |
//! |---|---|
//! | `d FRAME`, `u LINE` | any text from the gateway, from the child |
//! | `i` | the gateway initializes, unless it did so on this link before |
//! | `qN` | it sends a request with the id N, unless it did so on this link before |
//! | `cN` | it cancels N |
//! | `h` | the child answers a pending `initialize` |
//! | `aN`, `pN`, `eN` | the child sends a result, progress or an error for the Nth request of all, if it got it |
//! | `k`, `b` | the child exits; it is restarted |
//! | `x` | the link is lost, and a new one is opened |
//! | anything else | a frame of a channel |
#![no_main]

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use libfuzzer_sys::fuzz_target;
use mcpport::edge::proxy::{ChildStart, ProxyState, ToChild, ToGateway};
use mcpport::jsonrpc::{self, Kind, Message, find};
use mcpport::tunnel::frame::{self, Frame};
use mcpport::tunnel::handshake::Status;

/// Pending requests at a time: fewer than the edge remembers.
const MOST: usize = 500;
/// Ids of `initialize` are above those of all requests.
const HELLO: u64 = 1 << 33;

fuzz_target!(|data: &[u8]| {
    let Ok(script) = std::str::from_utf8(data) else { return };
    let mut world = World::new();
    for event in script.split('\u{1e}') {
        let mut letters = event.chars();
        match (letters.next(), letters.as_str()) {
            (Some('d'), frame) => world.down(frame),
            (Some('u'), line) => world.up(line),
            (Some('i'), _) => world.initialize(),
            (Some('q'), id) => world.ask(id),
            (Some('c'), id) => world.cancel(id),
            (Some('h'), _) => world.answer_initialize(),
            (Some(word @ ('a' | 'p' | 'e')), place) => world.reply(word, place),
            (Some('k'), _) => world.end_child(),
            (Some('b'), _) => world.start_child(),
            (Some('x'), _) => world.lose(),
            _ => channels(event),
        }
    }
});

/// The state of a request of the gateway.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stand {
    /// The edge holds it for a child that is not initialized.
    Held,
    /// The child has it, under this id.
    Open(u64),
    /// Cancelled or lost. The child may still use this id.
    Closed(Option<u64>),
}

struct Question {
    /// The id that the gateway gave it.
    asked: u64,
    link: u64,
    /// The child that got it.
    child: u32,
    stand: Stand,
}

/// A message held for a child, in its order.
enum Waiting {
    Question(usize),
    /// The request with this id, or another message.
    Cancel(u64),
}

/// The model that predicts the output.
struct World {
    edge: ProxyState,
    now: Instant,
    /// Number of the present link, and of the present child.
    link: u64,
    child: u32,
    /// Whether the child runs.
    alive: bool,
    initialized: bool,
    /// The id of the pending `initialize` request to the child.
    initialize_id: Option<u64>,
    questions: Vec<Question>,
    /// Ids of this link, with the index of their request.
    asked: HashMap<u64, usize>,
    held: VecDeque<Waiting>,
    /// An event contained arbitrary text: from then on only general properties are checked.
    wild: bool,
}

impl World {
    fn new() -> Self {
        Self {
            edge: ProxyState::default(),
            now: Instant::now(),
            link: 0,
            child: 0,
            alive: true,
            initialized: false,
            initialize_id: None,
            questions: Vec::new(),
            asked: HashMap::new(),
            held: VecDeque::new(),
            wild: false,
        }
    }

    /// Any frame from the gateway.
    fn down(&mut self, frame: &str) {
        self.wild = true;
        let message = Message::read(frame);
        match self.edge.on_gateway_frame(self.now, frame) {
            ToChild::Child(line) => {
                let (before, after) = (message.expect("came as a message"), read(&line));
                assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
            }
            ToChild::Gateway(answer) => {
                let (before, after) = (message.expect("came as a message"), read(&answer));
                assert_eq!((before.kind(), after.kind()), (Kind::Request, Kind::Response));
                assert_eq!(before.id(), after.id());
            }
            ToChild::Status(status) => {
                assert!(message.is_err());
                assert_eq!(Status::read(frame), Some(status));
            }
            ToChild::Held => assert!(self.edge.is_initializing()),
            ToChild::Drop(_) => {}
        }
    }

    /// Any line from the child.
    fn up(&mut self, line: &str) {
        self.wild = true;
        match self.edge.on_child_line(line) {
            ToGateway::Gateway(frame) | ToGateway::Unmatched(frame) => {
                let (before, after) = (Message::read(line).expect("a message"), read(&frame));
                assert_eq!((before.kind(), before.method()), (after.kind(), after.method()));
                assert_eq!(before.result().is_some(), after.result().is_some());
                assert_eq!(Status::read(&frame), None, "what a child says is never the gateway's word");
            }
            ToGateway::Ready { lines, .. } => lines.iter().for_each(|line| drop(read(line))),
            ToGateway::Refused | ToGateway::Noise | ToGateway::Stale => {}
        }
    }

    fn initialize(&mut self) {
        if std::mem::replace(&mut self.initialized, true) {
            return;
        }
        let id = HELLO + self.link;
        let frame = jsonrpc::request(&id.to_string(), "initialize", "{}");
        match self.edge.on_gateway_frame(self.now, &frame) {
            ToChild::Child(line) => self.initialize_id = number(read(&line).id()),
            ToChild::Gateway(answer) => assert_eq!(number(read(&answer).id()), Some(id)),
            ToChild::Drop(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// A request with a progress token, as our gateway sends it: no id twice on one link.
    fn ask(&mut self, id: &str) {
        let Some(id) = small(id).filter(|id| !self.asked.contains_key(id) && self.asked.len() < MOST) else {
            return;
        };
        let params = format!("{{\"_meta\":{{\"progressToken\":{id}}}}}");
        let place = self.questions.len();
        self.asked.insert(id, place);
        let (link, child) = (self.link, self.child);
        self.questions.push(Question { asked: id, link, child, stand: Stand::Closed(None) });
        let frame = jsonrpc::request(&id.to_string(), "tools/call", &params);
        match self.edge.on_gateway_frame(self.now, &frame) {
            ToChild::Child(line) => self.arrives(place, &line),
            ToChild::Held => {
                self.questions[place].stand = Stand::Held;
                self.held.push_back(Waiting::Question(place));
            }
            ToChild::Gateway(answer) => {
                assert!(!self.alive || !self.edge.is_up(), "a child that is up gets its calls");
                assert_eq!(number(read(&answer).id()), Some(id));
            }
            other => panic!("{other:?}"),
        }
    }

    /// The child gets a request.
    fn arrives(&mut self, place: usize, line: &str) {
        let message = read(line);
        let known = number(message.id()).expect("a number");
        let token = message.param(&["_meta", "progressToken"]).expect("one").expect("a token");
        assert_eq!(line[token], known.to_string(), "the id and the token move together");
        if !self.wild {
            let twice = |old: &Question| matches!(old.stand, Stand::Open(id) | Stand::Closed(Some(id)) if id == known);
            assert!(!self.questions.iter().any(twice), "a child gets an id twice");
        }
        let question = &mut self.questions[place];
        (question.stand, question.child) = (Stand::Open(known), self.child);
    }

    fn cancel(&mut self, id: &str) {
        let Some(id) = small(id) else { return };
        let params = format!("{{\"requestId\":{id}}}");
        let frame = jsonrpc::notification("notifications/cancelled", Some(&params));
        match self.edge.on_gateway_frame(self.now, &frame) {
            ToChild::Child(line) => self.cancelled(id, &line),
            ToChild::Held => self.held.push_back(Waiting::Cancel(id)),
            ToChild::Drop(_) => assert!(self.wild || !self.alive),
            other => panic!("{other:?}"),
        }
    }

    /// The child gets a cancellation.
    fn cancelled(&mut self, id: u64, line: &str) {
        let Some(place) = self.asked.get(&id) else { return };
        let question = &mut self.questions[*place];
        if let Stand::Open(known) = question.stand {
            let span = read(line).param(&["requestId"]).expect("one").expect("an id");
            assert_eq!(line[span], known.to_string());
            question.stand = Stand::Closed(Some(known));
        }
    }

    /// The child answers `initialize`.
    fn answer_initialize(&mut self) {
        let Some(id) = self.initialize_id.take().filter(|_| self.alive) else { return };
        let line = jsonrpc::result(&id.to_string(), "{\"capabilities\":{}}");
        match self.edge.on_child_line(&line) {
            ToGateway::Ready { lines, frames } => self.ready(&lines, &frames),
            ToGateway::Gateway(answer) => {
                assert!(self.wild || number(read(&answer).id()) == Some(HELLO + self.link));
            }
            ToGateway::Stale => {}
            other => assert!(self.wild, "{other:?}"),
        }
    }

    /// A new child is initialized: it gets the held messages, in their order.
    fn ready(&mut self, lines: &[String], frames: &[String]) {
        frames
            .iter()
            .for_each(|frame| assert!(Message::read(frame).is_ok() || Status::read(frame).is_some()));
        if self.wild {
            return;
        }
        let mut lines = lines.iter().filter(|line| !line.contains("notifications/initialized"));
        for waiting in std::mem::take(&mut self.held) {
            let line = lines.next().expect("all that waited comes");
            match waiting {
                Waiting::Question(place) => self.arrives(place, line),
                Waiting::Cancel(id) => self.cancelled(id, line),
            }
        }
        assert_eq!(lines.next(), None, "and nothing else");
    }

    /// The child sends a message about a request that it got.
    fn reply(&mut self, word: char, place: &str) {
        let Some(place) = place.parse::<usize>().ok().filter(|_| self.alive) else { return };
        let Some(question) = self.questions.get_mut(place).filter(|one| one.child == self.child) else {
            return;
        };
        let (Stand::Open(known) | Stand::Closed(Some(known))) = question.stand else { return };
        let line = match word {
            'a' => jsonrpc::result(&known.to_string(), &format!("{{\"n\":{known}}}")),
            'e' => jsonrpc::error(&known.to_string(), 1, "no"),
            _ => {
                let params = format!("{{\"progressToken\":{known}}}");
                jsonrpc::notification("notifications/progress", Some(&params))
            }
        };
        if word != 'p' {
            question.stand = Stand::Closed(Some(known));
        }
        let came = self.edge.on_child_line(&line);
        if self.wild {
            return;
        }
        match came {
            ToGateway::Gateway(frame) => {
                assert_eq!(question.link, self.link, "a word about a question of an earlier link");
                let message = read(&frame);
                let token = message.param(&["progressToken"]).expect("one").map(|span| &frame[span]);
                assert_eq!(number(message.id().or(token)), Some(question.asked));
            }
            ToGateway::Stale => {
                assert_ne!(question.link, self.link, "a word about a question of this link is dropped")
            }
            other => panic!("{other:?}"),
        }
    }

    /// Every request that waits for this child fails, once.
    fn end_child(&mut self) {
        if !std::mem::replace(&mut self.alive, false) {
            return;
        }
        let answers = self.edge.child_gone("it has ended", None);
        self.held.clear();
        self.initialize_id = None;
        let open = self.questions.iter_mut().filter(|one| !matches!(one.stand, Stand::Closed(_)));
        let mut open: Vec<u64> = open.map(|one| one.close()).collect();
        let mut told: Vec<u64> = answers.iter().filter_map(|answer| number(read(answer).id())).collect();
        (open.sort_unstable(), told.sort_unstable());
        assert!(answers.iter().all(|answer| code(answer) == Some(jsonrpc::INTERNAL_ERROR)));
        assert!(self.wild || open == told, "open {open:?}, told {told:?}");
    }

    fn start_child(&mut self) {
        if std::mem::replace(&mut self.alive, true) {
            return;
        }
        self.child += 1;
        let first = match self.edge.child_back() {
            ChildStart::Lines(mut lines) => lines.pop(),
            ChildStart::Up => None,
            ChildStart::Report(frame) => panic!("{frame}: no gateway asks for it"),
        };
        assert_eq!(first.is_some(), self.edge.is_initializing());
        self.initialize_id = first.and_then(|line| number(read(&line).id()));
    }

    /// Exactly the pending requests are cancelled, and get no response.
    fn lose(&mut self) {
        let mut cancelled = Vec::new();
        for line in self.edge.disconnected() {
            let message = read(&line);
            assert_eq!(message.method(), "notifications/cancelled");
            let span = message.param(&["requestId"]).expect("one").expect("an id");
            cancelled.extend(number(Some(&line[span])));
        }
        let open = self.questions.iter_mut().filter(|one| matches!(one.stand, Stand::Open(_)));
        let mut open: Vec<u64> = open.filter_map(|one| one.close_known()).collect();
        open.sort_unstable();
        assert!(self.wild || cancelled == open, "cancelled {cancelled:?}, open {open:?}");
        for one in &mut self.questions {
            one.close();
        }
        (self.link, self.initialized) = (self.link + 1, false);
        self.asked.clear();
        self.held.clear();
    }
}

impl Question {
    /// Closes it, and returns the id that the gateway gave it.
    fn close(&mut self) -> u64 {
        self.close_known();
        self.asked
    }

    /// Closes it, and returns the id that the child knows.
    fn close_known(&mut self) -> Option<u64> {
        let known = match self.stand {
            Stand::Open(known) => Some(known),
            Stand::Closed(known) => known,
            Stand::Held => None,
        };
        self.stand = Stand::Closed(known);
        known
    }
}

/// Checks a message of the edge: one line, and well formed.
#[track_caller]
fn read(text: &str) -> Message<'_> {
    assert!(!text.contains(['\n', '\r']));
    Message::read(text).expect("a message")
}

fn code(answer: &str) -> Option<i64> {
    let found = find(answer, 0..answer.len(), &["error", "code"]).ok().flatten();
    found.and_then(|span| answer[span].parse().ok())
}

fn number(raw: Option<&str>) -> Option<u64> {
    raw.and_then(|raw| raw.parse().ok())
}

/// The ids that our gateway creates stay small for the life of any link.
fn small(id: &str) -> Option<u64> {
    id.parse().ok().filter(|id| *id < 1 << 32)
}

fn channels(frame: &str) {
    let again = match frame::read(frame) {
        Frame::Plain(text) => return assert_eq!(text, frame),
        Frame::Message(number, text) => frame::message(number, text),
        Frame::Open(number) => frame::open(number),
        Frame::Close(number, why) => frame::close(number, why),
    };
    assert_eq!(frame::read(&again), frame::read(frame));
    assert!(Message::read(frame).is_err(), "no message looks like a frame of a channel");
}
