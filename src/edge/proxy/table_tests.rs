//! The state table of the proxy, and walks that compare the code with it.
//!
//! [`row`] is the table: for each state and event the next state and the kind of output. The walks
//! apply sequences of events to a [`ProxyState`] and check each step against the table, together
//! with the numbers of errors, cancellations and held messages.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use super::{ChildStart, ProxyState, ToChild, ToGateway};
use crate::jsonrpc::{self, Message};

/// The state of the child as messages find it. `waiting`: the current link waits for the response
/// to `initialize`. `told`: the gateway has sent `notifications/initialized`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum State {
    Uninitialized,
    Initializing {
        waiting: bool,
        told: bool,
    },
    Initialized {
        told: bool,
    },
    Reinitializing {
        waiting: bool,
        told: bool,
        has_asked: bool,
    },
    /// The child is down, and no `initialize` is stored. `probed`: the next one gets the
    /// `server/discover` of this link.
    DownNew {
        probed: bool,
    },
    /// The child is down, and `initialize` is stored.
    Down {
        waiting: bool,
        told: bool,
        probed: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Event {
    /// Frames of the gateway.
    Initialize,
    Done,
    Call,
    Notify,
    /// Cancels the latest call of this link.
    Cancel,
    /// The gateway opens a `subscriptions/listen`.
    Listen,
    /// It sends `server/discover`.
    Discover,
    /// It says that it finds out the era of the child.
    FindEra,
    /// Cancels the `initialize` of this link.
    CancelInitialize,
    Respond,
    /// Lines of the child. It answers `initialize` with a result or with an error.
    Result,
    Error,
    /// It answers a call.
    Answer,
    /// It sends a change to a listen of this link, or to one of an earlier link.
    Change,
    LateChange,
    /// It ends a listen with a response, or without one.
    EndListen,
    DropListen,
    /// It sends a request.
    Ask,
    /// It sends a response without an id that can be read.
    Unusable,
    /// The child ends, or cannot be started.
    Gone,
    Back,
    /// The link is lost.
    Cut,
}

const EVENTS: [Event; 22] = [
    Event::Initialize,
    Event::Done,
    Event::Call,
    Event::Notify,
    Event::Cancel,
    Event::Listen,
    Event::Discover,
    Event::FindEra,
    Event::CancelInitialize,
    Event::Respond,
    Event::Result,
    Event::Error,
    Event::Answer,
    Event::Change,
    Event::LateChange,
    Event::EndListen,
    Event::DropListen,
    Event::Ask,
    Event::Unusable,
    Event::Gone,
    Event::Back,
    Event::Cut,
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Output {
    /// To the child.
    Child,
    /// To the gateway.
    Gateway,
    Held,
    Drop,
    Ready,
    Refused,
    Unmatched,
    Stale,
    Noise,
    /// Errors for the calls that the child did not answer.
    Failed,
    /// Cancellations of the calls that the child did not answer.
    Cancelled,
    /// The next child gets the stored `initialize` and `server/discover`, or nothing. In the latter case, the gateway is
    /// told of the restart if it has to find out the era.
    Stored,
    Nothing,
}

/// The table. `None`: the event cannot happen in this state.
#[rustfmt::skip]
fn row(state: State, event: Event) -> Option<(State, Output)> {
    use Event::*;
    use Output::*;
    use State::*;
    Some(match (state, event) {
        (Uninitialized, Event::Initialize) => (Initializing { waiting: true, told: false }, Child),
        (Initializing { told, .. }, Event::Initialize) =>
            (Initializing { waiting: true, told }, Drop),
        (Initialized { .. }, Event::Initialize) => (state, Gateway),
        (Reinitializing { told, has_asked, .. }, Event::Initialize) =>
            (Reinitializing { waiting: true, told, has_asked }, Drop),
        (DownNew { probed }, Event::Initialize) =>
            (Down { waiting: true, told: false, probed }, Drop),
        (Down { told, probed, .. }, Event::Initialize) =>
            (Down { waiting: true, told, probed }, Drop),

        (Uninitialized, Done) => (state, Child),
        (Initializing { waiting, told: false }, Done) =>
            (Initializing { waiting, told: true }, Child),
        (Initialized { told: false }, Done) => (Initialized { told: true }, Child),
        (Initializing { .. } | Initialized { .. }, Done) => (state, Drop),
        (Reinitializing { waiting, has_asked, .. }, Done) =>
            (Reinitializing { waiting, told: true, has_asked }, Drop),
        (DownNew { .. }, Done) => (state, Drop),
        (Down { waiting, probed, .. }, Done) => (Down { waiting, told: true, probed }, Drop),

        (Initializing { .. }, CancelInitialize) => (state, Drop),
        (Uninitialized | Initialized { .. }, CancelInitialize) => (state, Child),
        (Uninitialized | Initializing { .. } | Initialized { .. },
            Call | Listen | Discover | Notify | Cancel | Respond) => (state, Child),
        (Reinitializing { .. }, Call | Listen | Discover | Notify | Cancel | CancelInitialize) =>
            (state, Held),
        (Reinitializing { has_asked: true, .. }, Respond) => (state, Child),
        (Reinitializing { has_asked: false, .. }, Respond) => (state, Drop),
        (DownNew { probed: false }, Discover) => (DownNew { probed: true }, Drop),
        (DownNew { .. } | Down { .. }, Call | Listen | Discover) => (state, Gateway),
        (DownNew { .. } | Down { .. }, Notify | Cancel | CancelInitialize | Respond) => (state, Drop),

        (Initializing { waiting: true, told }, Result) => (Initialized { told }, Gateway),
        (Initializing { waiting: false, told }, Result) => (Initialized { told }, Stale),
        (Reinitializing { told, .. }, Result) => (Initialized { told }, Ready),
        (Initializing { waiting: true, .. }, Error | Unusable) => (Uninitialized, Gateway),
        (Initializing { waiting: false, .. }, Error | Unusable) => (Uninitialized, Stale),
        (Reinitializing { waiting: true, .. }, Error | Unusable) => (Uninitialized, Ready),
        (Reinitializing { waiting: false, .. }, Error | Unusable) => (state, Refused),
        (Uninitialized | Initialized { .. }, Result | Error) => return None,
        (Uninitialized | Initialized { .. }, Unusable) => (state, Noise),

        (_, FindEra) => (state, Nothing),

        (Uninitialized | Initializing { .. } | Initialized { .. },
            Answer | Change | EndListen | DropListen | Ask) => (state, Gateway),
        (Uninitialized | Initializing { .. } | Initialized { .. }, LateChange) => (state, Stale),
        (Reinitializing { waiting, told, .. }, Ask) =>
            (Reinitializing { waiting, told, has_asked: true }, Gateway),
        (Reinitializing { .. } | DownNew { .. } | Down { .. },
            Answer | Change | LateChange | EndListen | DropListen) => return None,
        (DownNew { .. } | Down { .. }, Result | Error | Ask | Unusable) => (state, Stale),

        (Uninitialized, Gone) => (DownNew { probed: false }, Failed),
        (Initialized { told }, Gone) => (Down { waiting: false, told, probed: false }, Failed),
        (Initializing { waiting, told } | Reinitializing { waiting, told, .. }, Gone) =>
            (Down { waiting, told, probed: false }, Failed),
        (DownNew { .. } | Down { .. }, Gone) => (state, Failed),

        (Uninitialized, Back) => (state, Nothing),
        (DownNew { probed }, Back) => (Uninitialized, if probed { Stored } else { Nothing }),
        (Down { waiting, told, .. }, Back) =>
            (Reinitializing { waiting, told, has_asked: false }, Stored),
        (Initializing { .. } | Initialized { .. } | Reinitializing { .. }, Back) => return None,

        (Uninitialized | Initialized { .. }, Cut) => (state, Cancelled),
        (DownNew { .. }, Cut) => (DownNew { probed: false }, Cancelled),
        (Initializing { told, .. }, Cut) => (Initializing { waiting: false, told }, Cancelled),
        (Reinitializing { told, has_asked, .. }, Cut) =>
            (Reinitializing { waiting: false, told, has_asked }, Cancelled),
        (Down { told, .. }, Cut) => (Down { waiting: false, told, probed: false }, Cancelled),
    })
}

/// A proxy, the state that the table predicts for it, and what the gateway and the child know.
#[derive(Clone)]
struct Model {
    proxy: ProxyState,
    state: State,
    now: Instant,
    /// The last id of the gateway. It uses none twice.
    last: u64,
    /// The last call, and the `initialize` that the child got: what this link may cancel.
    call: Option<u64>,
    initialize: Option<u64>,
    /// The id of the `initialize` whose response the gateway waits for.
    waiting: u64,
    /// The id of `initialize` at the child.
    asked: String,
    /// Calls that the child has not answered, with the ids of the gateway and of the child.
    open: Vec<(u64, String)>,
    /// The same for listens.
    listens: Vec<(u64, String)>,
    /// The same for `server/discover`.
    probes: Vec<(u64, String)>,
    /// The ids at the child of the listens of earlier links.
    late: Vec<String>,
    /// The id of the last `server/discover`.
    probe: u64,
    /// The gateway finds out the era, and has sent a request since the last start of a child.
    finds_era: bool,
    has_requested: bool,
    /// Held messages: calls, cancelled calls and others, with the id of the call.
    held: Vec<(Event, u64)>,
    /// What has happened so far.
    sequence: Vec<Event>,
}

impl Model {
    fn new() -> Self {
        Self {
            proxy: ProxyState::default(),
            state: State::Uninitialized,
            now: Instant::now(),
            last: 0,
            call: None,
            initialize: None,
            waiting: 0,
            asked: String::new(),
            open: Vec::new(),
            listens: Vec::new(),
            probes: Vec::new(),
            late: Vec::new(),
            probe: 0,
            finds_era: false,
            has_requested: false,
            held: Vec::new(),
            sequence: Vec::new(),
        }
    }

    /// Whether the event can happen, beyond what the table send_line.
    fn allows(&self, event: Event) -> bool {
        match event {
            Event::Cancel => self.call.is_some(),
            Event::CancelInitialize => self.initialize.is_some(),
            Event::Answer => !self.open.is_empty(),
            Event::Change | Event::EndListen | Event::DropListen => !self.listens.is_empty(),
            Event::LateChange => !self.late.is_empty(),
            Event::FindEra => !self.finds_era,
            // With an open call, the response may belong to that.
            Event::Unusable => self.open.is_empty(),
            _ => true,
        }
    }

    /// Applies an event and checks what follows. Returns false if it cannot happen.
    fn step(&mut self, event: Event) -> bool {
        let (true, Some((state, output))) = (self.allows(event), row(self.state, event)) else {
            return false;
        };
        let from = self.state;
        (self.state, self.sequence) = (state, [&*self.sequence, &[event]].concat());
        let found = self.apply(event);
        assert_eq!(found, output, "{event:?} in {from:?}: {:?}", self.sequence);
        let is_up =
            matches!(state, State::Uninitialized | State::Initializing { .. } | State::Initialized { .. });
        let is_initializing = matches!(state, State::Reinitializing { .. });
        assert_eq!(
            (self.proxy.is_up(), self.proxy.is_initializing(), self.proxy.running()),
            (is_up, is_initializing, self.open.len() + self.held.len()),
            "{event:?} in {from:?}: {:?}",
            self.sequence
        );
        true
    }

    fn apply(&mut self, event: Event) -> Output {
        match event {
            Event::Result => self.send_line(event, &jsonrpc::result(&self.asked.clone(), "{}")),
            Event::Error => self.send_line(event, &jsonrpc::error(&self.asked.clone(), 1, "no")),
            Event::Answer => {
                let (_, id) = self.open.remove(0);
                self.send_line(event, &jsonrpc::result(&id, "{}"))
            }
            Event::Change => self.send_line(event, &change(&self.listens[0].1)),
            Event::LateChange => self.send_line(event, &change(&self.late[0])),
            Event::EndListen => {
                let (_, id) = self.listens.remove(0);
                self.send_line(event, &jsonrpc::result(&id, "{}"))
            }
            Event::DropListen => {
                let params = format!("{{\"requestId\":{}}}", self.listens[0].1);
                let line = jsonrpc::notification("notifications/cancelled", Some(&params));
                let output = self.send_line(event, &line);
                self.listens.remove(0);
                output
            }
            Event::FindEra => {
                self.proxy.gateway_finds_era();
                self.finds_era = true;
                Output::Nothing
            }
            Event::Ask => self.send_line(event, &jsonrpc::request("9", "ping", "{}")),
            Event::Unusable => {
                let output = self.proxy.unusable(None, "no");
                self.check_output(event, output)
            }
            Event::Gone => {
                let failed = self.proxy.child_gone("it has ended", None);
                let is_request =
                    |event: &Event| matches!(event, Event::Call | Event::Listen | Event::Discover);
                let held = self.held.drain(..).filter(|(event, _)| is_request(event)).count();
                let open =
                    self.open.drain(..).chain(self.listens.drain(..)).chain(self.probes.drain(..)).count();
                assert_eq!(failed.len(), open + held, "{:?}", self.sequence);
                assert!(failed.iter().all(|error| error.contains(r#""data":{"exited":true}"#)));
                self.late.clear();
                Output::Failed
            }
            Event::Back => {
                let reports = std::mem::take(&mut self.has_requested) && self.finds_era;
                match self.proxy.child_back() {
                    ChildStart::Lines(lines) => {
                        for line in lines {
                            match Message::read(&line).unwrap().method() {
                                "initialize" => self.asked = id_of(&line),
                                _ => self.probes.push((self.probe, id_of(&line))),
                            }
                        }
                        Output::Stored
                    }
                    start => {
                        let is_report = matches!(start, ChildStart::Report(_));
                        assert_eq!(is_report, reports, "{:?}", self.sequence);
                        Output::Nothing
                    }
                }
            }
            Event::Cut => {
                let cancelled = self.proxy.disconnected();
                self.late.extend(self.listens.iter().map(|(_, id)| id.clone()));
                let open =
                    self.open.drain(..).chain(self.listens.drain(..)).chain(self.probes.drain(..)).count();
                assert_eq!(cancelled.len(), open, "{:?}", self.sequence);
                self.held.clear();
                self.finds_era = false;
                (self.call, self.initialize) = (None, None);
                Output::Cancelled
            }
            _ => self.send_frame(event),
        }
    }

    /// The gateway sends a frame.
    fn send_frame(&mut self, event: Event) -> Output {
        if matches!(event, Event::Initialize | Event::Call | Event::Listen | Event::Discover) {
            self.last += 1;
            self.has_requested = true;
        }
        let (id, last) = (self.last, self.last.to_string());
        let cancellation = |id: u64| {
            let params = format!("{{\"requestId\":{id}}}");
            jsonrpc::notification("notifications/cancelled", Some(&params))
        };
        let frame = match event {
            Event::Initialize => jsonrpc::request(&last, "initialize", "{}"),
            Event::Done => jsonrpc::notification("notifications/initialized", None),
            Event::Call => jsonrpc::request(&last, "tools/call", "{}"),
            Event::Listen => jsonrpc::request(&last, "subscriptions/listen", "{}"),
            Event::Discover => jsonrpc::request(&last, "server/discover", "{}"),
            Event::Cancel => cancellation(self.call.unwrap()),
            Event::CancelInitialize => cancellation(self.initialize.unwrap()),
            Event::Notify => jsonrpc::notification("notifications/roots/list_changed", None),
            _ => jsonrpc::result("9", "{}"),
        };
        match event {
            Event::Initialize => self.waiting = id,
            Event::Call => self.call = Some(id),
            _ => {}
        }
        match self.proxy.on_gateway_frame(self.now, &frame) {
            ToChild::Child(line) => {
                match event {
                    Event::Initialize => (self.initialize, self.asked) = (Some(id), id_of(&line)),
                    Event::Listen | Event::Discover => self.on_line_at_child(event, id, &line),
                    _ => self.on_line_at_child(event, self.call.unwrap_or_default(), &line),
                }
                Output::Child
            }
            ToChild::Gateway(frame) => {
                assert_eq!(id_of(&frame), last, "{:?}", self.sequence);
                Output::Gateway
            }
            ToChild::Held => {
                let is_own = matches!(event, Event::Listen | Event::Discover);
                let call = if is_own { id } else { self.call.unwrap_or_default() };
                self.held.push((event, call));
                Output::Held
            }
            ToChild::Drop(_) => {
                if event == Event::Discover {
                    self.probe = id;
                }
                Output::Drop
            }
            ToChild::Status(status) => panic!("{status:?}"),
        }
    }

    /// The child sends a line, other than `initialize`.
    fn on_line_at_child(&mut self, event: Event, id: u64, line: &str) {
        match event {
            Event::Call => self.open.push((id, id_of(line))),
            Event::Discover => self.probes.push((id, id_of(line))),
            Event::Listen => self.listens.push((id, id_of(line))),
            Event::Cancel => {
                self.open.retain(|(open, _)| *open != id);
                self.probes.retain(|(open, _)| *open != id);
            }
            _ => {}
        }
    }

    fn send_line(&mut self, event: Event, line: &str) -> Output {
        let output = self.proxy.on_child_line(line);
        self.check_output(event, output)
    }

    fn check_output(&mut self, event: Event, output: ToGateway) -> Output {
        match output {
            ToGateway::Gateway(frame) => {
                if matches!(event, Event::Result | Event::Error | Event::Unusable) {
                    assert_eq!(id_of(&frame), self.waiting.to_string(), "{:?}", self.sequence);
                }
                if matches!(event, Event::Change | Event::DropListen) {
                    let (id, _) = self.listens[0];
                    assert!(frame.contains(&format!(":{id}}}")), "{frame}: {:?}", self.sequence);
                }
                Output::Gateway
            }
            ToGateway::Ready { lines, frames } => {
                self.ready(&lines, &frames);
                Output::Ready
            }
            ToGateway::Refused => Output::Refused,
            ToGateway::Unmatched(_) => Output::Unmatched,
            ToGateway::Stale => Output::Stale,
            ToGateway::Noise => Output::Noise,
        }
    }

    /// The child gets the held messages in order, after `notifications/initialized`.
    fn ready(&mut self, lines: &[String], frames: &[String]) {
        let told = usize::from(matches!(self.state, State::Initialized { told: true }));
        assert_eq!((lines.len(), frames.len()), (told + self.held.len(), 1), "{:?}", self.sequence);
        if let Some(id) = Message::read(&frames[0]).unwrap().id() {
            assert_eq!(id, self.waiting.to_string(), "{:?}", self.sequence);
        }
        let is_done = |line: &String| line.contains("notifications/initialized");
        assert_eq!(lines.iter().position(is_done), (told == 1).then_some(0));
        for ((event, id), line) in std::mem::take(&mut self.held).into_iter().zip(&lines[told..]) {
            self.on_line_at_child(event, id, line);
        }
    }
}

/// A change of a list, for a listen.
fn change(id: &str) -> String {
    let params = format!("{{\"_meta\":{{\"io.modelcontextprotocol/subscriptionId\":{id}}}}}");
    jsonrpc::notification("notifications/tools/list_changed", Some(&params))
}

fn id_of(text: &str) -> String {
    Message::read(text).unwrap().id().unwrap().to_owned()
}

/// Returns what each event that can happen leads to.
fn steps(model: &Model) -> impl Iterator<Item = Model> {
    EVENTS.into_iter().filter_map(|event| {
        let mut next = model.clone();
        next.step(event).then_some(next)
    })
}

/// Walks all sequences of up to `depth` more events. Returns how many there are.
fn walk(model: &Model, depth: usize) -> usize {
    match depth {
        0 => 0,
        _ => steps(model).map(|next| 1 + walk(&next, depth - 1)).sum(),
    }
}

/// `MCPPORT_DEPTH=6` walks longer sequences.
#[test]
fn every_short_sequence_follows_the_table() {
    let depth = std::env::var("MCPPORT_DEPTH").map_or(5, |depth| depth.parse().unwrap());
    let sequences = walk(&Model::new(), depth);
    assert!(sequences > 40_000, "{sequences}");
}

/// Every state, with and without open calls and listens, and held messages.
#[test]
fn every_state_follows_the_table() {
    let mut seen = HashMap::new();
    let mut next = vec![Model::new()];
    while let Some(model) = next.pop() {
        let open = (
            model.open.is_empty() && model.probes.is_empty(),
            model.listens.is_empty(),
            model.late.is_empty(),
        );
        let key = (model.state, open, model.held.is_empty(), model.finds_era && model.has_requested);
        if seen.insert(key, model.sequence.clone()).is_none() {
            next.extend(steps(&model));
        }
    }
    let states: HashSet<State> = seen.keys().map(|(state, ..)| *state).collect();
    assert_eq!((states.len(), seen.len()), (23, 172), "{seen:#?}");
}
