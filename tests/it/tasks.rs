//! Tasks at a server that several principals share: each principal has its own.

use std::thread;

use serde_json::{Value, json};

use crate::{
    frames::End,
    harness::Gateway,
    session::{Events, Session, initialize_request, request, value},
    wire::Client,
};

/// A gateway and a server `s` that supports tasks; this end is the edge.
struct World {
    gateway: Gateway,
    server: End,
}

impl World {
    fn start(tokens: &[&str]) -> Self {
        let flags: Vec<&str> = tokens.iter().flat_map(|token| ["--auth-token", token]).collect();
        let gateway = Gateway::start(&flags);
        let mut server = End::connect(gateway.address, tokens.first().copied());
        server.introduce(r#"{"mcpport":{}}"#);
        let mut world = Self { gateway, server };
        world.list();
        world.gateway.program.wait_for("server 's' offers");
        world
    }

    /// Answers the requests of the gateway to a new server.
    fn list(&mut self) {
        let server = &mut self.server;
        let id = server.request("", "initialize");
        let result = json!({
            "protocolVersion": "2025-11-25", "serverInfo": {"name": "x", "version": "1"},
            "capabilities": {"tools": {}, "tasks": {"list": {}, "requests": {"tools": {"call": {}}}}},
        });
        server.say(&json!({"jsonrpc": "2.0", "id": value(&id), "result": result}).to_string());
        let id = server.request("", "tools/list");
        server.say(&json!({"jsonrpc": "2.0", "id": value(&id), "result": {"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}}).to_string());
    }

    fn client(&self, token: &str) -> Session {
        let line = format!("Authorization: Bearer {token}");
        let lines = if token.is_empty() { vec![] } else { vec![line.as_str()] };
        Session::open_as(self.gateway.address, "/servers/s/mcp", "2025-11-25", &lines)
    }

    /// Sends a request, and returns the client's response; the server answers with this if it gets
    /// the request.
    fn ask(&mut self, client: &Session, method: &str, params: Value, result: &Value) -> Value {
        thread::scope(|scope| {
            let answer = scope.spawn(|| client.ask(method, params));
            let id = self.server.request("", method);
            self.server.say(&json!({"jsonrpc": "2.0", "id": value(&id), "result": result}).to_string());
            answer.join().unwrap()
        })
    }

    /// A client starts a task, to which the server gives this id.
    fn begin(&mut self, client: &Session, id: &str) {
        let params = json!({"name": "t", "arguments": {}, "task": {"ttl": 60000}});
        let answer = self.ask(client, "tools/call", params, &json!({"task": task(id)}));
        assert_eq!(answer["result"]["task"], task(id));
    }

    /// Returns the ids that a client sees.
    fn listed(&mut self, client: &Session, all: &[&str]) -> Vec<String> {
        let tasks: Vec<Value> = all.iter().map(|id| task(id)).collect();
        let answer = self.ask(client, "tasks/list", json!({}), &json!({"tasks": tasks, "nextCursor": "n"}));
        assert_eq!(answer["result"]["nextCursor"], "n");
        let tasks = answer["result"]["tasks"].as_array().unwrap().clone();
        tasks.iter().map(|task| task["taskId"].as_str().unwrap().to_owned()).collect()
    }
}

fn task(id: &str) -> Value {
    json!({"taskId": id, "status": "working", "ttl": 60000})
}

/// Skips the event that only starts the stream.
fn listen(client: &Session) -> Events {
    let mut events = client.listen(None);
    assert_eq!(events.next().data.as_deref(), Some(""));
    events
}

#[test]
fn a_task_belongs_to_the_principal_that_had_it_begun() {
    let mut world = World::start(&["one", "two"]);
    let (one, two) = (world.client("one"), world.client("two"));
    world.begin(&one, "a");
    world.begin(&two, "b");
    for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
        let refused = two.ask(method, json!({"taskId": "a"}));
        assert_eq!(
            (&refused["error"]["code"], &refused["result"]),
            (&json!(-32602), &Value::Null),
            "{refused}"
        );
        // Nor by an id that two readers understand differently.
        let twice = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"b","taskId":"a"}}"#;
        assert!(two.post(twice).body.contains("\"error\""));
        let escaped = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"task\u0049d":"\u0061"}}"#;
        assert!(two.post(escaped).body.contains("task not found"));
        // The owner's request is the first that the server receives, and another session of the
        // owner is as good.
        let again = world.client("one");
        let answer = world.ask(&again, method, json!({"taskId": "a"}), &task("a"));
        assert_eq!(answer["result"], task("a"));
    }
    // Nobody has seen the start of "c".
    assert_eq!(world.listed(&one, &["a", "b", "c"]), ["a"]);
    assert_eq!(world.listed(&two, &["a", "b", "c"]), ["b"]);
    let answer = world.ask(&two, "tasks/get", json!({"taskId": "c"}), &task("c"));
    assert_eq!(answer["result"], task("c"));
}

#[test]
fn task_status_goes_to_its_principal_only() {
    let mut world = World::start(&["one", "two"]);
    let (one, two) = (world.client("one"), world.client("two"));
    let (mut ones, mut twos) = (listen(&one), listen(&two));
    world.begin(&one, "a");
    world.begin(&two, "b");
    for id in ["c", "a", "b"] {
        let told = json!({"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": task(id)});
        world.server.say(&told.to_string());
    }
    assert_eq!(ones.message()["params"]["taskId"], "a");
    assert_eq!(twos.message()["params"]["taskId"], "b");
}

#[test]
fn tasks_are_visible_to_all_sessions_of_one_principal() {
    let mut world = World::start(&[]);
    let (one, two) = (world.client(""), world.client(""));
    let mut heard = listen(&two);
    world.begin(&one, "a");
    // Exactly.
    thread::scope(|scope| {
        let answer = scope.spawn(|| two.post(&request(1, "tasks/list", json!({}))));
        let id = world.server.request("", "tasks/list");
        let result = r#"{ "tasks" : [ {"taskId":"a"} , {"taskId":"c"}, 7 ] }"#;
        world.server.say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#));
        assert!(answer.join().unwrap().body.contains(result));
    });
    let told = json!({"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": task("c")});
    world.server.say(&told.to_string());
    assert_eq!(heard.message()["params"]["taskId"], "c");
    let answer = world.ask(&two, "tasks/result", json!({"taskId": "a"}), &json!({"content": []}));
    assert_eq!(answer["result"], json!({"content": []}));
}

#[test]
fn a_list_of_tasks_that_is_read_in_two_ways_shows_none() {
    let mut world = World::start(&["one", "two"]);
    let one = world.client("one");
    thread::scope(|scope| {
        let answer = scope.spawn(|| one.post(&request(1, "tasks/list", json!({}))));
        let id = world.server.request("", "tasks/list");
        let (none, theirs) = ("[]", json!([task("b")]).to_string());
        world
            .server
            .say(&format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"tasks":{none},"tasks":{theirs}}}}}"#));
        assert_eq!(value(&answer.join().unwrap().body)["result"], json!({"tasks": []}));
    });
}

/// A server that restarts or registers again reuses ids: the earlier task is not the present one.
#[test]
fn reused_task_ids_are_not_the_former_owners() {
    let mut world = World::start(&["one", "two"]);
    let (one, two) = (world.client("one"), world.client("two"));
    let mut before = (&one, &two);
    for again in ["registered", "restarted", "registered"] {
        world.begin(before.0, "1");
        if again == "restarted" {
            world.server.say(r#"{"status":"restarted"}"#);
        } else {
            let mut server = End::connect(world.gateway.address, Some("one"));
            server.introduce(r#"{"mcpport":{}}"#);
            world.server = server;
        }
        world.list();
        // Answered in order, so the list has been read by then.
        world.server.say(r#"{"jsonrpc":"2.0","id":"listed","method":"ping"}"#);
        world.server.find(|frame| frame.contains("\"listed\""));
        world.begin(before.1, "1");
        for method in ["tasks/get", "tasks/result", "tasks/cancel"] {
            let refused = before.0.ask(method, json!({"taskId": "1"}));
            assert_eq!(refused["error"]["message"], "task not found", "{again}: {refused}");
            let answer = world.ask(before.1, method, json!({"taskId": "1"}), &task("1"));
            assert_eq!(answer["result"], task("1"), "{again}");
        }
        assert_eq!(world.listed(before.0, &["1"]), [""; 0], "{again}");
        assert_eq!(world.listed(before.1, &["1"]), ["1"], "{again}");
        before = (before.1, before.0);
        // The next round begins with a free id.
        world.server.say(r#"{"status":"restarted"}"#);
        world.list();
        world.server.say(r#"{"jsonrpc":"2.0","id":"free","method":"ping"}"#);
        world.server.find(|frame| frame.contains("\"free\""));
    }
}

/// A request before the gateway knows the owner of a task gets no response about it.
#[test]
fn task_requests_before_the_owner_is_known_are_not_answered() {
    let mut world = World::start(&["one", "two"]);
    let (one, two) = (world.client("one"), world.client("two"));
    let related = json!({"content": [], "_meta": {"io.modelcontextprotocol/related-task": {"taskId": "9"}}});
    for (method, result) in [("tasks/get", task("8")), ("tasks/cancel", task("8")), ("tasks/result", related)]
    {
        let id = if method == "tasks/result" { "9" } else { "8" };
        thread::scope(|scope| {
            let early = scope.spawn(|| two.ask(method, json!({"taskId": id})));
            let question = world.server.request("", method);
            world.begin(&one, id);
            let answer = json!({"jsonrpc": "2.0", "id": value(&question), "result": result});
            world.server.say(&answer.to_string());
            assert_eq!(early.join().unwrap()["error"]["message"], "task not found", "{method}");
        });
        if method == "tasks/get" {
            world.server.say(r#"{"status":"restarted"}"#);
            world.list();
        }
    }
}

/// Event streams have one line for a message, and an edge of another program may send a frame of
/// several lines.
#[test]
fn a_filtered_list_on_several_lines_is_one_event() {
    let mut world = World::start(&["one", "two"]);
    let (one, two) = (world.client("one"), world.client("two"));
    world.begin(&one, "a");
    world.begin(&two, "b");
    let mut old = Client::open(world.gateway.address, "/servers/s/sse", &["Authorization: Bearer two"]);
    old.post(&initialize_request("2025-11-25"));
    old.find(|message| message.contains("protocolVersion"));
    old.post(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    let asked = old.begin("tasks/list", "{}");
    let id = world.server.request("", "tasks/list");
    let tasks: Vec<String> =
        ["a", "b"].iter().map(|id| serde_json::to_string_pretty(&task(id)).unwrap()).collect();
    let list = format!("{{\n\"tasks\": [\r\n{}\n]\n}}", tasks.join(",\n"));
    world.server.say(&format!("{{\n\"jsonrpc\": \"2.0\",\n\"id\": {id},\n\"result\": {list}\n}}"));
    let answer = value(&old.answer(&asked));
    assert_eq!(answer["result"]["tasks"], json!([task("b")]), "{answer}");
}
