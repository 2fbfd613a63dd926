//! The configuration of the programs as plain data. `cli` fills it in.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use crate::{
    command::CommandLine,
    limits::{self, Limits},
    secret::Secret,
    util,
};

/// Configuration of `mcpport gateway`.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Address or name to listen on. `None`: loopback, IPv4 and IPv6.
    pub host: Option<String>,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// An IPv6 wildcard address (`::`) also accepts IPv4.
    pub ipv6: bool,
    /// Timeout of requests to a server other than tool calls.
    pub timeout_rpc: Duration,
    /// Timeout of tool calls.
    pub timeout_run_tool: Duration,
    /// Path of the legacy SSE event stream.
    pub sse_path: String,
    /// Path of the Streamable HTTP transport.
    pub mcp_path: String,
    /// Path of the message endpoint, without a trailing slash.
    pub messages_path: String,
    /// Path of the health check.
    pub health_path: String,
    /// Path of the status endpoint.
    pub status_path: String,
    /// Access rules with their tokens, as given ([`crate::auth::rule`]). If neither these nor the
    /// file hold any, everybody has access.
    pub tokens: Vec<Secret>,
    /// File with more access rules, which can be reloaded while the gateway runs.
    pub token_file: Option<PathBuf>,
    /// Proxies whose `X-Forwarded-For` is trusted for the client address when wrong tokens are
    /// counted.
    pub trusted_proxies: Vec<IpAddr>,
    /// TLS files; `None`: plain HTTP.
    pub tls: Option<ServerTls>,
    /// Path prefix under which a proxy serves the gateway, unless the proxy names another one.
    /// Empty: none.
    pub public_prefix: String,
    /// Origins that browsers may send requests from, besides loopback and our own.
    pub allow_origins: Vec<String>,
    /// Host names under which the gateway accepts requests without a token.
    pub public_hosts: Vec<String>,
    /// Answer CORS preflights and let allowed origins read responses.
    pub cors: bool,
    /// Number of executor threads.
    pub threads: usize,
    /// An idle thread may busy-poll before it sleeps ([`crate::runtime::busy_poll`]).
    pub busy_poll: bool,
    /// All limits.
    pub limits: Limits,
}

impl Default for GatewayConfig {
    /// The configuration without flags: listens on loopback only, and needs no token.
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
            busy_poll: true,
            limits: Limits::default(),
        }
    }
}

/// TLS files of the gateway.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM file with the private key.
    pub key: PathBuf,
    /// PEM file with the certificate and its intermediate certificates.
    pub certificate: PathBuf,
    /// PEM file with the CA that client certificates must chain to. `None`: no client certificate
    /// is requested.
    pub client_ca: Option<PathBuf>,
}

/// Configuration of `mcpport register`.
#[derive(Clone, Debug)]
pub struct RegisterConfig {
    /// The server's command.
    pub command: CommandLine,
    /// URL of the gateway.
    pub gateway: GatewayUrl,
    /// Server name that clients see.
    pub name: String,
    /// Identity of this registration.
    pub id: String,
    /// Extra header fields of the upgrade request. The values are secret, since tokens are among
    /// them.
    pub headers: Vec<(String, Secret)>,
    /// File that some of these fields were read from.
    pub header_file: Option<PathBuf>,
    /// How to verify the gateway's certificate.
    pub tls: ClientTls,
    /// Give each client session its own process, up to this number at a time. `None`: all sessions
    /// share one process.
    pub sessions: Option<u32>,
    /// The era of the server's processes.
    pub era: EraPin,
    /// When to restart a server that has ended.
    pub restart: Restart,
    /// Exit if the first connection fails.
    pub require_gateway: bool,
    /// Local HTTP port for health checks; 0: none.
    pub port: u16,
    /// Let any web page read the local health response.
    pub cors: bool,
    /// Paths of the local health check.
    pub health_paths: Vec<String>,
    /// Number of executor threads.
    pub threads: usize,
    /// An idle thread may busy-poll before it sleeps ([`crate::runtime::busy_poll`]).
    pub busy_poll: bool,
    /// All limits.
    pub limits: Limits,
}

/// How the gateway finds out which revisions of MCP a server's process speaks: those that begin with
/// `initialize` (legacy), or 2026-07-28 (modern).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EraPin {
    /// It asks: `server/discover` first, then `initialize`.
    #[default]
    Auto,
    /// It only sends `initialize`.
    Legacy,
    /// It only sends `server/discover`.
    Modern,
}

impl EraPin {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Legacy, Self::Modern];

    /// Returns the word for it, in `--era` and in registrations.
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }

    /// Returns the pin with this word.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pin| pin.word() == word)
    }
}

/// When to restart a server that has ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Restart {
    /// Never: the program ends with the server.
    Never,
    /// Unless the server ended by itself with exit status 0.
    #[default]
    OnFailure,
    /// Always.
    Always,
}

/// URL of the gateway's registration endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GatewayUrl {
    /// Use TLS (`wss`).
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path and query.
    pub target: String,
}

impl GatewayUrl {
    /// Returns `host:port` as in the `Host` header field and in messages.
    pub fn authority(&self) -> String {
        util::authority::join(&self.host, self.port)
    }
}

impl std::fmt::Display for GatewayUrl {
    /// Omits the query, which may hold a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "wss" } else { "ws" };
        let path = self.target.split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

/// How the edge verifies the gateway's certificate.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    /// Accept any certificate.
    pub no_verify: bool,
    /// PEM file with the only CAs to trust.
    pub ca: Option<PathBuf>,
    /// PEM files with a client certificate and its key, for gateways that request one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// Returns whether any TLS option is set.
    pub fn says_anything(&self) -> bool {
        self.no_verify || self.ca.is_some() || self.identity.is_some()
    }
}
