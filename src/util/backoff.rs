//! Exponential backoff and jitter.

use std::time::Duration;

/// Returns `base * 2^failures`, at most `cap`.
pub fn doubled(base: Duration, failures: u32, cap: Duration) -> Duration {
    let factor = 1u32.checked_shl(failures).unwrap_or(u32::MAX);
    base.saturating_mul(factor).min(cap)
}

/// Returns a duration less a random part of it, uniformly distributed: `share` is the largest part
/// (1.0 is full jitter, down to zero), and `random` is any random number (0 takes nothing away).
pub fn less_random(whole: Duration, share: f64, random: u32) -> Duration {
    whole.mul_f64(1.0 - share * (f64::from(random) / f64::from(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_their_cap() {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(30));
        let delays: Vec<u128> = (0..8).map(|failures| doubled(base, failures, cap).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(doubled(base, u32::MAX, cap), cap);
        assert_eq!(doubled(base, u32::MAX, Duration::MAX), base.saturating_mul(u32::MAX));
    }

    #[test]
    fn jitter_takes_up_to_its_share() {
        let whole = Duration::from_secs(8);
        for (share, random, left) in [(1.0, 0, 8), (1.0, u32::MAX, 0), (0.25, 0, 8), (0.25, u32::MAX, 6)] {
            assert_eq!(less_random(whole, share, random), Duration::from_secs(left), "{share} {random}");
        }
        let half = less_random(whole, 1.0, u32::MAX / 2);
        assert!(half.abs_diff(Duration::from_secs(4)) < Duration::from_millis(1), "{half:?}");
    }
}
