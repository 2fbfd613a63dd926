//! The integration tests: one binary with a module for each subject. The system chooses the ports,
//! and every wait has a limit.

#![allow(
    clippy::disallowed_methods,
    clippy::exit,
    clippy::expect_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "lints for the program; a test may stop"
)]

mod access;
mod bridged;
mod calls;
mod canaries;
mod certs;
mod changes;
mod child;
/// `mcpport device`, driven line by line on simulated hosts made of files.
mod device;
mod envelope;
/// The edge with servers of MCP 2026-07-28.
mod eras;
mod error_messages;
mod flags_gateway;
mod flags_register;
/// The end of a link, frame by frame.
mod frames;
mod front;
mod fronts;
mod harness;
mod hostile;
mod http;
/// The programs in this process, with limits that the test chooses.
mod in_process;
mod isolation;
mod link;
mod link_cuts;
mod links;
mod listings;
mod many_peers;
/// The fake server as a server of MCP 2026-07-28.
mod modern_fake;
mod net;
mod odd_servers;
mod probes;
mod process_cleanup;
mod reconnect;
/// A connection that fails on command.
mod relay;
mod reload;
mod resume;
mod roles;
mod secure;
mod servers;
/// A client of the Streamable HTTP transport.
mod session;
mod simulation;
mod sizes;
mod soak;
mod stalled_links;
mod stateless_calls;
/// Clients without a session at servers with a process for each principal.
mod stateless_isolated;
mod stateless_listens;
mod stderr;
mod streamable;
mod supervision;
mod tasks;
mod tenants;
mod terminal;
mod tidy;
/// HTTP towards the real programs.
mod wire;
mod worst_case;

use std::{
    env,
    future::Future,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use mcpport::{net::timeout::within, runtime::reactor};
use smol::{Timer, process::Command};

/// Longer than anything here takes on a slow and busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a future to its end, or fails the test after [`TIMEOUT`].
#[track_caller]
fn run<T>(work: impl Future<Output = T>) -> T {
    reactor::block_on(within(TIMEOUT, work)).unwrap().expect("the test timed out")
}

/// Waits for a condition that the other side brings about; [`run`] limits the time.
async fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        Timer::after(Duration::from_millis(5)).await;
    }
}

/// Runs an ignored test in its own process, because it measures or changes the whole process.
#[track_caller]
fn alone(test: &str, variables: &[(&str, &str)]) {
    let output = run(Command::new(env::current_exe().unwrap())
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output())
    .unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(output.status.success() && said[0].contains("1 passed"), "{test}: {}\n{}", said[0], said[1]);
}

/// Creates a new directory for one test.
fn directory(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&path).unwrap();
    path
}
