//! Every flag of `mcpport register`, `device` and `demo`: each test fails when its flag is ignored. Those of TLS are in `secure`.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
};

use mcpport::mcp::exposed_name::exposed;
use rustix::process::Signal;

use crate::{
    directory,
    flags_gateway::helpers,
    harness::{Edge, Gateway, Program, command, eventually, listening},
    wire::{Client, get, request, tcp},
};

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Runs `register` with a local health check on a port that was free. If another process takes the
/// port first, retries with another one.
#[track_caller]
pub fn with_health(url: &str, arguments: &[&str]) -> (Edge, SocketAddr) {
    loop {
        let port = free_port();
        let mut edge = Edge::start(url, "s", &[], &[&["--port", &port.to_string()], arguments].concat());
        eventually("it listens or ends", || {
            edge.program.log().contains("health check on") || !edge.program.is_running()
        });
        if edge.program.is_running() {
            return (edge, ([127, 0, 0, 1], port).into());
        }
        let end = edge.program.ended();
        assert!(end.complaint()[0].contains("in use"), "{:?}", end.stderr);
    }
}

/// Returns the first bytes that `register` sends: the lines of its upgrade request.
fn upgrade_request(target: &str, arguments: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let _edge = Edge::start(&format!("ws://{address}{target}"), "s", &[], arguments);
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Returns the program name of a process.
fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim().to_owned()
}

#[test]
fn stdio_directly() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--tool", "'$HOME'", "--tool", "\"a b\"", "--tool", r"c\ d"], &[]);
    assert_eq!(comm(edge.server_pid()), "fake-server");
    let list = gateway.client().ask("tools/list", "{}");
    for tool in ["s__HOME", "s_a_b", "s_c_d"] {
        assert!(list.contains(tool), "{list}");
    }
}

#[test]
fn stdio_by_the_shell() {
    let gateway = Gateway::start(&[]);
    let log = directory("fake").join("log");
    let stdio = format!("IT_SAYS=$((6 * 7)) {} | cat", command(&log, &[]));
    let arguments = ["r", "--stdio", &stdio, "--gateway-url", &gateway.url()];
    let program = Program::start(&arguments);
    gateway.program.wait_for("server 'local' offers");
    let pid: u32 = program.wait_for("started, pid").rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(comm(pid), "sh");
    assert_eq!(gateway.client().call_text("local_env", r#"{"name":"IT_SAYS"}"#), "42");
}

#[test]
fn our_variables_are_hidden_from_the_server() {
    let gateway = Gateway::start(&["--auth-token", "canary"]);
    let log = directory("fake").join("log");
    let stdio = command(&log, &[]);
    let url = gateway.url();
    let variables = [
        ("MCPPORT_STDIO", stdio.as_str()),
        ("MCPPORT_GATEWAY_URL", &url),
        ("MCPPORT_SERVER_NAME", "environment"),
        ("MCPPORT_SERVER_ID", "id-of-environment"),
        ("MCPPORT_HEADER", "Authorization: Bearer canary\nX-Other: 1"),
        ("MCP_GATEWAY_AUTH_TOKENS", "canary"),
        ("IT_PLAIN", "plain"),
    ];
    let _program = Program::start_in(&["register"], &variables);
    gateway.program.wait_for("server 'environment' offers");
    let mut client = Client::ready(gateway.address, &["Authorization: Bearer canary"]);
    assert!(client.call("list_servers", "{}").contains("id-of-environment"));
    assert_eq!(client.call_text("environment_env", r#"{"name":"IT_PLAIN"}"#), "plain");
    for (name, _) in &variables[..6] {
        assert_eq!(client.call_text("environment_env", &format!("{{\"name\":\"{name}\"}}")), "", "{name}");
    }
}

#[test]
fn gateway_url() {
    let head = upgrade_request("/other/place?x=y", &[]);
    assert!(head.starts_with("GET /other/place?x=y HTTP/1.1\r\n"), "{head}");
    let head = upgrade_request("", &[]);
    assert!(head.starts_with("GET /mcp/register HTTP/1.1\r\n"), "{head}");
    for line in ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Connection: Upgrade"] {
        assert!(head.to_ascii_lowercase().contains(&line.to_ascii_lowercase()), "{head}");
    }
}

#[test]
fn header_file() {
    let path = directory("headers").join("headers");
    fs::write(&path, "# ours\n\nAuthorization: Bearer a:b\r\n  X-Box: number 1\n").unwrap();
    let file = path.to_str().unwrap();
    let head = upgrade_request("/mcp/register", &["--header-file", file, "--header", "X-Tight:2"]);
    let head = head.to_ascii_lowercase();
    for line in ["authorization: bearer a:b\r\n", "x-box: number 1\r\n", "x-tight: 2\r\n"] {
        assert!(head.contains(line), "{head}");
    }
    for (content, expected) in [
        (&b"X: 1\ncanary\n"[..], ", line 2: expected \"Key: Value\""),
        (b"Host: canary", ", line 1 Host: this field is set by mcpport"),
        (b"# canary\n\n", ": the file contains no header field"),
        (b"X: canary\xff", ": not a text file"),
        (&vec![b'#'; 1 << 20 | 1], ": file too large: more than 1048576 bytes"),
        (b"\nBearer canary: x", ", line 2: the field name contains a character that HTTP does not allow"),
        (b"X: cana\x01ry", ", line 1 X: the value contains a character that HTTP does not allow"),
        (
            "X: b\u{e4}r canary".as_bytes(),
            ", line 1 X: the value contains a character that HTTP does not allow",
        ),
    ] {
        fs::write(&path, content).unwrap();
        let end = Program::start(&["register", "--stdio", "cat", "--header-file", file]).ended();
        let complaint = end.complaint().join("\n");
        assert_eq!(end.code, Some(2), "{complaint}");
        assert!(complaint.contains(&format!("--header-file {file}{expected}")), "{complaint}");
        assert!(!complaint.contains("canary"), "{complaint}");
    }
    fs::remove_file(&path).unwrap();
    let end = Program::start(&["register", "--stdio", "cat", "--header-file", file]).ended();
    assert!(end.complaint().join("\n").contains(&format!("--header-file {file}: no such file")));
}

/// Like ssh with keys, but only a warning.
#[test]
fn header_file_open_to_others_is_warned_of() {
    let path = directory("open-headers").join("headers");
    let file = path.to_str().unwrap();
    fs::write(&path, "Authorization: Bearer canary\n").unwrap();
    let gateway = Gateway::start(&["--auth-token", "canary"]);
    for (mode, warned) in [(0o644, true), (0o640, true), (0o620, true), (0o600, false), (0o400, false)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let name = format!("mode{mode:o}");
        let mut edge = Edge::start(&gateway.url(), &name, &[], &["--header-file", file]);
        edge.program.wait_for("registered");
        edge.program.stop();
        let log = edge.program.log();
        let expected = format!(
            "[WARN] --header-file {file}: other users have access to this file (mode {mode:o}); run chmod 600 on it"
        );
        assert_eq!(log.matches(&expected).count(), usize::from(warned), "{log}");
        assert_eq!(log.matches("other users have access").count(), usize::from(warned), "{log}");
        assert!(!log.contains("canary"), "{log}");
    }
}

#[test]
fn header() {
    let head = upgrade_request(
        "/",
        &["--header", "Authorization: Bearer a:b", "--header=X-Box: number 1", "--header", "X-Tight:2"],
    );
    let head = head.to_ascii_lowercase();
    for line in ["authorization: bearer a:b\r\n", "x-box: number 1\r\n", "x-tight: 2\r\n"] {
        assert!(head.contains(line), "{head}");
    }
}

#[test]
fn server_name_and_server_id() {
    let gateway = Gateway::start(&[]);
    let _named = gateway.edge_with("Box-7.x", &[], &["--server-id", "the id"]);
    let _other = gateway.edge("other");
    let answer = gateway.client().call("list_servers", "{}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let servers = answer["result"]["structuredContent"]["servers"].as_array().unwrap();
    assert_eq!((&servers[0]["id"], &servers[0]["name"]), (&"the id".into(), &"Box-7.x".into()));
    assert_eq!(servers[1]["id"].as_str().unwrap().len(), 36, "a UUID");
    assert!(gateway.client().tools().contains(&exposed("Box-7.x", "echo", 64)));
}

#[test]
fn sessions_and_max_sessions() {
    let gateway = Gateway::start(&[]);
    let _shared = gateway.edge_with("shared", &[], &["--sessions", "shared"]);
    let isolated = ["--sessions", "isolated", "--max-sessions", "2"];
    let edge = gateway.edge_with("isolated", &[], &isolated);
    let (mut one, mut other) = (gateway.client(), gateway.client());
    assert_eq!(one.call_text("shared_pid", "{}"), other.call_text("shared_pid", "{}"));
    let own = one.call_text("isolated_pid", "{}");
    assert_eq!(one.call_text("isolated_pid", "{}"), own, "one process for all of a session");
    assert_ne!(other.call_text("isolated_pid", "{}"), own);
    let mut third = gateway.client();
    let refused = third.call("isolated_pid", "{}");
    assert!(refused.contains("--max-sessions") && refused.contains("\"error\""), "{refused}");
    let processes = edge.program.offspring().len();
    drop(one);
    eventually("its process ends", || edge.program.offspring().len() < processes);
    let mut fresh = third.call("isolated_pid", "{}");
    eventually("there is room again", || {
        fresh = third.call("isolated_pid", "{}");
        !fresh.contains("\"error\"")
    });
}

#[test]
fn require_gateway() {
    let url = format!("ws://127.0.0.1:{}/mcp/register", free_port());
    let mut strict = Edge::start(&url, "s", &[], &["--require-gateway"]);
    let end = strict.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
    assert!(end.complaint()[0].contains("connection refused"), "{:?}", end.stderr);
    assert!(strict.program.offspring().is_empty());
    let mut patient = Edge::start(&url, "s", &[], &[]);
    patient.program.wait_for("reconnecting in");
    assert!(patient.program.is_running());
}

#[test]
fn port_and_health_endpoint() {
    let mut gateway = Gateway::start(&[]);
    let (edge, health) =
        with_health(&gateway.url(), &["--health-endpoint", "/a", "--health-endpoint", "/b/c"]);
    edge.program.wait_for("registered");
    for (path, status) in [("/health", 200), ("/a", 200), ("/b/c", 200), ("/", 404), ("/b", 404)] {
        assert_eq!(get(health, path).status, status, "{path}");
    }
    assert_eq!(request(health, "POST", "/health", &[], "").status, 405);
    gateway.program.kill();
    edge.program.wait_for("reconnecting in");
    for path in ["/health", "/a", "/b/c"] {
        assert_eq!(get(health, path).status, 503, "{path}");
    }
}

#[test]
fn the_local_health_check_is_local() {
    let gateway = Gateway::start(&[]);
    let (_edge, health) = with_health(&gateway.url(), &[]);
    let other = SocketAddr::from(([127, 0, 0, 2], health.port()));
    assert!(std::net::TcpStream::connect(other).is_err(), "only at the given path");
    let mut wire = crate::wire::Wire::connect(health);
    assert_eq!(crate::wire::ask(&mut wire, "GET", "/health", &["Host: evil.example"], "").status, 403);
}

#[test]
fn enable_cors() {
    let gateway = Gateway::start(&["--resume-window", "0"]);
    for (arguments, expected) in [(&[][..], None), (&["--enable-cors"], Some("*"))] {
        let (_edge, health) = with_health(&gateway.url(), arguments);
        let answer = request(health, "GET", "/health", &["Origin: https://page.example"], "");
        assert_eq!(answer.field("access-control-allow-origin"), expected);
    }
}

#[test]
fn log_level() {
    let gateway = Gateway::start(&[]);
    for (level, expected) in [
        ("DEBUG", &["DEBUG", "INFO", "WARN"][..]),
        ("info", &["INFO", "WARN"]),
        ("Warning", &["WARN"]),
        ("ERROR", &[]),
        ("critical", &[]),
    ] {
        let name = format!("at-{level}");
        let mut edge = gateway.edge_with(&name, &[], &["--log-level", level]);
        gateway.client().call(&format!("{name}_noise"), "{}");
        edge.program.stop();
        let log = edge.program.log();
        let seen: Vec<&str> = ["DEBUG", "INFO", "WARN"]
            .into_iter()
            .filter(|level| log.contains(&format!("[{level}]")))
            .collect();
        assert_eq!(seen, expected, "{level}: {log}");
    }
}

#[test]
fn threads() {
    let gateway = Gateway::start(&[]);
    for (arguments, expected) in [(&[][..], 0), (&["--threads", "3"], 2)] {
        let edge = gateway.edge_with(&format!("s{expected}"), &[], arguments);
        eventually("all threads run", || helpers(&edge.program) == expected);
    }
}

#[test]
fn log_of_device() {
    let file = directory("device").join("own.log");
    fs::write(&file, "first line\nlast line\n").unwrap();
    let other = directory("device").join("other.log");
    fs::write(&other, "secret line\n").unwrap();
    let gateway = Gateway::start(&[]);
    let stdio = format!("'{}' device --log '{}'", env!("CARGO_BIN_EXE_mcpport"), file.display());
    let _program = Program::start(&["register", "--stdio", &stdio, "--gateway-url", &gateway.url()]);
    gateway.program.wait_for("server 'local' offers");
    let mut client = gateway.client();
    let asked = |path: &std::path::Path| serde_json::json!({ "file": path }).to_string();
    let tail = client.tools().into_iter().find(|tool| tool.ends_with("log_tail")).unwrap();
    assert!(client.call(&tail, &asked(&file)).contains("last line"));
    let refused = client.call(&tail, &asked(&other));
    assert!(!refused.contains("secret line") && refused.contains("\"isError\":true"), "{refused}");
}

#[test]
fn demo_once() {
    let mut program = Program::start(&["demo", "--once"]);
    let end = program.ended();
    assert_eq!(end.code, Some(0), "{:?}", end.stderr);
    assert_eq!(end.stderr, [""; 0], "WARNING is its level, and nothing is to be warned of");
    for line in ["gateway   http://127.0.0.1:", "device_system", "host: ", "Without --once"] {
        program.wait_for_output(line);
    }
    assert!(program.offspring().is_empty());
}

#[test]
fn demo_serves_until_it_is_stopped() {
    let mut program = Program::start(&["demo", "--log-level", "INFO"]);
    let port = listening(&program).port();
    program.wait_for_output(&format!(r#""type": "http", "url": "http://127.0.0.1:{port}/mcp""#));
    program.wait_for_output("mcpport register --stdio \"npx");
    program.wait_for_output("Serving until Ctrl-C");
    let mut client = Client::ready(listening(&program), &[]);
    assert!(client.call("device_system", "{}").contains("structuredContent"));
    drop(client);
    program.signal(Signal::INT);
    assert_eq!(program.ended().code, Some(0));
    assert!(program.offspring().is_empty());
}

#[test]
fn demo_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let end = Program::finish(&["demo", "--once", "--port", &port]);
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
    assert!(end.complaint()[0].contains(&port), "{:?}", end.stderr);
    // The port is free again, so the same command works.
    drop(taken);
    let mut program = Program::start(&["demo", "--port", &port]);
    program.wait_for_output(&format!("http://127.0.0.1:{port}/sse"));
    let mut wire = tcp(([127, 0, 0, 1], port.parse().unwrap()).into());
    wire.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    program.stop();
}
