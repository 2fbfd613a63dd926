//! The `requestState` that a stateless client gets with a server's questions, and returns with its
//! answers (MCP 2026-07-28, multi round-trip requests).
//!
//! A server sees one peer, the gateway. It cannot tell whether a state returns from the principal
//! that got it, nor does its next process know the state. So the gateway seals the server's state
//! together with [`Claims`]: which principal, which call, which process, until when. The arguments
//! of the call are not among them, since the server checks those itself.
//!
//! The sealed text is base64url without padding of nonce, encrypted claims and tag
//! ([`crate::secret::seal`]). The claims are numbers of a fixed length in network byte order, then
//! the server's state.

use std::time::Duration;

use crate::{
    auth::Principal,
    limits::StatelessLimits,
    secret::{
        Digest,
        seal::{SEAL_BYTES, SealKey},
    },
    util::base64,
};

/// Names the use of the key and the form of the text.
const CONTEXT: &[u8] = b"mcpport requestState 1";
/// Bytes of the claims without the server's state.
const CLAIMS_BYTES: usize = 1 + 4 + 3 * 8 + 2 * 16 + 8;

/// What a state stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StateKind {
    /// The server's own state, which is returned to it.
    Wrapped(String),
    /// The number of a call that still runs at its server ([`super::ParkedCalls`]).
    Parked(u64),
    /// The client was asked to visit URLs; its retry repeats the call.
    Url,
}

/// A run of a process of a server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct InstanceRun {
    /// The number of the registration.
    pub upstream: u64,
    /// The channel of an isolated process. `None`: the process that all clients share.
    pub channel: Option<u32>,
    /// The number of the run.
    pub run: u64,
}

/// The digest of the method, the exposed name and the endpoint of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CallDigest(u128);

impl CallDigest {
    /// Computes the digest. `server`: the server whose endpoint was called; `None`: the endpoint
    /// that shows all. `name`: the name or the URI in the request.
    pub fn of(server: Option<&str>, method: &str, name: &str) -> Self {
        // The lengths keep the parts apart.
        let mut bytes = vec![u8::from(server.is_some())];
        for part in [server.unwrap_or_default(), method, name] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        Self(Digest::of(&bytes).number())
    }
}

/// What is sealed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// What the state stands for.
    pub kind: StateKind,
    /// The process that the retry has to reach.
    pub instance: InstanceRun,
    /// The principal of the call.
    pub principal: Principal,
    /// The call.
    pub digest: CallDigest,
    /// When the state expires, as time since the start of the gateway, in whole seconds.
    pub expires: Duration,
}

/// Why a state is refused. The client gets the same error for each, but is told of a restart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StateError {
    /// It is not one of this run of the gateway, was altered, or is one of another principal or
    /// another call.
    Invalid,
    /// It is too old.
    Expired,
    /// Its process has ended.
    Restarted,
}

/// The request that returns a state.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Its principal.
    pub principal: Principal,
    /// The call that it repeats.
    pub digest: CallDigest,
    /// The time since the start of the gateway.
    pub now: Duration,
}

impl Claims {
    /// Returns the text for the client.
    pub fn seal(&self, key: &SealKey) -> String {
        let (kind, parked, state) = match &self.kind {
            StateKind::Wrapped(state) => (0, 0, state.as_str()),
            StateKind::Parked(number) => (1, *number, ""),
            StateKind::Url => (2, 0, ""),
        };
        let mut text = Vec::with_capacity(CLAIMS_BYTES + state.len());
        text.push(kind);
        // Longer than any gateway runs.
        text.extend(u32::try_from(self.expires.as_secs()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend(self.instance.upstream.to_be_bytes());
        text.extend(self.instance.channel.map_or(0, |channel| u64::from(channel) + 1).to_be_bytes());
        text.extend(self.instance.run.to_be_bytes());
        text.extend(self.principal.number().to_be_bytes());
        text.extend(self.digest.0.to_be_bytes());
        text.extend(parked.to_be_bytes());
        text.extend(state.as_bytes());
        base64::encode_url(&key.seal(CONTEXT, &text))
    }

    /// Opens a text from a client, and checks everything but the process. It may take a while for a
    /// long text.
    ///
    /// # Errors
    /// [`StateError::Invalid`] or [`StateError::Expired`].
    pub fn open(
        text: &str,
        key: &SealKey,
        retry: &Retry,
        limits: &StatelessLimits,
    ) -> Result<Self, StateError> {
        let longest = limits.state_bytes + CLAIMS_BYTES + SEAL_BYTES;
        if text.len() > longest.div_ceil(3) * 4 {
            return Err(StateError::Invalid);
        }
        let mut sealed = base64::decode_url(text).ok_or(StateError::Invalid)?;
        let opened = key.open(CONTEXT, &mut sealed).ok_or(StateError::Invalid)?;
        let claims = Self::read(opened).ok_or(StateError::Invalid)?;
        if claims.principal != retry.principal || claims.digest != retry.digest {
            return Err(StateError::Invalid);
        }
        if claims.expires <= retry.now {
            return Err(StateError::Expired);
        }
        Ok(claims)
    }

    /// Checks that the process which the retry would reach is that of the state. `None`: there is
    /// none.
    ///
    /// # Errors
    /// [`StateError::Restarted`].
    pub fn check_instance(&self, reached: Option<InstanceRun>) -> Result<(), StateError> {
        if reached == Some(self.instance) { Ok(()) } else { Err(StateError::Restarted) }
    }

    fn read(mut text: &[u8]) -> Option<Self> {
        let rest = &mut text;
        let [kind] = take(rest)?;
        let expires = Duration::from_secs(u32::from_be_bytes(take(rest)?).into());
        let upstream = u64::from_be_bytes(take(rest)?);
        let channel = match u64::from_be_bytes(take(rest)?) {
            0 => None,
            next => Some(u32::try_from(next - 1).ok()?),
        };
        let run = u64::from_be_bytes(take(rest)?);
        let principal = Principal::from_number(u128::from_be_bytes(take(rest)?));
        let digest = CallDigest(u128::from_be_bytes(take(rest)?));
        let parked = u64::from_be_bytes(take(rest)?);
        let kind = match kind {
            0 => StateKind::Wrapped(std::str::from_utf8(rest).ok()?.to_owned()),
            1 => StateKind::Parked(parked),
            2 => StateKind::Url,
            _ => return None,
        };
        Some(Self { kind, instance: InstanceRun { upstream, channel, run }, principal, digest, expires })
    }
}

/// Takes the first bytes.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::seal::KEY_BYTES;

    const SHARED: InstanceRun = InstanceRun { upstream: 3, channel: None, run: 5 };

    fn key() -> SealKey {
        SealKey::new([9; KEY_BYTES])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn digest() -> CallDigest {
        CallDigest::of(Some("s"), "tools/call", "t")
    }

    fn claims(kind: StateKind) -> Claims {
        let principal = Principal::token(1);
        Claims { kind, instance: SHARED, principal, digest: digest(), expires: seconds(600) }
    }

    fn retry() -> Retry {
        Retry { principal: Principal::token(1), digest: digest(), now: seconds(10) }
    }

    fn open(text: &str, retry: &Retry) -> Result<Claims, StateError> {
        Claims::open(text, &key(), retry, &StatelessLimits::default())
    }

    fn kinds() -> [StateKind; 6] {
        let long = "é".repeat(StatelessLimits::default().state_bytes / 2);
        [
            StateKind::Wrapped("r".into()),
            StateKind::Wrapped(String::new()),
            StateKind::Wrapped(long),
            StateKind::Parked(0),
            StateKind::Parked(u64::MAX),
            StateKind::Url,
        ]
    }

    #[test]
    fn a_state_returns_as_it_was() {
        for kind in kinds() {
            for channel in [None, Some(0), Some(1), Some(u32::MAX)] {
                for run in [0, u64::MAX] {
                    let instance = InstanceRun { upstream: run, channel, run };
                    let sealed = Claims { instance, ..claims(kind.clone()) };
                    let text = sealed.seal(&key());
                    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
                    assert_eq!(open(&text, &retry()), Ok(sealed.clone()));
                    assert_eq!(open(&text, &retry()), Ok(sealed), "a state may return more than once");
                }
            }
        }
    }

    /// Each refusal, with what differs from a retry that is accepted.
    #[test]
    fn only_the_principal_and_call_of_a_state_may_return_it_in_time() {
        let one = Principal::token(1);
        for (what, principal, server, method, name, now, expected) in [
            ("fits", one, Some("s"), "tools/call", "t", 10, Ok(())),
            ("last second", one, Some("s"), "tools/call", "t", 599, Ok(())),
            ("expired", one, Some("s"), "tools/call", "t", 600, Err(StateError::Expired)),
            ("principal", Principal::token(2), Some("s"), "tools/call", "t", 10, Err(StateError::Invalid)),
            ("anonymous", Principal::ANONYMOUS, Some("s"), "tools/call", "t", 10, Err(StateError::Invalid)),
            ("server", one, Some("u"), "tools/call", "t", 10, Err(StateError::Invalid)),
            ("all servers", one, None, "tools/call", "t", 10, Err(StateError::Invalid)),
            ("method", one, Some("s"), "prompts/get", "t", 10, Err(StateError::Invalid)),
            ("name", one, Some("s"), "tools/call", "T", 10, Err(StateError::Invalid)),
            ("shifted", one, Some("st"), "ools/call", "t", 10, Err(StateError::Invalid)),
            ("stolen, old", Principal::token(2), Some("s"), "tools/call", "t", 900, Err(StateError::Invalid)),
        ] {
            for kind in kinds() {
                let text = claims(kind).seal(&key());
                let retry =
                    Retry { principal, digest: CallDigest::of(server, method, name), now: seconds(now) };
                assert_eq!(open(&text, &retry).map(|_| ()), expected, "{what}");
            }
        }
        assert_ne!(CallDigest::of(Some(""), "m", "n"), CallDigest::of(None, "m", "n"));
    }

    #[test]
    fn a_state_belongs_to_one_run_of_one_process() {
        let state = claims(StateKind::Wrapped("r".into()));
        let other = |upstream, channel, run| Some(InstanceRun { upstream, channel, run });
        for (reached, expected) in [
            (Some(SHARED), Ok(())),
            (other(4, None, 5), Err(StateError::Restarted)),
            (other(3, Some(0), 5), Err(StateError::Restarted)),
            (other(3, None, 6), Err(StateError::Restarted)),
            (None, Err(StateError::Restarted)),
        ] {
            assert_eq!(state.check_instance(reached), expected, "{reached:?}");
        }
    }

    #[test]
    fn an_altered_state_is_refused() {
        for kind in [StateKind::Wrapped("state of a server".into()), StateKind::Parked(7), StateKind::Url] {
            let text = claims(kind).seal(&key());
            let bytes = base64::decode_url(&text).unwrap();
            for place in 0..bytes.len() {
                for bit in 0..8 {
                    let mut altered = bytes.clone();
                    altered[place] ^= 1 << bit;
                    let altered = base64::encode_url(&altered);
                    assert_eq!(open(&altered, &retry()), Err(StateError::Invalid), "byte {place}, bit {bit}");
                }
            }
            for place in 0..text.len() {
                for other in [b'A', b'_', b'=', b'+', b'\n'] {
                    let mut altered = text.clone().into_bytes();
                    if std::mem::replace(&mut altered[place], other) != other {
                        let altered = String::from_utf8(altered).unwrap();
                        assert_eq!(open(&altered, &retry()), Err(StateError::Invalid), "{place}: {altered}");
                    }
                }
                assert_eq!(open(&text[..place], &retry()), Err(StateError::Invalid), "the first {place}");
            }
        }
    }

    #[test]
    fn foreign_states_are_refused() {
        let text = claims(StateKind::Url).seal(&key());
        let longer = "A".repeat(4 * StatelessLimits::default().state_bytes);
        for foreign in ["", "r", "not ours", "=?base64?cg==?=", &format!("{text}-TAMPERED"), &longer] {
            assert_eq!(open(foreign, &retry()), Err(StateError::Invalid), "{:.40}", foreign);
        }
        // The key of another run of the gateway, and a text that was sealed for another use.
        let other = claims(StateKind::Url).seal(&SealKey::new([8; KEY_BYTES]));
        assert_eq!(open(&other, &retry()), Err(StateError::Invalid));
        let plain = key().open(CONTEXT, &mut base64::decode_url(&text).unwrap()).unwrap().to_vec();
        for (context, plain) in [
            (&b"another"[..], plain.clone()),
            (CONTEXT, plain[..plain.len() - 1].to_vec()),
            (CONTEXT, [&[9][..], &plain[1..]].concat()),
            (CONTEXT, [&[0][..], &plain[1..], b"\xff"].concat()),
            (CONTEXT, Vec::new()),
        ] {
            let text = base64::encode_url(&key().seal(context, &plain));
            assert_eq!(open(&text, &retry()), Err(StateError::Invalid));
        }
        assert_eq!(CLAIMS_BYTES, plain.len());
    }
}
