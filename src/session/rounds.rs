//! Calls of sessions at modern servers, while the server waits for answers of the client.
//!
//! A modern server asks with the result of the call (`input_required`), and forgets the call. The
//! client of a session is asked with requests, one for each question. Once all are answered, the
//! call is sent to the server again, with the answers: this is a round. Between two rounds nothing
//! runs at the server.
//!
//! Plain tables: `C` is what the program keeps of a call.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use crate::{
    budget::{Account, Charge},
    jsonrpc::{find, quote, unquote},
    limits::{self, StatelessLimits},
};

/// The key of a call with rounds. Never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RoundKey(u64);

/// A question to the client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoundQuestion {
    /// The server's key for it.
    pub key: String,
    /// The id that the gateway gave to an elicitation at a URL.
    pub elicitation_id: Option<String>,
}

/// A server's result of type `input_required`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RoundInput {
    /// The questions.
    pub questions: Vec<RoundQuestion>,
    /// The state that the server wants back.
    pub state: Option<String>,
}

/// The step that follows from an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RoundStep {
    /// Send a request for each question, in order, and call [`Rounds::asked`].
    Ask,
    /// Wait for answers, or for [`Rounds::tick`].
    Wait,
    /// Send the call again.
    Retry(RoundRetry),
}

/// A call that is sent again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoundRetry {
    /// The request as it was sent first.
    pub kept: Arc<str>,
    /// The answers of this round: a JSON object.
    pub responses: String,
    /// The server's state.
    pub state: Option<String>,
}

/// Why a call ends with a round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RoundError {
    /// The server asked more than [`StatelessLimits::round_inputs`] questions at once.
    TooManyQuestions,
    /// The server asked in more than [`StatelessLimits::rounds`] results.
    TooManyRounds,
    /// The client answered a question with an error.
    Rejected,
    /// The call has taken [`StatelessLimits::round_time`].
    Expired,
    /// The memory budget is used up.
    NoMemory,
    /// The call was cancelled, its client cannot be asked, or its session or server is gone.
    Ended,
}

/// A call that ended with a round.
#[derive(Debug, Eq, PartialEq)]
pub struct EndedRound<C> {
    /// The call.
    pub call: C,
    /// Why it ended.
    pub why: RoundError,
    /// The ids of the requests that the client need not answer any more.
    pub open: Vec<u64>,
}

/// A call that its server has answered.
#[derive(Debug, Eq, PartialEq)]
pub struct CompletedRound<C> {
    /// The call.
    pub call: C,
    /// The ids that the gateway gave to elicitations at URLs: report each as complete, before the
    /// response.
    pub elicitation_ids: Vec<String>,
}

/// The calls with rounds.
#[derive(Debug)]
pub struct Rounds<C> {
    limits: StatelessLimits,
    last: u64,
    open: BTreeMap<RoundKey, Round<C>>,
}

#[derive(Debug)]
struct Round<C> {
    call: C,
    kept: Arc<str>,
    charge: Charge,
    /// When the call began.
    began: Instant,
    /// Results of type `input_required` so far.
    rounds: usize,
    /// Those of them without questions, one after the other.
    pauses: usize,
    phase: RoundPhase,
    questions: Vec<AskedQuestion>,
    state: Option<String>,
    /// Ids that the gateway gave to elicitations in all rounds.
    elicitation_ids: Vec<String>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum RoundPhase {
    /// The client is asked.
    Asking,
    /// The call is sent again at this time.
    Pausing(Instant),
    /// The call runs at the server.
    Retrying,
}

#[derive(Debug)]
struct AskedQuestion {
    question: RoundQuestion,
    /// The id of the request to the client.
    id: Option<u64>,
    /// The client's answer, raw JSON.
    answer: Option<String>,
}

impl<C> Rounds<C> {
    /// Creates an empty table.
    pub fn new(limits: &StatelessLimits) -> Self {
        Self { limits: limits.clone(), last: 0, open: BTreeMap::new() }
    }

    /// Adds a call that began at `began` and whose server asks for the first time. `kept`: the
    /// request as it was sent to the server. The memory is charged to `account`.
    ///
    /// # Errors
    /// The call ends.
    pub fn begin(
        &mut self,
        now: Instant,
        call: C,
        began: Instant,
        kept: Arc<str>,
        input: RoundInput,
        account: &Account,
    ) -> Result<(RoundKey, RoundStep), EndedRound<C>> {
        let mut round = Round {
            call,
            kept,
            charge: account.charge(),
            began,
            rounds: 0,
            pauses: 0,
            phase: RoundPhase::Retrying,
            questions: Vec::new(),
            state: None,
            elicitation_ids: Vec::new(),
        };
        match round.take(&self.limits, now, input) {
            Ok(step) => {
                self.last += 1;
                self.open.insert(RoundKey(self.last), round);
                Ok((RoundKey(self.last), step))
            }
            Err(why) => Err(round.end(why)),
        }
    }

    /// Takes another result of type `input_required`, to a retry. `None`: there is no such call.
    ///
    /// # Errors
    /// The call ends.
    pub fn again(
        &mut self,
        now: Instant,
        key: RoundKey,
        input: RoundInput,
    ) -> Option<Result<RoundStep, EndedRound<C>>> {
        let round = self.open.get_mut(&key)?;
        let taken = round.take(&self.limits, now, input);
        self.result(key, taken)
    }

    /// Ends the call if that failed.
    fn result(
        &mut self,
        key: RoundKey,
        step: Result<RoundStep, RoundError>,
    ) -> Option<Result<RoundStep, EndedRound<C>>> {
        match step {
            Ok(step) => Some(Ok(step)),
            Err(why) => Some(Err(self.end(key, why)?)),
        }
    }

    /// Reports the id under which the client was asked a question: the one at this place of
    /// [`RoundInput::questions`].
    pub fn asked(&mut self, key: RoundKey, place: usize, id: u64) {
        let asked = self.open.get_mut(&key).and_then(|round| round.questions.get_mut(place));
        if let Some(asked) = asked {
            asked.id = Some(id);
        }
    }

    /// Takes the client's answer to a question: the result of its response, raw JSON, or `None` for
    /// an error. Returns `None` if nobody waits for it.
    ///
    /// # Errors
    /// The call ends.
    pub fn answer(
        &mut self,
        now: Instant,
        key: RoundKey,
        place: usize,
        answer: Option<String>,
    ) -> Option<Result<RoundStep, EndedRound<C>>> {
        let round = self.open.get_mut(&key)?;
        let asked = round.questions.get_mut(place).filter(|asked| asked.answer.is_none())?;
        asked.id = None;
        let step = match answer {
            None => Err(RoundError::Rejected),
            Some(answer) => {
                asked.answer = Some(answer);
                round.answered(now)
            }
        };
        self.result(key, step)
    }

    /// Sends calls again whose pause is over, and ends those that take too long.
    pub fn tick(&mut self, now: Instant) -> Vec<(RoundKey, Result<RoundRetry, EndedRound<C>>)> {
        let is_due = |round: &Round<C>| round.due(&self.limits).is_some_and(|due| due <= now);
        let due: Vec<RoundKey> =
            self.open.iter().filter(|(_, round)| is_due(round)).map(|(key, _)| *key).collect();
        let mut steps = Vec::new();
        for key in due {
            let Some(round) = self.open.get_mut(&key) else { continue };
            if round.is_expired(&self.limits, now) {
                steps.extend(self.end(key, RoundError::Expired).map(|ended| (key, Err(ended))));
            } else {
                steps.push((key, Ok(round.retry())));
            }
        }
        steps
    }

    /// Returns when to call [`Rounds::tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().filter_map(|round| round.due(&self.limits)).min()
    }

    /// Removes a call whose server has answered the retry.
    pub fn complete(&mut self, key: RoundKey) -> Option<CompletedRound<C>> {
        let Round { call, elicitation_ids, .. } = self.open.remove(&key)?;
        Some(CompletedRound { call, elicitation_ids })
    }

    /// Returns a call.
    pub fn get(&self, key: RoundKey) -> Option<&C> {
        self.open.get(&key).map(|round| &round.call)
    }

    /// Returns a call, to be changed.
    pub fn get_mut(&mut self, key: RoundKey) -> Option<&mut C> {
        self.open.get_mut(&key).map(|round| &mut round.call)
    }

    /// Whether a call runs at its server, as opposed to waiting for its client.
    pub fn is_retrying(&self, key: RoundKey) -> bool {
        self.open.get(&key).is_some_and(|round| round.phase == RoundPhase::Retrying)
    }

    /// Ends a call.
    pub fn end(&mut self, key: RoundKey, why: RoundError) -> Option<EndedRound<C>> {
        Some(self.open.remove(&key)?.end(why))
    }

    /// Ends the calls that do not run at their server and for which `is_over` is true: their server is
    /// gone. One that runs there ends with its request.
    pub fn end_all(&mut self, is_over: impl Fn(&C) -> bool) -> Vec<EndedRound<C>> {
        let is_over = |round: &Round<C>| round.phase != RoundPhase::Retrying && is_over(&round.call);
        let over = self.open.iter().filter(|(_, round)| is_over(round)).map(|(key, _)| *key);
        let over: Vec<RoundKey> = over.collect();
        over.into_iter().filter_map(|key| self.end(key, RoundError::Ended)).collect()
    }

    /// Returns the calls that do not run at their server.
    pub fn waiting(&self) -> impl Iterator<Item = &C> {
        let waiting = self.open.values().filter(|round| round.phase != RoundPhase::Retrying);
        waiting.map(|round| &round.call)
    }

    /// Returns the key of the newest call for which `is_it` is true.
    pub fn find(&self, is_it: impl Fn(&C) -> bool) -> Option<RoundKey> {
        self.open.iter().rev().find(|(_, round)| is_it(&round.call)).map(|(key, _)| *key)
    }

    /// Returns the number of calls.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there is no call.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl<C> Round<C> {
    /// Takes a result of type `input_required`.
    fn take(
        &mut self,
        limits: &StatelessLimits,
        now: Instant,
        input: RoundInput,
    ) -> Result<RoundStep, RoundError> {
        let RoundInput { questions, state } = input;
        self.rounds += 1;
        match () {
            () if self.rounds > limits.rounds => return Err(RoundError::TooManyRounds),
            () if questions.len() > limits.round_inputs => return Err(RoundError::TooManyQuestions),
            () if self.is_expired(limits, now) => return Err(RoundError::Expired),
            () => {}
        }
        let minted = questions.iter().filter_map(|question| question.elicitation_id.clone());
        self.elicitation_ids.extend(minted);
        let asked = |question| AskedQuestion { question, id: None, answer: None };
        self.questions = questions.into_iter().map(asked).collect();
        self.state = state;
        self.pay()?;
        if self.questions.is_empty() {
            let pause = limits::ROUND_PAUSES.get(self.pauses).copied().unwrap_or(limits::ROUND_PAUSE_LONGEST);
            self.pauses += 1;
            self.phase = RoundPhase::Pausing(now + pause);
            return Ok(RoundStep::Wait);
        }
        self.pauses = 0;
        self.phase = RoundPhase::Asking;
        Ok(RoundStep::Ask)
    }

    /// Charges the memory.
    fn pay(&mut self) -> Result<(), RoundError> {
        let question = |asked: &AskedQuestion| {
            let answer = asked.answer.as_ref().map_or(0, String::len);
            asked.question.key.len() + answer + limits::INPUT_BYTES
        };
        let questions: usize = self.questions.iter().map(question).sum();
        let state = self.state.as_ref().map_or(0, String::len);
        let bytes = self.kept.len() + questions + state + limits::INPUT_BYTES;
        if self.charge.resize(bytes) { Ok(()) } else { Err(RoundError::NoMemory) }
    }

    /// The client has answered a question.
    fn answered(&mut self, now: Instant) -> Result<RoundStep, RoundError> {
        self.pay()?;
        if self.questions.iter().any(|asked| asked.answer.is_none()) {
            return Ok(RoundStep::Wait);
        }
        // Consent to visit a URL is not yet a visit.
        let at_url = self.questions.iter().filter(|asked| asked.question.elicitation_id.is_some());
        if at_url.filter_map(|asked| asked.answer.as_deref()).any(is_accepted) {
            self.phase = RoundPhase::Pausing(now + limits::ROUND_PAUSE_URL);
            return Ok(RoundStep::Wait);
        }
        Ok(RoundStep::Retry(self.retry()))
    }

    fn retry(&mut self) -> RoundRetry {
        self.phase = RoundPhase::Retrying;
        let answer = |asked: &AskedQuestion| {
            Some(format!("{}:{}", quote(&asked.question.key), asked.answer.as_deref()?))
        };
        let answers: Vec<String> = self.questions.iter().filter_map(answer).collect();
        self.questions.clear();
        let retry = RoundRetry {
            kept: self.kept.clone(),
            responses: format!("{{{}}}", answers.join(",")),
            state: self.state.take(),
        };
        // Shrinking a charge always succeeds.
        let _ = self.pay();
        retry
    }

    fn is_expired(&self, limits: &StatelessLimits, now: Instant) -> bool {
        self.began + limits.round_time <= now
    }

    /// When there is something to do. A call that runs at its server has a timeout there.
    fn due(&self, limits: &StatelessLimits) -> Option<Instant> {
        let end = self.began + limits.round_time;
        match self.phase {
            RoundPhase::Asking => Some(end),
            RoundPhase::Pausing(until) => Some(until.min(end)),
            RoundPhase::Retrying => None,
        }
    }

    fn end(self, why: RoundError) -> EndedRound<C> {
        let open = self.questions.iter().filter_map(|asked| asked.id).collect();
        EndedRound { call: self.call, why, open }
    }
}

/// Whether an answer to an elicitation accepts it.
fn is_accepted(answer: &str) -> bool {
    let action = find(answer, 0..answer.len(), &["action"]).ok().flatten();
    action.and_then(|span| unquote(&answer[span])).is_some_and(|action| action == "accept")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::Budget;

    /// The table with what its user does: it asks under ids from 1 on.
    struct World {
        rounds: Rounds<&'static str>,
        budget: Budget,
        start: Instant,
        now: Instant,
        key: Option<RoundKey>,
        asked: u64,
    }

    impl World {
        fn new(limits: &StatelessLimits, bytes: usize) -> Self {
            let (rounds, budget, start) = (Rounds::new(limits), Budget::new(bytes), Instant::now());
            Self { rounds, budget, start, now: start, key: None, asked: 0 }
        }

        /// Does one command, and returns what follows. A question `*x` is an elicitation at a URL.
        fn run(&mut self, command: &str) -> String {
            let words: Vec<&str> = command.split_whitespace().collect();
            let now = self.now;
            match words[0] {
                "input" => {
                    let state = words.iter().find_map(|word| word.strip_prefix("state="));
                    let questions = words[1..].iter().filter(|word| !word.starts_with("state="));
                    let questions = questions.map(|word| RoundQuestion {
                        key: (*word).to_owned(),
                        elicitation_id: word.strip_prefix('*').map(|name| format!("id-{name}")),
                    });
                    let input =
                        RoundInput { questions: questions.collect(), state: state.map(str::to_owned) };
                    let count = input.questions.len();
                    let step = match self.key {
                        Some(key) => self.rounds.again(now, key, input).unwrap(),
                        None => {
                            let (kept, account) = (Arc::from("kept"), self.budget.account());
                            let begun = self.rounds.begin(now, "call", self.start, kept, input, &account);
                            begun.map(|(key, step)| {
                                self.key = Some(key);
                                step
                            })
                        }
                    };
                    if step == Ok(RoundStep::Ask) {
                        for place in 0..count {
                            self.asked += 1;
                            self.rounds.asked(self.key.unwrap(), place, self.asked);
                        }
                    }
                    shown(step)
                }
                "answer" => {
                    let answer = words.get(2).map(|answer| answer.replace("yes", r#"{"action":"accept"}"#));
                    let place = words[1].parse().unwrap();
                    let step = self.rounds.answer(now, self.key.unwrap(), place, answer);
                    step.map_or("nobody".into(), shown)
                }
                "at" => {
                    self.now = self.start + Duration::from_millis(words[1].parse().unwrap());
                    let due = self.rounds.deadline().is_some_and(|due| due <= self.now);
                    let steps = self.rounds.tick(self.now);
                    assert_eq!(due, !steps.is_empty());
                    steps.into_iter().map(|(_, step)| shown(step.map(RoundStep::Retry))).collect()
                }
                "complete" => {
                    let completed = self.rounds.complete(self.key.unwrap());
                    completed.map_or("none".into(), |completed| completed.elicitation_ids.join(" "))
                }
                "cancel" => {
                    let ended = self.rounds.end(self.key.unwrap(), RoundError::Ended);
                    ended.map_or("none".into(), |ended| shown(Err(ended)))
                }
                "gone" => {
                    let mut ended = self.rounds.end_all(|call| *call == words[1]);
                    ended.pop().map_or("none".into(), |ended| shown(Err(ended)))
                }
                other => panic!("{other}"),
            }
        }
    }

    fn shown(step: Result<RoundStep, EndedRound<&'static str>>) -> String {
        match step {
            Ok(RoundStep::Ask) => "ask".into(),
            Ok(RoundStep::Wait) => "wait".into(),
            Ok(RoundStep::Retry(RoundRetry { kept, responses, state })) => {
                format!("retry {kept} {responses} {}", state.as_deref().unwrap_or("-"))
            }
            Err(EndedRound { call, why, open }) => format!("{call} {why:?} {open:?}"),
        }
    }

    /// The table of the design: row, commands before, the last command, what follows.
    #[rustfmt::skip]
    const TABLE: &[(u8, &str, &str, &str)] = &[
        (1, "", "input a state=r", "ask"),
        (1, "", "input a b c", "ask"),
        (2, "", "input a b c d", "call TooManyQuestions []"),
        (3, "input a b state=r", "answer 0 1", "wait"),
        (3, "input a b state=r|answer 0 1", "answer 0 2", "nobody"),
        (3, "input a b", "answer 2 1", "nobody"),
        (3, "input a b c|answer 1 1", "answer 0", "call Rejected [3]"),
        (3, "input a|answer 0", "answer 0 1", "nobody"),
        (4, "input a state=r", "answer 0 {\"x\":1}", "retry kept {\"a\":{\"x\":1}} r"),
        (4, "input a b|answer 1 2", "answer 0 1", "retry kept {\"a\":1,\"b\":2} -"),
        (4, "input a\"\\ ", "answer 0 1", "retry kept {\"a\\\"\\\\\":1} -"),
        (4, "input *a b|answer 1 1", "answer 0 yes", "wait"),
        (4, "input *a b|answer 1 1|answer 0 yes|at 999", "at 1000", "retry kept {\"*a\":{\"action\":\"accept\"},\"b\":1} -"),
        (4, "input *a", "answer 0 {\"action\":\"decline\"}", "retry kept {\"*a\":{\"action\":\"decline\"}} -"),
        (4, "input a", "answer 0 yes", "retry kept {\"a\":{\"action\":\"accept\"}} -"),
        (5, "", "input state=r", "wait"),
        (5, "input state=r|at 49", "at 50", "retry kept {} r"),
        (5, "input state=r|at 50|input state=s|at 149", "at 150", "retry kept {} s"),
        (5, "input state=r|at 50|input state=s|at 150|input a|answer 0 1|input state=t|at 199", "at 200", "retry kept {} t"),
        (6, "input a|answer 0 1", "complete", ""),
        (6, "input a *b|answer 0 1|answer 1 yes|at 1000", "complete", "id-b"),
        (6, "input *a|answer 0 yes|at 1000|input *b|answer 0 yes|at 2000", "complete", "id-a id-b"),
        (6, "input a|answer 0 1|complete", "complete", "none"),
        (7, "input a state=r|answer 0 1", "input b", "ask"),
        (7, "input a state=r|answer 0 1|input b", "answer 0 2", "retry kept {\"b\":2} -"),
        (7, "input a|answer 0 1|input b|answer 0 1|input c|answer 0 1|input d|answer 0 1", "input e", "call TooManyRounds []"),
        (7, "input a|answer 0 1", "input a b c d", "call TooManyQuestions []"),
        (8, "input a b|answer 0 1|at 599999", "at 600000", "call Expired [2]"),
        (8, "input a|answer 0 1|at 600000", "input b", "call Expired []"),
        (8, "at 599980|input state=r", "at 600000", "call Expired []"),
        (8, "input a|answer 0 1", "at 600000", ""),
        (8, "input a b|answer 1 1", "cancel", "call Ended [1]"),
        (8, "input a|answer 0 1", "cancel", "call Ended []"),
        (9, "input a b", "gone call", "call Ended [1, 2]"),
        (9, "input a b", "gone other", "none"),
        (9, "input a|answer 0 1", "gone call", "none"),
    ];

    #[test]
    fn table_of_rounds() {
        let limits = StatelessLimits { round_inputs: 3, rounds: 4, ..StatelessLimits::default() };
        for (row, before, command, expected) in TABLE {
            let mut world = World::new(&limits, usize::MAX);
            for command in before.split('|').filter(|command| !command.is_empty()) {
                world.run(command);
            }
            assert_eq!(world.run(command), *expected, "row {row}: {before}|{command}");
            world.rounds.end_all(|_| true);
            world.key.and_then(|key| world.rounds.complete(key));
            assert_eq!((world.rounds.is_empty(), world.rounds.deadline()), (true, None));
            assert_eq!(world.budget.used(), 0, "{before}|{command}");
        }
    }

    #[test]
    fn pauses_grow() {
        let mut world = World::new(&StatelessLimits::default(), usize::MAX);
        let (mut pauses, mut time) = (Vec::new(), 0);
        for _ in 0..6 {
            world.run("input state=r");
            let pause = world.rounds.deadline().unwrap() - world.now;
            pauses.push(pause.as_millis());
            time += pause.as_millis();
            assert_eq!(world.run(&format!("at {time}")), "retry kept {} r");
        }
        assert_eq!(pauses, [50, 100, 200, 250, 250, 250]);
    }

    #[test]
    fn what_is_kept_is_charged() {
        let bytes = 4 * limits::INPUT_BYTES;
        let mut world = World::new(&StatelessLimits::default(), bytes);
        assert_eq!(world.run("input a b c d e"), "call NoMemory []");
        assert_eq!((world.run("input a b"), world.rounds.len()), ("ask".into(), 1));
        let (used, key) = (world.budget.used(), world.key.unwrap());
        world.run("answer 0 12345");
        assert_eq!(world.budget.used(), used + 5);
        let long = "1".repeat(bytes);
        assert_eq!(world.run(&format!("answer 1 {long}")), "call NoMemory []");
        assert_eq!((world.budget.used(), world.rounds.get(key)), (0, None));
        world.key = None;
        world.run("input a");
        world.run("answer 0 12345");
        let key = world.key.unwrap();
        assert!(world.rounds.is_retrying(key) && world.budget.used() < 2 * limits::INPUT_BYTES);
        assert_eq!(
            (world.rounds.find(|call| *call == "call"), world.rounds.find(|_| false)),
            (Some(key), None)
        );
    }
}
