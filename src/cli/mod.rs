//! The command line: flags, their environment variables, and their conversion to configuration.
//!
//! The form is `mcpport <command> [flags]`. Each flag `--some-flag` can also be given as
//! `MCPPORT_SOME_FLAG`, so that a token need not appear in the process list. Every error is one
//! line that names the flag.

mod args;
mod command;
mod convert;
mod environment;
mod limits;
mod values;

use argh::FromArgs;

use self::{
    args::{DemoArgs, DeviceArgs, Flag, GatewayArgs, RegisterArgs, Takes},
    environment::variable,
};
pub use self::{command::Command, environment::Environment};
use crate::{error::FatalError, util};

/// Parses the command line (without the program's own name) and the environment.
///
/// # Errors
/// A usage error of one line.
pub fn parse(typed: &[String], environment: &Environment) -> Result<Command, FatalError> {
    let Some((command, rest)) = typed.split_first() else { return Ok(Command::Print(overview())) };
    let with = |name, flags| complete(name, rest, flags, environment);
    match command.as_str() {
        "gateway" | "g" => {
            let flags = with("gateway", args::GATEWAY)?;
            read::<GatewayArgs>("gateway", &flags, |args| convert::gateway(args, environment))
        }
        "register" | "r" => {
            read::<RegisterArgs>("register", &with("register", args::REGISTER)?, convert::register)
        }
        "device" => read::<DeviceArgs>("device", &with("device", args::DEVICE)?, convert::device),
        "demo" => read::<DemoArgs>("demo", &with("demo", args::DEMO)?, convert::demo),
        "--version" | "-v" | "-V" => Ok(Command::Print(format!("mcpport {}", env!("CARGO_PKG_VERSION")))),
        "--help" | "-h" | "help" => match rest.first().filter(|about| !about.starts_with('-')) {
            Some(about) if about != "help" => parse(&[about.clone(), "--help".to_owned()], environment),
            _ => Ok(Command::Print(overview())),
        },
        // The word may be a misplaced token, so the message does not repeat it.
        other if other.starts_with('-') => {
            Err(FatalError::usage("expected a command before any flag; see mcpport --help"))
        }
        _ => Err(FatalError::usage(
            "unknown command: expected gateway, register, device or demo; see mcpport --help",
        )),
    }
}

/// The last paragraph of every help text.
const SPELLINGS: &str = "A flag --some-flag VALUE can also be written --some-flag=VALUE, or set in the\n\
    environment as MCPPORT_SOME_FLAG=VALUE: 1 or 0 for a switch, one value per\n\
    line for a repeatable flag. An unknown MCPPORT_ variable is an error.";

fn overview() -> String {
    format!(
        "mcpport {}: stdio MCP servers behind NAT, reached over HTTP\n\n\
         Usage: mcpport <command> [flags]\n\n\
         Commands:\n\
         \x20 gateway, g   run the gateway that clients and edges connect to\n\
         \x20 register, r  run a stdio MCP server and connect it to a gateway\n\
         \x20 device       a stdio MCP server that reports on this host (for register --stdio)\n\
         \x20 demo         run a gateway, a server and one tool call on this machine\n\n\
         mcpport <command> --help lists the flags.\n{SPELLINGS}",
        env!("CARGO_PKG_VERSION")
    )
}

fn read<A: FromArgs>(
    command: &str,
    flags: &[String],
    convert: impl FnOnce(A) -> Result<Command, FatalError>,
) -> Result<Command, FatalError> {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    match A::from_args(&["mcpport", command], &flags) {
        Ok(args) => convert(args),
        Err(early) if early.status.is_ok() => Ok(Command::Print(help(command, &early.output))),
        // Flag names and values were checked before, so this is a message of the parser itself.
        Err(early) => {
            let why: Vec<&str> = early.output.split_whitespace().collect();
            Err(FatalError::usage(format!("{} (see mcpport {command} --help)", why.join(" "))))
        }
    }
}

/// Formats the help text. Drops the parser's first line, which lists all flags and is too wide for
/// a terminal.
fn help(command: &str, parsers: &str) -> String {
    let rest = parsers.split_once('\n').map_or("", |(_, rest)| rest).trim_end();
    let needed = if command == "register" { " --stdio COMMAND" } else { "" };
    format!("Usage: mcpport {command}{needed} [flags]\n{rest}\n\n{SPELLINGS}")
}

/// Returns the flags in the one spelling that the parser accepts, plus those set in the
/// environment.
fn complete(
    command: &str,
    typed: &[String],
    flags: &'static [Flag],
    environment: &Environment,
) -> Result<Vec<String>, FatalError> {
    let mut out = spell(command, typed, flags)?;
    if !out.iter().any(|word| word == "--help") {
        environment.check(command, flags)?;
    }
    for flag in flags {
        let long = format!("--{}", flag.name);
        let variable = variable(flag);
        if out.contains(&long) {
            continue;
        }
        let Some(value) = environment.get(&variable) else { continue };
        match flag.takes {
            Takes::Nothing => match value.to_ascii_lowercase().as_str() {
                "1" | "true" | "yes" | "on" => out.push(long),
                "0" | "false" | "no" | "off" => {}
                _ => return Err(FatalError::usage(format!("{variable} is a switch: set it to 1 or 0"))),
            },
            Takes::One => out.extend([long, value.to_owned()]),
            Takes::Many => {
                let values = value.lines().map(str::trim).filter(|value| !value.is_empty());
                out.extend(values.flat_map(|value| [long.clone(), value.to_owned()]));
            }
        }
    }
    Ok(out)
}

/// Splits `--flag=value` into two words and replaces aliases by the flag's name. Values are
/// unchanged.
///
/// Error messages do not repeat a word that is not a flag: it may be a token whose quotes are
/// missing.
fn spell(command: &str, typed: &[String], flags: &[Flag]) -> Result<Vec<String>, FatalError> {
    let mut out = Vec::new();
    let mut words = typed.iter();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (word.as_str(), None),
        };
        if matches!(word.as_str(), "--help" | "-h") {
            out.push("--help".to_owned());
            continue;
        }
        let known = flags.iter().find(|flag| {
            name.strip_prefix("--").is_some_and(|name| name == flag.name || flag.also.contains(&name))
        });
        let flag = known.ok_or_else(|| unknown(command, name, flags))?;
        out.push(format!("--{}", flag.name));
        match (value, flag.takes) {
            (Some(_), Takes::Nothing) => {
                return Err(FatalError::usage(format!("--{} is a switch and takes no value", flag.name)));
            }
            (Some(value), _) => out.push(value.to_owned()),
            (None, Takes::Nothing) => {}
            (None, _) => match words.next() {
                Some(value) => out.push(value.clone()),
                None => {
                    return Err(FatalError::usage(format!("--{} requires a value", flag.name)));
                }
            },
        }
    }
    Ok(out)
}

/// Returns the error for an unknown flag. The original accepted abbreviated flags; mcpport rejects
/// them and suggests the full name.
fn unknown(command: &str, word: &str, flags: &[Flag]) -> FatalError {
    let see = format!("see mcpport {command} --help");
    FatalError::usage(if let Some(begun) = word.strip_prefix("--") {
        let meant = flags.iter().find(|flag| !begun.is_empty() && flag.name.starts_with(begun));
        let meant = meant.map(|flag| format!("did you mean --{}? ", flag.name));
        format!("unknown flag {}; {}{see}", util::escape::show(word), meant.unwrap_or_default())
    } else if word.starts_with('-') {
        format!("unknown flag {}; is the value before it missing its quotes? {see}", util::escape::show(word))
    } else {
        format!(
            "unexpected argument: neither a flag nor a flag's value; is a value missing its quotes? {see}"
        )
    })
}

#[cfg(test)]
mod tests;
