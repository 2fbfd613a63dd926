//! The table of tools: their listing entries, and the conversion of reports to results.

use serde_json::{Map, Value, json};

use super::machine::Machine;
use super::report::{Arguments, Report, ToolError};
use super::{disks, logs, network, processes, system};

/// The tools, in listing order.
#[derive(Clone, Copy)]
pub enum Tool {
    /// See [`system`].
    System,
    /// See [`disks`].
    Disks,
    /// See [`network`].
    Network,
    /// See [`processes`].
    Processes,
    /// See [`logs`].
    LogTail,
}

impl Tool {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::System, Self::Disks, Self::Network, Self::Processes, Self::LogTail];

    /// Returns the tool with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.name() == name)
    }

    /// Returns the tool's entry in `tools/list`.
    pub fn entry(self, machine: &Machine) -> Value {
        let (title, description, output) = match self {
            Self::System => ("System", system::DESCRIPTION, system::schema()),
            Self::Disks => ("Disks", disks::DESCRIPTION, disks::schema()),
            Self::Network => ("Network", network::DESCRIPTION, network::schema()),
            Self::Processes => ("Processes", processes::DESCRIPTION, processes::schema()),
            Self::LogTail => ("End of a log file", logs::DESCRIPTION, logs::schema()),
        };
        let input = match self {
            Self::System | Self::Disks | Self::Network => {
                json!({ "type": "object", "properties": {}, "additionalProperties": false })
            }
            Self::Processes => processes::arguments(machine.limits()),
            Self::LogTail => logs::arguments(machine),
        };
        json!({
            "name": self.name(), "title": title, "description": description,
            "inputSchema": input, "outputSchema": output,
            "annotations": {
                "title": title, "readOnlyHint": true, "destructiveHint": false, "idempotentHint": true,
                "openWorldHint": false,
            },
        })
    }

    /// Returns the result of `tools/call`.
    pub fn call(self, machine: &Machine, arguments: &Map<String, Value>) -> Value {
        match self.report(machine, &Arguments::new(self.name(), arguments)) {
            Ok(report) => json!({
                "content": [{ "type": "text", "text": report.lines.join("\n") }],
                "structuredContent": report.data,
                "isError": false,
            }),
            Err(ToolError(reason)) => json!({
                "content": [{ "type": "text", "text": reason }],
                "isError": true,
            }),
        }
    }

    fn report(self, machine: &Machine, arguments: &Arguments<'_>) -> Result<Report, ToolError> {
        match self {
            Self::Processes => processes::report(machine, arguments),
            Self::LogTail => logs::report(machine, arguments),
            Self::System | Self::Disks | Self::Network => {
                arguments.only(&[])?;
                Ok(match self {
                    Self::Disks => disks::report(machine),
                    Self::Network => network::report(machine),
                    _ => system::report(machine),
                })
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Processes => "processes",
            Self::LogTail => "log_tail",
        }
    }
}
