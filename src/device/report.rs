//! Input and output of tools: checked arguments, a report, or an error.
//!
//! Invalid arguments give a result with `isError`, not a protocol error, so that the model can
//! correct its call.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::util::escape::show;

/// The facts that a tool found, as lines for people and as data.
pub struct Report {
    /// One fact per line.
    pub lines: Vec<String>,
    /// Matches the tool's output schema.
    pub data: Value,
}

/// Why a tool failed: one line that names the argument or file.
pub struct ToolError(pub String);

/// The arguments of one call. `null` counts as absent.
pub struct Arguments<'a> {
    tool: &'static str,
    given: &'a Map<String, Value>,
}

impl<'a> Arguments<'a> {
    /// Wraps the arguments given to `tool`.
    pub fn new(tool: &'static str, given: &'a Map<String, Value>) -> Self {
        Self { tool, given }
    }

    /// Rejects every argument that is not in `known`.
    pub fn only(&self, known: &[&str]) -> Result<(), ToolError> {
        let Some(name) = self.given.keys().find(|name| !known.contains(&name.as_str())) else {
            return Ok(());
        };
        let takes = if known.is_empty() { "no arguments".to_owned() } else { known.join(", ") };
        Err(ToolError(format!("unknown argument `{}`; `{}` takes {takes}", show(name), self.tool)))
    }

    /// Returns a string argument.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, ToolError> {
        match self.given.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(ToolError(format!("argument `{name}` must be a string"))),
        }
    }

    /// Returns a string argument that must be one of `choices`.
    pub fn choice(&self, name: &str, choices: &[&'static str]) -> Result<Option<&'static str>, ToolError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match choices.iter().find(|choice| **choice == text) {
            Some(choice) => Ok(Some(choice)),
            None => Err(ToolError(format!("argument `{name}` must be one of: {}", choices.join(", ")))),
        }
    }

    /// Returns an integer argument in a range. `10.0` is an integer, as in JSON Schema.
    pub fn whole(&self, name: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, ToolError> {
        let value = match self.given.get(name) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let rounded = || {
            value
                .as_f64()
                .filter(|number| number.fract() == 0.0 && *number >= 0.0)
                .map(|number| number as u64)
        };
        match value.as_u64().or_else(rounded).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ToolError(format!(
                "argument `{name}` must be an integer from {} to {}",
                range.start(),
                range.end()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, ToolError};
    use serde_json::{Value, json};

    fn check<T>(given: Value, read: impl Fn(&Arguments<'_>) -> Result<T, ToolError>) -> Result<T, String> {
        let given = given.as_object().expect("tests give objects");
        read(&Arguments::new("t", given)).map_err(|ToolError(reason)| reason)
    }

    #[test]
    fn whole_numbers() {
        let good = [
            (json!({}), None),
            (json!({ "n": null }), None),
            (json!({ "n": 1 }), Some(1)),
            (json!({ "n": 100 }), Some(100)),
            (json!({ "n": 7.0 }), Some(7)),
        ];
        for (given, expected) in good {
            assert_eq!(check(given.clone(), |a| a.whole("n", 1..=100)), Ok(expected), "{given}");
        }
        let bad =
            [json!(0), json!(101), json!(-1), json!(1.5), json!(1e300), json!("5"), json!([5]), json!(true)];
        for value in bad {
            let refused = Err("argument `n` must be an integer from 1 to 100".to_owned());
            assert_eq!(check(json!({ "n": value }), |a| a.whole("n", 1..=100)), refused, "{value}");
        }
    }

    #[test]
    fn choices_and_unknown_names() {
        let choice = |given| check(given, |a| a.choice("by", &["memory", "cpu"]));
        assert_eq!(choice(json!({ "by": "cpu" })), Ok(Some("cpu")));
        assert_eq!(choice(json!({})), Ok(None));
        assert_eq!(
            choice(json!({ "by": "CPU" })),
            Err("argument `by` must be one of: memory, cpu".to_owned())
        );
        assert_eq!(choice(json!({ "by": 1 })), Err("argument `by` must be a string".to_owned()));

        let only = |known: &'static [&str]| check(json!({ "x\n": 1 }), |a| a.only(known));
        assert_eq!(only(&[]), Err("unknown argument `x\\n`; `t` takes no arguments".to_owned()));
        assert_eq!(only(&["a", "b"]), Err("unknown argument `x\\n`; `t` takes a, b".to_owned()));
        assert_eq!(only(&["x\n"]), Ok(()));
    }
}
