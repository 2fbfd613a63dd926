use std::time::Duration;

use super::*;
use crate::config::{EraPin, GatewayConfig, RegisterConfig, Restart};

fn run(line: &[&str], environment: &[(&str, &str)]) -> Result<Command, FatalError> {
    let typed: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    parse(&typed, &Environment::of(environment))
}

fn gateway(line: &[&str], environment: &[(&str, &str)]) -> (GatewayConfig, log::LevelFilter) {
    let line: Vec<&str> = ["gateway"].iter().chain(line).copied().collect();
    match run(&line, environment) {
        Ok(Command::Gateway(config, level)) => (*config, level),
        other => panic!("{other:?}"),
    }
}

fn register(line: &[&str]) -> RegisterConfig {
    let line: Vec<&str> = ["r", "--stdio", "cat"].iter().chain(line).copied().collect();
    match run(&line, &[]) {
        Ok(Command::Register(config, _)) => *config,
        other => panic!("{other:?}"),
    }
}

fn fault(line: &[&str]) -> String {
    match run(line, &[]) {
        Err(fault @ FatalError::Usage(_)) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn gateway_defaults() {
    let (config, level) = gateway(&[], &[]);
    assert_eq!(format!("{config:?}"), format!("{:?}", GatewayConfig::default()));
    assert_eq!((config.host, config.port, level), (None, 8765, log::LevelFilter::Info));
    assert_eq!(config.timeout_rpc, Duration::from_secs(10));
    assert_eq!(config.timeout_run_tool, Duration::from_secs(120));
    assert_eq!((config.sse_path.as_str(), config.messages_path.as_str()), ("/sse", "/messages"));
    assert_eq!((config.health_path.as_str(), config.tokens.len(), config.cors), ("/health", 0, false));
    assert!(config.tls.is_none());
}

#[test]
fn limits() {
    let (config, _) = gateway(&[], &[]);
    let limits = &config.limits;
    assert_eq!((limits.http.connections, limits.http.connections_per_address), (1024, 128));
    assert_eq!((limits.http.connections_unauthenticated, limits.http.connections_from_loopback), (256, 1024));
    let line = ["--max-connections", "100", "--max-connections-per-address", "7", "--max-links", "3"];
    let more = ["--max-client-sessions=4", "--max-sessions-per-token=2", "--max-calls-per-session=5"];
    let last = ["--max-message-bytes", "1M", "--max-memory", "64M", "--max-list-items=9000"];
    let line = [&line[..], &more[..], &last[..]].concat();
    let (config, _) = gateway(&line, &[("MCPPORT_MAX_CALLS_PER_SERVER", "6")]);
    let limits = &config.limits;
    assert_eq!((limits.http.connections, limits.http.connections_per_address), (100, 7));
    assert_eq!((limits.http.connections_unauthenticated, limits.http.connections_from_loopback), (25, 100));
    assert_eq!((limits.link.links, limits.session.sessions, limits.session.per_principal), (3, 4, 2));
    assert_eq!((limits.session.in_flight, limits.link.in_flight), (5, 6));
    assert_eq!((limits.http.body_bytes, limits.memory.bytes), (1 << 20, 64 << 20));
    assert!(limits.link.message_bytes > 1 << 20);
    assert_eq!((limits.catalog.items, limits.catalog.pages), (9000, 1125));
    let edge = register(&["--max-message-bytes", "16M"]).limits;
    assert_eq!(edge.child.line_bytes, 16 << 20);
    assert!(edge.link.message_bytes > 16 << 20);
    for (line, words) in [
        (&["gateway", "--max-links", "0"][..], "--max-links 0: expected a number from 1 to 1000000"),
        (
            &["gateway", "--max-connections", "9999999"],
            "--max-connections 9999999: expected a number from 1 to",
        ),
        (&["gateway", "--max-connections", "many"], "--max-connections many: expected a number from 1 to"),
        (
            &["gateway", "--max-message-bytes", "1K"],
            "--max-message-bytes 1K: expected a size such as 4M, from 64K",
        ),
        (&["gateway", "--max-list-items", "0"], "--max-list-items 0: expected a number from 1 to 1000000"),
        (
            &["gateway", "--max-memory", "1M"],
            "--max-memory 1M: expected a size such as 4M, from 16M to 2048M",
        ),
        (&["r", "--stdio", "cat", "--max-message-bytes", "1G"], "--max-message-bytes 1G"),
        (&["gateway", "--status-path", "/mcp"], "--mcp-path and --status-path have the same path"),
    ] {
        assert!(fault(line).contains(words), "{line:?}: {}", fault(line));
    }
}

#[test]
fn spellings() {
    for line in [["--message-path", "/m/"], ["--messages-path", "/m"]] {
        assert_eq!(gateway(&line, &[]).0.messages_path, "/m");
    }
    assert_eq!(gateway(&["--port=1", "--timeout-rpc=500ms"], &[]).0.timeout_rpc, Duration::from_millis(500));
    assert_eq!(gateway(&["--auth-token=--port=3"], &[]).0.tokens[0].expose(), "--port=3");
    assert_eq!(gateway(&["--auth-token", "a=b"], &[]).0.tokens[0].expose(), "a=b");
    let tls = ["--ssl-enabled", "--ssl-keyfile", "k", "--ssl-certfile", "c", "--ssl-ca-certs", "a"];
    assert!(gateway(&tls, &[]).0.tls.is_some_and(|tls| tls.client_ca.is_some()));
    assert_eq!(gateway(&["--log-level", "warning"], &[]).1, log::LevelFilter::Warn);
    assert_eq!(gateway(&["--debug"], &[]).1, log::LevelFilter::Debug);
}

#[test]
fn busy_poll() {
    assert!(gateway(&[], &[]).0.busy_poll && register(&[]).busy_poll);
    assert!(gateway(&["--busy-poll", "on"], &[]).0.busy_poll);
    assert!(!gateway(&["--busy-poll", "off"], &[]).0.busy_poll && !register(&["--busy-poll=off"]).busy_poll);
    assert!(!gateway(&[], &[("MCPPORT_BUSY_POLL", "off")]).0.busy_poll);
    assert!(gateway(&["--busy-poll", "on"], &[("MCPPORT_BUSY_POLL", "off")]).0.busy_poll);
}

#[test]
fn wildcards() {
    let host = |line: &[&str]| {
        let config = gateway(line, &[]).0;
        (config.host.unwrap_or_default(), config.ipv6)
    };
    assert_eq!(host(&["--host", "::"]), ("::".into(), true));
    assert_eq!(host(&["--host", "::", "--ipv6"]), ("::".into(), true));
    assert_eq!(host(&["--host", "0.0.0.0"]), ("0.0.0.0".into(), false));
    assert_eq!(host(&["--host", "0.0.0.0", "--ipv6"]), ("::".into(), true));
}

#[test]
fn the_environment_fills_in() {
    let environment = [
        ("MCPPORT_PORT", "7"),
        ("MCPPORT_ENABLE_CORS", "true"),
        ("MCPPORT_IPV6", "0"),
        ("MCPPORT_AUTH_TOKEN", "a\nb"),
        ("MCP_GATEWAY_AUTH_TOKENS", "c, register[a,b]:d"),
        ("MCPPORT_SSE_PATH", ""),
    ];
    let (config, _) = gateway(&[], &environment);
    assert_eq!((config.port, config.cors, config.ipv6, config.sse_path.as_str()), (7, true, false, "/sse"));
    let tokens: Vec<&str> = config.tokens.iter().map(|token| token.expose()).collect();
    assert_eq!(tokens, ["a", "b", "c", "register[a,b]:d"]);
    assert_eq!(gateway(&["--port", "9"], &environment).0.port, 9);
    let wrong = run(&["g"], &[("MCPPORT_DEBUG", "maybe")]);
    assert!(matches!(wrong, Err(FatalError::Usage(why)) if why.contains("MCPPORT_DEBUG")));
}

#[test]
fn unknown_variables_name_the_likely_one() {
    let complain = |line: &[&str], name: &str| match run(line, &[(name, "canary")]) {
        Err(fault @ FatalError::Usage(_)) => fault.to_string(),
        other => panic!("{name}: {other:?}"),
    };
    for (line, name, likely) in [
        (&["gateway"][..], "MCPPORT_AUTH_TOKENS", Some("MCPPORT_AUTH_TOKEN")),
        (&["gateway"], "MCPPORT_AUTHTOKEN", Some("MCPPORT_AUTH_TOKEN")),
        (&["gateway"], "MCPPORT_MESSAGE_PATH", Some("MCPPORT_MESSAGES_PATH")),
        (&["gateway"], "MCPPORT_port", None),
        (&["r", "--stdio", "cat"], "MCPPORT_HEADERS", Some("MCPPORT_HEADER")),
        (&["r", "--stdio", "cat"], "MCPPORT_AUTH_TOKENS", Some("MCPPORT_AUTH_TOKEN")),
        (&["device"], "MCPPORT_LOGS", Some("MCPPORT_LOG")),
        (&["demo"], "MCPPORT_ONCE_MORE", None),
        (&["gateway"], "MCPPORT_", None),
        (&["gateway"], "MCPPORT_SOMETHING_ELSE", None),
    ] {
        let complaint = complain(line, name);
        assert!(complaint.contains(&format!("unknown environment variable {name};")), "{complaint}");
        match likely {
            Some(likely) => assert!(complaint.contains(&format!("did you mean {likely}?")), "{complaint}"),
            None => assert!(!complaint.contains("did you mean"), "{complaint}"),
        }
        assert!(!complaint.contains("canary"), "{complaint}");
    }
    let long = format!("MCPPORT_{}", "X".repeat(100_000));
    assert!(complain(&["gateway"], &long).len() < 1000);
    // Variables of other commands, and of other programs.
    for name in ["MCPPORT_STDIO", "MCPPORT_LOG", "MCPPORT_ONCE", "MCP_OTHER", "PATH", "MCPPORT"] {
        gateway(&[], &[(name, "x")]);
    }
    let asked = run(&["gateway", "--help"], &[("MCPPORT_X", "")]);
    assert!(matches!(asked, Ok(Command::Print(_))), "{asked:?}");
}

/// Variables that Kubernetes sets for the services `mcpport` (with one port, and with a named port)
/// and `mcpport-gateway`.
#[test]
fn service_variables_of_kubernetes_are_ignored() {
    let services = [
        ("MCPPORT_SERVICE_HOST", "10.0.0.1"),
        ("MCPPORT_SERVICE_PORT", "8765"),
        ("MCPPORT_SERVICE_PORT_HTTP", "8765"),
        ("MCPPORT_SERVICE_PORT_HTTP_ALT", "8766"),
        ("MCPPORT_PORT", "tcp://10.0.0.1:8765"),
        ("MCPPORT_PORT_8765_TCP", "tcp://10.0.0.1:8765"),
        ("MCPPORT_PORT_8765_TCP_PROTO", "tcp"),
        ("MCPPORT_PORT_8765_TCP_PORT", "8765"),
        ("MCPPORT_PORT_8765_TCP_ADDR", "10.0.0.1"),
        ("MCPPORT_PORT_53_UDP", "udp://10.0.0.1:53"),
        ("MCPPORT_PORT_53_SCTP_ADDR", "fd00::1"),
        ("MCPPORT_GATEWAY_SERVICE_HOST", "10.0.0.2"),
        ("MCPPORT_GATEWAY_SERVICE_PORT", "8765"),
        ("MCPPORT_GATEWAY_PORT", "tcp://10.0.0.2:8765"),
        ("MCPPORT_GATEWAY_PORT_8765_TCP", "tcp://10.0.0.2:8765"),
    ];
    assert_eq!(gateway(&[], &services).0.port, 8765);
    assert_eq!(gateway(&["--port", "9"], &services).0.port, 9);
    let pod = [&services[..4], &[("MCPPORT_PORT", "7")]].concat();
    assert_eq!(gateway(&[], &pod).0.port, 7, "what the pod sets itself has the last word");
    for (name, value) in [
        ("MCPPORT_SERVICE", "x"),
        ("MCPPORT_SERVICE_NAME", "x"),
        ("MCPPORT_SERVICE_HOSTS", "10.0.0.1"),
        ("MCPPORT_SERVICE_PORTS", "8765"),
        ("MCPPORT_service_host", "10.0.0.1"),
        ("MCPPORT_PORT_8765", "tcp://10.0.0.1:8765"),
        ("MCPPORT_PORT_8765_HTTP", "tcp://10.0.0.1:8765"),
        ("MCPPORT_PORT_8765_TCP_NAME", "x"),
        ("MCPPORT_PORT_X_TCP", "tcp://10.0.0.1:8765"),
        ("MCPPORT_GATEWAY_PORT", "8765"),
        ("MCPPORT_PORT", "http://10.0.0.1:8765"),
        ("MCPPORT_PORT", "10.0.0.1:8765"),
    ] {
        assert!(matches!(run(&["gateway"], &[(name, value)]), Err(FatalError::Usage(_))), "{name}={value}");
    }
    assert!(fault(&["gateway", "--port", "tcp://10.0.0.1:8765"]).contains("--port"));
}

#[test]
fn variables_that_are_no_text_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let value = std::ffi::OsString::from_vec(b"t\xff".to_vec());
    let environment = Environment::of([("MCPPORT_AUTH_TOKEN".into(), value)].into_iter());
    let parsed = parse(&["gateway".to_owned()], &environment);
    assert!(
        matches!(&parsed, Err(FatalError::Usage(why)) if why.contains("MCPPORT_AUTH_TOKEN")),
        "{parsed:?}"
    );
}

#[test]
fn gateway_urls() {
    let url = |typed| register(&["--gateway-url", typed]).gateway.to_string();
    assert_eq!(register(&[]).gateway.to_string(), "ws://localhost:8765/mcp/register");
    assert_eq!(url("wss://gw.example"), "wss://gw.example:443/mcp/register");
    assert_eq!(url("ws://[::1]:5/x?token=secret"), "ws://[::1]:5/x");
    for (typed, meant) in [
        (" WSS://GW.Example ", "wss://gw.example:443/mcp/register"),
        ("https://h:", "wss://h:443/mcp/register"),
        ("http://h:1/#part", "ws://h:1/mcp/register"),
        ("ws://h?a=/b", "ws://h:80/mcp/register"),
        ("ws://192.0.2.7:65535/a/b%20c", "ws://192.0.2.7:65535/a/b%20c"),
        ("ws://[2001:DB8:0::1]/", "ws://[2001:db8::1]:80/mcp/register"),
    ] {
        assert_eq!(url(typed), meant, "{typed}");
    }
    let target = |typed| register(&["--gateway-url", typed]).gateway.target;
    assert_eq!(target("ws://h/x?a=b"), "/x?a=b");
    assert_eq!(target("ws://h?a=/b"), "/mcp/register?a=/b");
    for wrong in [
        "ws:/h",
        "ws://",
        "ws:///x",
        "ws://:80",
        "ws://h:0",
        "ws://h:65536",
        "ws://h:+5",
        "ws://h:-5",
        "ws://h:5x",
        "ws://h h",
        "ws://[::1",
        "ws://[::1]5",
        "ws://[h]",
        "ws://::1",
        "ws://h/a b",
        "ws://h/\"",
        "ws://h/\\",
        "ws://h%41",
        "ws://h/\r\nX: y",
    ] {
        let typed = ["register", "--stdio", "a", "--gateway-url", wrong];
        assert!(
            matches!(run(&typed, &[]), Err(FatalError::Usage(why)) if why.contains("--gateway-url")),
            "{wrong}"
        );
    }
}

#[test]
fn register_values() {
    let config =
        register(&["--header", "Authorization: Bearer a:b", "--header", "X-A:1", "--health-endpoint", "/up"]);
    assert_eq!(config.headers[0].0, "Authorization");
    assert_eq!(config.headers[0].1.expose(), "Bearer a:b");
    assert_eq!((config.headers.len(), config.name.as_str(), config.id.len()), (2, "local", 36));
    assert_eq!(config.health_paths, ["/health", "/up"]);
    assert!(!format!("{config:?}").contains("a:b"));
    assert_eq!(config.era, EraPin::Auto);
    for pin in EraPin::ALL {
        assert_eq!(register(&["--era", pin.word()]).era, pin);
    }
    assert_eq!(config.restart, Restart::OnFailure);
    for (typed, policy) in [("never", Restart::Never), ("always", Restart::Always)] {
        assert_eq!(register(&["--restart", typed]).restart, policy);
    }
}

#[test]
fn complaints_name_the_flag_and_no_secret() {
    for (line, why) in [
        (vec!["gateway", "--nonsense"], "--nonsense"),
        (vec!["gateway", "--"], "unknown flag --; see mcpport gateway --help"),
        (
            vec!["r", "--server-n", "x"],
            "unknown flag --server-n; did you mean --server-name? see mcpport register",
        ),
        (vec!["gateway", "--port"], "--port requires a value"),
        (vec!["gateway", "--port", "70000"], "--port 70000: expected a number from 0 to 65535"),
        (vec!["demo", "--port", "x"], "--port x: expected a number from 0 to 65535"),
        (
            vec!["gateway", "-p"],
            "unknown flag -p; is the value before it missing its quotes? see mcpport gateway",
        ),
        (
            vec!["gateway", "--allow-origin", "app.example"],
            "--allow-origin app.example: expected an origin such as",
        ),
        (vec!["gateway", "--allow-origin", "https://app.example/"], "without a path"),
        (
            vec!["gateway", "--public-host", "https://gw.example"],
            "--public-host https://gw.example: expected a name",
        ),
        (vec!["gateway", "--timeout-rpc", "soon"], "--timeout-rpc soon"),
        (vec!["gateway", "--timeout-rpc", "0"], "--timeout-rpc"),
        (vec!["gateway", "--log-level", "LOUD"], "--log-level LOUD"),
        (vec!["gateway", "--sse-path", "sse"], "--sse-path sse"),
        (vec!["gateway", "--sse-path", "/messages"], "same path"),
        (vec!["gateway", "--ssl-enabled"], "--ssl-keyfile and --ssl-certfile"),
        (vec!["gateway", "--ssl-keyfile", "x"], "without --ssl-enabled"),
        (vec!["gateway", "--auth-token", "ca nary"], "--auth-token"),
        (vec!["gateway", "--auth-token", "clients:canary"], "--auth-token"),
        (vec!["gateway", "--auth-token", "sha256:canary"], "64 hexadecimal digits"),
        (vec!["gateway", "--auth-token", "register[canary,]:x"], "may contain A-Z"),
        (vec!["gateway", "--threads", "0"], "--threads 0: expected a number from 1 to 64"),
        (vec!["gateway", "--busy-poll", "no"], "--busy-poll no: expected on or off"),
        (vec!["r", "--stdio", "a", "--busy-poll="], "--busy-poll"),
        (
            vec!["r", "--stdio", "a", "--sessions=isolated", "--max-sessions", "0"],
            "--max-sessions 0: expected a number",
        ),
        (vec!["register"], "--stdio is required: the server's command"),
        (vec!["register", "--stdio", ""], "--stdio"),
        (vec!["register", "--stdio", "a 'b"], "--stdio"),
        (vec!["register", "--stdio", "a", "--server-name", "a b"], "--server-name a b"),
        (vec!["register", "--stdio", "a", "--gateway-url", "canary"], "--gateway-url"),
        (vec!["register", "--stdio", "a", "--gateway-url", "ftp://canary/"], "ws://"),
        (vec!["register", "--stdio", "a", "--gateway-url", "wss://canary.bücher/"], "xn--"),
        (vec!["register", "--stdio", "a", "--gateway-url", "ws://u:canary@h/"], "--header"),
        (vec!["register", "--stdio", "a", "--header", "canary"], "--header"),
        (vec!["register", "--stdio", "a", "--header", "Host: canary"], "--header Host"),
        (vec!["register", "--stdio", "a", "--restart", "sometimes"], "--restart sometimes"),
        (vec!["r", "--stdio", "a", "--era", "new"], "--era new: expected auto, legacy or modern"),
        (vec!["register", "--stdio", "a", "--ssl-certfile", "c"], "--ssl-keyfile"),
        (vec!["register", "--stdio", "a", "--no-ssl-verify", "--ssl-ca-cert", "c"], "mutually exclusive"),
        (vec!["demo", "--ssl-keyfile", "canary"], "--ssl-ca-cert"),
        (vec!["--canary"], "a command before any flag"),
        (vec!["canary"], "unknown command"),
    ] {
        let said = fault(&line);
        assert!(said.contains(why), "{line:?}: {said}");
        assert!(!said.contains("canary") && !said.contains("ca nary"), "{line:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn every_flag_is_in_the_help_and_the_other_way_round() {
    for (command, flags) in [
        ("gateway", args::GATEWAY),
        ("register", args::REGISTER),
        ("device", args::DEVICE),
        ("demo", args::DEMO),
    ] {
        let Ok(Command::Print(help)) = run(&[command, "--help"], &[]) else { panic!("no help") };
        let mut listed: Vec<&str> = help
            .lines()
            .filter_map(|line| line.trim().strip_prefix("--")?.split_whitespace().next())
            .collect();
        let mut known: Vec<&str> = flags.iter().map(|flag| flag.name).collect();
        listed.retain(|name| *name != "help,");
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known, "{command}");
    }
}

/// Flags of other programs, and ends of flags with a wildcard, that the README names.
const FOREIGN: &[&str] = &[
    "all-targets",
    "allow-http",
    "binary",
    "cli",
    "domain",
    "help",
    "ip",
    "locked",
    "max-",
    "method",
    "now",
    "open",
    "path",
    "register",
    "release",
    "transport",
];

#[test]
fn readme_names_existing_flags_only() {
    let readme = include_str!("../../README.md");
    let flags: Vec<&Flag> =
        [args::GATEWAY, args::REGISTER, args::DEVICE, args::DEMO].into_iter().flatten().collect();
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let names = readme.split("--").skip(1).map(|rest| rest.split(|c| !is_part(c)).next().unwrap_or_default());
    // Table rules and dashes are no names.
    let names: Vec<&str> = names.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in &names {
        let known = FOREIGN.contains(name) || flags.iter().any(|flag| flag.name == *name);
        assert!(known, "--{name}");
    }
    for name in FOREIGN {
        assert!(names.contains(name), "--{name} is not in the README any more");
    }
    for rest in readme.split("MCPPORT_").skip(1) {
        let name = rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap_or_default();
        let variable = format!("MCPPORT_{name}");
        let known = flags.iter().any(|flag| environment::variable(flag) == variable);
        assert!(name.is_empty() || known, "{variable}");
    }
}

#[test]
fn help_states_the_real_defaults() {
    for (command, flags, base) in [
        ("gateway", args::GATEWAY, &["gateway"][..]),
        ("register", args::REGISTER, &["register", "--stdio", "cat", "--server-id", "x"]),
    ] {
        let takes_value = |name: &str| {
            flags.iter().any(|flag| name == format!("--{}", flag.name) && flag.takes != args::Takes::Nothing)
        };
        for (flag, default) in defaults(command).into_iter().filter(|(flag, _)| takes_value(flag)) {
            // --max-sessions is an error without --sessions isolated.
            let more: &[&str] = if flag == "--max-sessions" { &["--sessions", "isolated"] } else { &[] };
            let base = [base, more].concat();
            let typed = [&base[..], &[&flag, &default]].concat();
            let (without, with) = (run(&base, &[]), run(&typed, &[]));
            assert!(with.is_ok(), "{command} {flag} {default}: {with:?}");
            assert_eq!(format!("{with:?}"), format!("{without:?}"), "{command} {flag} {default}");
        }
    }
}

/// Returns the flags of a command whose help names a one-word default, with that default.
fn defaults(command: &str) -> Vec<(String, String)> {
    let Ok(Command::Print(help)) = run(&[command, "--help"], &[]) else { panic!("no help") };
    let mut found = Vec::new();
    for part in help.split("\n  --").skip(1) {
        let words: Vec<&str> = part.split_whitespace().collect();
        let pair = words.windows(2).find(|pair| pair[0] == "(default:");
        if let Some(default) = pair.and_then(|pair| pair[1].strip_suffix(')')) {
            found.push((format!("--{}", words[0]), default.to_owned()));
        }
    }
    assert!(found.len() > 3, "{found:?}");
    found
}

#[test]
fn help_fits_a_terminal_and_is_found_either_way() {
    let print = |line: &[&str]| match run(line, &[]) {
        Ok(Command::Print(text)) => text,
        other => panic!("{other:?}"),
    };
    for command in ["gateway", "register", "device", "demo"] {
        let help = print(&[command, "--help"]);
        assert_eq!(help, print(&["help", command]));
        assert!(help.starts_with(&format!("Usage: mcpport {command}")), "{help}");
        assert!(help.contains("MCPPORT_SOME_FLAG"), "{help}");
        for line in help.lines() {
            assert!(line.chars().count() <= 100, "{command}: {line}");
        }
    }
    assert!(print(&["help", "help"]).contains("register, r"));
    assert!(fault(&["help", "canary"]).contains("unknown command"));
}

#[test]
fn origins_and_hosts_as_browsers_send_them() {
    let typed = ["https://app.example:8443", "vscode-webview://x", "null", "*"];
    let line = typed.map(|origin| format!("--allow-origin={origin}"));
    assert_eq!(gateway(&line.each_ref().map(String::as_str), &[]).0.allow_origins, typed);
    assert_eq!(gateway(&["--public-host", "gw.example:8765"], &[]).0.public_hosts, ["gw.example:8765"]);
}

#[test]
fn public_urls() {
    for (url, host, prefix) in [
        ("https://gw.example", "gw.example", ""),
        ("https://gw.example/", "gw.example", ""),
        ("https://gw.example/base", "gw.example", "/base"),
        ("HTTPS://GW.example:8443/a/b-c_d.e~f/", "gw.example", "/a/b-c_d.e~f"),
        ("http://[2001:db8::1]/x", "2001:db8::1", "/x"),
    ] {
        let (typed, _) = gateway(&["--public-url", url], &[]);
        let (filled_in, _) = gateway(&[], &[("MCPPORT_PUBLIC_URL", url)]);
        for config in [typed, filled_in] {
            assert_eq!((&*config.public_hosts, &*config.public_prefix), (&[host.to_owned()][..], prefix));
        }
    }
    let both = ["--public-host", "a.example", "--public-url", "https://b.example/x"];
    assert_eq!(gateway(&both, &[]).0.public_hosts, ["a.example", "b.example"]);
    let long = format!("https://h/{}", "a".repeat(256));
    for wrong in [
        "",
        "gw.example/canary",
        "/canary",
        "ftp://h/canary",
        "wss://h/canary",
        "https://",
        "https:///canary",
        "https://u:canary@h/",
        "https://h:0/canary",
        "https://h:99999/canary",
        "https://h//canary",
        "https://h/canary//",
        "https://h/../canary",
        "https://h/./canary",
        "https://h/can%61ry",
        "https://h/a?canary",
        "https://h?canary",
        "https://h/a#canary",
        "https://h/a canary",
        "https://h/canary\r\nx",
        "https://h\u{e9}/canary",
        &long,
    ] {
        let said = fault(&["gateway", "--public-url", wrong]);
        assert!(said.starts_with("--public-url: expected a URL such as https://gw.example/base"), "{said}");
        assert!(!said.contains("canary") && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn version_and_overview() {
    for line in [vec!["-v"], vec!["--version"]] {
        assert!(
            matches!(run(&line, &[]), Ok(Command::Print(text)) if text.contains(env!("CARGO_PKG_VERSION")))
        );
    }
    for line in [vec![], vec!["--help"]] {
        assert!(matches!(run(&line, &[]), Ok(Command::Print(text)) if text.contains("register, r")));
    }
}
