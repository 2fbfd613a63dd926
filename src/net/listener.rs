//! Listening sockets, and an accept loop that neither ends nor spins when file descriptors run out.
//!
//! Sockets are configured by hand, because the standard library cannot choose between IPv6-only and
//! dual stack. An accepted connection is a plain [`Stream`]; its own task performs the TLS
//! handshake, see `tls`.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use smol::Timer;

use super::stream::Stream;
use crate::{
    error::FatalError,
    limits,
    log_throttle::{LeftOut, LogThrottle},
    runtime::{async_fd::AsyncFd, reactor::IoInterest},
    util::{self, backoff},
};

/// Opens the listening sockets for `--host` and `--port`. If `port` is 0, the system chooses one
/// port number for all of them.
///
/// No host, or `localhost`, means the IPv4 and IPv6 loopback addresses, or the one that the machine
/// has. A name means all of its addresses that the machine has. `::` accepts IPv4 as well if `ipv6`
/// is set, and only IPv6 otherwise. Name lookups are synchronous and may block.
///
/// # Errors
/// One line that names the address and the flag: the port is in use or needs more privileges, or
/// the machine does not have the address.
pub fn bind(host: Option<&str>, port: u16, ipv6: bool) -> Result<Vec<Listener>, FatalError> {
    let addresses = addresses(host, port)?;
    let mut tries = 1;
    loop {
        match bind_all(&addresses, ipv6) {
            Ok(listeners) => return Ok(listeners),
            // The chosen port is free for one address but not for another: try a different one.
            Err((_, error))
                if port == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < limits::BIND_TRIES =>
            {
                tries += 1;
            }
            Err((address, error)) => return Err(refused(address, &error)),
        }
    }
}

/// Returns the addresses that `--host` stands for.
fn addresses(host: Option<&str>, port: u16) -> Result<Vec<SocketAddr>, FatalError> {
    let host = host.unwrap_or_default().trim();
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let bare = util::authority::unbracketed(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address.to_canonical(), port)]);
    }
    let unknown = |why: &str| {
        FatalError::usage(format!("--host {}: no address for this name ({why})", util::escape::show(host)))
    };
    let found = (bare, port).to_socket_addrs().map_err(|error| unknown(&error.to_string()))?;
    let mut all = Vec::new();
    for address in found {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    if all.is_empty() { Err(unknown("empty answer")) } else { Ok(all) }
}

/// Binds all addresses to one port. Skips addresses that the machine does not have, as long as it
/// has at least one.
fn bind_all(addresses: &[SocketAddr], ipv6: bool) -> Result<Vec<Listener>, (SocketAddr, io::Error)> {
    let mut listeners: Vec<Listener> = Vec::new();
    let mut missing = None;
    for address in addresses {
        let mut address = *address;
        if let Some(first) = listeners.first() {
            address.set_port(first.local.port());
        }
        match open(address, ipv6) {
            Ok(listener) => listeners.push(listener),
            Err(error) if is_missing(&error) => missing = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    match missing {
        Some(missing) if listeners.is_empty() => Err(missing),
        _ => Ok(listeners),
    }
}

/// Opens one listening socket.
fn open(address: SocketAddr, ipv6: bool) -> io::Result<Listener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // Lets a restarted process bind while old connections are still in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Set in both cases, because the system's default differs between machines.
        sockopt::set_ipv6_v6only(&socket, !ipv6)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, limits::BACKLOG)?;
    let socket = AsyncFd::new(TcpListener::from(socket), IoInterest::Read)?;
    let local = socket.get_ref().local_addr()?;
    Ok(Listener { socket, local, backoff: AcceptBackoff::default() })
}

/// Whether the machine lacks this address or the whole address family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

/// Raises this process's limit of open file descriptors to `needed`, as far as the hard limit
/// allows. The usual soft limit is 1024, which connections share with everything else. Returns the
/// resulting limit, or `needed` if that many were already allowed.
pub fn allow_descriptors(needed: usize) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = needed as u64;
    let Some(current) = current.filter(|current| *current < needed) else { return needed };
    let wanted = maximum.map_or(needed, |maximum| maximum.min(needed)).max(current);
    let limits = Rlimit { current: Some(wanted), maximum };
    if setrlimit(Resource::Nofile, limits).is_ok() { wanted } else { current }
}

/// Returns the error for an address that could not be bound.
fn refused(address: SocketAddr, error: &io::Error) -> FatalError {
    let port = address.port();
    FatalError::run(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address}: port {port} is in use; choose another with --port")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "cannot listen on {address}: permission denied for port {port}; choose another with --port"
            )
        }
        _ if is_missing(error) => {
            format!("cannot listen on {address}: not an address of this machine; see --host")
        }
        _ => format!("cannot listen on {address}: {error}; see --host and --port"),
    })
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<TcpListener>,
    local: SocketAddr,
    backoff: AcceptBackoff,
}

impl Listener {
    /// Returns the local address, with the actual port if the system chose it.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Waits for a connection. Failures are logged and followed by a pause of 1 ms to 1 s.
    /// Cancel-safe: dropping the future loses no connection.
    pub async fn accept(&mut self) -> Stream {
        loop {
            match poll_fn(|context| self.socket.poll_in(context, |socket| socket.accept())).await {
                Ok((socket, _)) => {
                    self.backoff.worked();
                    // An error means that the peer left before it was accepted: there is nothing to
                    // serve.
                    if let Ok(stream) = Stream::tcp(socket) {
                        return stream;
                    }
                }
                Err(error) => {
                    let (pause, due) = self.backoff.failed(Instant::now());
                    if let Some(left_out) = due {
                        let local = self.local;
                        log::warn!("cannot accept a connection on {local}: {error}{left_out}");
                    }
                    Timer::after(pause).await;
                }
            }
        }
    }
}

/// The pause after failed accepts, and the rate limit of their log lines.
#[derive(Debug, Default)]
struct AcceptBackoff {
    /// Since the last successful accept.
    failures: u32,
    throttle: LogThrottle,
}

impl AcceptBackoff {
    /// Records a successful accept: the next failure starts with a short pause again.
    fn worked(&mut self) {
        self.failures = 0;
    }

    /// Records a failed accept. Returns how long to pause, and, if a log line is due, how many
    /// lines were suppressed before it.
    fn failed(&mut self, now: Instant) -> (Duration, Option<LeftOut>) {
        let pause = backoff::doubled(limits::ACCEPT_PAUSE_FIRST, self.failures, limits::ACCEPT_PAUSE_LONGEST);
        self.failures = self.failures.saturating_add(1);
        (pause, self.throttle.due(now, "accept", "", limits::LOG_WARNINGS))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{AcceptBackoff, addresses};

    #[test]
    fn hosts() {
        let shown =
            |host| addresses(host, 7).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>());
        for host in [None, Some(""), Some("localhost"), Some("LocalHost")] {
            assert_eq!(shown(host).unwrap(), ["127.0.0.1:7", "[::1]:7"], "{host:?}");
        }
        for (host, expected) in [
            ("0.0.0.0", "0.0.0.0:7"),
            ("::", "[::]:7"),
            ("[::1]", "[::1]:7"),
            ("::ffff:127.0.0.1", "127.0.0.1:7"),
            (" 192.0.2.1 ", "192.0.2.1:7"),
        ] {
            assert_eq!(shown(Some(host)).unwrap(), [expected], "{host:?}");
        }
    }

    #[test]
    fn accept_delays_double_and_reset() {
        let mut backoff = AcceptBackoff::default();
        let now = Instant::now();
        let pauses: Vec<u128> = (0..12).map(|_| backoff.failed(now).0.as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        backoff.worked();
        assert_eq!(backoff.failed(now).0.as_millis(), 1);
    }
}
