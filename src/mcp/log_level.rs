//! Log levels of `logging/setLevel` and `notifications/message`.

use crate::jsonrpc::{Message, unquote};

/// The levels in ascending severity (RFC 5424).
const LEVELS: [&str; 8] = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];

/// A log level.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Level(u8);

impl Level {
    /// Returns the level in a message's params. `None` if it is missing or unknown.
    pub fn of(message: &Message<'_>) -> Option<Self> {
        let span = message.param(&["level"]).ok()??;
        Self::named(&unquote(&message.text()[span])?)
    }

    /// Returns the level of a name.
    pub fn named(name: &str) -> Option<Self> {
        let position = LEVELS.iter().position(|level| *level == name)?;
        u8::try_from(position).ok().map(Self)
    }

    /// Returns the level's name.
    pub fn name(self) -> &'static str {
        LEVELS.get(usize::from(self.0)).copied().unwrap_or("emergency")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered() {
        let of = |name: &str| {
            let text = format!(r#"{{"jsonrpc":"2.0","method":"m","params":{{"level":"{name}"}}}}"#);
            Level::of(&Message::read(&text).unwrap())
        };
        assert!(of("debug") < of("info") && of("alert") < of("emergency"));
        assert_eq!(of("warning").map(Level::name), Some("warning"));
        assert_eq!(of("loud"), None);
    }
}
