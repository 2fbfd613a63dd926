//! Throttles token guessing: counts wrong tokens by client address.
//!
//! Many clients may share one address (a proxy, a household, the machine itself), so three cases
//! are distinguished:
//!
//! - **The same wrong token again** reveals nothing to its sender. A client with an old
//!   configuration may send it for days. It is answered with 429, and no other client is affected.
//! - **Different wrong tokens** are guesses. After [`GuessLimits::failures`] of them in
//!   [`GuessLimits::window`], no token from that address is checked until the oldest of them is a
//!   window old. Requests refused in the meantime do not count, so tokens are checked again after
//!   each window however often a client retries, and no more than ten guesses a minute (the
//!   default) are checked.
//! - **A client that is already authenticated** is not locked out. The caller accepts a request on
//!   a connection on which the same principal was authenticated before, or one that names the open
//!   session of the principal of its token. A guesser at the same address has neither, and neither
//!   reveals whether the token of another principal is right.
//!
//! Limitation: during an attack, a *new* client at the same address competes with the attacker for
//! these checks. Clients behind a trusted proxy that names them ([`origin`]) are not affected,
//! since they count by their own addresses.
//!
//! Does no I/O and reads no clock; `gateway::authn` drives it.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use crate::{
    limits::GuessLimits,
    util::{address::ClientAddress, authority::unbracketed},
};

/// Returns the address that a request comes from: the peer of its connection or, if that is a
/// trusted proxy, the client that it names in `X-Forwarded-For`.
///
/// Proxies append to that field, so the last address in it that is not a trusted proxy counts;
/// addresses before it may be forged. If the field names no such address, the result is the proxy
/// itself.
pub fn origin<'a>(
    peer: IpAddr,
    trusted: &[IpAddr],
    forwarded: impl DoubleEndedIterator<Item = &'a str>,
) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.contains(&address.to_canonical());
    if !is_trusted(&peer) {
        return peer;
    }
    let mut named = forwarded.rev().flat_map(|field| field.rsplit(',')).map(|one| address(one.trim()));
    // An entry that cannot be parsed ends the search: entries before it may be forged.
    named.find(|named| named.is_none_or(|named| !is_trusted(&named))).flatten().unwrap_or(peer)
}

/// Parses an address as proxies write it: with or without a port, and IPv6 with or without
/// brackets.
fn address(text: &str) -> Option<IpAddr> {
    let socket = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    unbracketed(text).parse().ok().or_else(socket)
}

/// Wrong tokens from one address.
#[derive(Debug)]
struct Record {
    /// Number of wrong tokens since `since`, including repeated ones.
    failures: usize,
    since: Instant,
    /// The distinct wrong tokens of the last window with their times, oldest first; at most
    /// [`GuessLimits::failures`].
    guesses: Vec<(Instant, u128)>,
    /// Time of the last wrong token.
    last: Instant,
}

/// The response to a wrong token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuessVerdict {
    /// The token is wrong (401).
    Wrong,
    /// There were too many wrong tokens (429). Holds the time to wait.
    Wait(Duration),
}

/// Wrong tokens by client address, for at most [`GuessLimits::addresses`] addresses.
#[derive(Debug)]
pub struct GuessThrottle {
    records: HashMap<ClientAddress, Record>,
    /// The same records in the order of eviction: fewest guesses first, and of these the oldest.
    order: BTreeSet<(usize, Instant, ClientAddress)>,
    /// Time when expired records were last removed.
    swept: Option<Instant>,
    limits: GuessLimits,
}

impl GuessThrottle {
    /// Creates an empty table.
    pub fn new(limits: &GuessLimits) -> Self {
        let (records, order) = (HashMap::new(), BTreeSet::new());
        Self { records, order, swept: None, limits: limits.clone() }
    }

    /// Checks whether a token from this address may be looked up.
    ///
    /// # Errors
    /// The remaining lockout time.
    pub fn look(&mut self, now: Instant, from: ClientAddress) -> Result<(), Duration> {
        let Some(record) = self.records.get(&from) else { return Ok(()) };
        let window = self.limits.window;
        let recent = record.guesses.iter().filter(|(at, _)| now.saturating_duration_since(*at) < window);
        if recent.count() < self.limits.failures {
            return Ok(());
        }
        let oldest = record.guesses.first().map_or(now, |(at, _)| *at);
        Err((oldest + window).saturating_duration_since(now))
    }

    /// Records a wrong token from this address. `token` is any number that is always the same for
    /// the same token; `None` if the request had no bearer token.
    pub fn wrong(&mut self, now: Instant, from: ClientAddress, token: Option<u128>) -> GuessVerdict {
        let window = self.limits.window;
        let mut record = match self.take(from) {
            Some(record) => record,
            None => {
                self.make_room(now);
                Record { failures: 0, since: now, guesses: Vec::new(), last: now }
            }
        };
        record.guesses.retain(|(at, _)| now.saturating_duration_since(*at) < window);
        if now.saturating_duration_since(record.since) >= window {
            (record.failures, record.since) = (0, now);
        }
        record.failures = record.failures.saturating_add(1);
        record.last = now;
        if let Some(token) = token
            && record.guesses.len() < self.limits.failures
            && !record.guesses.iter().any(|(_, known)| *known == token)
        {
            record.guesses.push((now, token));
        }
        let too_many = record.failures > self.limits.failures;
        let wait = (record.since + window).saturating_duration_since(now);
        self.order.insert((record.guesses.len(), now, from));
        self.records.insert(from, record);
        if too_many { GuessVerdict::Wait(wait) } else { GuessVerdict::Wrong }
    }

    fn take(&mut self, from: ClientAddress) -> Option<Record> {
        let record = self.records.remove(&from)?;
        self.order.remove(&(record.guesses.len(), record.last, from));
        Some(record)
    }

    /// Makes room for one record if the table is full: removes expired records, at most once per
    /// [`GuessLimits::sweep`], and if that is not enough, those with the fewest guesses. An
    /// attacker with many addresses thus evicts addresses with one failure each, not those that are
    /// locked out.
    fn make_room(&mut self, now: Instant) {
        if self.records.len() < self.limits.addresses {
            return;
        }
        let since_sweep = self.swept.map(|swept| now.saturating_duration_since(swept));
        if since_sweep.is_none_or(|since| since >= self.limits.sweep) {
            self.swept = Some(now);
            let window = self.limits.window;
            self.records.retain(|_, record| now.saturating_duration_since(record.last) < window);
            self.order.retain(|(_, last, _)| now.saturating_duration_since(*last) < window);
        }
        while self.records.len() >= self.limits.addresses {
            let Some((_, _, from)) = self.order.pop_first() else { return };
            self.records.remove(&from);
        }
    }

    /// Returns the number of addresses in the table.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn source(text: &str) -> ClientAddress {
        ClientAddress::of(text.parse().unwrap())
    }

    fn guesses() -> (GuessThrottle, Instant) {
        (GuessThrottle::new(&GuessLimits::default()), Instant::now())
    }

    #[test]
    fn the_eleventh_failure_in_a_minute_is_one_too_many() {
        let (mut guesses, start) = guesses();
        let here = source("192.0.2.1");
        for second in 0..10u64 {
            let now = start + Duration::from_secs(second);
            assert_eq!(guesses.look(now, here), Ok(()));
            assert_eq!(guesses.wrong(now, here, Some(second.into())), GuessVerdict::Wrong);
        }
        let now = start + Duration::from_secs(10);
        assert_eq!(guesses.look(now, here), Err(Duration::from_secs(50)));
        assert_eq!(guesses.look(now, source("192.0.2.2")), Ok(()), "another address is another matter");
        assert_eq!(
            guesses.look(start + MINUTE - Duration::from_millis(1), here),
            Err(Duration::from_millis(1))
        );
        assert_eq!(guesses.look(start + MINUTE, here), Ok(()), "the oldest is a minute old");
        assert_eq!(guesses.wrong(start + MINUTE, here, Some(99)), GuessVerdict::Wrong);
        assert_eq!(guesses.look(start + MINUTE, here), Err(Duration::from_secs(1)));
    }

    #[test]
    fn one_wrong_token_repeated_locks_nobody_out() {
        let (mut guesses, now) = guesses();
        let here = source("192.0.2.1");
        let verdicts: Vec<GuessVerdict> = (0..12).map(|_| guesses.wrong(now, here, Some(7))).collect();
        assert_eq!(verdicts[..10], [GuessVerdict::Wrong; 10]);
        assert_eq!(verdicts[10..], [GuessVerdict::Wait(MINUTE); 2]);
        assert_eq!(guesses.look(now, here), Ok(()));
        for _ in 0..100 {
            guesses.wrong(now, here, None);
        }
        assert_eq!(guesses.look(now, here), Ok(()), "what is no token is no guess");
    }

    /// The guesses that are checked are bounded, however fast they arrive, and however they are
    /// mixed with a token that is known to be wrong.
    #[test]
    fn checked_guesses_are_bounded() {
        let (mut guesses, start) = guesses();
        let here = source("192.0.2.1");
        let mut looked = Vec::new();
        for step in 0..60_000u64 {
            let now = start + Duration::from_millis(step * 10);
            let token = if step % 2 == 0 { 0 } else { u128::from(step) };
            if guesses.look(now, here).is_ok() {
                guesses.wrong(now, here, Some(token));
                if token != 0 {
                    looked.push(now);
                }
            }
        }
        // 60 000 steps of 10 ms are ten minutes.
        assert!((90..=100).contains(&looked.len()), "{}", looked.len());
        assert!(looked.windows(11).all(|eleven| eleven[10] - eleven[0] >= MINUTE));
    }

    #[test]
    fn proxies_that_are_trusted_name_their_clients() {
        let trusted: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2", "::1"].map(|text| text.parse().unwrap()).into();
        for (peer, fields, expected) in [
            ("192.0.2.9", &["192.0.2.1"][..], "192.0.2.9"),
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("::1", &["192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.1", "192.0.2.1 , 10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["198.51.100.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.2, 10.0.0.1"], "10.0.0.1"),
        ] {
            let found = origin(peer.parse().unwrap(), &trusted, fields.iter().copied());
            assert_eq!(found, expected.parse::<IpAddr>().unwrap(), "{peer} {fields:?}");
        }
    }

    #[test]
    fn networks_of_ipv6_count_as_one() {
        let same = |one: &str, two: &str| source(one) == source(two);
        assert!(same("2001:db8::1", "2001:db8::ffff:1:2:3"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1"));
        assert!(!same("::ffff:192.0.2.1", "::ffff:192.0.2.2"));
        assert!(!same("127.0.0.1", "127.0.0.2"));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let (mut guesses, start) = guesses();
        let limits = GuessLimits::default();
        let worst = source("192.0.2.1");
        for token in 0..10 {
            guesses.wrong(start, worst, Some(token));
        }
        for number in 0..100_000u32 {
            let now = start + Duration::from_micros(number.into());
            let from = ClientAddress::of(IpAddr::V4(number.into()));
            assert_eq!(guesses.look(now, from), Ok(()));
            guesses.wrong(now, from, Some(1));
            assert!(guesses.len() <= limits.addresses);
            assert_eq!(guesses.order.len(), guesses.len());
        }
        let now = start + Duration::from_secs(1);
        assert_eq!(guesses.len(), limits.addresses);
        assert!(guesses.look(now, worst).is_err(), "failures from many addresses do not end the throttling");
        // Expired records are removed first, however many guesses they have.
        let later = start + MINUTE + MINUTE;
        guesses.wrong(later, source("198.51.100.1"), Some(1));
        assert_eq!((guesses.len(), guesses.order.len()), (1, 1));
    }

    #[test]
    fn a_full_throttle_table_drops_the_oldest() {
        let (_, start) = guesses();
        let mut guesses = GuessThrottle::new(&GuessLimits { addresses: 2, ..GuessLimits::default() });
        let [one, two, three] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(source);
        for (second, from) in [(0, one), (1, two)] {
            for token in 0..10 {
                guesses.wrong(start + Duration::from_secs(second), from, Some(token));
            }
        }
        let now = start + Duration::from_secs(2);
        guesses.wrong(now, three, Some(1));
        assert_eq!((guesses.look(now, one), guesses.len()), (Ok(()), 2));
        assert!(guesses.look(now, two).is_err());
    }
}
