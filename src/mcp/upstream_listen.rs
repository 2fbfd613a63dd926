//! The listen of the gateway at one modern process (`subscriptions/listen` of MCP 2026-07-28): one
//! for all clients, for the changes of all lists that the server has and for the union of the
//! resources and tasks that clients listen to.
//!
//! A listen cannot be changed. To change what it covers, another one is opened, and the old one is
//! cancelled once the new one is acknowledged. Changes are delivered by the acknowledged one only,
//! so each is delivered once.
//!
//! This state machine does no I/O and has no clock. Its user sends what the steps say, reports each
//! id with [`UpstreamListen::sent`], and calls [`UpstreamListen::tick`] at the deadline. `W` is the
//! user's handle of a request that waits until the server has accepted its resources.

use std::{collections::BTreeSet, time::Instant};

use crate::{
    jsonrpc::METHOD_NOT_FOUND,
    limits::StatelessLimits,
    mcp::listen_filter::{Filter, Kinds},
    util::backoff,
};

/// A step that follows from an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenStep<W> {
    /// Send a listen with this filter, and call [`UpstreamListen::sent`].
    Send(Filter),
    /// Send `notifications/cancelled` for the listen with this id, and close it in the mux.
    Cancel(u64),
    /// The request that waited may go on, with those of its URIs that the server accepts.
    Settled(W, BTreeSet<String>),
    /// Changes of these lists may have been missed: report each as changed.
    Changed(Kinds),
}

/// The listen of the gateway at one modern process.
#[derive(Debug)]
pub struct UpstreamListen<W> {
    limits: StatelessLimits,
    /// Whether the process is listened to: from the end of its discovery to its own.
    runs: bool,
    /// The process does not know the method.
    off: bool,
    /// Lists that the server has.
    advertised: Kinds,
    /// What clients listen to.
    wanted: Filter,
    /// The part of it that the server refused.
    refused: Filter,
    /// The acknowledged listen.
    current: Option<OpenListen>,
    /// A listen that is not acknowledged yet.
    next: Option<OpenListen>,
    waiting: Vec<Waiter<W>>,
    failures: u32,
    failed: Option<Instant>,
    /// No listen is sent before this.
    retry: Option<Instant>,
    /// Since when the current listen covers more than is wanted.
    excess_since: Option<Instant>,
    /// Whether changes may have been missed since the last acknowledged listen.
    missed: bool,
}

#[derive(Debug)]
struct OpenListen {
    /// `None` until it is sent.
    id: Option<u64>,
    /// What was asked for; once acknowledged, without the resources and tasks that were refused.
    filter: Filter,
    /// When it was sent.
    since: Instant,
}

#[derive(Debug)]
struct Waiter<W> {
    waiter: W,
    uris: BTreeSet<String>,
    due: Instant,
}

impl<W> UpstreamListen<W> {
    /// Creates the listen of a process that is not listed yet.
    pub fn new(limits: &StatelessLimits) -> Self {
        Self {
            limits: limits.clone(),
            runs: false,
            off: false,
            advertised: Kinds::NONE,
            wanted: Filter::default(),
            refused: Filter::default(),
            current: None,
            next: None,
            waiting: Vec::new(),
            failures: 0,
            failed: None,
            retry: None,
            excess_since: None,
            missed: false,
        }
    }

    /// Begins when the server is listed; `advertised`: the lists whose changes it reports.
    #[must_use]
    pub fn begin(&mut self, now: Instant, advertised: Kinds) -> Vec<ListenStep<W>> {
        self.end_run();
        (self.runs, self.advertised, self.wanted.kinds) = (true, advertised, advertised);
        self.refresh(now)
    }

    /// Ends since the process was restarted, or has ended. Requests keep waiting for the next one.
    pub fn gone(&mut self) {
        self.end_run();
    }

    fn end_run(&mut self) {
        self.missed |= self.current.is_some();
        (self.runs, self.off) = (false, false);
        (self.current, self.next) = (None, None);
        self.refused = Filter::default();
        (self.failures, self.failed, self.retry, self.excess_since) = (0, None, None, None);
    }

    /// Sets what clients listen to besides lists: the union of all. Beyond
    /// [`StatelessLimits::listen_bytes`], what is new is left out.
    #[must_use]
    pub fn want(
        &mut self,
        now: Instant,
        uris: BTreeSet<String>,
        tasks: BTreeSet<String>,
    ) -> Vec<ListenStep<W>> {
        let has = |open: &Option<OpenListen>, of: fn(&Filter) -> &BTreeSet<String>, text: &String| {
            open.as_ref().is_some_and(|open| of(&open.filter).contains(text))
        };
        let mut room = self.limits.listen_bytes;
        let mut fit = |texts: BTreeSet<String>, of: fn(&Filter) -> &BTreeSet<String>| {
            let is_known = |text: &String| has(&self.current, of, text) || has(&self.next, of, text);
            let (mut fitting, new): (BTreeSet<_>, BTreeSet<_>) = texts.into_iter().partition(is_known);
            room = room.saturating_sub(fitting.iter().map(String::len).sum());
            fitting.extend(new.into_iter().filter(|text| {
                let fits = text.len() <= room;
                room -= if fits { text.len() } else { 0 };
                fits
            }));
            fitting
        };
        let (uris, tasks) = (fit(uris, |filter| &filter.uris), fit(tasks, |filter| &filter.tasks));
        self.wanted = Filter { kinds: self.advertised, uris, tasks };
        // What is wanted again later may be accepted then.
        self.refused.uris.retain(|uri| self.wanted.uris.contains(uri));
        self.refused.tasks.retain(|task| self.wanted.tasks.contains(task));
        let mut steps = self.settle(now);
        steps.append(&mut self.refresh(now));
        steps
    }

    /// Lets a request wait until the server has accepted or refused these URIs, which are wanted
    /// already. It waits no longer than [`StatelessLimits::listen_ack`]; then those count that are
    /// accepted.
    #[must_use]
    pub fn wait(&mut self, now: Instant, waiter: W, uris: BTreeSet<String>) -> Vec<ListenStep<W>> {
        self.waiting.push(Waiter { waiter, uris, due: now + self.limits.listen_ack });
        self.settle(now)
    }

    /// Takes the requests that wait, since the server is gone.
    pub fn take_waiting(&mut self) -> impl Iterator<Item = W> {
        std::mem::take(&mut self.waiting).into_iter().map(|waiter| waiter.waiter)
    }

    /// Reports the id under which the listen of [`ListenStep::Send`] was sent. `None`: it could not
    /// be sent.
    #[must_use]
    pub fn sent(&mut self, now: Instant, id: Option<u64>) -> Vec<ListenStep<W>> {
        match (id, &mut self.next) {
            (Some(id), Some(next)) => {
                next.id = Some(id);
                Vec::new()
            }
            (None, Some(_)) => {
                self.next = None;
                self.count_failure(now);
                self.pause(now);
                Vec::new()
            }
            (_, None) => Vec::new(),
        }
    }

    /// Whether a notification with this subscription id is passed on.
    pub fn delivers(&self, id: u64) -> bool {
        self.current.as_ref().or(self.next.as_ref()).is_some_and(|open| open.id == Some(id))
    }

    /// Takes `notifications/subscriptions/acknowledged`.
    #[must_use]
    pub fn acknowledged(&mut self, now: Instant, id: u64, honoured: &Filter) -> Vec<ListenStep<W>> {
        let Some(mut open) = self.next.take_if(|next| next.id == Some(id)) else { return Vec::new() };
        let Filter { uris, tasks, .. } = &mut open.filter;
        self.refused.uris.extend(uris.difference(&honoured.uris).cloned());
        self.refused.tasks.extend(tasks.difference(&honoured.tasks).cloned());
        uris.retain(|uri| honoured.uris.contains(uri));
        tasks.retain(|task| honoured.tasks.contains(task));
        let mut steps = Vec::new();
        steps.extend(self.current.replace(open).and_then(|old| old.id).map(ListenStep::Cancel));
        let kinds = self.advertised.intersection(honoured.kinds);
        if std::mem::take(&mut self.missed) && !kinds.is_empty() {
            steps.push(ListenStep::Changed(kinds));
        }
        self.excess_since = None;
        steps.append(&mut self.settle(now));
        steps.append(&mut self.refresh(now));
        steps
    }

    /// Takes an error response to a listen.
    #[must_use]
    pub fn failed(&mut self, now: Instant, id: u64, code: Option<i64>) -> Vec<ListenStep<W>> {
        let Some(failed) = self.next.take_if(|next| next.id == Some(id)) else { return self.ended(now, id) };
        if code == Some(METHOD_NOT_FOUND) && self.current.is_none() {
            self.off = true;
            return self.settle(now);
        }
        let known = self.current.as_ref().map(|open| &open.filter);
        let new = |of: fn(&Filter) -> &BTreeSet<String>| {
            let known = |text: &String| known.is_some_and(|known| of(known).contains(text));
            of(&failed.filter).iter().filter(|text| !known(text)).cloned().collect::<Vec<_>>()
        };
        let (uris, tasks) = (new(|filter| &filter.uris), new(|filter| &filter.tasks));
        // A resource or a task may be the reason, so the listen is tried without the new ones.
        let has_new = !uris.is_empty() || !tasks.is_empty();
        self.refused.uris.extend(uris);
        self.refused.tasks.extend(tasks);
        self.count_failure(now);
        if !has_new || self.failures >= self.limits.listen_failures {
            self.pause(now);
        }
        let mut steps = self.settle(now);
        steps.append(&mut self.refresh(now));
        steps
    }

    /// Takes a result of a listen, or a `notifications/cancelled` of the server that names it: the
    /// server ended it.
    #[must_use]
    pub fn ended(&mut self, now: Instant, id: u64) -> Vec<ListenStep<W>> {
        let is_it = |open: &mut OpenListen| open.id == Some(id);
        if self.current.take_if(is_it).is_some() {
            self.missed = true;
            if self.next.is_none() {
                self.count_failure(now);
                self.pause(now);
            }
        } else if self.next.take_if(is_it).is_some() {
            self.count_failure(now);
            self.pause(now);
        }
        Vec::new()
    }

    /// Returns when to call [`UpstreamListen::tick`] next.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.waiting.iter().map(|waiter| waiter.due);
        // Nothing is sent before `retry`, nor as long as the next listen is not acknowledged or late.
        let sends = self.retry.or_else(|| match &self.next {
            Some(next) if next.id.is_none() || next.filter.covers(&self.target()) => None,
            Some(next) => Some(next.since + self.limits.listen_ack),
            None => self.excess_since.map(|since| since + self.limits.listen_shrink_after),
        });
        waits.chain(sends).min()
    }

    /// Does what is due.
    #[must_use]
    pub fn tick(&mut self, now: Instant) -> Vec<ListenStep<W>> {
        let mut steps = self.settle(now);
        if self.retry.is_none_or(|retry| retry <= now) {
            self.retry = None;
            steps.append(&mut self.refresh(now));
        }
        steps
    }

    /// What to listen to.
    fn target(&self) -> Filter {
        let Filter { kinds, uris, tasks } = &self.wanted;
        Filter {
            kinds: *kinds,
            uris: uris.difference(&self.refused.uris).cloned().collect(),
            tasks: tasks.difference(&self.refused.tasks).cloned().collect(),
        }
    }

    /// Opens another listen if the present one does not fit.
    fn refresh(&mut self, now: Instant) -> Vec<ListenStep<W>> {
        if !self.runs || self.off || self.retry.is_some() {
            return Vec::new();
        }
        let target = self.target();
        if let Some(next) = &self.next {
            let late = next.since + self.limits.listen_ack <= now;
            let (true, Some(id)) = (late && !next.filter.covers(&target), next.id) else { return Vec::new() };
            return vec![ListenStep::Cancel(id), self.open(now, target)];
        }
        let too_large = self.is_too_large(now, &target);
        match &self.current {
            None if target.is_empty() => Vec::new(),
            Some(current) if current.filter.covers(&target) && !too_large => Vec::new(),
            Some(_) if target.is_empty() => {
                self.excess_since = None;
                let old = self.current.take();
                old.and_then(|old| old.id).map(ListenStep::Cancel).into_iter().collect()
            }
            _ => vec![self.open(now, target)],
        }
    }

    /// Whether the current listen covers much more than is wanted, or has for a while.
    fn is_too_large(&mut self, now: Instant, target: &Filter) -> bool {
        let excess = self.current.as_ref().map_or(0, |current| current.filter.excess(target));
        if excess == 0 {
            self.excess_since = None;
            return false;
        }
        let since = *self.excess_since.get_or_insert(now);
        excess >= self.limits.listen_shrink || since + self.limits.listen_shrink_after <= now
    }

    fn open(&mut self, now: Instant, filter: Filter) -> ListenStep<W> {
        self.next = Some(OpenListen { id: None, filter: filter.clone(), since: now });
        ListenStep::Send(filter)
    }

    /// Lets requests go on whose URIs are all decided, or that waited long enough.
    fn settle(&mut self, now: Instant) -> Vec<ListenStep<W>> {
        let honoured = self.current.as_ref().map(|current| &current.filter.uris);
        let is_honoured = |uri: &String| honoured.is_some_and(|honoured| honoured.contains(uri));
        let is_open = |uri: &String| {
            !self.off
                && !is_honoured(uri)
                && self.wanted.uris.contains(uri)
                && !self.refused.uris.contains(uri)
        };
        let over = |waiter: &mut Waiter<W>| waiter.due <= now || !waiter.uris.iter().any(is_open);
        let settled = self.waiting.extract_if(.., over).map(|waiter| {
            let accepted = waiter.uris.into_iter().filter(|uri| is_honoured(uri)).collect();
            ListenStep::Settled(waiter.waiter, accepted)
        });
        settled.collect()
    }

    /// Sends nothing for a while after the failures so far.
    fn pause(&mut self, now: Instant) {
        let StatelessLimits { listen_backoff: first, listen_backoff_cap: cap, .. } = self.limits;
        self.retry = Some(now + backoff::doubled(first, self.failures.saturating_sub(1), cap));
    }

    /// Counts a failure. After a long time without one, it is the first.
    fn count_failure(&mut self, now: Instant) {
        let calm = |failed: Instant| failed + 2 * self.limits.listen_backoff_cap <= now;
        self.failures = if self.failed.is_some_and(calm) { 1 } else { self.failures.saturating_add(1) };
        self.failed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mcp::listing::ListKind;

    /// A listen with what its user does: it sends at once, under ids from 1 on.
    struct World {
        listen: UpstreamListen<String>,
        start: Instant,
        now: Instant,
        last: u64,
        open: BTreeSet<u64>,
    }

    fn set<'a>(texts: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        texts.into_iter().map(str::to_owned).collect()
    }

    fn kinds(letters: &str) -> Kinds {
        let named = [('t', ListKind::Tool), ('p', ListKind::Prompt), ('r', ListKind::Resource)];
        named.into_iter().filter(|(letter, _)| letters.contains(*letter)).map(|(_, kind)| kind).collect()
    }

    fn letters(kinds: Kinds) -> String {
        kinds.iter().map(|kind| kind.noun().chars().next().unwrap()).collect()
    }

    fn shown(filter: &Filter) -> String {
        let texts = filter.uris.iter().chain(&filter.tasks).cloned().collect::<Vec<_>>();
        [vec![letters(filter.kinds)], texts].concat().join(" ").trim().to_owned()
    }

    impl World {
        fn new(limits: &StatelessLimits) -> Self {
            let start = Instant::now();
            let (listen, open) = (UpstreamListen::new(limits), BTreeSet::new());
            Self { listen, start, now: start, last: 0, open }
        }

        /// Does one command, and returns the steps. Words of URIs begin with a letter, those of tasks
        /// with `#`.
        fn run(&mut self, command: &str) -> String {
            let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
            let mut words = rest.split_whitespace();
            let now = self.now;
            let listen = &mut self.listen;
            let steps = match verb {
                "begin" => listen.begin(now, kinds(rest)),
                "gone" => {
                    listen.gone();
                    self.open.clear();
                    Vec::new()
                }
                "want" => {
                    let (tasks, uris): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('#'));
                    listen.want(now, set(uris), set(tasks))
                }
                "wait" => {
                    let waiter = words.next().unwrap().to_owned();
                    listen.wait(now, waiter, set(words))
                }
                "at" => {
                    self.now = self.start + Duration::from_millis(rest.parse().unwrap());
                    let (now, due) = (self.now, self.listen.deadline());
                    let steps = self.listen.tick(now);
                    assert!(
                        due.is_some_and(|due| due <= now) || steps.is_empty(),
                        "{command}: no deadline: {steps:?}"
                    );
                    steps
                }
                _ => {
                    let id = words.next().unwrap().parse().unwrap();
                    match verb {
                        "ack" => {
                            let kinds = kinds(words.next().unwrap_or_default());
                            let (tasks, uris): (Vec<_>, Vec<_>) =
                                words.partition(|word| word.starts_with('#'));
                            listen.acknowledged(
                                now,
                                id,
                                &Filter { kinds, uris: set(uris), tasks: set(tasks) },
                            )
                        }
                        "error" => {
                            self.open.remove(&id);
                            listen.failed(now, id, words.next().and_then(|code| code.parse().ok()))
                        }
                        "end" => {
                            self.open.remove(&id);
                            listen.ended(now, id)
                        }
                        other => panic!("{other}"),
                    }
                }
            };
            let done: Vec<String> = steps.into_iter().map(|step| self.done(step)).collect();
            self.check();
            done.join(", ")
        }

        fn done(&mut self, step: ListenStep<String>) -> String {
            match step {
                ListenStep::Send(filter) => {
                    self.last += 1;
                    self.open.insert(self.last);
                    assert!(self.listen.sent(self.now, Some(self.last)).is_empty());
                    format!("send {}", shown(&filter))
                }
                ListenStep::Cancel(id) => {
                    assert!(self.open.remove(&id), "{id} is not open");
                    format!("cancel {id}")
                }
                ListenStep::Settled(waiter, uris) => {
                    let uris: Vec<String> = uris.into_iter().collect();
                    format!("{waiter}: {}", uris.join(" "))
                }
                ListenStep::Changed(kinds) => format!("changed {}", letters(kinds)),
            }
        }

        fn check(&self) {
            assert!(self.open.len() <= 2, "{:?}", self.open);
            let ids = self.listen.current.iter().chain(&self.listen.next).map(|open| open.id.unwrap());
            assert_eq!(ids.collect::<BTreeSet<_>>(), self.open, "the listens that are open at the server");
            assert!(self.open.iter().filter(|id| self.listen.delivers(**id)).count() <= 1);
            let due = self.listen.deadline();
            assert!(due.is_none_or(|due| due > self.now), "{:?} is due, and nothing happens", self.listen);
        }

        fn state(&self) -> &'static str {
            let listen = &self.listen;
            match (&listen.current, &listen.next) {
                _ if !listen.runs => "none",
                _ if listen.off => "off",
                (Some(_), Some(_)) => "open and opening",
                (Some(_), None) => "open",
                (None, Some(_)) => "opening",
                (None, None) if listen.retry.is_some() => "closed",
                (None, None) => "idle",
            }
        }
    }

    /// The table of the design: row, commands before, the last command, its steps, the next state.
    #[rustfmt::skip]
        const TABLE: &[(u8, &str, &str, &str, &str)] = &[
        (1, "", "begin tr", "send tr", "opening"),
        (1, "want a #1", "begin t", "send t a #1", "opening"),
        (1, "", "begin ", "", "idle"),
        (1, "begin ", "want a", "send a", "opening"),
        (2, "begin t", "ack 1 t", "", "open"),
        (2, "want a b|begin t|wait w a|wait x b", "ack 1 t a", "w: a, x: ", "open"),
        (2, "want a b|begin t|wait w a b", "ack 1 t b", "w: b", "open"),
        (2, "want a|begin t|ack 1 t a", "wait w a", "w: a", "open"),
        (2, "begin t|ack 1 t", "wait w", "w: ", "open"),
        (3, "want a|begin t|wait w a", "at 2000", "w: ", "opening"),
        (3, "want a|begin t|at 1500|wait w a|at 2500", "at 3500", "w: ", "opening"),
        (3, "want a|begin t|wait w a|at 2000", "ack 1 t a", "", "open"),
        (3, "want a|begin t|at 2000", "want a b", "cancel 1, send t a b", "opening"),
        (3, "want a b|begin t|at 2000", "want a", "", "opening"),
        (4, "want a|begin t|wait w a", "error 1 -32601", "w: ", "off"),
        (4, "begin t|error 1 -32601", "want a", "", "off"),
        (4, "begin t|error 1 -32601|want a", "wait w a", "w: ", "off"),
        (4, "begin t|error 1 -32601", "at 999999", "", "off"),
        (4, "begin t|error 1 -32601|gone", "begin t", "send t", "opening"),
        (5, "want a #1|begin t|wait w a", "error 1 -32602", "w: , send t", "opening"),
        (5, "want a|begin t|wait w a|error 1 -32602", "ack 2 t", "", "open"),
        (5, "want a|begin t|error 1 -32602|ack 2 t", "want a b", "send t b", "open and opening"),
        (5, "want a|begin t|error 1 -32602|ack 2 t|want ", "want a", "send t a", "open and opening"),
        (5, "want a|begin t|ack 1 t a|want a b|wait w b", "error 2 -32602", "w: ", "open"),
        (5, "want a|begin ", "error 1 -32602", "", "idle"),
        (6, "begin t", "error 1 -32603", "", "closed"),
        (6, "begin t", "error 1", "", "closed"),
        (6, "begin t|error 1 -32603", "at 1000", "send t", "opening"),
        (6, "begin t|error 1 -32603|at 1000|error 2 -32603|at 2999", "at 3000", "send t", "opening"),
        (6, "begin t|error 1 -32603|want a", "wait w a", "", "closed"),
        (6, "begin t|error 1 -32603|want a|wait w a|at 1000", "ack 2 t a", "w: a", "open"),
        (6, "begin t", "end 1", "", "closed"),
        (7, "begin t|ack 1 t", "want a", "send t a", "open and opening"),
        (7, "want a|begin t|ack 1 t a", "want a #1", "send t a #1", "open and opening"),
        (8, "begin t|ack 1 t|want a|wait w a", "ack 2 t a", "cancel 1, w: a", "open"),
        (8, "begin t|ack 1 t|want a", "ack 1 t", "", "open and opening"),
        (9, "want a b|begin t|ack 1 t a b", "want a", "", "open"),
        (9, "want a b|begin t|ack 1 t a b|want a|at 59999", "at 60000", "send t a", "open and opening"),
        (9, "want a b|begin t|ack 1 t a b|want a|at 50000|want a b", "at 99999", "", "open"),
        (9, "want a b c d|begin t|ack 1 t a b c d", "want a", "send t a", "open and opening"),
        (9, "want a b c d|begin |ack 1  a b c d", "want ", "cancel 1", "idle"),
        (10, "begin t|ack 1 t|want a", "want a b", "", "open and opening"),
        (10, "begin t|ack 1 t|want a|want a b|wait w b", "ack 2 t a", "cancel 1, send t a b", "open and opening"),
        (10, "begin t|want a", "ack 1 t", "send t a", "open and opening"),
        (11, "begin t|ack 1 t", "end 1", "", "closed"),
        (11, "begin t|ack 1 t", "error 1 -32000", "", "closed"),
        (11, "begin tr|ack 1 tr|end 1|at 1000", "ack 2 tr", "changed tr", "open"),
        (11, "begin tr|ack 1 tr|end 1|at 1000|ack 2 t|want a", "ack 3 t a", "cancel 2", "open"),
        (11, "begin t|ack 1 t|want a|end 1", "ack 2 t a", "changed t", "open"),
        (12, "want a|begin t|ack 1 t a", "gone", "", "none"),
        (12, "want a|begin t|ack 1 t a|gone", "begin tp", "send tp a", "opening"),
        (12, "want a|begin t|ack 1 t a|gone|begin tp", "ack 2 tp a", "changed tp", "open"),
        (12, "want a|begin t|gone|begin t", "ack 2 t a", "", "open"),
        (12, "begin t|gone|want a|wait w a", "at 2000", "w: ", "none"),
        (12, "begin t|gone|want a|wait w a|begin t", "ack 2 t a", "w: a", "open"),
        (13, "begin t|ack 1 t", "ack 7 t a", "", "open"),
        (13, "begin t|ack 1 t", "end 7", "", "open"),
        (13, "begin t|ack 1 t", "error 7 -32601", "", "open"),
    ];

    #[test]
    fn table_of_states() {
        let limits = StatelessLimits { listen_shrink: 3, ..StatelessLimits::default() };
        for (row, before, command, steps, state) in TABLE {
            let mut world = World::new(&limits);
            for command in before.split('|').filter(|command| !command.is_empty()) {
                world.run(command);
            }
            let got = (world.run(command), world.state());
            assert_eq!(got, ((*steps).to_owned(), *state), "row {row}: {before}|{command}");
        }
        for row in 1..=13 {
            assert!(TABLE.iter().any(|(number, ..)| *number == row), "row {row}");
        }
    }

    /// A change is delivered by the acknowledged listen only.
    #[test]
    fn one_listen_delivers_at_a_time() {
        let mut world = World::new(&StatelessLimits::default());
        let delivers = |world: &World| (0..5).filter(|id| world.listen.delivers(*id)).collect::<Vec<_>>();
        for (command, expected) in [
            ("want a", vec![]),
            ("begin t", vec![1]),
            ("ack 1 t a", vec![1]),
            ("want a b", vec![1]),
            ("ack 2 t a b", vec![2]),
            ("want a b c", vec![2]),
            ("end 2", vec![3]),
            ("ack 3 t a b c", vec![3]),
            ("gone", vec![]),
        ] {
            world.run(command);
            assert_eq!(delivers(&world), expected, "{command}");
        }
    }

    #[test]
    fn failures_in_a_row_are_spaced_out() {
        let mut world = World::new(&StatelessLimits::default());
        world.run("begin t");
        let mut pauses = Vec::new();
        for id in 1..=9 {
            world.run(&format!("error {id} -32603"));
            let due = world.listen.deadline().unwrap();
            pauses.push((due - world.now).as_secs());
            let at = (due - world.start).as_millis();
            assert_eq!(world.run(&format!("at {at}")), "send t");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        // Resources that the server refuses one after the other.
        let mut world = World::new(&StatelessLimits::default());
        world.run("begin t");
        world.run("ack 1 t");
        for id in 2..6 {
            assert_eq!(world.run(&format!("want uri-{id}")), format!("send t uri-{id}"));
            world.run(&format!("error {id} -32602"));
        }
        world.run("want uri-6");
        world.run("error 6 -32602");
        assert_eq!(world.run("want uri-7"), "");
        assert_eq!((world.run("at 16000"), world.state()), ("send t uri-7".into(), "open and opening"));
        world.run("ack 7 t uri-7");
        world.run("at 300000");
        assert_eq!(world.run("want uri-7 uri-8"), "send t uri-7 uri-8");
        world.run("error 8 -32602");
        assert_eq!(world.run("want uri-7 uri-9"), "send t uri-7 uri-9", "the failures are long ago");
    }

    #[test]
    fn a_listen_that_cannot_be_sent_is_sent_later() {
        let mut listen: UpstreamListen<()> = UpstreamListen::new(&StatelessLimits::default());
        let now = Instant::now();
        assert_eq!(listen.begin(now, kinds("t")), [ListenStep::Send(Filter::of_kinds(kinds("t")))]);
        assert!(listen.sent(now, None).is_empty());
        let due = listen.deadline().unwrap();
        assert_eq!((due, listen.tick(due).len()), (now + Duration::from_secs(1), 1));
        assert!(listen.sent(now, Some(1)).is_empty() && listen.sent(now, Some(1)).is_empty());
        assert!(listen.delivers(1));
    }

    #[test]
    fn a_listen_is_bounded() {
        let limits = StatelessLimits { listen_bytes: 10, ..StatelessLimits::default() };
        let mut world = World::new(&limits);
        world.run("begin t");
        world.run("ack 1 t");
        assert_eq!(world.run("want mmmm nnnn"), "send t mmmm nnnn");
        assert_eq!(world.run("ack 2 t mmmm nnnn"), "cancel 1");
        assert_eq!(world.run("want aaaa mmmm nnnn #2"), "send t mmmm nnnn #2", "those that are there stay");
        assert_eq!(world.run("wait w aaaa"), "w: ");
        world.run("ack 3 t mmmm nnnn #2");
        assert_eq!(world.run("want aaaa mmmm #2"), "send t aaaa mmmm #2");
    }

    /// A repeatable source of numbers.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// Any sequence of events: [`World::check`] holds after each, each request goes on once and in
    /// time, and in the end the server listens to what is wanted.
    #[test]
    fn random_events() {
        for seed in 0..300 {
            let mut random = Random(seed);
            let mut world = World::new(&StatelessLimits { listen_shrink: 2, ..StatelessLimits::default() });
            let (mut time, mut waiters, mut waiting) = (0, 0, std::collections::BTreeMap::new());
            for _ in 0..60 {
                let some = |random: &mut Random| {
                    ["a", "b", "c", "#1"]
                        .into_iter()
                        .filter(|_| random.below(2) == 0)
                        .collect::<Vec<_>>()
                        .join(" ")
                };
                let id = world.last.saturating_sub(random.below(3));
                let command = match random.below(12) {
                    0 => "begin tr".into(),
                    1 => "gone".into(),
                    2..=3 => format!("want {}", some(&mut random)),
                    4..=5 => {
                        waiters += 1;
                        waiting.insert(format!("w{waiters}"), time);
                        format!("wait w{waiters} {}", some(&mut random).replace('#', "x"))
                    }
                    6..=7 => format!("ack {id} tr {}", some(&mut random)),
                    8 => format!("error {id} {}", [-32601, -32602, -32603][random.below(3) as usize]),
                    9 => format!("end {id}"),
                    _ => {
                        time += [10, 1000, 2000, 70_000][random.below(4) as usize];
                        format!("at {time}")
                    }
                };
                // A process ends before the next is listed.
                if command.starts_with("begin") {
                    world.run("gone");
                }
                for step in world.run(&command).split(", ") {
                    if let Some((waiter, _)) = step.split_once(": ") {
                        let since = waiting.remove(waiter).expect("it waits");
                        assert!(time - since <= 2000 || command.starts_with("at"), "{seed} {waiter}");
                    }
                }
                assert!(
                    waiting.values().all(|since| time - since < 2000),
                    "{seed}: a request waits too long"
                );
            }
            world.run("gone");
            world.run("begin tr");
            world.run("want a b");
            while world.state() != "open" {
                let last = world.last;
                world.run(&format!("ack {last} tr a b"));
            }
            assert_eq!(shown(&world.listen.current.as_ref().unwrap().filter), "tr a b", "{seed}");
        }
    }
}
