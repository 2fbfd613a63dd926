//! Programs under measurement: started, observed through `/proc`, and killed with all their
//! descendants.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

use crate::{
    Outcome,
    load::{Target, Transport},
    wire::Wire,
};

/// Timeout for starting a program.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time to exit before SIGKILL.
const GRACE: Duration = Duration::from_secs(3);
/// One clock tick of processor time in `/proc/PID/stat`: 10 ms on all current Linux systems.
const TICK_NANOS: u64 = 10_000_000;

/// A running program; dropping it ends it.
pub struct Program {
    child: Child,
}

impl Program {
    /// Starts a command. Its output goes to a log file with this name.
    pub fn start(name: &str, command: &mut Command) -> Outcome<Self> {
        let log = directory("logs")?.join(format!("{name}.log"));
        let child =
            command.stdin(Stdio::null()).stdout(File::create(&log)?).stderr(File::create(&log)?).spawn();
        let child = child.map_err(|error| format!("{name} cannot be started: {error}"))?;
        Ok(Self { child })
    }

    /// Starts this benchmark binary in another role.
    pub fn role(name: &str, arguments: &[&str]) -> Outcome<Self> {
        Self::start(name, Command::new(env::current_exe()?).args(arguments))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program is running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Returns the process and its descendants, without the echo servers.
    pub fn tree(&self) -> Vec<u32> {
        let own = env::current_exe().unwrap_or_default();
        let mut all = self.offspring();
        all.retain(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let program = words.next().unwrap_or_default();
            !(program == own.as_os_str().as_encoded_bytes() && words.next() == Some(b"echo"))
        });
        all
    }

    /// Returns the process and its descendants.
    fn offspring(&self) -> Vec<u32> {
        let parents = parents();
        let mut all = vec![self.pid()];
        let mut place = 0;
        while let Some(parent) = all.get(place).copied() {
            all.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            place += 1;
        }
        all
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let all = self.offspring();
        signal(self.pid(), Signal::TERM);
        let end = Instant::now() + GRACE;
        while self.is_running() && Instant::now() < end {
            thread::sleep(Duration::from_millis(2));
        }
        // Read the table again, since process ids may have been reused.
        let left: Vec<u32> =
            parents().into_iter().map(|(pid, _)| pid).filter(|pid| all.contains(pid)).collect();
        if self.is_running() {
            left.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        }
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Returns all process ids with their parents.
fn parents() -> Vec<(u32, u32)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, stat(pid)?.get(1)?.parse().ok()?))).collect()
}

/// Returns the fields of `/proc/PID/stat`, from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Processes whose processor time counts as that of one program.
#[derive(Clone, Debug)]
pub struct Watched {
    pub name: String,
    pub pids: Vec<u32>,
}

impl Watched {
    /// Returns the processor time used so far.
    pub fn cpu(&self) -> Outcome<Cpu> {
        let mut all = Cpu::default();
        for pid in &self.pids {
            let fields = stat(*pid).ok_or_else(|| format!("{} has ended", self.name))?;
            let ticks = |place: usize| fields.get(place).map_or(Ok(0), |text| text.parse::<u64>());
            all.user += ticks(11)?;
            all.system += ticks(12)?;
            all.nanos += nanos(*pid);
        }
        Ok(all)
    }
}

/// Returns the processor time of all live threads, as counted by the scheduler; 0 if the kernel
/// does not report it.
fn nanos(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let times = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    times.sum()
}

/// Processor time: ticks in user and system mode, and the sum in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    user: u64,
    system: u64,
    nanos: u64,
}

/// Processor time between two measurements, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    /// Takes the total from the nanosecond counter, and divides it in the ratio of the tick
    /// counters.
    pub fn since(&self, earlier: &Self) -> Spent {
        let user = self.user.saturating_sub(earlier.user);
        let system = self.system.saturating_sub(earlier.system);
        let ticks = user + system;
        let nanos = self.nanos.saturating_sub(earlier.nanos);
        // Only the tick counters include threads that have ended in between.
        let coarse = ticks.saturating_sub(2) * TICK_NANOS;
        let total = if nanos < coarse { ticks * TICK_NANOS } else { nanos } as f64 / 1000.0;
        let share = if ticks == 0 { 0.5 } else { user as f64 / ticks as f64 };
        Spent { user: total * share, system: total * (1.0 - share) }
    }
}

/// Returns resident memory in KiB: the total, and the part that is not mapped from files.
pub fn memory(pid: u32) -> Outcome<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or_else(|| format!("no {name}"))
    };
    Ok((field("VmRSS:")?, field("RssAnon:")?))
}

/// Returns a directory for files of the benchmark, below `target/bench`.
pub fn directory(name: &str) -> Outcome<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Returns a port that is free now.
pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Returns the loopback address with this port.
pub fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Raises the limit of open files to the maximum, also for programs started later.
pub fn raise_limits() -> Outcome<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Waits until `look` returns a value.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Outcome<T> {
    let end = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(format!("it takes too long until {what}").into());
        }
        thread::sleep(Duration::from_micros(500));
    }
}

/// Waits until a port accepts connections.
pub fn listening(port: u16) -> Outcome<()> {
    eventually(&format!("port {port} is open"), || {
        std::net::TcpStream::connect_timeout(&local(port), Duration::from_secs(1)).ok()
    })
    .map(|_| ())
}

/// Returns the tool list of a Streamable HTTP endpoint.
pub fn tools(target: &Target) -> Outcome<String> {
    let (mut wire, head, _) = session(target)?;
    let (_, body) = wire.post(&head, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/list\"}")?;
    Ok(String::from_utf8(body)?)
}

/// Opens a Streamable HTTP session: a connection, the head of further POSTs, and the session id.
pub fn session(target: &Target) -> Outcome<(Wire, String, String)> {
    debug_assert_eq!(target.transport, Transport::Mcp);
    let client = crate::load::Client::open(target)?;
    let session = client.session.ok_or("no session")?;
    Ok((Wire::open_ready(target)?, client.head, session))
}
