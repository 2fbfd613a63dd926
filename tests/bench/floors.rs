//! Baselines: the parts of a path through mcpport, each measured alone. These are calls to the
//! child over pipes, a POST answered directly by our HTTP server, and one round trip over our link.

use std::{
    collections::HashMap,
    env,
    io::{Read, Write},
    net::SocketAddr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use async_tungstenite::tungstenite::{handshake::client::generate_key, http::Request};
use mcpport::{
    budget::Budget,
    http::{conn::Step, response::Response, types::StatusCode, upgrade::Upgrade},
    limits::Limits,
    ndjson::Lines,
    net::{
        http_conn::HttpConnection,
        listener,
        outbound::Outbound,
        outbox::{self, Sender},
        stream::Stream,
        ws_link,
    },
    runtime::{executor, reactor},
    tunnel::{
        close::{CloseReason, LinkEnd},
        handler::LinkHandler,
    },
};

use crate::{
    Outcome,
    load::{Sample, Window},
    wire,
};

/// Returns a request as a client sends it.
fn message(id: u64) -> String {
    format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"echo\",\"arguments\":{{\"text\":\"<{id}>\"}}}}}}"
    )
}

/// Measures the latencies of calls within a window.
struct Clock {
    open: HashMap<u64, Instant>,
    last: u64,
    begin: Instant,
    end: Instant,
    latencies: Vec<u64>,
}

impl Clock {
    fn new(window: Window) -> Self {
        let begin = Instant::now() + window.warm;
        Self { open: HashMap::new(), last: 0, begin, end: begin + window.time, latencies: Vec::new() }
    }

    /// Returns the next request, or `None` after the end of the window.
    fn next(&mut self) -> Option<String> {
        let now = Instant::now();
        if now >= self.end {
            return None;
        }
        self.last += 1;
        self.open.insert(self.last, now);
        Some(message(self.last))
    }

    /// Checks and records a response.
    fn heard(&mut self, answer: &[u8]) -> Outcome<()> {
        let now = Instant::now();
        let id = wire::id_of(answer).ok_or("an answer without an id")?;
        let begun = self.open.remove(&id).ok_or("an answer to nothing")?;
        wire::find(answer, format!("\"<{id}>\"").as_bytes()).ok_or("a wrong answer")?;
        if now >= self.begin && now < self.end {
            self.latencies.push(u64::try_from((now - begun).as_nanos())?);
        }
        Ok(())
    }

    fn sample(mut self, window: Window) -> Sample {
        self.latencies.sort_unstable();
        let calls = self.latencies.len() as u64;
        let seconds = window.time.as_secs_f64();
        Sample { calls, all: self.last, seconds, latencies: self.latencies, spent: Vec::new() }
    }
}

/// Measures calls to a child over its pipes, with `in_flight` calls at a time.
pub fn pipe(in_flight: usize, window: Window) -> Outcome<Sample> {
    let mut child =
        Command::new(env::current_exe()?).arg("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let (mut lines, mut clock, mut out) = (Lines::new(1 << 20), Clock::new(window), Vec::new());
    while clock.open.len() < in_flight {
        out.extend(clock.next().ok_or("no time")?.bytes().chain(*b"\n"));
    }
    while !clock.open.is_empty() {
        stdin.write_all(&out)?;
        out.clear();
        let count = stdout.read(lines.space())?;
        if count == 0 {
            return Err("the echo server has ended".into());
        }
        lines.filled(count);
        while let Some(line) = lines.next_line()? {
            clock.heard(line)?;
            if let Some(text) = clock.next() {
                out.extend(text.bytes().chain(*b"\n"));
            }
        }
    }
    drop(stdin);
    child.wait()?;
    Ok(clock.sample(window))
}

/// Serves POSTs and links with the code of the gateway; echoes every body and every frame.
pub fn serve(port: u16) -> Outcome<()> {
    let mut listeners = listener::bind(Some("127.0.0.1"), port, false).map_err(|fault| fault.to_string())?;
    let mut listener = listeners.pop().ok_or("no address")?;
    executor::run(1, async move {
        loop {
            let stream = listener.accept().await;
            executor::spawn_guarded(
                async {
                    let _ = serve_link(stream).await;
                },
                || (),
            );
        }
    })?;
    Ok(())
}

async fn serve_link(stream: Stream) -> std::io::Result<()> {
    let limits = Limits::default();
    let (_switch, stopped) = mcpport::runtime::shutdown::shutdown();
    let mut web = HttpConnection::new(stream, &limits.http, stopped.clone(), stopped);
    loop {
        let response = match web.advance().await? {
            Step::Request(request) => {
                if let Ok(upgrade) = Upgrade::check(&request) {
                    return echo_link(web, &upgrade, &limits).await;
                }
                web.conn.take_body(Instant::now(), &mut web.out);
                match web.advance().await? {
                    Step::Body => Response::new(StatusCode::Ok).json(web.conn.body()),
                    _ => return Ok(()),
                }
            }
            Step::Refuse(response) => response,
            _ => {
                web.finish().await;
                return Ok(());
            }
        };
        web.answer(&response);
    }
}

async fn echo_link(web: HttpConnection, upgrade: &Upgrade, limits: &Limits) -> std::io::Result<()> {
    let (stream, leftover) = web.upgrade(upgrade).await?;
    let account = Budget::new(limits.memory.bytes).account();
    let socket = ws_link::accepted(stream, leftover, &account, &limits.link).await;
    let (sender, receiver) = outbox::bounded(limits.link.queue_messages, limits.link.queue_bytes);
    ws_link::drive(socket, &mut Outbound::new(receiver), &mut Echo(sender), None, &limits.link).await;
    Ok(())
}

/// Sends every frame back.
struct Echo(Sender<CloseReason>);

impl LinkHandler for Echo {
    fn frame(&mut self, _: Instant, text: &str) -> Result<(), CloseReason> {
        self.0.send(text.to_owned()).map_err(|_| CloseReason::new(1013, "too fast"))
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: Instant) -> Result<(), CloseReason> {
        Ok(())
    }
}

/// Measures round trips over a link, with `in_flight` frames at a time.
pub fn link(address: SocketAddr, in_flight: usize, window: Window) -> Outcome<Sample> {
    let limits = Limits::default().link;
    let (sender, receiver) = outbox::bounded(limits.queue_messages, limits.queue_bytes);
    let request = Request::builder()
        .uri(format!("ws://{address}/"))
        .header("Host", address.to_string())
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .body(())?;
    let mut asking = Asking { clock: Clock::new(window), sender, failure: None };
    while asking.clock.open.len() < in_flight {
        let text = asking.clock.next().ok_or("no time")?;
        asking.sender.send(text).map_err(|_| "the queue is full")?;
    }
    let ended = reactor::block_on(async {
        let stream = Stream::connect(address).await?;
        let socket = ws_link::upgrade(stream, request, &limits).await?;
        Outcome::Ok(ws_link::drive(socket, &mut Outbound::new(receiver), &mut asking, None, &limits).await)
    })??;
    match (ended, asking.failure) {
        (LinkEnd::ByUs(_), None) => Ok(asking.clock.sample(window)),
        (_, Some(why)) => Err(why.into()),
        (ended, None) => Err(ended.to_string().into()),
    }
}

/// Sends the next request after each response.
struct Asking {
    clock: Clock,
    sender: Sender<CloseReason>,
    failure: Option<String>,
}

impl LinkHandler for Asking {
    fn frame(&mut self, _: Instant, text: &str) -> Result<(), CloseReason> {
        if let Err(why) = self.clock.heard(text.as_bytes()) {
            self.failure = Some(why.to_string());
            return Err(CloseReason::new(1008, "a wrong answer"));
        }
        match self.clock.next() {
            Some(text) => self.sender.send(text).map_err(|_| CloseReason::new(1013, "too fast")),
            None if self.clock.open.is_empty() => Err(CloseReason::new(1000, "done")),
            None => Ok(()),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self, _: Instant) -> Result<(), CloseReason> {
        Ok(())
    }
}

/// Measures the time from the start of a child to its response to `initialize`.
pub fn child_start() -> Outcome<Duration> {
    let begun = Instant::now();
    let mut child =
        Command::new(env::current_exe()?).arg("echo").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    stdin.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{}}\n")?;
    let mut answer = [0; 4096];
    let count = child.stdout.take().ok_or("no stdout")?.read(&mut answer)?;
    let time = begun.elapsed();
    drop(stdin);
    child.wait()?;
    if count > 0 { Ok(time) } else { Err("the echo server has ended".into()) }
}
