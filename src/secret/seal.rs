//! Authenticated encryption of short texts that a client keeps and returns: it can neither read nor
//! alter them.
//!
//! `session::request_state` seals with it what a later request must return.

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes by which a sealed text is longer than the text: the nonce, and the tag of 16 bytes.
pub const SEAL_BYTES: usize = NONCE_LEN + 16;

/// A key that seals texts with ChaCha20-Poly1305 (RFC 8439). Made from random bytes in each run of
/// the program, so a text is opened only by the run that sealed it.
pub struct SealKey {
    /// `None` only if the library refused a key of the right length, which it never does. Then
    /// nothing is opened.
    key: Option<LessSafeKey>,
    /// The number of texts sealed so far. Each nonce is one of these numbers: unique, because no
    /// other run has this key.
    sealed: AtomicU64,
}

impl SealKey {
    /// Makes a key from random bytes.
    pub fn new(random: [u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &random).ok().map(LessSafeKey::new);
        Self { key, sealed: AtomicU64::new(0) }
    }

    /// Seals a text. `context` is authenticated but not contained in the result, which is nonce,
    /// encrypted text and tag. Returns nothing, which cannot be opened, if the text is too long for
    /// the cipher (256 GiB).
    pub fn seal(&self, context: &[u8], text: &[u8]) -> Vec<u8> {
        let number = self.sealed.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; NONCE_LEN];
        nonce[..size_of::<u64>()].copy_from_slice(&number.to_be_bytes());
        let mut sealed = Vec::with_capacity(text.len() + SEAL_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(text);
        let tag = self.key.as_ref().and_then(|key| {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let text = sealed.get_mut(NONCE_LEN..)?;
            key.seal_in_place_separate_tag(nonce, Aad::from(context), text).ok()
        });
        let Some(tag) = tag else { return Vec::new() };
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Opens a text in place. `None` if it was not sealed with this key and this context, or was
    /// altered.
    pub fn open<'t>(&self, context: &[u8], sealed: &'t mut [u8]) -> Option<&'t [u8]> {
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.key.as_ref()?.open_in_place(nonce, Aad::from(context), text).ok()?;
        Some(text)
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"a text that a client keeps";

    fn open(key: &SealKey, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        key.open(context, &mut sealed.to_vec()).map(<[u8]>::to_vec)
    }

    #[test]
    fn a_sealed_text_is_opened_by_its_key_and_context_only() {
        let key = SealKey::new([7; KEY_BYTES]);
        for text in [&b""[..], TEXT, &[0; 100_000]] {
            let sealed = key.seal(b"context", text);
            assert_eq!(sealed.len(), text.len() + SEAL_BYTES);
            assert_eq!(open(&key, b"context", &sealed).as_deref(), Some(text));
            assert_eq!(open(&key, b"context", &sealed).as_deref(), Some(text), "more than once");
            for context in [&b""[..], b"contex", b"context2", b"Context"] {
                assert_eq!(open(&key, context, &sealed), None);
            }
            assert_eq!(open(&SealKey::new([8; KEY_BYTES]), b"context", &sealed), None);
            assert_eq!(open(&SealKey::new([7; KEY_BYTES]), b"context", &sealed).as_deref(), Some(text));
        }
    }

    #[test]
    fn an_altered_text_is_not_opened() {
        let key = SealKey::new([7; KEY_BYTES]);
        let sealed = key.seal(b"c", TEXT);
        for place in 0..sealed.len() {
            for bit in 0..8 {
                let mut altered = sealed.clone();
                altered[place] ^= 1 << bit;
                assert_eq!(open(&key, b"c", &altered), None, "{place}.{bit}");
            }
            assert_eq!(open(&key, b"c", &sealed[..place]), None, "the first {place} bytes");
            assert_eq!(open(&key, b"c", &sealed[place + 1..]), None, "without the first {place}");
        }
        assert_eq!(open(&key, b"c", &[&sealed[..], b"x"].concat()), None);
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let key = SealKey::new([7; KEY_BYTES]);
        let nonces = (0..1000).map(|_| key.seal(b"c", TEXT)[..NONCE_LEN].to_vec());
        assert_eq!(nonces.collect::<std::collections::HashSet<_>>().len(), 1000);
        let (one, two) = (key.seal(b"c", TEXT), key.seal(b"c", TEXT));
        assert_ne!(one[NONCE_LEN..], two[NONCE_LEN..], "the same text never looks the same");
    }

    #[test]
    fn a_key_prints_as_stars() {
        assert_eq!(format!("{:?}", SealKey::new([7; KEY_BYTES])), "***");
    }
}
