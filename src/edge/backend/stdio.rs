//! A child process with its pipes: writes lines to stdin, reads messages from stdout, logs stderr.

use std::{collections::VecDeque, future::pending, io, pin::pin, sync::Arc, time::Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use smol::Task;

use super::{
    Backend, BackendEnd, BackendExit, BackendIo, BoxFuture, LineOutcome, LineSink, StartBackend,
    lines::{LineParts, Noise, TooLarge},
};
use crate::{
    command::CommandLine,
    config::RegisterConfig,
    edge::restart::Ending,
    error::FatalError,
    limits::{self, ChildLimits},
    ndjson::{Lines, TooLong},
    net::{
        outbox::{self, Received, Receiver},
        timeout,
    },
    process::{self, Child, Stderr, Stdin, Stdout},
    runtime::{
        executor,
        shutdown::{Shutdown, ShutdownTrigger},
    },
};

/// Returns the start of the command of `--stdio`, each time as a new process.
pub fn starter(config: &RegisterConfig) -> StartBackend {
    let (name, command) = (config.name.clone(), config.command.clone());
    let limits = config.limits.child.clone();
    Arc::new(move |io| Ok(Box::new(StdioBackend::start(&name, &command, &limits, io)?)))
}

/// A running server process.
#[derive(Debug)]
struct StdioBackend {
    child: Child,
    /// The program of the command, as the user wrote it.
    program: String,
    limits: ChildLimits,
    input: outbox::Sender<()>,
    writer: Task<io::Result<()>>,
    /// `None` once the reader has ended.
    reader: Option<Task<Option<String>>>,
    logger: Option<Task<()>>,
    /// Dropping it stops the reader.
    stop_reading: ShutdownTrigger,
    /// It ended by itself.
    has_exited: bool,
}

impl Backend for StdioBackend {
    fn ended(&mut self) -> BoxFuture<'_, BackendEnd> {
        Box::pin(self.wait_end())
    }

    fn stop(self: Box<Self>) -> BoxFuture<'static, BackendExit> {
        Box::pin(self.end())
    }
}

impl StdioBackend {
    /// Starts the command, and the tasks that serve its pipes.
    ///
    /// # Errors
    /// One line that names `--stdio`.
    fn start(
        name: &str,
        command: &CommandLine,
        limits: &ChildLimits,
        io: BackendIo,
    ) -> Result<Self, FatalError> {
        let BackendIo { input, messages, sink } = io;
        let mut child = Child::spawn(command)?;
        log::info!("server '{name}' started, pid {}", child.pid());
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(FatalError::run("the server process has no stdin or stdout pipe"));
        };
        let (enough, stopped) = crate::runtime::shutdown::shutdown();
        let logger = |stderr| executor::spawn(log(stderr, name.to_owned(), limits.clone()));
        Ok(Self {
            program: command.program().to_owned(),
            limits: limits.clone(),
            input,
            writer: executor::spawn(write(stdin, messages, limits.clone())),
            reader: Some(executor::spawn(read(stdout, sink, stopped, limits.clone()))),
            logger: child.stderr.take().map(logger),
            child,
            stop_reading: enough,
            has_exited: false,
        })
    }

    /// Waits until the process exits, or there is a reason to stop it.
    async fn wait_end(&mut self) -> BackendEnd {
        let Self { child, limits, writer, reader, .. } = self;
        let exited = async {
            child.exited().await;
            BackendEnd::Exited
        };
        // Most servers close their pipes while they exit. Wait, so that the exit status is reported
        // instead.
        let closed = async |pipe| {
            timeout::until(Instant::now().checked_add(limits.pipe_grace)).await;
            BackendEnd::Unusable(format!("it closed its {pipe}"))
        };
        let wrote = async {
            match writer.await {
                Ok(()) => pending().await,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => BackendEnd::Unusable(format!(
                    "it did not read its input for {} s",
                    limits.write_stall.as_secs_f64()
                )),
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
                Some(reason) => BackendEnd::Unusable(reason),
            }
        };
        let end = future::or(exited, future::or(wrote, read)).await;
        self.has_exited = end == BackendEnd::Exited;
        end
    }

    /// Closes the server's stdin, then stops its process group: SIGTERM, later SIGKILL.
    async fn end(self) -> BackendExit {
        self.input.end(());
        let Self { child, program, limits, writer, reader, logger, stop_reading: enough, .. } = self;
        let exit = child.stop(&limits).await;
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
        // A server that was stopped did run.
        let is_unfit = self.has_exited && !exit.success() && process::is_unfit(&program);
        BackendExit {
            ending: if exit.success() { Ending::Done } else { Ending::Failed },
            is_not_run: exit.is_not_run(),
            told: exit.told(),
            brief: exit.to_string(),
            hint: if is_unfit { format!("; {}", process::unfit(&program)) } else { String::new() },
        }
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
async fn read(
    mut stdout: Stdout,
    sink: Arc<dyn LineSink>,
    enough: Shutdown,
    limits: ChildLimits,
) -> Option<String> {
    let mut lines = Lines::new(limits.line_bytes);
    let mut noise = Noise::new(&limits);
    let mut too_large = TooLarge::new(limits.line_bytes);
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
            let outcome = match lines.next_line() {
                Ok(Some(line)) => {
                    let mut parts = LineParts::new(line);
                    while let Some(outcome) = parts.next(&*sink) {
                        match outcome {
                            LineOutcome::Message(delivery) => delivery.finish().await,
                            LineOutcome::Noise => noise.line(Instant::now(), line),
                            LineOutcome::End(why) => return Some(why.to_owned()),
                        }
                    }
                    continue;
                }
                Ok(None) => break,
                Err(TooLong::Begins) => too_large.begins(lines.part(), &*sink),
                Err(TooLong::Ended) => too_large.ended(lines.part(), &*sink),
            };
            match outcome {
                LineOutcome::Message(delivery) => delivery.finish().await,
                // The line was logged when it began.
                LineOutcome::Noise => {}
                LineOutcome::End(why) => return Some(why.to_owned()),
            }
        }
        // Yield, so that a server that writes without pause does not starve the link and the other
        // tasks.
        future::yield_now().await;
    }
}
