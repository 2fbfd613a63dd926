//! The edge's end of a link: what goes to the child, what comes back, and what must not.
//!
//! The child lives longer than a link. So the edge answers a repeated `initialize` from what the child
//! said the first time, and moves the ids of each later link up by an offset: a late answer to a
//! question of an earlier link can then never pass for an answer to a new one.
//!
//! Pure; `register::life` drives it.

use std::collections::BTreeSet;

use crate::{
    jsonrpc::{self, Kind, Message, Span},
    limits::EDGE_OPEN,
    tunnel::{handshake::Status, rewrite},
};

/// What becomes of a frame from the gateway.
#[derive(Debug, Eq, PartialEq)]
pub enum Down {
    /// A line for the child, without its line end.
    Child(String),
    /// A frame back to the gateway.
    Gateway(String),
    /// The gateway speaks to us.
    Status(Status),
    /// Nothing.
    Drop(&'static str),
}

/// What becomes of a line from the child.
#[derive(Debug, Eq, PartialEq)]
pub enum Up {
    /// A frame for the gateway.
    Gateway(String),
    /// Nothing: the answer is to a question of an earlier link.
    Stale,
    /// Nothing: the line is no message.
    Noise,
}

/// What the child said to `initialize`.
#[derive(Debug, Default)]
enum Greeting {
    /// It was not asked.
    #[default]
    None,
    /// It was asked with this id (as the child knows it); `wanted` is the id the present link waits with.
    Asked { id: u64, wanted: Option<String> },
    /// Its result.
    Known(String),
}

/// The state of the edge's end.
#[derive(Debug, Default)]
pub struct Edge {
    /// Added to the gateway's ids on their way to the child.
    offset: u64,
    /// Above all ids that the child knows.
    next: u64,
    /// Requests that the child has not answered, by the id it knows.
    open: BTreeSet<u64>,
    greeting: Greeting,
    initialized: bool,
}

impl Edge {
    /// The link is gone. Gives the lines that tell the child to stop what nobody waits for.
    pub fn disconnected(&mut self) -> Vec<String> {
        if let Greeting::Asked { id, wanted } = &mut self.greeting {
            *wanted = None;
            self.open.remove(id);
        }
        let open = std::mem::take(&mut self.open);
        if self.next >= SMALL {
            // Soon the ids would not be exact. Beginning again only risks that a late answer passes for another.
            self.next = 0;
            if matches!(self.greeting, Greeting::Asked { .. }) {
                self.greeting = Greeting::None;
            }
        }
        self.offset = self.next;
        open.into_iter().map(|id| rewrite::cancelled(id, "the link to the gateway was lost")).collect()
    }

    /// A frame came from the gateway.
    pub fn from_gateway(&mut self, frame: &str) -> Down {
        let Ok(message) = Message::read(frame) else {
            return Status::read(frame).map_or(Down::Drop("a frame that is no message"), Down::Status);
        };
        match (message.kind(), message.method()) {
            (Kind::Request, "initialize") => self.greet(&message),
            (Kind::Request, _) => self.ask(&message),
            (Kind::Notification, "notifications/initialized")
                if std::mem::replace(&mut self.initialized, true) =>
            {
                Down::Drop("the child is initialized already")
            }
            (Kind::Notification, "notifications/cancelled") => self.cancel(&message),
            _ => Down::Child(message.splice(&[])),
        }
    }

    /// A line came from the child.
    pub fn from_child(&mut self, line: &str) -> Up {
        let Ok(message) = Message::read(line) else { return Up::Noise };
        match message.kind() {
            Kind::Response => self.answer(&message),
            Kind::Notification if message.method() == "notifications/progress" => {
                let Ok(span) = message.param(&["progressToken"]) else { return Up::Noise };
                if span
                    .clone()
                    .and_then(|span| number(&line[span], EXACT))
                    .is_some_and(|token| token < self.offset)
                {
                    return Up::Stale;
                }
                Up::Gateway(self.shift(&message, span.into_iter(), Self::to_gateway))
            }
            _ => Up::Gateway(message.splice(&[])),
        }
    }

    fn cancel(&mut self, message: &Message<'_>) -> Down {
        let Ok(span) = message.param(&["requestId"]) else {
            return Down::Drop("a cancellation with an ambiguous request id");
        };
        if let Some(id) = span.clone().and_then(|span| number(&message.text()[span], SMALL)) {
            let id = id + self.offset;
            if matches!(self.greeting, Greeting::Asked { id: asked, .. } if asked == id) {
                return Down::Drop("initialize is never cancelled");
            }
            self.open.remove(&id);
        }
        Down::Child(self.shift(message, span.into_iter(), Self::to_child))
    }

    fn greet(&mut self, message: &Message<'_>) -> Down {
        let id = message.id().unwrap_or_default().to_owned();
        match &mut self.greeting {
            Greeting::Known(result) => Down::Gateway(jsonrpc::result(&id, result)),
            Greeting::Asked { wanted, .. } => {
                *wanted = Some(id);
                Down::Drop("the child is still thinking about an earlier initialize")
            }
            Greeting::None => {
                if let Some(number) = number(&id, SMALL) {
                    self.greeting = Greeting::Asked { id: number + self.offset, wanted: Some(id) };
                }
                self.ask(message)
            }
        }
    }

    fn ask(&mut self, message: &Message<'_>) -> Down {
        let Ok(token) = message.param(&["_meta", "progressToken"]) else {
            return Down::Drop("a request with an ambiguous progress token");
        };
        let mut spans: Vec<Span> = message.id_span().into_iter().chain(token).collect();
        spans.sort_by_key(|span| span.start);
        if spans.iter().any(|span| number(&message.text()[span.clone()], EXACT).is_some_and(|id| id >= SMALL))
        {
            // On its way back it could not be told from one that was moved.
            let why = "request ids and progress tokens from 2^52 to 2^53 are not carried";
            let id = message.id().unwrap_or_default();
            return Down::Gateway(jsonrpc::error(id, jsonrpc::INVALID_REQUEST, why));
        }
        if let Some(id) = message.id().and_then(|id| number(id, SMALL)) {
            self.next = self.next.max(id + self.offset + 1);
            if self.open.len() < EDGE_OPEN {
                self.open.insert(id + self.offset);
            }
        }
        Down::Child(self.shift(message, spans.into_iter(), Self::to_child))
    }

    fn answer(&mut self, message: &Message<'_>) -> Up {
        let Some(id) = message.id().and_then(|id| number(id, EXACT)) else {
            return Up::Gateway(message.splice(&[]));
        };
        self.open.remove(&id);
        if let Greeting::Asked { id: asked, wanted } = &mut self.greeting
            && *asked == id
        {
            let wanted = wanted.take();
            self.greeting = match message.result() {
                Some(result) => Greeting::Known(result.to_owned()),
                None => Greeting::None,
            };
            return wanted.map_or(Up::Stale, |id| Up::Gateway(message.with_id(&id)));
        }
        if id < self.offset {
            return Up::Stale;
        }
        Up::Gateway(self.shift(message, message.id_span().into_iter(), Self::to_gateway))
    }

    /// The message with its numeric ids moved; other ids stay as they are.
    fn shift(
        &self,
        message: &Message<'_>,
        spans: impl Iterator<Item = Span>,
        moved: fn(&Self, &str) -> Option<u64>,
    ) -> String {
        let new: Vec<(Span, String)> = spans
            .filter_map(|span| Some((span.clone(), moved(self, &message.text()[span])?.to_string())))
            .collect();
        let edits: Vec<(Span, &str)> = new.iter().map(|(span, text)| (span.clone(), text.as_str())).collect();
        message.splice(if self.offset == 0 { &[] } else { &edits })
    }

    fn to_child(&self, raw: &str) -> Option<u64> {
        number(raw, SMALL).map(|id| id + self.offset)
    }

    fn to_gateway(&self, raw: &str) -> Option<u64> {
        number(raw, EXACT).map(|id| id.saturating_sub(self.offset))
    }
}

/// Below this every JSON reader holds a number exactly.
const EXACT: u64 = 1 << 53;
/// Below this an id of the gateway is moved: an offset is below it too, so that their sum is exact.
const SMALL: u64 = 1 << 52;

/// A plain number below a bound.
fn number(raw: &str, bound: u64) -> Option<u64> {
    let plain = raw.bytes().all(|byte| byte.is_ascii_digit());
    raw.parse().ok().filter(|number| plain && *number < bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"_meta":{{"progressToken":{id}}}}}}}"#
        )
    }

    fn answer(id: u64) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"n":{id}}}}}"#)
    }

    fn progress(token: u64) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
        )
    }

    #[test]
    fn the_first_link_passes_everything_as_it_is() {
        let mut edge = Edge::default();
        assert_eq!(edge.from_gateway(&call(1)), Down::Child(call(1)));
        assert_eq!(edge.from_child(&progress(1)), Up::Gateway(progress(1)));
        assert_eq!(edge.from_child(&answer(1)), Up::Gateway(answer(1)));
        let ping = r#"{"jsonrpc":"2.0","id":"x","method":"ping"}"#;
        assert_eq!(edge.from_child(ping), Up::Gateway(ping.into()));
        assert_eq!(edge.from_child("Listening on port 3"), Up::Noise);
        assert!(matches!(edge.from_gateway(r#"{"status":"registered","id":"x"}"#), Down::Status(_)));
    }

    #[test]
    fn late_answers_do_not_reach_a_new_link() {
        let mut edge = Edge::default();
        edge.from_gateway(&call(1));
        edge.from_gateway(&call(2));
        edge.from_child(&answer(1));
        let lines = edge.disconnected();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains("\"requestId\":2"), "{lines:?}");
        assert_eq!(edge.from_gateway(&call(1)), Down::Child(call(4)));
        assert_eq!(edge.from_child(&answer(2)), Up::Stale);
        assert_eq!(edge.from_child(&progress(2)), Up::Stale);
        assert_eq!(edge.from_child(&progress(4)), Up::Gateway(progress(1)));
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert_eq!(edge.from_gateway(cancel), Down::Child(cancel.replace(":1}", ":4}")));
        assert_eq!(edge.from_child(&answer(4)), Up::Gateway(answer(1).replace("\"n\":1", "\"n\":4")));
        assert!(edge.disconnected().is_empty());
    }

    #[test]
    fn an_id_of_0_is_one_like_any_other() {
        let mut edge = Edge::default();
        for _ in 0..3 {
            assert!(matches!(edge.from_gateway(&call(0)), Down::Child(_)));
            let theirs = *edge.open.first().unwrap();
            assert!(
                matches!(edge.from_child(&answer(theirs)), Up::Gateway(frame) if frame.contains("\"id\":0,"))
            );
            edge.disconnected();
        }
    }

    #[test]
    fn a_child_is_initialized_once() {
        let mut edge = Edge::default();
        let hello = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(edge.from_gateway(&hello(1)), Down::Child(hello(1)));
        assert_eq!(edge.from_child(&answer(1)), Up::Gateway(answer(1)));
        assert_eq!(edge.from_gateway(done), Down::Child(done.into()));
        assert!(edge.disconnected().is_empty());
        let known = r#"{"jsonrpc":"2.0","id":9,"result":{"n":1}}"#;
        assert_eq!(edge.from_gateway(&hello(9)), Down::Gateway(known.into()));
        assert!(matches!(edge.from_gateway(done), Down::Drop(_)));
    }

    #[test]
    fn an_initialize_that_outlives_its_link_answers_the_next() {
        let mut edge = Edge::default();
        let hello = |id| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"initialize","params":{{}}}}"#);
        edge.from_gateway(&hello(1));
        assert!(edge.disconnected().is_empty(), "initialize is never cancelled");
        assert!(matches!(edge.from_gateway(&hello(5)), Down::Drop(_)));
        assert_eq!(edge.from_child(&answer(1)), Up::Gateway(answer(5).replace("\"n\":5", "\"n\":1")));
    }

    #[test]
    fn large_ids_survive_reconnects() {
        let mut edge = Edge::default();
        for _ in 0..5000 {
            let id = SMALL - 1;
            let Down::Child(line) = edge.from_gateway(&call(id)) else { panic!("no line") };
            let theirs = Message::read(&line).unwrap().id().unwrap().parse().unwrap();
            assert!(theirs < EXACT);
            let Up::Gateway(frame) = edge.from_child(&answer(theirs)) else { panic!("no answer") };
            assert_eq!(Message::read(&frame).unwrap().id(), Some(id.to_string().as_str()));
            edge.disconnected();
        }
    }

    #[test]
    fn what_must_not_reach_the_child() {
        let mut edge = Edge::default();
        edge.from_gateway(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#);
        let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        assert!(matches!(edge.from_gateway(cancel), Down::Drop(_)), "initialize is never cancelled");
        let ambiguous = cancel.replace(":1}", ":2,\"requestId\":3}");
        assert!(matches!(edge.from_gateway(&ambiguous), Down::Drop(_)));
        assert!(matches!(edge.from_gateway(&call(SMALL)), Down::Gateway(error) if error.contains("2^52")));
        assert!(matches!(edge.from_gateway(&call(EXACT)), Down::Child(line) if line == call(EXACT)));
    }

    #[test]
    fn a_refused_initialize_is_asked_again() {
        let mut edge = Edge::default();
        let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}"#;
        edge.from_gateway(hello);
        let error = r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}"#;
        assert_eq!(edge.from_child(error), Up::Gateway(error.into()));
        edge.disconnected();
        assert!(matches!(edge.from_gateway(hello), Down::Child(_)));
    }
}
