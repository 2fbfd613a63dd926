//! A token that cannot be printed and that compares in constant time.

use std::fmt;

/// A secret text. `Debug` and `Display` print `***`; the bytes leave only through [`Secret::expose`].
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `given` is this secret. The time depends on the length of `given` alone.
    pub fn matches(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let mut difference = u8::from(own.len() != given.len());
        for (place, byte) in given.iter().enumerate() {
            // Past the end of the secret a byte is compared with its own complement: never equal, same work.
            let mine = own.get(place).copied().unwrap_or(!byte);
            difference |= mine ^ byte;
        }
        std::hint::black_box(difference) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn prints_stars() {
        let secret = Secret::new("canary");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
    }

    #[test]
    fn matches_itself_only() {
        let secret = Secret::new("token-1");
        assert!(secret.matches(b"token-1"));
        for wrong in ["", "token-", "token-2", "token-1 ", "Token-1", "token-11"] {
            assert!(!secret.matches(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(Secret::new("").matches(b""));
    }
}
