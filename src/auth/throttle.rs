//! Who guesses tokens: wrong ones are counted by the address that they come from.
//!
//! Behind one address may stand many clients (a proxy, a household, the machine itself), so three things are told
//! apart:
//!
//! - **The same wrong token again** tells whoever sends it nothing. It is what a client with an old configuration does,
//!   for days; so it costs that client a 429, and nobody else anything.
//! - **Different wrong tokens** are guesses. After [`GuessLimits::failures`] of them in [`GuessLimits::window`] no token
//!   from that address is looked at until the oldest of them is a window old. What comes meanwhile does not count, so
//!   the door opens again each minute however long somebody knocks, and no more than ten guesses a minute get an answer.
//! - **Who is in already** stays in: the caller lets a request pass that comes over a connection on which the same
//!   principal was let in before, or that names the open session of the principal whose token it has. Either is
//!   something that a guesser behind the same address does not have; and neither tells him whether the token of
//!   anybody else is right.
//!
//! What remains: while somebody guesses, a *new* client behind the same address competes with him for those looks. A
//! proxy that is trusted to name whom it speaks for ([`origin`]) is no such address.
//!
//! Pure; `gateway::authn` drives it.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use crate::limits::GuessLimits;

/// An address as it is counted: one of IPv4, or a network of IPv6 that one customer has (/64).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ClientAddress(IpAddr);

impl ClientAddress {
    /// What an address counts as.
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            address => address,
        })
    }
}

/// Where a request comes from: the other end of its connection; or, if that is a proxy that is trusted to say so, whom it
/// names in `X-Forwarded-For`. Proxies add to that field at the end, so the last address in it that is no such proxy
/// counts: what stands before it may have been made up. Where the field says nothing, it is the proxy itself.
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
    // One that cannot be read hides all before it.
    named.find(|named| named.is_none_or(|named| !is_trusted(&named))).flatten().unwrap_or(peer)
}

/// An address as proxies write it: with or without a port, that of IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let socket = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(socket)
}

/// What an address did.
#[derive(Debug)]
struct Record {
    /// All wrong tokens since `since`.
    failures: usize,
    since: Instant,
    /// The different ones of the last window, the oldest first.
    guesses: Vec<(Instant, u128)>,
    /// When it was last wrong.
    last: Instant,
}

/// What a wrong token leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GuessVerdict {
    /// It is wrong, and that is all.
    Wrong,
    /// It was one too many: for so long.
    Wait(Duration),
}

/// The addresses that sent wrong tokens.
#[derive(Debug)]
pub struct GuessThrottle {
    records: HashMap<ClientAddress, Record>,
    /// The same in the order in which they are forgotten when there is no room: the least guesses, the longest ago.
    order: BTreeSet<(usize, Instant, ClientAddress)>,
    /// When the table was last rid of what is over.
    swept: Option<Instant>,
    limits: GuessLimits,
}

impl GuessThrottle {
    /// Nobody guesses.
    pub fn new(limits: &GuessLimits) -> Self {
        let (records, order) = (HashMap::new(), BTreeSet::new());
        Self { records, order, swept: None, limits: limits.clone() }
    }

    /// Whether a token from there may be looked at.
    ///
    /// # Errors
    /// For how long not.
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

    /// A token from there was wrong. `token` stands for it (any number that it always has); `None`: it was none at all.
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

    /// Forgets one address if the table is full: one that is over, or else one that did the least. So whoever brings
    /// many addresses along pushes out those that have one failure each, and not those that are shut out.
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

    /// How many addresses are remembered.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether none is.
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

    /// However fast somebody asks, and however he mixes what he knows to be wrong with new guesses.
    #[test]
    fn guesses_that_are_looked_at_are_bounded() {
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
        // Ten minutes.
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
        assert!(guesses.look(now, worst).is_err(), "a crowd does not open the door again");
        // What is over goes first, however bad it was.
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
