//! Who is connected: how many in all, how many from one address, and who has not shown yet that they are let in.
//!
//! Pure; the gateway's accept loop asks before it serves a connection, and gives the place back when that ends. A
//! connection that has sent no request that is let in is *unknown*. There is room for so many of these, and one
//! more pushes out the one that has waited longest: silent peers then never keep others out, however many come, since a
//! peer that speaks is known within milliseconds.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use crate::limits::HttpLimits;

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// There are as many connections as there may be.
    Full,
    /// There are as many from this address as there may be.
    Address,
}

/// A place that was given to a connection.
#[derive(Debug)]
pub struct Admitted<H> {
    /// Its number, never used again.
    pub number: u64,
    /// The unknown connection that has to go for it.
    pub evicted: Option<H>,
}

/// See the module's documentation. `H` is what ends a connection.
#[derive(Debug)]
pub struct ConnectionLimiter<H> {
    last: u64,
    open: usize,
    /// A proxy on this machine speaks for everybody, so these have a limit of their own.
    loopback: usize,
    addresses: HashMap<IpAddr, usize>,
    /// By number, so in the order of arrival.
    unauthenticated: BTreeMap<u64, H>,
    limits: HttpLimits,
}

impl<H> ConnectionLimiter<H> {
    /// Nobody is there.
    pub fn new(limits: &HttpLimits) -> Self {
        Self {
            last: 0,
            open: 0,
            loopback: 0,
            addresses: HashMap::new(),
            unauthenticated: BTreeMap::new(),
            limits: limits.clone(),
        }
    }

    /// A connection came from an address. To be followed by [`ConnectionLimiter::release`].
    ///
    /// # Errors
    /// [`Rejection`], with the limit that is reached; nothing has to be given back then.
    pub fn admit(&mut self, from: IpAddr, handle: H) -> Result<Admitted<H>, Rejection> {
        if self.open >= self.limits.connections {
            return Err(Rejection::Full);
        }
        let (count, most) = self.count(from);
        if *count >= most {
            return Err(Rejection::Address);
        }
        *count += 1;
        self.open += 1;
        self.last += 1;
        let full = self.unauthenticated.len() >= self.limits.connections_unauthenticated;
        let pushed_out = if full { self.unauthenticated.pop_first().map(|(_, handle)| handle) } else { None };
        self.unauthenticated.insert(self.last, handle);
        Ok(Admitted { number: self.last, evicted: pushed_out })
    }

    /// A connection has sent a request that is let in: nobody pushes it out any more. Gives its handle back, which is
    /// the caller's to keep; `None` when it was known or pushed out before.
    pub fn authenticated(&mut self, number: u64) -> Option<H> {
        self.unauthenticated.remove(&number)
    }

    /// A connection has ended.
    pub fn release(&mut self, number: u64, from: IpAddr) {
        self.unauthenticated.remove(&number);
        self.open = self.open.saturating_sub(1);
        let (count, _) = self.count(from);
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.addresses.remove(&network(from));
        }
    }

    /// How many connections there are.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// How many addresses they come from; loopback is one of them.
    pub fn addresses(&self) -> usize {
        self.addresses.len() + usize::from(self.loopback > 0)
    }

    /// The count of those like this one, and how many of them there may be.
    fn count(&mut self, from: IpAddr) -> (&mut usize, usize) {
        if from.is_loopback() {
            return (&mut self.loopback, self.limits.connections_from_loopback);
        }
        (self.addresses.entry(network(from)).or_default(), self.limits.connections_per_address)
    }
}

/// What one subscriber has: an IPv4 address, or an IPv6 network of 64 bits, of which every machine can choose.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visits(
        connections: usize,
        per_address: usize,
        loopback: usize,
        unknown: usize,
    ) -> ConnectionLimiter<u64> {
        ConnectionLimiter::new(&HttpLimits {
            connections,
            connections_per_address: per_address,
            connections_from_loopback: loopback,
            connections_unauthenticated: unknown,
            ..HttpLimits::default()
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_counted_by_subscriber() {
        let mut visits = visits(100, 2, 3, 100);
        let mut enter = |from: &str| visits.admit(ip(from), 0).map(|_| ()).err();
        for from in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "127.0.0.1"] {
            assert_eq!(enter(from), None, "{from}");
        }
        assert_eq!(enter("2001:db8::ffff:2"), None);
        assert_eq!(enter("2001:db8::3"), Some(Rejection::Address), "the same network");
        assert_eq!((enter("127.0.0.2"), enter("::1")), (None, None));
        assert_eq!(enter("127.0.0.3"), Some(Rejection::Address));
        assert_eq!(enter("192.0.2.1"), None);
        assert_eq!(enter("192.0.2.1"), Some(Rejection::Address));
        assert_eq!(visits.addresses(), 5);
    }

    #[test]
    fn places_come_back() {
        let mut visits = visits(2, 2, 2, 2);
        let first = visits.admit(ip("192.0.2.1"), 0).unwrap().number;
        let second = visits.admit(ip("192.0.2.1"), 0).unwrap().number;
        assert_eq!(visits.admit(ip("192.0.2.9"), 0).unwrap_err(), Rejection::Full);
        assert_eq!(visits.authenticated(second), Some(0));
        for number in [first, second] {
            visits.release(number, ip("192.0.2.1"));
        }
        assert_eq!((visits.len(), visits.addresses(), visits.unauthenticated.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_unauthenticated_connection_is_evicted() {
        let mut visits = visits(100, 100, 100, 3);
        let mut enter = |handle| {
            let place = visits.admit(ip("192.0.2.1"), handle).unwrap();
            (place.number, place.evicted)
        };
        let (first, _) = enter(10);
        let pushed: Vec<_> = (11..13).map(|handle| enter(handle).1).collect();
        assert_eq!(pushed, [None, None]);
        assert_eq!(enter(13).1, Some(10));
        assert_eq!(visits.authenticated(first), None, "it was pushed out");
        assert_eq!(visits.authenticated(first + 1), Some(11));
        assert_eq!(visits.admit(ip("192.0.2.1"), 14).unwrap().evicted, None);
        assert_eq!(visits.admit(ip("192.0.2.1"), 15).unwrap().evicted, Some(12), "what is known stays");
    }
}
