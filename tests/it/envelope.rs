//! The envelope of client messages, and the params that the gateway reads.

use serde_json::{Value, json};

use crate::{
    frames::End,
    harness::Gateway,
    session::{BOTH, Event, Session, call, request, value},
    wire::{Client, member},
};

const SERVER: &str = "/servers/s/mcp";

/// Messages that two JSON readers could understand differently.
const TWINS: &[&str] = &[
    r#"{"jsonrpc":"2.0","id":1,"ID":2,"method":"tools/call","params":{"name":"echo","arguments":{"text":"seen"}}}"#,
    r#"{"jsonrpc":"2.0","ID":1,"method":"notifications/seen"}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"seen"}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"seen","param\u017f":{}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"seen","paramſ":{}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"mine","TaskId":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"TASKID":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"task\u0049D":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"tasKId":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"seen\u0000"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"a","taskId":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{"progressTo\u212aen":1},"x":"seen"}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"requestid":2,"x":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","Name":"seen"}}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/resource","URI":"seen"}}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{},"Ref":{"name":"seen"}}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","Name":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","_meta":{},"_Meta":{"x":"seen"}}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"a://one","URI":"a://seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"Cursor":"seen"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"error","Level":"seen"}}"#,
    r#"{"jsonrpc":"2.0","JsonRpc":"1.0","id":1,"method":"seen"}"#,
    r#"{"jsonrpc":"2.0","id":1,"method":"se\ud800en"}"#,
    r#"{"jsonrpc":"2.0","id":"\udc00","method":"seen"}"#,
];

#[test]
fn messages_that_two_readers_understand_differently_are_refused() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let old = Client::ready(gateway.address, &[]);
    let batches = Session::open_as(gateway.address, SERVER, "2025-03-26", &[]);
    for path in [SERVER, "/mcp"] {
        let session = Session::open(gateway.address, path);
        for twin in TWINS {
            for answer in [session.post(twin), old.try_post(twin), batches.post(&format!("[{twin}]"))] {
                let error = &value(&answer.body);
                let found = (answer.status, &error["error"]["code"], &error["id"]);
                assert_eq!(found, (400, &json!(-32600), &Value::Null), "{twin}: {answer:?}");
            }
        }
    }
    let session = Session::open(gateway.address, SERVER);
    assert_eq!(session.call_text("echo", json!({"text": "end", "ID": 1, "Name": 2})), "end");
    assert_eq!(edge.count("seen"), 0);
}

#[test]
fn calls_with_half_of_a_surrogate_pair_get_an_error_at_once() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let half = |id: &str, name: &str| {
        let params = format!(r#"{{"name":"{name}","arguments":{{"text":"seen \ud800"}}}}"#);
        format!(r#"{{"jsonrpc":"2.0",{id}"method":"tools/call","params":{params}}}"#)
    };
    for (path, name) in [(SERVER, "echo"), ("/mcp", "s_echo")] {
        let answer = Session::open(gateway.address, path).post(&half(r#""id":7,"#, name));
        let error = value(&answer.body);
        assert_eq!((answer.status, &error["id"], &error["error"]["code"]), (200, &json!(7), &json!(-32602)));
    }
    let mut old = gateway.client();
    old.post(&half(r#""id":"x","#, "s_echo"));
    assert!(old.answer("\"x\"").contains("-32602"));
    let session = Session::open_as(gateway.address, SERVER, "2025-03-26", &[]);
    let good = call(8, "echo", json!({"text": "good"}));
    let answers = session.post(&format!("[{},{good}]", half(r#""id":7,"#, "echo")));
    let answers = value(&answers.body);
    assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers}");
    let told = r#"{"jsonrpc":"2.0","method":"notifications/odd","params":{"x":"seen \udfff"}}"#;
    assert_eq!(session.post(told).status, 400);
    assert_eq!(edge.count("seen"), 0);
}

#[test]
fn only_notifications_lack_an_id_and_none_has_one() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let old = gateway.client();
    let batches = Session::open_as(gateway.address, SERVER, "2025-03-26", &[]);
    for (path, name) in [(SERVER, "echo"), ("/mcp", "s_echo")] {
        let session = Session::open(gateway.address, path);
        let arguments = json!({"text": "seen"});
        let params = json!({"name": name, "taskId": "seen", "arguments": arguments});
        for method in ["tools/call", "tasks/cancel", "initialize", "seen", "notifications"] {
            let text = json!({"jsonrpc": "2.0", "method": method, "params": &params}).to_string();
            for answer in [session.post(&text), batches.post(&format!("[{text}]"))] {
                assert_eq!(answer.status, 400, "{text}: {answer:?}");
                assert_eq!(value(&answer.body)["error"]["code"], -32600, "{text}");
            }
            old.post(&text);
        }
        for method in ["notifications/cancelled", "notifications/seen"] {
            let answer = session.ask(method, json!({"requestId": 1}));
            assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(1), &json!(-32600)), "{answer}");
        }
    }
    gateway.program.wait_for("dropped tools/call: only notifications/* may omit the id");
    let session = Session::open(gateway.address, SERVER);
    assert_eq!(session.post(r#"{"jsonrpc":"2.0","method":"notifications/odd"}"#).status, 202);
    assert_eq!(session.call_text("echo", json!({"text": "end"})), "end");
    assert_eq!((edge.count("seen"), edge.count("notifications/odd")), (0, 1));
}

#[test]
fn null_params_and_cursors_are_left_out() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let null = |method: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":null}}"#);
    for path in [SERVER, "/mcp"] {
        let session = Session::open(gateway.address, path);
        for method in ["ping", "tools/list"] {
            let answer = session.post(&null(method));
            assert!(value(&answer.body)["result"].is_object(), "{answer:?}");
        }
        let told = r#"{"jsonrpc":"2.0","method":"notifications/odd","params":null}"#;
        assert_eq!(session.post(told).status, 202);
    }
    let mut old = gateway.client();
    assert!(old.ask("tools/list", "null").contains("s_echo"));
    let all = Session::open(gateway.address, "/mcp");
    for cursor in [json!(null), json!("")] {
        let answer = all.ask("tools/list", json!({"cursor": cursor}));
        assert!(answer["result"]["tools"].is_array(), "{answer}");
    }
    assert_eq!(edge.count(r#""params":null"#), 0);
    assert!(edge.wait_for("notifications/odd").contains(r#""params":{}"#));
}

/// Also at the endpoint of one server, whose lists are the server's own: servers of several SDKs
/// refuse such a cursor.
#[test]
fn empty_cursors_do_not_reach_servers() {
    let gateway = Gateway::start(&[]);
    let shared = gateway.edge_with("s", &["--rich"], &[]);
    let isolated = gateway.edge_with("i", &["--rich"], &["--sessions", "isolated"]);
    for (edge, path) in [(&shared, SERVER), (&isolated, "/servers/i/mcp")] {
        let session = Session::open(gateway.address, path);
        for (method, list) in
            [("tools/list", "tools"), ("resources/list", "resources"), ("prompts/list", "prompts")]
        {
            for cursor in ["null", "\"\""] {
                let params = format!(r#"{{"first":"{method}","cursor":{cursor},"last":[]}}"#);
                let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
                let answer = session.post(&text);
                assert!(value(&answer.body)["result"][list].is_array(), "{path} {text}: {answer:?}");
                let sent = format!(r#""params":{{"first":"{method}","last":[]}}"#);
                assert!(edge.wait_for(&format!(r#""first":"{method}""#)).contains(&sent));
            }
        }
        assert_eq!(edge.count(r#""cursor""#), 0);
        session.ask("tools/list", json!({"cursor": "0"}));
        assert_eq!(edge.count(r#""cursor":"0""#), 1);
    }
}

/// Several callers may share a session and each count their ids from 1. Ids must differ only among
/// the calls answered on one stream.
#[test]
fn equal_ids_over_several_posts_are_all_answered() {
    let gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let (session, other) = (Session::open(gateway.address, SERVER), Session::open(gateway.address, SERVER));
    let hold = |key: &str| {
        let wire = session.send("POST", &[BOTH], &call(1, "hold", json!({"key": key})));
        edge.wait_for(&format!("\"{key}\""));
        wire
    };
    let (mut one, mut two, mut three) = (hold("one"), hold("two"), hold("three"));
    // A cancellation affects one call: the last with this id.
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}});
    assert_eq!(session.post(&cancel.to_string()).status, 202);
    assert_eq!(value(&three.answer().body)["error"]["code"], -32800);
    for (key, wire) in [("one", &mut one), ("two", &mut two)] {
        assert_eq!(other.call_text("release", json!({"key": key})), "released");
        let answer = value(&wire.answer().body);
        assert_eq!((&answer["id"], &answer["result"]["content"][0]["text"]), (&json!(1), &json!(key)));
    }
    assert_eq!(session.ask("ping", json!({}))["result"], json!({}));
    // The calls of one batch share a stream.
    let batches = Session::open_as(gateway.address, SERVER, "2025-03-26", &[]);
    let both = ["a", "b"].map(|text| call(1, "echo", json!({"text": text}))).join(",");
    let answers = value(&batches.post(&format!("[{both}]")).body);
    let errors = answers.as_array().unwrap().iter().filter(|answer| answer["error"]["code"] == -32600);
    assert_eq!((errors.count(), answers.as_array().map(Vec::len)), (1, Some(2)), "{answers}");
    assert_eq!(session.post(&request(1, "ping", json!({}))).status, 200);
}

/// Two requests with one id over two connections are separate requests.
#[test]
fn equal_ids_of_two_subscriptions_are_settled_one_by_one() {
    let gateway = Gateway::start(&[]);
    for refused in 0..2 {
        let mut edge = End::register(gateway.address, "{}");
        let session = Session::open(gateway.address, SERVER);
        let mut events = session.listen(None);
        let subscribe = |uri: &str| {
            session.send("POST", &[BOTH], &request(1, "resources/subscribe", json!({"uri": uri})))
        };
        let mut posts = ["a://0", "a://1"].map(|uri| {
            let post = subscribe(uri);
            let frame = edge.find(|frame| frame.contains(uri));
            (post, member(&frame, "id").unwrap())
        });
        for (number, (_, id)) in posts.iter().enumerate() {
            let outcome = match number == refused {
                true => r#""error":{"code":-32603,"message":"no"}"#,
                false => r#""result":{}"#,
            };
            edge.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},{outcome}}}"#));
        }
        for (number, (post, _)) in posts.iter_mut().enumerate() {
            let answer = value(&post.answer().body);
            assert_eq!(answer["error"].is_object(), number == refused, "{answer}");
        }
        // Refused messages reach nobody. The last message always arrives.
        for uri in ["a://0", "a://1"] {
            let (method, params) = ("notifications/resources/updated", json!({"uri": uri}));
            edge.say(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string());
        }
        edge.say(r#"{"jsonrpc":"2.0","method":"notifications/prompts/list_changed"}"#);
        let mut heard = Vec::new();
        while !heard.last().is_some_and(|last: &String| last.contains("prompts")) {
            heard.extend(events.next().data.filter(|data| data.contains("uri") || data.contains("prompts")));
        }
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert!(heard[0].contains(&format!("a://{}", 1 - refused)), "{heard:?}");
    }
}

/// A server request whose answer is refused gets no other answer: the server gets an error at once.
#[test]
fn a_refused_client_response_fails_its_server_request() {
    // Otherwise the request would fail anyway, with another message.
    let gateway = Gateway::start(&["--timeout-run-tool", "20s"]);
    let _edge = gateway.edge_with("s", &["--session"], &["--sessions", "isolated"]);
    let answers = [
        (r#"{"jsonrpc":"2.0","id":ID,"result":"\ud800"}"#, "unpaired surrogate"),
        (r#"{"jsonrpc":"2.0","id":ID,"result":{},"\udfff":1}"#, "unpaired surrogate"),
        (r#"{"jsonrpc":"2.0","id":ID,"Id":0,"result":{}}"#, "differs only in case"),
        (r#"{"jsonrpc":"2.0","id":ID,"result":{"x":NaN}}"#, "not valid JSON"),
        (r#"{"jsonrpc":"2.0","id":ID,"result":{},"result":{}}"#, "duplicate member"),
        (r#"{"jsonrpc":"2.0","id":ID,"result":{},"error":{}}"#, "not a JSON-RPC 2.0"),
    ];
    for version in ["2025-11-25", "2025-03-26"] {
        let session = Session::open_as(gateway.address, SERVER, version, &[]);
        for (answer, why) in answers {
            if version == "2025-03-26" && why == "not valid JSON" {
                // Then it is not a batch either.
                continue;
            }
            let mut events = session.stream(&call(3, "ask_client", json!({"method": "roots/list"})));
            let is_question =
                |event: &Event| event.data.as_deref().is_some_and(|data| data.contains("roots/list"));
            let question = std::iter::repeat_with(|| events.next()).find(is_question).unwrap().message();
            let answer = answer.replace("ID", &question["id"].to_string());
            let answer = if version == "2025-03-26" { format!("[{answer}]") } else { answer };
            assert_eq!(session.post(&answer).status, 400, "{answer}");
            let told =
                events.all().pop().unwrap()["result"]["content"][0]["text"].as_str().unwrap().to_owned();
            let error = &value(&told)["error"];
            assert_eq!(error["code"], -32603, "{answer}");
            assert!(error["message"].as_str().unwrap().contains(why), "{answer}: {error}");
        }
    }
}
