//! An error at startup ends in one line for the user, with the right exit code, without a panic and without a secret. The
//! messages that the README explains are those of the program.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    certs::{available, generate, shared},
    directory,
    harness::{End, Gateway, Program},
};

/// Runs the program to its end, and checks that it prints one error line with these words and no
/// secret. Every secret in these tests contains `canary`.
#[track_caller]
fn check(code: i32, arguments: &[&str], words: &[&str]) {
    let end = Program::finish(arguments);
    look(&end, code, words, &format!("{arguments:?}"));
}

#[track_caller]
fn look(end: &End, code: i32, words: &[&str], what: &str) {
    let complaint = end.complaint();
    assert_eq!((end.code, complaint.len()), (Some(code), 1), "{what}: {:?}", end.stderr);
    let line = complaint[0];
    assert!(line.starts_with("mcpport: "), "{what}: {line}");
    for word in words {
        assert!(line.contains(word), "{what}: {word} is not in: {line}");
    }
    for word in ["canary", "panicked", "Some(", "Err(", "RUST_BACKTRACE"] {
        assert!(!end.stderr.iter().any(|line| line.contains(word)), "{what}: {word} in {:?}", end.stderr);
    }
}

#[test]
fn usage() {
    for (arguments, words) in [
        (&["--port", "1"][..], &["a command before any flag"][..]),
        (&["serve"], &["unknown command", "gateway, register, device or demo"]),
        (&["canary"], &["unknown command"]),
        (&["gateway", "--nonsense"], &["--nonsense"]),
        (&["gateway", "--nonsense=canary"], &["--nonsense"]),
        (&["gateway", "canary"], &["neither a flag nor"]),
        (&["gateway", "--auth-token", "Bearer", "canary"], &["quotes"]),
        (&["gateway", "--port"], &["--port"]),
        (&["gateway", "--port", "0", "--auth-token"], &["--auth-token"]),
        (&["gateway", "--port", "banana"], &["port"]),
        (&["gateway", "--port", "65536"], &["port"]),
        (&["gateway", "--port", "-1"], &["port"]),
        (&["gateway", "--debug=canary"], &["--debug"]),
        (&["gateway", "--log-level", "loud"], &["--log-level", "loud", "DEBUG"]),
        (&["gateway", "--timeout-rpc", "soon"], &["--timeout-rpc", "soon", "500ms"]),
        (&["gateway", "--timeout-rpc", "0"], &["--timeout-rpc"]),
        (&["gateway", "--timeout-run-tool", "-5"], &["--timeout-run-tool"]),
        (&["gateway", "--sse-path", "sse"], &["--sse-path"]),
        (&["gateway", "--messages-path", "/sse"], &["same path"]),
        (&["gateway", "--health-endpoint", "/mcp/register"], &["same path"]),
        (&["gateway", "--auth-token", "a canary"], &["--auth-token"]),
        (&["gateway", "--auth-token", ""], &["--auth-token"]),
        (&["gateway", "--auth-token", "clients:canary"], &["--auth-token", "role"]),
        (&["gateway", "--auth-token", "register[canary]"], &["--auth-token", "missing token"]),
        (
            &["gateway", "--auth-token", "@a:canary", "--auth-token=@b:canary"],
            &["--auth-token", "two labels"],
        ),
        (&["gateway", "--trusted-proxy", "localhost"], &["--trusted-proxy", "localhost", "address"]),
        (&["gateway", "--public-url", "gw.example/canary"], &["--public-url", "https://"]),
        (&["gateway", "--public-url", "https://h/../canary"], &["--public-url", "https://"]),
        (&["gateway", "--auth-token-file", "/no/such"], &["--auth-token-file", "no such file"]),
        (&["gateway", "--auth-token-file", "/"], &["--auth-token-file"]),
        (&["gateway", "--ssl-enabled"], &["--ssl-enabled", "--ssl-keyfile", "--ssl-certfile"]),
        (&["gateway", "--ssl-enabled", "--ssl-keyfile", "k"], &["--ssl-certfile"]),
        (&["gateway", "--ssl-keyfile", "k"], &["--ssl-keyfile", "--ssl-enabled"]),
        (&["gateway", "--threads", "0"], &["--threads"]),
        (&["gateway", "--threads", "many"], &["threads"]),
        (&["register"], &["--stdio"]),
        (&["register", "--stdio"], &["--stdio"]),
        (&["register", "--stdio", ""], &["--stdio", "empty"]),
        (&["register", "--stdio", "run 'canary"], &["--stdio", "quote"]),
        (&["register", "--stdio", "cat", "--server-name", "a b"], &["--server-name", "a b"]),
        (&["register", "--stdio", "cat", "--server-id", ""], &["--server-id"]),
        (&["register", "--stdio", "cat", "--server-id", &"i".repeat(129)], &["--server-id"]),
        (&["register", "--stdio", "cat", "--gateway-url", "canary"], &["--gateway-url"]),
        (&["register", "--stdio", "cat", "--gateway-url", "ftp://h/canary"], &["--gateway-url", "ws://"]),
        (&["register", "--stdio", "cat", "--gateway-url", "ws://u:canary@h/"], &["--header"]),
        (&["register", "--stdio", "cat", "--gateway-url", "ws://"], &["--gateway-url"]),
        (&["register", "--stdio", "cat", "--gateway-url", "ws://h:99999/"], &["--gateway-url"]),
        (&["register", "--stdio", "cat", "--header", "canary"], &["--header", "Key: Value"]),
        (&["register", "--stdio", "cat", "--header", "A B: canary"], &["--header"]),
        (&["register", "--stdio", "cat", "--header", "A: cana\u{1}ry"], &["--header"]),
        (&["register", "--stdio", "cat", "--header", "Host: canary"], &["--header Host"]),
        (&["register", "--stdio", "cat", "--port", "x"], &["port"]),
        (&["register", "--stdio", "cat", "--sessions", "many"], &["--sessions many", "isolated"]),
        (&["register", "--stdio", "cat", "--max-sessions", "5"], &["--max-sessions", "--sessions isolated"]),
        (
            &["register", "--stdio", "cat", "--sessions", "isolated", "--max-sessions", "0"],
            &["--max-sessions"],
        ),
        (&["gateway", "--mcp-path", "/sse"], &["same path"]),
        (&["register", "--stdio", "cat", "--health-endpoint", "up"], &["--health-endpoint"]),
        (&["register", "--stdio", "cat", "--no-ssl-verify", "--ssl-ca-cert", "f"], &["mutually exclusive"]),
        (&["register", "--stdio", "cat", "--ssl-certfile", "f"], &["--ssl-keyfile"]),
        (&["register", "--stdio", "cat", "--log-level", ""], &["--log-level"]),
        (&["device", "--nonsense"], &["--nonsense"]),
        (&["device", "--log"], &["--log"]),
        (&["demo", "--port", "x"], &["port"]),
        (&["demo", "--log-level", "x"], &["--log-level"]),
    ] {
        check(2, arguments, words);
    }
}

#[test]
fn failing_operations_print_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let closed = format!(
        "ws://127.0.0.1:{}/mcp/register",
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    );
    let plain = directory("plain").join("no-program");
    fs::write(&plain, "plain text").unwrap();
    let plain = plain.to_str().unwrap();
    for (arguments, words) in [
        (&["gateway", "--port", &port][..], &["in use", port.as_str(), "--port"][..]),
        (&["gateway", "--host", "192.0.2.1"], &["192.0.2.1", "--host"]),
        (
            &["register", "--stdio", "no-such-program canary", "--restart", "never"],
            &["command not found", "no-such-program", "--stdio"],
        ),
        (
            &["register", "--stdio", "/no/such/program", "--restart", "never"],
            &["command not found", "/no/such/program"],
        ),
        (&["register", "--stdio", plain, "--restart", "never"], &["not executable"]),
        (&["register", "--stdio", "cat", "--port", &port], &["in use", &port]),
        (
            &["register", "--stdio", "cat", "--gateway-url", &closed, "--require-gateway"],
            &["connection refused"],
        ),
        (
            &[
                "register",
                "--stdio",
                "cat",
                "--gateway-url",
                "ws://no-such-host.invalid/",
                "--require-gateway",
            ],
            &["no-such-host.invalid"],
        ),
        (&["register", "--stdio", "true"], &["exited: ", "exit status 0", "--restart always"]),
        (&["register", "--stdio", "sh -c 'exit 7'", "--restart", "never"], &["exited: ", "exit status 7"]),
        (
            &["register", "--stdio", "no-such-program | cat; exit 127", "--restart", "never"],
            &["127", "command not found"],
        ),
        (&["demo", "--port", &port], &["in use", &port]),
    ] {
        check(1, arguments, words);
    }
    fs::set_permissions(plain, fs::Permissions::from_mode(0o755)).unwrap();
    check(1, &["register", "--stdio", plain, "--restart", "never"], &["#! line", plain]);
    let host = ["gateway", "--host", "no-such-host.invalid"];
    let end = Program::finish(&host);
    look(&end, end.code.unwrap(), &["--host no-such-host.invalid"], "host");
}

#[test]
fn certificates() {
    if !available() {
        return;
    }
    let (set, other) = (shared(), generate(&["--key-size", "2048"]));
    let file = |name: &str| set.join(name).to_str().unwrap().to_owned();
    let (key, certificate, ca) = (file("server.key"), file("server.crt"), file("ca.crt"));
    let other_key = other.join("server.key").to_str().unwrap().to_owned();
    let broken = directory("broken").join("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\ncanary\n-----END CERTIFICATE-----\n").unwrap();
    let broken = broken.to_str().unwrap();
    for (key, certificate, words) in [
        ("/no/such.key", certificate.as_str(), &["--ssl-keyfile", "/no/such.key"][..]),
        (&key, "/no/such.crt", &["--ssl-certfile", "/no/such.crt"]),
        (&other_key, &certificate, &["--ssl-keyfile", "not the key"]),
        (&certificate, &key, &["swapped"]),
        (&key, broken, &["--ssl-certfile", "not a valid certificate"]),
        (broken, &certificate, &["--ssl-keyfile"]),
    ] {
        let arguments =
            ["gateway", "--port", "0", "--ssl-enabled", "--ssl-keyfile", key, "--ssl-certfile", certificate];
        check(2, &arguments, words);
    }
    let tls =
        ["gateway", "--port", "0", "--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate];
    for path in ["/no/such.crt", broken, &key] {
        check(2, &[&tls[..], &["--ssl-ca-cert", path]].concat(), &["--ssl-ca-cert", path]);
        let register =
            ["register", "--stdio", "cat", "--gateway-url", "wss://localhost:1/", "--ssl-ca-cert", path];
        check(2, &register, &["--ssl-ca-cert", path]);
    }
    let own = ["register", "--stdio", "cat", "--gateway-url", "wss://localhost:1/", "--ssl-ca-cert", &ca];
    check(
        2,
        &[&own[..], &["--ssl-certfile", &certificate, "--ssl-keyfile", &other_key]].concat(),
        &["not the key"],
    );
}

#[test]
fn errors_are_printed_with_logging_off() {
    let gateway = Gateway::start(&["--auth-token", "t"]);
    let url = gateway.url();
    let arguments = ["register", "--stdio", "cat", "--gateway-url", &url, "--log-level", "CRITICAL"];
    let end = Program::finish(&arguments);
    assert_eq!((end.code, end.stderr.len()), (Some(1), 1), "{:?}", end.stderr);
    assert!(end.stderr[0].contains("requires a token (401)"));
}

#[test]
fn help_goes_to_stdout() {
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &[],
        &["gateway", "--help"],
        &["r", "--help"],
        &["device", "--help"],
        &["demo", "--help"],
    ] {
        let mut program = Program::start(arguments);
        let end = program.ended();
        assert_eq!((end.code, end.stderr.len()), (Some(0), 0), "{arguments:?}: {:?}", end.stderr);
        program.wait_for_output("mcpport");
    }
}

/// Each message that "Troubleshooting" quotes is in the source. Numbers and `…` match any text.
#[test]
fn readme_quotes_existing_messages() {
    let readme = include_str!("../../README.md");
    let section = readme.split_once("\n## Troubleshooting\n").expect("the section").1;
    let section = section.split_once("\n## ").expect("its end").0;
    let mut lines = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut lines);
    let mut quotes = 0;
    for row in section.lines().filter(|row| row.starts_with("| ")) {
        let symptom = row.split('|').nth(1).unwrap_or_default();
        for quote in symptom.split('"').skip(1).step_by(2) {
            let parts: Vec<&str> = quote.split(|c: char| c == '…' || c.is_ascii_digit()).collect();
            assert!(
                lines.iter().any(|line| parts.iter().all(|part| line.contains(part))),
                "no message with these words: {quote}"
            );
            quotes += 1;
        }
    }
    assert!(quotes > 8, "{quotes} quotes: {section}");
}

/// Adds the lines of all source files below `directory`, without comments and unit tests.
fn collect(directory: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, lines);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
            lines.extend(code.map(str::to_owned));
        }
    }
}
