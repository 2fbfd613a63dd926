//! The environment variables that stand in for flags, and the check for mistyped ones.

use std::{collections::BTreeMap, ffi::OsString};

use super::args::{DEMO, DEVICE, Flag, GATEWAY, REGISTER};
use crate::{error::FatalError, limits, util};

/// Begins the name of each variable that stands in for a flag.
const PREFIX: &str = "MCPPORT_";

/// The tokens of the original's gateway.
pub const TOKENS: &str = "MCP_GATEWAY_AUTH_TOKENS";

/// The variables that may concern us.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Picks ours out of all variables of the process.
    pub fn of(variables: impl Iterator<Item = (OsString, OsString)>) -> Self {
        let ours = |name: &OsString| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()) || name == TOKENS;
        let linked = |name: &OsString, value: &OsString| {
            name.to_str().is_some_and(|name| is_service_link(name, &value.to_string_lossy()))
        };
        Self(variables.filter(|(name, value)| ours(name) && !linked(name, value)).collect())
    }

    /// The value of a variable; an empty one is as good as none.
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(std::ffi::OsStr::new(name))?;
        value.to_str().filter(|value| !value.is_empty())
    }

    /// Refuses variables that stand in for no flag of any command: a mistyped `MCPPORT_AUTH_TOKEN` would leave a gateway open.
    ///
    /// # Errors
    /// A usage fault that names the variable, and the likely one. Values are never repeated.
    pub fn check(&self, command: &str, own: &'static [Flag]) -> Result<(), FatalError> {
        for (name, value) in &self.0 {
            let shown = name.to_string_lossy();
            if shown != TOKENS && !all().any(|known| variable(known) == shown) {
                let likely = likely(&shown, own).map(|known| format!("is it {known}? "));
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

/// Whether a variable describes a service. Kubernetes sets such variables in every pod of the namespace, and Docker for a link: for a
/// service `mcpport-gw` `MCPPORT_GW_SERVICE_HOST`, `MCPPORT_GW_PORT=tcp://10.0.0.1:8765`, `MCPPORT_GW_PORT_8765_TCP` and so on.
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
        // The name of a port may follow.
        words if words.windows(2).any(|pair| pair == ["SERVICE", "PORT"]) => true,
        // For a service of the name `mcpport` this would be that of --port. No port is written as a URL.
        [.., "PORT"] => ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)),
        _ => false,
    }
}

/// The variable that stands in for a flag.
pub fn variable(flag: &Flag) -> String {
    format!("{PREFIX}{}", flag.name.to_ascii_uppercase().replace('-', "_"))
}

/// The flags of all commands: a variable may be there for another one on the same box.
fn all() -> impl Iterator<Item = &'static Flag> {
    [GATEWAY, REGISTER, DEVICE, DEMO].into_iter().flatten()
}

/// The variable with the fewest letters to change, if those are few; of several one of the command's own.
fn likely(typed: &str, own: &'static [Flag]) -> Option<String> {
    let short = typed.len() <= limits::VARIABLE_NAME;
    let names = own.iter().chain(all()).filter(|_| short).map(variable);
    let nearest =
        names.map(|name| (util::name::distance(typed, &name), name)).min_by_key(|(letters, _)| *letters);
    let room = typed.len().saturating_sub(PREFIX.len()) / 3;
    nearest.filter(|(letters, _)| *letters <= room.max(1)).map(|(_, name)| name)
}
