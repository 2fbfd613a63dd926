//! Environment variables that replace flags, and the check for misspelled ones.

use std::{collections::BTreeMap, ffi::OsString};

use super::args::{DEMO, DEVICE, Flag, GATEWAY, REGISTER};
use crate::{error::FatalError, limits, util};

/// Prefix of every variable that replaces a flag.
const PREFIX: &str = "MCPPORT_";

/// Variable with the tokens of the original gateway.
pub const TOKENS: &str = "MCP_GATEWAY_AUTH_TOKENS";

/// The environment variables that mcpport reads or checks.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Selects these variables from all variables of the process.
    pub fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) || name == TOKENS;
        let linked = |name: &OsString, value: &OsString| {
            name.to_str().is_some_and(|name| is_service_link(name, &value.to_string_lossy()))
        };
        Self(variables.filter(|(name, value)| ours(name) && !linked(name, value)).collect())
    }

    /// Returns the value of a variable. An empty value counts as unset.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(std::ffi::OsStr::new(name))?;
        value.to_str().filter(|value| !value.is_empty())
    }

    /// Rejects variables that match no flag of any command: a misspelled `MCPPORT_AUTH_TOKEN` would
    /// leave a gateway without authentication.
    ///
    /// # Errors
    /// A usage error that names the variable and the most similar known one. Never includes a
    /// value.
    pub fn check(&self, command: &str, own: &'static [Flag]) -> Result<(), FatalError> {
        for (name, value) in &self.0 {
            let shown = name.to_string_lossy();
            if shown != TOKENS && !all().any(|known| variable(known) == shown) {
                let likely = likely(&shown, own).map(|known| format!("did you mean {known}? "));
                return Err(FatalError::usage(format!(
                    "unknown environment variable {}; {}see mcpport {command} --help",
                    util::escape::show(&shown),
                    likely.unwrap_or_default()
                )));
            }
            if value.to_str().is_none() {
                return Err(FatalError::usage(format!("{shown}: its value is not UTF-8")));
            }
        }
        Ok(())
    }
}

/// Whether a variable describes a service. Kubernetes sets such variables in every pod of a
/// namespace, and Docker sets them for links. For a service `mcpport-gw` these are
/// `MCPPORT_GW_SERVICE_HOST`, `MCPPORT_GW_PORT=tcp://10.0.0.1:8765`, `MCPPORT_GW_PORT_8765_TCP` and
/// so on.
fn is_service_link(name: &str, value: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let words: Vec<&str> = rest.split('_').collect();
    let is_number = |word: &str| word.parse::<u16>().is_ok();
    let is_protocol = |word: &str| matches!(word, "TCP" | "UDP" | "SCTP");
    match words.as_slice() {
        [.., "SERVICE", "HOST"] => true,
        [.., "PORT", number, protocol] | [.., "PORT", number, protocol, "PROTO" | "PORT" | "ADDR"]
            if is_number(number) && is_protocol(protocol) =>
        {
            true
        }
        // The port's name may follow.
        words if words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) => true,
        // For a service named `mcpport`, this is also the variable of --port. A port is never a
        // URL.
        [.., "PORT"] => ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)),
        _ => false,
    }
}

/// Returns the name of the variable that replaces a flag.
pub fn variable(flag: &Flag) -> String {
    format!("{PREFIX}{}", flag.name.to_ascii_uppercase().replace('-', "_"))
}

/// Iterates over the flags of all commands: a variable may be meant for another command on the same
/// machine.
fn all() -> impl Iterator<Item = &'static Flag> {
    [GATEWAY, REGISTER, DEVICE, DEMO].into_iter().flatten()
}

/// Returns the known variable with the smallest edit distance, if that is at most a third of the
/// name. Among equals, the command's own variables win.
fn likely(typed: &str, own: &'static [Flag]) -> Option<String> {
    let short = typed.len() <= limits::VARIABLE_NAME;
    let names = own.iter().chain(all()).filter(|_| short).map(variable);
    let nearest =
        names.map(|name| (util::name::distance(typed, &name), name)).min_by_key(|(letters, _)| *letters);
    let room = typed.len().saturating_sub(PREFIX.len()) / 3;
    nearest.filter(|(letters, _)| *letters <= room.max(1)).map(|(_, name)| name)
}
