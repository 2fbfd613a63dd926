//! Whether work grows with the number of servers and clients: processor time of the gateway for each registration, each client
//! that opens a session and each server that goes and comes, at 1 000 links and at many; and how late `/health` is while half
//! of the links drop at once. Loopback only; each phase has a bounded count and time.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    links::Link,
    memory::WIDE,
    process::{self, Watched},
    stage,
};

/// What the figures are compared with.
const BASE: usize = 1000;
/// Links of one run: both ends of all connections are within 20 000 descriptors of each process.
const MOST: usize = 12_000;
/// Tools of each server.
const TOOLS: usize = 10;
/// Servers that go and come.
const CHURN: usize = 200;
/// A phase takes no longer.
const PHASE: Duration = Duration::from_secs(180);
/// Links are heard of this often: the gateway gives up one that is silent for 45 s.
const PONG: Duration = Duration::from_secs(8);
/// `/health` is asked for so long after the drop.
const AFTER: Duration = Duration::from_secs(3);

/// Figures at one size: microseconds of processor time for each event, and milliseconds of the worst answer.
struct Figures {
    links: usize,
    clients: usize,
    register: f64,
    open: f64,
    churn: f64,
    health: f64,
}

/// Measures at 1 000 links and at `most`, and prints both with their ratios.
pub fn run(binary: &Path, most: usize) -> Outcome<()> {
    process::raise_limits()?;
    let base = measure(binary, BASE)?;
    let large = measure(binary, most.clamp(BASE, MOST))?;
    println!("links  clients  register us  open us  churn us  worst /health ms");
    for Figures { links, clients, register, open, churn, health } in [&base, &large] {
        println!("{links:5}  {clients:7}  {register:11.0}  {open:7.0}  {churn:8.0}  {health:16.1}");
    }
    let ratios = [large.register / base.register, large.open / base.open, large.churn / base.churn];
    println!("ratio           {:11.2}  {:7.2}  {:8.2}", ratios[0], ratios[1], ratios[2]);
    Ok(())
}

/// Registered links, which are heard of as long as a phase takes.
struct Links {
    all: Vec<Link>,
    heard: Instant,
    begun: Instant,
}

impl Links {
    /// Between two events: keeps the links alive.
    fn look(&mut self) -> Outcome<()> {
        if self.begun.elapsed() > PHASE {
            return Err(format!("a phase takes longer than {} s", PHASE.as_secs()).into());
        }
        if self.heard.elapsed() > PONG {
            self.heard = Instant::now();
            self.all.iter_mut().try_for_each(Link::pong)?;
        }
        Ok(())
    }
}

fn measure(binary: &Path, count: usize) -> Outcome<Figures> {
    let (gateway, port) = stage::gateway_with(binary, "scale gateway", None, &WIDE)?;
    let address = process::local(port);
    let watched = Watched { name: "gateway".into(), pids: vec![gateway.pid()] };
    // Processor time of each of so many events, in microseconds.
    let each = |events: usize, work: &mut dyn FnMut() -> Outcome<()>| -> Outcome<f64> {
        let before = watched.cpu()?;
        work()?;
        // What follows from the last event belongs to it.
        thread::sleep(Duration::from_millis(700));
        let spent = watched.cpu()?.since(&before);
        Ok((spent.user + spent.system) / events as f64)
    };
    let now = Instant::now();
    let mut links = Links { all: Vec::with_capacity(count), heard: now, begun: now };
    let register = each(count, &mut || {
        for number in 0..count {
            links.all.push(Link::register_with(address, &format!("box-{number}"), TOOLS)?);
            links.look()?;
        }
        Ok(())
    })?;
    links.begun = Instant::now();
    let mut clients = Vec::new();
    let open = each(count / 2, &mut || {
        for _ in 0..count / 2 {
            clients.push(client(address)?);
            links.look()?;
        }
        Ok(())
    })?;
    links.begun = Instant::now();
    let churn = each(CHURN, &mut || {
        for number in 0..CHURN {
            drop(links.all.swap_remove(number % count));
            links.all.push(Link::register_with(address, &format!("new-{number}"), TOOLS)?);
            links.look()?;
        }
        Ok(())
    })?;
    let health = health(address, || links.all.truncate(count / 2))?;
    Ok(Figures { links: count, clients: clients.len(), register, open, churn, health })
}

/// A session that listens, on one connection.
fn client(address: SocketAddr) -> Outcome<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PHASE))?;
    let body = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"b\",\"version\":\"1\"}}}";
    write!(
        socket,
        "POST /mcp HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let head = head(&mut socket)?;
    let field = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let length = field("content-length:").ok_or_else(|| format!("no length: {head}"))?.parse::<usize>()?;
    socket.read_exact(&mut vec![0; length])?;
    let session = field("mcp-session-id:").ok_or_else(|| format!("no session: {head}"))?;
    write!(
        socket,
        "GET /mcp HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\nMcp-Session-Id: {session}\r\n\r\n"
    )?;
    self::head(&mut socket)?;
    Ok(socket)
}

fn head(socket: &mut TcpStream) -> Outcome<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8(head)?;
    if head.starts_with("HTTP/1.1 200") { Ok(head) } else { Err(head.into()) }
}

/// The worst answer of `/health` in milliseconds while something happens, and for a while after it.
fn health(address: SocketAddr, happens: impl FnOnce()) -> Outcome<f64> {
    let over = Arc::new(AtomicBool::new(false));
    let ending = over.clone();
    let asking = thread::spawn(move || -> Result<f64, String> {
        let mut worst = Duration::ZERO;
        while !ending.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let mut answer = String::new();
            let asked = TcpStream::connect(address).and_then(|mut socket| {
                write!(socket, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
                socket.read_to_string(&mut answer)
            });
            asked.map_err(|error| error.to_string())?;
            if !answer.starts_with("HTTP/1.1 200") {
                return Err(answer);
            }
            worst = worst.max(begun.elapsed());
            thread::sleep(Duration::from_millis(2));
        }
        Ok(worst.as_secs_f64() * 1000.0)
    });
    thread::sleep(Duration::from_millis(100));
    happens();
    thread::sleep(AFTER);
    over.store(true, Ordering::Relaxed);
    Ok(asking.join().map_err(|_| "the thread that asks panicked")??)
}
