//! A configuration and a fake backend for the unit tests of the edge.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    backend::{Backend, BackendEnd, BackendExit, BackendIo, BoxFuture, LineSink, StartBackend},
    restart::Ending,
};
use crate::{
    command::CommandLine,
    config::{ClientTls, EraPin, GatewayUrl, RegisterConfig, Restart},
    error::FatalError,
    limits::{ChildLimits, Limits},
    net::outbox::{Received, Receiver},
};

/// A configuration with restarts that follow at once.
pub fn config() -> RegisterConfig {
    let at_once = Duration::from_millis(1);
    let child = ChildLimits { restart_base: at_once, restart_cap: at_once, ..ChildLimits::default() };
    RegisterConfig {
        command: CommandLine::Shell("true".into()),
        gateway: GatewayUrl { tls: false, host: "127.0.0.1".into(), port: 1, target: "/".into() },
        name: "s".into(),
        id: "id".into(),
        headers: Vec::new(),
        header_file: None,
        tls: ClientTls::default(),
        sessions: None,
        era: EraPin::default(),
        restart: Restart::default(),
        require_gateway: false,
        port: 0,
        cors: false,
        health_paths: Vec::new(),
        threads: 1,
        busy_poll: false,
        limits: Limits { child, ..Limits::default() },
    }
}

/// What one run of a fake server does.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// It cannot be started.
    FailsToStart,
    /// It ends at once with this status. 126 and 127: it cannot be run.
    Exits(i32),
    /// It has to be stopped at once, for this reason.
    Unusable(&'static str),
    /// It ends with status 3 when the test says so, see [`FakeServer::end`].
    Ends,
    /// It serves until it is stopped.
    Serves,
}

/// Servers that are started one after the other.
#[derive(Clone)]
pub struct FakeServers {
    runs: Arc<Mutex<VecDeque<Behaviour>>>,
    starts: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    started: (async_channel::Sender<FakeServer>, async_channel::Receiver<FakeServer>),
}

/// The server's end of a run.
pub struct FakeServer {
    pub sink: Arc<dyn LineSink>,
    messages: Receiver<()>,
    end: async_channel::Sender<()>,
}

impl FakeServer {
    /// Ends a server of [`Behaviour::Ends`].
    pub fn end(&self) {
        self.end.close();
    }

    /// Waits for a message, which must come alone.
    pub async fn next_message(&mut self) -> String {
        let mut messages = VecDeque::new();
        assert_eq!(self.messages.take(&mut messages).await, Received::Some);
        assert_eq!(messages.len(), 1);
        messages.remove(0).unwrap()
    }
}

impl FakeServers {
    /// Each start takes the next of `runs`.
    pub fn new(runs: impl IntoIterator<Item = Behaviour>) -> Self {
        Self {
            runs: Arc::new(Mutex::new(runs.into_iter().collect())),
            starts: Arc::default(),
            running: Arc::default(),
            started: async_channel::unbounded(),
        }
    }

    pub fn start(&self) -> StartBackend {
        let servers = self.clone();
        Arc::new(move |io| servers.launch(io))
    }

    fn launch(&self, io: BackendIo) -> Result<Box<dyn Backend>, FatalError> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        let run = self.runs.lock().unwrap().pop_front().expect("one start too many");
        let (end, ended) = async_channel::bounded(1);
        self.started.0.try_send(FakeServer { sink: io.sink, messages: io.messages, end }).unwrap();
        if let Behaviour::FailsToStart = run {
            return Err(FatalError::run("--stdio: cannot start"));
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(FakeBackend { behaviour: run, ended, running: self.running.clone() }))
    }

    /// Returns the number of starts, including those that failed.
    pub fn starts(&self) -> usize {
        self.starts.load(Ordering::Relaxed)
    }

    /// Returns the number of servers that were started and not stopped.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Waits for a start, and returns the server's end of it.
    pub async fn next(&self) -> FakeServer {
        self.started.1.recv().await.unwrap()
    }
}

struct FakeBackend {
    behaviour: Behaviour,
    /// Closed by [`FakeServer::end`].
    ended: async_channel::Receiver<()>,
    running: Arc<AtomicUsize>,
}

impl Backend for FakeBackend {
    fn ended(&mut self) -> BoxFuture<'_, BackendEnd> {
        Box::pin(async {
            match &self.behaviour {
                Behaviour::Unusable(why) => return BackendEnd::Unusable((*why).to_owned()),
                Behaviour::Exits(_) | Behaviour::FailsToStart => {}
                Behaviour::Ends => {
                    let _ = self.ended.recv().await;
                }
                Behaviour::Serves => std::future::pending().await,
            }
            BackendEnd::Exited
        })
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, BackendExit> {
        self.running.fetch_sub(1, Ordering::Relaxed);
        let status = match self.behaviour {
            Behaviour::Exits(status) => status,
            Behaviour::Ends => 3,
            _ => 0,
        };
        Box::pin(async move {
            BackendExit {
                ending: if status == 0 { Ending::Done } else { Ending::Failed },
                is_not_run: matches!(status, 126 | 127),
                told: format!("exited with status {status}"),
                brief: format!("exit status {status}"),
                hint: if status == 126 { "; x is not a program".into() } else { String::new() },
            }
        })
    }
}
