//! A shared server of one principal behind a link, frame by frame: careless, and with malicious
//! frames.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::mpsc::{Receiver, TryRecvError},
    thread::{self, JoinHandle},
    time::Duration,
};

use async_tungstenite::tungstenite::{self, Message};
use serde_json::{Value, json};

use super::{Random, WHO, World, lenient};
use crate::frames::End;

/// A request that the server has.
struct Call {
    method: String,
    /// The mark of its content.
    mark: String,
    /// Its progress token, raw.
    token: Option<String>,
    task: bool,
    answered: bool,
}

struct Edge {
    who: usize,
    world: World,
    random: Random,
    end: End,
    /// By the id, raw.
    calls: HashMap<String, Call>,
    /// The highest id of a request over this link. The next one may be in transit; then the
    /// server's messages under that id are responses to it, and not a leak.
    highest: u64,
    /// Marks of tasks, by their ids.
    tasks: HashMap<String, String>,
}

/// Runs a server of a principal until `stopped` ends; it is registered when this returns.
pub fn start(
    gateway: SocketAddr,
    who: usize,
    world: World,
    random: Random,
    stopped: Receiver<()>,
) -> JoinHandle<()> {
    let mut end = connect(gateway, who);
    // Until the gateway has everything that it requests from a new server. Each frame has the time
    // limit of any other test.
    end.0.get_ref().set_read_timeout(Some(crate::harness::TIMEOUT)).unwrap();
    for method in ["initialize", "tools/list"] {
        let frame = end.find(|frame| lenient::text(frame, &["method"]).as_deref() == Some(method));
        answer_handshake(&mut end, &frame);
    }
    end.0.get_ref().set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let (calls, tasks) = (HashMap::new(), HashMap::new());
    let mut edge = Edge { who, world, random, end, calls, highest: 0, tasks };
    thread::spawn(move || {
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            if edge.step().is_none() {
                edge.end = connect(gateway, who);
                edge.calls.clear();
                edge.highest = 0;
                edge.tasks.clear();
            }
        }
    })
}

/// Opens a new link; the earlier one may still have to end.
fn connect(gateway: SocketAddr, who: usize) -> End {
    let mut last = Ok(Message::Ping(Vec::new().into()));
    for _ in 0..500 {
        let mut end = End::connect(gateway, Some(&format!("r-{}", WHO[who])));
        let params = json!({"name": format!("s{who}"), "capabilities": {}});
        end.say(
            &json!({"jsonrpc": "2.0", "id": format!("box-{who}"), "method": "register", "params": params})
                .to_string(),
        );
        last = end.0.read();
        if matches!(&last, Ok(Message::Text(text)) if text.contains("\"received\"")) {
            end.0.get_ref().set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            return end;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("server s{who} is not registered: {last:?}")
}

/// Answers the requests of the gateway to a new server. Returns false for any other frame.
fn answer_handshake(end: &mut End, frame: &str) -> bool {
    let result = match lenient::text(frame, &["method"]).as_deref() {
        Some("initialize") => json!({
            "protocolVersion": "2025-11-25", "serverInfo": {"name": "x", "version": "1"},
            "capabilities": {"tools": {}, "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}},
        }),
        Some("tools/list") => json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]}),
        _ => return false,
    };
    let id = lenient::find(frame, &["id"]).unwrap_or_default();
    let _ = end.0.send(Message::text(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)));
    true
}

impl Edge {
    /// Reads the available frames, and performs an action. `None` if the link is gone.
    fn step(&mut self) -> Option<()> {
        match self.end.0.read() {
            Ok(Message::Text(frame)) => self.take(&frame),
            Ok(Message::Close(_)) => return None,
            Ok(_) => {}
            Err(tungstenite::Error::Io(why))
                if matches!(why.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
        self.act()
    }

    fn take(&mut self, frame: &str) {
        if answer_handshake(&mut self.end, frame) {
            return;
        }
        let Some(method) = lenient::text(frame, &["method"]) else { return };
        if method == "notifications/cancelled" {
            let id = lenient::find(frame, &["params", "requestId"]).unwrap_or_default();
            self.calls.entry(id).and_modify(|call| call.answered = true);
            return;
        }
        // Without an id it would be executed all the same, without a response.
        let Some(id) = lenient::find(frame, &["id"]) else { return };
        let number: u64 = id.parse().unwrap_or_default();
        self.highest = number.max(self.highest);
        let highest = &mut self.world.lock().highest;
        *highest = number.max(*highest);
        let task = lenient::text(frame, &["params", "taskId"]);
        let mark = match &task {
            Some(id) => self.tasks.get(id).cloned(),
            None => lenient::text(frame, &["params", "arguments", "mark"]),
        };
        let call = Call {
            method,
            mark: mark.unwrap_or_default(),
            token: lenient::find(frame, &["params", "_meta", "progressToken"]),
            task: lenient::find(frame, &["params", "task"]).is_some(),
            answered: false,
        };
        self.calls.insert(id, call);
    }

    /// Sends a frame, or none.
    fn act(&mut self) -> Option<()> {
        let own = |edge: &Self| edge.world.mark(edge.who);
        let known: Vec<String> = self.calls.keys().cloned().collect();
        let frame = match self.random.below(12) {
            0..=5 => self.answer_one(&known)?,
            6 => {
                // An id that this link does not have; the other link may have it.
                let id = self.unknown_number();
                let forms = [format!("{id}"), format!("\"{id}\""), format!("{id}.0"), format!("{id}e0")];
                if known.iter().any(|known| *known == id.to_string()) {
                    return Some(());
                }
                let result = json!({"content": [{"type": "text", "text": own(self)}]});
                format!(r#"{{"jsonrpc":"2.0","id":{},"result":{result}}}"#, self.random.pick(&forms))
            }
            7 => self.progress(),
            8 => {
                let ids: Vec<(String, String)> = self.tasks.clone().into_iter().collect();
                let (id, mark) = match ids.is_empty() {
                    true => (format!("nobodys-{}", self.who), own(self)),
                    false => self.random.pick(&ids).clone(),
                };
                let params = json!({"taskId": id, "status": "working", "statusMessage": mark, "ttl": 60000});
                json!({"jsonrpc": "2.0", "method": "notifications/tasks/status", "params": params})
                    .to_string()
            }
            9 => {
                let params = json!({"messages": [], "maxTokens": 1, "systemPrompt": own(self)});
                let id = self.random.below(9);
                json!({"jsonrpc": "2.0", "id": id, "method": "sampling/createMessage", "params": params})
                    .to_string()
            }
            10 if self.random.chance(20) => {
                let mark = own(self);
                let odd = [
                    format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"x":"{mark}"}}}}"#
                    ),
                    format!(r#"[{{"jsonrpc":"2.0","id":1,"result":"{mark}"}}]"#),
                    format!(r#"{{"jsonrpc":"2.0","id":99999999999999999999,"result":"{mark}"}}"#),
                    format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":1,"message":"{mark}"}}}}"#),
                    format!("#1 {mark}"),
                    format!("+1 {mark}"),
                    format!("{{\"{mark}"),
                    String::new(),
                ];
                self.random.pick(&odd).clone()
            }
            _ => return Some(()),
        };
        self.end.0.send(Message::text(frame)).ok()
    }

    /// A response to a request that the server has, sometimes twice, under the id that it knows.
    fn answer_one(&mut self, known: &[String]) -> Option<String> {
        let nothing = r#"{"jsonrpc":"2.0","method":"notifications/odd"}"#;
        if known.is_empty() {
            return Some(nothing.into());
        }
        let id = self.random.pick(known).clone();
        let again = self.random.chance(10);
        let call = self.calls.get_mut(&id)?;
        if call.answered && !again {
            return Some(nothing.into());
        }
        let first = !std::mem::replace(&mut call.answered, true);
        let (method, mark) = (call.method.clone(), call.mark.clone());
        let task = |(id, mark): (&String, &String)| json!({"taskId": id, "status": "working", "statusMessage": mark, "ttl": 60000});
        let result: Value = match &*method {
            "tools/call" if call.task && first => {
                let id = format!("task-{}-{}", self.who, self.random.number());
                self.tasks.insert(id.clone(), mark.clone());
                json!({"task": task((&id, &mark))})
            }
            "tasks/list" => json!({"tasks": self.tasks.iter().map(task).collect::<Vec<_>>()}),
            _ if mark.is_empty() => {
                return Some(format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32602,"message":"no"}}}}"#
                ));
            }
            _ => {
                json!({"content": [{"type": "text", "text": mark}], "status": "working", "statusMessage": mark})
            }
        };
        Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
    }

    /// A number that the gateway may have used on the other link, but for no request in transit
    /// over this one.
    fn unknown_number(&mut self) -> usize {
        let past = usize::try_from(self.highest).unwrap_or_default();
        self.random.below(past + 1) + if self.random.chance(20) { past + 1000 } else { 0 }
    }

    /// Progress: of a call that the server has or had, or for a token that it was never given.
    fn progress(&mut self) -> String {
        let tokens: Vec<(String, String)> =
            self.calls.values().filter_map(|call| Some((call.token.clone()?, call.mark.clone()))).collect();
        let made_up = tokens.is_empty() || self.random.chance(40);
        let (mut token, mut mark) = (self.unknown_number().to_string(), self.world.mark(self.who));
        if !made_up {
            (token, mark) = self.random.pick(&tokens).clone();
        } else if tokens.iter().any(|(known, _)| *known == token) {
            token = "\"none\"".into();
        }
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token},"progress":1,"message":"{mark}"}}}}"#
        )
    }
}
