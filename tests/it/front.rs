//! The HTTP side: requests of browsers, routes without a token, and the forms of paths.

use crate::{
    harness::{Gateway, Program},
    wire::{Answer, Client, UPGRADE, Wire, ask, get, host, request, text},
};

const HELLO: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
const TOKEN: &str = "Authorization: Bearer t";

/// Returns the head of the response, for routes whose body does not end.
#[track_caller]
fn head(gateway: &Gateway, method: &str, target: &str, lines: &[&str], body: &str) -> Answer {
    let mut wire = Wire::connect(gateway.address);
    wire.send(text(method, target, &[&[&*host(gateway.address)], lines].concat(), body));
    wire.head().unwrap()
}

#[test]
fn no_origin_may_register() {
    let gateway = Gateway::start(&["--allow-origin", "*"]);
    let own = format!("Origin: http://{}", gateway.address);
    for origin in [own.as_str(), "Origin: http://localhost:3000", "Origin: null", "Origin: https://a.example"]
    {
        let answer = head(&gateway, "GET", "/mcp/register", &[&[origin], UPGRADE].concat(), "");
        assert_eq!(answer.status, 403, "{origin}");
    }
    let site = [&["Sec-Fetch-Site: same-origin"], UPGRADE].concat();
    assert_eq!(head(&gateway, "GET", "/mcp/register", &site, "").status, 101);
}

#[test]
fn cross_site_requests_without_origin_get_403() {
    let gateway = Gateway::start(&["--allow-origin", "https://a.example"]);
    let allowed = "Origin: https://a.example";
    for (method, target, body, served) in [
        ("GET", "/sse", "", 200),
        ("GET", "/servers/s/sse", "", 404),
        ("POST", "/mcp", HELLO, 200),
        ("GET", "/mcp", "", 400),
        ("POST", "/messages?session_id=x", "{}", 404),
    ] {
        for (lines, status) in [
            (&["Sec-Fetch-Site: cross-site"][..], 403),
            (&["Sec-Fetch-Site: same-site"], 403),
            (&["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"], 403),
            (&["Sec-Fetch-Site: same-origin"], served),
            (&["Sec-Fetch-Site: none"], served),
            (&["Sec-Fetch-Site: cross-site", allowed], served),
            (&["Sec-Fetch-Site: cross-site", "Origin: https://b.example"], 403),
        ] {
            assert_eq!(
                head(&gateway, method, target, lines, body).status,
                status,
                "{method} {target} {lines:?}"
            );
        }
    }
}

#[test]
fn unknown_paths_and_health_need_no_token() {
    let gateway = Gateway::start(&["--auth-token", "t"]);
    for lines in [&[][..], &["Authorization: Bearer wrong"], &[TOKEN]] {
        for path in ["/.well-known/oauth-protected-resource", "/.well-known/mcp", "/", "/nowhere"] {
            let answer = request(gateway.address, "GET", path, lines, "");
            assert_eq!((answer.status, answer.field("www-authenticate")), (404, None), "{path} {lines:?}");
        }
        let answer = request(gateway.address, "GET", "/health", lines, "");
        assert_eq!((answer.status, &*answer.body), (200, "ok"), "{lines:?}");
    }
    assert_eq!(get(gateway.address, "/status").status, 401);
    assert_eq!(get(gateway.address, "/servers/nobody/mcp").status, 401, "names are not disclosed");
}

#[test]
fn health_without_token_leaves_the_connection_unauthenticated() {
    let gateway = crate::in_process::Gateway::start(&["--auth-token", "t"], |limits| {
        limits.http.connections_unauthenticated = 1;
    });
    let own = host(gateway.address);
    let mut healthy = Wire::connect(gateway.address);
    assert_eq!(ask(&mut healthy, "GET", "/health", &[&own], "").status, 200);
    let mut other = Wire::connect(gateway.address);
    assert_eq!(ask(&mut other, "GET", "/health", &[&own], "").status, 200);
    assert!(healthy.is_closed(), "it was evicted for the other one");
}

#[test]
fn unknown_variable_stops_the_start() {
    let known = [("MCPPORT_STDIO", "cat"), ("MCPPORT_LOG", "/x"), ("MCPPORT_ONCE", "1")];
    let gateway = Gateway::start_in(&[], &known);
    assert_eq!(get(gateway.address, "/health").status, 200);
    for command in ["gateway", "register", "device", "demo"] {
        let mut program = Program::start_in(&[command], &[("MCPPORT_AUTH_TOKENS", "canary")]);
        let end = program.ended();
        assert_eq!(end.code, Some(2), "{command}: {:?}", end.stderr);
        let complaint = end.complaint().join("\n");
        assert!(complaint.contains("MCPPORT_AUTH_TOKENS"), "{complaint}");
        assert!(complaint.contains("did you mean MCPPORT_AUTH_TOKEN?"), "{complaint}");
        assert!(!complaint.contains("canary"), "{complaint}");
    }
}

#[test]
fn service_variables_of_kubernetes_do_not_stop_the_start() {
    let address = "tcp://10.0.0.1:8765";
    let variables = [
        ("MCPPORT_SERVICE_HOST", "10.0.0.1"),
        ("MCPPORT_SERVICE_PORT", "8765"),
        ("MCPPORT_PORT", address),
        ("MCPPORT_PORT_8765_TCP", address),
        ("MCPPORT_PORT_8765_TCP_ADDR", "10.0.0.1"),
    ];
    let gateway = Gateway::start_in(&[], &variables);
    assert_eq!(get(gateway.address, "/health").status, 200);
    let end = Program::start_in(&["register"], &variables).ended();
    assert!(end.complaint().join("\n").contains("--stdio is required"), "{:?}", end.stderr);
}

#[test]
fn one_trailing_slash_is_passed_over() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    for (method, target, body, status) in [
        ("POST", "/mcp/", HELLO, 200),
        ("GET", "/sse/", "", 200),
        ("POST", "/servers/s/mcp/", HELLO, 200),
        ("GET", "/servers/s/sse/", "", 200),
        ("GET", "/health/", "", 200),
        ("GET", "/mcp//", "", 404),
        ("GET", "/servers/s/sse//", "", 404),
    ] {
        assert_eq!(head(&gateway, method, target, &[], body).status, status, "{method} {target}");
    }
}

#[test]
fn preflight_allows_the_named_headers() {
    let gateway = Gateway::start(&["--enable-cors", "--allow-origin", "https://a.example"]);
    let allowed = |origin: &str, wanted: &[&str]| {
        let wanted: Vec<String> =
            wanted.iter().map(|names| format!("Access-Control-Request-Headers: {names}")).collect();
        let mut lines = vec![origin, "Access-Control-Request-Method: POST"];
        lines.extend(wanted.iter().map(String::as_str));
        let answer = request(gateway.address, "OPTIONS", "/mcp", &lines, "");
        answer.field("access-control-allow-headers").unwrap_or_default().to_owned()
    };
    let (own, other) = ("Origin: https://a.example", "Origin: https://b.example");
    assert!(allowed(own, &["x-api-key, authorization"]).ends_with(", x-api-key"));
    assert!(allowed(own, &["x-one", "x-two"]).ends_with(", x-one, x-two"));
    assert!(!allowed(own, &["x y, x:z, é, \"q\", *"]).contains(['x', '"', '*']), "no names of headers");
    assert!(!allowed(other, &["x-api-key"]).contains("x-api-key"));
    assert!(allowed(own, &[]).contains("Authorization"));
}

/// The child runs as the same user, who may read the environment and the memory of any dumpable
/// process.
#[test]
fn programs_with_tokens_are_not_dumpable() {
    use std::{
        os::unix::{fs::MetadataExt, process::CommandExt},
        process::{Command, Stdio},
    };
    let register: &[&str] = &["register", "--stdio", "cat", "--gateway-url", "ws://127.0.0.1:1"];
    for arguments in [register, &["gateway", "--port", "0"]] {
        let mut command = Command::new(crate::harness::binary());
        command.args(arguments).env_clear().env("PATH", "/usr/bin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if rustix::process::geteuid().is_root() {
            // Files of root's processes belong to root in any case.
            command.uid(65_534).gid(65_534);
        }
        let mut child = match command.spawn() {
            // Another user may not have access to the build directory.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return,
            spawned => spawned.unwrap(),
        };
        let path = format!("/proc/{}/environ", child.id());
        // Files of a process that cannot be dumped belong to root: proc(5).
        let hidden = || std::fs::metadata(&path).is_ok_and(|file| file.uid() == 0);
        let result = std::panic::catch_unwind(|| crate::harness::eventually("it is hidden", hidden));
        let running = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        let _ = child.wait();
        assert!(result.is_ok() && running, "{arguments:?}");
    }
}

#[test]
fn one_accepted_type_is_enough() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let opened = request(gateway.address, "POST", "/mcp", &["Accept: application/json"], HELLO);
    assert_eq!((opened.status, opened.field("content-type")), (200, Some("application/json")), "{opened:?}");
    let streamed = request(gateway.address, "POST", "/mcp", &["Accept: text/event-stream"], HELLO);
    assert_eq!(
        (streamed.status, streamed.field("content-type")),
        (200, Some("text/event-stream")),
        "{streamed:?}"
    );
    assert!(streamed.body.contains("event: message\r\ndata: {") && streamed.body.contains(r#""id":1"#));
    assert!(streamed.field("mcp-session-id").is_some());
    let session = format!("Mcp-Session-Id: {}", opened.field("mcp-session-id").unwrap());
    let ping = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;
    // It reports progress before its result, which requires an event stream.
    let progress = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"s_progress","arguments":{"count":2},"_meta":{"progressToken":"p"}}}"#;
    let answer = |accept: &str, body: &str| {
        let lines: Vec<&str> = [session.as_str()].into_iter().chain(Some(accept)).collect();
        request(gateway.address, "POST", "/mcp", &lines, body)
    };
    for (accept, body, kind) in [
        ("Accept: application/json", ping, "application/json"),
        ("Accept: application/*", ping, "application/json"),
        ("Accept: application/json", progress, "application/json"),
        ("Accept: text/event-stream", ping, "text/event-stream"),
        ("Accept: text/event-stream;q=0.5", ping, "text/event-stream"),
        ("Accept: text/*", ping, "text/event-stream"),
        ("Accept: application/json;q=0, text/event-stream", ping, "text/event-stream"),
        ("Accept: */*", ping, "application/json"),
        ("X-None: 1", ping, "application/json"),
    ] {
        let answer = answer(accept, body);
        assert_eq!((answer.status, answer.field("content-type")), (200, Some(kind)), "{accept}: {answer:?}");
        assert!(answer.body.contains(r#""id":7"#) && answer.body.contains(r#""result":"#), "{answer:?}");
        assert_eq!(answer.body.starts_with('{'), kind == "application/json", "{answer:?}");
    }
    for accept in ["Accept: text/html", "Accept: application/json;q=0", "Accept: image/*"] {
        assert_eq!(answer(accept, ping).status, 406, "{accept}");
    }
}

/// RFC 9110, section 6.6.1.
#[test]
fn every_response_has_a_date() {
    let gateway = Gateway::start(&["--auth-token", "t"]);
    for (method, target, lines) in [
        ("GET", "/health", &[][..]),
        ("GET", "/sse", &[TOKEN]),
        ("GET", "/sse", &[]),
        ("GET", "/nowhere", &[]),
        ("GET", "/mcp/register", &[&[TOKEN], UPGRADE].concat()),
        ("BREW", "/x", &[]),
    ] {
        let answer = head(&gateway, method, target, lines, "");
        let date = answer.field("date").unwrap_or_else(|| panic!("{target}: {answer:?}"));
        assert!(date.len() == 29 && date.ends_with(" GMT") && date[3..5] == *", ", "{date}");
        assert_eq!(answer.head.to_ascii_lowercase().matches("\ndate:").count(), 1, "{answer:?}");
    }
}

#[test]
fn endpoint_event_carries_the_prefix() {
    let endpoint = |gateway: &Gateway, path: &str, lines: &[&str]| {
        Client::open(gateway.address, path, lines).endpoint.split('?').next().unwrap().to_owned()
    };
    let forwarded = "X-Forwarded-Prefix: /gate/way";
    let long = format!("/{}", "a".repeat(256));
    let trusting = Gateway::start(&["--trusted-proxy", "127.0.0.1"]);
    let _edge = trusting.edge("s");
    assert_eq!(endpoint(&trusting, "/sse", &[forwarded]), "/gate/way/messages");
    assert_eq!(endpoint(&trusting, "/servers/s/sse", &[forwarded]), "/gate/way/servers/s/messages");
    assert_eq!(endpoint(&trusting, "/sse", &["X-Forwarded-Prefix: /gate/way/"]), "/gate/way/messages");
    for bad in [
        "",
        "/",
        "gate",
        "//evil.example",
        "/a//b",
        "/../x",
        "/a/./b",
        "/a b",
        "/a?b",
        "/a#b",
        "/a%0d%0ab",
        "/a\\b",
        "http://evil.example/",
        "/a, /b",
        "/a\tb",
        "/a?b=/c",
        "/a\"b",
        "/a<b>",
        "/a:b@c",
        "/\u{e9}",
        "/a\u{2028}b",
        &long,
    ] {
        let line = format!("X-Forwarded-Prefix: {bad}");
        assert_eq!(endpoint(&trusting, "/sse", &[&line]), "/messages", "{bad:?}");
    }
    assert_eq!(endpoint(&trusting, "/sse", &[forwarded, forwarded]), "/messages", "two of them");
    assert_eq!(endpoint(&Gateway::start(&[]), "/sse", &[forwarded]), "/messages", "no proxy is trusted");

    let public =
        Gateway::start(&["--public-url", "https://gw.example/base/", "--trusted-proxy", "127.0.0.1"]);
    let _edge = public.edge("s");
    assert_eq!(endpoint(&public, "/sse", &[]), "/base/messages");
    assert_eq!(endpoint(&public, "/servers/s/sse", &[]), "/base/servers/s/messages");
    assert_eq!(
        endpoint(&public, "/sse", &[forwarded]),
        "/gate/way/messages",
        "the proxy's value takes precedence"
    );
    let mut wire = Wire::connect(public.address);
    let hosted = ["Host: gw.example", "Origin: https://gw.example"];
    assert_eq!(ask(&mut wire, "GET", "/status", &hosted, "").status, 200, "its host is accepted");
    assert_eq!(ask(&mut wire, "GET", "/status", &["Host: other.example"], "").status, 403);
}

/// Bytes that could end the line of an event are refused with the head, or the field is ignored.
#[test]
fn hostile_bytes_in_the_prefix_reach_no_event() {
    let gateway = Gateway::start(&["--trusted-proxy", "127.0.0.1"]);
    for (value, expected) in [
        (&b"/a\0b"[..], 400),
        (b"/a\x01b", 400),
        (b"/a\nevent: x", 400),
        (b"/a\rdata: x", 400),
        (b"/a\r\n /b", 400),
        (b"/a\xff\xfeb", 400),
        (b"/a\x7f", 400),
    ] {
        let mut wire = Wire::connect(gateway.address);
        let head = format!("GET /sse HTTP/1.1\r\n{}\r\nX-Forwarded-Prefix: ", host(gateway.address));
        wire.send([head.as_bytes(), value, b"\r\n\r\n"].concat());
        assert_eq!(wire.head().unwrap().status, expected, "{value:?}");
    }
}
