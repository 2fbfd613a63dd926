//! From flags to configuration: each value checked, each complaint naming its flag and never a secret.

use std::{fmt::Display, net::IpAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

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
    http::vocab::Url,
    limits::{COUNT, MAX_SESSIONS, SERVER_ID, THREADS},
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
        port: number("--port", &args.port, 0..=u16::MAX)?,
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
        trusted_proxies: each(&args.trusted_proxy, proxy)?,
        tls,
        allow_origins: each(&args.allow_origin, origin)?,
        public_hosts: each(&args.public_host, public_host)?,
        cors: args.enable_cors,
        threads: threads(&args.threads)?,
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
    let command = command(args.stdio.as_deref())?;
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
        headers: each(&args.header, header)?,
        tls,
        sessions,
        restart: restart(&args.restart)?,
        require_gateway: args.require_gateway,
        port: number("--port", &args.port, 0..=u16::MAX)?,
        cors: args.enable_cors,
        health_paths,
        threads: threads(&args.threads)?,
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
    let port = number("--port", &args.port, 0..=u16::MAX)?;
    Ok(Command::Demo(demo::Options { port, once: args.once, tls }, level(&args.log_level)?))
}

/// A flag that may be given several times.
fn each<T>(typed: &[String], read: impl Fn(&str) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
    typed.iter().map(|typed| read(typed)).collect()
}

/// A whole number within bounds.
///
/// # Errors
/// A usage fault that names the flag and the bounds.
pub(super) fn number<N>(flag: &str, typed: &str, allowed: RangeInclusive<N>) -> Result<N, Fault>
where
    N: FromStr + PartialOrd + Display,
{
    typed.parse().ok().filter(|number| allowed.contains(number)).ok_or_else(|| {
        let (typed, least, most) = (text::show(typed), allowed.start(), allowed.end());
        Fault::usage(format!("{flag} {typed}: a number from {least} to {most} is needed"))
    })
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

fn threads(typed: &str) -> Result<usize, Fault> {
    number("--threads", typed, 1..=THREADS)
}

fn command(typed: Option<&str>) -> Result<CommandLine, Fault> {
    let needed = "--stdio is needed: the server's command, such as --stdio \"mcpport device\"";
    let typed = typed.ok_or_else(|| Fault::usage(needed))?;
    CommandLine::parse(typed).map_err(|why| Fault::usage(format!("--stdio: {why}")))
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

fn proxy(typed: &str) -> Result<IpAddr, Fault> {
    let address = typed.parse().map(|address: IpAddr| address.to_canonical());
    let why = || format!("--trusted-proxy {}: an address such as 127.0.0.1 is needed", text::show(typed));
    address.map_err(|_| Fault::usage(why()))
}

/// As browsers send it: a scheme and an authority, without a path. Anything else would never match.
fn origin(typed: &str) -> Result<String, Fault> {
    let plain =
        |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@' | b',' | b'"');
    let whole = typed.split_once("://").is_some_and(|(scheme, authority)| {
        let named = |part: &str| !part.is_empty() && part.bytes().all(plain);
        named(scheme) && named(authority)
    });
    if whole || matches!(typed, "*" | "null") {
        return Ok(typed.to_owned());
    }
    Err(Fault::usage(format!(
        "--allow-origin {}: an origin such as https://app.example is needed, without a path",
        text::show(typed)
    )))
}

/// As it stands in `Host`: a name, which may have a port.
fn public_host(typed: &str) -> Result<String, Fault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if !typed.is_empty() && typed.bytes().all(plain) {
        return Ok(typed.to_owned());
    }
    Err(Fault::usage(format!(
        "--public-host {}: a name such as gw.example is needed, without scheme and path",
        text::show(typed)
    )))
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
    match (args.sessions.as_str(), &args.max_sessions) {
        ("shared", None) => Ok(None),
        ("shared", Some(_)) => Err(Fault::usage("--max-sessions has no effect without --sessions isolated")),
        ("isolated", None) => Ok(Some(MAX_SESSIONS)),
        ("isolated", Some(most)) => number("--max-sessions", most, 1..=COUNT as u32).map(Some),
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
fn gateway_url(typed: &str) -> Result<GatewayUrl, Fault> {
    let bad =
        |why: &str| Fault::usage(format!("--gateway-url: {why}, such as ws://localhost:8765{REGISTER_PATH}"));
    if !typed.is_ascii() {
        return Err(bad("a URL in ASCII is needed, names of other scripts in their xn-- form"));
    }
    let url = Url::parse(typed).map_err(|error| bad(&format!("a URL is needed ({error})")))?;
    let tls = match url.scheme() {
        "ws" | "http" => false,
        "wss" | "https" => true,
        _ => return Err(bad("a ws:// or wss:// URL is needed")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Fault::usage(
            "--gateway-url: no user or password is sent; use --header \"Authorization: Bearer TOKEN\"",
        ));
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return Err(bad("a URL with a host is needed"));
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = url.port().unwrap_or(if tls { 443 } else { 80 });
    let path = if url.path() == "/" { REGISTER_PATH } else { url.path() };
    let target = url.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
    Ok(GatewayUrl { tls, host, port, target })
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
