//! What legacy servers ask the clients of stateless calls. The client gets the questions as the
//! result of its call, which is parked until the client repeats it with the answers: see
//! [`ParkedCalls`](crate::session::ParkedCalls).

use std::{sync::Arc, time::Instant};

use super::{
    effect::Effects,
    error::{NO_MEMORY, ServerRequestError},
    instance::{ClientCall, Origin, StatelessCall},
    key::InstanceKey,
    peers::Responder,
    state::Hub,
};
use crate::{
    catalog::UpstreamKey,
    jsonrpc::{self, BUSY, INTERNAL_ERROR, METHOD_NOT_FOUND, RpcError, edit, find, quote, unquote},
    limits,
    mcp::{
        LATEST,
        stateless::input::{self, Embedded, InputKind},
    },
    session::{
        AbandonedCall, Claims, FinishedCall, InputRound, LeasedResponse, OpenRequest, Question,
        QuestionRefused, Retried, StateError, StateKind,
    },
};

/// The retry of a parked call.
pub(super) struct Return<'a> {
    /// The server.
    pub server: UpstreamKey,
    /// The claims of its state.
    pub claims: &'a Claims,
    /// The number under which the call is parked.
    pub number: u64,
    /// The retry as a call.
    pub call: StatelessCall,
    /// Where the response goes.
    pub responder: Arc<dyn Responder>,
    /// The client's progress token, raw JSON.
    pub token: Option<&'a str>,
    /// The keys under which it has answers.
    pub answers: &'a dyn Fn(&str) -> bool,
}

/// What a retry of a parked call leads to.
#[derive(Debug)]
pub enum Returned {
    /// It waits for the response to this call. These requests are to be answered by it.
    Resumed(InstanceKey, u64, Answering),
    /// The client is asked the same again, with this result.
    Again(String),
    /// The server has responded already.
    Finished(InstanceKey, ClientCall, FinishedCall),
    /// The server has responded already, and there was no memory to keep that.
    Lost,
}

/// The requests of a server that a retry answers.
#[derive(Debug)]
pub struct Answering {
    /// The requests.
    pub requests: Vec<OpenRequest<InputKind>>,
    /// The protocol version of the server.
    pub version: Arc<str>,
}

impl Hub {
    /// Takes a request of a process that one call holds, for the client of that call.
    pub fn asked(
        &mut self,
        now: Instant,
        from: InstanceKey,
        (id, embedded): (&str, Result<Embedded, RpcError>),
        fx: &mut Effects<'_>,
    ) {
        let taken = embedded.and_then(|Embedded { kind, raw }| {
            if id.len() > limits::ID_BYTES {
                return Err(ServerRequestError::IdTooLong.rpc());
            }
            let Some((instance, _)) = self.process(from) else { return Ok(()) };
            let Some(account) = instance.isolated().map(|isolated| isolated.account().clone()) else {
                return Ok(());
            };
            let question = Question { kind, prefix: kind.key(), id: id.into(), raw };
            self.parked.ask(now, from, question, &account).map_err(|why| match why {
                QuestionRefused::NotAllowed => {
                    RpcError::new(METHOD_NOT_FOUND, "the client cannot be asked during this request")
                }
                QuestionRefused::TooMany => ServerRequestError::TooMany.rpc(),
                QuestionRefused::NoMemory => RpcError::new(BUSY, NO_MEMORY),
            })
        });
        match taken {
            Ok(()) => fx.deadline_changed = true,
            Err(why) => self.answer_instance(now, from, why.response(id), fx),
        }
    }

    /// Sends the questions that are due to their clients, and gives up what has waited too long.
    pub(super) fn tick_parked(&mut self, now: Instant, fx: &mut Effects<'_>) {
        for abandoned in self.parked.overdue(now) {
            self.abandon(now, abandoned, fx);
        }
        let (rounds, abandoned) = self.parked.rounds(now);
        for round in rounds {
            self.send_round(now, &round, fx);
        }
        for abandoned in abandoned {
            self.abandon(now, abandoned, fx);
        }
        for (instance, request) in self.parked.unasked(now) {
            self.give_up_requests(now, instance, vec![request], fx);
        }
    }

    /// Responds to a call with questions, and suspends it.
    fn send_round(&mut self, now: Instant, round: &InputRound<InstanceKey>, fx: &mut Effects<'_>) {
        let suspended = self
            .process(round.instance)
            .and_then(|(instance, _)| instance.suspend(round.upstream_id, round.until));
        let Some(ClientCall { origin: Origin::Stateless(call), responder, .. }) = suspended else {
            self.parked.close(round.instance);
            return;
        };
        let result = self.round_result(now, round, &call);
        fx.finish(responder, jsonrpc::result(&call.id, &result));
    }

    /// Returns the result with questions for a call or its retry.
    fn round_result(&self, now: Instant, round: &InputRound<InstanceKey>, call: &StatelessCall) -> String {
        let from = round.instance;
        let Some(upstream) = self.upstreams.get(&from.upstream) else { return "{}".into() };
        let sealing = &self.config.sealing;
        let claims = Claims {
            kind: StateKind::Parked(round.number),
            instance: upstream.instance_run(from.channel),
            principal: call.principal,
            digest: call.digest,
            expires: round.until.max(now).saturating_duration_since(sealing.started),
        };
        let known = upstream.instance(from.channel).and_then(|instance| instance.initialized());
        let stamp = known.or(upstream.shared.initialized()).map(|known| known.stamp.clone());
        let Some(stamp) = stamp else { return "{}".into() };
        let state = claims.seal(&sealing.key);
        match call.sees_all {
            false => input::input_required(&round.entries, &state, &stamp),
            true => {
                let labelled =
                    round.entries.iter().map(|(key, raw)| (key.clone(), labelled(raw, upstream.link.name())));
                input::input_required(&labelled.collect::<Vec<_>>(), &state, &stamp)
            }
        }
    }

    /// Takes the retry of a parked call.
    ///
    /// # Errors
    /// [`StateError`]: the call is not parked, or its process has ended.
    pub(super) fn return_to_call(
        &mut self,
        now: Instant,
        retry: Return<'_>,
        fx: &mut Effects<'_>,
    ) -> Result<Returned, StateError> {
        let Return { server, claims, number, call, responder, token, answers } = retry;
        let from = InstanceKey { upstream: server, channel: claims.instance.channel };
        let upstream = self.upstreams.get(&server).ok_or(StateError::Restarted)?;
        claims.check_instance(Some(upstream.instance_run(from.channel)))?;
        let runs = upstream.instance(from.channel).is_some();
        let over = if runs { StateError::Invalid } else { StateError::Restarted };
        let retried = self.parked.retry(now, number, call.principal, answers).ok_or(over)?;
        fx.deadline_changed = true;
        let client = |call| ClientCall {
            origin: Origin::Stateless(Box::new(call)),
            responder,
            share: None,
            repeat: None,
        };
        match retried {
            Retried::Again(round) => {
                if let Some((instance, _)) = self.process(from) {
                    instance.suspend(round.upstream_id, round.until);
                }
                Ok(Returned::Again(self.round_result(now, &round, &call)))
            }
            Retried::Finished(None) => Ok(Returned::Lost),
            Retried::Finished(Some(finished)) => Ok(Returned::Finished(from, client(call), finished)),
            Retried::Resumed { instance: from, upstream_id, requests } => {
                let level = call.level;
                let (instance, _) = self.process(from).ok_or(StateError::Restarted)?;
                if !instance.rejoin(now, upstream_id, client(call), token) {
                    self.parked.close(from);
                    self.give_process(now, from, fx);
                    return Err(StateError::Restarted);
                }
                let version = instance.initialized().map(|known| known.version.clone());
                if let Some(level) = level {
                    self.log_for(now, (from, upstream_id, level), fx);
                }
                let version = version.unwrap_or_else(|| LATEST.into());
                Ok(Returned::Resumed(from, upstream_id, Answering { requests, version }))
            }
        }
    }

    /// Sends a process the answers of a retry.
    pub fn answer_questions(
        &mut self,
        now: Instant,
        to: InstanceKey,
        answers: Vec<String>,
        fx: &mut Effects<'_>,
    ) {
        for answer in answers {
            self.answer_instance(now, to, answer, fx);
        }
    }

    /// Takes the response to a parked call, which is kept for the retry.
    pub(super) fn keep_response(
        &mut self,
        now: Instant,
        from: InstanceKey,
        response: &str,
        fx: &mut Effects<'_>,
    ) {
        let (LeasedResponse::Kept(open) | LeasedResponse::Deliver(open)) =
            self.parked.answered(from, response).unwrap_or(LeasedResponse::Kept(Vec::new()));
        self.give_up_requests(now, from, open, fx);
        self.give_process(now, from, fx);
    }

    /// Ends a call whose client did not return.
    pub(super) fn abandon(
        &mut self,
        now: Instant,
        abandoned: AbandonedCall<InstanceKey, InputKind>,
        fx: &mut Effects<'_>,
    ) {
        let AbandonedCall { instance: from, upstream_id, requests } = abandoned;
        self.give_up_requests(now, from, requests, fx);
        let Some((instance, link)) = self.process(from) else { return };
        if instance.close(upstream_id).is_some() {
            let cancelled = edit::cancelled(upstream_id, "the client did not answer");
            let _ = instance.send(link, now, cancelled, fx);
        }
        self.give_process(now, from, fx);
    }

    /// Answers requests of a process that no client answers.
    pub(super) fn give_up_requests(
        &mut self,
        now: Instant,
        to: InstanceKey,
        requests: Vec<OpenRequest<InputKind>>,
        fx: &mut Effects<'_>,
    ) {
        for request in requests {
            let answer = match request.key.is_empty() {
                // Nobody was asked.
                true => jsonrpc::error(&request.id, INTERNAL_ERROR, "no request of a client is running"),
                false => input::given_up(&request.id, request.kind),
            };
            self.answer_instance(now, to, answer, fx);
        }
    }
}

/// Puts the name of the server before the message of an elicitation, for an endpoint that shows
/// several servers.
fn labelled(raw: &str, server: &str) -> String {
    let message = find(raw, 0..raw.len(), &["params", "message"]).ok().flatten();
    let text = message.clone().and_then(|span| unquote(&raw[span]));
    match message.zip(text) {
        Some((span, text)) => {
            let new = quote(&format!("[{server}] {text}"));
            format!("{}{new}{}", &raw[..span.start], &raw[span.end..])
        }
        None => raw.to_owned(),
    }
}
