//! Questions of modern servers to the clients of sessions. The server asks with the result of a call
//! (`input_required`); the client gets a request for each question, and the server the call again
//! with the answers. The rules are in `session::rounds`.

use std::{sync::Arc, time::Instant};

use super::{
    conclusion::{Conclusion, RoundContext},
    effect::{Effects, Text},
    error::{CallError, Declined, round_error},
    instance::{
        Caller, ClientCall, KeptRequest, NewCall, Origin, Repeat, RoundCall, declined_by_link, disconnected,
    },
    key::{Asker, InstanceKey},
    mux::Pending,
    peers::Responder,
    state::Hub,
};
use crate::{
    jsonrpc::{self, INTERNAL_ERROR, Message, RpcError, edit, quote},
    mcp::stateless::{
        input::{InputKind, InputRequired, InvalidInput},
        relay,
        result::{ResultType, result_type},
        wrap,
    },
    session::{
        CallRefused, EndedRound, RoundError, RoundInput, RoundKey, RoundQuestion, RoundRetry, RoundStep,
    },
};

/// The questions in the result of a call.
#[derive(Debug)]
pub struct Questions {
    input: RoundInput,
    /// The requests that ask them: method and params.
    requests: Vec<(&'static str, String)>,
}

/// Returns the questions in the answer to a call of a session, or why they are not asked. `None`: it
/// asks nothing.
pub fn questions(conclusion: &Conclusion<'_>) -> Option<Result<Questions, String>> {
    let round = conclusion.round.as_ref()?;
    if result_type(conclusion.message) != ResultType::InputRequired {
        return None;
    }
    Some(Questions::read(conclusion, round).map_err(|why| why.rpc(&conclusion.server).message))
}

impl Questions {
    fn read(conclusion: &Conclusion<'_>, round: &RoundContext) -> Result<Self, InvalidInput> {
        let read = |message: &Message<'_>| {
            let result = message.result_span().unwrap_or_default();
            InputRequired::read(message.text(), result, round.max_state)
        };
        let mut input = read(conclusion.message)?;
        input.check(&conclusion.method, round.allowed)?;
        // A person who sees several servers is told which one asks.
        let labelled = conclusion.sees_all.then(|| {
            let edits = input.labelled(conclusion.message.text(), &conclusion.server);
            let edits: Vec<_> = edits.iter().map(|(span, new)| (span.clone(), new.as_str())).collect();
            conclusion.message.splice(&edits)
        });
        let labelled = labelled.as_deref().and_then(|text| Message::read(text).ok());
        let message = labelled.as_ref().unwrap_or(conclusion.message);
        if labelled.is_some() {
            input = read(message)?;
        }
        let InstanceKey { upstream, channel } = conclusion.from;
        let elicitation = |place: usize| {
            let (server, channel) = (upstream.number(), channel.unwrap_or_default());
            format!("mcpport-{server}-{channel}-{}-{place}", round.upstream_id)
        };
        let (mut questions, mut requests) = (Vec::new(), Vec::new());
        for (place, request) in input.requests.into_iter().enumerate() {
            let elicitation_id = (request.kind == InputKind::Url).then(|| elicitation(place));
            let params = request.session_params(message.text(), elicitation_id.as_deref());
            requests.push((request.kind.method(), params));
            questions.push(RoundQuestion { key: request.key, elicitation_id });
        }
        let state = input.state.map(|(_, state)| state);
        Ok(Self { input: RoundInput { questions, state }, requests })
    }
}

/// How a call ends with its round.
enum End<'e> {
    /// It failed for this reason.
    Failed(&'e str),
    /// Its client cancelled it, or its session has ended.
    Cancelled,
    /// It gets this error.
    Error(&'e CallError),
}

impl Hub {
    /// Returns what it takes to ask the client of a call whose answer has come.
    pub(super) fn round_context(
        &mut self,
        upstream_id: u64,
        pending: &Pending<Caller>,
    ) -> Option<Box<RoundContext>> {
        let Caller::Client(ClientCall { origin: Origin::Session(session, _), repeat: Some(_), .. }) =
            &pending.caller
        else {
            return None;
        };
        let allowed = self.clients.get_mut(session).map(|session| session.envelope().allowed);
        Some(Box::new(RoundContext {
            upstream_id,
            token: pending.token().map(Into::into),
            timeout: pending.timeout,
            allowed: allowed.unwrap_or_default(),
            max_state: self.config.limits.stateless.state_bytes,
        }))
    }

    /// Handles the answer to a call that can be sent again. Returns whether it asks something, so that
    /// it is not for the client.
    pub fn on_repeatable(
        &mut self,
        now: Instant,
        conclusion: &mut Conclusion<'_>,
        questions: Option<Result<Questions, String>>,
        fx: &mut Effects<'_>,
    ) -> bool {
        let call = &mut conclusion.call;
        let (Origin::Session(session, id), Some(repeat)) = (&call.origin, call.repeat.take()) else {
            return false;
        };
        let Some((questions, round)) = questions.zip(conclusion.round.take()) else {
            if let Some(session) = self.clients.get_mut(session) {
                session.calls.end(id);
            }
            self.complete_round(&repeat, &call.responder, fx);
            return false;
        };
        let call = RoundCall {
            process: conclusion.from,
            upstream_id: round.upstream_id,
            method: conclusion.method.clone(),
            token: round.token,
            timeout: round.timeout,
            session: *session,
            id: id.clone(),
            responder: call.responder.clone(),
        };
        match questions {
            // Another thread may have cancelled the call while the answer was read.
            _ if !self.clients.get(session).is_some_and(|session| session.calls.is_open(id)) => {
                self.forget_repeat(&repeat);
                self.end_call(&call, Vec::new(), End::Cancelled, fx);
            }
            Err(why) => {
                self.forget_repeat(&repeat);
                self.end_call(&call, Vec::new(), End::Failed(&why), fx);
            }
            Ok(questions) => self.begin_round(now, call, (repeat, questions), fx),
        }
        true
    }

    /// Reports what has come of the client's visits to URLs, if a call had such questions.
    fn complete_round(&mut self, repeat: &Repeat, responder: &Arc<dyn Responder>, fx: &mut Effects<'_>) {
        let Repeat::Round(key) = repeat else { return };
        let completed = self.rounds.complete(*key).map(|completed| completed.elicitation_ids);
        for id in completed.unwrap_or_default() {
            let params = format!("{{\"elicitationId\":{}}}", quote(&id));
            let text = jsonrpc::notification("notifications/elicitation/complete", Some(&params));
            fx.send(responder.clone(), Text::Own(text));
        }
    }

    fn begin_round(
        &mut self,
        now: Instant,
        call: RoundCall,
        (repeat, Questions { input, requests }): (Repeat, Questions),
        fx: &mut Effects<'_>,
    ) {
        let (key, step) = match repeat {
            Repeat::Round(key) => match self.rounds.again(now, key, input) {
                Some(step) => (key, step),
                None => return,
            },
            Repeat::First(kept) => {
                let Some(account) = self.clients.get(&call.session).map(|session| &session.account) else {
                    return;
                };
                let KeptRequest { text, began, charge } = *kept;
                // The table charges for it from now on.
                drop(charge);
                match self.rounds.begin(now, call, began, text, input, account) {
                    Ok((key, step)) => (key, Ok(step)),
                    Err(ended) => return self.end_round(ended, fx),
                }
            }
        };
        match step {
            Ok(RoundStep::Ask) => self.ask(now, key, requests, fx),
            step => self.go_on(now, key, step, fx),
        }
        fx.deadline_changed = true;
    }

    /// Sends the client a request for each question. If one cannot be sent, the call ends.
    fn ask(
        &mut self,
        now: Instant,
        key: RoundKey,
        requests: Vec<(&'static str, String)>,
        fx: &mut Effects<'_>,
    ) {
        let Some(call) = self.rounds.get(key).cloned() else { return };
        for (place, (method, params)) in requests.into_iter().enumerate() {
            let session = self.clients.get_mut(&call.session);
            let number = session
                .and_then(|session| session.server_requests.begin(now, Asker::Round(key, place), "").ok());
            let is_sent = number.is_some_and(|number| {
                self.rounds.asked(key, place, number);
                self.tell(&call, jsonrpc::request(&number.to_string(), method, &params))
            });
            if !is_sent {
                let ended = self.rounds.end(key, RoundError::Ended);
                return ended.into_iter().for_each(|ended| self.end_round(ended, fx));
            }
        }
    }

    /// Sends the client of a call a request, or the cancellation of one: on the stream of the call, or
    /// if that is not read, on the one of the session. Returns false if there is no room.
    fn tell(&self, call: &RoundCall, text: String) -> bool {
        match (call.responder.is_closed(), self.clients.get(&call.session)) {
            (false, _) => call.responder.request(text),
            (true, Some(session)) => session.stream.request(text, &self.stats),
            (true, None) => false,
        }
    }

    /// Takes the client's answer to a question, raw JSON; `None`: an error.
    pub fn answer_round(
        &mut self,
        now: Instant,
        (key, place): (RoundKey, usize),
        answer: Option<String>,
        fx: &mut Effects<'_>,
    ) {
        match self.rounds.answer(now, key, place, answer) {
            Some(step) => self.go_on(now, key, step, fx),
            None => self.stats.unmatched.add(),
        }
        fx.deadline_changed = true;
    }

    fn go_on(
        &mut self,
        now: Instant,
        key: RoundKey,
        step: Result<RoundStep, EndedRound<RoundCall>>,
        fx: &mut Effects<'_>,
    ) {
        match step {
            Ok(RoundStep::Ask | RoundStep::Wait) => {}
            Ok(RoundStep::Retry(retry)) => self.retry(now, key, &retry, fx),
            Err(ended) => self.end_round(ended, fx),
        }
    }

    /// Sends calls again whose pause is over, and ends those that take too long.
    pub(super) fn tick_rounds(&mut self, now: Instant, fx: &mut Effects<'_>) {
        for (key, step) in self.rounds.tick(now) {
            self.go_on(now, key, step.map(RoundStep::Retry), fx);
        }
    }

    /// Sends a call again.
    fn retry(&mut self, now: Instant, key: RoundKey, retry: &RoundRetry, fx: &mut Effects<'_>) {
        let Some(call) = self.rounds.get(key).cloned() else { return };
        let sent = self.send_again(now, (key, &call), retry, fx);
        self.set_timer(call.process.upstream, fx);
        let Err(why) = sent else { return };
        self.rounds.complete(key);
        let why = self.declined(call.process.upstream, why);
        self.end_call(&call, Vec::new(), End::Error(&why), fx);
    }

    fn send_again(
        &mut self,
        now: Instant,
        (key, call): (RoundKey, &RoundCall),
        retry: &RoundRetry,
        fx: &mut Effects<'_>,
    ) -> Result<(), Declined> {
        let several = self.tokens.have_several_clients();
        let ended = Declined::Session(CallRefused::Ended);
        let session = self.clients.get_mut(&call.session).ok_or(ended)?;
        let upstream = self.upstreams.get_mut(&call.process.upstream).ok_or(Declined::Gone)?;
        let (instance, link) = upstream.process(call.process.channel).ok_or(Declined::Gone)?;
        let client = ClientCall {
            origin: Origin::Session(call.session, call.id.clone()),
            responder: call.responder.clone(),
            share: instance.take_share(session.principal, several)?,
            repeat: Some(Repeat::Round(key)),
        };
        let (caller, token) = (Caller::Client(client), call.token.as_deref());
        let new = NewCall { caller, method: &call.method, token, timeout: call.timeout };
        let id = instance.open(now, new)?;
        let may_log = session.info.level.is_some() && instance.take_level_slot(id);
        let text = wrap::retry(&retry.kept, id, &retry.responses, retry.state.as_deref(), may_log);
        let text = text.ok_or(Declined::Gone);
        let sent = text.and_then(|text| match link.excess(call.process.channel, &text) {
            Some(declined) => Err(declined),
            None => instance.send_call(link, Some(id), text, fx).map_err(declined_by_link),
        });
        if sent.is_err() {
            instance.close(id);
            return sent;
        }
        session.calls.rebind(&call.id, call.process, id);
        if let Some(call) = self.rounds.get_mut(key) {
            call.upstream_id = id;
        }
        Ok(())
    }

    /// Ends a call whose client cancels it while it is asked.
    pub(super) fn cancel_round(&mut self, call: (InstanceKey, u64), fx: &mut Effects<'_>) {
        let key = self.rounds.find(|round| (round.process, round.upstream_id) == call);
        if let Some(EndedRound { call, open, .. }) =
            key.and_then(|key| self.rounds.end(key, RoundError::Ended))
        {
            self.end_call(&call, open, End::Cancelled, fx);
        }
    }

    /// Ends the calls whose clients are asked by a process that is gone.
    pub(super) fn end_rounds(
        &mut self,
        is_gone: impl Fn(InstanceKey) -> bool,
        reason: &str,
        fx: &mut Effects<'_>,
    ) {
        for EndedRound { call, open, .. } in self.rounds.end_all(|call| is_gone(call.process)) {
            let why = disconnected(&self.name_of(call.process.upstream), reason);
            self.end_call(&call, open, End::Error(&why), fx);
        }
    }

    /// Forgets the rounds of a call that has ended otherwise.
    pub(super) fn forget_round(&mut self, call: &ClientCall) {
        call.repeat.iter().for_each(|repeat| self.forget_repeat(repeat));
    }

    fn forget_repeat(&mut self, repeat: &Repeat) {
        if let Repeat::Round(key) = repeat {
            self.rounds.complete(*key);
        }
    }

    fn end_round(&mut self, ended: EndedRound<RoundCall>, fx: &mut Effects<'_>) {
        let EndedRound { call, why, open } = ended;
        if why == RoundError::NoMemory {
            self.stats.memory_refusals.add();
        }
        let why = round_error(why, &self.name_of(call.process.upstream));
        self.end_call(&call, open, End::Failed(&why), fx);
    }

    /// Ends a call, and cancels the questions to its client that are still open.
    fn end_call(&mut self, call: &RoundCall, open: Vec<u64>, how: End<'_>, fx: &mut Effects<'_>) {
        for number in open {
            if let Some(session) = self.clients.get_mut(&call.session) {
                session.server_requests.end(&number.to_string());
            }
            // Best effort: a late answer is dropped as unmatched.
            self.tell(call, edit::cancelled(number, "the call that asked this has ended"));
        }
        if let Some(session) = self.clients.get_mut(&call.session) {
            session.calls.end(&call.id);
        }
        let responder = call.responder.clone();
        let error = match how {
            End::Cancelled => return fx.cancelled(responder, &call.id),
            End::Failed(why) if &*call.method == "tools/call" => {
                // So that a model can read the reason.
                return fx.finish(responder, jsonrpc::result(&call.id, &relay::tool_error(why)));
            }
            End::Failed(why) => RpcError::new(INTERNAL_ERROR, why),
            End::Error(why) => why.rpc(),
        };
        fx.fail(responder, error.code, error.response(&call.id));
    }
}
