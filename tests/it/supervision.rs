//! A server that exits is restarted, and its link stays: waiting calls fail, new ones get an error,
//! and the next process is initialized, listed and resubscribed. A server cannot harm the edge.

mod inside;

use std::{
    env, fs,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use async_tungstenite::tungstenite::{self, Message};
use serde_json::{Value, json};

use crate::{
    directory,
    flags_register::with_health,
    harness::{Edge, Gateway, Program, TIMEOUT, command, eventually, fake_server, kill},
    session::{Session, value},
    wire::{Client, get},
};

/// The code and the message of an error.
#[track_caller]
fn error(answer: &str) -> (i64, String) {
    let answer = value(answer);
    let code = answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {answer}"));
    (code, answer["error"]["message"].as_str().unwrap().to_owned())
}

/// Calls until the response is a result.
#[track_caller]
fn until_served(client: &mut Client, tool: &str) {
    eventually("it is served again", || value(&client.call(tool, "{}")).get("result").is_some());
}

#[test]
fn the_link_stays_up_when_the_server_crashes() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let edge = gateway.edge("s");
    edge.program.wait_for("registered: ");
    let mut client = gateway.client();
    for (round, words) in [(1, "exited with status 3"), (2, "was killed by signal 9 (KILL)")] {
        let keys: Vec<String> = (0..4).map(|key| format!("{{\"key\":\"{round}-{key}\"}}")).collect();
        let waiting: Vec<String> = keys.iter().map(|key| client.begin_call("s_hold", key)).collect();
        eventually("all of them wait", || edge.count("\"hold\"") == 4 * round);
        let begun = Instant::now();
        if round == 1 {
            let crash = client.begin_call("s_crash", "{}");
            client.answer(&crash);
        } else {
            kill(edge.nth_server_pid(round));
        }
        for id in &waiting {
            assert_eq!(error(&client.answer(id)), (-32603, format!("server 's' {words}")));
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "waiting calls: {:?}", begun.elapsed());
        let begun = Instant::now();
        let (code, message) = error(&client.call("s_echo", "{}"));
        assert!(begun.elapsed() < Duration::from_millis(100), "a call meanwhile: {:?}", begun.elapsed());
        assert_eq!(code, -31002, "{message}");
        assert!(message.starts_with(&format!("server 's' {words}; restarting in ")), "{message}");
        until_served(&mut client, "s_echo");
        assert_eq!(client.call_text("s_pid", "{}"), edge.nth_server_pid(round + 1).to_string());
        gateway.program.wait_for_nth("server 's' was restarted at its edge", round);
        // Each of them was initialized like the first, once, before anything else.
        assert_eq!(
            (edge.count("\"initialize\""), edge.count("notifications/initialized")),
            (round + 1, round + 1)
        );
    }
    let got = edge.got();
    let initialize: Vec<&String> = got.iter().filter(|line| line.contains("\"initialize\"")).collect();
    assert!(initialize.iter().all(|line| *line == initialize[0]), "{initialize:?}");
    assert_eq!(edge.program.log().matches("registered: ").count(), 1, "the link stayed");
    assert!(client.rest().iter().all(|message| !message.contains("\"id\"")), "no request is answered twice");
}

#[test]
fn time_from_a_kill_to_the_first_good_call() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    client.call_text("s_pid", "{}");
    let killed = Instant::now();
    kill(edge.server_pid());
    until_served(&mut client, "s_pid");
    let elapsed = killed.elapsed();
    println!("kill -9 of a server to the first good call: {} ms", elapsed.as_millis());
    assert!(elapsed >= Duration::from_millis(750), "the first delay is at least three quarters of a second");
}

#[test]
fn restart_policies() {
    let gateway = Gateway::start(&[]);
    for (policy, status, again) in [
        ("never", 3, false),
        ("never", 0, false),
        ("on-failure", 0, false),
        ("on-failure", 3, true),
        ("always", 0, true),
        ("always", 3, true),
    ] {
        let mut edge = gateway.edge_with(&format!("{policy}{status}"), &[], &["--restart", policy]);
        let mut client = gateway.client();
        let answer = client.call(&format!("{policy}{status}_crash"), &format!("{{\"status\":{status}}}"));
        assert!(error(&answer).1.ends_with(&format!("exited with status {status}")), "{answer}");
        if again {
            edge.nth_server_pid(2);
            assert_eq!(edge.program.stop().code, Some(0));
        } else {
            let end = edge.program.ended();
            assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
            let hint = end.complaint()[0].contains("--restart always");
            assert_eq!(hint, policy == "on-failure", "{:?}", end.stderr);
        }
        assert!(edge.program.offspring().is_empty());
    }
}

#[test]
fn the_policy_from_the_environment_and_a_wrong_one() {
    let gateway = Gateway::start(&[]);
    let mut edge = Edge::start_in(&gateway.url(), "s", &[], &[], &[("MCPPORT_RESTART", "never")]);
    edge.program.wait_for("registered: ");
    kill(edge.server_pid());
    assert_eq!(edge.program.ended().code, Some(1));
    let end = Program::finish(&["register", "--stdio", "cat", "--restart", "sometimes"]);
    assert_eq!(end.code, Some(2));
    assert!(end.complaint()[0].contains("--restart sometimes"), "{:?}", end.stderr);
}

/// Returns the delay that a log line names, in seconds.
fn delay(line: &str) -> f64 {
    line.rsplit(" in ").next().and_then(|rest| rest.trim_end_matches(" s").parse().ok()).unwrap()
}

#[test]
fn the_first_initialize_waits_for_a_server_that_crashes_at_first() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts").join("starts");
    let server = ["--starts", starts.to_str().unwrap(), "--quit", "initialize", "--quit-to", "2"];
    let edge = gateway.edge_with("s", &server, &[]);
    edge.program.wait_for("registered: ");
    assert_eq!(edge.count("\"initialize\""), 3);
    assert!(gateway.client().tools().contains(&"s_start3".to_owned()));
    let delays = [1, 2].map(|nth| delay(&edge.program.wait_for_nth("restarting in", nth)));
    assert!((0.7..=1.0).contains(&delays[0]) && (1.5..=2.0).contains(&delays[1]), "{delays:?}");
    assert_eq!(edge.program.log().matches("link to ").count(), 0, "on one link");
}

#[test]
fn a_listing_that_is_cut_off_is_done_again() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts").join("starts");
    let server = ["--starts", starts.to_str().unwrap(), "--quit", "tools/list", "--quit-to", "1"];
    let edge = gateway.edge_with("s", &server, &[]);
    edge.program.wait_for("registered: ");
    assert!(gateway.client().tools().contains(&"s_start2".to_owned()));
}

#[test]
fn lists_and_subscriptions_are_restored() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts").join("starts");
    let edge = gateway.edge_with("s", &["--rich", "--starts", starts.to_str().unwrap()], &[]);
    edge.program.wait_for("registered: ");
    let (mut all, own) = (gateway.client(), Session::open(gateway.address, "/servers/s/mcp"));
    assert!(all.tools().contains(&"s_start1".to_owned()));
    all.ask("logging/setLevel", r#"{"level":"warning"}"#);
    own.ask("resources/subscribe", json!({"uri": "a://one"}));
    kill(edge.server_pid());
    all.tools_until(|tools| {
        tools.contains(&"s_start2".to_owned()) && !tools.contains(&"s_start1".to_owned())
    });
    eventually("what clients want is asked for again", || {
        edge.count("resources/subscribe") == 2 && edge.count("logging/setLevel") == 2
    });
    for list in ["tools/list", "prompts/list", "resources/list", "resources/templates/list"] {
        assert_eq!(edge.count(&format!("\"{list}\"")), 2, "{list}");
    }
    // The tool has another description under the same name, which is logged.
    let line = gateway.program.wait_for("tool echo changed");
    assert!(line.contains("[WARN]") && line.contains("tool echo") && line.contains(", now "), "{line}");
    assert_eq!(gateway.program.log().matches("tool echo changed").count(), 1);
}

#[test]
fn an_answer_that_is_too_large_costs_its_call_alone() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--tool", "say"], &[]);
    let mut client = gateway.client();
    let held = client.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    let words = "the server's response is larger than 4194304 bytes (see --max-message-bytes at register)";
    let pid = client.call_text("s_pid", "{}");
    for line in [
        r#"{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":{\"x\":\"PAD\"}}"#,
        r#"{\"jsonrpc\":\"2.0\",\"result\":{\"x\":\"PAD\",\"id\":7},\"id\":ID}"#,
    ] {
        let answer = client.call("s_say", &format!(r#"{{"line":"{line}","pad":{}}}"#, 5 << 20));
        assert_eq!(error(&answer), (-32603, words.to_owned()));
    }
    assert_eq!(client.call_text("s_pid", "{}"), pid, "the server keeps running");
    client.call("s_release", r#"{"key":"k"}"#);
    assert!(client.answer(&held).contains("\"k\""));
    assert_eq!(edge.program.log().matches("4194304").count(), 2, "logged once each");
}

#[test]
fn a_noisy_server_delays_no_other() {
    let mib: usize = env::var("MCPPORT_FLOOD_MIB").map_or(10, |mib| mib.parse().unwrap());
    let gateway = Gateway::start(&[]);
    let mut edge = gateway.edge_with("s", &["--tool", "shout"], &[]);
    let mut client = gateway.client();
    let (begun, bytes) = (Instant::now(), 1000);
    let shout =
        |place: &str, lines: usize| format!("{{\"where\":\"{place}\",\"lines\":{lines},\"bytes\":{bytes}}}");
    let flood = client.begin_call("s_shout", &shout("stderr", (mib << 20) / bytes));
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(client.call_text("s_echo", r#"{"text":"x"}"#), "x");
        slowest = slowest.max(asked.elapsed());
    }
    assert!(client.answer(&flood).contains("shouted"));
    // And output where it does not belong: dropped and counted.
    assert!(client.call("s_shout", &shout("stdout", 5000)).contains("shouted"));
    assert_eq!(client.call_text("s_echo", r#"{"text":"y"}"#), "y");
    let windows = begun.elapsed().as_secs() as usize + 2;
    assert_eq!(edge.program.stop().code, Some(0));
    let log = edge.program.log();
    let shown = |text: &str| log.lines().filter(|line| line.contains(text) && line.contains("xxx")).count();
    let (stderr, stdout) = (shown("s: x"), shown("not an MCP message: x"));
    println!("{mib} MiB on stderr: slowest call {slowest:?}, {stderr} lines logged in {windows} s");
    assert!((1..=100 * windows).contains(&stderr), "{stderr} lines in {windows} s");
    assert!((1..=100 * windows).contains(&stdout), "{stdout} lines in {windows} s");
    assert!(log.contains("5000 stdout lines of the server were not MCP messages"), "they are counted");
}

#[test]
fn params_on_many_lines_reach_the_server_on_one() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let params = "{\r\n  \"name\": \"s_echo\",\n  \"arguments\": {\n    \"text\": \"a\\nb\"\r\n  }\n}";
    let answer = client.ask("tools/call", params);
    assert_eq!(value(&answer)["result"]["content"][0]["text"], "a\nb");
    let lines: Vec<String> = edge.got().into_iter().filter(|line| line.contains("tools/call")).collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(value(&lines[0])["params"], json!({"name": "echo", "arguments": {"text": "a\nb"}}));
}

#[test]
fn health_is_503_while_the_server_is_down() {
    let gateway = Gateway::start(&[]);
    let (edge, health) = with_health(&gateway.url(), &["--restart", "always"]);
    edge.program.wait_for("registered: ");
    assert_eq!(get(health, "/health").status, 200);
    kill(edge.server_pid());
    let mut answer = get(health, "/health");
    eventually("it is down", || {
        answer = get(health, "/health");
        answer.status == 503
    });
    assert_eq!(answer.body.trim(), "the server is down");
    eventually("it is up", || get(health, "/health").status == 200);
}

#[test]
fn processes_of_single_sessions_are_not_started_again() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts").join("starts");
    let edge = gateway.edge_with("s", &["--starts", starts.to_str().unwrap()], &["--sessions", "isolated"]);
    let (mut one, mut other) = (gateway.client(), gateway.client());
    let own = other.call_text("s_pid", "{}");
    let crash = one.call("s_crash", "{}");
    assert!(error(&crash).1.contains("exit status 3"), "{crash}");
    assert_eq!(other.call_text("s_pid", "{}"), own);
    assert_eq!(fs::read_to_string(&starts).unwrap().lines().count(), 3, "the shared one and one for each");
    // The one that is listed is restarted, and the sessions continue meanwhile.
    kill(edge.server_pid());
    assert_eq!(other.call_text("s_pid", "{}"), own);
    gateway.program.wait_for("server 's' was restarted at its edge");
    other.tools_until(|tools| tools.contains(&"s_start4".to_owned()));
    assert_eq!(other.call_text("s_pid", "{}"), own);
}

#[test]
fn a_program_that_is_gone_for_a_while_is_started_when_it_is_back() {
    let gateway = Gateway::start(&[]);
    let place = directory("moved");
    let (here, away) = (place.join("server"), place.join("away"));
    fs::copy(fake_server(), &here).unwrap();
    let stdio = format!("'{}'", here.display());
    let arguments = ["register", "--stdio", &stdio, "--gateway-url", &gateway.url(), "--server-name", "s"];
    let mut program = Program::start(&arguments);
    program.wait_for("registered: ");
    let mut client = gateway.client();
    fs::rename(&here, &away).unwrap();
    kill(client.call_text("s_pid", "{}").parse().unwrap());
    let line = program.wait_for("command not found");
    assert!(line.contains("restarting in"), "{line}");
    let (code, message) = error(&client.call("s_echo", "{}"));
    assert!(code == -31002 && message.contains("command not found"), "{message}");
    fs::rename(&away, &here).unwrap();
    until_served(&mut client, "s_echo");
    assert_eq!(program.stop().code, Some(0));
}

/// The open descriptors and the children of a process.
fn holdings(program: &Program) -> (Vec<String>, Vec<u32>) {
    let links = fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().flatten();
    let mut open: Vec<String> = links
        .filter_map(|link| Some(fs::read_link(link.path()).ok()?.to_string_lossy().into_owned()))
        .collect();
    open.sort();
    let mut children = program.offspring();
    children.sort_unstable();
    (open, children)
}

/// Every method that MCP has or had, and some extensions.
const METHODS: &[&str] = &[
    "initialize",
    "ping",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "sampling/createMessage",
    "roots/list",
    "elicitation/create",
    "tasks/get",
    "tasks/list",
    "tasks/cancel",
    "tasks/result",
    "server/discover",
    "register",
    "spawn",
    "exec",
    "shell",
    "run",
    "restart",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/message",
    "notifications/tools/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
];

/// Lines that are not a method: frames of channels, statuses, and garbage.
const GARBAGE: &[&str] = &[
    "",
    "x",
    "[]",
    "{}",
    "null",
    "{\"jsonrpc\":\"2.0\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}",
    "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":1,\"message\":\"x\"}}",
    "{\"status\":\"restarted\"}",
    "{\"status\":\"registered\",\"command\":\"/bin/sh\",\"url\":\"http://127.0.0.1:9/\"}",
    "{\"status\":\"run\"}",
    "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":[]}",
    "{\"a\":1}{\"b\":2}",
    "\u{feff}{}",
];

#[test]
fn a_hostile_gateway_cannot_control_the_edge() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let edge = Edge::start(&url, "s", &["--rich"], &[]);
    let (stream, _) = listener.accept().unwrap();
    bounded(&stream);
    let mut end = tungstenite::accept(stream).unwrap();
    let mut ask = |frame: &str| end.send(Message::text(frame)).unwrap();
    ask(r#"{"status":"received","id":"x","message":"hi","capabilities":{"mcpport":{}}}"#);
    ask(r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18"}}"#);
    edge.wait_for("\"initialize\"");
    let before = holdings(&edge.program);
    let params = json!({
        "name": "sh", "command": "/bin/sh", "args": ["-c", "touch /tmp/x"], "url": "http://127.0.0.1:9/", "uri": "file:///etc/passwd",
        "env": {"PATH": "/"}, "requestId": 3, "progressToken": 4, "level": "debug",
    });
    let mut id = 2;
    for method in METHODS {
        for params in [json!({}), params.clone(), Value::Null] {
            id += 1;
            let mut message = json!({"jsonrpc": "2.0", "method": method, "id": id});
            if !params.is_null() {
                message["params"] = params;
            }
            ask(&message.to_string());
            message.as_object_mut().unwrap().remove("id");
            ask(&message.to_string());
        }
    }
    GARBAGE.iter().for_each(|frame| ask(frame));
    // It arrives after all of that, on one stream.
    ask(r#"{"jsonrpc":"2.0","id":"last","method":"ping"}"#);
    loop {
        let Message::Text(text) = end.read().unwrap() else { continue };
        if text.contains("\"last\"") {
            break;
        }
    }
    assert_eq!(holdings(&edge.program), before);
    assert_eq!(before.1.len(), 1, "it started no process but its server");
}

fn bounded(stream: &TcpStream) {
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TIMEOUT)).unwrap();
}

/// A gateway of another program gets a restart as what any MCP client understands.
#[test]
fn a_restart_triggers_relisting_at_any_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let edge = Edge::start(&url, "s", &["--rich"], &[]);
    let (stream, _) = listener.accept().unwrap();
    bounded(&stream);
    let mut end = tungstenite::accept(stream).unwrap();
    let mut next = |frames: &[&str]| {
        for frame in frames {
            end.send(Message::text(*frame)).unwrap();
        }
        loop {
            if let Message::Text(text) = end.read().unwrap() {
                return text.to_string();
            }
        }
    };
    assert!(next(&[r#"{"status":"received","id":"x","message":"hi"}"#]).contains("\"register\""));
    let initialize =
        r#"{"jsonrpc":"2.0","id":"h","method":"initialize","params":{"protocolVersion":"2024-11-05"}}"#;
    assert!(next(&[initialize]).contains("\"h\""));
    let done = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let call = r#"{"jsonrpc":"2.0","id":"c","method":"tools/call","params":{"name":"crash"}}"#;
    assert!(next(&[done, call]).contains("exited with status 3"));
    for kind in ["tools", "prompts", "resources"] {
        assert_eq!(next(&[]), format!(r#"{{"jsonrpc":"2.0","method":"notifications/{kind}/list_changed"}}"#));
    }
    let ping = r#"{"jsonrpc":"2.0","id":"p","method":"ping"}"#;
    assert!(next(&[ping]).contains("\"p\""));
    assert_eq!((edge.count("\"initialize\""), edge.count("notifications/initialized")), (2, 2));
}

#[test]
fn a_missing_command_is_not_restarted() {
    let log = directory("fake").join("log");
    for stdio in [
        "no-such-program-anywhere",
        "no-such-program-anywhere; exit $?",
        &command(&log, &[]).replace("fake-server", "no"),
    ] {
        let end = Program::finish(&["register", "--stdio", stdio, "--restart", "never"]);
        assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
        assert!(end.complaint()[0].contains("command not found"), "{:?}", end.stderr);
    }
}
