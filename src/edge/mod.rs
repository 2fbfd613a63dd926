//! The edge (`mcpport register`): runs a stdio server as a child process and connects it to the
//! gateway over one outbound link.
//!
//! - [`connect`]: opens a link to the gateway, or reports in one line why it cannot.
//! - [`link`]: a session on the link: the registration, and what the gateway's frames mean. Has no
//!   socket.
//! - [`state`]: what the tasks share, behind one lock: the proxy, and the queues on both its sides.
//! - [`proxy`]: the state machine between gateway and child: handshake, held and dropped messages.
//!   Pure, as is [`request_ids`]: the ids of the gateway at the child.
//! - [`backend`]: one run of a server; so far a child process with its pipes.
//! - [`supervisor`]: starts the shared server and restarts it when it has ended; [`restart`] decides
//!   whether and when.
//! - [`instances`]: one child per client session; [`open_requests`]: what it has not answered.
//! - [`uplink`]: the queue towards the gateway.
//! - [`redial`]: decides what follows an attempt. [`backoff`]: delays between attempts.
//! - [`health`]: the local health check. [`throttled_log`]: log lines at a limited rate.
//!
//! The child outlives a link. Network input never names a program: the edge only ever starts the
//! command of `--stdio`. The gateway can start processes only with `--sessions isolated`, and at
//! most `--max-sessions` of them. The shared child is restarted only after it has ended.
//!
//! A stop (SIGTERM, SIGINT, or SIGHUP) refuses new calls, waits up to
//! [`DRAIN_CALLS`](crate::limits::DRAIN_CALLS) until the running ones are answered and the gateway
//! has acknowledged the answers, closes the link, and then stops the child. A second signal exits
//! at once. Exit codes: [`FatalError::exit_code`].

pub mod backend;
pub mod backoff;
mod connect;
mod health;
pub mod instances;
pub mod link;
mod open_requests;
pub mod proxy;
pub mod redial;
mod request_ids;
pub mod restart;
pub mod state;
mod supervisor;
pub mod throttled_log;
pub mod uplink;

use std::{collections::VecDeque, sync::Arc, time::Instant};

use futures_lite::future;

use self::{
    backend::stdio,
    connect::Dialer,
    instances::{Instances, Spawn},
    link::{Begun, Suspended},
    redial::{Facts, Next, Outcome, Redial},
    state::EdgeState,
    supervisor::Supervisor,
    throttled_log::ThrottledLog,
};
use crate::{
    config::RegisterConfig,
    error::FatalError,
    limits,
    net::{
        random, timeout,
        ws_link::{self, WebSocket},
    },
    runtime::{
        notify,
        shutdown::Shutdown,
        signals,
        tasks::{Spawner, TaskGroup},
    },
    tunnel::close::{CloseReason, LinkEnd},
};

/// Runs the edge until `stop` is ready, the server ends and is not restarted, or the gateway cannot
/// be used.
///
/// # Errors
/// One line: the command cannot be started, the gateway refused the registration, or the server
/// ended.
pub async fn run(config: RegisterConfig, stop: impl Future<Output = ()>) -> Result<(), FatalError> {
    let group = TaskGroup::new();
    let spawner = group.spawner();
    group.run(serve(config, spawner, stop)).await
}

async fn serve(
    config: RegisterConfig,
    spawner: Spawner,
    stop: impl Future<Output = ()>,
) -> Result<(), FatalError> {
    let dialer = Dialer::new(&config)?;
    let health = health::bind(&config)?;
    let config = Arc::new(config);
    let (start, log) = (stdio::starter(&config), Arc::new(ThrottledLog::default()));
    let instances = Instances::new(&config, start.clone(), log.clone());
    let state = EdgeState::new(instances.clone(), log);
    let mut supervisor = Supervisor::start(&config, &state, start, signals::has_terminal())?;
    let (trigger, stopped) = crate::runtime::shutdown::shutdown();
    let health = health.map(|listeners| health::serve(listeners, state.clone(), &config, stopped));
    let (leaving, left) = crate::runtime::shutdown::shutdown();
    let spawn = spawn_into(spawner);
    let mut links = notify::poll_if_woken(keep_linked(&config, &dialer, &state, &spawn, &left));
    let end = future::or(
        async {
            stop.await;
            RunEnd::Stopped
        },
        future::or(async { RunEnd::Server(supervisor.run().await) }, async {
            RunEnd::Links((&mut links).await)
        }),
    )
    .await;
    let end = match end {
        RunEnd::Stopped => {
            state.stop();
            let others = future::or(
                async {
                    supervisor.run().await;
                    RunEnd::Stopped
                },
                async {
                    let _ = (&mut links).await;
                    RunEnd::Links(Ok(()))
                },
            );
            future::or(drain(&state), others).await
        }
        end => end,
    };
    // Close the link before stopping the server, so that no client waits for its answers.
    state.leave(if matches!(end, RunEnd::Stopped) { "the edge is stopping" } else { "the server exited" });
    drop(leaving);
    if !matches!(end, RunEnd::Links(_)) {
        let _ = timeout::within(limits::CLOSE, links).await;
    }
    drop((trigger, health));
    instances.close_all();
    supervisor.stop().await;
    instances.gone().await;
    match end {
        RunEnd::Stopped => Ok(()),
        RunEnd::Server(error) => Err(error),
        RunEnd::Links(result) => result,
    }
}

/// Runs each instance in a task of the program. Cancelling the task group also kills the processes.
fn spawn_into(spawner: Spawner) -> Spawn {
    Arc::new(move |instance| {
        let panicked = || log::error!("a session task panicked; other sessions are not affected");
        spawner.spawn(instance.run(), panicked);
    })
}

/// Waits at shutdown until the running calls are answered and the gateway has acknowledged the
/// answers, for at most [`limits::DRAIN_CALLS`].
async fn drain(state: &EdgeState) -> RunEnd {
    let (calls, seconds) = (state.running(), limits::DRAIN_CALLS.as_secs());
    if calls > 0 {
        log::info!("waiting up to {seconds} s for {calls} running calls");
    }
    let drained = async {
        state.answered().await;
        // If the link drops now, it is resumed as at any other time.
        if !state.is_delivered() {
            log::info!("no running calls; waiting for the gateway to acknowledge the last frames");
        }
        state.delivered().await;
    };
    if timeout::within(limits::DRAIN_CALLS, drained).await.is_err() {
        match state.running() {
            0 => log::warn!(
                "no acknowledgement from the gateway within {seconds} s; the last responses may be lost"
            ),
            calls => log::warn!("failed {calls} calls that did not complete within {seconds} s"),
        }
    }
    RunEnd::Stopped
}

/// The reason the program ends.
enum RunEnd {
    Stopped,
    /// The server ended and is not restarted.
    Server(FatalError),
    Links(Result<(), FatalError>),
}

/// Keeps a link open: reconnects with a backoff whenever it is lost. `left` is triggered when the
/// program stops.
async fn keep_linked(
    config: &Arc<RegisterConfig>,
    dialer: &Dialer,
    state: &Arc<EdgeState>,
    spawn: &Spawn,
    left: &Shutdown,
) -> Result<(), FatalError> {
    let limits = &config.limits.link;
    let mut redial = Redial::default();
    let mut suspended = None;
    loop {
        let started = Instant::now();
        // Box both futures: an idle edge then does not keep the memory that the handshake needed.
        let outcome = match left.race(Box::pin(dialer.dial())).await {
            Some(Ok(socket)) => Box::pin(run_link(socket, state, config, spawn, &mut suspended, left)).await,
            Some(Err(outcome)) => outcome,
            None => Outcome::Stopped,
        };
        let facts = Facts {
            was_registered: state.was_registered(),
            require_gateway: config.require_gateway,
            has_terminal: signals::has_terminal(),
            suspended_until: suspended.as_ref().map(Suspended::until),
        };
        let (alive, random) = (started.elapsed(), random::jitter());
        let delay = match redial.after(Instant::now(), outcome, &facts, alive, random, limits) {
            Next::Wait { delay, give_up } => {
                if let Some(late) = suspended.take_if(|_| give_up) {
                    late.give_up();
                }
                delay
            }
            Next::Stop => return Ok(()),
            Next::Fail(error) => return Err(error),
        };
        log::info!("reconnecting in {:.1} s", delay.as_secs_f64());
        if left.race(timeout::until(Instant::now().checked_add(delay))).await.is_none() {
            return Ok(());
        }
    }
}

/// Registers over a new connection and carries frames until the link ends.
///
/// `suspended` is the suspended session: the caller's from an earlier link, and afterwards this
/// one's if its link was lost and can be resumed. `left` is triggered when the program stops.
async fn run_link(
    mut socket: WebSocket,
    state: &Arc<EdgeState>,
    config: &Arc<RegisterConfig>,
    spawn: &Spawn,
    suspended: &mut Option<Suspended>,
    left: &Shutdown,
) -> Outcome {
    let limits = &config.limits.link;
    let registration = link::registration(config, suspended.as_ref());
    let answered = left.race(async {
        ws_link::send_frame(&mut socket, registration, limits).await?;
        ws_link::recv_frame(&mut socket, limits.message_bytes, limits).await
    });
    // Stopped while registering. Send a close frame: the gateway may have accepted the
    // registration.
    let stops = || Err(LinkEnd::ByUs(CloseReason::new(1001, "the edge is stopping")));
    let frame = match answered.await.unwrap_or_else(stops) {
        Ok(frame) => frame,
        Err(ended) => {
            // With a suspended session, send no close frame: the gateway may have just resumed it,
            // and the frame would end it.
            if suspended.is_none() || left.is_triggered() {
                ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            }
            return link::failed(ended, state, config);
        }
    };
    let (link, ended) = match link::begin(state, config, spawn, suspended.take(), Instant::now(), &frame) {
        Begun::Stopped => return Outcome::Stopped,
        Begun::Ended(link, why) => {
            let ended = LinkEnd::ByUs(why);
            ws_link::end(socket, VecDeque::new(), &ended, limits).await;
            (link, ended)
        }
        Begun::Running(mut link) => {
            drop(frame);
            let ended = ws_link::drive(socket, &mut link.outbound, &mut link.session, None, limits).await;
            (link, ended)
        }
    };
    let (outcome, kept) = link.end(Instant::now(), ended);
    *suspended = kept;
    outcome
}

#[cfg(test)]
mod tests;
