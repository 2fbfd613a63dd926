//! A child process with its pipes: writes lines to stdin, reads messages from stdout, logs stderr.

use std::{collections::VecDeque, io, pin::pin, sync::Arc, time::Instant};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use smol::Task;

use super::{
    LineOutcome, LineSink,
    lines::{LineParts, Noise, TooLarge},
};
use crate::{
    config::RegisterConfig,
    error::FatalError,
    limits::{self, ChildLimits},
    ndjson::{Lines, TooLong},
    net::{
        outbox::{self, Received, Receiver},
        timeout,
    },
    process::{self, Child, Exit, Stderr, Stdin, Stdout},
    runtime::{
        executor,
        shutdown::{Shutdown, ShutdownTrigger},
    },
};

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
        sink: Arc<dyn LineSink>,
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
        let reader = Some(executor::spawn(read(stdout, sink, stopped, limits.clone())));
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
