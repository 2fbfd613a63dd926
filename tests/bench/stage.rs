//! The measured programs, and the paths to reach them.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use futures_rustls::{
    pki_types::{CertificateDer, pem::PemObject},
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

use crate::{
    Outcome, floors,
    load::{self, Sample, Shape, Target, Transport, Window},
    peers,
    process::{self, Program, Watched},
};

/// Name under which the echo server registers.
pub const SERVER: &str = "echo";
/// The peer with a tunnel, as named by `scripts/bench-peers.sh`.
pub const TUNNEL: &str = "python-mcpport";

/// The role of a path in the comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Floor,
    Path,
    Peer,
}

/// A path to the echo server.
pub struct Subject {
    pub name: String,
    pub kind: Kind,
    pub how: How,
    pub shapes: Vec<Shape>,
    /// Name of each program in the report, and its index in `Stage::programs`.
    pub watched: Vec<(String, usize)>,
}

/// The way to send calls.
pub enum How {
    Pipe,
    Link(SocketAddr),
    Http(Target),
}

/// All programs and all paths.
pub struct Stage {
    pub programs: Vec<Program>,
    pub subjects: Vec<Subject>,
    pub plain: Target,
    /// Indexes of the gateway and of the register program without TLS.
    pub pair: (usize, usize),
}

/// Shapes with small results.
pub const SMALL: [Shape; 3] = [shape(1, 1, 0), shape(8, 1, 0), shape(32, 4, 0)];
/// Shapes with large results.
const LARGE: [Shape; 2] = [shape(1, 1, 64 << 10), shape(1, 1, 1 << 20)];

const fn shape(clients: usize, in_flight: usize, bytes: usize) -> Shape {
    Shape { clients, in_flight, bytes }
}

impl Shape {
    /// Returns the name in the table.
    pub fn name(&self) -> String {
        let Self { clients, in_flight, bytes } = self;
        match bytes {
            0 => format!("{clients}x{in_flight}"),
            1..0x10_0000 => format!("{} KiB", bytes >> 10),
            _ => format!("{} MiB", bytes >> 20),
        }
    }
}

/// A certificate directory, and a client configuration that trusts it.
pub struct Tls {
    files: PathBuf,
    config: Arc<ClientConfig>,
}

impl Tls {
    /// Creates the certificates unless they exist. `None` if this machine cannot create them.
    pub fn new() -> Outcome<Option<Self>> {
        let files = process::directory("certs")?;
        if !files.join("server.crt").exists() {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/generate-certs.sh");
            let made = Command::new("bash").arg(script).arg("--output").arg(&files).output()?;
            if !made.status.success() {
                return Ok(None);
            }
        }
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(files.join("ca.crt"))?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = builder
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Some(Self { files, config: Arc::new(config) }))
    }

    fn file(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }
}

/// Returns the command of the echo server.
pub fn echo_command() -> Outcome<String> {
    Ok(format!("'{}' echo", env::current_exe()?.display()))
}

/// Starts a gateway on a free port.
pub fn gateway(binary: &Path, name: &str, tls: Option<&Tls>) -> Outcome<(Program, u16)> {
    gateway_with(binary, name, tls, &[])
}

/// Same as `gateway`, with further flags.
pub fn gateway_with(binary: &Path, name: &str, tls: Option<&Tls>, more: &[&str]) -> Outcome<(Program, u16)> {
    let port = process::free_port()?;
    let mut command = Command::new(binary);
    command.args(["gateway", "--host", "127.0.0.1", "--port", &port.to_string()]);
    if let Some(tls) = tls {
        let (key, certificate) = (tls.file("server.key"), tls.file("server.crt"));
        command.args(["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate]);
    }
    let program = Program::start(name, command.args(more))?;
    process::listening(port)?;
    Ok((program, port))
}

/// Starts a register program with the echo server.
pub fn register(binary: &Path, name: &str, port: u16, tls: Option<&Tls>, more: &[&str]) -> Outcome<Program> {
    let scheme = if tls.is_some() { "wss" } else { "ws" };
    let url = format!("{scheme}://localhost:{port}/mcp/register");
    let mut command = Command::new(binary);
    command.args(["register", "--stdio", &echo_command()?, "--gateway-url", &url, "--server-name", SERVER]);
    if let Some(tls) = tls {
        command.args(["--ssl-ca-cert", &tls.file("ca.crt")]);
    }
    Program::start(name, command.args(more))
}

/// Returns the Streamable HTTP endpoint for all servers.
pub fn mcp_target(port: u16, tls: Option<&Tls>) -> Target {
    Target {
        address: process::local(port),
        tls: tls.map(|tls| tls.config.clone()),
        transport: Transport::Mcp,
        path: "/mcp".into(),
        prefix: format!("{SERVER}_"),
    }
}

/// Waits until the echo server's tools are listed.
pub fn listed(target: &Target) -> Outcome<()> {
    process::eventually("the tool is listed", || {
        process::tools(target).ok().filter(|tools| tools.contains("echo_echo"))
    })
    .map(|_| ())
}

impl Stage {
    /// Starts all programs.
    pub fn set(binary: &Path, tls: Option<&Tls>, peers: Option<&Path>) -> Outcome<Self> {
        let mut programs = Vec::new();
        let mut subjects = floors(&mut programs)?;
        let (plain, places) = pair(binary, None, &mut programs, &mut subjects)?;
        if tls.is_some() {
            pair(binary, tls, &mut programs, &mut subjects)?;
        }
        if let Some(file) = peers {
            for peer in peers::read(&fs::read_to_string(file)?)? {
                match peer.start(&mut programs) {
                    Ok(subject) => subjects.push(subject),
                    Err(why) => eprintln!("peer {} is left out: {why}", peer.name),
                }
            }
        }
        Ok(Self { programs, subjects, plain, pair: places })
    }

    /// Measures a path once.
    pub fn measure(&self, subject: &Subject, shape: Shape, window: Window) -> Outcome<Sample> {
        match &subject.how {
            How::Pipe => floors::pipe(shape.clients * shape.in_flight, window),
            How::Link(address) => floors::link(*address, shape.clients * shape.in_flight, window),
            How::Http(target) => load::run(target, shape, window, &self.watched(subject)),
        }
    }

    /// Returns the current processes of a subject.
    fn watched(&self, subject: &Subject) -> Vec<Watched> {
        let one = |(name, place): &(String, usize)| Watched {
            name: name.clone(),
            pids: self.programs.get(*place).map(Program::tree).unwrap_or_default(),
        };
        subject.watched.iter().map(one).collect()
    }
}

/// Starts the baselines.
fn floors(programs: &mut Vec<Program>) -> Outcome<Vec<Subject>> {
    let (web, bridge) = (process::free_port()?, process::free_port()?);
    programs.push(Program::role("floor", &["floor", &web.to_string()])?);
    process::listening(web)?;
    programs.push(Program::role("bridge", &["bridge", &bridge.to_string()])?);
    process::listening(bridge)?;
    let floor = |name: &str, how, shapes: &[Shape], watched: &[(&str, usize)]| Subject {
        name: name.into(),
        kind: Kind::Floor,
        how,
        shapes: shapes.to_vec(),
        watched: watched.iter().map(|(name, place)| ((*name).to_owned(), *place)).collect(),
    };
    let raw = |port| {
        How::Http(Target {
            address: process::local(port),
            tls: None,
            transport: Transport::Raw,
            path: "/".into(),
            prefix: String::new(),
        })
    };
    let ends = [SMALL[0], SMALL[2]];
    Ok(vec![
        floor("pipe", How::Pipe, &ends, &[]),
        floor("http", raw(web), &SMALL, &[("server", 0)]),
        floor("link", How::Link(process::local(web)), &ends, &[]),
        floor("bridge", raw(bridge), &[&SMALL[..], &LARGE[..]].concat(), &[("bridge", 1)]),
    ])
}

/// Starts a gateway and a register program, and returns the three endpoints.
fn pair(
    binary: &Path,
    tls: Option<&Tls>,
    programs: &mut Vec<Program>,
    subjects: &mut Vec<Subject>,
) -> Outcome<(Target, (usize, usize))> {
    let mark = if tls.is_some() { " TLS" } else { "" };
    let (program, port) = gateway(binary, &format!("gateway{mark}"), tls)?;
    programs.push(program);
    programs.push(register(binary, &format!("register{mark}"), port, tls, &[])?);
    let pair = (programs.len() - 2, programs.len() - 1);
    let target = mcp_target(port, tls);
    listed(&target)?;
    let own = format!("/servers/{SERVER}/mcp");
    let doors = [
        ("/mcp", Target { ..target.clone() }),
        ("/servers", Target { path: own, prefix: String::new(), ..target.clone() }),
        ("/sse", Target { path: "/sse".into(), transport: Transport::Sse, ..target.clone() }),
    ];
    for (name, target) in doors {
        let mut shapes = SMALL.to_vec();
        if name == "/mcp" {
            shapes.extend(LARGE);
        }
        subjects.push(Subject {
            name: format!("{name}{mark}"),
            kind: Kind::Path,
            how: How::Http(target),
            shapes,
            watched: vec![("gateway".into(), pair.0), ("register".into(), pair.1)],
        });
    }
    Ok((target, pair))
}
