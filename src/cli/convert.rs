//! Converts flags to configuration: checks which flags go together and fills in defaults. `values`
//! parses single values.

use std::path::{Path, PathBuf};

use log::LevelFilter;

use super::{
    args::{DemoArgs, DeviceArgs, GatewayArgs, RegisterArgs},
    command::Command,
    environment::{self, Environment},
    values,
};
use crate::{
    auth::rule::{self, Rule},
    command::CommandLine,
    config::{ClientTls, GatewayConfig, RegisterConfig, ServerTls},
    demo, device,
    error::FatalError,
    limits::{COUNT, MAX_SESSIONS},
    net::{random, text_file},
    router::REGISTER_PATH,
    secret::Secret,
    util,
};

/// Converts the flags of `mcpport gateway`.
pub fn gateway(args: GatewayArgs, environment: &Environment) -> Result<Command, FatalError> {
    let level = if args.debug { LevelFilter::Debug } else { values::level(&args.log_level)? };
    let tokens = tokens(&args, environment.get(environment::TOKENS))?;
    let tls = server_tls(&args)?;
    let mut limits = super::limits::gateway(&args)?;
    let (public_hosts, public_prefix) = public(&args)?;
    let (host, ipv6) = host(args.host, args.ipv6);
    limits.link.resume_window = values::window("--resume-window", &args.resume_window)?;
    let config = GatewayConfig {
        host,
        port: values::number("--port", &args.port, 0..=u16::MAX)?,
        ipv6,
        timeout_rpc: values::duration("--timeout-rpc", &args.timeout_rpc)?,
        timeout_run_tool: values::duration("--timeout-run-tool", &args.timeout_run_tool)?,
        sse_path: values::path("--sse-path", &args.sse_path)?,
        mcp_path: values::path("--mcp-path", &args.mcp_path)?,
        messages_path: values::messages_path(&args.messages_path)?,
        health_path: values::path("--health-endpoint", &args.health_endpoint)?,
        status_path: values::path("--status-path", &args.status_path)?,
        tokens,
        token_file: args.auth_token_file.map(PathBuf::from),
        trusted_proxies: values::each(&args.trusted_proxy, values::proxy)?,
        tls,
        allow_origins: values::each(&args.allow_origin, values::origin)?,
        public_hosts,
        public_prefix,
        cors: args.enable_cors,
        threads: values::threads(&args.threads)?,
        busy_poll: values::busy_poll(&args.busy_poll)?,
        limits,
    };
    distinct(&config)?;
    Ok(Command::Gateway(Box::new(config), level))
}

/// Converts the flags of `mcpport register`.
pub fn register(args: RegisterArgs) -> Result<Command, FatalError> {
    let limits = super::limits::register(&args)?;
    let name = values::server_name(&args.server_name, limits.catalog.server_name)?;
    let command = command(args.stdio.as_deref())?;
    let id = args.server_id.as_deref().map_or_else(random::uuid, values::server_id)?;
    let mut health_paths = vec!["/health".to_owned()];
    for given in &args.health_endpoint {
        health_paths.push(values::path("--health-endpoint", given)?);
    }
    let tls = client_tls(&args)?;
    let sessions = sessions(&args)?;
    let config = RegisterConfig {
        command,
        gateway: values::gateway_url(&args.gateway_url)?,
        name,
        id,
        headers: headers(&args)?,
        header_file: args.header_file.map(PathBuf::from),
        tls,
        sessions,
        era: values::era(&args.era)?,
        restart: values::restart(&args.restart)?,
        require_gateway: args.require_gateway,
        port: values::number("--port", &args.port, 0..=u16::MAX)?,
        cors: args.enable_cors,
        health_paths,
        threads: values::threads(&args.threads)?,
        busy_poll: values::busy_poll(&args.busy_poll)?,
        limits,
    };
    Ok(Command::Register(Box::new(config), values::level(&args.log_level)?))
}

/// Converts the flags of `mcpport device`.
pub fn device(args: DeviceArgs) -> Result<Command, FatalError> {
    Ok(Command::Device(device::DeviceOptions { logs: args.log.into_iter().map(PathBuf::from).collect() }))
}

/// Converts the flags of `mcpport demo`.
pub fn demo(args: DemoArgs) -> Result<Command, FatalError> {
    let tls = match (args.ssl_keyfile, args.ssl_certfile, args.ssl_ca_cert) {
        (None, None, None) => None,
        (Some(key), Some(certificate), Some(ca)) => Some(demo::Tls {
            server: ServerTls { key: key.into(), certificate: certificate.into(), client_ca: None },
            ca: ca.into(),
        }),
        _ => {
            return Err(FatalError::usage(
                "--ssl-keyfile, --ssl-certfile and --ssl-ca-cert must be given together",
            ));
        }
    };
    let port = values::number("--port", &args.port, 0..=u16::MAX)?;
    Ok(Command::Demo(demo::DemoOptions { port, once: args.once, tls }, values::level(&args.log_level)?))
}

/// Returns the address to listen on, and whether to listen on IPv6. The IPv6 wildcard includes
/// IPv4; the IPv4 wildcard includes IPv6 if `--ipv6` is given.
fn host(typed: Option<String>, ipv6: bool) -> (Option<String>, bool) {
    match typed.as_deref() {
        Some("::" | "[::]") => (Some("::".into()), true),
        Some("0.0.0.0") if ipv6 => (Some("::".into()), true),
        _ => (typed, ipv6),
    }
}

/// Returns the host names of `--public-host` and `--public-url`, and the path prefix of the latter.
fn public(args: &GatewayArgs) -> Result<(Vec<String>, String), FatalError> {
    let mut hosts = values::each(&args.public_host, values::public_host)?;
    let Some(url) = &args.public_url else { return Ok((hosts, String::new())) };
    let (host, prefix) = values::public_url(url)?;
    hosts.push(host);
    Ok((hosts, prefix))
}

fn distinct(config: &GatewayConfig) -> Result<(), FatalError> {
    let paths = [
        ("--sse-path", config.sse_path.as_str()),
        ("--mcp-path", &config.mcp_path),
        ("--messages-path", &config.messages_path),
        ("--health-endpoint", &config.health_path),
        ("--status-path", &config.status_path),
        ("the registration endpoint", REGISTER_PATH),
    ];
    for (position, (flag, path)) in paths.iter().enumerate() {
        if let Some((other, _)) = paths.iter().take(position).find(|(_, earlier)| earlier == path) {
            return Err(FatalError::usage(format!("{other} and {flag} have the same path {path}")));
        }
    }
    Ok(())
}

fn command(typed: Option<&str>) -> Result<CommandLine, FatalError> {
    let needed = "--stdio is required: the server's command, such as --stdio \"mcpport device\"";
    let typed = typed.ok_or_else(|| FatalError::usage(needed))?;
    CommandLine::parse(typed).map_err(|why| FatalError::usage(format!("--stdio: {why}")))
}

/// Returns the tokens from the flags and the environment. The gateway reads the token file when it
/// starts.
fn tokens(args: &GatewayArgs, listed: Option<&str>) -> Result<Vec<Secret>, FatalError> {
    let flags = args.auth_token.iter().map(|typed| ("--auth-token", typed.as_str()));
    let listed =
        rule::split(listed.unwrap_or_default()).into_iter().map(|typed| (environment::TOKENS, typed));
    let mut tokens = Vec::new();
    for (flag, typed) in flags.chain(listed) {
        Rule::read(typed).map_err(|why| FatalError::usage(format!("{flag}: {why}")))?;
        tokens.push(Secret::new(typed));
    }
    Ok(tokens)
}

fn server_tls(args: &GatewayArgs) -> Result<Option<ServerTls>, FatalError> {
    let given = [
        ("--ssl-keyfile", &args.ssl_keyfile),
        ("--ssl-certfile", &args.ssl_certfile),
        ("--ssl-ca-cert", &args.ssl_ca_cert),
    ];
    if !args.ssl_enabled {
        return match given.iter().find(|(_, file)| file.is_some()) {
            Some((flag, _)) => Err(FatalError::usage(format!("{flag} has no effect without --ssl-enabled"))),
            None => Ok(None),
        };
    }
    match (&args.ssl_keyfile, &args.ssl_certfile) {
        (Some(key), Some(certificate)) => Ok(Some(ServerTls {
            key: key.into(),
            certificate: certificate.into(),
            client_ca: args.ssl_ca_cert.as_ref().map(PathBuf::from),
        })),
        _ => Err(FatalError::usage("--ssl-enabled needs --ssl-keyfile and --ssl-certfile")),
    }
}

fn sessions(args: &RegisterArgs) -> Result<Option<u32>, FatalError> {
    match (args.sessions.as_str(), &args.max_sessions) {
        ("shared", None) => Ok(None),
        ("shared", Some(_)) => {
            Err(FatalError::usage("--max-sessions has no effect without --sessions isolated"))
        }
        ("isolated", None) => Ok(Some(MAX_SESSIONS)),
        ("isolated", Some(max)) => values::number("--max-sessions", max, 1..=COUNT as u32).map(Some),
        (other, _) => Err(FatalError::usage(format!(
            "--sessions {}: expected shared or isolated",
            util::escape::show(other)
        ))),
    }
}

/// Returns the header fields for the request to the gateway, from the flags and from the file.
fn headers(args: &RegisterArgs) -> Result<Vec<(String, Secret)>, FatalError> {
    let mut headers = values::each(&args.header, |typed| values::header("--header", typed))?;
    let Some(path) = &args.header_file else { return Ok(headers) };
    let flag = format!("--header-file {}", util::escape::show(path));
    let content =
        text_file::read(Path::new(path)).map_err(|why| FatalError::usage(format!("{flag}: {why}")))?;
    let before = headers.len();
    let lines = content.lines().map(str::trim).enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        headers.push(values::header(&format!("{flag}, line {}", number + 1), line)?);
    }
    // Without its token the gateway would reject the link with a less helpful message.
    if headers.len() == before {
        return Err(FatalError::usage(format!("{flag}: the file contains no header field")));
    }
    Ok(headers)
}

fn client_tls(args: &RegisterArgs) -> Result<ClientTls, FatalError> {
    if args.no_ssl_verify && args.ssl_ca_cert.is_some() {
        return Err(FatalError::usage("--no-ssl-verify and --ssl-ca-cert are mutually exclusive"));
    }
    let identity = match (&args.ssl_certfile, &args.ssl_keyfile) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err(FatalError::usage("--ssl-certfile and --ssl-keyfile must be given together")),
    };
    Ok(ClientTls {
        no_verify: args.no_ssl_verify,
        ca: args.ssl_ca_cert.as_ref().map(PathBuf::from),
        identity,
    })
}
