//! What was asked for, as plain data. `cli` fills it; the programs read it.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use crate::{
    command::CommandLine,
    limits::{self, Limits},
    secret::Secret,
};

/// What `mcpport gateway` was asked for.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Where to listen. Empty: loopback, IPv4 and IPv6.
    pub host: Option<String>,
    /// 0 lets the system choose.
    pub port: u16,
    /// An IPv6 wildcard also takes IPv4.
    pub ipv6: bool,
    /// Wait for a server's answer to anything but a tool call.
    pub timeout_rpc: Duration,
    /// Wait for a server's answer to a tool call.
    pub timeout_run_tool: Duration,
    /// Path of the event stream.
    pub sse_path: String,
    /// Path of the Streamable HTTP transport.
    pub mcp_path: String,
    /// Path of the message endpoint, without a trailing slash.
    pub messages_path: String,
    /// Path of the health check.
    pub health_path: String,
    /// Path of the status.
    pub status_path: String,
    /// Who is let in and for what, as it was given ([`crate::auth::rule`]); with those of the file, none: everybody is.
    pub tokens: Vec<Secret>,
    /// A file with more of them, which can be read again while the gateway runs.
    pub token_file: Option<PathBuf>,
    /// Proxies that are trusted to name whom they speak for (`X-Forwarded-For`), where wrong tokens are counted.
    pub trusted_proxies: Vec<IpAddr>,
    /// TLS, when asked for.
    pub tls: Option<ServerTls>,
    /// Path prefix below which a proxy serves the gateway, unless the proxy names another; empty: none.
    pub public_prefix: String,
    /// Origins that browsers may come from, beside loopback and our own.
    pub allow_origins: Vec<String>,
    /// Names under which the gateway may be addressed without a token.
    pub public_hosts: Vec<String>,
    /// Answer CORS preflights and let allowed origins read answers.
    pub cors: bool,
    /// Threads of the executor.
    pub threads: usize,
    /// All numbers.
    pub limits: Limits,
}

impl Default for GatewayConfig {
    /// What `mcpport gateway` does without flags: loopback alone, and everybody who reaches that is let in.
    fn default() -> Self {
        Self {
            host: None,
            port: limits::PORT,
            ipv6: false,
            timeout_rpc: limits::RPC_TIME,
            timeout_run_tool: limits::TOOL_TIME,
            sse_path: "/sse".into(),
            mcp_path: "/mcp".into(),
            messages_path: "/messages".into(),
            health_path: "/health".into(),
            status_path: "/status".into(),
            tokens: Vec::new(),
            token_file: None,
            trusted_proxies: Vec::new(),
            tls: None,
            public_prefix: String::new(),
            allow_origins: Vec::new(),
            public_hosts: Vec::new(),
            cors: false,
            threads: 1,
            limits: Limits::default(),
        }
    }
}

/// TLS at the gateway.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the certificate and those between it and the root.
    pub certificate: PathBuf,
    /// PEM file with the authority that client certificates must come from; none: not asked for.
    pub client_ca: Option<PathBuf>,
}

/// What `mcpport register` was asked for.
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// The server's command.
    pub command: CommandLine,
    /// Where the gateway is.
    pub gateway: GatewayUrl,
    /// Name that clients see.
    pub name: String,
    /// Identity of this registration.
    pub id: String,
    /// Extra fields of the upgrade request; values are secret, as tokens are among them.
    pub headers: Vec<(String, Secret)>,
    /// File that some of them were read from.
    pub header_file: Option<PathBuf>,
    /// Trust of the gateway's certificate.
    pub tls: ClientTls,
    /// Give each client session a process of its own, so many at a time. `None`: all share one.
    pub sessions: Option<u32>,
    /// Start the server again when it has ended.
    pub restart: Restart,
    /// End when the first connection fails.
    pub require_gateway: bool,
    /// Local HTTP port, 0: none.
    pub port: u16,
    /// Let any page read the local health answer.
    pub cors: bool,
    /// Paths of the local health answer.
    pub health_paths: Vec<String>,
    /// Threads of the executor.
    pub threads: usize,
    /// All numbers.
    pub limits: Limits,
}

/// When a server that has ended is started again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Restart {
    /// Not at all: the program ends with it.
    Never,
    /// Unless it ended by itself with exit status 0.
    #[default]
    OnFailure,
    /// However it ended.
    Always,
}

/// Where the gateway takes registrations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GatewayUrl {
    /// `wss`.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query.
    pub target: String,
}

impl GatewayUrl {
    /// `host:port` as the `Host` field and messages show it.
    pub fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

impl std::fmt::Display for GatewayUrl {
    /// Without the query, which may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

/// How the edge trusts the gateway's certificate.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    /// Take any certificate.
    pub no_verify: bool,
    /// PEM file with the only authorities to trust.
    pub ca: Option<PathBuf>,
    /// PEM files with a certificate and key of our own, for gateways that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// Whether anything of it was asked for.
    pub fn says_anything(&self) -> bool {
        self.no_verify || self.ca.is_some() || self.identity.is_some()
    }
}
