//! Calls of stateless clients at leased processes of legacy servers, and what their servers ask in
//! the meantime.
//!
//! A legacy server sends a request of its own and waits for the response. Its stateless client gets
//! the question as the result of its call (`input_required`), and sends the answers with a retry of
//! the call. Until then the call is parked: it still runs at the server, and holds its process
//! ([`Leases`](super::Leases)). `hub::mux` suspends it, and gives it to the retry.
//!
//! Plain tables: `I` is the program's handle of a process, `K` the kind of a question.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    time::Instant,
};

use super::CallDigest;
use crate::{
    auth::Principal,
    budget::{Account, Charge},
    jsonrpc::is_same,
    limits::{self, StatelessLimits},
};

/// A call that begins to hold a leased process.
#[derive(Clone, Debug)]
pub struct LeasedCall {
    /// Its id in the mux.
    pub upstream_id: u64,
    /// Its principal.
    pub principal: Principal,
    /// What a retry must repeat.
    pub digest: CallDigest,
    /// Whether the result of its method may ask the client.
    pub may_ask: bool,
    /// The account of the principal.
    pub account: Account,
}

/// A question of a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Question<K> {
    /// What it asks for.
    pub kind: K,
    /// The start of its key in the result.
    pub prefix: &'static str,
    /// The id of the server's request, raw JSON.
    pub id: Box<str>,
    /// The question as it stands in the result, raw JSON.
    pub raw: String,
}

/// Why a server's question is answered with an error at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QuestionRefused {
    /// The call that holds the process may not ask.
    NotAllowed,
    /// There are too many ([`StatelessLimits::inputs`], [`StatelessLimits::outside_inputs`]).
    TooMany,
    /// The memory budget is used up.
    NoMemory,
}

/// A server's request that waits for its response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenRequest<K> {
    /// What it asks for.
    pub kind: K,
    /// Its id, raw JSON.
    pub id: Box<str>,
    /// The key under which the client was asked; empty if it was not.
    pub key: String,
}

/// Questions to send to the client, as the result of its call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InputRound<I> {
    /// The number for the state ([`super::StateKind::Parked`]).
    pub number: u64,
    /// The process.
    pub instance: I,
    /// The id of the call in the mux, to be suspended.
    pub upstream_id: u64,
    /// The key and the question, raw JSON.
    pub entries: Vec<(String, String)>,
    /// When the call is given up.
    pub until: Instant,
}

/// A call that ended without its client: answer the requests, cancel the call at the server, close
/// it in the mux, and give the process back.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AbandonedCall<I, K> {
    /// The process.
    pub instance: I,
    /// The id of the call in the mux.
    pub upstream_id: u64,
    /// The requests that nobody answers.
    pub requests: Vec<OpenRequest<K>>,
}

/// What a retry leads to.
#[derive(Debug)]
pub enum Retried<I, K> {
    /// The call goes on: give it to the retry in the mux, and answer these requests.
    Resumed {
        /// The process.
        instance: I,
        /// The id of the call in the mux.
        upstream_id: u64,
        /// The requests that the retry answers.
        requests: Vec<OpenRequest<K>>,
    },
    /// An answer is missing: the client is asked the same again.
    Again(InputRound<I>),
    /// The call has ended already. `None`: there was no memory to keep its response.
    Finished(Option<FinishedCall>),
}

/// The response of a call that ended while it was parked.
#[derive(Debug)]
pub struct FinishedCall {
    /// The server's response, with the id of the call in the mux.
    pub response: String,
    /// The memory that it takes.
    pub charge: Charge,
}

/// The response of a server to a call that holds a leased process, and the requests that the server
/// left open, which are to be answered in any case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LeasedResponse<K> {
    /// The client waits for it.
    Deliver(Vec<OpenRequest<K>>),
    /// The call was parked, so it is kept for the retry.
    Kept(Vec<OpenRequest<K>>),
}

/// The calls at leased processes.
#[derive(Debug)]
pub struct ParkedCalls<I, K> {
    limits: StatelessLimits,
    last: u64,
    calls: BTreeMap<I, OpenCall<K>>,
    /// Parked calls by number.
    parked: BTreeMap<u64, Parked<I>>,
    by_principal: HashMap<Principal, usize>,
    /// Questions that were asked while no call held the process.
    outside: BTreeMap<I, Vec<OutsideQuestion<K>>>,
}

#[derive(Debug)]
struct OpenCall<K> {
    call: LeasedCall,
    state: CallState,
    /// Questions so far, by the start of their keys.
    counts: BTreeMap<&'static str, u32>,
    /// Questions of this round.
    open: Vec<OpenQuestion<K>>,
    /// Questions for the next one.
    later: Vec<OpenQuestion<K>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum CallState {
    /// The client waits, and nothing is asked.
    Running,
    /// The client waits; the round is sent at this time.
    Joining(Instant),
    /// The client has the round of this number.
    Parked(u64),
}

#[derive(Debug)]
struct OpenQuestion<K> {
    key: String,
    question: Question<K>,
    _charge: Charge,
}

#[derive(Debug)]
struct OutsideQuestion<K> {
    question: Question<K>,
    due: Instant,
    charge: Charge,
}

#[derive(Debug)]
struct Parked<I> {
    principal: Principal,
    until: Instant,
    at: ParkedAt<I>,
}

#[derive(Debug)]
enum ParkedAt<I> {
    Process(I),
    Finished(Option<FinishedCall>),
}

impl<I: Copy + Debug + Ord, K: Copy> ParkedCalls<I, K> {
    /// Creates an empty table.
    pub fn new(limits: &StatelessLimits) -> Self {
        Self {
            limits: limits.clone(),
            last: 0,
            calls: BTreeMap::new(),
            parked: BTreeMap::new(),
            by_principal: HashMap::new(),
            outside: BTreeMap::new(),
        }
    }

    /// Adds a call that holds a process.
    pub fn begin(&mut self, now: Instant, instance: I, call: LeasedCall) {
        let may_ask = call.may_ask;
        let (state, counts) = (CallState::Running, BTreeMap::new());
        let mut open = OpenCall { call, state, counts, open: Vec::new(), later: Vec::new() };
        if may_ask {
            for OutsideQuestion { question, charge, .. } in self.outside.remove(&instance).unwrap_or_default()
            {
                open.state = CallState::Joining(now + self.limits.join_inputs);
                let question = open.numbered(question, charge);
                open.open.push(question);
            }
        }
        self.calls.insert(instance, open);
    }

    /// Takes a question of a server, which the client that the process belongs to may be asked.
    /// `account`: that of its principal.
    ///
    /// # Errors
    /// [`QuestionRefused`], with the reason.
    pub fn ask(
        &mut self,
        now: Instant,
        instance: I,
        question: Question<K>,
        account: &Account,
    ) -> Result<(), QuestionRefused> {
        let mut charge = account.charge();
        let bytes = question.raw.len() + question.id.len() + limits::INPUT_BYTES;
        let limits = &self.limits;
        let Some(call) = self.calls.get_mut(&instance) else {
            let outside = self.outside.entry(instance).or_default();
            let refused = match () {
                () if outside.len() >= limits.outside_inputs => Some(QuestionRefused::TooMany),
                () if !charge.resize(bytes) => Some(QuestionRefused::NoMemory),
                () => None,
            };
            if refused.is_none() {
                outside.push(OutsideQuestion { question, due: now + limits.outside_time, charge });
            }
            self.outside.retain(|_, questions| !questions.is_empty());
            return refused.map_or(Ok(()), Err);
        };
        if !call.call.may_ask {
            return Err(QuestionRefused::NotAllowed);
        }
        let joins = !matches!(call.state, CallState::Parked(_)) && call.open.len() < limits.inputs;
        if !joins && call.later.len() >= limits.inputs {
            return Err(QuestionRefused::TooMany);
        }
        if !charge.resize(bytes) {
            return Err(QuestionRefused::NoMemory);
        }
        let question = call.numbered(question, charge);
        if !joins {
            call.later.push(question);
            return Ok(());
        }
        call.open.push(question);
        let full = call.open.len() >= limits.inputs;
        if full || call.state == CallState::Running {
            call.state = CallState::Joining(if full { now } else { now + limits.join_inputs });
        }
        Ok(())
    }

    /// Removes a question that its server cancels; `id` is the server's own, raw JSON.
    pub fn withdraw(&mut self, instance: I, id: &str) {
        if let Some(call) = self.calls.get_mut(&instance) {
            call.open.retain(|open| !is_same(&open.question.id, id));
            call.later.retain(|open| !is_same(&open.question.id, id));
            if matches!(call.state, CallState::Joining(_)) && call.open.is_empty() {
                call.state = CallState::Running;
            }
        }
        if let Some(outside) = self.outside.get_mut(&instance) {
            outside.retain(|outside| !is_same(&outside.question.id, id));
            if outside.is_empty() {
                self.outside.remove(&instance);
            }
        }
    }

    /// Parks the calls whose questions are due, and returns the rounds, with the calls that had to
    /// be given up because of the limits.
    pub fn rounds(&mut self, now: Instant) -> (Vec<InputRound<I>>, Vec<AbandonedCall<I, K>>) {
        let due = |call: &OpenCall<K>| matches!(call.state, CallState::Joining(due) if due <= now);
        let due: Vec<I> =
            self.calls.iter().filter(|(_, call)| due(call)).map(|(instance, _)| *instance).collect();
        let (mut rounds, mut abandoned) = (Vec::new(), Vec::new());
        for instance in due {
            let Some(principal) = self.calls.get(&instance).map(|call| call.call.principal) else { continue };
            abandoned.extend(self.make_room(principal));
            self.last += 1;
            let (number, until) = (self.last, now + self.limits.parked_time);
            self.parked.insert(number, Parked { principal, until, at: ParkedAt::Process(instance) });
            *self.by_principal.entry(principal).or_default() += 1;
            if let Some(call) = self.calls.get_mut(&instance) {
                call.state = CallState::Parked(number);
                rounds.push(call.round(number, instance, until));
            }
        }
        (rounds, abandoned)
    }

    /// Gives up the oldest parked call, of the principal if it has one, as long as there are too many
    /// for another one of the principal.
    fn make_room(&mut self, principal: Principal) -> Vec<AbandonedCall<I, K>> {
        let mut abandoned = Vec::new();
        loop {
            let own = self.by_principal.get(&principal).copied().unwrap_or_default();
            if own < self.limits.parked && self.parked.len() < self.limits.parked_all {
                return abandoned;
            }
            // Without an order among principals that have as many, the result would not be repeatable.
            let largest = self.by_principal.iter().max_by_key(|(principal, count)| (**count, **principal));
            let of = if own > 0 { Some(principal) } else { largest.map(|(principal, _)| *principal) };
            let oldest = self.parked.iter().find(|(_, parked)| Some(parked.principal) == of);
            let Some(number) = oldest.map(|(number, _)| *number) else { return abandoned };
            abandoned.extend(self.abandon(number));
        }
    }

    /// Removes a parked call. `None` if it has ended at its server.
    fn abandon(&mut self, number: u64) -> Option<AbandonedCall<I, K>> {
        match self.unpark(number)?.at {
            ParkedAt::Process(instance) => self.remove(instance),
            ParkedAt::Finished(_) => None,
        }
    }

    fn unpark(&mut self, number: u64) -> Option<Parked<I>> {
        let parked = self.parked.remove(&number)?;
        if let Some(count) = self.by_principal.get_mut(&parked.principal) {
            *count -= 1;
            if *count == 0 {
                self.by_principal.remove(&parked.principal);
            }
        }
        Some(parked)
    }

    fn remove(&mut self, instance: I) -> Option<AbandonedCall<I, K>> {
        let call = self.calls.remove(&instance)?;
        if let CallState::Parked(number) = call.state {
            self.unpark(number);
        }
        Some(AbandonedCall { instance, upstream_id: call.call.upstream_id, requests: call.into_requests() })
    }

    /// Takes the retry of a parked call. `has`: whether it has an answer under this key; other
    /// answers do not count. Returns `None` if no call of the principal is parked under the number:
    /// it is unknown, over, or has another retry already.
    pub fn retry(
        &mut self,
        now: Instant,
        number: u64,
        principal: Principal,
        has: impl Fn(&str) -> bool,
    ) -> Option<Retried<I, K>> {
        let parked = self.parked.get_mut(&number).filter(|parked| parked.principal == principal)?;
        let ParkedAt::Process(instance) = parked.at else {
            let ParkedAt::Finished(response) = self.unpark(number)?.at else { return None };
            return Some(Retried::Finished(response));
        };
        let call = self.calls.get_mut(&instance)?;
        if !call.open.iter().all(|open| has(&open.key)) {
            parked.until = now + self.limits.parked_time;
            return Some(Retried::Again(call.round(number, instance, parked.until)));
        }
        let requests = call.open.drain(..).map(OpenQuestion::into_request).collect();
        call.open = std::mem::take(&mut call.later);
        call.state = if call.open.is_empty() { CallState::Running } else { CallState::Joining(now) };
        let upstream_id = call.call.upstream_id;
        self.unpark(number);
        Some(Retried::Resumed { instance, upstream_id, requests })
    }

    /// Takes the response to the call that holds a process, which ends the call. A parked call's is
    /// kept for the retry.
    pub fn answered(&mut self, instance: I, response: &str) -> Option<LeasedResponse<K>> {
        let call = self.calls.remove(&instance)?;
        let CallState::Parked(number) = call.state else {
            return Some(LeasedResponse::Deliver(call.into_requests()));
        };
        if let Some(parked) = self.parked.get_mut(&number) {
            let mut charge = call.call.account.charge();
            let fits = charge.resize(response.len());
            let finished = fits.then(|| FinishedCall { response: response.to_owned(), charge });
            parked.at = ParkedAt::Finished(finished);
        }
        Some(LeasedResponse::Kept(call.into_requests()))
    }

    /// Removes the call that holds a process: its client has gone, or it timed out.
    pub fn close(&mut self, instance: I) -> Option<AbandonedCall<I, K>> {
        self.remove(instance)
    }

    /// Removes all of a process that has ended. Retries of its calls are refused.
    pub fn gone(&mut self, instance: I) {
        self.remove(instance);
        self.outside.remove(&instance);
    }

    /// Removes the parked calls whose client did not return in time.
    pub fn overdue(&mut self, now: Instant) -> Vec<AbandonedCall<I, K>> {
        self.abandon_all(|parked| parked.until <= now)
    }

    /// Removes the parked calls of principals that may not stay.
    pub fn expel(&mut self, may_stay: impl Fn(Principal) -> bool) -> Vec<AbandonedCall<I, K>> {
        self.abandon_all(|parked| !may_stay(parked.principal))
    }

    fn abandon_all(&mut self, is_over: impl Fn(&Parked<I>) -> bool) -> Vec<AbandonedCall<I, K>> {
        let over = self.parked.iter().filter(|(_, parked)| is_over(parked)).map(|(number, _)| *number);
        over.collect::<Vec<_>>().into_iter().filter_map(|number| self.abandon(number)).collect()
    }

    /// Removes the questions that no call has taken in time.
    pub fn unasked(&mut self, now: Instant) -> Vec<(I, OpenRequest<K>)> {
        let mut unasked = Vec::new();
        for (instance, questions) in &mut self.outside {
            let over = questions.extract_if(.., |question| question.due <= now);
            unasked.extend(over.map(|over| (*instance, over.question.into_request(String::new()))));
        }
        self.outside.retain(|_, questions| !questions.is_empty());
        unasked
    }

    /// Returns when [`ParkedCalls::rounds`], [`ParkedCalls::overdue`] or [`ParkedCalls::unasked`] has
    /// something next.
    pub fn deadline(&self) -> Option<Instant> {
        let joining = self.calls.values().filter_map(|call| match call.state {
            CallState::Joining(due) => Some(due),
            CallState::Running | CallState::Parked(_) => None,
        });
        let parked = self.parked.values().map(|parked| parked.until);
        let outside = self.outside.values().flatten().map(|question| question.due);
        joining.chain(parked).chain(outside).min()
    }

    /// Returns the id in the mux of the call that holds a process, and whether it is parked.
    pub fn call(&self, instance: I) -> Option<(u64, bool)> {
        let call = self.calls.get(&instance)?;
        Some((call.call.upstream_id, matches!(call.state, CallState::Parked(_))))
    }

    /// Returns the number of parked calls.
    pub fn len(&self) -> usize {
        self.parked.len()
    }

    /// Whether no call holds a process or is parked, and no question is held.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.parked.is_empty() && self.outside.is_empty()
    }
}

impl<K: Copy> OpenCall<K> {
    /// Gives a question its key, which no other of the call has.
    fn numbered(&mut self, question: Question<K>, charge: Charge) -> OpenQuestion<K> {
        let count = self.counts.entry(question.prefix).or_default();
        *count += 1;
        OpenQuestion { key: format!("{}-{count}", question.prefix), question, _charge: charge }
    }

    fn round<I>(&self, number: u64, instance: I, until: Instant) -> InputRound<I> {
        let entries = self.open.iter().map(|open| (open.key.clone(), open.question.raw.clone())).collect();
        InputRound { number, instance, upstream_id: self.call.upstream_id, entries, until }
    }

    fn into_requests(self) -> Vec<OpenRequest<K>> {
        self.open.into_iter().chain(self.later).map(OpenQuestion::into_request).collect()
    }
}

impl<K> OpenQuestion<K> {
    fn into_request(self) -> OpenRequest<K> {
        self.question.into_request(self.key)
    }
}

impl<K> Question<K> {
    fn into_request(self, key: String) -> OpenRequest<K> {
        OpenRequest { kind: self.kind, id: self.id, key }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::budget::Budget;

    /// The table with what its user does. Processes are numbers; those below 10 are of principal 1, those below 20
    /// of principal 2.
    struct World {
        calls: ParkedCalls<u32, char>,
        budget: Budget,
        account: Account,
        start: Instant,
        now: Instant,
    }

    fn principal(instance: u32) -> Principal {
        Principal::token(1 + instance as usize / 10)
    }

    fn listed<K>(requests: &[OpenRequest<K>]) -> String {
        let listed: Vec<String> = requests.iter().map(|open| format!("{}={}", open.id, open.key)).collect();
        listed.join(" ")
    }

    fn joined(round: &InputRound<u32>) -> String {
        let entries: Vec<&str> = round.entries.iter().map(|(key, _)| &**key).collect();
        format!("round {} of {}: {}", round.number, round.instance, entries.join(" "))
    }

    fn given_up(call: &AbandonedCall<u32, char>) -> String {
        format!("abandon {}: {}", call.instance, listed(&call.requests))
            .trim_end_matches([':', ' '])
            .to_owned()
    }

    impl World {
        fn new(limits: &StatelessLimits, bytes: usize) -> Self {
            let (budget, start) = (Budget::new(bytes), Instant::now());
            let account = budget.account();
            Self { calls: ParkedCalls::new(limits), budget, account, start, now: start }
        }

        /// Does one command, and returns what follows.
        fn run(&mut self, command: &str) -> String {
            let words: Vec<&str> = command.split_whitespace().collect();
            let number = |place: usize| words[place].parse::<u32>().unwrap();
            let (now, calls) = (self.now, &mut self.calls);
            match words[0] {
                "begin" | "list" => {
                    let call = LeasedCall {
                        upstream_id: u64::from(number(1)) + 100,
                        principal: principal(number(1)),
                        digest: CallDigest::of(None, "m", "n"),
                        may_ask: words[0] == "begin",
                        account: self.account.clone(),
                    };
                    calls.begin(now, number(1), call);
                    String::new()
                }
                "ask" => {
                    let prefix = match &words[2][..1] {
                        "e" => "elicitation",
                        "s" => "sampling",
                        _ => "roots",
                    };
                    let (kind, raw) = (prefix.chars().next().unwrap(), format!("{{{}}}", words[2]));
                    let question = Question { kind, prefix, id: words[2].into(), raw };
                    match calls.ask(now, number(1), question, &self.account) {
                        Ok(()) => String::new(),
                        Err(why) => format!("{why:?}"),
                    }
                }
                "withdraw" => {
                    calls.withdraw(number(1), words[2]);
                    String::new()
                }
                "at" => {
                    self.now = self.start + Duration::from_millis(words[1].parse().unwrap());
                    self.tick()
                }
                "retry" => {
                    let (who, number) = (principal(number(1)), words[2].parse().unwrap());
                    match calls.retry(now, number, who, |key| words[3..].contains(&key)) {
                        None => "refused".into(),
                        Some(Retried::Resumed { instance, upstream_id, requests }) => {
                            assert_eq!(upstream_id, u64::from(instance) + 100);
                            format!("resume {instance}: {}", listed(&requests))
                        }
                        Some(Retried::Again(round)) => joined(&round),
                        Some(Retried::Finished(response)) => response
                            .map_or("no memory".into(), |finished| format!("finished {}", finished.response)),
                    }
                }
                "answer" => match calls.answered(number(1), words[2]) {
                    None => "none".into(),
                    Some(LeasedResponse::Deliver(requests)) => format!("deliver {}", listed(&requests)),
                    Some(LeasedResponse::Kept(requests)) => format!("keep {}", listed(&requests)),
                },
                "close" => calls.close(number(1)).map_or("none".into(), |call| given_up(&call)),
                "gone" => {
                    calls.gone(number(1));
                    String::new()
                }
                other => panic!("{other}"),
            }
        }

        /// Does what is due, if the deadline says so.
        fn tick(&mut self) -> String {
            let mut done = Vec::new();
            while self.calls.deadline().is_some_and(|due| due <= self.now) {
                let before = done.len();
                let (rounds, abandoned) = self.calls.rounds(self.now);
                done.extend(abandoned.iter().map(given_up));
                done.extend(rounds.iter().map(joined));
                done.extend(self.calls.overdue(self.now).iter().map(given_up));
                let unasked = self.calls.unasked(self.now);
                done.extend(
                    unasked.iter().map(|(instance, open)| format!("unasked {instance}: {}", open.id)),
                );
                assert!(done.len() > before || self.calls.deadline().is_none_or(|due| due > self.now));
            }
            done.join(", ")
        }
    }

    /// The table of the design: row, commands before, the last command, what follows.
    #[rustfmt::skip]
        const TABLE: &[(u8, &str, &str, &str)] = &[
        (1, "begin 1|ask 1 e1", "at 49", ""),
        (1, "begin 1|ask 1 e1|at 30|ask 1 s2|ask 1 e3", "at 50", "round 1 of 1: elicitation-1 sampling-1 elicitation-2"),
        (1, "begin 1|ask 1 e1|begin 2|at 30|ask 2 r1", "at 80", "round 1 of 1: elicitation-1, round 2 of 2: roots-1"),
        (2, "begin 1|ask 1 e1|ask 1 e2|ask 1 e3|ask 1 e4", "at 1", "round 1 of 1: elicitation-1 elicitation-2 elicitation-3"),
        (2, "begin 1|ask 1 e1|ask 1 e2|ask 1 e3|ask 1 e4|at 1", "retry 1 1 elicitation-1 elicitation-2 elicitation-3", "resume 1: e1=elicitation-1 e2=elicitation-2 e3=elicitation-3"),
        (2, "begin 1|ask 1 e1|at 50|ask 1 e2|ask 1 e3|ask 1 e4", "ask 1 e5", "TooMany"),
        (4, "list 1", "ask 1 e1", "NotAllowed"),
        (5, "ask 1 r1", "at 9999", ""),
        (5, "ask 1 r1", "at 10000", "unasked 1: r1"),
        (5, "ask 1 r1|list 1|answer 1 x|at 9999|begin 1", "at 10049", "round 1 of 1: roots-1"),
        (5, "ask 1 r1|ask 1 r2", "ask 1 r3", "TooMany"),
        (5, "ask 1 r1|list 1", "at 10000", "unasked 1: r1"),
        (5, "ask 1 r1|withdraw 1 r1|begin 1", "at 10000", ""),
        (6, "begin 1|ask 1 e1|at 50", "retry 1 1 elicitation-1", "resume 1: e1=elicitation-1"),
        (6, "begin 1|ask 1 e1|at 50|ask 1 e2|retry 1 1 elicitation-1", "at 51", "round 2 of 1: elicitation-2"),
        (6, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1|ask 1 e2", "at 100", "round 2 of 1: elicitation-2"),
        (6, "begin 1|ask 1 e1|at 50|withdraw 1 e1", "retry 1 1", "resume 1: "),
        (6, "begin 1|ask 1 e1|ask 1 e2|withdraw 1 e1", "at 50", "round 1 of 1: elicitation-2"),
        (6, "begin 1|ask 1 e1|withdraw 1 e1", "at 50", ""),
        (7, "begin 1|ask 1 e1|ask 1 e2|at 50", "retry 1 1 elicitation-2", "round 1 of 1: elicitation-1 elicitation-2"),
        (7, "begin 1|ask 1 e1|ask 1 e2|at 50|retry 1 1 elicitation-2", "retry 1 1 elicitation-1", "round 1 of 1: elicitation-1 elicitation-2"),
        (7, "begin 1|ask 1 e1|at 50|at 200000|retry 1 1", "at 400000", ""),
        (8, "begin 1|ask 1 e1|at 50", "retry 1 1 elicitation-1 x elicitation-9", "resume 1: e1=elicitation-1"),
        (9, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1", "retry 1 1 elicitation-1", "refused"),
        (9, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1|ask 1 e2|at 150", "retry 1 1 elicitation-1", "refused"),
        (9, "begin 1|ask 1 e1|at 50", "retry 11 1 elicitation-1", "refused"),
        (9, "begin 1|ask 1 e1|at 50", "retry 1 2 elicitation-1", "refused"),
        (10, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1", "answer 1 x", "deliver "),
        (10, "begin 1", "answer 1 x", "deliver "),
        (10, "begin 1|ask 1 e1", "answer 1 x", "deliver e1=elicitation-1"),
        (10, "begin 1|answer 1 x", "answer 1 x", "none"),
        (11, "begin 1|ask 1 e1|at 50", "answer 1 x", "keep e1=elicitation-1"),
        (11, "begin 1|ask 1 e1|at 50|answer 1 x", "retry 1 1", "finished x"),
        (11, "begin 1|ask 1 e1|at 50|answer 1 x|retry 1 1", "retry 1 1", "refused"),
        (11, "begin 1|ask 1 e1|at 50|answer 1 x", "at 300050", ""),
        (11, "begin 1|ask 1 e1|at 50|answer 1 x|begin 1", "answer 1 y", "deliver "),
        (12, "begin 1|ask 1 e1|at 50|ask 1 s1", "at 300050", "abandon 1: e1=elicitation-1 s1=sampling-1"),
        (12, "begin 1|ask 1 e1|at 50|at 300050", "retry 1 1 elicitation-1", "refused"),
        (12, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1", "close 1", "abandon 1"),
        (12, "begin 1|ask 1 e1|at 50|retry 1 1 elicitation-1|ask 1 s1", "close 1", "abandon 1: s1=sampling-1"),
        (12, "begin 1|ask 1 e1|at 50|begin 2|ask 2 e1|at 100|begin 3|ask 3 e1", "at 150", "abandon 1: e1=elicitation-1, round 3 of 3: elicitation-1"),
        (12, "begin 1|ask 1 e1|at 50|begin 11|ask 11 e1|at 100|begin 12|ask 12 e1|at 150|begin 2|ask 2 e1", "at 200", "abandon 1: e1=elicitation-1, round 4 of 2: elicitation-1"),
        (12, "begin 11|ask 11 e1|at 50|begin 12|ask 12 e1|at 100|begin 13|ask 13 e1|at 150", "retry 11 1 elicitation-1", "refused"),
        (12, "begin 11|ask 11 e1|at 50|begin 12|ask 12 e1|at 100|begin 1|ask 1 e1|at 150|begin 21|ask 21 e1", "at 200", "abandon 11: e1=elicitation-1, round 4 of 21: elicitation-1"),
        (13, "begin 1|ask 1 e1|at 50|gone 1", "retry 1 1 elicitation-1", "refused"),
        (13, "begin 1|ask 1 e1|gone 1", "at 50", ""),
    ];

    #[test]
    fn table_of_parked_calls() {
        let limits = StatelessLimits {
            inputs: 3,
            outside_inputs: 2,
            parked: 2,
            parked_all: 3,
            ..StatelessLimits::default()
        };
        for (row, before, command, expected) in TABLE {
            let mut world = World::new(&limits, usize::MAX);
            for command in before.split('|').filter(|command| !command.is_empty()) {
                world.run(command);
            }
            assert_eq!(world.run(command), *expected, "row {row}: {before}|{command}");
            // Nothing stays behind.
            for instance in 0..30 {
                world.calls.close(instance);
                world.calls.gone(instance);
            }
            world.run("at 999999");
            assert!(world.calls.is_empty() && world.calls.by_principal.is_empty(), "{:?}", world.calls);
            assert_eq!((world.calls.deadline(), world.budget.used()), (None, 0), "{before}|{command}");
        }
    }

    #[test]
    fn a_round_is_repeated_as_it_was() {
        let mut world = World::new(&StatelessLimits::default(), usize::MAX);
        world.run("begin 1");
        world.run("ask 1 e1");
        world.now += StatelessLimits::default().join_inputs;
        let (mut rounds, _) = world.calls.rounds(world.now);
        let round = rounds.remove(0);
        assert_eq!(
            (round.upstream_id, &*round.entries),
            (101, &[("elicitation-1".into(), "{e1}".into())][..])
        );
        world.now += Duration::from_secs(1);
        let Some(Retried::Again(again)) = world.calls.retry(world.now, 1, principal(1), |_| false) else {
            panic!("no answer was given");
        };
        assert_eq!(again, InputRound { until: world.now + StatelessLimits::default().parked_time, ..round });
    }

    #[test]
    fn what_is_kept_is_charged() {
        let bytes = 2 * limits::INPUT_BYTES;
        let mut world = World::new(&StatelessLimits::default(), bytes);
        world.run("begin 1");
        assert_eq!((world.run("ask 1 e1"), world.run("ask 1 e2")), (String::new(), "NoMemory".into()));
        world.run("at 50");
        assert!(world.budget.used() > limits::INPUT_BYTES);
        // A response that there is no memory for is not kept, and the retry says so.
        let response = "x".repeat(bytes + 1);
        assert_eq!(world.run(&format!("answer 1 {response}")), "keep e1=elicitation-1");
        assert_eq!((world.budget.used(), world.run("retry 1 1")), (0, "no memory".into()));
        assert_eq!((world.run("ask 2 r1"), world.run("ask 2 r2")), (String::new(), "NoMemory".into()));
        world.run("gone 2");
        assert_eq!(world.budget.used(), 0);
        world.run("begin 1");
        world.run("ask 1 e1");
        world.run("at 100");
        world.run("answer 1 xyz");
        assert_eq!(world.budget.used(), 3);
        assert_eq!((world.run("retry 1 2"), world.budget.used()), ("finished xyz".into(), 0));
    }

    #[test]
    fn parked_calls_end_with_the_token_of_their_principal() {
        let mut world = World::new(&StatelessLimits::default(), usize::MAX);
        for instance in [1, 11, 2] {
            world.run(&format!("begin {instance}"));
            world.run(&format!("ask {instance} e1"));
        }
        world.run("at 50");
        world.run("answer 2 x");
        let gone = world.calls.expel(|who| who != principal(1));
        assert_eq!(gone.iter().map(given_up).collect::<Vec<_>>(), ["abandon 1: e1=elicitation-1"]);
        assert_eq!(world.calls.len(), 1);
        assert_eq!(world.run("retry 11 2 elicitation-1"), "refused", "number 2 is the call of process 2");
        assert_eq!(world.run("retry 11 3 elicitation-1"), "resume 11: e1=elicitation-1");
    }
}
