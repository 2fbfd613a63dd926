//! Connection limits: in total, per address, and for connections that are not yet authenticated.
//!
//! Does no I/O. The gateway's accept loop asks for admission before it serves a connection, and
//! releases the connection when it ends. A connection is *unauthenticated* until it sends a request
//! that is accepted. The number of these is limited, and one more evicts the oldest. Silent peers
//! therefore never keep others out, however many connect, since a peer that sends a request is
//! authenticated within milliseconds.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::{limits::HttpLimits, util::address::ClientAddress};

/// The reason why a connection is rejected.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// The limit on all connections is reached.
    Full,
    /// The limit on connections from this address is reached.
    Address,
}

/// An admitted connection.
#[derive(Debug)]
pub struct Admitted<H> {
    /// Its number, never reused.
    pub number: u64,
    /// The unauthenticated connection that must be closed to make room.
    pub evicted: Option<H>,
}

/// Counts open connections and enforces their limits. `H` is a handle that closes a connection.
#[derive(Debug)]
pub struct ConnectionLimiter<H> {
    last: u64,
    open: usize,
    /// Connections from loopback. They have a limit of their own, since a proxy on this machine
    /// connects on behalf of many clients.
    loopback: usize,
    addresses: HashMap<ClientAddress, usize>,
    /// Unauthenticated connections by number, so in the order of arrival.
    unauthenticated: BTreeMap<u64, H>,
    limits: HttpLimits,
}

impl<H> ConnectionLimiter<H> {
    /// Creates a limiter without connections.
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

    /// Admits a connection from an address. [`ConnectionLimiter::release`] must be called when it
    /// ends.
    ///
    /// # Errors
    /// [`Rejection`], with the limit that is reached. A rejected connection must not be released.
    pub fn admit(&mut self, from: IpAddr, handle: H) -> Result<Admitted<H>, Rejection> {
        if self.open >= self.limits.connections {
            return Err(Rejection::Full);
        }
        let (count, max) = self.count(from);
        if *count >= max {
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

    /// Marks a connection as authenticated, so that it is never evicted. Returns its handle for the
    /// caller to keep, or `None` if it was authenticated or evicted before.
    pub fn authenticated(&mut self, number: u64) -> Option<H> {
        self.unauthenticated.remove(&number)
    }

    /// Releases a connection that has ended.
    pub fn release(&mut self, number: u64, from: IpAddr) {
        self.unauthenticated.remove(&number);
        self.open = self.open.saturating_sub(1);
        let (count, _) = self.count(from);
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.addresses.remove(&ClientAddress::of(from));
        }
    }

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Returns the number of addresses that connections come from. Loopback counts as one address.
    pub fn addresses(&self) -> usize {
        self.addresses.len() + usize::from(self.loopback > 0)
    }

    /// Returns the number of connections from this address, and its limit.
    fn count(&mut self, from: IpAddr) -> (&mut usize, usize) {
        if from.is_loopback() {
            return (&mut self.loopback, self.limits.connections_from_loopback);
        }
        (self.addresses.entry(ClientAddress::of(from)).or_default(), self.limits.connections_per_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(
        connections: usize,
        per_address: usize,
        loopback: usize,
        unauthenticated: usize,
    ) -> ConnectionLimiter<u64> {
        ConnectionLimiter::new(&HttpLimits {
            connections,
            connections_per_address: per_address,
            connections_from_loopback: loopback,
            connections_unauthenticated: unauthenticated,
            ..HttpLimits::default()
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_counted_by_subscriber() {
        let mut limiter = limiter(100, 2, 3, 100);
        let mut admit = |from: &str| limiter.admit(ip(from), 0).map(|_| ()).err();
        for from in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "127.0.0.1"] {
            assert_eq!(admit(from), None, "{from}");
        }
        assert_eq!(admit("2001:db8::ffff:2"), None);
        assert_eq!(admit("2001:db8::3"), Some(Rejection::Address), "the same network");
        assert_eq!((admit("127.0.0.2"), admit("::1")), (None, None));
        assert_eq!(admit("127.0.0.3"), Some(Rejection::Address));
        assert_eq!(admit("192.0.2.1"), None);
        assert_eq!(admit("192.0.2.1"), Some(Rejection::Address));
        assert_eq!(limiter.addresses(), 5);
    }

    #[test]
    fn released_permits_are_available_again() {
        let mut limiter = limiter(2, 2, 2, 2);
        let first = limiter.admit(ip("192.0.2.1"), 0).unwrap().number;
        let second = limiter.admit(ip("192.0.2.1"), 0).unwrap().number;
        assert_eq!(limiter.admit(ip("192.0.2.9"), 0).unwrap_err(), Rejection::Full);
        assert_eq!(limiter.authenticated(second), Some(0));
        for number in [first, second] {
            limiter.release(number, ip("192.0.2.1"));
        }
        assert_eq!((limiter.len(), limiter.addresses(), limiter.unauthenticated.len()), (0, 0, 0));
    }

    #[test]
    fn the_oldest_unauthenticated_connection_is_evicted() {
        let mut limiter = limiter(100, 100, 100, 3);
        let mut admit = |handle| {
            let admitted = limiter.admit(ip("192.0.2.1"), handle).unwrap();
            (admitted.number, admitted.evicted)
        };
        let (first, _) = admit(10);
        let pushed: Vec<_> = (11..13).map(|handle| admit(handle).1).collect();
        assert_eq!(pushed, [None, None]);
        assert_eq!(admit(13).1, Some(10));
        assert_eq!(limiter.authenticated(first), None, "it was pushed out");
        assert_eq!(limiter.authenticated(first + 1), Some(11));
        assert_eq!(limiter.admit(ip("192.0.2.1"), 14).unwrap().evicted, None);
        assert_eq!(limiter.admit(ip("192.0.2.1"), 15).unwrap().evicted, Some(12), "what is known stays");
    }
}
