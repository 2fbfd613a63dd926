//! Supervises the shared server process: starts it, watches it, and restarts it as the policy says.
//!
//! `edge::restart` decides when to restart, `edge::proxy` decides what the gateway is sent, and
//! `StdioBackend` is one run of the process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;

use super::{
    backend::stdio::StdioBackend,
    link::{EdgeState, SharedSink},
};
use crate::{
    config::{RegisterConfig, Restart},
    edge::restart::{Ending, Restarts},
    error::FatalError,
    net::{random, timeout},
    process::{self, Exit},
    runtime::signals,
};

/// Owns the server process and its restart state.
#[derive(Debug)]
pub struct Supervisor<'a> {
    config: &'a RegisterConfig,
    state: Arc<EdgeState>,
    restarts: Restarts,
    /// `None` while the server is down.
    server: Option<StdioBackend>,
    /// Number of the last start.
    generation: u64,
    started: Instant,
    /// When to retry the first start, if it failed.
    retry: Option<Instant>,
}

impl<'a> Supervisor<'a> {
    /// Starts the server for the first time. Without a terminal, a failed start is retried as the
    /// policy says: a disk or network that the command needs may not be up yet.
    ///
    /// # Errors
    /// One line that names `--stdio`.
    pub fn start(config: &'a RegisterConfig, state: &Arc<EdgeState>) -> Result<Self, FatalError> {
        let mut supervisor = Self {
            config,
            state: state.clone(),
            restarts: Restarts::default(),
            server: None,
            generation: 0,
            started: Instant::now(),
            retry: None,
        };
        let Err(fault) = supervisor.launch() else { return Ok(supervisor) };
        let has_terminal = signals::has_terminal();
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
            let reason = self.ended().await;
            let alive = self.started.elapsed();
            let name = &self.config.name;
            let due = match &reason {
                None => {
                    // Reap the process first: that gives its exit status, and its last output may
                    // contain answers.
                    let Some(exit) = self.end().await else { continue };
                    let ending = if exit.success() { Ending::Done } else { Ending::Failed };
                    // With a terminal, report a failed first start to the user who typed the
                    // command.
                    let again = !(self.generation == 1 && exit.is_not_run() && signals::has_terminal());
                    let delay = if again { self.delay(ending, alive) } else { None };
                    let unfit = self.unfit(exit);
                    self.down(&format!("server '{name}' {}{unfit}", exit.told()), delay)
                        .ok_or_else(|| self.gone(exit, unfit))
                }
                Some(reason) => {
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

    /// Waits until the server can serve no more. Returns `None` if its process exited, otherwise
    /// the reason to stop it.
    async fn ended(&mut self) -> Option<String> {
        let limits = &self.config.limits.child;
        let (state, generation) = (self.state.clone(), self.generation);
        let silent = async {
            timeout::until(self.started.checked_add(limits.initialize_time)).await;
            if !state.is_initializing(generation) {
                future::pending::<()>().await;
            }
            Some(format!("it did not answer initialize within {} s", limits.initialize_time.as_secs_f64()))
        };
        match &mut self.server {
            Some(server) => future::or(server.ended(limits), silent).await,
            None => future::pending().await,
        }
    }

    async fn end(&mut self) -> Option<Exit> {
        Some(self.server.take()?.stop(&self.config.limits.child).await)
    }

    fn delay(&mut self, ending: Ending, alive: Duration) -> Option<Duration> {
        self.restarts.next(self.config.restart, ending, alive, random::jitter(), &self.config.limits.child)
    }

    /// Reports the failure to the gateway and the log. Returns the time of the next start.
    fn down(&self, why: &str, delay: Option<Duration>) -> Option<Instant> {
        let due = delay.and_then(|delay| Instant::now().checked_add(delay));
        self.state.child_down(why, due);
        if let Some(delay) = delay {
            log::error!("{why}; restarting in {:.1} s", delay.as_secs_f64());
        }
        due
    }

    /// Returns the error that ends the program when the server exited and is not restarted.
    fn gone(&self, exit: Exit, unfit: String) -> FatalError {
        let hint = match self.config.restart {
            Restart::OnFailure if exit.success() => "; use --restart always to restart it".to_owned(),
            _ => unfit,
        };
        FatalError::run(format!("server '{}' exited: {exit}{hint}", self.config.name))
    }

    /// Returns a suffix for an error message if the file of the program shows that it cannot be
    /// executed here, otherwise an empty string.
    fn unfit(&self, exit: Exit) -> String {
        let program = self.config.command.program();
        if exit.success() || !process::is_unfit(program) {
            return String::new();
        }
        format!("; {}", process::unfit(program))
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
        let (input, lines) = StdioBackend::queue(self.config);
        self.generation = self.state.child_up(input.clone());
        self.started = Instant::now();
        let sink = Arc::new(SharedSink::new(self.state.clone(), self.generation));
        self.server = Some(StdioBackend::start(self.config, sink, input, lines)?);
        Ok(())
    }
}
