//! The clients of one principal: honest calls and malicious bodies. All responses are recorded.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread::{self, JoinHandle},
};

use serde_json::{Value, json};

use super::{Random, STEPS, WHO, World};
use crate::{
    session::{BOTH, Session},
    wire::{host, tcp, text},
};

/// How often to try to open a session.
const TRIES: usize = 20;

/// Open sessions and streams of one principal.
pub struct Client {
    who: usize,
    world: World,
    address: SocketAddr,
    sessions: Vec<(String, Vec<String>)>,
    readers: Vec<JoinHandle<()>>,
    posts: Vec<JoinHandle<()>>,
}

fn token(who: usize) -> String {
    format!("Authorization: Bearer c-{}", WHO[who])
}

/// Opens sessions at all endpoints, and their streams.
pub fn open(address: SocketAddr, who: usize, world: &World) -> Client {
    let (sessions, readers, posts) = (Vec::new(), Vec::new(), Vec::new());
    let mut client = Client { who, world: world.clone(), address, sessions, readers, posts };
    for (path, version) in [
        ("/servers/s0/mcp", "2025-11-25"),
        ("/servers/s1/mcp", "2025-11-25"),
        ("/servers/s0/mcp", "2025-03-26"),
        ("/mcp", "2025-03-26"),
    ] {
        // The timeouts are short, so a busy machine may not make the first.
        let open = |_| Session::try_open_as(address, path, version, &[&token(who)]).ok();
        let session = (0..TRIES).find_map(open).expect("a session");
        let lines: Vec<String> = session.lines();
        let with_accept: Vec<&str> =
            lines.iter().map(String::as_str).chain(["Accept: text/event-stream"]).collect();
        client.readers.push(read(world, who, address, text("GET", path, &with_accept, "")));
        client.sessions.push((path.to_owned(), lines));
    }
    for path in ["/servers/s0/sse", "/sse"] {
        client.open_old(path);
    }
    client
}

/// Sends, and records the response up to the end of the connection.
fn read(world: &World, who: usize, address: SocketAddr, request: String) -> JoinHandle<()> {
    let world = world.clone();
    let mut stream = tcp(address);
    stream.write_all(request.as_bytes()).unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count) = stream.read(&mut bytes) {
            world.receive(who, &bytes[..count]);
            if count == 0 {
                return;
            }
        }
    })
}

impl Client {
    /// The heads of its requests, which the other principal tries too.
    pub fn sessions(&self) -> Vec<(String, Vec<String>)> {
        self.sessions.clone()
    }

    /// An event stream of the 2024-11-05 transport.
    fn open_old(&mut self, path: &str) {
        let mut stream = tcp(self.address);
        let (host, token) = (host(self.address), token(self.who));
        stream.write_all(text("GET", path, &[&host, &token], "").as_bytes()).unwrap();
        let (mut said, mut byte) = (String::new(), [0]);
        while !(said.contains("data: ") && said.ends_with('\n')) {
            stream.read_exact(&mut byte).unwrap();
            said.push(char::from(byte[0]));
        }
        let endpoint = said.split("data: ").nth(1).unwrap().trim().to_owned();
        let (world, who) = (self.world.clone(), self.who);
        self.readers.push(thread::spawn(move || {
            let mut bytes = [0; 16 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                world.receive(who, &bytes[..count]);
            }
        }));
        self.sessions.push((endpoint.clone(), vec![host, token]));
        let initialize = crate::session::initialize_request("2024-11-05");
        let session = self.sessions.len() - 1;
        for body in [&*initialize, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#] {
            self.post(session, body);
            self.posts.drain(..).for_each(|post| post.join().unwrap());
        }
    }

    fn post(&mut self, session: usize, body: &str) {
        let (path, lines) = self.sessions[session].clone();
        self.request("POST", &path, &lines, body);
    }

    fn request(&mut self, method: &str, path: &str, lines: &[String], body: &str) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).chain([BOTH, "Connection: close"]).collect();
        self.posts.push(read(&self.world, self.who, self.address, text(method, path, &lines, body)));
    }

    /// Performs random actions. Returns the streams that are still being read.
    pub fn run(mut self, mut random: Random, foreign: &[(String, Vec<String>)]) -> Vec<JoinHandle<()>> {
        for _ in 0..STEPS {
            self.learn_tasks();
            let session = random.below(self.sessions.len());
            match random.below(20) {
                0 => self.borrow(&mut random, foreign),
                1 if self.sessions[session].1.len() > 2 => {
                    let bodies: Vec<String> =
                        (0..random.below(4)).map(|_| self.body(&mut random, session)).collect();
                    self.post(session, &format!("[{}]", bodies.join(",")));
                }
                _ => {
                    let body = self.body(&mut random, session);
                    self.post(session, &body);
                }
            }
            // A few at a time, so that ids of both principals are in flight together.
            if self.posts.len() > 6 {
                self.posts.remove(0).join().unwrap();
            }
        }
        self.posts.drain(..).for_each(|post| post.join().unwrap());
        self.readers
    }

    /// Tasks that this principal was notified of may be known to everybody.
    fn learn_tasks(&self) {
        let mut shared = self.world.lock();
        let received = String::from_utf8_lossy(&shared.received[self.who]).into_owned();
        for found in received.split("\"taskId\":\"").skip(1) {
            let Some((id, _)) = found.split_once('"') else { continue };
            if !shared.tasks.iter().any(|(_, known)| known == id) {
                shared.tasks.push((self.who, id.to_owned()));
            }
        }
    }

    /// Sessions of the other principal, with its own token.
    fn borrow(&mut self, random: &mut Random, foreign: &[(String, Vec<String>)]) {
        let (path, lines) = random.pick(foreign).clone();
        let mut lines: Vec<String> =
            lines.into_iter().filter(|line| !line.starts_with("Authorization")).collect();
        lines.push(token(self.who));
        let ping = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        match random.below(4) {
            0 => self.request("DELETE", &path, &lines, ""),
            1 => {
                lines.push(format!("Last-Event-ID: {}-0", random.below(9)));
                self.request("GET", &path, &lines, "");
            }
            _ => self.request("POST", &path, &lines, ping),
        }
    }

    /// A message for a session.
    fn body(&self, random: &mut Random, session: usize) -> String {
        let path = &self.sessions[session].0;
        let all = !path.starts_with("/servers/");
        let mark = self.world.mark(self.who);
        let name = if all { format!("s{}_t", random.below(2)) } else { "t".to_owned() };
        let id = random.pick(&["0", "1", "2", "-1", "1.0", "\"1\"", "\"a\"", "1e0", "7"]).to_string();
        let guess = random.below(self.world.lock().highest as usize + 4);
        let tasks = self.world.lock().tasks.clone();
        let task = if tasks.is_empty() { "task".into() } else { random.pick(&tasks).1.clone() };
        let mut params = json!({"name": name, "arguments": {"mark": mark}});
        if random.chance(50) {
            params["_meta"] = json!({"progressToken": random.below(4)});
        }
        let call = |method: &str, params: &Value| format!(r#""method":"{method}","params":{params}"#);
        let with_id = |rest: String| format!(r#"{{"jsonrpc":"2.0","id":{id},{rest}}}"#);
        let method = *random.pick(&["tasks/get", "tasks/result", "tasks/cancel", "tasks/get"]);
        match random.below(16) {
            0..=3 => with_id(call("tools/call", &params)),
            4 | 5 => {
                params["task"] = json!({"ttl": 60000});
                with_id(call("tools/call", &params))
            }
            6 => with_id(call("tasks/list", &json!({}))),
            7 => with_id(call(method, &json!({"taskId": task}))),
            8 | 9 => {
                let twins = [
                    format!(r#"{{"taskId":"x","TaskId":"{task}"}}"#),
                    format!(r#"{{"TASKID":"{task}"}}"#),
                    format!(r#"{{"ta\u017fkId":"{task}"}}"#),
                    format!(r#"{{"tasKId":"{task}"}}"#),
                    format!(r#"{{"taskId\u0000":"{task}"}}"#),
                    format!(r#"{{"taskId":"{task}\u0000"}}"#),
                    format!(r#"{{"taskId":"x","taskId":"{task}"}}"#),
                    format!(r#"{{"taskId":"x"}},"Params":{{"taskId":"{task}"}}"#),
                    format!(r#"{{"taskId":"x"}},"param\u017f":{{"taskId":"{task}"}}"#),
                ];
                with_id(format!(r#""method":"{method}","params":{}"#, random.pick(&twins)))
            }
            10 => {
                let key = random.pick(&["ID", "Id", "i\\u0044", "ıd", "id\\u0000"]);
                let order = random.chance(50);
                let rest = call("tools/call", &params);
                match order {
                    true => format!(r#"{{"jsonrpc":"2.0","id":{id},"{key}":{guess},{rest}}}"#),
                    false => format!(r#"{{"jsonrpc":"2.0",{rest},"id":{id},"{key}":{guess}}}"#),
                }
            }
            11 => {
                let named = random.pick(&["requestId", "requestid", "RequestId", "reque\\u017ftId"]);
                let first = random.pick(&["", "\"requestId\":1,"]);
                let note =
                    format!(r#""method":"notifications/cancelled","params":{{{first}"{named}":{guess}}}"#);
                if random.chance(70) { format!(r#"{{"jsonrpc":"2.0",{note}}}"#) } else { with_id(note) }
            }
            // Responses and notifications that a client does not send.
            12 => format!(r#"{{"jsonrpc":"2.0","id":{guess},"result":{{"content":["{mark}"]}}}}"#),
            13 => {
                let other = *random.pick(&["tools/call", "tasks/cancel", "notifications/progress"]);
                let rest = call(other, &params);
                format!(r#"{{"jsonrpc":"2.0",{rest}}}"#)
            }
            14 => {
                let half = format!(r#"{{"name":"{name}","arguments":{{"mark":"{mark}","x":"\ud800"}}}}"#);
                with_id(format!(r#""method":"tools/call","params":{half}"#))
            }
            _ => {
                let twins = r#"{"progressToken":1,"ProgressToken":"#;
                let meta = format!(r#"{twins}{guess}}}"#);
                let whole = format!(r#"{{"name":"{name}","arguments":{{"mark":"{mark}"}},"_meta":{meta}}}"#);
                with_id(format!(r#""method":"tools/call","params":{whole}"#))
            }
        }
    }
}
