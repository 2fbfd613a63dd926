//! The sealed state of a stateless client: no text but a sealed one is opened, a sealed one comes
//! back as it was, and one with another character does not come back.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mcpport::auth::Principal;
use mcpport::limits::StatelessLimits;
use mcpport::secret::seal::SealKey;
use mcpport::session::{CallDigest, Claims, InstanceRun, Retry, StateError, StateKind};

fuzz_target!(|data: &[u8]| {
    let (key, limits) = (SealKey::new([7; 32]), StatelessLimits::default());
    let mut numbers = data.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        u64::from_be_bytes(bytes)
    });
    let mut number = || numbers.next().unwrap_or_default();
    let text = String::from_utf8_lossy(data);
    let kind = match number() % 3 {
        0 => StateKind::Wrapped(text.chars().take(limits.state_bytes / 4).collect()),
        1 => StateKind::Parked(number()),
        _ => StateKind::Url,
    };
    let channel = Some(number()).filter(|channel| channel % 2 == 0).map(|channel| channel as u32);
    let claims = Claims {
        kind,
        instance: InstanceRun { upstream: number(), channel, run: number() },
        principal: Principal::from_number(number().into()),
        digest: CallDigest::of(Some("s"), "tools/call", &text),
        expires: Duration::from_secs(number() % 1000),
    };
    let retry = Retry {
        principal: claims.principal,
        digest: claims.digest,
        now: Duration::from_secs(number() % 1000),
    };
    assert_eq!(Claims::open(&text, &key, &retry, &limits), Err(StateError::Invalid), "not sealed by us");
    let sealed = claims.seal(&key);
    let expected = match claims.expires > retry.now {
        true => Ok(claims),
        false => Err(StateError::Expired),
    };
    assert_eq!(Claims::open(&sealed, &key, &retry, &limits), expected);
    let other = Retry { principal: Principal::from_number(u128::MAX), ..retry };
    assert_eq!(Claims::open(&sealed, &key, &other, &limits), Err(StateError::Invalid));
    let place = number() as usize % sealed.len();
    for new in ["", "A", "_", "=", "AA"] {
        let altered = [&sealed[..place], new, &sealed[place + 1..]].concat();
        if altered != sealed {
            assert_eq!(Claims::open(&altered, &key, &retry, &limits), Err(StateError::Invalid), "{altered}");
        }
    }
});
