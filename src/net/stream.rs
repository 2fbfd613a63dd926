//! A plain or TLS connection as one type, without a trait object.
//!
//! Created by `listener` (plain) and `tls` (after the handshake); read and written through the
//! usual traits. A TLS write may return while bytes still wait in the session, so flush after the
//! last write.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_io::Async;
use futures_lite::{AsyncRead, AsyncWrite};
use futures_rustls::TlsStream;
use rustix::net::sockopt;

use super::timeout::{self, Elapsed};
use crate::{
    limits,
    runtime::{async_fd::AsyncFd, reactor::IoInterest},
};

/// A connected stream.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    peer: SocketAddr,
    local: SocketAddr,
}

/// The transport. The TLS variant is large and boxed, so that a plain connection does not pay for
/// it.
#[derive(Debug)]
enum Io {
    Tcp(TcpSocket),
    Tls(Box<TlsStream<TcpSocket>>),
}

/// A TCP connection.
pub type TcpSocket = AsyncFd<TcpStream>;

impl Stream {
    /// Wraps a connected socket. Small messages are sent at once (TCP_NODELAY), and the kernel
    /// detects a peer that vanished ([`limits::TCP_KEEP_ALIVE`], [`limits::TCP_UNACKNOWLEDGED`]).
    ///
    /// # Errors
    /// The system's error, for example if the peer is already gone.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        let (peer, local) = (canonical(socket.peer_addr()?), canonical(socket.local_addr()?));
        socket.set_nodelay(true)?;
        notice_dead_peer(&socket)?;
        Ok(Self { io: Io::Tcp(AsyncFd::new(socket, IoInterest::Both)?), peer, local })
    }

    /// Connects to an address.
    ///
    /// # Errors
    /// The system's error.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::tcp(Async::<TcpStream>::connect(address).await?.into_inner()?)
    }

    /// Connects to a name or an address (without brackets). The first address of a name that
    /// answers is used; the next one is tried after [`limits::DIAL_STAGGER`] or a failure, so IPv4
    /// is soon tried where IPv6 is advertised but does not work. Waits forever if no address
    /// answers or refuses.
    ///
    /// # Errors
    /// The name has no address, or the last connection error.
    pub async fn dial(host: &str, port: u16) -> io::Result<Self> {
        let addresses = addresses(host, port).await?;
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut addresses = addresses.into_iter();
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        loop {
            match addresses.next() {
                Some(address) => attempts.push(Box::pin(Self::connect(address))),
                None if attempts.is_empty() => return Err(failure),
                None => {}
            }
            let timeout = if addresses.len() > 0 { limits::DIAL_STAGGER } else { Duration::MAX };
            match timeout::within(timeout, poll_fn(|context| poll_any(&mut attempts, context))).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = error,
                Err(Elapsed) => {}
            }
        }
    }

    /// Wraps the plain socket in TLS: `handshake` turns the socket into a TLS session.
    pub(super) async fn secure<F>(self, handshake: impl FnOnce(TcpSocket) -> F) -> io::Result<Self>
    where
        F: Future<Output = io::Result<TlsStream<TcpSocket>>>,
    {
        let Io::Tcp(socket) = self.io else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "TLS within TLS"));
        };
        let io = Io::Tls(Box::new(handshake(socket).await?));
        Ok(Self { io, ..self })
    }

    /// Returns the peer's address. An IPv4 peer of a dual-stack socket is shown as IPv4.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Returns the local address, which the peer connected to.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether the connection uses TLS.
    pub fn is_tls(&self) -> bool {
        matches!(self.io, Io::Tls(_))
    }

    /// Whether the peer presented a client certificate. An invalid one would have failed the
    /// handshake.
    pub fn client_certified(&self) -> bool {
        match &self.io {
            Io::Tls(tls) => match &**tls {
                TlsStream::Server(server) => server.get_ref().1.peer_certificates().is_some(),
                TlsStream::Client(_) => false,
            },
            Io::Tcp(_) => false,
        }
    }

    /// Makes the next write try the socket even if the kernel has not reported it as writable; see
    /// [`AsyncFd::retry_write`].
    pub fn retry_write(&mut self) {
        match &mut self.io {
            Io::Tcp(tcp) => tcp.retry_write(),
            Io::Tls(tls) => tls.get_mut().0.retry_write(),
        }
    }

    /// Flushes, sends TLS `close_notify` and closes the sending direction, within `limit`.
    ///
    /// # Errors
    /// `TimedOut` if the peer does not read; otherwise the system's error. The stream must not be
    /// used any more in either case.
    pub async fn finish(&mut self, limit: Duration) -> io::Result<()> {
        timeout::within(limit, poll_fn(|context| Pin::new(&mut *self).poll_close(context))).await?
    }
}

/// Lets the kernel end a connection whose peer vanished: by keep-alive probes while nothing is
/// sent, and by the age of unacknowledged data otherwise. The system's defaults are two hours and
/// about 15 minutes.
fn notice_dead_peer(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_tcp_keepidle(socket, limits::TCP_KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(socket, limits::TCP_PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, limits::TCP_PROBES)?;
    let millis = u32::try_from(limits::TCP_UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, millis)?;
    Ok(sockopt::set_socket_keepalive(socket, true)?)
}

/// Resolves a name, or parses an address.
///
/// `localhost` is always this machine, whatever the system's tables say (RFC 6761, section 6.3).
/// Asking the system would also cost a thread, and 300 KiB in a program that needs no other name.
async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        let both: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        return Ok(both.map(|address| SocketAddr::new(address, port)).to_vec());
    }
    smol::net::resolve((host, port)).await
}

/// One of several concurrent connection attempts to the same host.
type Attempt = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

/// Polls all attempts. Removes the first one that completes and returns its result.
fn poll_any(attempts: &mut Vec<Attempt>, context: &mut Context<'_>) -> Poll<io::Result<Stream>> {
    for position in 0..attempts.len() {
        let Some(attempt) = attempts.get_mut(position) else { break };
        if let Poll::Ready(result) = attempt.as_mut().poll(context) {
            drop(attempts.swap_remove(position));
            return Poll::Ready(result);
        }
    }
    Poll::Pending
}

/// Converts an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) to the IPv4 address.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Io::Tls(tls) => Pin::new(tls).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Io::Tls(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(context, parts),
            Io::Tls(tls) => Pin::new(tls).poll_write_vectored(context, parts),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(tcp) => Pin::new(tcp).poll_flush(context),
            Io::Tls(tls) => Pin::new(tls).poll_flush(context),
        }
    }

    /// Closes the sending direction. Closing an `AsyncFd` does nothing, so the socket is shut down
    /// here.
    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = match &mut self.io {
            Io::Tcp(tcp) => tcp.get_ref(),
            Io::Tls(tls) => {
                ready!(Pin::new(&mut **tls).poll_close(context))?;
                tls.get_ref().0.get_ref()
            }
        };
        match socket.shutdown(Shutdown::Write) {
            // The peer has already closed the connection.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::runtime::executor;

    #[test]
    fn accepted_and_outgoing_sockets_notice_dead_peers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let outgoing = executor::run(1, async move { Stream::connect(address).await.unwrap() }).unwrap();
        let accepted = Stream::tcp(listener.accept().unwrap().0).unwrap();
        for stream in [&outgoing, &accepted] {
            let Io::Tcp(source) = &stream.io else { unreachable!() };
            let socket = source.get_ref();
            assert!(sockopt::socket_keepalive(socket).unwrap());
            assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), limits::TCP_KEEP_ALIVE);
            assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), limits::TCP_PROBE_EVERY);
            assert_eq!(sockopt::tcp_keepcnt(socket).unwrap(), limits::TCP_PROBES);
            let millis = sockopt::tcp_user_timeout(socket).unwrap();
            assert_eq!(Duration::from_millis(millis.into()), limits::TCP_UNACKNOWLEDGED);
        }
    }
}
