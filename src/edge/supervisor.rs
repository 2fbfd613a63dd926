//! Supervises the shared server: starts it, watches it, and restarts it as the policy says.
//!
//! `edge::restart` decides when to restart, `edge::proxy` decides what the gateway is sent, and a
//! [`Backend`] is one run of the server.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;

use super::{
    backend::{self, Backend, BackendEnd, BackendExit, BackendIo, StartBackend},
    state::{EdgeState, Run, SharedSink},
};
use crate::{
    config::{RegisterConfig, Restart},
    edge::restart::{Ending, Restarts},
    error::FatalError,
    net::{random, timeout},
};

/// Owns the running server and its restart state.
pub struct Supervisor<'a> {
    config: &'a RegisterConfig,
    state: Arc<EdgeState>,
    start: StartBackend,
    /// The program has a terminal, so a person sees how the first start ends.
    has_terminal: bool,
    restarts: Restarts,
    /// `None` while the server is down.
    server: Option<Box<dyn Backend>>,
    /// The last run.
    run: Run,
    started: Instant,
    /// When to retry the first start, if it failed.
    retry: Option<Instant>,
}

impl<'a> Supervisor<'a> {
    /// Starts the server for the first time, by `start`. Without a terminal, a failed start is
    /// retried as the policy says: a disk or network that the command needs may not be up yet.
    ///
    /// # Errors
    /// One line that names the flag, see [`StartBackend`].
    pub fn start(
        config: &'a RegisterConfig,
        state: &Arc<EdgeState>,
        start: StartBackend,
        has_terminal: bool,
    ) -> Result<Self, FatalError> {
        let mut supervisor = Self {
            config,
            state: state.clone(),
            start,
            has_terminal,
            restarts: Restarts::default(),
            server: None,
            run: Run::default(),
            started: Instant::now(),
            retry: None,
        };
        let Err(fault) = supervisor.launch() else { return Ok(supervisor) };
        let delay = if has_terminal { None } else { supervisor.delay(Ending::Failed, Duration::ZERO) };
        supervisor.retry = supervisor.down(&format!("server '{}': {fault}", config.name), delay);
        if supervisor.retry.is_some() { Ok(supervisor) } else { Err(fault) }
    }

    /// Restarts the server whenever it ends, until the policy says not to. Returns the error that
    /// ends the program.
    ///
    /// Cancel safe; call [`Supervisor::stop`] afterwards.
    pub async fn run(&mut self) -> FatalError {
        if let Some(due) = self.retry.take() {
            self.again(due).await;
        }
        loop {
            let end = self.ended().await;
            let alive = self.started.elapsed();
            let name = &self.config.name;
            let due = match end {
                BackendEnd::Exited => {
                    // End it first: that gives its exit status, and its last output may contain
                    // answers.
                    let Some(exit) = self.end().await else { continue };
                    // With a terminal, report a failed first start to the user who typed the
                    // command.
                    let again = !(self.run.is_first() && exit.is_not_run && self.has_terminal);
                    let probed = !exit.is_not_run && self.state.got_only_probe(self.run);
                    let delay = if probed && self.restarts.after_probe() {
                        log::info!("server '{name}' may not know server/discover, and is started again");
                        Some(Duration::ZERO)
                    } else if again {
                        self.delay(exit.ending, alive)
                    } else {
                        None
                    };
                    self.down(&format!("server '{name}' {}{}", exit.told, exit.hint), delay)
                        .ok_or_else(|| self.gone(&exit))
                }
                BackendEnd::Unusable(reason) => {
                    let delay = self.delay(Ending::Failed, alive);
                    let why = format!("stopped server '{name}': {reason}");
                    // Fail its open calls now; it answers nothing more, and stopping it takes time.
                    let due = self.down(&why, delay);
                    self.end().await;
                    due.ok_or_else(|| FatalError::run(why))
                }
            };
            match due {
                Ok(due) => self.again(due).await,
                Err(fault) => return fault,
            }
        }
    }

    /// Stops the server if it runs.
    pub async fn stop(mut self) {
        self.end().await;
    }

    /// Waits until the server can serve no more, or does not answer the `initialize` of a restart in
    /// time.
    async fn ended(&mut self) -> BackendEnd {
        let limit = self.config.limits.child.initialize_time;
        let (state, run) = (self.state.clone(), self.run);
        let silent = async {
            timeout::until(self.started.checked_add(limit)).await;
            if !state.is_initializing(run) {
                future::pending::<()>().await;
            }
            BackendEnd::Unusable(format!("it did not answer initialize within {} s", limit.as_secs_f64()))
        };
        match &mut self.server {
            Some(server) => future::or(server.ended(), silent).await,
            None => future::pending().await,
        }
    }

    async fn end(&mut self) -> Option<BackendExit> {
        Some(self.server.take()?.stop().await)
    }

    fn delay(&mut self, ending: Ending, alive: Duration) -> Option<Duration> {
        self.restarts.next(self.config.restart, ending, alive, random::jitter(), &self.config.limits.child)
    }

    /// Reports the failure to the gateway and the log. Returns the time of the next start.
    fn down(&self, why: &str, delay: Option<Duration>) -> Option<Instant> {
        let due = delay.and_then(|delay| Instant::now().checked_add(delay));
        self.state.ended(why, due);
        if let Some(delay) = delay {
            log::error!("{why}; restarting in {:.1} s", delay.as_secs_f64());
        }
        due
    }

    /// Returns the error that ends the program when the server exited and is not restarted.
    fn gone(&self, exit: &BackendExit) -> FatalError {
        let hint = match (self.config.restart, exit.ending) {
            (Restart::OnFailure, Ending::Done) => "; use --restart always to restart it",
            _ => &exit.hint,
        };
        FatalError::run(format!("server '{}' exited: {}{hint}", self.config.name, exit.brief))
    }

    /// Starts the server at `due`. If that fails, retries as the policy says.
    async fn again(&mut self, mut due: Instant) {
        loop {
            timeout::until(Some(due)).await;
            let Err(fault) = self.launch() else { return };
            let Some(delay) = self.delay(Ending::Failed, Duration::ZERO) else { return };
            due = self.down(&format!("server '{}': {fault}", self.config.name), Some(delay)).unwrap_or(due);
        }
    }

    fn launch(&mut self) -> Result<(), FatalError> {
        let (input, messages) = backend::queue(&self.config.limits);
        self.run = self.state.started(input.clone());
        self.started = Instant::now();
        let sink = Arc::new(SharedSink::new(self.state.clone(), self.run));
        self.server = Some((self.start)(BackendIo { input, messages, sink })?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::{
        instances::Instances,
        tests::{Behaviour, FakeServers, config},
    };

    /// Supervises servers that run as given, until the program ends or has started `starts` of
    /// them. Returns the error that ends it, and the number of starts.
    fn supervise(
        config: &RegisterConfig,
        has_terminal: bool,
        runs: &[Behaviour],
        starts: usize,
    ) -> (Option<String>, usize) {
        let servers = FakeServers::new(runs.iter().cloned());
        let state = EdgeState::new(Instances::new(config, servers.start(), Arc::default()), Arc::default());
        let mut supervisor = match Supervisor::start(config, &state, servers.start(), has_terminal) {
            Ok(supervisor) => supervisor,
            Err(fault) => return (Some(fault.to_string()), servers.starts()),
        };
        let error = smol::block_on(async {
            let error = async { Some(supervisor.run().await.to_string()) };
            let started = async {
                while servers.starts() < starts {
                    servers.next().await;
                }
                None
            };
            future::or(error, started).await
        });
        assert_eq!(state.is_served(), error.is_none());
        smol::block_on(supervisor.stop());
        assert_eq!(servers.running(), 0, "each is stopped");
        (error, servers.starts())
    }

    fn with(restart: Restart) -> RegisterConfig {
        RegisterConfig { restart, ..config() }
    }

    #[test]
    fn restarts_depend_on_policy_and_exit() {
        let unusable = Behaviour::Unusable("it closed its stdout");
        for (restart, run, error) in [
            (Restart::Never, Behaviour::Exits(0), Some("server 's' exited: exit status 0")),
            (Restart::Never, Behaviour::Exits(3), Some("server 's' exited: exit status 3")),
            (Restart::Never, unusable.clone(), Some("stopped server 's': it closed its stdout")),
            (
                Restart::OnFailure,
                Behaviour::Exits(0),
                Some("server 's' exited: exit status 0; use --restart always to restart it"),
            ),
            (Restart::OnFailure, Behaviour::Exits(3), None),
            (Restart::OnFailure, unusable.clone(), None),
            (Restart::Always, Behaviour::Exits(0), None),
            (Restart::Always, Behaviour::Exits(3), None),
            (Restart::Always, unusable, None),
        ] {
            let starts = if error.is_some() { 1 } else { 2 };
            let expected = (error.map(str::to_owned), starts);
            assert_eq!(
                supervise(&with(restart), false, &[run.clone(), Behaviour::Serves], 2),
                expected,
                "{run:?}"
            );
        }
    }

    #[test]
    fn a_first_start_that_fails_is_final_on_a_terminal_only() {
        let fault = Some("--stdio: cannot start".to_owned());
        for (restart, run) in [
            (Restart::OnFailure, Behaviour::FailsToStart),
            (Restart::Always, Behaviour::FailsToStart),
            (Restart::OnFailure, Behaviour::Exits(127)),
        ] {
            let runs = [run.clone(), run.clone(), Behaviour::Serves];
            let (error, starts) = supervise(&with(restart), true, &runs, 3);
            assert!(error.is_some() && starts == 1, "{run:?}: {error:?}");
            assert_eq!(supervise(&with(restart), false, &runs, 3), (None, 3), "{run:?}");
        }
        let runs = [Behaviour::FailsToStart, Behaviour::Serves];
        assert_eq!(supervise(&with(Restart::Never), false, &runs, 2), (fault, 1));
        // Later starts are retried with a terminal, too.
        for run in [Behaviour::FailsToStart, Behaviour::Exits(127)] {
            let runs = [Behaviour::Exits(3), run.clone(), Behaviour::Serves];
            assert_eq!(supervise(&with(Restart::OnFailure), true, &runs, 3), (None, 3), "{run:?}");
        }
    }

    #[test]
    fn a_server_that_cannot_run_is_explained() {
        let why = "server 's' exited: exit status 126; x is not a program";
        let (error, _) = supervise(&with(Restart::Never), false, &[Behaviour::Exits(126)], 2);
        assert_eq!(error.as_deref(), Some(why));
    }

    /// A restarted server gets the stored `initialize`, and a time to answer it.
    #[test]
    fn a_restarted_server_that_does_not_answer_initialize_is_stopped() {
        let mut config = with(Restart::OnFailure);
        config.limits.child.initialize_time = Duration::from_millis(20);
        let servers = FakeServers::new([Behaviour::Ends, Behaviour::Serves, Behaviour::Serves]);
        let state = EdgeState::new(Instances::new(&config, servers.start(), Arc::default()), Arc::default());
        let mut supervisor = Supervisor::start(&config, &state, servers.start(), false).unwrap();
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;
        assert!(state.on_gateway_frame(Instant::now(), initialize).is_none());
        smol::block_on(future::or(async { panic!("{}", supervisor.run().await) }, async {
            let mut first = servers.next().await;
            assert_eq!(first.next_message().await, initialize);
            first.end();
            for _ in 0..2 {
                let mut restarted = servers.next().await;
                assert!(!state.is_served());
                assert_eq!(restarted.next_message().await, initialize);
            }
        }));
        smol::block_on(supervisor.stop());
        assert_eq!(servers.running(), 0);
    }

    /// Whatever the policy says.
    #[test]
    fn a_server_that_exits_at_the_probe_is_started_again_once() {
        let config = with(Restart::Never);
        let servers = FakeServers::new([Behaviour::Ends, Behaviour::Ends]);
        let state = EdgeState::new(Instances::new(&config, servers.start(), Arc::default()), Arc::default());
        let mut supervisor = Supervisor::start(&config, &state, servers.start(), false).unwrap();
        let discover = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#;
        let fault = smol::block_on(async {
            let run = async { Some(supervisor.run().await.to_string()) };
            let servers = async {
                for _ in 0..2 {
                    let mut server = servers.next().await;
                    assert!(state.on_gateway_frame(Instant::now(), discover).is_none());
                    assert_eq!(server.next_message().await, discover);
                    server.end();
                }
                future::pending().await
            };
            future::or(run, servers).await
        });
        assert_eq!(fault.as_deref(), Some("server 's' exited: exit status 3"));
        assert_eq!(servers.starts(), 2);
    }
}
