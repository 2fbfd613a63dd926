//! From flags to configuration: each value checked, each complaint naming its flag and never a secret.

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use log::LevelFilter;

use super::{
    Command,
    args::{DemoArgs, DeviceArgs, GatewayArgs, RegisterArgs},
};
use crate::{
    auth::rule::{self, Rule},
    command::CommandLine,
    config::{ClientTls, GatewayConfig, GatewayUrl, RegisterConfig, Restart, ServerTls},
    demo, device,
    fault::Fault,
    limits::{MAX_SESSIONS, SERVER_ID},
    net::random,
    router::REGISTER_PATH,
    secret::Secret,
    text,
};

/// `mcpport gateway`.
pub fn gateway(args: GatewayArgs, environment: &dyn Fn(&str) -> Option<String>) -> Result<Command, Fault> {
    let level = if args.debug { LevelFilter::Debug } else { level(&args.log_level)? };
    let tokens = tokens(&args, environment("MCP_GATEWAY_AUTH_TOKENS"))?;
    let tls = server_tls(&args)?;
    let mut limits = super::limits::gateway(&args)?;
    let (host, ipv6) = host(args.host, args.ipv6);
    limits.link.resume_window = window("--resume-window", &args.resume_window)?;
    let config = GatewayConfig {
        host,
        port: args.port,
        ipv6,
        timeout_rpc: duration("--timeout-rpc", &args.timeout_rpc)?,
        timeout_run_tool: duration("--timeout-run-tool", &args.timeout_run_tool)?,
        sse_path: path("--sse-path", &args.sse_path)?,
        mcp_path: path("--mcp-path", &args.mcp_path)?,
        messages_path: messages_path(&args.messages_path)?,
        health_path: path("--health-endpoint", &args.health_endpoint)?,
        status_path: path("--status-path", &args.status_path)?,
        tokens,
        token_file: args.auth_token_file.map(PathBuf::from),
        trusted_proxies: proxies(&args.trusted_proxy)?,
        tls,
        allow_origins: args.allow_origin,
        public_hosts: args.public_host,
        cors: args.enable_cors,
        threads: threads(args.threads)?,
        limits,
    };
    distinct(&config)?;
    Ok(Command::Gateway(Box::new(config), level))
}

/// `mcpport register`.
pub fn register(args: RegisterArgs) -> Result<Command, Fault> {
    let limits = super::limits::register(&args)?;
    let longest = limits.catalog.server_name;
    if !text::is_name(&args.server_name, longest) {
        return Err(Fault::usage(format!(
            "--server-name {}: only A-Z a-z 0-9 _ . - are allowed, and at most {longest} of them",
            text::show(&args.server_name)
        )));
    }
    let command = CommandLine::parse(&args.stdio).map_err(|why| Fault::usage(format!("--stdio: {why}")))?;
    let id = match &args.server_id {
        Some(id) if id.is_empty() || id.len() > SERVER_ID || id.chars().any(char::is_control) => {
            let why = format!("--server-id: a plain text of at most {SERVER_ID} characters is needed");
            return Err(Fault::usage(why));
        }
        Some(id) => id.clone(),
        None => text::uuid(random::bytes().map_err(|error| Fault::run(format!("no randomness: {error}")))?),
    };
    let mut health_paths = vec!["/health".to_owned()];
    for given in &args.health_endpoint {
        health_paths.push(path("--health-endpoint", given)?);
    }
    let tls = client_tls(&args)?;
    let sessions = sessions(&args)?;
    let config = RegisterConfig {
        command,
        gateway: gateway_url(&args.gateway_url)?,
        name: args.server_name,
        id,
        headers: args.header.iter().map(|header| self::header(header)).collect::<Result<_, _>>()?,
        tls,
        sessions,
        restart: restart(&args.restart)?,
        require_gateway: args.require_gateway,
        port: args.port,
        cors: args.enable_cors,
        health_paths,
        threads: threads(args.threads)?,
        limits,
    };
    Ok(Command::Register(Box::new(config), level(&args.log_level)?))
}

/// `mcpport device`.
pub fn device(args: DeviceArgs) -> Result<Command, Fault> {
    Ok(Command::Device(device::Options { logs: args.log.into_iter().map(PathBuf::from).collect() }))
}

/// `mcpport demo`.
pub fn demo(args: DemoArgs) -> Result<Command, Fault> {
    let tls = match (args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_cert) {
        (None, None, None) => None,
        (Some(key), Some(certificate), Some(ca)) => Some(demo::Tls {
            server: ServerTls { key: key.into(), certificate: certificate.into(), client_ca: None },
            ca: ca.into(),
        }),
        _ => return Err(Fault::usage("--ssl-keyfile, --ssl-certfile and --ssl-ca-cert go together")),
    };
    Ok(Command::Demo(demo::Options { port: args.port, once: args.once, tls }, level(&args.log_level)?))
}

fn level(typed: &str) -> Result<LevelFilter, Fault> {
    match typed.to_ascii_uppercase().as_str() {
        "DEBUG" => Ok(LevelFilter::Debug),
        "INFO" => Ok(LevelFilter::Info),
        "WARNING" | "WARN" => Ok(LevelFilter::Warn),
        "ERROR" | "CRITICAL" => Ok(LevelFilter::Error),
        _ => Err(Fault::usage(format!(
            "--log-level {}: one of DEBUG, INFO, WARNING, ERROR, CRITICAL is needed",
            text::show(typed)
        ))),
    }
}

/// A wildcard of IPv6 takes IPv4 as well; an IPv4 wildcard takes IPv6 when that is asked for.
fn host(typed: Option<String>, ipv6: bool) -> (Option<String>, bool) {
    match typed.as_deref() {
        Some("::" | "[::]") => (Some("::".into()), true),
        Some("0.0.0.0") if ipv6 => (Some("::".into()), true),
        _ => (typed, ipv6),
    }
}

fn duration(flag: &str, typed: &str) -> Result<Duration, Fault> {
    text::duration(typed).filter(|time| !time.is_zero()).ok_or_else(|| {
        Fault::usage(format!("{flag} {}: a time like 10, 10s, 500ms or 2m is needed", text::show(typed)))
    })
}

/// A time that may be none.
fn window(flag: &str, typed: &str) -> Result<Duration, Fault> {
    text::duration(typed).ok_or_else(|| {
        Fault::usage(format!("{flag} {}: a time like 30, 30s or 2m is needed, or 0", text::show(typed)))
    })
}

fn path(flag: &str, typed: &str) -> Result<String, Fault> {
    let plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'"' | b'<' | b'>' | b'\\');
    if typed.starts_with('/') && typed.bytes().all(plain) {
        return Ok(typed.to_owned());
    }
    Err(Fault::usage(format!("{flag} {}: a path is needed, such as /sse", text::show(typed))))
}

/// Both with and without a trailing slash are served.
fn messages_path(typed: &str) -> Result<String, Fault> {
    let path = path("--messages-path", typed)?;
    Ok(path.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(&path).to_owned())
}

fn distinct(config: &GatewayConfig) -> Result<(), Fault> {
    let paths = [
        ("--sse-path", config.sse_path.as_str()),
        ("--mcp-path", &config.mcp_path),
        ("--messages-path", &config.messages_path),
        ("--health-endpoint", &config.health_path),
        ("--status-path", &config.status_path),
        ("the registration endpoint", REGISTER_PATH),
    ];
    for (place, (flag, path)) in paths.iter().enumerate() {
        if let Some((other, _)) = paths.iter().take(place).find(|(_, earlier)| earlier == path) {
            return Err(Fault::usage(format!("{other} and {flag} have the same path {path}")));
        }
    }
    Ok(())
}

fn threads(typed: usize) -> Result<usize, Fault> {
    if (1..=64).contains(&typed) { Ok(typed) } else { Err(Fault::usage("--threads: 1 to 64 are allowed")) }
}

/// The tokens from flags and from the environment. Those of the file are read when the gateway starts.
fn tokens(args: &GatewayArgs, environment: Option<String>) -> Result<Vec<Secret>, Fault> {
    let list = environment.unwrap_or_default();
    let flags = args.auth_token.iter().map(|typed| ("--auth-token", typed.as_str()));
    let listed = rule::split(&list).into_iter().map(|typed| ("MCP_GATEWAY_AUTH_TOKENS", typed));
    let mut tokens = Vec::new();
    for (flag, typed) in flags.chain(listed) {
        Rule::read(typed).map_err(|why| Fault::usage(format!("{flag}: {why}")))?;
        tokens.push(Secret::new(typed));
    }
    Ok(tokens)
}

fn proxies(typed: &[String]) -> Result<Vec<IpAddr>, Fault> {
    let address = |typed: &String| typed.parse::<IpAddr>().map(|address| address.to_canonical());
    let all = typed.iter().map(|typed| {
        let why = || format!("--trusted-proxy {}: an address such as 127.0.0.1 is needed", text::show(typed));
        address(typed).map_err(|_| Fault::usage(why()))
    });
    all.collect()
}

fn server_tls(args: &GatewayArgs) -> Result<Option<ServerTls>, Fault> {
    let given = [
        ("--ssl-keyfile", &args.ssl_keyfile),
        ("--ssl-certfile", &args.ssl_certfile),
        ("--ssl-ca-cert", &args.ssl_ca_cert),
    ];
    if !args.ssl_enabled {
        return match given.iter().find(|(_, file)| file.is_some()) {
            Some((flag, _)) => Err(Fault::usage(format!("{flag} has no effect without --ssl-enabled"))),
            None => Ok(None),
        };
    }
    match (&args.ssl_keyfile, &args.ssl_certfile) {
        (Some(key), Some(certificate)) => Ok(Some(ServerTls {
            key: key.into(),
            certificate: certificate.into(),
            client_ca: args.ssl_ca_cert.as_ref().map(PathBuf::from),
        })),
        _ => Err(Fault::usage("--ssl-enabled needs --ssl-keyfile and --ssl-certfile")),
    }
}

fn sessions(args: &RegisterArgs) -> Result<Option<u32>, Fault> {
    match (args.sessions.as_str(), args.max_sessions) {
        ("shared", None) => Ok(None),
        ("shared", Some(_)) => Err(Fault::usage("--max-sessions has no effect without --sessions isolated")),
        ("isolated", Some(0)) => Err(Fault::usage("--max-sessions: at least 1 is needed")),
        ("isolated", most) => Ok(Some(most.unwrap_or(MAX_SESSIONS))),
        (other, _) => {
            Err(Fault::usage(format!("--sessions {}: shared or isolated is needed", text::show(other))))
        }
    }
}

fn restart(typed: &str) -> Result<Restart, Fault> {
    match typed {
        "never" => Ok(Restart::Never),
        "on-failure" => Ok(Restart::OnFailure),
        "always" => Ok(Restart::Always),
        other => Err(Fault::usage(format!(
            "--restart {}: never, on-failure or always is needed",
            text::show(other)
        ))),
    }
}

fn client_tls(args: &RegisterArgs) -> Result<ClientTls, Fault> {
    if args.no_ssl_verify && args.ssl_ca_cert.is_some() {
        return Err(Fault::usage("--no-ssl-verify and --ssl-ca-cert contradict each other"));
    }
    let identity = match (&args.ssl_certfile, &args.ssl_keyfile) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err(Fault::usage("--ssl-certfile and --ssl-keyfile go together")),
    };
    Ok(ClientTls {
        no_verify: args.no_ssl_verify,
        ca: args.ssl_ca_cert.as_ref().map(PathBuf::from),
        identity,
    })
}

/// The URL itself is not repeated in complaints: people put secrets into URLs.
///
/// Taken apart here, since a parser for all that browsers take is 50 KiB of program, and as much of the memory of an idle edge.
fn gateway_url(typed: &str) -> Result<GatewayUrl, Fault> {
    let bad =
        |why: &str| Fault::usage(format!("--gateway-url: {why}, such as ws://localhost:8765{REGISTER_PATH}"));
    if !typed.is_ascii() {
        return Err(bad("a URL in ASCII is needed, names of other scripts in their xn-- form"));
    }
    let Some((scheme, rest)) = typed.trim().split_once("://") else { return Err(bad("a URL is needed")) };
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "ws" | "http" => false,
        "wss" | "https" => true,
        _ => return Err(bad("a ws:// or wss:// URL is needed")),
    };
    // What is behind a # stays with who typed it.
    let rest = rest.split('#').next().unwrap_or_default();
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(Fault::usage(
            "--gateway-url: no user or password is sent; use --header \"Authorization: Bearer TOKEN\"",
        ));
    }
    let Some((host, port)) = host_and_port(authority) else {
        return Err(bad("a URL with a host, and with a port of 1 to 65535 or none, is needed"));
    };
    if !target.bytes().all(is_url_byte) {
        return Err(bad("a URL is needed, characters that have no place there in their %XX form"));
    }
    let port = port.unwrap_or(if tls { 443 } else { 80 });
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let path = if matches!(path, "" | "/") { REGISTER_PATH } else { path };
    Ok(GatewayUrl { tls, host, port, target: format!("{path}{query}") })
}

/// The host without brackets, and the port if one is there. `None`: not the form of RFC 3986 3.2.
fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            (address.parse::<Ipv6Addr>().ok()?.to_string(), port)
        }
        None => {
            let (name, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            (
                Some(name).filter(|name| !name.is_empty() && name.bytes().all(usual))?.to_ascii_lowercase(),
                port,
            )
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        // Nothing behind the colon: as if it was not there.
        Some("") => None,
        // A sign is no digit, though a number may have one.
        Some(digits) if !digits.starts_with('+') => Some(digits.parse().ok().filter(|port| *port != 0)?),
        _ => return None,
    };
    Some((host, port))
}

/// Whether it may stand in a path or a query (RFC 3986 3.3 and 3.4).
fn is_url_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte)
}

fn header(typed: &str) -> Result<(String, Secret), Fault> {
    let bad = || Fault::usage("--header: the form is \"Key: Value\"");
    let (key, value) = typed.split_once(':').ok_or_else(bad)?;
    let (key, value) = (key.trim(), value.trim());
    let reserved = ["host", "connection", "upgrade", "content-length", "transfer-encoding"];
    let own = key.to_ascii_lowercase();
    if key.is_empty() || value.is_empty() {
        return Err(bad());
    }
    if reserved.contains(&own.as_str()) || own.starts_with("sec-websocket") {
        return Err(Fault::usage(format!("--header {}: this field is ours to set", text::show(key))));
    }
    Ok((key.to_owned(), Secret::new(value)))
}
