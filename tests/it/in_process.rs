//! The programs in this process, on their own threads, with limits that no flag can set. They end
//! when dropped.

use std::{
    net::SocketAddr,
    thread::{self, JoinHandle},
};

use mcpport::{
    cli::{self, Command},
    edge,
    error::FatalError,
    gateway::Bound,
    limits::Limits,
    runtime::{executor, shutdown::ShutdownTrigger},
};

use crate::{harness, wire::Client};

/// A program on a thread.
struct Running<T> {
    trigger: Option<ShutdownTrigger>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Running<T> {
    fn start(program: impl FnOnce(mcpport::runtime::shutdown::Shutdown) -> T + Send + 'static) -> Self {
        let (trigger, stopped) = mcpport::runtime::shutdown::shutdown();
        Self { trigger: Some(trigger), thread: Some(thread::spawn(move || program(stopped))) }
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        drop(self.trigger.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A gateway.
pub struct Gateway {
    pub address: SocketAddr,
    _running: Running<()>,
}

impl Gateway {
    /// Starts one with these flags, on a port that the system chooses.
    pub fn start(flags: &[&str], change: impl FnOnce(&mut Limits)) -> Self {
        let Command::Gateway(mut config, _) = parse(&["gateway", "--port", "0"], flags) else {
            panic!("the flags are not those of a gateway")
        };
        change(&mut config.limits);
        let bound = Bound::new(*config).unwrap();
        let address = bound.addresses().into_iter().find(SocketAddr::is_ipv4).unwrap();
        let serve = |stopped: mcpport::runtime::shutdown::Shutdown| {
            executor::run(1, bound.serve(async move { stopped.wait().await })).unwrap()
        };
        Self { address, _running: Running::start(serve) }
    }

    /// Registers a fake server with it, and waits until a client sees its tools.
    #[track_caller]
    pub fn edge(&self, name: &str, server: &[&str]) -> harness::Edge {
        let edge = harness::Edge::start(&format!("ws://{}/mcp/register", self.address), name, server, &[]);
        Client::ready(self.address, &[]).tools_until(|tools| tools.iter().any(|tool| tool.starts_with(name)));
        edge
    }
}

/// An edge with its server.
pub struct Edge {
    _running: Running<Result<(), FatalError>>,
}

impl Edge {
    /// Starts one for this command line; it may fail.
    pub fn start(
        url: &str,
        name: &str,
        server: &str,
        flags: &[&str],
        change: impl FnOnce(&mut Limits),
    ) -> Self {
        let own = ["register", "--stdio", server, "--gateway-url", url, "--server-name", name];
        let Command::Register(mut config, _) = parse(&own, flags) else {
            panic!("the flags are not those of an edge")
        };
        change(&mut config.limits);
        let run = |stopped: mcpport::runtime::shutdown::Shutdown| {
            executor::run(1, edge::run(*config, async move { stopped.wait().await })).unwrap()
        };
        Self { _running: Running::start(run) }
    }
}

fn parse(own: &[&str], flags: &[&str]) -> Command {
    let typed: Vec<String> = own.iter().chain(flags).map(ToString::to_string).collect();
    cli::parse(&typed, &cli::Environment::default()).unwrap_or_else(|fault| panic!("{fault}"))
}
