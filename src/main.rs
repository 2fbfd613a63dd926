//! The binary: parses arguments into a command and turns its result into an exit code.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    env,
    io::{self, Write},
    process::ExitCode,
    sync::OnceLock,
    time::SystemTime,
};

use futures_lite::future;
use mcpport::{
    cli::{self, Command, Environment},
    demo, device, edge,
    error::FatalError,
    gateway::Bound,
    limits,
    net::logger::LogWriter,
    process::{self, hardening},
    runtime::{executor, notify, reactor, shutdown::Shutdown, signals::StopSignals},
    util,
};

/// musl's own allocator gives every large buffer back to the system at once and requests it again:
/// it takes 1.6 times the processor time for a call with 64 KiB, and twice the time for one with 1
/// MiB. This allocator needs no more memory at rest.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// The log writer, once the log has started.
static LOG: OnceLock<LogWriter> = OnceLock::new();

fn main() -> ExitCode {
    let typed: Vec<String> = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let result = cli::parse(&typed, &Environment::of(env::vars_os())).and_then(run);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let line = format!("mcpport: {fault}\n");
            // Errors are ignored: stderr may be closed.
            let _ = match LOG.get() {
                Some(log) => log.clone().write_all(line.as_bytes()),
                None => io::stderr().write_all(line.as_bytes()),
            };
            ExitCode::from(fault.exit_code())
        }
    };
    if let Some(log) = LOG.get() {
        log.flush_within(limits::LOG_FLUSH);
    }
    code
}

fn run(command: Command) -> Result<(), FatalError> {
    match command {
        Command::Print(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            Ok(())
        }
        Command::Device(options) => device::run(options),
        Command::Gateway(config, level) => {
            log_to_stderr(level);
            hardening::hide();
            reactor::set_busy_poll(config.busy_poll).map_err(unready)?;
            let (threads, mut signals) = (config.threads, signals()?);
            let bound = Bound::new(*config)?;
            let reload = bound.reloader();
            signals.on_hangup(move || reload.request()).map_err(unheard)?;
            until_stopped(threads, signals, |stop| async move {
                bound.serve(stop.wait()).await;
                Ok(())
            })
        }
        Command::Register(config, level) => {
            log_to_stderr(level);
            hardening::hide();
            reactor::set_busy_poll(config.busy_poll).map_err(unready)?;
            let threads = config.threads;
            let result = until_stopped(threads, signals()?, |stop| async move {
                let adopted = process::adopt();
                let orphans = async {
                    adopted.await;
                    Ok(())
                };
                future::or(edge::run(*config, stop.wait()), notify::poll_if_woken(orphans)).await
            });
            process::end_all();
            result
        }
        Command::Demo(options, level) => {
            log_to_stderr(level);
            until_stopped(1, signals()?, |stop| async move { demo::run(options, stop.wait()).await })
        }
    }
}

fn signals() -> Result<StopSignals, FatalError> {
    StopSignals::new().map_err(unheard)
}

fn unready(error: io::Error) -> FatalError {
    FatalError::run(format!("cannot wait for connections: {error}; see ulimit -n"))
}

fn unheard(error: io::Error) -> FatalError {
    FatalError::run(format!("cannot listen for signals: {error}"))
}

/// Runs a program. The first signal asks it to finish; the second drops it at once, together with
/// its children.
///
/// The future is boxed where it is made, in a function that is not inlined: a stack keeps the pages
/// that it once used, and when these futures moved through the stack of `main`, which had room for
/// all of them, they cost every process 130 KiB.
#[inline(never)]
fn until_stopped<F: Future<Output = Result<(), FatalError>> + Send + 'static>(
    threads: usize,
    mut signals: StopSignals,
    program: impl FnOnce(Shutdown) -> F,
) -> Result<(), FatalError> {
    let (trigger, stop) = mcpport::runtime::shutdown::shutdown();
    let program = Box::pin(program(stop));
    let watch = async move {
        let signal = signals.requested().await;
        log::info!("{signal}: stopping; send it again to exit at once");
        drop(trigger);
        let signal = signals.requested().await;
        Err(FatalError::run(format!("{signal} again: exited at once")))
    };
    executor::run(threads, future::or(program, notify::poll_if_woken(watch))).map_err(unready)?
}

/// Starts the log: our messages at `level`, those of libraries only from warnings on. A thread of
/// its own writes the lines, because stderr may block when nobody reads it.
fn log_to_stderr(level: log::LevelFilter) {
    let mut logger = env_logger::Builder::new();
    if let Ok(writer) = LogWriter::start(io::stderr()) {
        logger.target(env_logger::Target::Pipe(Box::new(LOG.get_or_init(|| writer).clone())));
        // The default hook would write to stderr on the thread that panicked.
        std::panic::set_hook(Box::new(|panic| {
            let trace = Backtrace::capture();
            log::error!("{}", panic.to_string().replace('\n', " "));
            if trace.status() == BacktraceStatus::Captured {
                log::error!("{trace}");
            }
        }));
    }
    logger
        .filter_level(level.min(log::LevelFilter::Warn))
        .filter_module("mcpport", level)
        // The stderr lines of a server at the edge.
        .filter_module("child", level)
        .format(|out, record| {
            #[expect(clippy::disallowed_methods, reason = "the time of a log line")]
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            writeln!(out, "{} [{}] {}", util::time::utc(now), record.level(), record.args())
        })
        .init();
}
