//! A child process with its pipes: writes lines to stdin, reads messages from stdout, logs stderr.

use std::{collections::VecDeque, io, pin::pin, str, sync::Arc, time::Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use smol::Task;

use crate::{
    config::RegisterConfig,
    edge::{link::EdgeState, open_requests::OpenRequests, uplink::Uplink},
    error::FatalError,
    jsonrpc::{
        self, Kind, Message,
        tolerant::{self, MessagePart},
    },
    limits::{self, ChildLimits},
    ndjson::{Lines, TooLong},
    net::{
        outbox::{self, Received, Receiver},
        timeout,
    },
    process::{self, Child, Exit, LineBudget, Stderr, Stdin, Stdout},
    runtime::{
        executor,
        shutdown::{Shutdown, ShutdownTrigger},
    },
    util,
};

/// Where a server's output lines go.
#[derive(Clone, Debug)]
pub enum Outlet {
    /// From the shared process, with the generation of that process.
    Shared(Arc<EdgeState>, u64),
    /// From the process of one client session.
    Channel(Channel),
}

/// A channel of the link, served by the process of one client session.
#[derive(Clone, Debug)]
pub struct Channel {
    /// The channel's queue towards the gateway.
    pub uplink: Uplink,
    /// The requests that the process has not answered.
    pub calls: OpenRequests,
    /// The stdin queue of the process.
    pub input: outbox::Sender<()>,
}

impl Channel {
    /// Sends a message of the process to the gateway. If the link is gone, the message is dropped:
    /// the session ended with the link.
    async fn send(&self, text: String) {
        match self.uplink.frame(text) {
            Ok(frame) => {
                let _ = self.uplink.queue().send_wait(frame).await;
            }
            // Best effort: dropped if the server does not read its input.
            Err(refusal) => refusal.into_iter().for_each(|refusal| {
                let _ = self.input.send(refusal);
            }),
        }
    }
}

/// The outcome of one output line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LineOutcome {
    /// It was a message and is forwarded.
    Message,
    /// It was not a message, but a banner or debug output. It is logged and not forwarded.
    Noise,
    /// The server has to be stopped, for this reason.
    End(&'static str),
}

impl Outlet {
    /// Handles one line of the server's output. If it is not a valid message, tries to recover
    /// messages from its parts.
    async fn line(&self, line: &[u8]) -> LineOutcome {
        if let Ok(line) = str::from_utf8(line) {
            match self.message(line).await {
                LineOutcome::Noise => {}
                heard => return heard,
            }
        }
        let mut last = LineOutcome::Noise;
        for part in tolerant::parts(line) {
            let heard = match part {
                MessagePart::Message(text) => self.message(&text).await,
                MessagePart::Unusable(answer) => {
                    let words = format!("invalid response from the server: {}", answer.why);
                    self.unusable(answer.id.as_deref(), &words).await
                }
                MessagePart::Noise => LineOutcome::Noise,
            };
            match heard {
                LineOutcome::End(_) => return heard,
                LineOutcome::Message => last = heard,
                LineOutcome::Noise => {}
            }
        }
        last
    }

    /// Fails the request with this id because the server's response to it cannot be used. Without
    /// an id, fails the only open request, if there is exactly one.
    async fn unusable(&self, id: Option<&str>, words: &str) -> LineOutcome {
        match self {
            Self::Shared(state, generation) => state.unusable(*generation, id, words).await,
            Self::Channel(channel) => {
                let calls = &channel.calls;
                let known = id.map_or_else(|| calls.remove_only(), |id| calls.remove(id));
                let Some(id) = known else { return LineOutcome::Noise };
                channel.send(jsonrpc::error(&id, jsonrpc::INTERNAL_ERROR, words)).await;
                LineOutcome::Message
            }
        }
    }

    async fn message(&self, line: &str) -> LineOutcome {
        match self {
            Self::Shared(state, generation) => state.on_child_line(*generation, line).await,
            Self::Channel(channel) => match Message::read(line) {
                Ok(message) => {
                    channel.send(message.splice(&[])).await;
                    if let (Kind::Response, Some(id)) = (message.kind(), message.id()) {
                        channel.calls.remove(id);
                    }
                    LineOutcome::Message
                }
                Err(_) => LineOutcome::Noise,
            },
        }
    }
}

/// A running server process.
#[derive(Debug)]
pub struct StdioBackend {
    child: Child,
    input: outbox::Sender<()>,
    writer: Task<io::Result<()>>,
    /// `None` once the reader has ended.
    reader: Option<Task<Option<String>>>,
    logger: Option<Task<()>>,
    /// Dropping it stops the reader.
    stop_reading: ShutdownTrigger,
}

impl StdioBackend {
    /// Creates the stdin queue of a server. It exists before the process, so that messages can wait
    /// for the start.
    pub fn queue(config: &RegisterConfig) -> (outbox::Sender<()>, Receiver<()>) {
        outbox::bounded(config.limits.child.queue_messages, config.limits.link.queue_bytes)
    }

    /// Starts the command, and the tasks that serve its pipes.
    ///
    /// # Errors
    /// One line that names `--stdio`.
    pub fn start(
        config: &RegisterConfig,
        outlet: Outlet,
        input: outbox::Sender<()>,
        lines: Receiver<()>,
    ) -> Result<Self, FatalError> {
        let limits = &config.limits.child;
        let mut child = Child::spawn(&config.command)?;
        log::info!("server '{}' started, pid {}", config.name, child.pid());
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(FatalError::run("the server process has no stdin or stdout pipe"));
        };
        let (enough, stopped) = crate::runtime::shutdown::shutdown();
        let writer = executor::spawn(write(stdin, lines, limits.clone()));
        let reader = Some(executor::spawn(read(stdout, outlet, stopped, limits.clone())));
        let logger = child
            .stderr
            .take()
            .map(|stderr| executor::spawn(log(stderr, config.name.clone(), limits.clone())));
        Ok(Self { child, input, writer, reader, logger, stop_reading: enough })
    }

    /// Waits until the server can serve no more. Returns `None` if its process exited, otherwise
    /// the reason to stop it.
    pub async fn ended(&mut self, limits: &ChildLimits) -> Option<String> {
        let Self { child, writer, reader, .. } = self;
        let exited = async {
            child.exited().await;
            None
        };
        // Most servers close their pipes while they exit. Wait, so that the exit status is reported
        // instead.
        let closed = |pipe| async move {
            timeout::until(Instant::now().checked_add(limits.pipe_grace)).await;
            Some(format!("it closed its {pipe}"))
        };
        let wrote = async {
            match writer.await {
                Ok(()) => std::future::pending().await,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Some(format!("it did not read its input for {} s", limits.write_stall.as_secs_f64()))
                }
                Err(_) => closed("stdin").await,
            }
        };
        let read = async {
            let end = match reader.as_mut() {
                Some(task) => task.await,
                None => None,
            };
            *reader = None;
            match end {
                None => closed("stdout").await,
                reason => reason,
            }
        };
        future::or(exited, future::or(wrote, read)).await
    }

    /// Closes the server's stdin, then stops its process group: SIGTERM, later SIGKILL.
    pub async fn stop(self, limits: &ChildLimits) -> Exit {
        self.input.end(());
        let Self { child, writer, reader, logger, stop_reading: enough, .. } = self;
        let exit = child.stop(limits).await;
        log::info!("server process exited: {exit}");
        // The last output is still in the pipes.
        let mut reader = reader;
        let drained = future::zip(
            async {
                if let Some(task) = reader.as_mut() {
                    task.await;
                    reader = None;
                }
            },
            async {
                if let Some(logger) = logger {
                    logger.await;
                }
            },
        );
        let _ = timeout::within(limits.drain_time, drained).await;
        drop((writer, enough));
        // The reader may hold a line that waits for space in the queue of the link. Let it finish.
        if let Some(reader) = reader {
            reader.detach();
        }
        exit
    }
}

async fn log(stderr: Stderr, name: String, limits: ChildLimits) {
    process::log_stderr(stderr, &name, &limits).await;
}

/// Writes the queued lines to stdin, in batches. Returns when the queue ends; dropping `stdin` then
/// closes the pipe.
async fn write(mut stdin: Stdin, mut lines: Receiver<()>, limits: ChildLimits) -> io::Result<()> {
    let mut batch = VecDeque::new();
    let mut bytes = Vec::new();
    while let Received::Some = lines.take(&mut batch).await {
        for line in batch.drain(..) {
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let written = timeout::within(limits.write_stall, stdin.write(rest)).await;
            let Ok(written) = written else { return Err(io::ErrorKind::TimedOut.into()) };
            rest = rest.get(written?..).unwrap_or_default();
        }
        bytes.clear();
        bytes.shrink_to(limits::LINE_KEPT);
    }
    Ok(())
}

/// Reads lines until end of file (returns `None`), or until there is a reason to stop the server.
async fn read(mut stdout: Stdout, outlet: Outlet, enough: Shutdown, limits: ChildLimits) -> Option<String> {
    let mut lines = Lines::new(limits.line_bytes);
    let mut noise = Noise::new(&limits);
    let mut too_long = TooLarge { max: limits.line_bytes, open: false };
    let mut stopped = pin!(async {
        enough.wait().await;
        Ok(0)
    });
    loop {
        match future::or(stdout.read(lines.space()), stopped.as_mut()).await {
            Ok(count) if count > 0 => lines.filled(count),
            _ => return None,
        }
        loop {
            match lines.next_line() {
                Ok(Some(line)) => match outlet.line(line).await {
                    LineOutcome::Message => {}
                    LineOutcome::Noise => noise.line(&String::from_utf8_lossy(line)),
                    LineOutcome::End(why) => return Some(why.to_owned()),
                },
                Ok(None) => break,
                Err(TooLong::Begins) => too_long.begins(lines.part(), &outlet).await,
                Err(TooLong::Ended) => too_long.ended(lines.part(), &outlet).await,
            }
        }
        // Yield, so that a server that writes without pause does not starve the link and the other
        // tasks.
        future::yield_now().await;
    }
}

/// A line that is skipped because it exceeds `--max-message-bytes`.
struct TooLarge {
    max: usize,
    /// The line is a response whose id has not been found yet.
    open: bool,
}

impl TooLarge {
    /// Handles the start of the line: fails the request if the id of the response is in it.
    async fn begins(&mut self, start: &[u8], outlet: &Outlet) {
        log::warn!("skipped a line of the server: longer than {} bytes (--max-message-bytes)", self.max);
        let answer = tolerant::unusable(start, "");
        self.open = answer.as_ref().is_some_and(|answer| answer.id.is_none());
        if let Some(id) = answer.and_then(|answer| answer.id) {
            outlet.unusable(Some(&id), &self.words()).await;
        }
    }

    /// Handles the end of the line: looks for the id there if the start did not contain it.
    async fn ended(&mut self, end: &[u8], outlet: &Outlet) {
        if std::mem::take(&mut self.open) {
            outlet.unusable(tolerant::id_at_end(end).as_deref(), &self.words()).await;
        }
    }

    fn words(&self) -> String {
        format!(
            "the server's response is larger than {} bytes (see --max-message-bytes at register)",
            self.max
        )
    }
}

/// Counts the stdout lines that are not messages, and logs them at the rate allowed for stderr.
struct Noise {
    budget: LineBudget,
    count: u64,
}

impl Noise {
    fn new(limits: &ChildLimits) -> Self {
        Self { budget: LineBudget::new(limits.stderr_lines, limits::LOG_EVERY), count: 0 }
    }

    fn line(&mut self, line: &str) {
        self.count += 1;
        if self.budget.spend(Instant::now(), Self::dropped) {
            log::warn!(
                "the server wrote a line to stdout that is not an MCP message: {}",
                util::escape::show(line)
            );
        }
    }

    fn dropped(count: u64) {
        if count > 0 {
            log::warn!("{count} more stdout lines that are not MCP messages were not logged");
        }
    }
}

impl Drop for Noise {
    fn drop(&mut self) {
        Self::dropped(self.budget.dropped());
        if self.count > 0 {
            log::info!("{} stdout lines of the server were not MCP messages", self.count);
        }
    }
}
