//! The response of a server to a client's call, for a client of either protocol era.
//!
//! All of this is done without the lock of the hub.

use super::{
    conclusion::{Conclusion, Edit, StatelessContext},
    error::{CallError, modern_error},
    instance::{Origin, StatelessCall},
};
use crate::{
    jsonrpc::{self, INTERNAL_ERROR, Message, RpcError, Span, find, quote},
    limits::StatelessLimits,
    mcp::{
        Era,
        stateless::{
            input::{self, InputRequired, InvalidInput},
            relay::{self, Relayed},
            result::{self, Cache, ResultType},
            status,
        },
    },
    session::{Claims, StateKind},
};

/// The response for a client.
#[derive(Debug, Eq, PartialEq)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The code of the error; `None`: it is a result.
    pub error: Option<i64>,
}

impl Answer {
    /// Returns an error.
    pub fn error(id: &str, error: &RpcError) -> Self {
        Self { text: error.response(id), error: Some(error.code) }
    }
}

/// Returns the response for the client of a call, with these edits besides those that its protocol
/// needs.
pub fn answer(conclusion: &Conclusion<'_>, found: Vec<Edit>) -> Answer {
    let (message, method, server) = (conclusion.message, &*conclusion.method, conclusion.era);
    let client = match &conclusion.call.origin {
        Origin::Session(..) => Era::Legacy,
        Origin::Stateless(_) => Era::Modern,
    };
    if (server, client) == (Era::Legacy, Era::Legacy) {
        return Answer { text: conclusion.response(found), error: None };
    }
    if let (Era::Legacy, Origin::Stateless(call)) = (server, &conclusion.call.origin)
        && let Some(answer) = at_urls(conclusion, call)
    {
        return answer;
    }
    let Relayed { error, edits: mut all } = relay::relayed(message, method, server, client);
    let adapted = match (message.result_span(), &conclusion.call.origin) {
        (None, _) => Ok(Vec::new()),
        (Some(result), Origin::Session(..)) => for_session(message, result, method, &conclusion.server),
        (Some(result), Origin::Stateless(call)) => for_stateless(conclusion, call, result),
    };
    match adapted {
        Ok(edits) => all.extend(edits),
        Err(why) => return Answer::error(conclusion.call.id(), &why),
    }
    all.extend(found);
    Answer { text: conclusion.response(all), error }
}

/// Returns the answer in place of a legacy server's error that asks for elicitations at URLs. The
/// retry repeats the call, so it needs no process of its own.
fn at_urls(conclusion: &Conclusion<'_>, call: &StatelessCall) -> Option<Answer> {
    let error = conclusion.message.error()?;
    let code = find(error, 0..error.len(), &["code"]).ok().flatten()?;
    if error[code] != input::URL_REQUIRED.to_string() || !input::may_ask(&conclusion.method) {
        return None;
    }
    let (entries, context) = (input::url_questions(error), conclusion.stateless.as_ref()?);
    if entries.is_empty() {
        return None;
    }
    if !call.allowed.url {
        let why = status::missing_capability("{\"elicitation\":{\"url\":{}}}");
        return Some(Answer::error(&call.id, &why));
    }
    let claims = Claims {
        kind: StateKind::Url,
        instance: context.run,
        principal: call.principal,
        digest: call.digest,
        expires: context.expires,
    };
    let state = claims.seal(&context.sealing.key);
    let result = input::input_required(&entries, &state, &context.stamp);
    Some(Answer { text: jsonrpc::result(&call.id, &result), error: None })
}

/// Returns the edits in a modern server's result for a session.
fn for_session(
    message: &Message<'_>,
    result: Span,
    method: &str,
    server: &str,
) -> Result<Vec<Edit>, RpcError> {
    let text = message.text();
    match result::result_type(message) {
        ResultType::Complete | ResultType::Absent => Ok(result::lower(text, result, method)),
        ResultType::InputRequired => {
            let why = format!(
                "server '{server}' asked for input in the answer to {method}, but {}",
                "the client declared nothing that can be asked for, or its request is too long to be kept"
            );
            match method {
                "tools/call" => Ok(vec![(result, relay::tool_error(&why))]),
                _ => Err(RpcError::new(INTERNAL_ERROR, why)),
            }
        }
        ResultType::Task | ResultType::Unknown => {
            let why = format!("server '{server}' answered with a result of an unknown type");
            Err(RpcError::new(INTERNAL_ERROR, why))
        }
    }
}

/// Returns the edits in a result for a stateless client.
fn for_stateless(
    conclusion: &Conclusion<'_>,
    call: &StatelessCall,
    result: Span,
) -> Result<Vec<Edit>, RpcError> {
    let (message, method) = (conclusion.message, &*conclusion.method);
    let Some(context) = &conclusion.stateless else {
        return Err(modern_error(&CallError::Disconnected {
            server: conclusion.server.to_string(),
            reason: "it was removed".into(),
        }));
    };
    let text = message.text();
    if conclusion.era == Era::Legacy {
        return Ok(result::stamp(text, result, method, &context.stamp, Cache::NONE));
    }
    match result::result_type(message) {
        kind @ (ResultType::Complete | ResultType::Absent) => {
            Ok(result::passed(text, result, method, kind, cap(&context.limits)))
        }
        ResultType::InputRequired => {
            questions(conclusion, call, context, result).map_err(|why| why.rpc(&conclusion.server))
        }
        ResultType::Task | ResultType::Unknown => {
            let why = format!("server '{}' answered with a result of an unknown type", conclusion.server);
            Err(RpcError::new(INTERNAL_ERROR, why))
        }
    }
}

/// Returns the limit on caching by clients. A client that does not listen for changes learns of
/// them only when its copy expires.
fn cap(limits: &StatelessLimits) -> Cache {
    Cache { ttl: limits.ttl_cap, is_public: false }
}

/// Returns the edits in an `input_required` result for a stateless client: the server's
/// `requestState` is sealed.
fn questions(
    conclusion: &Conclusion<'_>,
    call: &StatelessCall,
    context: &StatelessContext,
    result: Span,
) -> Result<Vec<Edit>, InvalidInput> {
    let text = conclusion.message.text();
    let input = InputRequired::read(text, result, context.limits.state_bytes)?;
    input.check(&conclusion.method, call.allowed)?;
    let mut edits: Vec<Edit> = match call.sees_all {
        true => input.labelled(text, &conclusion.server),
        false => Vec::new(),
    };
    if let Some((span, state)) = input.state {
        let claims = Claims {
            kind: StateKind::Wrapped(state),
            instance: context.run,
            principal: call.principal,
            digest: call.digest,
            expires: context.expires,
        };
        edits.push((span, quote(&claims.seal(&context.sealing.key))));
    }
    edits.sort_unstable_by_key(|(span, _): &Edit| span.start);
    Ok(edits)
}
