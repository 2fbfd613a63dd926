//! The binary: arguments to a command, a command to an exit code.

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
    runtime::{executor, notify, shutdown::Shutdown, signals::StopSignals},
    util,
};

/// What a static binary would have by itself gives every large buffer back to the system at once and asks for it anew: 1.6 times the
/// processor time of a call with 64 KiB, and twice that of one with 1 MiB. This one needs no more memory at rest.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Where the log goes, once there is one.
static LOG: OnceLock<LogWriter> = OnceLock::new();

fn main() -> ExitCode {
    let typed: Vec<String> = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let result = cli::parse(&typed, &Environment::of(env::vars_os())).and_then(run);
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let line = format!("mcpport: {fault}\n");
            // Nobody may be there to read it.
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
            let (threads, mut signals) = (config.threads, signals()?);
            let bound = Bound::new(*config)?;
            let reload = bound.reloader();
            signals.on_hangup(move || reload.ask()).map_err(unheard)?;
            until_stopped(threads, signals, |stop| async move {
                bound.serve(stop.wait()).await;
                Ok(())
            })
        }
        Command::Register(config, level) => {
            log_to_stderr(level);
            hardening::hide();
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

fn unheard(error: io::Error) -> FatalError {
    FatalError::run(format!("cannot listen for signals: {error}"))
}

/// Runs a program. The first signal asks it to finish, the second drops it where it stands: with it go its children.
///
/// The program is boxed where it is made, and each in a function of its own: a stack keeps the pages that it once had, and moved about
/// on that of `main`, which had room for all of them, these futures took 130 KiB of every process.
#[inline(never)]
fn until_stopped<F: Future<Output = Result<(), FatalError>> + Send + 'static>(
    threads: usize,
    mut signals: StopSignals,
    program: impl FnOnce(Shutdown) -> F,
) -> Result<(), FatalError> {
    let (switch, stop) = mcpport::runtime::shutdown::shutdown();
    let program = Box::pin(program(stop));
    let watch = async move {
        let signal = signals.requested().await;
        log::info!("{signal}: finishing; send it again to end at once");
        drop(switch);
        let signal = signals.requested().await;
        Err(FatalError::run(format!("{signal} again: ended at once")))
    };
    let unready = |error| FatalError::run(format!("cannot wait for connections: {error}; see ulimit -n"));
    executor::run(threads, future::or(program, notify::poll_if_woken(watch))).map_err(unready)?
}

/// Our own messages at the level asked for, those of the libraries only when they warn. Lines go by a thread of their own: nobody
/// may read stderr.
fn log_to_stderr(level: log::LevelFilter) {
    let mut logger = env_logger::Builder::new();
    if let Ok(writer) = LogWriter::start(io::stderr()) {
        logger.target(env_logger::Target::Pipe(Box::new(LOG.get_or_init(|| writer).clone())));
        // The usual report of a panic would be written to stderr by the thread that panicked.
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
        // What a server at the edge writes to its stderr.
        .filter_module("child", level)
        .format(|out, record| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            writeln!(out, "{} [{}] {}", util::time::utc(now), record.level(), record.args())
        })
        .init();
}
