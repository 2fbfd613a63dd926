//! Listening sockets, and an accept loop that neither ends nor spins when descriptors run out.
//!
//! Sockets are configured by hand, because the standard library cannot choose between IPv6 alone and dual stack.
//! What is accepted is a plain [`Stream`]; the TLS handshake is a matter for the connection's own task, see `tls`.

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
    util,
};

/// Opens the listening sockets for `--host` and `--port`. With `port` 0 the system chooses one number for all of them.
///
/// Without a host, or with `localhost`: loopback, IPv4 and IPv6, or the one that the machine has. A name: every address of
/// it that the machine has. `::` takes IPv4 as well when `ipv6` is set, and IPv6 alone when not. Names are looked up here and
/// now, which may block.
///
/// # Errors
/// One line that names the address and the flag: the port is taken, or needs rights, or the address is not of this machine.
pub fn bind(host: Option<&str>, port: u16, ipv6: bool) -> Result<Vec<Listener>, FatalError> {
    let addresses = addresses(host, port)?;
    let mut tries = 1;
    loop {
        match bind_all(&addresses, ipv6) {
            Ok(listeners) => return Ok(listeners),
            // The number that is free in IPv4 was not so in IPv6: ask for another.
            Err((_, error))
                if port == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < limits::BIND_TRIES =>
            {
                tries += 1;
            }
            Err((address, error)) => return Err(refused(address, &error)),
        }
    }
}

/// The addresses that a host stands for.
fn addresses(host: Option<&str>, port: u16) -> Result<Vec<SocketAddr>, FatalError> {
    let host = host.unwrap_or_default().trim();
    if host.is_empty() || host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]);
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
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

/// Binds all addresses to one port number. Those that the machine does not have are left out as long as one is there.
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

/// One listening socket.
fn open(address: SocketAddr, ipv6: bool) -> io::Result<Listener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    // A restart must not wait for the old connections to leave TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // Said in both cases: the system's default differs between machines.
        sockopt::set_ipv6_v6only(&socket, !ipv6)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, limits::BACKLOG)?;
    let socket = AsyncFd::new(TcpListener::from(socket), IoInterest::Read)?;
    let local = socket.get_ref().local_addr()?;
    Ok(Listener { socket, local, backoff: AcceptBackoff::default() })
}

/// The machine has no such address, or not that family at all.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

/// Sees to it that this process may have so many descriptors, as far as the system lets it: the usual limit for a
/// program that does not ask is 1024, of which connections get what the rest leaves. Returns how many it may have.
pub fn allow_descriptors(needed: usize) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let needed = needed as u64;
    let Some(current) = current.filter(|current| *current < needed) else { return needed };
    let wanted = maximum.map_or(needed, |maximum| maximum.min(needed)).max(current);
    let limits = Rlimit { current: Some(wanted), maximum };
    if setrlimit(Resource::Nofile, limits).is_ok() { wanted } else { current }
}

/// Why an address could not be bound, for the user.
fn refused(address: SocketAddr, error: &io::Error) -> FatalError {
    let port = address.port();
    FatalError::run(match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("cannot listen on {address}: port {port} is in use; choose another with --port")
        }
        io::ErrorKind::PermissionDenied => {
            format!("cannot listen on {address}: port {port} needs more rights; choose another with --port")
        }
        _ if is_missing(error) => {
            format!("cannot listen on {address}: this machine does not have that address; see --host")
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
    /// Where it listens, with the port that the system chose.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Waits for a connection, whatever goes wrong meanwhile: failures are logged, and followed by pauses of 1 ms to 1 s.
    /// Dropping the future loses no connection.
    pub async fn accept(&mut self) -> Stream {
        loop {
            match poll_fn(|context| self.socket.poll_in(context, |socket| socket.accept())).await {
                Ok((socket, _)) => {
                    self.backoff.worked();
                    // An error here is a peer that left while it waited: there is nothing to serve.
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

/// How long to pause after failed accepts, and when to speak of them.
#[derive(Debug, Default)]
struct AcceptBackoff {
    pause: Duration,
    throttle: LogThrottle,
}

impl AcceptBackoff {
    /// An accept worked: the next failure starts with a short pause again.
    fn worked(&mut self) {
        self.pause = Duration::ZERO;
    }

    /// An accept failed: the pause to make, and what was left out of the log, if it is time for a line.
    fn failed(&mut self, now: Instant) -> (Duration, Option<LeftOut>) {
        self.pause = (self.pause * 2).clamp(limits::ACCEPT_PAUSE_FIRST, limits::ACCEPT_PAUSE_LONGEST);
        (self.pause, self.throttle.due(now, "accept", "", limits::LOG_WARNINGS))
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
    fn pauses_double_and_reset() {
        let mut backoff = AcceptBackoff::default();
        let now = Instant::now();
        let pauses: Vec<u128> = (0..12).map(|_| backoff.failed(now).0.as_millis()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000]);
        backoff.worked();
        assert_eq!(backoff.failed(now).0.as_millis(), 1);
    }
}
