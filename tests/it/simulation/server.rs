//! The shared server of a simulated edge: a simulated process with the real queue of messages, and
//! the readers of its output. Does what `edge::supervisor` and `edge::backend::stdio` do with
//! processes, pipes and timers.

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Instant,
};

use mcpport::{
    config::Restart,
    edge::{
        backend::{self, BoxFuture, LineOutcome, LineSink, lines::LineParts},
        restart::{Ending, Restarts},
        state::{EdgeState, Run, SharedSink},
    },
    net::outbox::{Received, Receiver, Sender},
};

use super::{
    Event, Net,
    child::{self, Child},
    watch::Watch,
};

pub struct Server {
    place: usize,
    pub child: Child,
    /// Number of the current child.
    birth: u64,
    run: Run,
    started: Instant,
    restarts: Restarts,
    /// The queue of messages for the child, until its stdin is closed.
    input: Option<(Sender<()>, Receiver<()>)>,
    /// The child reads its stdin with delays.
    pub is_slow: bool,
    /// The child will read its stdin.
    reads: bool,
    /// Of the current child and the one before.
    readers: VecDeque<Reader>,
}

/// Reads the output of one child.
struct Reader {
    birth: u64,
    sink: Arc<dyn LineSink>,
    unread: VecDeque<String>,
    /// The line whose messages wait for space on the link.
    giving: Option<BoxFuture<'static, ()>>,
}

/// Gives the messages in a line to the sink, and waits for space on the link.
pub async fn give(line: String, sink: Arc<dyn LineSink>) {
    let mut parts = LineParts::new(line.as_bytes());
    while let Some(outcome) = parts.next(&*sink) {
        match outcome {
            LineOutcome::Message(delivery) => delivery.finish().await,
            LineOutcome::Noise => {}
            LineOutcome::End(why) => panic!("an honest child is stopped: {why}"),
        }
    }
}

impl Server {
    pub fn new(net: &mut Net, place: usize, is_slow: bool) -> Self {
        Self {
            place,
            child: Child::new(place, !net.original),
            birth: 0,
            run: Run::default(),
            started: net.now,
            restarts: Restarts::default(),
            input: None,
            is_slow,
            reads: false,
            readers: VecDeque::new(),
        }
    }

    /// The whole program is started again.
    pub fn begin_again(&mut self, net: &Net, state: &Arc<EdgeState>) {
        self.restarts = Restarts::default();
        self.readers.clear();
        self.launch(net, state);
    }

    fn launch(&mut self, net: &Net, state: &Arc<EdgeState>) {
        self.child.begin_again();
        (self.birth, self.started, self.reads) = (self.birth + 1, net.now, false);
        let (input, messages) = backend::queue(&net.limits);
        self.run = state.started(input.clone());
        self.input = Some((input, messages));
        let sink = Arc::new(SharedSink::new(state.clone(), self.run));
        self.readers.truncate(1);
        let (unread, giving) = Default::default();
        self.readers.push_front(Reader { birth: self.birth, sink, unread, giving });
    }

    /// Starts the next child, unless the whole program was restarted meanwhile.
    pub fn start(&mut self, net: &Net, state: &Arc<EdgeState>, birth: u64) {
        if birth == self.birth {
            self.launch(net, state);
        }
    }

    /// The child crashes, which closes its stdin. The edge notices both later, in any order.
    pub fn crash(&mut self, net: &mut Net) {
        if !self.child.end() {
            return;
        }
        if net.random.chance(50) {
            self.input = None;
        }
        let after = if net.random.chance(50) { 1 } else { 1500 };
        let after = net.random.millis(0, after);
        net.plan(after, Event::Exit(self.place, self.birth));
    }

    /// The edge notices that the child is gone, and will start another one.
    pub fn exited(&mut self, net: &mut Net, state: &EdgeState, birth: u64) -> bool {
        if birth != self.birth {
            return false;
        }
        let (alive, random) = (net.now - self.started, net.random.number());
        let (policy, limits) = (Restart::OnFailure, &net.limits.child);
        let delay = self.restarts.next(policy, Ending::Failed, alive, random, limits).unwrap();
        state.ended("the server crashed", Some(net.now + delay));
        self.input = None;
        net.plan(delay, Event::Start(self.place, self.birth));
        true
    }

    /// A child writes a line.
    pub fn wrote(&mut self, birth: u64, line: String) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.birth == birth) {
            reader.unread.push_back(line);
        }
    }

    /// Reads the output as far as the link has space for it. Returns whether there was any.
    pub fn forward(&mut self, state: &EdgeState, watch: &mut Watch) -> bool {
        let (mut progress, context) = (false, &mut Context::from_waker(Waker::noop()));
        for reader in &mut self.readers {
            loop {
                if let Some(giving) = &mut reader.giving {
                    let Poll::Ready(()) = giving.as_mut().poll(context) else { break };
                    reader.giving = None;
                    progress = true;
                }
                let Some(line) = reader.unread.pop_front() else { break };
                let is_current = reader.birth == self.birth;
                let restarts =
                    is_current && line.contains(child::INITIALIZED) && state.is_initializing(self.run);
                if is_current {
                    self.child.wrote(&line);
                }
                let mut giving: BoxFuture<'static, ()> = Box::pin(give(line, reader.sink.clone()));
                if giving.as_mut().poll(context).is_pending() {
                    reader.giving = Some(giving);
                }
                progress = true;
                if restarts {
                    assert!(!state.is_initializing(self.run), "the child has answered `initialize`");
                    watch.child_is_new();
                }
            }
        }
        progress
    }

    /// Whether the edge holds a message of the child that waits for space on the link.
    pub fn is_delivering(&self) -> bool {
        self.readers.iter().any(|reader| reader.giving.is_some())
    }

    /// Lets the child read its stdin, now or later.
    pub fn plan_read(&mut self, net: &mut Net, watch: &mut Watch) {
        let waits = self.input.as_ref().is_some_and(|(input, _)| !input.is_settled());
        if !waits || self.reads || self.child.has_ended() {
            return;
        }
        if !self.is_slow {
            return self.read(net, watch);
        }
        let longest = if net.random.chance(40) { 2000 } else { 50 };
        let after = net.random.millis(0, longest);
        self.reads = true;
        net.plan(after, Event::Read(self.place, self.birth));
    }

    /// The child reads its stdin, as planned.
    pub fn reads(&mut self, net: &mut Net, watch: &mut Watch, birth: u64) {
        if birth == self.birth {
            self.reads = false;
            self.read(net, watch);
        }
    }

    /// The child reads all that is written to its stdin.
    pub fn read(&mut self, net: &mut Net, watch: &mut Watch) {
        let (place, birth, mut lines) = (self.place, self.birth, VecDeque::new());
        if self.child.has_ended() {
            return;
        }
        let Some((_, messages)) = &mut self.input else { return };
        let context = &mut Context::from_waker(Waker::noop());
        while let Poll::Ready(received) = messages.poll_take(context, &mut lines) {
            assert_eq!(received, Received::Some, "nobody ends the queue of a running child");
            for line in lines.drain(..) {
                watch.child_reads(&line);
                for (after, line) in self.child.read(&line, &mut net.random) {
                    net.plan(after, Event::Line(place, birth, line));
                }
            }
        }
    }
}
