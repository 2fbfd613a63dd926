//! Decides the era of a server's process: whether it is used with `initialize` (legacy), or with
//! stateless requests from MCP 2026-07-28 on (modern). Some servers take the era of their first
//! message and keep it, so the first message is the probe.
//!
//! `server/discover` is sent first. A server that refuses it, or stays silent, gets `initialize`. A
//! server that is silent may still be starting up, and then answers both; so an answer to
//! `server/discover` does not decide as long as `initialize` is open.
//!
//! This state machine does no I/O and has no clock: `mcp::discovery` sends what it asks for, under
//! an id for each request, and passes the answers and timers in.

use crate::{
    config::EraPin,
    jsonrpc::{Message, UNSUPPORTED_VERSION, elements, find, unquote},
    mcp::{
        check_initialize_result, error_code, error_text, stateless::discover::DiscoverResult,
        version::V2026_07_28,
    },
};

/// A request of the probe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProbeRequest {
    /// `server/discover`, the first request of a modern client.
    Discover,
    /// `initialize`.
    Initialize,
}

impl ProbeRequest {
    /// Returns the method.
    pub fn method(self) -> &'static str {
        match self {
            Self::Discover => "server/discover",
            Self::Initialize => "initialize",
        }
    }
}

/// An event for [`EraProbe::on`].
#[derive(Clone, Copy, Debug)]
pub enum ProbeEvent<'m> {
    /// The server has registered.
    Start,
    /// The response to a request.
    Answer(ProbeRequest, &'m Message<'m>),
    /// The server sent something under the id of a request that is no valid response.
    Unusable(ProbeRequest),
    /// Nothing came for the time of `limits::StatelessLimits::probe_silence`. Only while
    /// [`EraProbe::listens_for_silence`].
    Silence,
    /// The time for the start of a server is over.
    Expired,
    /// The edge restarted the server.
    Restarted,
}

/// The step that follows from an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ProbeStep {
    /// Send this request. If an earlier one of the same kind is open, close it first.
    Ask(ProbeRequest),
    /// Wait for the open requests.
    Wait,
    /// The process is legacy; the last event was its result of `initialize`. Close a request that
    /// is still open.
    Legacy,
    /// The process is modern; it answered `server/discover`. Close a request that is still open.
    Modern,
    /// The server cannot be used, for this reason. Close the requests that are still open.
    Failed(String),
}

/// The state of a probe. The letters are those of the table in the tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ProbeState {
    /// N: nothing is sent yet.
    New,
    /// P: `server/discover` is open.
    Discover,
    /// B: both requests are open.
    Both,
    /// D: `server/discover` had a modern result, `initialize` is still open.
    Discovered,
    /// I: `initialize` is open.
    Initialize,
    /// Q: `server/discover` is open, and `initialize` had an error: the last chance.
    Again,
    /// M.
    Modern,
    /// L.
    Legacy,
    /// F.
    Failed,
}

/// Finds out the era of one process.
#[derive(Clone, Debug)]
pub struct EraProbe {
    pin: EraPin,
    /// Whether the edge can report restarts of modern servers; others get `initialize` first.
    offered: bool,
    /// Whether the process ended when it got `server/discover`.
    probe_kills: bool,
    state: ProbeState,
    /// Whether `server/discover` must not be sent because of an error of `initialize`, as that has
    /// happened already.
    asked_again: bool,
}

impl EraProbe {
    /// Creates the probe of a server whose registration pins its era, or does not. `offered`:
    /// whether the registration offers the eras at all.
    pub fn new(pin: EraPin, offered: bool) -> Self {
        Self { pin, offered, probe_kills: false, state: ProbeState::New, asked_again: false }
    }

    /// Returns the probe of the next process of a server whose probe has failed.
    pub fn anew(&self) -> Self {
        Self { probe_kills: self.probe_kills, ..Self::new(self.pin, self.offered) }
    }

    /// Whether to report [`ProbeEvent::Silence`].
    pub fn listens_for_silence(&self) -> bool {
        self.state == ProbeState::Discover && self.pin == EraPin::Auto
    }

    /// Whether the process ended when it got `server/discover`.
    pub fn probe_kills(&self) -> bool {
        self.probe_kills
    }

    /// Takes an event, and returns the step that follows. An event that does not fit the state, as a
    /// late answer does not, changes nothing.
    pub fn on(&mut self, event: ProbeEvent<'_>) -> ProbeStep {
        use ProbeState as State;
        match (self.state, event) {
            (State::New, ProbeEvent::Start) => self.start(),
            (State::Legacy, ProbeEvent::Restarted) => {
                // The edge gave the new process the stored `initialize` already, so it is legacy.
                self.asked_again = true;
                self.ask(State::Initialize, ProbeRequest::Initialize)
            }
            (State::Modern, ProbeEvent::Restarted) => {
                self.asked_again = false;
                self.ask(State::Discover, ProbeRequest::Discover)
            }
            (State::Discover, ProbeEvent::Silence) if self.listens_for_silence() => {
                self.ask(State::Both, ProbeRequest::Initialize)
            }
            (_, ProbeEvent::Expired) if self.is_probing() => self.fail("the server did not answer in time"),
            (_, ProbeEvent::Answer(ProbeRequest::Discover, message)) => {
                self.discovered(&DiscoverAnswer::read(message))
            }
            (_, ProbeEvent::Unusable(ProbeRequest::Discover)) => {
                self.discovered(&DiscoverAnswer::unusable(ProbeRequest::Discover))
            }
            (_, ProbeEvent::Answer(ProbeRequest::Initialize, message)) => {
                self.initialized(&InitializeAnswer::read(message))
            }
            (_, ProbeEvent::Unusable(ProbeRequest::Initialize)) => {
                self.initialized(&InitializeAnswer::Refused(unusable(ProbeRequest::Initialize)))
            }
            _ => ProbeStep::Wait,
        }
    }

    fn start(&mut self) -> ProbeStep {
        let discover = match self.pin {
            EraPin::Auto => self.offered && !self.probe_kills,
            EraPin::Legacy => false,
            EraPin::Modern => true,
        };
        match discover {
            true => self.ask(ProbeState::Discover, ProbeRequest::Discover),
            false => self.ask(ProbeState::Initialize, ProbeRequest::Initialize),
        }
    }

    fn discovered(&mut self, answer: &DiscoverAnswer) -> ProbeStep {
        use ProbeState as State;
        if let (State::Discover | State::Both, DiscoverAnswer::Refused { exited: true, .. }) =
            (self.state, answer)
        {
            self.probe_kills = true;
        }
        match (self.state, answer) {
            (State::Discover | State::Again, DiscoverAnswer::Modern) => {
                self.settle(State::Modern, ProbeStep::Modern)
            }
            (State::Discover, DiscoverAnswer::Refused { why, .. }) if self.pin == EraPin::Modern => {
                self.fail(&format!("the server does not speak MCP {V2026_07_28} (--era modern): {why}"))
            }
            (State::Discover, DiscoverAnswer::Refused { .. }) => {
                self.ask(State::Initialize, ProbeRequest::Initialize)
            }
            // The process may still commit to `initialize`, as the servers of some SDKs do.
            (State::Both, DiscoverAnswer::Modern) => self.settle(State::Discovered, ProbeStep::Wait),
            (State::Both, DiscoverAnswer::Refused { .. }) => self.settle(State::Initialize, ProbeStep::Wait),
            (State::Again, DiscoverAnswer::Refused { why, .. }) => self.fail(why),
            _ => ProbeStep::Wait,
        }
    }

    fn initialized(&mut self, answer: &InitializeAnswer) -> ProbeStep {
        use ProbeState as State;
        match (self.state, answer) {
            (State::Both | State::Discovered | State::Initialize, InitializeAnswer::Legacy) => {
                self.settle(State::Legacy, ProbeStep::Legacy)
            }
            (State::Both, InitializeAnswer::Modern(_)) => self.discover_again(),
            (State::Both, InitializeAnswer::Refused(_)) => self.settle(State::Again, ProbeStep::Wait),
            (State::Discovered, _) => self.settle(State::Modern, ProbeStep::Modern),
            (State::Initialize, InitializeAnswer::Modern(why)) if self.pin == EraPin::Legacy => {
                self.fail(&format!("the server speaks MCP {V2026_07_28} only (--era legacy): {why}"))
            }
            (State::Initialize, InitializeAnswer::Modern(_)) if !self.asked_again => self.discover_again(),
            (State::Initialize, InitializeAnswer::Modern(why) | InitializeAnswer::Refused(why)) => {
                self.fail(why)
            }
            _ => ProbeStep::Wait,
        }
    }

    fn discover_again(&mut self) -> ProbeStep {
        self.asked_again = true;
        self.ask(ProbeState::Again, ProbeRequest::Discover)
    }

    fn is_probing(&self) -> bool {
        use ProbeState as State;
        matches!(
            self.state,
            State::Discover | State::Both | State::Discovered | State::Initialize | State::Again
        )
    }

    fn ask(&mut self, state: ProbeState, request: ProbeRequest) -> ProbeStep {
        self.settle(state, ProbeStep::Ask(request))
    }

    fn fail(&mut self, why: &str) -> ProbeStep {
        self.settle(ProbeState::Failed, ProbeStep::Failed(why.to_owned()))
    }

    fn settle(&mut self, state: ProbeState, step: ProbeStep) -> ProbeStep {
        self.state = state;
        step
    }
}

/// An answer to `server/discover`.
enum DiscoverAnswer {
    /// A modern result.
    Modern,
    /// Anything else. `exited`: the process ended.
    Refused { why: String, exited: bool },
}

impl DiscoverAnswer {
    fn read(message: &Message<'_>) -> Self {
        match message.result() {
            Some(result) if DiscoverResult::read(result).is_some() => Self::Modern,
            Some(_) => {
                let why = format!("the result of server/discover is not one of MCP {V2026_07_28}");
                Self::Refused { why, exited: false }
            }
            None => {
                let why = format!("server/discover failed: {}", error_text(message));
                Self::Refused { why, exited: has_exited(message) }
            }
        }
    }

    fn unusable(request: ProbeRequest) -> Self {
        Self::Refused { why: unusable(request), exited: false }
    }
}

/// An answer to `initialize`.
enum InitializeAnswer {
    /// A result with a version that we know.
    Legacy,
    /// An error that names our version: only stateless requests are supported.
    Modern(String),
    /// Anything else.
    Refused(String),
}

impl InitializeAnswer {
    fn read(message: &Message<'_>) -> Self {
        let why = || format!("initialize failed: {}", error_text(message));
        match message.result().map(check_initialize_result) {
            Some(Ok(())) => Self::Legacy,
            Some(Err(why)) => Self::Refused(why),
            None if names_modern_version(message) => Self::Modern(why()),
            None => Self::Refused(why()),
        }
    }
}

fn unusable(request: ProbeRequest) -> String {
    format!("the answer to {} is not a valid response", request.method())
}

/// Whether the error of a response says that our modern version is supported.
fn names_modern_version(message: &Message<'_>) -> bool {
    error_code(message) == Some(UNSUPPORTED_VERSION)
        && message.error().is_some_and(|error| {
            let supported = find(error, 0..error.len(), &["data", "supported"]).ok().flatten();
            let mut versions = supported.into_iter().flat_map(|list| elements(error, list));
            versions.any(|version| unquote(&error[version]).as_deref() == Some(V2026_07_28))
        })
}

/// Whether the edge answered in place of a process that has ended.
fn has_exited(message: &Message<'_>) -> bool {
    let exited = |error: &str| {
        let span = find(error, 0..error.len(), &["data", "exited"]).ok().flatten();
        span.is_some_and(|span| &error[span] == "true")
    };
    message.error().is_some_and(exited)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Responses by name: `d-` to `server/discover`, `i-` to `initialize`.
    const ANSWERS: &[(&str, &str)] = &[
        ("d-ok", r#""result":{"resultType":"complete","supportedVersions":["2027-01-01","2026-07-28"]}"#),
        ("d-no-type", r#""result":{"supportedVersions":["2026-07-28"],"capabilities":{}}"#),
        ("d-other-version", r#""result":{"resultType":"complete","supportedVersions":["2027-01-01"]}"#),
        ("d-no-versions", r#""result":{"resultType":"complete","supportedVersions":"2026-07-28"}"#),
        (
            "d-twice",
            r#""result":{"resultType":"complete","supportedVersions":[],"supportedVersions":["2026-07-28"]}"#,
        ),
        ("d--32601", r#""error":{"code":-32601,"message":"no"}"#),
        ("d--32602", r#""error":{"code":-32602,"message":"no"}"#),
        ("d--32600", r#""error":{"code":-32600,"message":"no"}"#),
        ("d--32603", r#""error":{"code":-32603,"message":"no"}"#),
        ("d-1", r#""error":{"code":1,"message":"no"}"#),
        ("d--32022", r#""error":{"code":-32022,"message":"no","data":{"supported":["2026-07-28"]}}"#),
        ("d-exited", r#""error":{"code":-32603,"message":"no","data":{"exited":true}}"#),
        ("i-ok", r#""result":{"protocolVersion":"2025-11-25","capabilities":{}}"#),
        ("i-oldest", r#""result":{"protocolVersion":"2024-11-05","capabilities":{}}"#),
        ("i-2026", r#""result":{"protocolVersion":"2026-07-28","capabilities":{}}"#),
        ("i-unknown", r#""result":{"protocolVersion":"1","capabilities":{}}"#),
        ("i-no-version", r#""result":{}"#),
        ("i--32600", r#""error":{"code":-32600,"message":"no"}"#),
        ("i--32022", r#""error":{"code":-32022,"message":"no","data":{"supported":["2026-07-28"]}}"#),
        ("i--32022-other", r#""error":{"code":-32022,"message":"no","data":{"supported":["2027-01-01"]}}"#),
        ("i--32022-bare", r#""error":{"code":-32022,"message":"no"}"#),
        ("i-32000-ours", r#""error":{"code":-32000,"message":"no","data":{"supported":["2026-07-28"]}}"#),
    ];

    /// The table of the design: row, pin (`auto-`: the edge does not offer eras; `kills`: the probe
    /// has ended a process), state, event, next state, step.
    #[rustfmt::skip]
        const TABLE: &[(u8, &str, char, &str, char, &str)] = &[
        (1, "auto", 'N', "start", 'P', "ask discover"),
        (2, "auto-", 'N', "start", 'I', "ask initialize"),
        (3, "legacy", 'N', "start", 'I', "ask initialize"),
        (4, "kills", 'N', "start", 'I', "ask initialize"),
        (5, "modern", 'N', "start", 'P', "ask discover"),
        (6, "auto", 'P', "d-ok", 'M', "modern"),
        (6, "modern", 'P', "d-ok", 'M', "modern"),
        (7, "auto", 'P', "d-no-type", 'I', "ask initialize"),
        (8, "auto", 'P', "d-other-version", 'I', "ask initialize"),
        (8, "auto", 'P', "d-no-versions", 'I', "ask initialize"),
        (8, "auto", 'P', "d-twice", 'I', "ask initialize"),
        (9, "auto", 'P', "d--32601", 'I', "ask initialize"),
        (9, "auto", 'P', "d--32602", 'I', "ask initialize"),
        (9, "auto", 'P', "d--32600", 'I', "ask initialize"),
        (9, "auto", 'P', "d--32603", 'I', "ask initialize"),
        (9, "auto", 'P', "d-1", 'I', "ask initialize"),
        (10, "auto", 'P', "d--32022", 'I', "ask initialize"),
        (11, "auto", 'P', "d-exited", 'I', "ask initialize, kills"),
        (12, "auto", 'P', "d-unusable", 'I', "ask initialize"),
        (13, "auto", 'P', "silence", 'B', "ask initialize"),
        (14, "modern", 'P', "d-no-type", 'F', "failed: the server does not speak MCP 2026-07-28 (--era modern): the result of server/discover is not one of MCP 2026-07-28"),
        (14, "modern", 'P', "d--32601", 'F', "failed: the server does not speak MCP 2026-07-28 (--era modern): server/discover failed: no"),
        (14, "modern", 'P', "d-exited", 'F', "failed: the server does not speak MCP 2026-07-28 (--era modern): server/discover failed: no, kills"),
        (14, "modern", 'P', "d-unusable", 'F', "failed: the server does not speak MCP 2026-07-28 (--era modern): the answer to server/discover is not a valid response"),
        (14, "modern", 'P', "silence", 'P', "wait"),
        (15, "auto", 'P', "expired", 'F', "failed: the server did not answer in time"),
        (15, "auto", 'Q', "expired", 'F', "failed: the server did not answer in time"),
        (15, "auto", 'B', "expired", 'F', "failed: the server did not answer in time"),
        (15, "auto", 'I', "expired", 'F', "failed: the server did not answer in time"),
        (15, "auto", 'D', "expired", 'F', "failed: the server did not answer in time"),
        (16, "auto", 'B', "d-ok", 'D', "wait"),
        (17, "auto", 'B', "d--32601", 'I', "wait"),
        (17, "auto", 'B', "d-unusable", 'I', "wait"),
        (17, "auto", 'B', "d-no-type", 'I', "wait"),
        (18, "auto", 'B', "d-exited", 'I', "wait, kills"),
        (19, "auto", 'B', "i-ok", 'L', "legacy"),
        (20, "auto", 'B', "i--32022", 'Q', "ask discover"),
        (21, "auto", 'B', "i--32600", 'Q', "wait"),
        (21, "auto", 'B', "i--32022-other", 'Q', "wait"),
        (21, "auto", 'B', "i-unusable", 'Q', "wait"),
        (21, "auto", 'B', "i-unknown", 'Q', "wait"),
        (22, "auto", 'D', "i--32022", 'M', "modern"),
        (22, "auto", 'D', "i--32600", 'M', "modern"),
        (22, "auto", 'D', "i-unusable", 'M', "modern"),
        (22, "auto", 'D', "i-2026", 'M', "modern"),
        (23, "auto", 'D', "i-ok", 'L', "legacy"),
        (24, "auto", 'I', "i-ok", 'L', "legacy"),
        (24, "legacy", 'I', "i-oldest", 'L', "legacy"),
        (25, "auto", 'I', "i-unknown", 'F', "failed: the server uses unsupported protocol version 1"),
        (25, "auto", 'I', "i-2026", 'F', "failed: the server uses unsupported protocol version 2026-07-28"),
        (25, "auto", 'I', "i-no-version", 'F', "failed: the initialize result has no protocolVersion"),
        (26, "auto", 'I', "i--32022", 'Q', "ask discover"),
        (26, "auto-", 'I', "i--32022", 'Q', "ask discover"),
        (26, "legacy", 'I', "i--32022", 'F', "failed: the server speaks MCP 2026-07-28 only (--era legacy): initialize failed: no"),
        (27, "auto", 'I', "i--32600", 'F', "failed: initialize failed: no"),
        (27, "auto", 'I', "i--32022-other", 'F', "failed: initialize failed: no"),
        (27, "auto", 'I', "i--32022-bare", 'F', "failed: initialize failed: no"),
        (27, "auto", 'I', "i-32000-ours", 'F', "failed: initialize failed: no"),
        (27, "auto", 'I', "i-unusable", 'F', "failed: the answer to initialize is not a valid response"),
        (28, "auto", 'Q', "d-ok", 'M', "modern"),
        (29, "auto", 'Q', "d--32601", 'F', "failed: server/discover failed: no"),
        (29, "auto", 'Q', "d-exited", 'F', "failed: server/discover failed: no"),
        (29, "auto", 'Q', "d-no-type", 'F', "failed: the result of server/discover is not one of MCP 2026-07-28"),
        (29, "auto", 'Q', "d-unusable", 'F', "failed: the answer to server/discover is not a valid response"),
        (30, "auto", 'L', "restarted", 'I', "ask initialize"),
        (31, "modern", 'M', "restarted", 'P', "ask discover"),
        (32, "auto", 'M', "restarted", 'P', "ask discover"),
        (33, "auto", 'M', "i-ok", 'M', "wait"),
        (33, "auto", 'M', "d--32601", 'M', "wait"),
        (33, "auto", 'L', "d-ok", 'L', "wait"),
        (33, "auto", 'F', "d-ok", 'F', "wait"),
        (33, "auto", 'F', "expired", 'F', "wait"),
        (33, "auto", 'F', "restarted", 'F', "wait"),
        (33, "auto", 'I', "restarted", 'I', "wait"),
        (33, "auto", 'I', "silence", 'I', "wait"),
        (33, "auto", 'I', "d-ok", 'I', "wait"),
        (33, "auto", 'P', "i-ok", 'P', "wait"),
        (33, "auto", 'P', "start", 'P', "wait"),
    ];

    fn state(letter: char) -> ProbeState {
        match letter {
            'N' => ProbeState::New,
            'P' => ProbeState::Discover,
            'B' => ProbeState::Both,
            'D' => ProbeState::Discovered,
            'I' => ProbeState::Initialize,
            'Q' => ProbeState::Again,
            'M' => ProbeState::Modern,
            'L' => ProbeState::Legacy,
            _ => ProbeState::Failed,
        }
    }

    fn probe(pin: &str, letter: char) -> EraProbe {
        let era = match pin {
            "legacy" => EraPin::Legacy,
            "modern" => EraPin::Modern,
            _ => EraPin::Auto,
        };
        EraProbe { state: state(letter), probe_kills: pin == "kills", ..EraProbe::new(era, pin != "auto-") }
    }

    fn text(name: &str) -> String {
        let body = ANSWERS.iter().find(|(known, _)| *known == name).unwrap().1;
        format!(r#"{{"jsonrpc":"2.0","id":1,{body}}}"#)
    }

    fn request_of(name: &str) -> ProbeRequest {
        if name.starts_with("d-") { ProbeRequest::Discover } else { ProbeRequest::Initialize }
    }

    fn feed(probe: &mut EraProbe, name: &str) -> ProbeStep {
        match name {
            "start" => probe.on(ProbeEvent::Start),
            "silence" => probe.on(ProbeEvent::Silence),
            "expired" => probe.on(ProbeEvent::Expired),
            "restarted" => probe.on(ProbeEvent::Restarted),
            "d-unusable" | "i-unusable" => probe.on(ProbeEvent::Unusable(request_of(name))),
            _ => probe.on(ProbeEvent::Answer(request_of(name), &Message::read(&text(name)).unwrap())),
        }
    }

    fn words(step: &ProbeStep) -> String {
        match step {
            ProbeStep::Ask(ProbeRequest::Discover) => "ask discover".into(),
            ProbeStep::Ask(ProbeRequest::Initialize) => "ask initialize".into(),
            ProbeStep::Wait => "wait".into(),
            ProbeStep::Legacy => "legacy".into(),
            ProbeStep::Modern => "modern".into(),
            ProbeStep::Failed(why) => format!("failed: {why}"),
        }
    }

    #[test]
    fn table_of_states() {
        for (row, pin, from, event, next, step) in TABLE {
            let mut probe = probe(pin, *from);
            let killed = probe.probe_kills();
            let mut got = words(&feed(&mut probe, event));
            if probe.probe_kills() && !killed {
                got.push_str(", kills");
            }
            assert_eq!((probe.state, got.as_str()), (state(*next), *step), "row {row}: {pin} {from} {event}");
        }
        for row in 1..=33 {
            assert!(TABLE.iter().any(|(number, ..)| *number == row), "row {row}");
        }
    }

    #[test]
    fn silence_counts_while_the_first_discover_is_open() {
        for pin in ["auto", "auto-", "legacy", "modern"] {
            for letter in "NPBDIQMLF".chars() {
                let expected = letter == 'P' && pin.starts_with("auto");
                assert_eq!(probe(pin, letter).listens_for_silence(), expected, "{pin} {letter}");
            }
        }
    }

    /// Real servers, each with the events and the steps.
    #[test]
    fn dialogues_of_real_servers() {
        for (server, pin, events, steps) in [
            ("Python 2.3", "auto", "start d-ok", "ask discover|modern"),
            ("Python 1.30", "auto", "start d--32602 i-ok", "ask discover|ask initialize|legacy"),
            ("TypeScript 1", "auto", "start d--32601 i-ok", "ask discover|ask initialize|legacy"),
            (
                "TypeScript 2, slow",
                "auto",
                "start silence d-ok i-ok",
                "ask discover|ask initialize|wait|legacy",
            ),
            (
                "Python 2.3 after 20 s",
                "auto",
                "start silence d-ok i--32022",
                "ask discover|ask initialize|wait|modern",
            ),
            (
                "rmcp before 3.5",
                "auto",
                "start d-exited restarted i-ok",
                "ask discover|ask initialize|wait|legacy",
            ),
            ("silent to the probe", "auto", "start silence i-ok", "ask discover|ask initialize|legacy"),
            ("garbage", "auto", "start d-unusable i-ok", "ask discover|ask initialize|legacy"),
            ("github-mcp-server 1.6", "auto", "start d-no-type i-ok", "ask discover|ask initialize|legacy"),
            (
                "Python 2.3, another edge",
                "auto-",
                "start i--32022 d-ok",
                "ask initialize|ask discover|modern",
            ),
            (
                "Python 2.3, restarted",
                "modern",
                "start d-ok restarted d-ok",
                "ask discover|modern|ask discover|modern",
            ),
            (
                "Python 1.30, restarted",
                "auto",
                "start d--32602 i-ok restarted i-ok",
                "ask discover|ask initialize|legacy|ask initialize|legacy",
            ),
            (
                "Python 1.30, replaced by 2.3",
                "auto",
                "start d--32602 i-ok restarted i--32022",
                "ask discover|ask initialize|legacy|ask initialize|failed: initialize failed: no",
            ),
            (
                "initialize refused, slow",
                "auto",
                "start silence i--32600 d-ok",
                "ask discover|ask initialize|wait|modern",
            ),
            (
                "answers initialize first",
                "auto",
                "start silence i--32022 d-ok",
                "ask discover|ask initialize|ask discover|modern",
            ),
        ] {
            let mut probe = probe(pin, 'N');
            let got: Vec<String> = events.split(' ').map(|event| words(&feed(&mut probe, event))).collect();
            assert_eq!(got.join("|"), steps, "{server}");
        }
    }

    /// A probe with what its user has open, and what it has sent in this run of the process.
    #[derive(Clone)]
    struct Walk {
        probe: EraProbe,
        /// `server/discover`, `initialize`.
        open: [bool; 2],
        sent: [u8; 2],
    }

    impl Walk {
        fn step(&mut self, event: ProbeEvent<'_>, path: &[&str]) {
            let decided = !self.probe.is_probing();
            if let ProbeEvent::Answer(request, _) | ProbeEvent::Unusable(request) = event {
                self.open[request as usize] = false;
            }
            if decided && matches!(event, ProbeEvent::Restarted) {
                self.sent = [0; 2];
            }
            match self.probe.on(event) {
                ProbeStep::Ask(request) => {
                    self.open[request as usize] = true;
                    self.sent[request as usize] += 1;
                    assert!(self.sent[request as usize] <= 2, "{path:?}: {} three times", request.method());
                }
                ProbeStep::Wait => assert!(!decided || !self.probe.is_probing()),
                ProbeStep::Legacy | ProbeStep::Modern | ProbeStep::Failed(_) => self.open = [false; 2],
            }
            let open = self.open != [false; 2];
            assert_eq!(self.probe.is_probing(), open, "{path:?}: it waits for something, or is decided");
            if open {
                let mut expired = self.probe.clone();
                assert!(matches!(expired.on(ProbeEvent::Expired), ProbeStep::Failed(_)), "{path:?}");
            }
        }
    }

    fn walk(
        at: &Walk,
        left: usize,
        answers: &[(&'static str, Message<'_>)],
        path: &mut Vec<&'static str>,
    ) -> usize {
        if left == 0 {
            return 1;
        }
        let mut events: Vec<(&str, ProbeEvent<'_>)> = Vec::new();
        for (name, message) in answers {
            let request = request_of(name);
            if at.open[request as usize] {
                events.push((name, ProbeEvent::Answer(request, message)));
            }
        }
        for request in [ProbeRequest::Discover, ProbeRequest::Initialize] {
            if at.open[request as usize] {
                events.push(("unusable", ProbeEvent::Unusable(request)));
            }
        }
        if at.probe.listens_for_silence() {
            events.push(("silence", ProbeEvent::Silence));
        }
        events.extend([("restarted", ProbeEvent::Restarted), ("expired", ProbeEvent::Expired)]);
        let mut words = 0;
        for (name, event) in events {
            let mut next = at.clone();
            path.push(name);
            next.step(event, path);
            words += walk(&next, left - 1, answers, path);
            path.pop();
        }
        words
    }

    /// All words of six events that can happen, after each start.
    #[test]
    fn a_probe_asks_at_most_twice_and_always_ends() {
        let names = ["d-ok", "d-no-type", "d--32601", "d-exited", "i-ok", "i-2026", "i--32600", "i--32022"];
        let texts = names.map(|name| (name, text(name)));
        let answers: Vec<(&str, Message<'_>)> =
            texts.iter().map(|(name, text)| (*name, Message::read(text).unwrap())).collect();
        let mut words = 0;
        for pin in ["auto", "auto-", "kills", "legacy", "modern"] {
            let mut start = Walk { probe: probe(pin, 'N'), open: [false; 2], sent: [0; 2] };
            start.step(ProbeEvent::Start, &[]);
            words += walk(&start, 6, &answers, &mut vec![pin]);
        }
        assert!(words > 10_000, "{words}");
    }
}
