//! Calls from a client through a real gateway and a real edge to a server, and how they can fail.

use mcpport::mcp::exposed_name::exposed;
use serde_json::Value;

use crate::{
    harness::{Edge, Gateway, eventually},
    wire::{Client, member, request},
};

fn value(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn tools_are_listed_under_the_servers_name() {
    let gateway = Gateway::start(&[]);
    let _file = gateway.edge("file");
    let _time = gateway.edge("time.2");
    let mut client = gateway.client();
    let tools = client.tools();
    // A dot is not allowed in an exposed name: it becomes `_`, and a hash identifies the pair.
    let dotted = exposed("time.2", "echo", 64);
    assert!(dotted.starts_with("time_2_echo_"), "{dotted}");
    for expected in ["file_echo", &dotted, "list_servers"] {
        assert!(tools.iter().any(|tool| tool == expected), "{tools:?}");
    }
    assert_eq!(client.call_text("file_echo", r#"{"text":"hello"}"#), "hello");
    assert_eq!(client.call_text(&dotted, r#"{"text":"there"}"#), "there");
    let servers = value(&client.call("list_servers", "{}"));
    let servers = servers["result"]["structuredContent"]["servers"].as_array().unwrap().clone();
    let names: Vec<&str> = servers.iter().map(|server| server["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["file", "time.2"]);
    assert!(servers.iter().all(|server| server["tools_count"] == 16 && server["id"].is_string()));
}

#[test]
fn results_arrive_byte_for_byte() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut client = gateway.client();
    for result in [
        r#"{}"#,
        r#"{"content":[{"type":"text","text":"\u0061\/é\ud83d\ude00 "}],"isError":false}"#,
        r#"{ "b" : 1.0 ,"a":1e2, "big":123456789012345678901234567890, "dup":1,"dup":2 }"#,
        r#"{"content":[{"type":"image","data":"QUJD","mimeType":"image/png"}],"structuredContent":{"x":[null,true]},"_meta":{"a/b":{}},"nobody":"knows"}"#,
        r#"{"id":7,"result":{"error":{}},"method":"tools/call","params":{"_meta":{"progressToken":1}}}"#,
        r#"{"lone":"\ud800","n":-0.0,"e":1E+400}"#,
    ] {
        let arguments = serde_json::json!({ "result": result }).to_string();
        let answer = client.call("s_raw", &arguments);
        assert_eq!(member(&answer, "result").as_deref(), Some(result));
    }
}

#[test]
fn large_results_arrive_whole() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut client = gateway.client();
    for bytes in [1 << 20, 3 << 20] {
        let text = client.call_text("s_big", &format!("{{\"bytes\":{bytes}}}"));
        assert!(text.len() == bytes && text.bytes().all(|byte| byte == b'x'), "{bytes}");
    }
    let long = "y".repeat(3 << 20);
    assert_eq!(client.call_text("s_echo", &format!("{{\"text\":\"{long}\"}}")), long);
}

#[test]
fn errors_keep_code_message_and_data() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut client = gateway.client();
    let answer = client.call("s_fail", r#"{"code":-32042,"message":"no \"é\" today","data":{"why":[1,{}]}}"#);
    let error = member(&answer, "error").unwrap();
    assert_eq!(
        value(&error),
        serde_json::json!({"code": -32042, "message": "no \"é\" today", "data": {"why": [1, {}]}})
    );
    assert!(member(&answer, "result").is_none());
    let answer = client.call("s_is_error", "{}");
    assert_eq!(
        member(&answer, "result").unwrap(),
        r#"{"content":[{"type":"text","text":"no"}],"isError":true}"#
    );
}

#[test]
fn ids_come_back_as_they_were_written() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut client = gateway.client();
    for id in
        ["0", "1", "\"1\"", "1.0", "-5", "1e0", "9223372036854775808", r#""\u0061""#, r#""""#, r#"" a""#]
    {
        for (method, params) in [
            ("ping", "{}"),
            ("tools/list", "{}"),
            ("tools/call", r#"{"name":"s_echo","arguments":{"text":"x"}}"#),
            ("tools/call", r#"{"name":"list_servers"}"#),
            ("no/such", "{}"),
        ] {
            client.post(&format!(r#"{{"params":{params},"method":"{method}","id":{id},"jsonrpc":"2.0"}}"#));
            let answer = client.message();
            assert_eq!(member(&answer, "id").as_deref(), Some(id), "{method}: {answer}");
        }
    }
}

#[test]
fn the_server_sees_the_call_as_it_was_sent_but_for_name_and_id() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    client.post(
        r#"{"jsonrpc":"2.0","id":"x","method":"tools/call","params":{"_meta":{"k":1.0},"arguments":{"text":"\u0061","n":1e3},"name":"s_echo","other":[ 1 ]}}"#,
    );
    client.answer("\"x\"");
    let line = edge.wait_for("tools/call");
    let id = member(&line, "id").unwrap();
    assert!(id.parse::<u64>().is_ok_and(|id| id > 0), "{id}");
    assert_eq!(
        member(&line, "params").unwrap(),
        r#"{"_meta":{"k":1.0},"arguments":{"text":"\u0061","n":1e3},"name":"echo","other":[ 1 ]}"#
    );
}

#[test]
fn progress_tokens_are_translated_and_restored_with_their_type() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut one = gateway.client();
    let mut other = gateway.client();
    for token in ["1", "\"1\"", "\"a b\"", "0", "7.0"] {
        let params = format!(
            r#"{{"name":"s_progress","arguments":{{"steps":3}},"_meta":{{"progressToken":{token}}}}}"#
        );
        let (first, second) = (one.begin("tools/call", &params), other.begin("tools/call", &params));
        for (client, id) in [(&mut one, first), (&mut other, second)] {
            for step in 1..=3 {
                let told = client.message();
                let params = member(&told, "params").unwrap();
                assert_eq!(member(&params, "progressToken").as_deref(), Some(token));
                assert_eq!(member(&params, "progress").unwrap(), step.to_string());
            }
            assert_eq!(member(&client.message(), "id"), Some(id));
        }
    }
    let tokens: Vec<String> =
        edge.got().iter().filter(|line| line.contains("progressToken")).cloned().collect();
    let unique: std::collections::HashSet<Value> =
        tokens.iter().map(|line| value(line)["params"]["_meta"]["progressToken"].clone()).collect();
    assert_eq!(
        (tokens.len(), unique.len()),
        (10, 10),
        "equal tokens of two clients are two tokens for the server"
    );
}

#[test]
fn answers_come_in_their_own_order() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let (mut one, mut other) = (gateway.client(), gateway.client());
    let held: Vec<String> =
        (0..5).map(|key| one.begin_call("s_hold", &format!("{{\"key\":\"k{key}\"}}"))).collect();
    assert_eq!(one.call_text("s_echo", r#"{"text":"overtakes"}"#), "overtakes");
    for key in [3, 0, 4, 2, 1] {
        assert_eq!(other.call_text("s_release", &format!("{{\"key\":\"k{key}\"}}")), "released");
        let answer = one.message();
        assert_eq!(member(&answer, "id"), Some(held[key].clone()));
        assert!(answer.contains(&format!("\"k{key}\"")), "{answer}");
    }
}

#[test]
fn cancelling_reaches_the_one_server_under_its_own_id() {
    let gateway = Gateway::start(&[]);
    let (right, wrong) = (gateway.edge("right"), gateway.edge("wrong"));
    let mut client = gateway.client();
    client.call("right_echo", "{}");
    client.post(r#"{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"right_hold","arguments":{"key":"k"}}}"#);
    let asked = member(&right.wait_for("\"hold\""), "id").unwrap();
    client.post(
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"mine","reason":"too \u0073low"}}"#,
    );
    let told = right.wait_for("notifications/cancelled");
    let params = member(&told, "params").unwrap();
    assert_eq!(member(&params, "requestId"), Some(asked));
    assert_eq!(member(&params, "reason").unwrap(), r#""too \u0073low""#);
    // A late answer is dropped, and the id may be reused.
    assert_eq!(client.call_text("right_release", r#"{"key":"k"}"#), "released");
    client.post(r#"{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"wrong_echo","arguments":{"text":"w"}}}"#);
    assert!(client.answer("\"mine\"").contains("\"w\""));
    assert_eq!(client.rest(), [""; 0]);
    assert_eq!((right.count("cancelled"), wrong.count("cancelled")), (1, 0));
}

#[test]
fn cancelling_an_unknown_request_does_nothing() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let (mut one, mut other) = (gateway.client(), gateway.client());
    let id = one.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    for request in [id.as_str(), "999", "\"1\"", "null", "{}"] {
        other.post(&format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{request}}}}}"#
        ));
    }
    other.post(r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#);
    assert_eq!(other.call_text("s_release", r#"{"key":"k"}"#), "released");
    assert!(one.answer(&id).contains("\"k\""));
    assert_eq!(edge.count("cancelled"), 0);
}

#[test]
fn closing_the_stream_cancels_its_calls() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    client.begin_call("s_hold", r#"{"key":"k"}"#);
    let asked = member(&edge.wait_for("\"hold\""), "id").unwrap();
    let endpoint = client.endpoint.clone();
    drop(client);
    let told = edge.wait_for("notifications/cancelled");
    assert_eq!(member(&member(&told, "params").unwrap(), "requestId"), Some(asked));
    eventually("the session is gone", || {
        request(gateway.address, "POST", &endpoint, &[], "{}").status == 404
    });
}

#[test]
fn a_changed_list_is_announced_and_relisted() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let (mut client, mut other) = (gateway.client(), gateway.client());
    assert!(!client.tools().contains(&"s_extra0".to_owned()));
    client.call("s_change", "{}");
    for client in [&mut client, &mut other] {
        client.notification("notifications/tools/list_changed");
        client.tools_until(|tools| tools.contains(&"s_extra0".to_owned()));
    }
    assert_eq!(client.call_text("s_extra0", "{}"), "extra0 was called");
}

#[test]
fn clients_are_notified_when_servers_come_and_go() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.client();
    assert_eq!(client.tools(), ["list_servers"]);
    let mut edge = Edge::start(&gateway.url(), "s", &[], &[]);
    client.notification("notifications/tools/list_changed");
    client.tools_until(|tools| tools.len() == 17);
    assert_eq!(edge.program.stop().code, Some(0));
    client.notification("notifications/tools/list_changed");
    client.tools_until(|tools| tools == ["list_servers"]);
    let answer = client.call("s_echo", "{}");
    assert!(answer.contains("unknown tool: s_echo"), "{answer}");
}

#[test]
fn an_uninitialized_client_gets_no_notifications() {
    let gateway = Gateway::start(&[]);
    let mut early = Client::open(gateway.address, "/sse", &[]);
    let _edge = gateway.edge("s");
    early.ask("ping", "{}");
    assert_eq!(early.rest(), [""; 0]);
}

#[test]
fn calls_of_a_dead_server_fail_at_once_and_name_it() {
    for crash in ["crash", "kill the edge", "kill the server"] {
        let gateway = Gateway::start(&["--timeout-run-tool", "10m", "--resume-window", "0"]);
        let mut edge = gateway.edge_with("doomed", &[], &["--restart", "never"]);
        let mut client = gateway.client();
        let waiting: Vec<String> =
            (0..3).map(|key| client.begin_call("doomed_hold", &format!("{{\"key\":\"{key}\"}}"))).collect();
        eventually("all three wait", || edge.count("\"hold\"") == 3);
        match crash {
            "crash" => drop(client.begin_call("doomed_crash", "{}")),
            "kill the edge" => edge.program.kill(),
            _ => crate::harness::kill(edge.server_pid()),
        }
        let words = match crash {
            "crash" => "server 'doomed' exited with status 3",
            "kill the edge" => "server 'doomed' disconnected",
            _ => "server 'doomed' was killed by signal 9 (KILL)",
        };
        for id in waiting {
            let answer = client.answer(&id);
            assert!(member(&answer, "error").is_some() && answer.contains(words), "{answer}");
        }
        client.tools_until(|tools| tools == ["list_servers"]);
        if crash != "kill the edge" {
            let end = edge.program.ended();
            assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{:?}", end.stderr);
            assert!(end.complaint()[0].contains("server 'doomed' exited: "), "{:?}", end.stderr);
        }
    }
}

#[test]
fn unknown_methods_and_tools_are_answered_at_once() {
    let gateway = Gateway::start(&[]);
    let mut client = Client::open(gateway.address, "/sse", &[]);
    // Newer clients try this first, and fall back if it is refused.
    let answer = client.ask("server/discover", "{}");
    assert_eq!(value(&answer)["error"]["code"], -32601, "{answer}");
    for (method, params, code) in [
        ("tasks/list", "{}", -32601),
        ("tools/call", r#"{"name":"nobody_has"}"#, -32602),
        ("tools/call", "{}", -32602),
        ("tools/call", r#"{"name":5}"#, -32602),
        ("tools/list", r#"{"cursor":"not ours"}"#, -32602),
    ] {
        let answer = client.ask(method, params);
        assert_eq!(value(&answer)["error"]["code"], code, "{answer}");
    }
}

#[test]
fn versions_are_negotiated() {
    let gateway = Gateway::start(&[]);
    for (asked, answered) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("0.1.0", "2025-11-25"),
    ] {
        let mut client = Client::open(gateway.address, "/sse", &[]);
        let params = format!(
            r#"{{"protocolVersion":"{asked}","capabilities":{{}},"clientInfo":{{"name":"t","version":"1"}}}}"#
        );
        let answer = value(&client.ask("initialize", &params));
        assert_eq!(answer["result"]["protocolVersion"], answered);
        assert_eq!(answer["result"]["capabilities"]["tools"]["listChanged"], true);
        assert_eq!(answer["result"]["serverInfo"]["name"], "mcpport");
    }
}

#[test]
fn lists_are_paged_in_both_directions() {
    let gateway = Gateway::start(&[]);
    let long: Vec<String> = (0..40).flat_map(|number| ["--tool".into(), format!("t{number:02}")]).collect();
    let long: Vec<&str> =
        [&["--page", "7"][..], &long.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    let edge = gateway.edge_with("s", &long, &[]);
    assert_eq!(edge.count("tools/list"), 8, "56 tools, 7 on a page");
    let tools = gateway.client().tools();
    assert_eq!(tools.len(), 57);
    assert!((0..40).all(|number| tools.contains(&format!("s_t{number:02}"))));
}

#[test]
fn a_long_list_reaches_the_client_in_pages() {
    let gateway = Gateway::start(&[]);
    // Names longer than the limit are cut and get a hash; with them the list has 300 KiB.
    let name = "n".repeat(110);
    let many: Vec<String> =
        (0..490).flat_map(|number| ["--tool".into(), format!("{name}{number:03}")]).collect();
    let _edges: Vec<Edge> = (0..8)
        .map(|number| {
            let many: Vec<&str> = many.iter().map(String::as_str).collect();
            gateway.edge_with(&format!("s{number}"), &many, &[])
        })
        .collect();
    let mut client = gateway.client();
    let first = value(&client.ask("tools/list", "{}"));
    assert!(first["result"]["nextCursor"].is_string(), "more than one page");
    let mut tools = client.tools();
    assert_eq!(tools.len(), 8 * 506 + 1);
    assert!(tools.iter().all(|tool| tool.len() <= 64));
    tools.dedup();
    assert_eq!(tools.len(), 8 * 506 + 1, "no tool twice");
}

#[test]
fn too_many_calls_are_refused_as_busy() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    for number in 0..64 {
        client.begin_call("s_hold", &format!("{{\"key\":\"{number}\"}}"));
    }
    let answer = client.call("s_echo", "{}");
    assert!(answer.contains("too many running calls of this session"), "{answer}");
    let mut others: Vec<Client> = (0..3).map(|_| gateway.client()).collect();
    for client in &mut others {
        for number in 0..64 {
            client.begin_call("s_hold", &format!("{{\"key\":\"{number}\"}}"));
        }
    }
    let mut last = gateway.client();
    let answer = last.call("s_echo", "{}");
    assert!(answer.contains("server 's' has too many running calls"), "{answer}");
    // A session that ends frees its slot.
    drop(client);
    edge.wait_for("cancelled");
    assert_eq!(last.call_text("s_echo", r#"{"text":"room"}"#), "room");
}

#[test]
fn an_id_that_is_under_way_cannot_be_used_twice() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    let call = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"s_hold","arguments":{"key":"k"}}}"#;
    client.post(call);
    edge.wait_for("\"hold\"");
    client.post(call);
    assert!(client.answer("5").contains("a call with this id is already running"));
    client.call("s_release", r#"{"key":"k"}"#);
    assert!(client.answer("5").contains("\"k\""));
}

#[test]
fn a_shared_server_may_only_ping_the_gateway() {
    let gateway = Gateway::start(&[]);
    let _edge = gateway.edge("s");
    let mut client = gateway.client();
    let answer = value(&client.call_text("s_ask_client", r#"{"method":"ping"}"#));
    assert_eq!(answer["result"], serde_json::json!({}));
    for method in ["sampling/createMessage", "roots/list", "elicitation/create"] {
        let answer = value(&client.call_text("s_ask_client", &format!("{{\"method\":\"{method}\"}}")));
        assert_eq!(answer["error"]["code"], -32601);
    }
}

#[test]
fn noise_on_stdout_is_tolerated_and_logged_as_is_stderr() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    assert_eq!(client.call_text("s_noise", "{}"), "loud");
    for line in ["this is no message", "[1,2]", "a word to the people", "and another"] {
        edge.program.wait_for(line);
    }
}

#[test]
fn a_server_that_does_not_read_affects_no_other() {
    let gateway = Gateway::start(&["--timeout-run-tool", "2s"]);
    let (_deaf, _other) = (gateway.edge("deaf"), gateway.edge("other"));
    let mut client = gateway.client();
    let id = client.begin_call("deaf_deaf", "{}");
    for _ in 0..20 {
        assert_eq!(client.call_text("other_echo", r#"{"text":"fine"}"#), "fine");
    }
    let answer = client.answer(&id);
    assert!(answer.contains("server 'deaf' did not respond within 2 s"), "{answer}");
}

#[test]
fn bad_messages_are_refused_with_their_reason() {
    let gateway = Gateway::start(&[]);
    let client = gateway.client();
    for (body, code) in [
        ("", -32700),
        ("{", -32700),
        ("\u{feff}{}", -32700),
        ("[]", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        ("{}", -32600),
        ("5", -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, -32600),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, -32600),
    ] {
        let answer = client.try_post(body);
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert_eq!(value(&answer.body)["error"]["code"], code, "{body}: {answer:?}");
    }
    let target = &client.endpoint;
    for (target, status) in
        [("/messages", 400), ("/messages?session_id=nobody", 404), ("/messages?session_id=", 404)]
    {
        assert_eq!(request(gateway.address, "POST", target, &[], "{}").status, status, "{target}");
    }
    let mut wire = crate::wire::Wire::connect(gateway.address);
    let host = crate::wire::host(gateway.address);
    wire.send(format!(
        "POST {target} HTTP/1.1\r\n{host}\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}"
    ));
    assert_eq!(wire.answer().status, 415);
}
