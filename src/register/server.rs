//! The child with its pipes: lines in, lines out, people's talk into the log.

use std::{collections::VecDeque, io, sync::Arc};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use smol::Task;

use super::life::State;
use crate::{
    config::RegisterConfig,
    fault::Fault,
    jsonrpc::Message,
    limits::{self, ChildLimits},
    ndjson::Lines,
    net::{
        child::{self, Child, Exit, Stderr, Stdin, Stdout},
        deadline, exec,
        link::Farewell,
        queue::{self, Receiver, Taken},
    },
    text,
    tunnel::channel,
};

/// Where the lines of a server go.
#[derive(Clone, Debug)]
pub enum Outlet {
    /// The process that all clients share.
    Shared(Arc<State>),
    /// The process of one client session, on this channel of the link.
    Channel(u32, queue::Sender<Farewell>),
}

impl Outlet {
    async fn line(&self, line: &str) {
        match self {
            Self::Shared(state) => state.said(line).await,
            Self::Channel(number, link) => match Message::read(line) {
                // When the link is gone, so is the session.
                Ok(message) => {
                    let _ = link.send_wait(channel::message(*number, &message.splice(&[]))).await;
                }
                Err(_) => noise(line),
            },
        }
    }
}

/// What is no message stays here: banners, and what people print to find a fault.
pub fn noise(line: &str) {
    log::warn!("the server wrote to stdout what is no message: {}", text::show(line));
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    input: queue::Sender<()>,
    writer: Task<io::Result<()>>,
    /// `None`: all was read.
    reader: Option<Task<Read>>,
    logger: Option<Task<()>>,
}

impl Server {
    /// What a server reads from; there before it runs.
    pub fn queue(config: &RegisterConfig) -> (queue::Sender<()>, Receiver<()>) {
        queue::bounded(config.limits.child.queue_messages, config.limits.link.queue_bytes)
    }

    /// Starts the command and the tasks at its pipes.
    ///
    /// # Errors
    /// One line that names `--stdio`.
    pub fn start(
        config: &RegisterConfig,
        outlet: Outlet,
        input: queue::Sender<()>,
        lines: Receiver<()>,
    ) -> Result<Self, Fault> {
        let limits = &config.limits.child;
        let mut child = Child::spawn(&config.command)?;
        log::info!("server '{}' runs as process {}", config.name, child.pid());
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::run("the server has no pipes"));
        };
        let writer = exec::spawn(write(stdin, lines, limits.clone()));
        let reader = Some(exec::spawn(read(stdout, outlet, limits.line_bytes)));
        let logger =
            child.stderr.take().map(|stderr| exec::spawn(log(stderr, config.name.clone(), limits.clone())));
        Ok(Self { child, input, writer, reader, logger })
    }

    /// Waits until the server can serve no more. `None`: it ended by itself; otherwise the reason to end it.
    pub async fn ended(&mut self) -> Option<&'static str> {
        let Self { child, writer, reader, .. } = self;
        let exited = async {
            child.exited().await;
            None
        };
        let wrote = async {
            match writer.await {
                Ok(()) => std::future::pending().await,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Some("it did not read its input"),
                // It closed its stdin, which most do when they end.
                Err(_) => std::future::pending().await,
            }
        };
        let read = async {
            let end = match reader.as_mut() {
                Some(task) => task.await,
                None => Read::Closed,
            };
            *reader = None;
            match end {
                Read::Closed => std::future::pending().await,
                Read::TooLong => Some("it wrote a line that is too long"),
            }
        };
        future::or(exited, future::or(wrote, read)).await
    }

    /// Closes its stdin, and ends whatever is left of it.
    pub async fn stop(self, limits: &ChildLimits) -> Exit {
        self.input.end(());
        let Self { child, writer, reader, logger, .. } = self;
        let exit = child.stop(limits).await;
        log::info!("the server ended: {exit}");
        // What it said last is still in the pipes.
        let last_words = future::zip(
            async {
                if let Some(reader) = reader {
                    reader.await;
                }
            },
            async {
                if let Some(logger) = logger {
                    logger.await;
                }
            },
        );
        let _ = deadline::within(limits::CLOSE, last_words).await;
        drop(writer);
        exit
    }
}

async fn log(stderr: Stderr, name: String, limits: ChildLimits) {
    child::log_stderr(stderr, &name, &limits).await;
}

/// Why there is nothing more to read.
#[derive(Debug)]
enum Read {
    /// The child closed its stdout.
    Closed,
    /// It wrote a line that is too long.
    TooLong,
}

/// Writes what is queued, several lines in one write. Ends when the queue ends, which closes the child's stdin.
async fn write(mut stdin: Stdin, mut lines: Receiver<()>, limits: ChildLimits) -> io::Result<()> {
    let mut batch = VecDeque::new();
    let mut bytes = Vec::new();
    while let Taken::Some = lines.take(&mut batch).await {
        for line in batch.drain(..) {
            bytes.extend_from_slice(line.as_bytes());
            bytes.push(b'\n');
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let written = deadline::within(limits.write_stall, stdin.write(rest)).await;
            let Ok(written) = written else {
                log::error!("the server has not read its input for {} s", limits.write_stall.as_secs());
                return Err(io::ErrorKind::TimedOut.into());
            };
            rest = rest.get(written?..).unwrap_or_default();
        }
        bytes.clear();
        bytes.shrink_to(limits::LINE_KEPT);
    }
    Ok(())
}

/// Reads lines until there is nothing more to read.
async fn read(mut stdout: Stdout, outlet: Outlet, longest: usize) -> Read {
    let mut lines = Lines::new(longest);
    loop {
        match stdout.read(lines.space()).await {
            Ok(count) if count > 0 => lines.filled(count),
            _ => return Read::Closed,
        }
        loop {
            match lines.next_line() {
                Ok(Some(line)) => match std::str::from_utf8(line) {
                    Ok(line) => outlet.line(line).await,
                    Err(_) => {
                        let shown = String::from_utf8_lossy(line);
                        log::warn!("the server wrote a line that is not UTF-8: {}", text::show(&shown));
                    }
                },
                Ok(None) => break,
                Err(_) => {
                    log::error!("the server wrote a line of more than {longest} bytes");
                    return Read::TooLong;
                }
            }
        }
        // A server that talks without end must not keep the link from being written.
        future::yield_now().await;
    }
}
