//! Times from a start to the first use, and from a cut link to the next successful call.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{
    Outcome,
    args::Args,
    floors,
    load::Target,
    process::{self, Program},
    stage,
    stats::{median, tidy},
    wire::Wire,
};

/// Timeout of every step.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Measures each time repeatedly; returns the medians in milliseconds.
pub fn measure(args: &Args) -> Outcome<Map<String, Value>> {
    let (many, few) = if args.quick { (5, 1) } else { (20, 5) };
    let mut found = Map::new();
    let mut put = |name: &str, times: Vec<f64>| {
        found.insert(format!("{name}_ms"), json!(median(times).map(tidy)));
    };
    let times = |count: usize, one: &mut dyn FnMut() -> Outcome<Duration>| -> Outcome<Vec<f64>> {
        (0..count).map(|_| one().map(|time| time.as_secs_f64() * 1000.0)).collect()
    };
    put("gateway_ready", times(many, &mut || ready(&args.binary))?);
    put("child_start", times(many, &mut floors::child_start)?);
    let (_gateway, port) = stage::gateway(&args.binary, "gateway of times", None)?;
    put("tool_listed", times(many, &mut || tool_listed(&args.binary, port))?);
    put("link_back", times(few, &mut || link_back(&args.binary, port))?);
    Ok(found)
}

/// Measures the time from exec to an answered request.
fn ready(binary: &Path) -> Outcome<Duration> {
    let port = process::free_port()?;
    let request = format!("GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n");
    let mut command = Command::new(binary);
    command.args(["gateway", "--host", "127.0.0.1", "--port", &port.to_string()]);
    let begun = Instant::now();
    let _gateway = Program::start("gateway that starts", &mut command)?;
    loop {
        if let Ok(mut socket) = TcpStream::connect(process::local(port)) {
            socket.write_all(request.as_bytes())?;
            let mut answer = [0; 12];
            socket.read_exact(&mut answer)?;
            return if &answer == b"HTTP/1.1 200" { Ok(begun.elapsed()) } else { Err("not healthy".into()) };
        }
        if begun.elapsed() > TIMEOUT {
            return Err("the gateway does not start".into());
        }
        thread::sleep(Duration::from_micros(100));
    }
}

/// A session for polling with repeated requests.
struct Asking {
    wire: Wire,
    head: String,
    target: Target,
}

impl Asking {
    fn open(port: u16) -> Outcome<Self> {
        let target = stage::mcp_target(port, None);
        let (wire, head, _) = process::session(&target)?;
        Ok(Self { wire, head, target })
    }

    /// Repeats a request until the response contains `wanted`; returns the time since `begun`.
    fn until(&mut self, message: &str, wanted: &str, begun: Instant) -> Outcome<Duration> {
        loop {
            let (head, body) = self.wire.post(&self.head, message)?;
            if String::from_utf8_lossy(&body).contains(wanted) {
                return Ok(begun.elapsed());
            }
            if head.close {
                self.wire = Wire::open_ready(&self.target)?;
            }
            if begun.elapsed() > TIMEOUT {
                return Err(format!("{wanted} does not come").into());
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

const LIST: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}";
const CALL: &str = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"echo_echo\",\"arguments\":{\"text\":\"back\"}}}";

/// Measures the time from the start of a register program until its tool is listed.
fn tool_listed(binary: &Path, port: u16) -> Outcome<Duration> {
    let mut asking = Asking::open(port)?;
    let begun = Instant::now();
    let register = stage::register(binary, "register that starts", port, None, &[])?;
    let time = asking.until(LIST, "\"echo_echo\"", begun)?;
    drop(register);
    // The next measurement must not find this one's tool.
    process::eventually("the tool is gone", || {
        process::tools(&asking.target).ok().filter(|tools| !tools.contains("echo_echo"))
    })?;
    Ok(time)
}

/// Measures the time from a cut of the link to the next successful call.
fn link_back(binary: &Path, port: u16) -> Outcome<Duration> {
    let line = Line::open(port)?;
    let _register = stage::register(binary, "register that is cut", line.port, None, &[])?;
    let mut asking = Asking::open(port)?;
    asking.until(CALL, "\"back\"", Instant::now())?;
    let begun = Instant::now();
    line.cut();
    // The old connection is closed: a successful response used a new one.
    asking.until(CALL, "\"back\"", begun)
}

/// A TCP proxy between two programs that can cut its connections.
struct Line {
    port: u16,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Line {
    /// Listens, and forwards all bytes. The threads run until this program exits.
    fn open(to: u16) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, ends) = (listener.local_addr()?.port(), Arc::new(Mutex::new(Vec::new())));
        let held = ends.clone();
        thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let Ok(far) = TcpStream::connect(process::local(to)) else { continue };
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
                    thread::spawn(move || pass(from, to));
                }
                held.extend([near, far]);
            }
        });
        Ok(Self { port, ends })
    }

    /// Cuts all connections; new ones are possible at once.
    fn cut(&self) {
        for end in self.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Both);
}
