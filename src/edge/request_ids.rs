//! Maps the gateway's request ids and progress tokens to those that the child gets, and back.
//!
//! The child outlives a link. Numbers of each later link are therefore shifted by an offset, so that
//! a late response to a request of an earlier link cannot pass for the response to a new one. Other
//! ids stay as they are. The open requests are stored, to fail them when the child ends and to
//! cancel them when the link is lost. `subscriptions/listen` is stored apart: it stays open as long
//! as the gateway wants the changes, so nothing may wait for its response.
//!
//! Pure; `edge::proxy` uses it for all messages but `initialize`, whose id it stores itself.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, reason = "pure: time is an argument"))]

use std::{borrow::Borrow, collections::BTreeSet, mem};

use crate::{
    jsonrpc::{Malformed, Message, Span, decimal},
    limits::{EDGE_OPEN, ID_BYTES},
    mcp::stateless::meta,
    util,
};

/// A request that stays open for as long as the gateway wants to hear of changes (MCP 2026-07-28).
pub const LISTEN: &str = "subscriptions/listen";

/// Whether nobody waits for the response to a request when the edge stops: a listen stays open, and
/// `server/discover` is the gateway's own, as `initialize` is.
fn is_unwaited(method: &str) -> bool {
    matches!(method, LISTEN | "server/discover")
}

/// Integers below this are exact in every JSON reader (2^53, the precision of a double).
pub const EXACT: u64 = 1 << 53;
/// Gateway ids below this are shifted. The offset is below it too, so that the sum stays exact.
pub const SMALL: u64 = 1 << 52;

/// Why a request is not forwarded.
#[derive(Debug)]
pub enum Rejected {
    /// It has two progress tokens.
    AmbiguousToken,
    /// Its id or its progress token is from [`SMALL`] to [`EXACT`]. On the way back, it could not
    /// be told from a shifted one.
    LargeNumber,
}

/// A response of the child, as the gateway gets it.
#[derive(Debug)]
pub enum Answered {
    /// The response to a request of this link.
    Matched(String),
    /// A response although no request with its id was sent.
    Unmatched(String),
    /// The response to a request of an earlier link.
    Stale,
}

/// The ids on the current link, and the open requests.
#[derive(Clone, Debug, Default)]
pub struct RequestIds {
    /// Added to the gateway's numbers on their way to the child.
    offset: u64,
    /// Greater than every number sent to the child.
    next: u64,
    /// Requests that the child has not answered, by the id sent to the child.
    open: OpenIds<u64>,
    /// The same for ids that are not shifted, raw.
    others: OpenIds<String>,
    /// The gateway uses strings that contain a number as progress tokens.
    text_tokens: bool,
}

/// Ids of open requests.
#[derive(Clone, Debug, Default)]
struct OpenIds<T> {
    calls: BTreeSet<T>,
    /// Those of [`LISTEN`].
    listens: BTreeSet<T>,
}

impl<T: Ord> OpenIds<T> {
    /// Adds an open request. At the limit [`EDGE_OPEN`], forgets the smallest id first: among
    /// numbers that is the oldest request, which is the least likely to be awaited.
    fn add(&mut self, id: T, is_listen: bool) {
        let open = if is_listen { &mut self.listens } else { &mut self.calls };
        if open.len() >= EDGE_OPEN {
            open.pop_first();
        }
        open.insert(id);
    }

    fn remove<Q: Ord + ?Sized>(&mut self, id: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.calls.remove(id) || self.listens.remove(id)
    }

    fn contains<Q: Ord + ?Sized>(&self, id: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.calls.contains(id) || self.listens.contains(id)
    }

    /// Removes and returns all.
    fn take(&mut self) -> BTreeSet<T> {
        let Self { mut calls, mut listens } =
            mem::replace(self, Self { calls: BTreeSet::new(), listens: BTreeSet::new() });
        calls.append(&mut listens);
        calls
    }
}

impl RequestIds {
    /// Number of open requests, without those of [`LISTEN`].
    pub fn count(&self) -> usize {
        self.open.calls.len() + self.others.calls.len()
    }

    /// Returns the raw id of one of them, as sent to the child.
    pub fn first_open(&self) -> Option<String> {
        self.open.calls.first().map(u64::to_string).or_else(|| self.others.calls.first().cloned())
    }

    /// Whether the request with this id is open, in whatever form the child returns the id.
    pub fn is_open(&self, id: &str) -> bool {
        let number = decimal(id);
        let text = number.map(|number| format!("\"{number}\""));
        number.is_some_and(|number| self.open.contains(&number))
            || self.others.contains(id)
            || text.is_some_and(|text| self.others.contains(&text))
    }

    /// Returns a raw id of the gateway as the child gets it.
    pub fn child_id(&self, raw: &str) -> String {
        self.shifted(raw).map_or_else(|| raw.to_owned(), |id| id.to_string())
    }

    /// Returns a request as the child gets it, and counts it as open.
    ///
    /// # Errors
    /// See [`RequestIds::shift`].
    pub fn forward(&mut self, message: &Message<'_>) -> Result<String, Rejected> {
        let line = self.shift(message)?;
        let (raw, is_listen) = (message.id().unwrap_or_default(), is_unwaited(message.method()));
        match self.shifted(raw) {
            Some(id) => self.open.add(id, is_listen),
            None if raw.len() <= ID_BYTES => self.others.add(raw.to_owned(), is_listen),
            None => {}
        }
        Ok(line)
    }

    /// Returns a request with its id and its progress token shifted.
    ///
    /// # Errors
    /// [`Rejected`]; nothing has changed then.
    pub fn shift(&mut self, message: &Message<'_>) -> Result<String, Rejected> {
        let token = message.param(&["_meta", "progressToken"]).map_err(|_| Rejected::AmbiguousToken)?;
        let mut spans: Vec<Span> = message.id_span().into_iter().chain(token.clone()).collect();
        spans.sort_by_key(|span| span.start);
        let text = message.text();
        let is_large = |raw: &str| number(raw, EXACT).is_some_and(|number| number >= SMALL);
        if spans.iter().any(|span| is_large(&text[span.clone()])) {
            return Err(Rejected::LargeNumber);
        }
        let token = token.map(|span| &text[span]);
        self.text_tokens |=
            token.is_some_and(|token| number(token, EXACT).is_none() && decimal(token).is_some());
        if let Some(id) = message.id().and_then(|id| self.shifted(id)) {
            self.next = self.next.max(id + 1);
        }
        Ok(self.splice(message, spans))
    }

    /// Returns a cancellation as the child gets it, and closes the request. `id`: the span of the
    /// request's id, if there is one.
    pub fn cancel(&mut self, message: &Message<'_>, id: Option<Span>) -> String {
        if let Some(raw) = id.clone().map(|id| &message.text()[id]) {
            match self.shifted(raw) {
                Some(id) => self.open.remove(&id),
                None => self.others.remove(raw),
            };
        }
        self.splice(message, id.into_iter().collect())
    }

    /// Closes a request that the child did not get. `raw` is its id at the child; returns the
    /// gateway's.
    pub fn take_back(&mut self, raw: &str) -> String {
        match number(raw, EXACT) {
            Some(id) => {
                self.open.remove(&id);
                id.saturating_sub(self.offset).to_string()
            }
            None => {
                self.others.remove(raw);
                raw.to_owned()
            }
        }
    }

    /// Returns a response of the child with the gateway's id, and closes the request.
    pub fn answer(&mut self, message: &Message<'_>) -> Answered {
        let Some(raw) = message.id() else { return Answered::Matched(message.splice(&[])) };
        if self.others.remove(raw) {
            return Answered::Matched(message.splice(&[]));
        }
        let Some(id) = decimal(raw).filter(|id| *id < EXACT) else {
            return Answered::Unmatched(message.splice(&[]));
        };
        let known = self.open.remove(&id);
        let text = format!("\"{id}\"");
        if !known && self.others.remove(&text) {
            return Answered::Matched(message.with_id(&text));
        }
        if id < self.offset {
            return Answered::Stale;
        }
        let answer = message.with_id(&(id - self.offset).to_string());
        // The gateway may have cancelled the request, and drops the response itself then.
        if known || id < self.next { Answered::Matched(answer) } else { Answered::Unmatched(answer) }
    }

    /// Returns a notification of the child with the gateway's progress token or subscription id;
    /// `None` if it belongs to a request of an earlier link.
    ///
    /// # Errors
    /// [`Malformed`]: it has two progress tokens.
    pub fn notification(&mut self, message: &Message<'_>) -> Result<Option<String>, Malformed> {
        let raw = |span: &Span| &message.text()[span.clone()];
        let (span, number) = match message.method() {
            "notifications/progress" => {
                let span = message.param(&["progressToken"])?;
                let token = span.as_ref().and_then(|span| self.known_token(raw(span)));
                (span, token)
            }
            // It ends a listen. Any other names a request of the child itself.
            "notifications/cancelled" => {
                let span = message.param(&["requestId"]).unwrap_or_default();
                let ended = span.as_ref().and_then(|span| self.end_listen(raw(span)));
                (span, ended)
            }
            // On the first link ids are the same at both ends.
            _ if self.offset == 0 => return Ok(Some(message.splice(&[]))),
            _ => {
                let span = message.param(&["_meta", meta::SUBSCRIPTION]).unwrap_or_default();
                let id = span.as_ref().and_then(|span| self.subscription(raw(span)));
                (span, id)
            }
        };
        let Some((number, span)) = number.zip(span) else { return Ok(Some(message.splice(&[]))) };
        let number = number.checked_sub(self.offset);
        Ok(number.map(|number| message.splice(&[(span, &number.to_string())])))
    }

    /// Closes a [`LISTEN`] that the child ends without a response. Returns its number, if that is
    /// one which is shifted.
    fn end_listen(&mut self, raw: &str) -> Option<u64> {
        if self.others.listens.remove(raw) {
            return None;
        }
        decimal(raw).filter(|id| self.open.listens.remove(id))
    }

    /// Returns the number of a subscription id that was shifted, in whatever form the child returned
    /// it.
    fn subscription(&self, raw: &str) -> Option<u64> {
        decimal(raw).filter(|id| *id < EXACT && !self.others.contains(raw))
    }

    /// Returns the number of a progress token that the gateway sent as a number, in whatever form
    /// the child returned it.
    fn known_token(&self, raw: &str) -> Option<u64> {
        let exact = number(raw, EXACT);
        exact.or_else(|| decimal(raw).filter(|token| *token < EXACT && !self.text_tokens))
    }

    /// Closes all open requests, because the child has ended. Returns the gateway's ids, raw.
    pub fn fail_all(&mut self) -> Vec<String> {
        let shifted = self.open.take().into_iter().map(|id| id.saturating_sub(self.offset).to_string());
        shifted.chain(self.others.take()).collect()
    }

    /// Closes all open requests, because the link is lost. Returns the child's ids of those to
    /// cancel, and whether ids begin again at 0.
    pub fn next_link(&mut self) -> (BTreeSet<u64>, bool) {
        self.text_tokens = false;
        self.others.take();
        // The ids would soon exceed 2^53 and lose precision. Starting again at 0 only risks that a
        // late response is taken for a new one.
        let begins_again = self.next >= SMALL;
        if begins_again {
            self.next = 0;
        }
        self.offset = self.next;
        (self.open.take(), begins_again)
    }

    /// Returns the number of a raw id at the child, if it is one that is shifted.
    fn shifted(&self, raw: &str) -> Option<u64> {
        number(raw, SMALL).map(|id| id + self.offset)
    }

    /// Returns the message with the numbers at `spans` shifted; other values stay unchanged.
    fn splice(&self, message: &Message<'_>, spans: Vec<Span>) -> String {
        if self.offset == 0 {
            return message.splice(&[]);
        }
        let new = |span: Span| Some((span.clone(), self.shifted(&message.text()[span])?.to_string()));
        let new: Vec<(Span, String)> = spans.into_iter().filter_map(new).collect();
        let edits: Vec<(Span, &str)> = new.iter().map(|(span, text)| (span.clone(), text.as_str())).collect();
        message.splice(&edits)
    }
}

/// Parses a number below `bound` that consists of digits only.
fn number(raw: &str, bound: u64) -> Option<u64> {
    util::parse::digits(raw).filter(|number| *number < bound)
}
