//! The server processes of isolated sessions at a simulated edge: the real instances, each with a
//! simulated process. Does what `edge::backend::stdio` and the executor do.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use mcpport::{
    edge::{
        backend::{Backend, BackendEnd, BackendExit, BackendIo, BoxFuture, LineSink, StartBackend},
        instances::{Instance, Spawn},
        restart::Ending,
    },
    error::FatalError,
    net::outbox::{Received, Receiver},
};

use super::{Event, Net, child::Child, server::give};

/// What happens to a process.
#[derive(Debug)]
pub enum ProcessEvent {
    /// It writes a line.
    Line(String),
    /// It exits.
    Exit,
    /// It has ended after it was stopped.
    Stopped,
}

/// What the closures and futures of the edge share with the simulation.
#[derive(Default)]
struct Shared {
    spawned: Vec<Instance>,
    started: Vec<(usize, BackendIo)>,
    /// Number of processes ever started.
    count: usize,
    /// The next start fails.
    fails: bool,
    exited: HashSet<usize>,
    /// Those that are to be stopped, in this order.
    stopping: Vec<usize>,
    stopped: HashSet<usize>,
}

#[derive(Clone, Default)]
struct Link(Arc<Mutex<Shared>>);

impl Link {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }
}

/// The processes of one run of the program.
pub struct Processes {
    place: usize,
    /// No process fails.
    gentle: bool,
    shared: Link,
    tasks: Vec<BoxFuture<'static, ()>>,
    running: BTreeMap<usize, Process>,
}

struct Process {
    messages: Receiver<()>,
    sink: Arc<dyn LineSink>,
    child: Child,
    /// It never reads its stdin.
    hangs: bool,
    unread: VecDeque<String>,
    giving: Option<BoxFuture<'static, ()>>,
}

struct SimulatedBackend {
    number: usize,
    shared: Link,
}

/// Waits until `done`. The simulation polls all futures after each event.
async fn until(shared: Link, done: impl Fn(&Shared) -> bool) {
    poll_fn(|_| if done(&shared.lock()) { Poll::Ready(()) } else { Poll::Pending }).await;
}

impl Backend for SimulatedBackend {
    fn ended(&mut self) -> BoxFuture<'_, BackendEnd> {
        let number = self.number;
        Box::pin(async move {
            until(self.shared.clone(), |shared| shared.exited.contains(&number)).await;
            BackendEnd::Exited
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, BackendExit> {
        let Self { number, shared } = *self;
        shared.lock().stopping.push(number);
        Box::pin(async move {
            until(shared, |shared| shared.stopped.contains(&number)).await;
            BackendExit {
                ending: Ending::Failed,
                is_not_run: false,
                told: "crashed".into(),
                brief: "it crashed".into(),
                hint: String::new(),
            }
        })
    }
}

impl Processes {
    pub fn new(place: usize, gentle: bool) -> Self {
        Self { place, gentle, shared: Link::default(), tasks: Vec::new(), running: BTreeMap::new() }
    }

    pub fn start(&self) -> StartBackend {
        let link = self.shared.clone();
        Arc::new(move |io| {
            let mut shared = link.lock();
            if std::mem::take(&mut shared.fails) {
                return Err(FatalError::run("--stdio: cannot start"));
            }
            shared.count += 1;
            let number = shared.count;
            shared.started.push((number, io));
            Ok(Box::new(SimulatedBackend { number, shared: link.clone() }))
        })
    }

    pub fn spawn(&self) -> Spawn {
        let link = self.shared.clone();
        Arc::new(move |instance| link.lock().spawned.push(instance))
    }

    /// The program ends, and all processes with it. Another one starts.
    pub fn end(&mut self) {
        let count = self.shared.lock().count;
        (self.shared, self.tasks) = Default::default();
        self.running.clear();
        self.shared.lock().count = count;
    }

    /// Returns the number of processes ever started.
    pub fn started(&self) -> usize {
        self.shared.lock().count
    }

    /// Returns the number of processes that run or are being stopped.
    pub fn count(&self) -> usize {
        self.running.len()
    }

    /// Returns the number of processes that run and are not being stopped.
    pub fn wanted(&self) -> usize {
        self.running.len() - self.shared.lock().stopping.len()
    }

    /// Whether a message of a process waits for space on the link.
    pub fn is_delivering(&self) -> bool {
        self.running.values().any(|process| process.giving.is_some())
    }

    /// Runs everything as far as it goes. Returns whether a frame may have been queued.
    pub fn settle(&mut self, net: &mut Net) -> bool {
        let context = &mut Context::from_waker(Waker::noop());
        let mut progress = self.poll_tasks(net, context);
        for (number, process) in &mut self.running {
            progress |= process.forward(context);
            process.read(net, self.place, *number, context);
        }
        progress
    }

    fn poll_tasks(&mut self, net: &mut Net, context: &mut Context<'_>) -> bool {
        for instance in std::mem::take(&mut self.shared.lock().spawned) {
            self.tasks.push(Box::pin(instance.run()));
        }
        if self.tasks.is_empty() {
            return false;
        }
        let (tasks, stops) = (self.tasks.len(), self.shared.lock().stopping.len());
        self.shared.lock().fails = !self.gentle && net.random.chance(5);
        self.tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
        let mut shared = self.shared.lock();
        for number in &shared.stopping[stops..] {
            // Some are still being stopped when the next link opens channels with the same numbers.
            let longest = if net.random.chance(30) { 6000 } else { 300 };
            let after = net.random.millis(0, longest);
            net.plan(after, Event::Process(self.place, *number, ProcessEvent::Stopped));
        }
        for (number, BackendIo { messages, sink, .. }) in std::mem::take(&mut shared.started) {
            if !self.gentle && net.random.chance(60) {
                let after = net.random.millis(0, 10_000);
                net.plan(after, Event::Process(self.place, number, ProcessEvent::Exit));
            }
            let (unread, giving) = Default::default();
            let hangs = !self.gentle && net.random.chance(5);
            let child = Child::isolated(self.place, !net.original);
            self.running.insert(number, Process { messages, sink, child, hangs, unread, giving });
        }
        self.tasks.len() < tasks
    }

    /// Something happens to a process.
    pub fn happens(&mut self, number: usize, event: ProcessEvent) {
        let Some(process) = self.running.get_mut(&number) else { return };
        let mut shared = self.shared.lock();
        match event {
            ProcessEvent::Line(line) => process.unread.push_back(line),
            ProcessEvent::Exit => {
                shared.exited.insert(number);
            }
            ProcessEvent::Stopped => {
                shared.stopping.retain(|stopping| *stopping != number);
                shared.stopped.insert(number);
                self.running.remove(&number);
            }
        }
    }
}

impl Process {
    fn forward(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        loop {
            if let Some(giving) = &mut self.giving {
                let Poll::Ready(()) = giving.as_mut().poll(context) else { return progress };
                self.giving = None;
                progress = true;
            }
            let Some(line) = self.unread.pop_front() else { return progress };
            self.giving = Some(Box::pin(give(line, self.sink.clone())));
        }
    }

    fn read(&mut self, net: &mut Net, place: usize, number: usize, context: &mut Context<'_>) {
        let mut lines = VecDeque::new();
        while !self.hangs
            && let Poll::Ready(Received::Some) = self.messages.poll_take(context, &mut lines)
        {
            for line in lines.drain(..) {
                for (after, line) in self.child.read(&line, &mut net.random) {
                    net.plan(after, Event::Process(place, number, ProcessEvent::Line(line)));
                }
            }
        }
    }
}
