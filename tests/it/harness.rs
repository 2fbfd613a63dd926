//! Runs the real programs as a user would: each in its own process, on ports chosen by the system,
//! with its stderr collected continuously. Dropping one kills it and all its descendants.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read},
    net::SocketAddr,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags, open},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::{directory, wire::Client};

/// Timeout for every wait; longer than any step takes on a slow, busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);
const MARK: &str = "IT_MARK";

/// The output of a program so far.
#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

/// Returns the program under test: `MCPPORT_BIN`, or the one built with the tests.
pub fn binary() -> PathBuf {
    env::var_os("MCPPORT_BIN").map_or_else(|| env!("CARGO_BIN_EXE_mcpport").into(), PathBuf::from)
}

/// A running `mcpport`.
pub struct Program {
    child: Child,
    said: Arc<Said>,
    stdout: Arc<Said>,
    mark: String,
}

/// How a program exited.
#[derive(Debug)]
pub struct End {
    pub code: Option<i32>,
    pub stderr: Vec<String>,
}

impl End {
    /// Returns the lines of stderr that are not log lines: the error message.
    pub fn complaint(&self) -> Vec<&str> {
        let is_log = |line: &str| ["[DEBUG]", "[INFO]", "[WARN]", "[ERROR]"].iter().any(|l| line.contains(l));
        self.stderr.iter().map(String::as_str).filter(|line| !is_log(line)).collect()
    }
}

impl Program {
    /// Starts `mcpport` with these arguments.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// Same as `start`, with environment variables.
    pub fn start_in(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        Self::spawn(arguments, variables, Stdio::null())
    }

    /// Same as `start_in`, with the address space limited to `addresses` KiB.
    pub fn start_within(arguments: &[&str], variables: &[(&str, &str)], addresses: usize) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -v {addresses}; exec \"$0\" \"$@\"")]).arg(binary());
        let mut child = Self::child_of(shell, arguments, variables, Stdio::null());
        let said = Said::read(child.0.stderr.take().unwrap());
        Self::of(child, said)
    }

    /// Same as `start`, with this stdin.
    pub fn start_on(arguments: &[&str], stdin: Stdio) -> Self {
        Self::spawn(arguments, &[], stdin)
    }

    /// Same as `start`, but returns stderr to the test, which may leave it unread.
    pub fn start_unread(arguments: &[&str]) -> (Self, BufReader<ChildStderr>) {
        let mut child = Self::child(arguments, &[], Stdio::null());
        let stderr = BufReader::new(child.0.stderr.take().unwrap());
        (Self::of(child, Said::read(io::empty())), stderr)
    }

    /// Same as `start_on`, but run by `wrapper`: a program and its arguments, followed by the
    /// command.
    pub fn start_under(wrapper: &[&str], arguments: &[&str], stdin: Stdio) -> Self {
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(binary());
        let mut child = Self::child_of(command, arguments, &[], stdin);
        let said = Said::read(child.0.stderr.take().unwrap());
        Self::of(child, said)
    }

    fn spawn(arguments: &[&str], variables: &[(&str, &str)], stdin: Stdio) -> Self {
        let mut child = Self::child(arguments, variables, stdin);
        let said = Said::read(child.0.stderr.take().unwrap());
        Self::of(child, said)
    }

    /// Returns a process, and the mark in the environment that identifies its descendants.
    fn child(arguments: &[&str], variables: &[(&str, &str)], stdin: Stdio) -> (Child, String) {
        Self::child_of(Command::new(binary()), arguments, variables, stdin)
    }

    fn child_of(
        mut command: Command,
        arguments: &[&str],
        variables: &[(&str, &str)],
        stdin: Stdio,
    ) -> (Child, String) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        // Remove the variables that configure the tests (MCPPORT_SEEDS): the program would reject
        // them.
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("MCP")) {
            command.env_remove(name);
        }
        command.args(arguments).envs(variables.iter().copied()).env(MARK, &mark);
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        (command.spawn().unwrap(), mark)
    }

    fn of((mut child, mark): (Child, String), said: Arc<Said>) -> Self {
        let stdout = Said::read(child.stdout.take().unwrap());
        Self { child, said, stdout, mark }
    }

    /// Runs the program until it exits.
    #[track_caller]
    pub fn finish(arguments: &[&str]) -> End {
        Self::start(arguments).ended()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line of stderr that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_nth(text, 1)
    }

    /// Waits for the `nth` line of stderr that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for_nth(&self, text: &str, nth: usize) -> String {
        self.said.wait(text, nth)
    }

    /// Waits for the first line of stdout that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) -> String {
        self.stdout.wait(text, 1)
    }

    /// Returns all of stderr so far.
    pub fn log(&self) -> String {
        self.said.lock().0.join("\n")
    }

    /// Returns all of stdout so far.
    pub fn output(&self) -> String {
        self.stdout.lock().0.join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until the program exits and its stderr is closed.
    #[track_caller]
    pub fn ended(&mut self) -> End {
        let child = &mut self.child;
        let mut status = None;
        eventually("the program ends", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        let mut lines = self.said.lock();
        let deadline = Instant::now() + TIMEOUT;
        while !lines.1 && Instant::now() < deadline {
            lines = self.said.more.wait_timeout(lines, Duration::from_secs(1)).unwrap().0;
        }
        End { code: status.code(), stderr: lines.0.clone() }
    }

    /// Sends SIGTERM and waits for the exit.
    #[track_caller]
    pub fn stop(&mut self) -> End {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Sends SIGKILL and waits for the exit.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// Whether the program is running.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Returns the live descendants of the program, including orphaned ones.
    pub fn offspring(&self) -> Vec<u32> {
        let wanted = format!("{MARK}={}", self.mark);
        let ids = fs::read_dir("/proc").unwrap().flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| {
            let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            *id != self.pid() && environment.split(|byte| *byte == 0).any(|one| one == wanted.as_bytes())
        })
        .collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in self.offspring() {
            if let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        if thread::panicking() {
            eprintln!("--- stderr of process {}:\n{}", self.pid(), self.log());
        }
    }
}

impl Said {
    /// Ignores poisoning, so that a test that panicked while holding the lock does not hide its own
    /// error.
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(pipe: impl Read + Send + 'static) -> Arc<Self> {
        let said = Arc::new(Self::default());
        let ours = said.clone();
        thread::spawn(move || {
            let mut lines = BufReader::new(pipe);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                ours.lock().0.push(text);
                ours.more.notify_all();
                line.clear();
            }
            ours.lock().1 = true;
            ours.more.notify_all();
        });
        said
    }

    #[track_caller]
    fn wait(&self, text: &str, nth: usize) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut lines = self.lock();
        loop {
            if let Some(line) = lines.0.iter().filter(|line| line.contains(text)).nth(nth - 1) {
                return line.clone();
            }
            let (said, ended) = &*lines;
            assert!(!ended && Instant::now() < deadline, "no line with {text:?} in:\n{}", said.join("\n"));
            lines = self.more.wait_timeout(lines, Duration::from_secs(1)).unwrap().0;
        }
    }
}

/// Sends SIGKILL to a process.
pub fn kill(id: u32) {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// Waits until `condition` holds, which another process brings about.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A running gateway and its address.
pub struct Gateway {
    pub program: Program,
    pub address: SocketAddr,
}

impl Gateway {
    /// Starts a gateway on a free port.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(arguments, &[])
    }

    /// Same as `start`, with environment variables.
    #[track_caller]
    pub fn start_in(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let program = Program::start_in(&[&["gateway", "--port", "0"], arguments].concat(), variables);
        let address = listening(&program);
        Self { program, address }
    }

    /// Same as `start`, with the address space limited to `addresses` KiB.
    #[track_caller]
    pub fn start_within(arguments: &[&str], addresses: usize) -> Self {
        // By default, glibc reserves 64 MiB of address space for each thread; the static build does
        // not.
        let variables = [("MALLOC_ARENA_MAX", "1")];
        let arguments = [&["gateway", "--port", "0"], arguments].concat();
        let program = Program::start_within(&arguments, &variables, addresses);
        let address = listening(&program);
        Self { program, address }
    }

    /// Starts a new gateway at the same address.
    #[track_caller]
    pub fn again(&self, arguments: &[&str]) -> Self {
        let port = self.address.port().to_string();
        let program = Program::start(&[&["gateway", "--port", &port], arguments].concat());
        program.wait_for("listening on");
        Self { program, address: self.address }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/mcp/register", self.address)
    }

    /// Returns a client after `initialize`.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::ready(self.address, &[])
    }

    /// Registers a fake server and waits until its tools are listed.
    #[track_caller]
    pub fn edge(&self, name: &str) -> Edge {
        self.edge_with(name, &[], &[])
    }

    /// Same as `edge`, with arguments for the fake server and for `register`.
    #[track_caller]
    pub fn edge_with(&self, name: &str, server: &[&str], register: &[&str]) -> Edge {
        let edge = Edge::start(&self.url(), name, server, register);
        self.program.wait_for(&format!("server '{name}' offers"));
        edge
    }
}

/// Waits for a gateway to listen and returns its address; for a wildcard address, the IPv4
/// loopback.
#[track_caller]
pub fn listening(program: &Program) -> SocketAddr {
    let line = program.wait_for("listening on ");
    let address = line.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    let mut address: SocketAddr = address.parse().unwrap();
    if address.ip().is_unspecified() {
        address.set_ip([127, 0, 0, 1].into());
    }
    address
}

/// A `register` program with a fake server.
pub struct Edge {
    pub program: Program,
    log: PathBuf,
}

impl Edge {
    /// Starts one without waiting for the registration, which may fail.
    pub fn start(url: &str, name: &str, server: &[&str], register: &[&str]) -> Self {
        Self::start_in(url, name, server, register, &[])
    }

    /// Same as `start`, with environment variables.
    pub fn start_in(
        url: &str,
        name: &str,
        server: &[&str],
        register: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let log = directory("fake").join("log");
        let command = command(&log, server);
        let fixed = ["register", "--stdio", &command, "--gateway-url", url, "--server-name", name];
        let program = Program::start_in(&[&fixed, register].concat(), variables);
        Self { program, log }
    }

    /// Returns the lines that the server has read so far.
    pub fn got(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Waits for the first line read by the server that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        let mut found = None;
        eventually(&format!("the server reads {text:?}"), || {
            found = self.got().into_iter().find(|line| line.contains(text));
            found.is_some()
        });
        found.unwrap()
    }

    /// Returns the number of lines read by the server that contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.got().iter().filter(|line| line.contains(text)).count()
    }

    /// Returns the process id of the server.
    #[track_caller]
    pub fn server_pid(&self) -> u32 {
        self.nth_server_pid(1)
    }

    /// Waits for the `nth` start of the server, and returns its process id.
    #[track_caller]
    pub fn nth_server_pid(&self, nth: usize) -> u32 {
        self.program.wait_for_nth("started, pid", nth).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

/// Returns the command line of the fake server.
pub fn command(log: &Path, arguments: &[&str]) -> String {
    format!("'{}' --log '{}' {}", fake_server().display(), log.display(), arguments.join(" "))
}

/// Returns the path of the fake server, an example of this package that `cargo test` builds.
pub fn fake_server() -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_mcpport"));
    let server = binary.parent().unwrap().join("examples/fake-server");
    assert!(server.exists(), "cargo build --example fake-server (cargo test does it by itself)");
    server
}

/// Returns both ends of a pseudoterminal.
pub fn terminal() -> (OwnedFd, OwnedFd) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let terminal = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (controller, terminal)
}
