//! Any sequence of operations on the table of a link, against a simple model: each inserted request
//! is removed exactly once, bounds are kept, and the deadline is never later than the first one
//! due. Two bytes are an operation and its argument.
#![no_main]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mcpport::hub::mux::{Mux, MuxRefused, Pending};
use mcpport::jsonrpc::{Message, decimal};

/// Concurrent requests.
const MOST: usize = 6;

fuzz_target!(|data: &[u8]| {
    let mut world = World::new();
    for pair in data.chunks_exact(2) {
        world.step(pair[0], pair[1]);
        world.check();
    }
});

/// A request as it was inserted.
struct Request {
    caller: u32,
    token: Option<String>,
    deadline: Instant,
    own: bool,
    suspended: bool,
}

struct World {
    mux: Mux<u32>,
    now: Instant,
    /// Callers so far: each opens one request.
    callers: u32,
    last: u64,
    open: BTreeMap<u64, Request>,
    /// Callers of the requests that last until they are cancelled.
    lasting: BTreeMap<u64, u32>,
    gone: bool,
}

impl World {
    fn new() -> Self {
        let (mux, now) = (Mux::new(MOST), Instant::now());
        Self { mux, now, callers: 0, last: 0, open: BTreeMap::new(), lasting: BTreeMap::new(), gone: false }
    }

    fn step(&mut self, operation: u8, argument: u8) {
        // Ids near the pending ones: answered, pending, and not created yet.
        let id = (self.last + 3).saturating_sub(u64::from(argument % 12));
        match operation % 12 {
            0 | 1 => self.open(argument),
            2 => self.open_own(argument),
            3 => self.answer(id, argument),
            4 => self.progress(id, argument),
            5 => {
                let closed = self.mux.close(id);
                self.leaves(id, closed);
            }
            6 => self.pass(argument),
            7 => self.others(argument),
            8 => self.open_lasting(),
            9 => self.suspend(id, argument),
            10 => self.rejoin(id, argument),
            // Rare, because nothing happens after it.
            _ if argument > 250 => self.drain(),
            _ => {}
        }
    }

    fn open(&mut self, argument: u8) {
        let token = [None, Some("0"), Some("\"t\""), Some("7")][usize::from(argument) % 4];
        let timeout = Duration::from_millis(u64::from(argument));
        let opened = self.mux.open(self.now, self.callers, "m", token, timeout);
        self.taken(opened, token, timeout, false);
    }

    fn open_own(&mut self, argument: u8) {
        // Its user has one at a time.
        if self.open.values().any(|request| request.own) {
            return;
        }
        let timeout = Duration::from_millis(u64::from(argument));
        let opened = self.mux.open_own(self.now, self.callers, "own", timeout);
        self.taken(opened, None, timeout, true);
    }

    fn taken(&mut self, opened: Result<u64, MuxRefused>, token: Option<&str>, timeout: Duration, own: bool) {
        let full = self.open.len() >= MOST && !own;
        let expected = match (self.gone, full) {
            (true, _) => Err(MuxRefused::Gone),
            (false, true) => Err(MuxRefused::Busy),
            (false, false) => Ok(self.last + 1),
        };
        assert_eq!(opened, expected, "ids count up, and none is refused without a reason");
        let Ok(id) = opened else { return };
        self.last = id;
        let token = token.map(str::to_owned);
        let deadline = self.now + timeout;
        let request = Request { caller: self.callers, token, deadline, own, suspended: false };
        self.open.insert(id, request);
        self.callers += 1;
    }

    /// A request was removed: it was in the table, and it was this one.
    fn leaves(&mut self, id: u64, pending: Option<Pending<u32>>) {
        if let (Some(caller), Some(pending)) = (self.lasting.remove(&id), &pending) {
            assert_eq!((pending.caller, pending.token()), (caller, None));
            return;
        }
        let known = self.open.remove(&id);
        assert_eq!(pending.is_some(), known.is_some());
        if let (Some(pending), Some(known)) = (pending, known) {
            assert_eq!((pending.caller, pending.token()), (known.caller, known.token.as_deref()));
        }
    }

    fn answer(&mut self, id: u64, argument: u8) {
        let forms =
            [format!("{id}"), format!("{id}"), format!("\"{id}\""), format!("{id}.0"), format!("0{id}")];
        let form = &forms[usize::from(argument / 16) % forms.len()];
        let text = format!("{{\"jsonrpc\":\"2.0\",\"id\":{form},\"result\":{{}}}}");
        let Ok(message) = Message::read(&text) else { return };
        // Every form except the last, which is not a number, stands for our id.
        let is_ours = *form != format!("0{id}") || id == 0;
        match message.id().and_then(decimal).and_then(|own| self.mux.close(own)) {
            Some(pending) => {
                assert!(is_ours, "{form}");
                self.leaves(id, Some(pending));
            }
            None => {
                assert!(!is_ours || !self.open.contains_key(&id) && !self.lasting.contains_key(&id));
            }
        }
    }

    fn open_lasting(&mut self) {
        let opened = self.mux.open_lasting(self.now, self.callers, "lasting");
        let expected = if self.gone { Err(MuxRefused::Gone) } else { Ok(self.last + 1) };
        assert_eq!(opened, expected);
        let Ok(id) = opened else { return };
        self.last = id;
        self.lasting.insert(id, self.callers);
        self.callers += 1;
    }

    fn suspend(&mut self, id: u64, argument: u8) {
        let until = self.now + Duration::from_millis(1 + u64::from(argument));
        let known = self.open.get_mut(&id);
        assert_eq!(self.mux.suspend(id, until), known.is_some());
        if let Some(known) = known {
            (known.suspended, known.token, known.deadline) = (true, None, until);
        }
    }

    fn rejoin(&mut self, id: u64, argument: u8) {
        let token = [None, Some("0"), Some("7")][usize::from(argument) % 3];
        let timeout = self.mux.get(id).map(|pending| pending.timeout);
        let rejoined = self.mux.rejoin(id, self.now, self.callers, token);
        let known = self.open.get_mut(&id).filter(|known| known.suspended);
        assert_eq!(rejoined, known.as_ref().map_or(Err(self.callers), |known| Ok(known.caller)));
        if let (Some(known), Some(timeout)) = (known, timeout) {
            (known.suspended, known.token) = (false, token.map(str::to_owned));
            (known.deadline, known.caller) = (self.now + timeout, self.callers);
            self.callers += 1;
        }
    }

    fn progress(&mut self, id: u64, argument: u8) {
        let form = if argument > 200 { format!("\"{id}\"") } else { id.to_string() };
        let text = format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":{form}}}}}"
        );
        let message = Message::read(&text).expect("a message");
        let wanted = self.open.get(&id).is_some_and(|request| request.token.is_some());
        let span = message.param(&["progressToken"]).expect("nothing stands twice").expect("a token");
        let own = decimal(&text[span]).expect("our id");
        let token = self.mux.get(own).and_then(Pending::token);
        assert!(own == id && token.is_some() == wanted);
        let known = self.open.get(&id).and_then(|request| request.token.as_deref());
        assert_eq!(token, known);
    }

    /// Time passes, and exactly the requests that are due are removed.
    fn pass(&mut self, argument: u8) {
        self.now += Duration::from_millis(u64::from(argument / 2));
        let mut expired = Vec::new();
        self.mux.tick(self.now, &mut expired);
        for (id, pending) in expired {
            assert!(self.open.get(&id).is_some_and(|request| request.deadline <= self.now));
            self.leaves(id, Some(pending));
        }
        assert!(self.open.values().all(|request| request.deadline > self.now), "it was due and stays");
        assert!(self.mux.deadline().is_none_or(|due| due > self.now), "a deadline in the past");
    }

    /// Operations that only read.
    fn others(&self, argument: u8) {
        let newest = self.mux.newest(|pending| Some(pending.caller));
        assert_eq!(newest, self.open.values().next_back().map(|request| request.caller));
        let only = self.open.keys().next().copied().filter(|_| self.open.len() == 1);
        assert_eq!(self.mux.only(), only);
        let token = ["0", "\"t\"", "7"][usize::from(argument) % 3];
        let found = self.mux.of_token(token).map(|(_, pending)| pending.caller);
        let with = |request: &&Request| request.token.as_deref() == Some(token);
        match found {
            Some(caller) => assert!(self.open.values().filter(with).any(|request| request.caller == caller)),
            None => assert_eq!(self.open.values().filter(with).count(), 0),
        }
    }

    fn drain(&mut self) {
        let drained = self.mux.drain().into_iter().map(|pending| pending.caller);
        let mut drained: Vec<u32> = drained.collect();
        drained.sort_unstable();
        let known = self.open.values().map(|request| request.caller);
        let mut known: Vec<u32> = known.chain(self.lasting.values().copied()).collect();
        known.sort_unstable();
        assert_eq!(drained, known, "everybody who waits is told, once");
        self.open.clear();
        self.lasting.clear();
        self.gone = true;
    }

    fn check(&self) {
        assert_eq!((self.mux.len(), self.mux.is_empty()), (self.open.len(), self.open.is_empty()));
        let own = self.open.values().filter(|request| request.own).count();
        assert!(self.open.len() <= MOST + own);
        let first = self.open.values().map(|request| request.deadline).min();
        match (self.mux.deadline(), first) {
            (Some(due), Some(first)) => assert!(due <= first, "the deadline is later than the first"),
            (None, first) => assert_eq!(first, None),
            (Some(_), None) => {}
        }
        for (id, request) in &self.open {
            let pending = self.mux.get(*id).map(|pending| (pending.caller, pending.is_suspended()));
            assert_eq!(pending, Some((request.caller, request.suspended)));
        }
        for (id, caller) in &self.lasting {
            assert_eq!(self.mux.get(*id).map(|pending| pending.caller), Some(*caller));
        }
    }
}
