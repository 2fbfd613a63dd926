//! A connection that fails on command: a TCP relay on loopback whose connections can be frozen,
//! slowed, cut and half-closed while they run. It has its own thread, and its connections end with
//! it.

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};
use smol::{Async, LocalExecutor, Timer, future, io::AsyncReadExt, io::AsyncWriteExt};

/// A direction.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the connecting side to the target: from an edge to its gateway.
    Up,
    /// The opposite direction.
    Down,
}

impl Way {
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// The switches and their effects.
#[derive(Default)]
struct Switches {
    /// Nothing is read and nothing is written, by direction.
    frozen: [bool; 2],
    /// One byte at a time, at this interval.
    drip: [Option<Duration>; 2],
    /// New connections are reset.
    refuses: bool,
    /// Bytes that the sockets may buffer.
    window: Option<usize>,
    /// Number of times that all connections were cut. A connection that began before ends.
    cuts: u64,
    /// Number of times that a direction was closed, in the same way.
    closings: [u64; 2],
    over: bool,
    /// Connections accepted so far.
    taken: u64,
    /// Open connections.
    open: usize,
    waiting: Vec<Waker>,
}

struct Shared {
    switches: Mutex<Switches>,
    /// Bytes forwarded, by direction.
    bytes: [AtomicU64; 2],
    target: SocketAddr,
}

/// A relay on its own port.
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Forwards connections to this address.
    pub fn to(target: SocketAddr) -> Self {
        Self::start(target, None)
    }

    /// The same with small socket buffers, so that a sender soon notices a frozen relay.
    pub fn narrow(target: SocketAddr, window: usize) -> Self {
        Self::start(target, Some(window))
    }

    fn start(target: SocketAddr, window: Option<usize>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        if let Some(window) = window {
            // Connections inherit the options of the listener.
            set_socket_recv_buffer_size(&listener, window).unwrap();
        }
        let address = listener.local_addr().unwrap();
        let switches = Mutex::new(Switches { window, ..Switches::default() });
        let shared = Arc::new(Shared { switches, bytes: Default::default(), target });
        let ours = shared.clone();
        let thread = thread::spawn(move || {
            let executor = LocalExecutor::new();
            let accepting = accept(Async::new(listener).unwrap(), &executor, &ours);
            let over = ours.until(|switches| switches.over);
            smol::block_on(executor.run(future::or(accepting, over)));
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// The URL at which an edge registers through the relay.
    pub fn url(&self) -> String {
        format!("ws://{}/mcp/register", self.address)
    }

    /// Stops a direction: bytes stay with the sender, as far as its buffers hold them.
    pub fn freeze(&self, way: Way) {
        self.shared.change(|switches| switches.frozen[way as usize] = true);
    }

    /// Resumes a direction.
    pub fn thaw(&self, way: Way) {
        self.shared.change(|switches| switches.frozen[way as usize] = false);
    }

    /// Forwards one byte at this interval, in one direction.
    pub fn drip(&self, way: Way, pause: Duration) {
        self.shared.change(|switches| switches.drip[way as usize] = Some(pause));
    }

    /// Resets all switches, for present and future connections.
    pub fn restore(&self) {
        self.shared.change(|switches| {
            (switches.frozen, switches.drip, switches.refuses) = ([false; 2], [None; 2], false);
        });
    }

    /// Resets all connections, towards both ends.
    pub fn cut(&self) {
        self.shared.change(|switches| switches.cuts += 1);
    }

    /// Ends one direction of all connections: the receiver reads the end, and later bytes of the
    /// sender are dropped.
    pub fn close(&self, way: Way) {
        self.shared.change(|switches| switches.closings[way as usize] += 1);
    }

    /// Resets new connections at once, or stops doing so.
    pub fn refuse(&self, refuses: bool) {
        self.shared.change(|switches| switches.refuses = refuses);
    }

    /// Returns the bytes forwarded in a direction.
    pub fn passed(&self, way: Way) -> u64 {
        self.shared.bytes[way as usize].load(Ordering::Relaxed)
    }

    /// Returns the number of connections accepted so far, without those reset at once.
    pub fn taken(&self) -> u64 {
        self.shared.lock().taken
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.shared.lock().open
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.change(|switches| switches.over = true);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || !matches!(ended, Some(Err(_))), "the relay panicked");
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Switches)) {
        let waiting = {
            let mut switches = self.lock();
            change(&mut switches);
            std::mem::take(&mut switches.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Waits until the switches allow it.
    async fn until(&self, wanted: impl Fn(&Switches) -> bool) {
        poll_fn(|context| {
            let mut switches = self.lock();
            if wanted(&switches) {
                return Poll::Ready(());
            }
            if !switches.waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                switches.waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    async fn thawed(&self, way: Way) {
        self.until(|switches| !switches.frozen[way as usize]).await;
    }
}

async fn accept<'a>(listener: Async<TcpListener>, executor: &LocalExecutor<'a>, shared: &'a Arc<Shared>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        if shared.lock().refuses {
            reset(&near);
            continue;
        }
        let mut begun = (0, [0; 2]);
        shared.change(|switches| {
            (switches.taken, switches.open) = (switches.taken + 1, switches.open + 1);
            begun = (switches.cuts, switches.closings);
        });
        executor.spawn(connection(shared, near, begun)).detach();
    }
}

/// One connection from its beginning, at these counts of cuts and closings, to its end.
async fn connection(shared: &Shared, near: Async<TcpStream>, (cuts, closings): (u64, [u64; 2])) {
    let cut = || async {
        shared.until(|switches| switches.cuts > cuts).await;
        io::Error::from(io::ErrorKind::ConnectionReset)
    };
    match future::or(Async::<TcpStream>::connect(shared.target), async { Err(cut().await) }).await {
        Ok(far) => {
            let carried = carry(shared, &near, &far, closings);
            // A failure on one side becomes one on the other.
            if future::or(carried, async { Err(cut().await) }).await.is_err() {
                [&near, &far].into_iter().for_each(reset);
            }
        }
        Err(_) => reset(&near),
    }
    drop(near);
    shared.change(|switches| switches.open -= 1);
}

async fn carry(
    shared: &Shared,
    near: &Async<TcpStream>,
    far: &Async<TcpStream>,
    closings: [u64; 2],
) -> io::Result<()> {
    let window = shared.lock().window;
    for socket in [near, far] {
        socket.get_ref().set_nodelay(true)?;
        window.map_or(Ok(()), |window| set_socket_recv_buffer_size(socket.get_ref(), window))?;
    }
    let up = pump(shared, Way::Up, near, far, closings[0]);
    let down = pump(shared, Way::Down, far, near, closings[1]);
    future::try_zip(up, down).await.map(|_| ())
}

/// Makes the end of this socket a reset.
fn reset(socket: &Async<TcpStream>) {
    let _ = set_socket_linger(socket.get_ref(), Some(Duration::ZERO));
}

/// Forwards one direction to its end.
async fn pump(
    shared: &Shared,
    way: Way,
    mut from: &Async<TcpStream>,
    to: &Async<TcpStream>,
    closings: u64,
) -> io::Result<()> {
    let closed = || shared.until(|switches| switches.closings[way as usize] > closings);
    let running = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            shared.thawed(way).await;
            let count = from.read(&mut buffer).await?;
            shared.thawed(way).await;
            if count == 0 {
                return Ok(false);
            }
            pass(shared, way, to, &buffer[..count]).await?;
        }
    };
    let was_closed = async {
        closed().await;
        io::Result::Ok(true)
    };
    let was_closed = future::or(was_closed, running).await?;
    // The other end may have disconnected meanwhile.
    let _ = to.get_ref().shutdown(Shutdown::Write);
    let mut nowhere = [0; 1024];
    while was_closed && from.read(&mut nowhere).await? > 0 {}
    Ok(())
}

async fn pass(shared: &Shared, way: Way, mut to: &Async<TcpStream>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        shared.thawed(way).await;
        let drip = shared.lock().drip[way as usize];
        let now = if drip.is_some() { 1 } else { bytes.len() };
        to.write_all(&bytes[..now]).await?;
        shared.bytes[way as usize].fetch_add(now as u64, Ordering::Relaxed);
        bytes = &bytes[now..];
        if let Some(pause) = drip {
            let change = shared.until(|switches| switches.drip[way as usize] != drip);
            let time = async {
                Timer::after(pause).await;
            };
            future::or(change, time).await;
        }
    }
    Ok(())
}

mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::{harness::eventually, wire::tcp};

    /// Both ends of a connection through a relay.
    fn line(relay: impl FnOnce(SocketAddr) -> Relay) -> (Relay, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = relay(listener.local_addr().unwrap());
        let near = tcp(relay.address);
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
        (relay, near, far)
    }

    fn read(mut from: &TcpStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        from.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_pass_and_are_counted() {
        let (relay, mut near, mut far) = line(Relay::to);
        near.write_all(b"question").unwrap();
        assert_eq!(read(&far, 8), b"question");
        far.write_all(b"answer").unwrap();
        assert_eq!(read(&near, 6), b"answer");
        // A byte is counted after it is forwarded, so its reader may see the old count.
        eventually("all is counted", || (relay.passed(Way::Up), relay.passed(Way::Down)) == (8, 6));
        assert_eq!(relay.taken(), 1);
        drop(near);
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "the end is forwarded, too");
        drop(far);
        eventually("the connection is over", || relay.open() == 0);
    }

    #[test]
    fn a_frozen_direction_waits_and_the_other_runs() {
        let (relay, mut near, mut far) = line(Relay::to);
        relay.freeze(Way::Up);
        near.write_all(b"late").unwrap();
        far.write_all(b"still here").unwrap();
        assert_eq!(read(&near, 10), b"still here");
        assert_eq!(relay.passed(Way::Up), 0);
        relay.thaw(Way::Up);
        assert_eq!(read(&far, 4), b"late");
    }

    #[test]
    fn a_frozen_narrow_relay_buffers_little() {
        let (relay, near, far) = line(|target| Relay::narrow(target, 4096));
        relay.freeze(Way::Up);
        set_socket_recv_buffer_size(&far, 4096).unwrap();
        near.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&near, 4096).unwrap();
        let (mut sent, bytes) = (0, [0; 4096]);
        eventually("the line is full", || match (&near).write(&bytes) {
            Ok(count) => {
                sent += count;
                false
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        });
        assert!(sent < 256 * 1024, "{sent} bytes went into a line that is frozen");
    }

    #[test]
    fn dripping_delays_bytes_and_loses_none() {
        let (relay, mut near, far) = line(Relay::to);
        relay.drip(Way::Up, Duration::from_millis(1));
        near.write_all(b"drop by drop").unwrap();
        assert_eq!(read(&far, 12), b"drop by drop");
        relay.drip(Way::Up, Duration::from_secs(3600));
        near.write_all(b"and the rest").unwrap();
        assert_eq!(read(&far, 1), b"a");
        relay.restore();
        assert_eq!(read(&far, 11), b"nd the rest");
    }

    #[test]
    fn a_cut_is_a_reset_for_both() {
        let (relay, mut near, mut far) = line(Relay::to);
        near.write_all(b"x").unwrap();
        read(&far, 1);
        relay.freeze(Way::Down);
        relay.cut();
        for end in [&mut near, &mut far] {
            assert_eq!(end.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
        eventually("the connection is over", || relay.open() == 0);
        relay.restore();
        assert_eq!(relay.taken(), 1);
    }

    #[test]
    fn one_half_is_closed_and_the_other_runs() {
        let (relay, mut near, mut far) = line(Relay::to);
        relay.close(Way::Up);
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
        near.write_all(b"into the void").unwrap();
        far.write_all(b"heard").unwrap();
        assert_eq!(read(&near, 5), b"heard");
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn refused_connections_are_reset() {
        let (relay, _near, _far) = line(Relay::to);
        relay.refuse(true);
        let mut refused = tcp(relay.address);
        assert_eq!(refused.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!((relay.taken(), relay.open()), (1, 1));
    }

    #[test]
    fn dropping_the_relay_closes_its_connections() {
        let (relay, mut near, mut far) = line(Relay::to);
        drop(relay);
        for end in [&mut near, &mut far] {
            assert!(matches!(end.read(&mut [0]), Ok(0) | Err(_)));
        }
    }
}
