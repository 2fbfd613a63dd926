//! Stdio servers as child processes that leave no process behind.
//!
//! Each child leads a session and a process group of its own, so that a shell and all processes
//! that it started can be ended together, and none of them can prompt on a terminal (see
//! `session`). [`Child`] owns the group and its pipes, which the register program takes out.
//! `ndjson` splits stdout into lines.
//!
//! # Why no unrelated process is ever killed
//!
//! A pid is free for reuse once its process is reaped and no group has that number. A signal sent
//! to a group whose leader is reaped may therefore reach a group that the system created since. To
//! prevent this, waiting only observes the leader's end (`WNOWAIT`). The group is killed while its
//! leader is a zombie, which keeps the number ours, and then the leader is reaped in the same step,
//! without an await. After that no signal is sent. This is also why the process is not a
//! `smol::process::Child`: that type reaps as soon as the status is queried.
//!
//! A process that leaves the group on purpose (`setsid`, a daemon, a shell with `set -m`) is not
//! reached by these signals; see `adopted` for how it is handled.

mod adopted;
mod format;
pub mod hardening;
mod session;
mod stderr;

use std::{
    env,
    ffi::OsStr,
    fmt,
    future::pending,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::Path,
    process::{ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread,
};

use async_io::Async;
use async_signal::{Signal, Signals};
use futures_lite::{AsyncRead, AsyncReadExt, StreamExt, future};
use rustix::{
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal as Kill, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
        waitid,
    },
};

pub use self::{
    adopted::{adopt, end_all},
    format::is_unfit,
    stderr::log_stderr,
};
use crate::{
    command::CommandLine,
    error::FatalError,
    limits::{self, ChildLimits},
    net::timeout::within,
    runtime::{async_fd::AsyncFd, reactor, signals},
    util,
};

/// The child's stdin pipe.
pub type Stdin = AsyncFd<ChildStdin>;
/// The child's stdout pipe.
pub type Stdout = AsyncFd<ChildStdout>;
/// The child's stderr pipe; for [`log_stderr`].
pub type Stderr = AsyncFd<ChildStderr>;

/// A running child and its process group. Dropping it kills the group.
#[derive(Debug)]
pub struct Child {
    /// Taken by the writer. Dropping it tells the child to end.
    pub stdin: Option<Stdin>,
    /// Taken by the reader, which must read on until [`Child::stop`] is done: a child that blocks
    /// on a full pipe does not end.
    pub stdout: Option<Stdout>,
    /// Taken by the logger, for the same reason.
    pub stderr: Option<Stderr>,
    leader: Leader,
}

impl Child {
    /// Starts a command. It inherits our environment without the variables meant for us alone
    /// (`MCPPORT_*`, tokens).
    ///
    /// # Errors
    /// One line that names `--stdio`: no such program, not executable, or the system's reason.
    pub fn spawn(command: &CommandLine) -> Result<Self, FatalError> {
        Self::start(command, true).map_err(|error| not_started(command, &error))
    }

    /// Starts a command. With `pidfd` false it works as on a system without process descriptors
    /// (Linux before 5.3).
    fn start(command: &CommandLine, pidfd: bool) -> io::Result<Self> {
        if signals::is_ignored(Signal::Child) {
            // Some parents start us with SIGCHLD ignored. The system would then reap our children,
            // and their pids could be reused at once. A handler ends that, and stays when this
            // value is dropped.
            drop(Signals::new([Signal::Child])?);
        }
        let (mut process, started) = adopted::spawn(&mut prepare(command))?;
        let (stdin, stdout, stderr) = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let group = Pid::from_child(&process);
        // From here on an early return drops `leader`, which kills the group.
        let mut leader = Leader { process: Some(process), started: Some(started), group, watch: None };
        leader.watch = Some(ExitWatch::new(group, pidfd)?);
        Ok(Self {
            stdin: stdin.map(|pipe| AsyncFd::new(pipe, reactor::IoInterest::Write)).transpose()?,
            stdout: stdout.map(|pipe| AsyncFd::new(pipe, reactor::IoInterest::Read)).transpose()?,
            stderr: stderr.map(|pipe| AsyncFd::new(pipe, reactor::IoInterest::Read)).transpose()?,
            leader,
        })
    }

    /// Returns the process id, which is also the number of the group.
    pub fn pid(&self) -> u32 {
        self.leader.group.as_raw_pid().unsigned_abs()
    }

    /// Waits until the child (the leader of the group) has ended by itself. Call [`Child::stop`]
    /// afterwards: other processes of the group may still run. The future is cancel-safe.
    pub async fn exited(&mut self) {
        self.leader.exited().await;
    }

    /// Ends the group: closes stdin (if not taken), sends SIGTERM after `term_after` and SIGKILL
    /// after `kill_after`. If the leader ends by itself, the rest of the group gets SIGKILL. Pipes
    /// that were not taken are read and discarded meanwhile.
    ///
    /// Takes at most `kill_after` and twice [`limits::CLOSE`].
    pub async fn stop(mut self, limits: &ChildLimits) -> Exit {
        drop(self.stdin.take());
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let pipes = async {
            future::zip(discard(stdout), discard(stderr)).await;
            pending().await
        };
        future::or(self.leader.ladder(limits), pipes).await;
        let exit = Exit(self.leader.end());
        adopted::end_helpers().await;
        exit
    }
}

/// Builds the command with its session, pipes and environment.
fn prepare(command: &CommandLine) -> Command {
    let mut prepared = match command {
        CommandLine::Direct(words) => {
            let mut prepared = Command::new(command.program());
            prepared.args(words.iter().skip(1));
            prepared
        }
        CommandLine::Shell(text) => {
            let mut prepared = Command::new(command.program());
            prepared.arg("-c").arg(text);
            prepared
        }
    };
    for (name, _) in env::vars_os().filter(|(name, _)| is_ours(name)) {
        prepared.env_remove(name);
    }
    prepared.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    session::own_session(&mut prepared);
    prepared
}

/// Returns whether a variable is meant for us alone. Some hold tokens, so the child gets none with
/// this prefix.
fn is_ours(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"MCPPORT_") || name == "MCP_GATEWAY_AUTH_TOKENS"
}

/// Explains to the user why a command did not start.
fn not_started(command: &CommandLine, error: &io::Error) -> FatalError {
    let program = command.program();
    let shown = util::escape::show(program);
    FatalError::run(match error.kind() {
        io::ErrorKind::NotFound if !program.contains('/') => {
            format!("--stdio: command not found: {shown} (it is not in PATH)")
        }
        io::ErrorKind::NotFound if Path::new(program).exists() => {
            format!("--stdio: {shown} cannot run: its interpreter or loader does not exist")
        }
        io::ErrorKind::NotFound => format!("--stdio: command not found: {shown} (no such file)"),
        io::ErrorKind::PermissionDenied => format!("--stdio: {shown} is not executable"),
        _ if error.raw_os_error() == Some(Errno::NOEXEC.raw_os_error()) => {
            format!("--stdio: {}", unfit(program))
        }
        _ => format!("--stdio: cannot start {shown}: {error}"),
    })
}

/// Describes the problem with a program for which [`is_unfit`] is true.
pub fn unfit(program: &str) -> String {
    format!(
        "{} is neither a program for this machine nor a script with a #! line",
        util::escape::show(program)
    )
}

/// Reads a pipe to its end. Yields, so that a flood does not block the executor.
async fn discard(pipe: Option<impl AsyncRead + Unpin>) {
    let Some(mut pipe) = pipe else { return };
    let mut scratch = vec![0; limits::LINE_READ];
    while let Ok(1..) = pipe.read(&mut scratch).await {
        future::yield_now().await;
    }
}

/// The first process of the group. It is reaped exactly once, as the last step.
#[derive(Debug)]
struct Leader {
    /// `None`: reaped, and the pid is no longer ours.
    process: Option<std::process::Child>,
    /// Held until the process is reaped.
    started: Option<adopted::Started>,
    group: Pid,
    watch: Option<ExitWatch>,
}

impl Leader {
    /// Waits for the end of the process and leaves it a zombie.
    async fn exited(&mut self) {
        while !self.has_exited() {
            match &mut self.watch {
                Some(watch) => watch.event().await,
                None => pending().await,
            }
        }
    }

    /// Returns whether the process has ended. Does not reap it.
    fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.group), options) {
            Ok(status) => status.is_some(),
            Err(error) => error != Errno::INTR,
        }
    }

    /// Waits for the process to end, then sends SIGTERM, then SIGKILL.
    async fn ladder(&mut self, limits: &ChildLimits) {
        if within(limits.term_after, self.exited()).await.is_ok() {
            return;
        }
        self.signal(Kill::TERM);
        let grace = limits.kill_after.saturating_sub(limits.term_after);
        if within(grace, self.exited()).await.is_ok() {
            return;
        }
        self.signal(Kill::KILL);
        // A process that hangs in the kernel (a dead network disk) is left to `drop`.
        let _ = within(limits::CLOSE, self.exited()).await;
    }

    /// Signals the whole group, as long as the pid is ours.
    fn signal(&self, signal: Kill) {
        if self.process.is_some() && kill_process_group(self.group, signal).is_err() {
            // The group is empty when the leader itself has left it.
            let _ = kill_process(self.group, signal);
        }
    }

    /// Kills the rest of the group and reaps the leader. Returns `None` if the leader is not dead
    /// yet.
    fn end(&mut self) -> Option<ExitStatus> {
        self.signal(Kill::KILL);
        let status = self.process.as_mut()?.try_wait();
        if matches!(status, Ok(None)) {
            return None;
        }
        (self.process, self.started) = (None, None);
        status.ok().flatten()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end();
        // Killed but not yet dead: the process must be reaped, and `drop` must not block.
        if let Some(mut process) = self.process.take() {
            let started = self.started.take();
            let reaper = thread::Builder::new().name("reap".into()).spawn(move || {
                let _started = started;
                process.wait()
            });
            if let Err(error) = reaper {
                log::warn!("cannot reap a killed child, it remains a zombie: {error}");
            }
        }
    }
}

/// Reports that a child may have ended.
#[derive(Debug)]
enum ExitWatch {
    /// A process descriptor, which becomes readable when the process ends.
    Pidfd(Async<OwnedFd>),
    /// SIGCHLD, sent for any child.
    Signal(Signals),
}

impl ExitWatch {
    /// Watches a child that is not yet reaped. Check the child once more afterwards: an end before
    /// this call gives no event.
    fn new(process: Pid, pidfd: bool) -> io::Result<Self> {
        match pidfd_open(process, PidfdFlags::empty()) {
            Ok(descriptor) if pidfd => Ok(Self::Pidfd(Async::new(descriptor)?)),
            _ => Ok(Self::Signal(Signals::new([Signal::Child])?)),
        }
    }

    /// Waits for an event.
    async fn event(&mut self) {
        let alive = match self {
            Self::Pidfd(descriptor) => descriptor.readable().await.is_ok(),
            Self::Signal(signals) => matches!(signals.next().await, Some(Ok(_))),
        };
        if !alive {
            // No more events can arrive. Polling now and then is better than spinning or waiting
            // for ever.
            smol::Timer::after(limits::LOG_EVERY).await;
        }
    }
}

/// The exit status of a child; `None` if it is unknown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exit(Option<ExitStatus>);

impl Exit {
    /// Returns whether the child ended by itself with status 0.
    pub fn success(self) -> bool {
        self.0.is_some_and(|status| status.success())
    }
}

impl Exit {
    /// Returns whether the shell reported that the command could not be run.
    pub fn is_not_run(self) -> bool {
        matches!(self.0.and_then(|status| status.code()), Some(126 | 127))
    }

    /// Returns the end of a log sentence that begins with the name of the child.
    pub fn told(self) -> String {
        match self.0.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => format!("exited with status {code}"),
            Some((None, Some(_))) => format!("was killed by {self}"),
            _ => "was killed, exit status unknown".to_owned(),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = self.0 else { return f.write_str("killed, exit status unknown") };
        match (status.code(), status.signal()) {
            // The statuses that a shell returns when the last command could not be run.
            (Some(127), _) => f.write_str("exit status 127 (command not found)"),
            (Some(126), _) => f.write_str("exit status 126 (not executable)"),
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(number)) => match signal_name(number) {
                Some(name) => write!(f, "signal {number} ({name})"),
                None => write!(f, "signal {number}"),
            },
            (None, None) => write!(f, "{status}"),
        }
    }
}

/// Returns the name of a signal that ends processes in practice, by its number on Linux.
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        4 => "ILL",
        6 => "ABRT",
        8 => "FPE",
        9 => "KILL",
        11 => "SEGV",
        13 => "PIPE",
        14 => "ALRM",
        15 => "TERM",
        31 => "SYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

    use super::{Child, Exit, is_ours};
    use crate::{command::CommandLine, limits::ChildLimits, net::timeout::within, runtime::reactor};

    #[test]
    fn exits_are_described() {
        for (raw, expected) in [
            (0, "exit status 0"),
            (3 << 8, "exit status 3"),
            (127 << 8, "exit status 127 (command not found)"),
            (9, "signal 9 (KILL)"),
            (11 | 0x80, "signal 11 (SEGV)"),
            (40, "signal 40"),
        ] {
            assert_eq!(Exit(Some(ExitStatus::from_raw(raw))).to_string(), expected);
        }
        for (raw, told) in [(3 << 8, "exited with status 3"), (9, "was killed by signal 9 (KILL)")] {
            assert_eq!(Exit(Some(ExitStatus::from_raw(raw))).told(), told);
        }
        assert_eq!(Exit(None).to_string(), "killed, exit status unknown");
    }

    #[test]
    fn variables_that_stay_here() {
        for (name, ours) in [
            ("MCPPORT_AUTH_TOKEN", true),
            ("MCPPORT_HEADER", true),
            ("MCP_GATEWAY_AUTH_TOKENS", true),
            ("MCP_GATEWAY", false),
            ("PATH", false),
            ("mcpport_x", false),
        ] {
            assert_eq!(is_ours(OsStr::new(name)), ours, "{name}");
        }
    }

    #[test]
    fn without_process_descriptors() {
        reactor::block_on(async {
            for _ in 0..5 {
                let command = CommandLine::Shell("read line; exit 3".into());
                let mut child = Child::start(&command, false).unwrap();
                child.stdin = None;
                within(Duration::from_secs(20), child.exited()).await.unwrap();
                assert_eq!(child.stop(&ChildLimits::default()).await.to_string(), "exit status 3");
            }
        })
        .unwrap();
    }
}
