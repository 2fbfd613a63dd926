//! The server through all its lives: started, watched, and started again as the policy says.
//!
//! When is decided by `edge::restart`, what the gateway hears of it by `edge::proxy`; `server` is one life.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;

use super::{
    backend::stdio::{Outlet, StdioBackend},
    link::EdgeState,
};
use crate::{
    config::{RegisterConfig, Restart},
    edge::restart::{Ending, Restarts},
    error::FatalError,
    net::{random, timeout},
    process::{self, Exit},
    runtime::signals,
};

/// A server and what becomes of it.
#[derive(Debug)]
pub struct Supervisor<'a> {
    config: &'a RegisterConfig,
    state: Arc<EdgeState>,
    restarts: Restarts,
    /// `None`: it is down.
    server: Option<StdioBackend>,
    /// Number of the last start.
    generation: u64,
    born: Instant,
    /// When the first start is tried again, if that failed.
    retry: Option<Instant>,
}

impl<'a> Supervisor<'a> {
    /// Starts the server for the first time. Where nobody watches, a start that fails is tried again as the policy says: what
    /// the command needs (a disk, a network) may not be there yet.
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
            born: Instant::now(),
            retry: None,
        };
        let Err(fault) = supervisor.launch() else { return Ok(supervisor) };
        let watched = signals::has_terminal();
        let delay = if watched { None } else { supervisor.delay(Ending::Failed, Duration::ZERO) };
        supervisor.retry = supervisor.down(&format!("server '{}': {fault}", config.name), delay);
        if supervisor.retry.is_some() { Ok(supervisor) } else { Err(fault) }
    }

    /// Starts it again whenever it ends, until that was the last time. Gives the reason for the end of the program. Dropping the
    /// future is safe at any time; [`Supervisor::stop`] is still due then.
    pub async fn run(&mut self) -> FatalError {
        if let Some(due) = self.retry.take() {
            self.again(due).await;
        }
        loop {
            let reason = self.ended().await;
            let alive = self.born.elapsed();
            let name = &self.config.name;
            let due = match &reason {
                None => {
                    // How it ended is known when it is reaped, and what it said last may be answers.
                    let Some(exit) = self.end().await else { continue };
                    let ending = if exit.success() { Ending::Done } else { Ending::Failed };
                    // A first start is for the person who typed the command.
                    let again = !(self.generation == 1 && exit.is_not_run() && signals::has_terminal());
                    let delay = if again { self.delay(ending, alive) } else { None };
                    self.down(&format!("server '{name}' {}{}", exit.told(), self.unfit(exit)), delay)
                        .ok_or_else(|| self.gone(exit))
                }
                Some(reason) => {
                    let delay = self.delay(Ending::Failed, alive);
                    let why = format!("server '{name}' was ended because {reason}");
                    // It answers nothing more, and that must not wait until it is gone.
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

    /// Ends what runs.
    pub async fn stop(mut self) {
        self.end().await;
    }

    /// Waits until the server serves no more. `None`: it ended by itself; otherwise the reason to end it.
    async fn ended(&mut self) -> Option<String> {
        let limits = &self.config.limits.child;
        let (state, generation) = (self.state.clone(), self.generation);
        let silent = async {
            timeout::until(self.born.checked_add(limits.greet_time)).await;
            if !state.is_initializing(generation) {
                future::pending::<()>().await;
            }
            Some(format!("it did not answer initialize within {} s", limits.greet_time.as_secs_f64()))
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

    /// Tells the gateway and the log. Gives the time of the next start.
    fn down(&self, why: &str, delay: Option<Duration>) -> Option<Instant> {
        let due = delay.and_then(|delay| Instant::now().checked_add(delay));
        self.state.child_down(why, due);
        if let Some(delay) = delay {
            log::error!("{why}; it is started again in {:.1} s", delay.as_secs_f64());
        }
        due
    }

    /// The end of the program, when the server ended by itself and is not started again.
    fn gone(&self, exit: Exit) -> FatalError {
        let hint = match self.config.restart {
            Restart::OnFailure if exit.success() => "; --restart always would start it again".to_owned(),
            _ => self.unfit(exit),
        };
        FatalError::run(format!("server '{}' ended by itself: {exit}{hint}", self.config.name))
    }

    /// As the end of a sentence: that the program cannot have run at all, where its file says so.
    fn unfit(&self, exit: Exit) -> String {
        let program = self.config.command.program();
        if exit.success() || !process::is_unfit(program) {
            return String::new();
        }
        format!("; {}", process::unfit(program))
    }

    /// Starts the server at its time; and later, when that fails: it was there before.
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
        self.born = Instant::now();
        let outlet = Outlet::Shared(self.state.clone(), self.generation);
        self.server = Some(StdioBackend::start(self.config, outlet, input, lines)?);
        Ok(())
    }
}
