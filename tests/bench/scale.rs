//! Whether the cost per event grows with the number of servers and clients. Measures the gateway's
//! processor time per registration, per client that opens a session, and per server replaced while
//! all clients are connected, at 1 000 links and at many; also the latency of `/health` while half
//! of the links drop at once. Loopback only; each phase is limited in count and time.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Outcome,
    links::Link,
    memory::WIDE,
    process::{self, Cpu, Program, Watched},
    stage,
    stats::median,
};

/// Number of links for comparison.
const BASE: usize = 1000;
/// Number of gateways measured with that many links, for the median: a few hundred milliseconds of
/// work are not precise.
const BASES: usize = 3;
/// Maximum number of links: both ends of all connections need fewer than 20 000 descriptors per
/// process.
const MOST: usize = 12_000;
/// Number of tools of each server.
const TOOLS: usize = 10;
/// Number of edges and clients that connect at a time.
const WORKERS: usize = 16;
/// One in this many servers is replaced.
const CHURN: usize = 10;
/// Duration of the churn at every size: with ten times as many servers, changes come ten times as
/// often.
const CHURN_TIME: Duration = Duration::from_secs(10);
/// Timeout of a phase.
const PHASE: Duration = Duration::from_secs(600);
/// Interval of pongs on each link: the gateway closes a link that is silent for 45 s.
const PONG: Duration = Duration::from_secs(20);
/// Time for work that follows the last event of a phase.
const SETTLE: Duration = Duration::from_millis(700);
/// The shortest resume window. The gateway waits a few seconds longer.
const WINDOW: [&str; 2] = ["--resume-window", "1"];
/// How long `/health` is measured after a drop: until the gateway has given up all links.
const AFTER: Duration = Duration::from_secs(10);
/// How long it is measured before the drop, to see the noise of the machine.
const QUIET: Duration = Duration::from_secs(3);
/// Pause between two measurements.
const LOOK: Duration = Duration::from_millis(2);
/// Maximum cost per event relative to the cost at 1 000 links.
const RATIO: f64 = 1.5;
/// Maximum latency of `/health` in milliseconds.
const LATEST: f64 = 100.0;

/// The slowest response of `/health`, and the most processor time of the gateway before one; in
/// milliseconds.
#[derive(Clone, Copy, Default)]
struct Late {
    wall: f64,
    cpu: f64,
}

/// The phases measured in processor time.
const COSTS: [&str; 3] = [
    "registration storm, CPU us for each link",
    "clients open, CPU us for each",
    "churn with all clients, CPU us for each change",
];

/// The figures at one size.
struct Figures {
    links: usize,
    clients: usize,
    /// Processor time per event in microseconds, in the order of [`COSTS`].
    costs: [f64; COSTS.len()],
    /// Resident memory in MiB, with all links and clients connected.
    memory: f64,
    quiet: Late,
    gone: Late,
    away: Late,
}

/// Measures at 1 000 links and at `max`, and prints both with their ratios.
pub fn run(binary: &Path, max: usize) -> Outcome<()> {
    process::raise_limits()?;
    let mut base = measure(binary, BASE, true)?;
    let mut more = vec![base.costs];
    for _ in 1..BASES {
        more.push(measure(binary, BASE, false)?.costs);
    }
    for (place, cost) in base.costs.iter_mut().enumerate() {
        *cost = median(more.iter().map(|costs| costs[place]).collect()).unwrap_or_default();
    }
    let large = measure(binary, max.clamp(BASE, MOST), true)?;
    let size = |figures: &Figures| format!("{} links, {} clients", figures.links, figures.clients);
    println!("{:<52} {:>25} {:>25}  ratio", "", size(&base), size(&large));
    let met = |is_met: bool| if is_met { "met" } else { "NOT MET" };
    for ((name, base), large) in COSTS.iter().zip(base.costs).zip(large.costs) {
        let ratio = large / base;
        println!("{name:<52} {base:>25.0} {large:>25.0} {ratio:>6.2} <= {RATIO} {}", met(ratio <= RATIO));
    }
    println!("{:<52} {:>25.0} {:>25.0}", "resident memory then, MiB", base.memory, large.memory);
    let shown = |late: Late| format!("{:.1} ({:.1} CPU)", late.wall, late.cpu);
    for (name, figure) in [
        ("half of the links drop for good: /health, worst ms", (|all| all.gone) as fn(&Figures) -> Late),
        ("half drop and are waited for, then given up: ms", |all| all.away),
    ] {
        let (base, large) = (figure(&base), figure(&large));
        let verdict = met(large.wall <= LATEST);
        println!("{name:<52} {:>25} {:>25}        <= {LATEST} {verdict}", shown(base), shown(large));
    }
    println!("{:<52} {:>25} {:>25}", "nothing happens: ms", shown(base.quiet), shown(large.quiet));
    Ok(())
}

/// A gateway under measurement.
struct Stage {
    gateway: Program,
    address: SocketAddr,
    watched: Watched,
}

impl Stage {
    fn set(binary: &Path) -> Outcome<Self> {
        let flags = [&WIDE[..], &WINDOW].concat();
        let (gateway, port) = stage::gateway_with(binary, "scale gateway", None, &flags)?;
        let watched = Watched { name: "gateway".into(), pids: vec![gateway.pid()] };
        Ok(Self { gateway, address: process::local(port), watched })
    }

    /// Returns the processor time per event, in microseconds.
    fn each(&self, what: &str, events: usize, work: impl FnOnce() -> Outcome<()>) -> Outcome<f64> {
        let (before, begun) = (self.watched.cpu()?, Instant::now());
        work().map_err(|error| format!("{what}: {error}"))?;
        let time = begun.elapsed().as_secs_f64();
        thread::sleep(SETTLE);
        let spent = spent(&before, &self.watched.cpu()?);
        eprintln!("{what}: {events} in {time:.1} s, {:.2} CPU s", spent / 1e6);
        Ok(spent / events as f64)
    }
}

/// Returns processor time in microseconds.
fn spent(before: &Cpu, after: &Cpu) -> f64 {
    let spent = after.since(before);
    spent.user + spent.system
}

/// Measures with `count` links. `late`: also drops them at the end.
fn measure(binary: &Path, count: usize, late: bool) -> Outcome<Figures> {
    let stage = Stage::set(binary)?;
    let address = stage.address;
    let mut links = Vec::new();
    let register = stage.each("links register", count, || {
        links = together(count, Duration::ZERO, Link::pong, |number| {
            // The first half supports resuming, so the gateway waits for it.
            Link::register_with(address, &format!("box-{number}"), TOOLS, number < count / 2)
        })?;
        Ok(())
    })?;
    let mut clients = Vec::new();
    let open = stage.each("clients open", count / 2, || {
        clients = alive(&mut links, || together(count / 2, Duration::ZERO, |_| Ok(()), |_| client(address)))?;
        Ok(())
    })?;
    let changes = count / CHURN;
    let leaving = links.split_off(count - changes);
    let leaving: Vec<_> = leaving.into_iter().map(|link| std::sync::Mutex::new(Some(link))).collect();
    let mut new = Vec::new();
    let churn = stage.each("servers go and come", changes, || {
        new = alive(&mut links, || {
            together(changes, CHURN_TIME, Link::pong, |number| {
                drop(leaving[number].lock().map(|mut link| link.take()));
                Link::register_with(address, &format!("new-{number}"), TOOLS, false)
            })
        })?;
        Ok(())
    })?;
    links.extend(new);
    let memory = process::memory(stage.gateway.pid())?.0 as f64 / 1024.0;
    let [quiet, gone, away] = if late {
        let quiet = health(&stage, QUIET, || ())?;
        let leaving = links.split_off(count / 2);
        let gone = health(&stage, AFTER, || drop(leaving))?;
        [quiet, gone, health(&stage, AFTER, || drop(links))?]
    } else {
        [Late::default(); 3]
    };
    let costs = [register, open, churn];
    Ok(Figures { links: count, clients: clients.len(), costs, memory, quiet, gone, away })
}

/// Creates `count` items, a few at a time, spread evenly over `time` if possible. Keeps the created
/// ones alive meanwhile.
fn together<T: Send>(
    count: usize,
    time: Duration,
    hear: impl Fn(&mut T) -> Outcome<()> + Sync,
    make: impl Fn(usize) -> Outcome<T> + Sync,
) -> Outcome<Vec<T>> {
    let (next, begun) = (AtomicUsize::new(0), Instant::now());
    let work = || -> Outcome<Vec<(usize, T)>> {
        let (mut made, mut heard) = (Vec::new(), Instant::now());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(made);
            }
            if begun.elapsed() > PHASE {
                return Err(format!("only {number} of {count} in {} s", PHASE.as_secs()).into());
            }
            let due = time.mul_f64(number as f64 / count as f64);
            thread::sleep(due.saturating_sub(begun.elapsed()));
            made.push((number, make(number)?));
            if heard.elapsed() > PONG {
                heard = Instant::now();
                made.iter_mut().try_for_each(|(_, one)| hear(one))?;
            }
        }
    };
    let work = || work().map_err(|error| error.to_string());
    let mut all = thread::scope(|scope| -> Outcome<Vec<(usize, T)>> {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for worker in workers {
            all.extend(worker.join().map_err(|_| "a worker panicked")??);
        }
        Ok(all)
    })?;
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, one)| one).collect())
}

/// Keeps links alive during `work`.
fn alive<T>(links: &mut [Link], work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let hearing = scope.spawn(|| -> Result<(), String> {
            // One by one, as real edges do not send at the same time.
            let (begun, count) = (Instant::now(), links.len());
            for turn in 0.. {
                let due = PONG.mul_f64(turn as f64 / count as f64);
                while begun.elapsed() < due {
                    if over.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    thread::sleep(LOOK);
                }
                links[turn % count].pong().map_err(|error| error.to_string())?;
            }
            Ok(())
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        hearing.join().map_err(|_| "the thread that keeps links alive panicked")??;
        done
    })
}

/// Opens a session that listens, on one connection.
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

/// Returns the worst response of `/health` during `happens` and for `after` afterwards.
fn health(stage: &Stage, after: Duration, happens: impl FnOnce()) -> Outcome<Late> {
    let over = AtomicBool::new(false);
    let ask = || -> Outcome<Late> {
        let mut late = Late::default();
        while !over.load(Ordering::Relaxed) {
            let (before, begun) = (stage.watched.cpu()?, Instant::now());
            let mut answer = String::new();
            let mut socket = TcpStream::connect(stage.address)?;
            write!(socket, "GET /health HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", stage.address)?;
            socket.read_to_string(&mut answer)?;
            late.wall = late.wall.max(begun.elapsed().as_secs_f64() * 1e3);
            late.cpu = late.cpu.max(spent(&before, &stage.watched.cpu()?) / 1e3);
            if !answer.starts_with("HTTP/1.1 200") {
                return Err(answer.into());
            }
            thread::sleep(LOOK);
        }
        Ok(late)
    };
    thread::scope(|scope| {
        let asking = scope.spawn(|| ask().map_err(|error| error.to_string()));
        thread::sleep(Duration::from_millis(100));
        happens();
        thread::sleep(after);
        over.store(true, Ordering::Relaxed);
        Ok(asking.join().map_err(|_| "the thread that asks panicked")??)
    })
}
