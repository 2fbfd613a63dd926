//! Memory: idle, per idle client, link and isolated session, and its growth under load.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use crate::{
    Outcome,
    args::Args,
    links::Link,
    load::{self, Client, Shape, Target, Transport, Window},
    process::{self, Program, memory},
    stage::{self, Stage},
    stats::{median, tidy},
};

/// Number of sessions with their own process.
const ISOLATED: usize = 32;
/// Flags for a gateway with more clients and links than the default limits allow.
pub const WIDE: [&str; 8] = [
    "--max-connections",
    "20000",
    "--max-connections-per-address",
    "20000",
    "--max-links",
    "20000",
    "--max-client-sessions",
    "20000",
];
/// Number of measurements during the soak.
const LOOKS: u32 = 10;

/// Measures everything except growth.
pub fn measure(args: &Args) -> Outcome<Map<String, Value>> {
    let mut found = Map::new();
    let mut put = |name: &str, kib: f64| {
        found.insert(name.into(), json!(tidy(kib)));
    };
    let (gateway, port) = stage::gateway(&args.binary, "idle gateway", None)?;
    settle();
    put("gateway_idle_kib", resident(&gateway)?);
    put("gateway_idle_private_kib", private(&gateway)?);
    let register = stage::register(&args.binary, "idle register", port, None, &[])?;
    stage::listed(&stage::mcp_target(port, None))?;
    settle();
    put("register_idle_kib", resident(&register)?);
    put("register_idle_private_kib", private(&register)?);
    drop((register, gateway));
    put("idle_client_kib", clients(&args.binary, args.idle)?);
    put("idle_link_kib", links(&args.binary, args.idle)?);
    let (gateway, register) = isolated(&args.binary)?;
    put("isolated_session_gateway_kib", gateway);
    put("isolated_session_register_kib", register);
    Ok(found)
}

/// Waits until a program has finished its work after a response.
fn settle() {
    thread::sleep(Duration::from_millis(100));
}

/// Returns resident memory in KiB.
fn resident(program: &Program) -> Outcome<f64> {
    Ok(memory(program.pid())?.0 as f64)
}

fn private(program: &Program) -> Outcome<f64> {
    Ok(memory(program.pid())?.1 as f64)
}

/// Returns the gateway's memory in KiB per client that only listens on `/sse`.
fn clients(binary: &Path, count: usize) -> Outcome<f64> {
    let (gateway, port) = stage::gateway_with(binary, "wide gateway", None, &WIDE)?;
    let target = Target { path: "/sse".into(), transport: Transport::Sse, ..stage::mcp_target(port, None) };
    // The first clients pay for what all share.
    let mut held = (0..10).map(|_| Client::open(&target)).collect::<Outcome<Vec<_>>>()?;
    settle();
    let before = resident(&gateway)?;
    for _ in 0..count {
        held.push(Client::open(&target)?);
    }
    settle();
    Ok((resident(&gateway)? - before) / count as f64)
}

/// Returns the gateway's memory in KiB per idle link with one tool.
fn links(binary: &Path, count: usize) -> Outcome<f64> {
    let (gateway, port) = stage::gateway_with(binary, "wide gateway", None, &WIDE)?;
    let open = |number: usize| Link::register(process::local(port), &format!("edge-{number}"));
    let mut held = (0..10).map(open).collect::<Outcome<Vec<_>>>()?;
    settle();
    let before = resident(&gateway)?;
    for number in 0..count {
        held.push(open(10 + number)?);
    }
    settle();
    Ok((resident(&gateway)? - before) / count as f64)
}

/// Returns the memory of gateway and register in KiB per isolated session, without the session's
/// own process.
fn isolated(binary: &Path) -> Outcome<(f64, f64)> {
    let (gateway, port) = stage::gateway(binary, "isolating gateway", None)?;
    let more = ["--sessions", "isolated", "--max-sessions", "64"];
    let register = stage::register(binary, "isolating register", port, None, &more)?;
    let target = stage::mcp_target(port, None);
    stage::listed(&target)?;
    let mut held = vec![Session::open(&target)?];
    settle();
    let before = (resident(&gateway)?, resident(&register)?);
    for _ in 0..ISOLATED {
        held.push(Session::open(&target)?);
    }
    settle();
    let each = |after: f64, before: f64| (after - before) / ISOLATED as f64;
    Ok((each(resident(&gateway)?, before.0), each(resident(&register)?, before.1)))
}

/// A session that has made a call.
struct Session(#[allow(dead_code, reason = "the session lasts as long as it is held")] Client);

impl Session {
    fn open(target: &Target) -> Outcome<Self> {
        let client = Client::open(target)?;
        let call = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"echo_echo\",\"arguments\":{\"text\":\"mine\"}}}";
        let (_, body) = crate::wire::Wire::open_ready(target)?.post(&client.head, call)?;
        let body = String::from_utf8(body)?;
        if body.contains("mine") { Ok(Self(client)) } else { Err(body.into()) }
    }
}

/// Measures growth under load: KiB after the first fifth of the time, and at the end, each the
/// median of several measurements.
pub fn soak(stage: &Stage, time: Duration) -> Outcome<Map<String, Value>> {
    let shape = Shape { clients: 32, in_flight: 4, bytes: 0 };
    let pids = [stage.pair.0, stage.pair.1];
    let programs: Vec<&Program> = pids.iter().filter_map(|place| stage.programs.get(*place)).collect();
    let (mut seen, begun) = (vec![Vec::new(); programs.len()], Instant::now());
    for _ in 0..LOOKS {
        let window = Window { warm: Duration::ZERO, time: time / LOOKS };
        load::run(&stage.plain, shape, window, &[])?;
        for (seen, program) in seen.iter_mut().zip(&programs) {
            seen.push(resident(program)?);
        }
    }
    let mut found = Map::new();
    found.insert("seconds".into(), json!(begun.elapsed().as_secs()));
    for (name, seen) in ["gateway", "register"].iter().zip(seen) {
        let early = median(seen.iter().skip(1).take(2).copied().collect()).unwrap_or_default();
        let late = median(seen.iter().rev().take(2).copied().collect()).unwrap_or_default();
        found.insert(format!("{name}_early_kib"), json!(early));
        found.insert(format!("{name}_late_kib"), json!(late));
        found.insert(format!("{name}_growth_kib"), json!(late - early));
    }
    Ok(found)
}
