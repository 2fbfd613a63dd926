//! The binary: arguments to a command, a command to an exit code.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
    time::SystemTime,
};

use futures_lite::future;
use mcpport::{
    cli::{self, Command},
    demo, device,
    fault::Fault,
    gateway::Bound,
    net::{
        bell,
        exec::{self, Thrown},
        signals::Stop,
    },
    register, text,
};

fn main() -> ExitCode {
    let typed: Vec<String> = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let result = cli::parse(&typed, &|name| env::var(name).ok()).and_then(run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            // Nobody may be there to read it.
            let _ = writeln!(std::io::stderr(), "mcpport: {fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), Fault> {
    match command {
        Command::Print(text) => {
            let _ = writeln!(std::io::stdout(), "{text}");
            Ok(())
        }
        Command::Device(options) => device::run(options),
        Command::Gateway(config, level) => {
            log_to_stderr(level);
            let (threads, mut signals) = (config.threads, signals()?);
            let bound = Bound::new(*config)?;
            let reload = bound.reloader();
            signals.on_hangup(move || reload.ask()).map_err(unheard)?;
            run_to_end(
                threads,
                until_stopped(signals, |stop| async move {
                    bound.serve(stop.wait()).await;
                    Ok(())
                }),
            )
        }
        Command::Register(config, level) => {
            log_to_stderr(level);
            let (threads, signals) = (config.threads, signals()?);
            run_to_end(
                threads,
                until_stopped(signals, |stop| async move { register::run(*config, stop.wait()).await }),
            )
        }
        Command::Demo(options, level) => {
            log_to_stderr(level);
            run_to_end(
                1,
                until_stopped(signals()?, |stop| async move { demo::run(options, stop.wait()).await }),
            )
        }
    }
}

fn run_to_end(
    threads: usize,
    program: impl Future<Output = Result<(), Fault>> + Send + 'static,
) -> Result<(), Fault> {
    let unready = |error| Fault::run(format!("cannot wait for connections: {error}; see ulimit -n"));
    exec::run(threads, program).map_err(unready)?
}

fn signals() -> Result<Stop, Fault> {
    Stop::new().map_err(unheard)
}

fn unheard(error: io::Error) -> Fault {
    Fault::run(format!("cannot listen for signals: {error}"))
}

/// Runs a program. The first signal asks it to finish, the second drops it where it stands: with it go its children.
async fn until_stopped<F: Future<Output = Result<(), Fault>>>(
    mut signals: Stop,
    program: impl FnOnce(Thrown) -> F,
) -> Result<(), Fault> {
    let (switch, stop) = exec::switch();
    let watch = async {
        let signal = signals.requested().await;
        log::info!("{signal}: finishing; send it again to end at once");
        drop(switch);
        let signal = signals.requested().await;
        Err(Fault::run(format!("{signal} again: ended at once")))
    };
    future::or(program(stop), bell::alone(watch)).await
}

/// Our own messages at the level asked for, those of the libraries only when they warn.
fn log_to_stderr(level: log::LevelFilter) {
    env_logger::Builder::new()
        .filter_level(level.min(log::LevelFilter::Warn))
        .filter_module("mcpport", level)
        // What a server at the edge writes to its stderr.
        .filter_module("child", level)
        .format(|out, record| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            writeln!(out, "{} [{}] {}", text::utc(now), record.level(), record.args())
        })
        .init();
}
