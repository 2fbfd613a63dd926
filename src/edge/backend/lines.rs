//! Finds the messages in the output of a server and gives them to a [`LineSink`].
//!
//! Without I/O and time, so that every kind of backend can use it: `edge::backend::stdio` for the
//! lines of a child's stdout.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{str, time::Instant, vec};

use super::{LineOutcome, LineSink};
use crate::{
    jsonrpc::tolerant::{self, MessagePart},
    limits::{self, ChildLimits},
    log_throttle::LineBudget,
    util,
};

/// The messages in one line of output: the line itself or, if that is not a message, those that
/// [`tolerant`] finds in it.
#[derive(Debug)]
pub struct LineParts<'a> {
    line: &'a [u8],
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The line as a whole comes first.
    Whole,
    Parts {
        parts: vec::IntoIter<MessagePart>,
        has_message: bool,
    },
    Done,
}

impl<'a> LineParts<'a> {
    /// Begins with a line, without its line end.
    pub fn new(line: &'a [u8]) -> Self {
        Self { line, stage: Stage::Whole }
    }

    /// Gives the next message to the sink. Returns `None` after the last. If no part is a message,
    /// the line as a whole is noise.
    ///
    /// Finish the [`super::Delivery`] before the next call.
    pub fn next(&mut self, sink: &dyn LineSink) -> Option<LineOutcome> {
        if let Stage::Whole = self.stage {
            let outcome = str::from_utf8(self.line).map_or(LineOutcome::Noise, |line| sink.message(line));
            if !matches!(outcome, LineOutcome::Noise) {
                self.stage = Stage::Done;
                return Some(outcome);
            }
            self.stage = Stage::Parts { parts: tolerant::parts(self.line).into_iter(), has_message: false };
        }
        let Stage::Parts { parts, has_message } = &mut self.stage else { return None };
        for part in parts {
            match give(part, sink) {
                LineOutcome::Noise => {}
                LineOutcome::End(why) => {
                    self.stage = Stage::Done;
                    return Some(LineOutcome::End(why));
                }
                message @ LineOutcome::Message(_) => {
                    *has_message = true;
                    return Some(message);
                }
            }
        }
        let is_noise = !*has_message;
        self.stage = Stage::Done;
        is_noise.then_some(LineOutcome::Noise)
    }
}

fn give(part: MessagePart, sink: &dyn LineSink) -> LineOutcome {
    match part {
        MessagePart::Message(text) => sink.message(&text),
        MessagePart::Unusable(answer) => {
            let why = format!("invalid response from the server: {}", answer.why);
            sink.unusable(answer.id.as_deref(), &why)
        }
        MessagePart::Noise => LineOutcome::Noise,
    }
}

/// A line that is skipped because it exceeds `--max-message-bytes`. If it is a response, its
/// request fails.
#[derive(Debug)]
pub struct TooLarge {
    /// Largest line in bytes.
    max: usize,
    /// The line is a response whose id has not been found yet.
    open: bool,
}

impl TooLarge {
    /// Creates the state for a stream of lines of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, open: false }
    }

    /// Handles the start of such a line: fails the request if the id of the response is in it.
    pub fn begins(&mut self, start: &[u8], sink: &dyn LineSink) -> LineOutcome {
        log::warn!("skipped a line of the server: longer than {} bytes (--max-message-bytes)", self.max);
        let answer = tolerant::unusable(start, "");
        self.open = answer.as_ref().is_some_and(|answer| answer.id.is_none());
        match answer.and_then(|answer| answer.id) {
            Some(id) => sink.unusable(Some(&id), &self.why()),
            None => LineOutcome::Noise,
        }
    }

    /// Handles the end of the line: looks for the id there if the start did not contain it.
    pub fn ended(&mut self, end: &[u8], sink: &dyn LineSink) -> LineOutcome {
        if std::mem::take(&mut self.open) {
            sink.unusable(tolerant::id_at_end(end).as_deref(), &self.why())
        } else {
            LineOutcome::Noise
        }
    }

    fn why(&self) -> String {
        format!(
            "the server's response is larger than {} bytes (see --max-message-bytes at register)",
            self.max
        )
    }
}

/// Counts the lines that are not messages, and logs them at the rate allowed for stderr.
#[derive(Debug)]
pub struct Noise {
    budget: LineBudget,
    count: u64,
}

impl Noise {
    /// Creates the counter of one run of a server.
    pub fn new(limits: &ChildLimits) -> Self {
        Self { budget: LineBudget::new(limits.stderr_lines, limits::LOG_EVERY), count: 0 }
    }

    /// Counts and logs one line.
    pub fn line(&mut self, now: Instant, line: &[u8]) {
        self.count += 1;
        if self.budget.spend(now, Self::dropped) {
            log::warn!(
                "the server wrote a line to stdout that is not an MCP message: {}",
                util::escape::show(&String::from_utf8_lossy(line))
            );
        }
    }

    fn dropped(count: u64) {
        if count > 0 {
            log::warn!("{count} more stdout lines that are not MCP messages were not logged");
        }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        Self::dropped(self.budget.dropped());
        if self.count > 0 {
            log::info!("{} stdout lines of the server were not MCP messages", self.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{edge::backend::Delivery, jsonrpc::Message};

    const ANSWER: &str = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    const NOTE: &str = r#"{"jsonrpc":"2.0","method":"note"}"#;

    /// Records what it is given. Request 1 is open; a message with the method `end` ends the server.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Recorder {
        fn note(&self, text: String) -> LineOutcome {
            self.0.lock().unwrap().push(text);
            LineOutcome::Message(Delivery::none())
        }

        fn taken(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl LineSink for Recorder {
        fn message(&self, text: &str) -> LineOutcome {
            match Message::read(text) {
                Ok(message) if message.method() == "end" => LineOutcome::End("it has to end"),
                Ok(_) => self.note(text.to_owned()),
                Err(_) => LineOutcome::Noise,
            }
        }

        fn unusable(&self, id: Option<&str>, why: &str) -> LineOutcome {
            match id {
                None | Some("1") => self.note(format!("{}: {why}", id.unwrap_or("-"))),
                Some(_) => LineOutcome::Noise,
            }
        }
    }

    /// Gives a line to a sink. Returns what the sink took, and a letter for each outcome.
    fn read(line: impl AsRef<[u8]>) -> (Vec<String>, String) {
        let (sink, mut outcomes) = (Recorder::default(), String::new());
        let mut parts = LineParts::new(line.as_ref());
        while let Some(outcome) = parts.next(&sink) {
            outcomes.push(letter(&outcome));
        }
        assert!(parts.next(&sink).is_none(), "nothing follows");
        (sink.taken(), outcomes)
    }

    fn letter(outcome: &LineOutcome) -> char {
        match outcome {
            LineOutcome::Message(_) => 'M',
            LineOutcome::Noise => 'N',
            LineOutcome::End(_) => 'E',
        }
    }

    #[test]
    fn a_message_is_given_once_and_unchanged() {
        for line in [ANSWER, NOTE, r#" { "jsonrpc" : "2.0" , "id" : 1 , "result" : [ 1 ] } "#] {
            assert_eq!(read(line), (vec![line.to_owned()], "M".to_owned()));
        }
    }

    #[test]
    fn a_line_without_a_message_is_noise_once() {
        for line in [&b"Server listening"[..], b"", b"[]", b"[1,2]", b"\xff\xfe", b"{\"level\":\"info\"}"] {
            assert_eq!(read(line), (Vec::new(), "N".to_owned()), "{:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_batch_is_given_message_by_message() {
        let taken = vec![ANSWER.to_owned(), NOTE.to_owned()];
        assert_eq!(read(format!("[{ANSWER},{NOTE}]")), (taken.clone(), "MM".to_owned()));
        assert_eq!(read(format!("[7,{ANSWER},\"x\",{NOTE},{{}}]")), (taken, "MM".to_owned()));
    }

    #[test]
    fn odd_lines_are_repaired() {
        assert_eq!(read(format!("\u{feff}{ANSWER}\0")), (vec![ANSWER.to_owned()], "M".to_owned()));
        let (taken, outcomes) = read(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":\"\xff\"}");
        assert_eq!(taken, ["1: invalid response from the server: not UTF-8"]);
        assert_eq!(outcomes, "M");
        let (taken, outcomes) = read(b"{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":\"\xff\"}");
        assert_eq!((taken.len(), outcomes.as_str()), (0, "N"), "nobody waits for it");
    }

    #[test]
    fn nothing_is_given_after_the_end() {
        let end = r#"{"jsonrpc":"2.0","method":"end"}"#;
        assert_eq!(read(end), (Vec::new(), "E".to_owned()));
        assert_eq!(read(format!("[{NOTE},{end},{ANSWER}]")), (vec![NOTE.to_owned()], "ME".to_owned()));
    }

    #[test]
    fn a_response_that_is_too_large_fails_its_request() {
        let why = "the server's response is larger than 100 bytes (see --max-message-bytes at register)";
        for (start, end, first, last, taken) in [
            // The id is at the start, or at the end.
            (r#"{"jsonrpc":"2.0","id":1,"result":"xxx"#, r#"xxx"}"#, 'M', 'N', Some("1")),
            (r#"{"jsonrpc":"2.0","result":"xxx"#, r#"xxx","id":1}"#, 'N', 'M', Some("1")),
            (r#"{"jsonrpc":"2.0","result":"xxx"#, r#"xxx","id":2}"#, 'N', 'N', None),
            // There is none: the sink knows which request it must be.
            (r#"{"jsonrpc":"2.0","result":"xxx"#, r#"xxx"}"#, 'N', 'M', Some("-")),
            // It is not a response.
            (r#"{"jsonrpc":"2.0","id":1,"method":"m","params":"xxx"#, r#"xxx"}"#, 'N', 'N', None),
            ("xxx", r#"","id":1}"#, 'N', 'N', None),
        ] {
            let (sink, mut line) = (Recorder::default(), TooLarge::new(100));
            let outcomes =
                (letter(&line.begins(start.as_bytes(), &sink)), letter(&line.ended(end.as_bytes(), &sink)));
            assert_eq!(outcomes, (first, last), "{start} {end}");
            let taken: Vec<String> = taken.iter().map(|id| format!("{id}: {why}")).collect();
            assert_eq!(sink.taken(), taken, "{start} {end}");
        }
    }
}
