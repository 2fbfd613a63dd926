//! Every flag of `mcpport gateway`: each test fails when its flag is ignored. Those of TLS are in `secure`.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    directory,
    frames::End,
    harness::{Edge, Gateway, Program, eventually},
    session::{BOTH, Session, call, call_with, events, request as rpc, value},
    wire::{Client, get, request},
};

fn answers(host: &str, port: u16) -> bool {
    let Ok(address) = format!("{host}:{port}").parse::<SocketAddr>() else { return false };
    TcpStream::connect(address).is_ok() && get(address, "/health").status == 200
}

/// Whether this machine has an IPv6 loopback.
fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn host() {
    for (arguments, four, six, other) in [
        (&[][..], true, true, false),
        (&["--host", "localhost"], true, true, false),
        (&["--host", "127.0.0.1"], true, false, false),
        (&["--host", "127.0.0.2"], false, false, true),
        (&["--host", "::1"], false, true, false),
        (&["--host", "0.0.0.0"], true, false, true),
        (&["--host", "0.0.0.0", "--ipv6"], true, true, true),
        (&["--host", "::"], true, true, true),
        (&["--host=::", "--ipv6"], true, true, true),
    ] {
        if arguments.contains(&"::1") && !has_ipv6() {
            continue;
        }
        let gateway = Gateway::start(arguments);
        let port = gateway.address.port();
        let reached = ["127.0.0.1", "[::1]", "127.0.0.2"].map(|host| answers(host, port));
        assert_eq!(reached, [four, six && has_ipv6(), other], "{arguments:?}");
    }
}

#[test]
fn a_wildcard_answers_clients_and_edges_in_both_families() {
    let gateway = Gateway::start(&["--host", "::"]);
    let port = gateway.address.port();
    let hosts: &[&str] = if has_ipv6() { &["127.0.0.1", "[::1]"] } else { &["127.0.0.1"] };
    for (number, host) in hosts.iter().enumerate() {
        let name = format!("s{number}");
        let _edge = Edge::start(&format!("ws://{host}:{port}/mcp/register"), &name, &[], &[]);
        gateway.program.wait_for(&format!("server '{name}' offers"));
        let mut client = Client::ready(format!("{host}:{port}").parse().unwrap(), &[]);
        assert_eq!(client.call_text(&format!("{name}_echo"), r#"{"text":"x"}"#), "x");
    }
}

#[test]
fn a_gateway_without_tokens_warns_at_start() {
    let open = Gateway::start(&["--host", "0.0.0.0"]);
    assert!(open.program.wait_for("[WARN]").contains("ANYONE"));
    let closed = Gateway::start(&["--host", "0.0.0.0", "--auth-token", "t"]);
    assert!(closed.program.wait_for("[WARN]").contains("tokens are sent unencrypted"));
    assert!(!closed.program.log().contains("ANYONE"));
    let local = Gateway::start(&[]);
    get(local.address, "/health");
    assert!(!local.program.log().contains("[WARN]"), "{}", local.program.log());
}

#[test]
fn port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let end = Program::finish(&["gateway", "--host", "127.0.0.1", "--port", &port]);
    assert_eq!(end.code, Some(1));
    assert!(end.complaint()[0].contains(&port) && end.complaint()[0].contains("in use"), "{:?}", end.stderr);
}

/// Returns the port on which a process listens, for programs that do not log it.
fn port_of(program: &Program) -> u16 {
    let mut found = None;
    eventually("it listens", || {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", program.pid())).unwrap();
        let inodes: Vec<String> = fs::read_dir(format!("/proc/{}/fd", program.pid()))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()?.to_str().map(str::to_owned))
            .collect();
        found = table.lines().skip(1).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields[3] == "0A" && inodes.contains(&format!("socket:[{}]", fields[9]));
            let port = u16::from_str_radix(fields[1].split(':').nth(1)?, 16).ok()?;
            listens.then_some(port)
        });
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn log_level() {
    for (arguments, expected) in [
        (&["--log-level", "DEBUG"][..], &["DEBUG", "INFO", "WARN"][..]),
        (&["--debug", "--log-level", "ERROR"], &["DEBUG", "INFO", "WARN"]),
        (&[], &["INFO", "WARN"]),
        (&["--log-level", "info"], &["INFO", "WARN"]),
        (&["--log-level", "Warning"], &["WARN"]),
        (&["--log-level", "ERROR"], &[]),
        (&["--log-level", "critical"], &[]),
    ] {
        let all = ["gateway", "--port", "0", "--host", "0.0.0.0"];
        let mut program = Program::start(&[&all, arguments].concat());
        let address = ([127, 0, 0, 1], port_of(&program)).into();
        let mut client = Client::ready(address, &[]);
        client.ask("ping", "{}");
        drop(client);
        program.stop();
        let log = program.log();
        let seen: Vec<&str> = ["DEBUG", "INFO", "WARN"]
            .into_iter()
            .filter(|level| log.contains(&format!("[{level}]")))
            .collect();
        assert_eq!(seen, expected, "{arguments:?}: {log}");
    }
}

#[test]
fn timeout_rpc_bounds_a_registration() {
    for value in ["300ms", "1", "1s"] {
        let gateway = Gateway::start(&["--timeout-rpc", value, "--timeout-run-tool", "60s"]);
        let mut edge = Edge::start(&gateway.url(), "s", &["--mute", "tools/list"], &["--require-gateway"]);
        let end = edge.program.ended();
        assert_eq!(end.code, Some(1), "{:?}", end.stderr);
        let seconds = if value == "300ms" { "0.3" } else { "1" };
        let expected = format!("tools/list timed out after {seconds} s (see --timeout-rpc at the gateway)");
        assert!(end.complaint()[0].contains(&expected), "{:?}", end.stderr);
    }
}

#[test]
fn timeout_rpc_bounds_a_list_after_a_change() {
    let gateway = Gateway::start(&["--timeout-rpc", "1500ms"]);
    let _edge = gateway.edge_with("s", &["--once", "tools/list"], &[]);
    let mut client = gateway.client();
    client.call("s_change", "{}");
    let line = gateway.program.wait_for("timed out after");
    assert!(line.contains("tools/list timed out after 1.5 s; keeping its previous lists"), "{line}");
    assert_eq!(client.call_text("s_echo", r#"{"text":"still here"}"#), "still here");
}

#[test]
fn timeout_run_tool_bounds_calls_and_the_start_of_a_server() {
    for (value, shown) in [("1500ms", "1.5"), ("2", "2")] {
        let gateway = Gateway::start(&["--timeout-run-tool", value, "--timeout-rpc", "60s"]);
        let edge = gateway.edge("s");
        let mut client = gateway.client();
        let begun = Instant::now();
        let answer = client.call("s_hold", r#"{"key":"k"}"#);
        let expected = format!("server 's' did not respond within {shown} s");
        assert!(answer.contains(&expected) && answer.contains("-32001"), "{answer}");
        assert!(begun.elapsed() >= Duration::from_millis(1500));
        edge.wait_for("notifications/cancelled");
        let mut slow = Edge::start(&gateway.url(), "slow", &["--mute", "initialize"], &["--require-gateway"]);
        let end = slow.program.ended();
        assert!(
            end.complaint()[0]
                .contains(&format!("initialize timed out after {shown} s (see --timeout-run-tool at")),
            "{:?}",
            end.stderr
        );
    }
}

#[test]
fn a_call_may_take_as_long_as_the_flag_says() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2m", "--timeout-rpc", "1s"]);
    let _edge = gateway.edge("s");
    assert_eq!(gateway.client().call_text("s_sleep", r#"{"ms":1600}"#), "slept");
}

#[test]
fn timeout_run_tool_bounds_the_result_of_a_task() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2m", "--timeout-rpc", "1s"]);
    let mut server = End::register(gateway.address, "{}");
    gateway.program.wait_for("server 's' offers");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let mut waiting = session.send("POST", &[BOTH], &rpc(1, "tasks/result", json!({"taskId": "x"})));
    let id = server.request("", "tasks/result");
    let lookup = session.post(&rpc(2, "tasks/get", json!({"taskId": "x"}))).body;
    assert!(lookup.contains("did not respond within 1 s"), "{lookup}");
    server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"done":true}}}}"#));
    assert_eq!(value(&waiting.answer().body)["result"], json!({"done": true}));
}

#[test]
fn progress_extends_timeout_run_tool() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2s"]);
    let mut server = End::register(gateway.address, "{}");
    gateway.program.wait_for("server 's' offers");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    let works = session.send("POST", &[BOTH], &call_with(1, "t", json!({}), "p"));
    let id = server.request("", "tools/call");
    let mut hangs = session.send("POST", &[BOTH], &call(2, "t", json!({})));
    server.request("", "tools/call");
    let begun = Instant::now();
    for step in 1.. {
        server.say(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{id},"progress":{step}}}}}"#
        ));
        if begun.elapsed() > Duration::from_secs(5) {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let failed = hangs.answer().body;
    assert!(failed.contains("did not respond within 2 s"), "{failed}");
    server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[]}}}}"#));
    let last = events(works).all().pop().unwrap();
    assert_eq!(last["result"], json!({"content": []}));
}

#[test]
fn sse_path() {
    let gateway = Gateway::start(&["--sse-path", "/events/all"]);
    assert_eq!(get(gateway.address, "/sse").status, 404);
    let mut client = Client::open(gateway.address, "/events/all", &[]);
    client.initialize();
}

#[test]
fn mcp_path() {
    let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    let accept = ["Accept: application/json, text/event-stream"];
    for (arguments, path, other) in [(&[][..], "/mcp", "/in"), (&["--mcp-path", "/in"], "/in", "/mcp")] {
        let gateway = Gateway::start(arguments);
        let answer = request(gateway.address, "POST", path, &accept, initialize);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.field("mcp-session-id").is_some() && answer.body.contains("2025-06-18"), "{answer:?}");
        assert_eq!(request(gateway.address, "POST", other, &accept, initialize).status, 404);
    }
}

#[test]
fn messages_path() {
    for (arguments, endpoint, other) in [
        (&[][..], "/messages", "/messages/"),
        (&["--messages-path", "/in"], "/in", "/in/"),
        (&["--message-path", "/in"], "/in", "/in/"),
        (&["--message-path=/in/"], "/in", "/in/"),
    ] {
        let gateway = Gateway::start(arguments);
        let mut client = Client::open(gateway.address, "/sse", &[]);
        assert_eq!(client.endpoint.split('?').next(), Some(endpoint));
        client.initialize();
        client.endpoint = client.endpoint.replace(endpoint, other);
        client.ask("ping", "{}");
        if endpoint != "/messages" {
            assert_eq!(request(gateway.address, "POST", "/messages", &[], "{}").status, 404);
        }
    }
}

#[test]
fn health_endpoint() {
    let gateway = Gateway::start(&[]);
    let answer = get(gateway.address, "/health");
    assert_eq!((answer.status, answer.body.as_str()), (200, "ok"));
    let gateway = Gateway::start(&["--health-endpoint", "/up"]);
    assert_eq!(get(gateway.address, "/up").status, 200);
    assert_eq!(get(gateway.address, "/health").status, 404);
}

#[test]
fn tokens_from_everywhere() {
    let file = directory("tokens").join("tokens");
    fs::write(&file, "# who may come in\nfrom-file\n\n  second-line  \r\n#commented-out\n").unwrap();
    let gateway = Gateway::start_in(
        &["--auth-token", "first", "--auth-token=second", "--auth-token-file", file.to_str().unwrap()],
        &[("MCP_GATEWAY_AUTH_TOKENS", "from-list, another")],
    );
    let status = |token: &str| {
        request(gateway.address, "GET", "/status", &[&format!("Authorization: Bearer {token}")], "").status
    };
    for token in ["first", "second", "from-file", "second-line", "from-list", "another"] {
        assert_eq!(status(token), 200, "{token}");
    }
    for token in
        ["commented-out", "#commented-out", "firs", "firstt", "from-list,", "from-list, another", "#"]
    {
        assert_eq!(status(token), 401, "{token}");
    }
    let gateway = Gateway::start_in(&[], &[("MCPPORT_AUTH_TOKEN", "a\nb")]);
    for (token, status) in [("a", 200), ("b", 200), ("c", 401)] {
        let line = format!("Authorization: Bearer {token}");
        assert_eq!(request(gateway.address, "GET", "/status", &[&line], "").status, status, "{token}");
    }
}

#[test]
fn the_environment_stands_in_for_flags() {
    let gateway = Gateway::start_in(
        &["--health-endpoint", "/flag"],
        &[
            ("MCPPORT_SSE_PATH", "/events"),
            ("MCPPORT_MESSAGES_PATH", "/in"),
            ("MCPPORT_HEALTH_ENDPOINT", "/environment"),
            ("MCPPORT_DEBUG", "1"),
        ],
    );
    let client = Client::open(gateway.address, "/events", &[]);
    assert!(client.endpoint.starts_with("/in?"));
    assert_eq!(get(gateway.address, "/flag").status, 200, "the flag takes precedence");
    assert_eq!(get(gateway.address, "/environment").status, 404);
    gateway.program.wait_for("[DEBUG]");
}

#[test]
fn allow_origin() {
    let gateway =
        Gateway::start(&["--allow-origin", "https://a.example", "--allow-origin", "https://b.example"]);
    let status =
        |origin: &str| request(gateway.address, "GET", "/health", &[&format!("Origin: {origin}")], "").status;
    for (origin, expected) in [
        ("https://a.example", 200),
        ("https://b.example", 200),
        ("http://localhost:3000", 200),
        ("https://c.example", 403),
        ("https://a.example.evil", 403),
        ("null", 403),
    ] {
        assert_eq!(status(origin), expected, "{origin}");
    }
    let everybody = Gateway::start(&["--allow-origin", "*"]);
    assert_eq!(request(everybody.address, "GET", "/health", &["Origin: https://c.example"], "").status, 200);
}

#[test]
fn enable_cors() {
    let origin = "Origin: http://localhost:3000";
    let preflight =
        [origin, "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization"];
    let gateway = Gateway::start(&["--enable-cors", "--auth-token", "t"]);
    for path in ["/messages", "/sse"] {
        let answer = request(gateway.address, "OPTIONS", path, &preflight, "");
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(answer.field("access-control-allow-origin"), Some("http://localhost:3000"));
        assert!(answer.field("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
        let allowed = answer.field("access-control-allow-headers").unwrap().to_ascii_lowercase();
        assert!(allowed.contains("authorization") && allowed.contains("content-type"), "{allowed}");
        assert_eq!(answer.field("vary"), Some("Origin"));
    }
    // A page must be able to read the refusal, too.
    for (lines, status) in [(&[origin][..], 401), (&[origin, "Authorization: Bearer t"], 200)] {
        let answer = request(gateway.address, "GET", "/status", lines, "");
        assert_eq!(answer.status, status);
        assert_eq!(answer.field("access-control-allow-origin"), Some("http://localhost:3000"));
    }
    let stranger = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"];
    let answer = request(gateway.address, "OPTIONS", "/messages", &stranger, "");
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (403, None), "{answer:?}");

    let plain = Gateway::start(&[]);
    let answer = request(plain.address, "OPTIONS", "/messages", &preflight, "");
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (405, None));
    let answer = request(plain.address, "GET", "/health", &[origin], "");
    assert_eq!((answer.status, answer.field("access-control-allow-origin")), (200, None));
}

#[test]
fn public_host() {
    let status = |gateway: &Gateway, host: &str| {
        let mut wire = crate::wire::Wire::connect(gateway.address);
        crate::wire::ask(&mut wire, "GET", "/health", &[&format!("Host: {host}")], "").status
    };
    let gateway = Gateway::start(&["--public-host", "gw.example", "--public-host", "other.example"]);
    for (host, expected) in [
        ("gw.example", 200),
        ("GW.example:8765", 200),
        ("other.example", 200),
        ("x.gw.example", 403),
        ("evil", 403),
    ] {
        assert_eq!(status(&gateway, host), expected, "{host}");
    }
    assert_eq!(status(&Gateway::start(&[]), "gw.example"), 403);
    // With a token required, DNS rebinding gives a page no access.
    let guarded = Gateway::start(&["--auth-token", "t"]);
    let mut wire = crate::wire::Wire::connect(guarded.address);
    let lines = ["Host: any.example", "Authorization: Bearer t"];
    assert_eq!(crate::wire::ask(&mut wire, "GET", "/status", &lines, "").status, 200);
}

/// Threads of the executor, besides the first.
pub fn helpers(program: &Program) -> usize {
    let threads = fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap().flatten();
    let name = |path: std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap_or_default();
    threads.filter(|thread| name(thread.path()).starts_with("mcpport-")).count()
}

#[test]
fn threads() {
    for (arguments, expected) in [(&[][..], 0), (&["--threads", "1"], 0), (&["--threads", "4"], 3)] {
        let gateway = Gateway::start(arguments);
        eventually("all threads run", || helpers(&gateway.program) == expected);
        let _edge = gateway.edge("s");
        assert_eq!(gateway.client().call_text("s_echo", r#"{"text":"x"}"#), "x");
    }
}

/// Makes enough consecutive calls that threads busy-poll if they may.
#[test]
fn busy_poll() {
    for (gateway, edge) in [("on", "on"), ("off", "off"), ("off", "on")] {
        let gateway = Gateway::start(&["--busy-poll", gateway]);
        let _edge = gateway.edge_with("s", &[], &["--busy-poll", edge]);
        let mut client = gateway.client();
        for number in 0..100 {
            let arguments = format!(r#"{{"text":"{number}"}}"#);
            assert_eq!(client.call_text("s_echo", &arguments), number.to_string());
        }
    }
}

#[test]
fn aliases_and_version() {
    let program = Program::start(&["g", "--port", "0"]);
    crate::harness::listening(&program);
    for flag in ["--version", "-v"] {
        let mut program = Program::start(&[flag]);
        assert_eq!(program.ended().code, Some(0));
        program.wait_for_output(env!("CARGO_PKG_VERSION"));
    }
}
