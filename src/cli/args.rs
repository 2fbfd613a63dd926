//! Declares the flags as text. `convert` turns them into configuration.

use argh::FromArgs;

/// How many values a flag takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Takes {
    /// A switch without a value.
    Nothing,
    /// One value; the flag may be given once.
    One,
    /// One value per occurrence; the flag may be repeated.
    Many,
}

/// A flag, with its aliases. Also used to derive its environment variable.
#[derive(Debug)]
pub struct Flag {
    pub name: &'static str,
    pub takes: Takes,
    pub also: &'static [&'static str],
}

const fn flag(name: &'static str, takes: Takes) -> Flag {
    Flag { name, takes, also: &[] }
}

/// Flags of `gateway`.
pub const GATEWAY: &[Flag] = &[
    flag("host", Takes::One),
    flag("port", Takes::One),
    flag("ipv6", Takes::Nothing),
    flag("log-level", Takes::One),
    flag("debug", Takes::Nothing),
    flag("timeout-rpc", Takes::One),
    flag("timeout-run-tool", Takes::One),
    flag("resume-window", Takes::One),
    flag("mcp-path", Takes::One),
    flag("sse-path", Takes::One),
    Flag { name: "messages-path", takes: Takes::One, also: &["message-path"] },
    flag("health-endpoint", Takes::One),
    flag("status-path", Takes::One),
    flag("auth-token", Takes::Many),
    flag("auth-token-file", Takes::One),
    flag("trusted-proxy", Takes::Many),
    flag("ssl-enabled", Takes::Nothing),
    flag("ssl-keyfile", Takes::One),
    flag("ssl-certfile", Takes::One),
    Flag { name: "ssl-ca-cert", takes: Takes::One, also: &["ssl-ca-certs"] },
    flag("allow-origin", Takes::Many),
    flag("public-host", Takes::Many),
    flag("public-url", Takes::One),
    flag("enable-cors", Takes::Nothing),
    flag("max-connections", Takes::One),
    flag("max-connections-per-address", Takes::One),
    flag("max-links", Takes::One),
    flag("max-client-sessions", Takes::One),
    flag("max-sessions-per-token", Takes::One),
    flag("max-calls-per-session", Takes::One),
    flag("max-calls-per-server", Takes::One),
    flag("max-list-items", Takes::One),
    flag("max-message-bytes", Takes::One),
    flag("max-memory", Takes::One),
    flag("threads", Takes::One),
];

/// Flags of `register`.
pub const REGISTER: &[Flag] = &[
    flag("stdio", Takes::One),
    flag("gateway-url", Takes::One),
    flag("server-name", Takes::One),
    flag("server-id", Takes::One),
    flag("sessions", Takes::One),
    flag("max-sessions", Takes::One),
    flag("max-message-bytes", Takes::One),
    flag("restart", Takes::One),
    flag("header", Takes::Many),
    flag("header-file", Takes::One),
    flag("no-ssl-verify", Takes::Nothing),
    Flag { name: "ssl-ca-cert", takes: Takes::One, also: &["ssl-ca-certs"] },
    flag("ssl-certfile", Takes::One),
    flag("ssl-keyfile", Takes::One),
    flag("require-gateway", Takes::Nothing),
    flag("port", Takes::One),
    flag("enable-cors", Takes::Nothing),
    flag("health-endpoint", Takes::Many),
    flag("log-level", Takes::One),
    flag("threads", Takes::One),
];

/// Flags of `device`.
pub const DEVICE: &[Flag] = &[flag("log", Takes::Many)];

/// Flags of `demo`.
pub const DEMO: &[Flag] = &[
    flag("port", Takes::One),
    flag("once", Takes::Nothing),
    flag("ssl-keyfile", Takes::One),
    flag("ssl-certfile", Takes::One),
    Flag { name: "ssl-ca-cert", takes: Takes::One, also: &["ssl-ca-certs"] },
    flag("log-level", Takes::One),
];

/// Run the gateway that MCP clients and edge boxes connect to.
#[derive(Debug, FromArgs)]
pub struct GatewayArgs {
    /// address or name to listen on; 0.0.0.0: all of IPv4, "::": everything (default: loopback, IPv4 and IPv6)
    #[argh(option)]
    pub host: Option<String>,
    /// port to listen on, 0: any free one (default: 8765)
    #[argh(option, default = "String::from(\"8765\")")]
    pub port: String,
    /// listen on IPv6 too where --host is 0.0.0.0
    #[argh(switch)]
    pub ipv6: bool,
    /// wait for a server's answer, but for tool calls; seconds, or with a unit: 500ms, 10s, 2m (default: 10s)
    #[argh(option, default = "String::from(\"10s\")")]
    pub timeout_rpc: String,
    /// wait for a tool call's answer or a task's result, anew with each progress; and for a server to start (default: 120s)
    #[argh(option, default = "String::from(\"120s\")")]
    pub timeout_run_tool: String,
    /// how long calls wait for a server whose link was lost; likewise, 0: not at all (default: 30s)
    #[argh(option, default = "String::from(\"30s\")")]
    pub resume_window: String,
    /// path of the Streamable HTTP transport, for MCP clients (default: /mcp)
    #[argh(option, default = "String::from(\"/mcp\")")]
    pub mcp_path: String,
    /// path of the HTTP with SSE transport, for older MCP clients (default: /sse)
    #[argh(option, default = "String::from(\"/sse\")")]
    pub sse_path: String,
    /// path where those post; they find it by themselves (default: /messages)
    #[argh(option, default = "String::from(\"/messages\")")]
    pub messages_path: String,
    /// path of the health check, which asks for no token (default: /health)
    #[argh(option, default = "String::from(\"/health\")")]
    pub health_endpoint: String,
    /// path of the status: what the gateway has and did, as JSON (default: /status)
    #[argh(option, default = "String::from(\"/status\")")]
    pub status_path: String,
    /// let in who presents this bearer token: TOKEN, client:TOKEN, register:TOKEN or register[NAME,…]:TOKEN; a label of the owner may stand before the colon: client@alice:TOKEN; for TOKEN also sha256:HEX; repeatable (default: everybody is let in)
    #[argh(option)]
    pub auth_token: Vec<String>,
    /// file with such tokens, one on each line, # for comments; SIGHUP reads it again
    #[argh(option)]
    pub auth_token_file: Option<String>,
    /// address of a proxy that names its clients in X-Forwarded-For, to tell apart those who guess tokens, and may name the path that it takes away in X-Forwarded-Prefix; repeatable
    #[argh(option)]
    pub trusted_proxy: Vec<String>,
    /// speak TLS, https and wss; needs the next two
    #[argh(switch)]
    pub ssl_enabled: bool,
    /// PEM file with the private key; SIGHUP reads it again
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// PEM file with the certificate and its chain; SIGHUP reads it again
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with an authority: ask every client for a certificate of it
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// let web pages of this origin in, beside loopback's and our own: https://NAME or https://NAME:PORT, or * for all; repeatable
    #[argh(option)]
    pub allow_origin: Vec<String>,
    /// a name under which the gateway may be reached when it asks for no token: gw.example; repeatable
    #[argh(option)]
    pub public_host: Vec<String>,
    /// where clients reach the gateway behind a proxy that takes a path away: https://NAME/PATH; NAME is as with --public-host
    #[argh(option)]
    pub public_url: Option<String>,
    /// let web pages of allowed origins read the answers (CORS)
    #[argh(switch)]
    pub enable_cors: bool,
    /// connections at a time; one more is answered 503 (default: 1024)
    #[argh(option)]
    pub max_connections: Option<String>,
    /// connections from one address or IPv6 /64 network, loopback aside; one more is answered 429 (default: 128)
    #[argh(option)]
    pub max_connections_per_address: Option<String>,
    /// edge boxes at a time; one more is answered 503 and tries again (default: 256)
    #[argh(option)]
    pub max_links: Option<String>,
    /// client sessions at a time; one more ends one unused for 1m, else 503 (default: 512)
    #[argh(option)]
    pub max_client_sessions: Option<String>,
    /// sessions of one token at a time; one more is answered 429 (default: 256)
    #[argh(option)]
    pub max_sessions_per_token: Option<String>,
    /// calls of one session under way; one more is answered "busy" (default: 64)
    #[argh(option)]
    pub max_calls_per_session: Option<String>,
    /// calls to one server under way; one more is answered "busy" (default: 256)
    #[argh(option)]
    pub max_calls_per_server: Option<String>,
    /// tools listed of one server, and likewise prompts, resources and templates; the rest is left out (default: 4096)
    #[argh(option)]
    pub max_list_items: Option<String>,
    /// size of one message in bytes, 64K to 256M: 65536, 512K, 16M; give register the same (default: 4M)
    #[argh(option)]
    pub max_message_bytes: Option<String>,
    /// bytes kept in memory for all clients and servers together, 16M to 2048M; what has no room is answered 413 or 503, or an error
    /// that says so (default: 256M, or half of what the process may use if that is less)
    #[argh(option)]
    pub max_memory: Option<String>,
    /// what is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: INFO)
    #[argh(option, default = "String::from(\"INFO\")")]
    pub log_level: String,
    /// log at DEBUG, whatever --log-level says
    #[argh(switch)]
    pub debug: bool,
    /// threads that do the work, 1 to 64 (default: 1)
    #[argh(option, default = "String::from(\"1\")")]
    pub threads: String,
}

/// Run a stdio MCP server here and carry it to a gateway.
#[derive(Debug, FromArgs)]
pub struct RegisterArgs {
    /// the server's command, as in a shell: "mcpport device" (needed)
    #[argh(option)]
    pub stdio: Option<String>,
    /// where the gateway is; wss:// for TLS (default: ws://localhost:8765/mcp/register)
    #[argh(option, default = "String::from(\"ws://localhost:8765/mcp/register\")")]
    pub gateway_url: String,
    /// name that clients see: A-Z a-z 0-9 _ . -, at most 64 (default: local)
    #[argh(option, default = "String::from(\"local\")")]
    pub server_name: String,
    /// identity of this server; the same id takes over an earlier link (default: a fresh UUID)
    #[argh(option)]
    pub server_id: Option<String>,
    /// shared: all clients share one process; isolated: each session has its own (default: shared)
    #[argh(option, default = "String::from(\"shared\")")]
    pub sessions: String,
    /// processes that isolated sessions may have at a time (default: 32)
    #[argh(option)]
    pub max_sessions: Option<String>,
    /// size of one message of the server in bytes, 64K to 256M: 65536, 512K, 16M; give the gateway the same (default: 4M)
    #[argh(option)]
    pub max_message_bytes: Option<String>,
    /// start a server that ended again, 1 s to 60 s later: never (register ends with it), on-failure
    /// (unless its exit status is 0), always (default: on-failure)
    #[argh(option, default = "String::from(\"on-failure\")")]
    pub restart: String,
    /// field of the request to the gateway: "Authorization: Bearer TOKEN"; repeatable
    #[argh(option)]
    pub header: Vec<String>,
    /// file with such fields, one on each line, # for comments; they add to those of --header
    #[argh(option)]
    pub header_file: Option<String>,
    /// with wss://, trust whoever answers; for tests only
    #[argh(switch)]
    pub no_ssl_verify: bool,
    /// PEM file with the only authority to trust (default: the system's, or built-in ones where it has none)
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// PEM file with our own certificate, for gateways that ask for one
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with the key of our own certificate
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// end when the gateway cannot be reached at the start (default: try again)
    #[argh(switch)]
    pub require_gateway: bool,
    /// port of a local health check, on loopback; 0: none (default: 0)
    #[argh(option, default = "String::from(\"0\")")]
    pub port: String,
    /// let any web page read the local health check
    #[argh(switch)]
    pub enable_cors: bool,
    /// a further path of it, beside /health; repeatable
    #[argh(option)]
    pub health_endpoint: Vec<String>,
    /// what is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: INFO)
    #[argh(option, default = "String::from(\"INFO\")")]
    pub log_level: String,
    /// threads that do the work, 1 to 64 (default: 1)
    #[argh(option, default = "String::from(\"1\")")]
    pub threads: String,
}

/// A stdio MCP server about this box, read-only: system, disks, network, processes, logs.
#[derive(Debug, FromArgs)]
pub struct DeviceArgs {
    /// a log file that may be read, beside the usual ones; repeatable
    #[argh(option)]
    pub log: Vec<String>,
}

/// Show a gateway, a server and a call between them, on this machine.
#[derive(Debug, FromArgs)]
pub struct DemoArgs {
    /// port of the gateway, 0: any free one (default: 0)
    #[argh(option, default = "String::from(\"0\")")]
    pub port: String,
    /// end after the call (default: serve until Ctrl-C)
    #[argh(switch)]
    pub once: bool,
    /// speak TLS: PEM file with the private key; needs the next two
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// PEM file with a certificate for 127.0.0.1
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with the authority that it comes from
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// what is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: WARNING)
    #[argh(option, default = "String::from(\"WARNING\")")]
    pub log_level: String,
}
