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
    flag("busy-poll", Takes::One),
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
    flag("era", Takes::One),
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
    flag("busy-poll", Takes::One),
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

/// Run the gateway that MCP clients and edges connect to.
#[derive(Debug, FromArgs)]
pub struct GatewayArgs {
    /// address or name to listen on; 0.0.0.0: all of IPv4, "::": all of IPv6 and IPv4 (default: loopback, IPv4 and IPv6)
    #[argh(option)]
    pub host: Option<String>,
    /// port to listen on, 0: any free one (default: 8765)
    #[argh(option, default = "String::from(\"8765\")")]
    pub port: String,
    /// also listen on IPv6 if --host is 0.0.0.0
    #[argh(switch)]
    pub ipv6: bool,
    /// timeout for requests other than tool calls; seconds, or with a unit: 500ms, 10s, 2m (default: 10s)
    #[argh(option, default = "String::from(\"10s\")")]
    pub timeout_rpc: String,
    /// timeout for tool calls and task results, restarted by each progress notification up to 1 h in total, and for a server to start (default: 120s)
    #[argh(option, default = "String::from(\"120s\")")]
    pub timeout_run_tool: String,
    /// how long calls wait for a server whose link was lost to resume; 0 to disable (default: 30s)
    #[argh(option, default = "String::from(\"30s\")")]
    pub resume_window: String,
    /// path of the Streamable HTTP transport, for MCP clients (default: /mcp)
    #[argh(option, default = "String::from(\"/mcp\")")]
    pub mcp_path: String,
    /// path of the HTTP with SSE transport, for older MCP clients (default: /sse)
    #[argh(option, default = "String::from(\"/sse\")")]
    pub sse_path: String,
    /// path of the POST endpoint of that transport; clients discover it (default: /messages)
    #[argh(option, default = "String::from(\"/messages\")")]
    pub messages_path: String,
    /// path of the health check; requires no token (default: /health)
    #[argh(option, default = "String::from(\"/health\")")]
    pub health_endpoint: String,
    /// path of the status: servers, tables and counters, as JSON; requires a client token (default: /status)
    #[argh(option, default = "String::from(\"/status\")")]
    pub status_path: String,
    /// accept this bearer token: TOKEN, client:TOKEN, register:TOKEN or register[NAME,…]:TOKEN; a label may name the owner: client@alice:TOKEN; TOKEN may be a digest, sha256:HEX; repeatable; MCP_GATEWAY_AUTH_TOKENS (comma-separated) adds to them (default: no token required)
    #[argh(option)]
    pub auth_token: Vec<String>,
    /// file with such tokens, one per line, # for comments; reloaded on SIGHUP
    #[argh(option)]
    pub auth_token_file: Option<String>,
    /// address of a trusted proxy: its X-Forwarded-For identifies the client for throttling of wrong tokens, and its X-Forwarded-Prefix the path that it strips; repeatable
    #[argh(option)]
    pub trusted_proxy: Vec<String>,
    /// enable TLS (https and wss); requires the next two
    #[argh(switch)]
    pub ssl_enabled: bool,
    /// PEM file with the private key; reloaded on SIGHUP
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// PEM file with the certificate and its chain; reloaded on SIGHUP
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with a CA certificate: require a client certificate issued by it
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// allow web pages of this origin, besides loopback and the gateway's own: https://NAME or https://NAME:PORT, or * for all; repeatable
    #[argh(option)]
    pub allow_origin: Vec<String>,
    /// host name to accept when no token is required: gw.example; repeatable
    #[argh(option)]
    pub public_host: Vec<String>,
    /// public URL of the gateway behind a proxy that strips a path: https://NAME/PATH; event streams then name paths below it, and NAME is accepted as with --public-host
    #[argh(option)]
    pub public_url: Option<String>,
    /// let web pages of allowed origins read responses and send their own header fields (CORS)
    #[argh(switch)]
    pub enable_cors: bool,
    /// max. open connections; further ones get 503 (default: 1024)
    #[argh(option)]
    pub max_connections: Option<String>,
    /// max. connections from one address or IPv6 /64 network, except loopback; further ones get 429; raise it if a proxy on another machine forwards all clients (default: 128)
    #[argh(option)]
    pub max_connections_per_address: Option<String>,
    /// max. connected edges, including lost links that may still resume; further ones get 503 and retry; one principal gets half if several may register (default: 256)
    #[argh(option)]
    pub max_links: Option<String>,
    /// max. client sessions; a further one replaces one of the same principal that was idle for 1m, else gets 503; one principal gets half if several have client tokens (default: 512)
    #[argh(option)]
    pub max_client_sessions: Option<String>,
    /// max. sessions of one token, or of all tokens with one label; further ones get 429 (default: 256)
    #[argh(option)]
    pub max_sessions_per_token: Option<String>,
    /// max. running calls of one session; further ones get a "busy" error (default: 64)
    #[argh(option)]
    pub max_calls_per_session: Option<String>,
    /// max. running calls to one server; further ones get a "busy" error; one principal gets half if several have client tokens (default: 256)
    #[argh(option)]
    pub max_calls_per_server: Option<String>,
    /// max. tools listed per server, likewise prompts, resources and templates; the rest is omitted, with a warning (default: 4096)
    #[argh(option)]
    pub max_list_items: Option<String>,
    /// max. size of a message in bytes, 64K to 256M: 65536, 512K, 16M; a larger one fails its own call only; set the same at register (default: 4M)
    #[argh(option)]
    pub max_message_bytes: Option<String>,
    /// memory budget in bytes for all clients and servers together, 16M to 2048M; requests beyond it get 413 or 503, or an error
    /// (default: 256M, or half of what the process may use if that is less)
    #[argh(option)]
    pub max_memory: Option<String>,
    /// log level: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: INFO)
    #[argh(option, default = "String::from(\"INFO\")")]
    pub log_level: String,
    /// log at DEBUG, overrides --log-level
    #[argh(switch)]
    pub debug: bool,
    /// number of worker threads, 1 to 64 (default: 1)
    #[argh(option, default = "String::from(\"1\")")]
    pub threads: String,
    /// on: an idle thread polls for up to 0.1 ms before it sleeps, as long as calls follow each other closely: lower latency;
    /// off: it sleeps at once, which leaves the processor to other programs (default: on)
    #[argh(option, default = "String::from(\"on\")")]
    pub busy_poll: String,
}

/// Run a stdio MCP server and connect it to a gateway.
#[derive(Debug, FromArgs)]
pub struct RegisterArgs {
    /// the server's command: "mcpport device"; plain words and quotes run directly, shell syntax runs through sh -c (required)
    #[argh(option)]
    pub stdio: Option<String>,
    /// registration URL of the gateway; wss:// for TLS (default: ws://localhost:8765/mcp/register)
    #[argh(option, default = "String::from(\"ws://localhost:8765/mcp/register\")")]
    pub gateway_url: String,
    /// name shown to clients: A-Z a-z 0-9 _ . -, at most 64 (default: local)
    #[argh(option, default = "String::from(\"local\")")]
    pub server_name: String,
    /// id of this server; a new link with the same id and principal replaces the earlier one at once, while another id waits for the name as long as a lost link may resume (default: a random UUID)
    #[argh(option)]
    pub server_id: Option<String>,
    /// shared: all clients share one process; isolated: each session has its own (default: shared)
    #[argh(option, default = "String::from(\"shared\")")]
    pub sessions: String,
    /// max. processes of isolated sessions; one principal gets half if several have client tokens (default: 32)
    #[argh(option)]
    pub max_sessions: Option<String>,
    /// max. size of a message of the server in bytes, 64K to 256M: 65536, 512K, 16M; a larger one fails its own call only; set the same at the gateway (default: 4M)
    #[argh(option)]
    pub max_message_bytes: Option<String>,
    /// MCP revisions that the server speaks: legacy (up to 2025-11-25, with initialize), modern (2026-07-28), auto: it is asked (default: auto)
    #[argh(option, default = "String::from(\"auto\")")]
    pub era: String,
    /// restart a server that exited, after 1 s to 60 s: never (register exits too), on-failure
    /// (unless its exit status is 0), always (default: on-failure)
    #[argh(option, default = "String::from(\"on-failure\")")]
    pub restart: String,
    /// HTTP header field sent to the gateway: "Authorization: Bearer TOKEN"; repeatable
    #[argh(option)]
    pub header: Vec<String>,
    /// file with such header fields, one per line, # for comments; added to those of --header; a warning is logged if other users can read it
    #[argh(option)]
    pub header_file: Option<String>,
    /// with wss://, do not verify the gateway's certificate; for tests only
    #[argh(switch)]
    pub no_ssl_verify: bool,
    /// PEM file with the only CA to trust (default: the system's, or built-in ones if it has none)
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// PEM file with the client certificate, for gateways that require one
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with the private key of the client certificate
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// exit if the gateway cannot be reached at startup (default: retry)
    #[argh(switch)]
    pub require_gateway: bool,
    /// port of a local health check, on loopback: 200 while registered and the server runs, else 503; 0 to disable (default: 0)
    #[argh(option, default = "String::from(\"0\")")]
    pub port: String,
    /// let any web page read the local health check
    #[argh(switch)]
    pub enable_cors: bool,
    /// additional path of the health check, besides /health; repeatable
    #[argh(option)]
    pub health_endpoint: Vec<String>,
    /// log level: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: INFO)
    #[argh(option, default = "String::from(\"INFO\")")]
    pub log_level: String,
    /// number of worker threads, 1 to 64 (default: 1)
    #[argh(option, default = "String::from(\"1\")")]
    pub threads: String,
    /// on: an idle thread polls for up to 0.1 ms before it sleeps, as long as calls follow each other closely: lower latency;
    /// off: it sleeps at once, which leaves the processor to other programs (default: on)
    #[argh(option, default = "String::from(\"on\")")]
    pub busy_poll: String,
}

/// A read-only stdio MCP server that reports on this host: system, disks, network, processes, logs.
#[derive(Debug, FromArgs)]
pub struct DeviceArgs {
    /// additional log file that may be read; repeatable
    #[argh(option)]
    pub log: Vec<String>,
}

/// Run a gateway, a server and one tool call on this machine.
#[derive(Debug, FromArgs)]
pub struct DemoArgs {
    /// port of the gateway, 0: any free one (default: 0)
    #[argh(option, default = "String::from(\"0\")")]
    pub port: String,
    /// exit after the call (default: serve until Ctrl-C)
    #[argh(switch)]
    pub once: bool,
    /// enable TLS: PEM file with the private key; requires the next two
    #[argh(option)]
    pub ssl_keyfile: Option<String>,
    /// PEM file with a certificate for 127.0.0.1
    #[argh(option)]
    pub ssl_certfile: Option<String>,
    /// PEM file with the CA that issued it
    #[argh(option)]
    pub ssl_ca_cert: Option<String>,
    /// log level: DEBUG, INFO, WARNING, ERROR or CRITICAL (default: WARNING)
    #[argh(option, default = "String::from(\"WARNING\")")]
    pub log_level: String,
}
