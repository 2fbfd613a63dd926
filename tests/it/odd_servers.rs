//! Servers that violate JSON-RPC: each violation costs at most one response, and no time.

use serde_json::{Value, json};

use crate::{
    frames::End,
    harness::Gateway,
    session::{Session, value},
    wire::Client,
};

#[test]
fn ids_and_progress_tokens_in_another_form_are_recognised() {
    let gateway = Gateway::start(&[]);
    for (place, form) in ["\"ID\"", "ID.0", "IDe0"].into_iter().enumerate() {
        for sessions in ["shared", "isolated"] {
            let name = format!("{sessions}{place}");
            let form = format!("'{form}'");
            let server = ["--id-form", &form, "--session"];
            let _edge = gateway.edge_with(&name, &server, &["--sessions", sessions]);
            for path in ["/mcp", &format!("/servers/{name}/mcp")] {
                let session = Session::open(gateway.address, path);
                let tool = if path == "/mcp" { format!("{name}_progress") } else { "progress".into() };
                let params = json!({"name": tool, "arguments": {"steps": 2}, "_meta": {"progressToken": 77}});
                let asked = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params});
                let messages = session.stream(&asked.to_string()).all();
                let tokens: Vec<&Value> =
                    messages.iter().map(|one| &one["params"]["progressToken"]).collect();
                assert_eq!(tokens, [&json!(77), &json!(77), &Value::Null], "{form} {name} {path}");
                let answer = &messages[2];
                assert_eq!(
                    (&answer["id"], &answer["result"]["content"][0]["text"]),
                    (&json!(5), &json!("done"))
                );
            }
        }
    }
}

/// Lines in place of a response (`ID` is its id), and what the client gets: the text of a result,
/// or part of an error message.
const ANSWERS: [(&str, &str); 17] = [
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"fine"},"error":null}"#, "fine"),
    (r#"{"id":ID,"result":{"content":[],"x":"fine"}}"#, "fine"),
    ("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":{\"content\":[],\"x\":\"fine\"}}", "fine"),
    (r#"[{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"fine"}}]"#, "fine"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":null,"error":{"code":-5,"message":"refused"}}"#, "refused"),
    (r#"{"jsonrpc":"2.0","id":ID,"error":"in words"}"#, "in words"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":NaN}}"#, "invalid or truncated JSON"),
    (r#"{"jsonrpc":"2.0","result":{"content":[],"x":NaN},"id":ID}"#, "invalid or truncated JSON"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"h"#, "invalid or truncated JSON"),
    (r#"{"jsonrpc":"2.0","result":{"content":[],"x":"h"#, "invalid or truncated JSON"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":1,"error":{"code":1,"message":"x"}}"#, "both result and error"),
    (r#"{"jsonrpc":"2.0","id":null,"result":{}}"#, "missing id"),
    ("DEEP", "nested too deeply"),
    (r#"{"jsonrpc":"2.0","Id":1,"id":ID,"RESULT":{"x":"twin"},"result":{"content":[],"x":"fine"}}"#, "fine"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"fine"},"Method":"x","iD":0}"#, "fine"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"x":1},"result":{"x":2}}"#, "duplicate member in the message"),
    (r#"{"jsonrpc":"2.0","id":ID,"result":{"x":1},"id":ID}"#, "duplicate member in the message"),
];

fn deep(line: &str) -> String {
    let nested = "[".repeat(150) + &"]".repeat(150);
    line.replace("DEEP", &format!(r#"{{"jsonrpc":"2.0","id":ID,"result":{{"x":{nested}}}}}"#))
}

/// Whether a response to `id` contains these words, and is a message that every client accepts.
#[track_caller]
fn check(answer: &Value, id: &Value, words: &str) {
    assert!(answer.to_string().contains(words), "{words}: {answer}");
    let members: Vec<&String> = answer.as_object().unwrap().keys().collect();
    let part = if words == "fine" { "result" } else { "error" };
    assert_eq!((members.len(), &answer["id"], &answer["jsonrpc"]), (3, id, &json!("2.0")), "{answer}");
    assert!(answer[part].is_object(), "{answer}");
}

#[test]
fn malformed_answers_are_used_or_fail_their_call() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let _shared = gateway.edge_with("s", &["--tool", "say"], &[]);
    let _own = gateway.edge_with("own", &["--tool", "say", "--session"], &["--sessions", "isolated"]);
    let session = Session::open(gateway.address, "/mcp");
    for name in ["s_say", "own_say"] {
        for (line, words) in ANSWERS {
            let answer = session.ask("tools/call", json!({"name": name, "arguments": {"line": deep(line)}}));
            check(&answer, &answer["id"], words);
        }
        let line =
            r#"{"jsonrpc":"2.0","id":ID,"result":{"content":[],"x":"h\u{e9}"}}"#.replace("\\u{e9}", "\u{e9}");
        let arguments = json!({"line": line, "latin": true});
        let answer = session.ask("tools/call", json!({"name": name, "arguments": arguments}));
        check(&answer, &answer["id"], "not UTF-8");
        let echo = name.replace("say", "echo");
        assert_eq!(session.call_text(&echo, json!({"text": "still here"})), "still here");
    }
}

#[test]
fn odd_frames_of_other_programs_are_used_or_fail_their_call_at_once() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let mut edge = End::register(gateway.address, "{}");
    let mut client = gateway.client();
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
    for (line, words) in ANSWERS {
        let asked = client.begin_call("s_t", "{}");
        let id = edge.request("", "tools/call");
        edge.say(&deep(line).replace("ID", &id));
        check(&value(&client.answer(&asked)), &value(&asked), words);
    }
    edge.say(r#"{"jsonrpc":"2.0","id":99,"result":{}}"#);
    gateway.program.wait_for("sent a response to an unknown request: id 99");
}

/// Lines in which some readers find the id of another call affect no other call: only the exact
/// member counts.
#[test]
fn an_answer_with_a_second_id_does_not_reach_another_call() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let mut edge = End::register(gateway.address, "{}");
    let mut clients = [gateway.client(), gateway.client()];
    let mut begin = |edge: &mut End| {
        clients.each_mut().map(|client| {
            client.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
            let asked = client.begin_call("s_t", "{}");
            (asked, edge.request("", "tools/call"))
        })
    };
    let answer = |ids: &str, text: &str| {
        format!(r#"{{"jsonrpc":"2.0",{ids},"result":{{"content":[],"x":"{text}"}}}}"#)
    };
    let mut rounds = Vec::new();
    for order in 0..3 {
        let [(asked_one, one), (asked_two, two)] = begin(&mut edge);
        rounds.push((order, asked_one, one, asked_two, two));
    }
    let [mut first, mut second] = clients;
    for (order, asked_one, one, asked_two, two) in rounds {
        let wrong = match order {
            0 => format!(r#""id":{one},"ID":{two}"#),
            1 => format!(r#""i\u0044":{two},"id":{one}"#),
            // Dropped, because the call that it belongs to is ambiguous.
            _ => format!(r#""id":{one},"id":{two}"#),
        };
        edge.say(&answer(&wrong, "for one"));
        if order == 2 {
            gateway.program.wait_for("sent an invalid response: duplicate member in the message");
            edge.say(&answer(&format!(r#""id":{one}"#), "for one"));
        }
        edge.say(&answer(&format!(r#""id":{two}"#), "for two"));
        for (client, asked, text) in [(&mut first, asked_one, "for one"), (&mut second, asked_two, "for two")]
        {
            let got = value(&client.answer(&asked));
            assert_eq!(
                got,
                json!({"jsonrpc": "2.0", "id": value(&asked), "result": {"content": [], "x": text}})
            );
        }
    }
    gateway.program.wait_for("differs only in case");
    edge.say(r#"{"jsonrpc":"2.0","id":"q","method":"ping","method":"tools/list"}"#);
    gateway.program.wait_for("sent an invalid message: duplicate member in the message");
}

#[test]
fn null_params_of_a_notification_are_no_params() {
    let gateway = Gateway::start(&[]);
    let mut edge = End::register(gateway.address, "{}");
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
    edge.say(r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":null}"#);
    let id = edge.request("", "tools/list");
    edge.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tools":[]}}}}"#));
    client.tools_until(|tools| !tools.iter().any(|tool| tool == "s_t"));
}

#[test]
fn frames_on_several_lines_do_not_break_event_streams() {
    let gateway = Gateway::start(&[]);
    let mut edge = End::connect(gateway.address, None);
    edge.introduce("{}");
    let id = edge.request("", "initialize");
    let result = "{\n\"protocolVersion\":\"2025-11-25\",\r\n\"capabilities\":{\"tools\":{},\n\"tasks\":{}},\n\"serverInfo\":{}\n}";
    edge.say(&format!("{{\n\"jsonrpc\":\"2.0\",\n\"id\":{id},\"result\":{result}}}"));
    let id = edge.request("", "tools/list");
    edge.say(&format!(
        "{{\"jsonrpc\":\"2.0\",\n\"id\":{id},\"result\":{{\n\"tools\":[{{\n\"name\":\"t\"}}]\n}}}}"
    ));
    let mut all = gateway.client();
    all.tools_until(|tools| tools.iter().any(|tool| tool == "s_t"));
    let content =
        "{\"content\":[{\"type\":\"audio\",\"data\":\"\",\"mimeType\":\"a/b\",\n\"_meta\":{\n\"k\":1\r\n}}]}";
    for path in ["/sse", "/servers/s/sse"] {
        let mut old = Client::open(gateway.address, path, &[]);
        old.post(&crate::session::initialize_request("2024-11-05"));
        let initialize_result = old.find(|message| message.contains("protocolVersion"));
        assert!(value(&initialize_result)["result"].is_object(), "{initialize_result}");
        old.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        let asked = old.begin_call(if path == "/sse" { "s_t" } else { "t" }, "{}");
        let id = edge.request("", "tools/call");
        edge.say(&format!("{{\"jsonrpc\":\"2.0\",\n\"id\":{id},\"result\":{content}}}"));
        let answer = value(&old.answer(&asked));
        assert!(answer["result"]["content"][0]["_meta"]["k"] == json!(1), "{answer}");
    }
    let session = Session::open_as(gateway.address, "/mcp", "2025-11-25", &[]);
    assert!(session.initialize_result.is_object());
}

/// Both ends log a response that belongs to no request, but at a limited rate.
#[test]
fn unmatched_responses_are_logged() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge_with("s", &["--tool", "say"], &[]);
    let mut client = gateway.client();
    for id in ["\"nobody\"", "99999", "7.5"] {
        let line = json!({"line": format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#)});
        client.begin_call("s_say", &line.to_string());
    }
    edge.program.wait_for("the server sent a response without a matching request");
    gateway.program.wait_for("server 's' sent a response to an unknown request: id ");
    assert_eq!(client.call_text("s_echo", r#"{"text":"fine"}"#), "fine");
}
