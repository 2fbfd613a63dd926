//! Secrets: tokens that cannot be printed, and their digests.
//!
//! [`seal`] encrypts short texts that clients keep for the gateway.

pub mod seal;

use std::fmt;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// A secret text. `Debug` and `Display` print `***`; only [`Secret::expose`] returns the text
/// itself.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the secret itself, for the code that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns whether `given` is this secret. Takes the same time however much of `given` is
    /// right.
    pub fn matches(&self, given: &[u8]) -> bool {
        Digest::of(self.0.as_bytes()).matches(&Digest::of(given))
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

/// Bytes of a [`Digest`].
pub const DIGEST_BYTES: usize = SHA256_OUTPUT_LEN;

/// SHA-256 of a token. It is never printed, because it allows guesses to be checked.
///
/// It does not implement `PartialEq`, whose timing would reveal how many leading bytes are equal.
#[derive(Clone, Copy)]
pub struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    /// Computes the digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut own = [0; SHA256_OUTPUT_LEN];
        for (own, byte) in own.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
            *own = *byte;
        }
        Self(own)
    }

    /// Parses a digest of 64 hexadecimal digits. Returns `None` for any other text.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut own = [0; SHA256_OUTPUT_LEN];
        if text.len() != 2 * own.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (position, byte) in own.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * position..2 * position + 2)?, 16).ok()?;
        }
        Some(Self(own))
    }

    /// Returns whether both are equal. Compares all bytes, so its timing does not depend on them.
    pub fn matches(&self, other: &Self) -> bool {
        let differences = self.0.iter().zip(&other.0).fold(0, |all, (one, two)| all | (one ^ two));
        std::hint::black_box(differences) == 0
    }

    /// Returns the bytes, as a key for a map. A comparison of them may stop at the first
    /// difference; see [`Digest::matches`].
    pub fn bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }

    /// Returns the first 128 bits as a number.
    pub fn number(&self) -> u128 {
        self.0.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}

impl From<[u8; DIGEST_BYTES]> for Digest {
    fn from(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1: SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn secrets_print_as_stars() {
        let secret = Secret::new("canary");
        assert_eq!(format!("{secret} {secret:?} {:?}", Digest::of(b"canary")), "*** *** ***");
    }

    #[test]
    fn a_secret_matches_itself_only() {
        let secret = Secret::new("token-1");
        assert!(secret.matches(b"token-1"));
        for wrong in ["", "token-", "token-2", "token-1 ", "Token-1", "token-11"] {
            assert!(!secret.matches(wrong.as_bytes()), "{wrong:?}");
        }
    }

    #[test]
    fn digests() {
        let abc = Digest::of(b"abc");
        assert!(abc.matches(&Digest::from_hex(ABC).unwrap()));
        assert!(abc.matches(&Digest::from_hex(&ABC.to_uppercase()).unwrap()));
        assert_eq!(abc.number(), 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223);
        for wrong in ["", "abd", "ab", "abc ", "Abc"] {
            assert!(!abc.matches(&Digest::of(wrong.as_bytes())), "{wrong:?}");
        }
        for wrong in ["", "ba", &ABC[1..], &format!("{ABC}0"), &ABC.replace('b', "g"), &"ü".repeat(32)] {
            assert!(Digest::from_hex(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn digests_differ_in_every_bit() {
        let right = Digest::of(b"token");
        for position in 0..SHA256_OUTPUT_LEN {
            for bit in 0..8 {
                let mut other = right;
                other.0[position] ^= 1 << bit;
                assert!(!right.matches(&other), "{position}.{bit}");
            }
        }
    }
}
