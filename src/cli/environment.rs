//! The environment variables that stand in for flags, and the check for mistyped ones.

use std::{collections::BTreeMap, ffi::OsString};

use super::args::{DEMO, DEVICE, Flag, GATEWAY, REGISTER};
use crate::{fault::Fault, limits, text};

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
        Self(variables.filter(|(name, _)| ours(name)).collect())
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
    pub fn check(&self, command: &str, own: &'static [Flag]) -> Result<(), Fault> {
        for (name, value) in &self.0 {
            let shown = name.to_string_lossy();
            if shown != TOKENS && !all().any(|known| variable(known) == shown) {
                let likely = likely(&shown, own).map(|known| format!("is it {known}? "));
                return Err(Fault::usage(format!(
                    "unknown environment variable {}; {}see mcpport {command} --help",
                    text::show(&shown),
                    likely.unwrap_or_default()
                )));
            }
            if value.to_str().is_none() {
                return Err(Fault::usage(format!("{shown}: its value is not UTF-8")));
            }
        }
        Ok(())
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
    let nearest = names.map(|name| (text::distance(typed, &name), name)).min_by_key(|(letters, _)| *letters);
    let room = typed.len().saturating_sub(PREFIX.len()) / 3;
    nearest.filter(|(letters, _)| *letters <= room.max(1)).map(|(_, name)| name)
}
