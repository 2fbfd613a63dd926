//! Frames of servers and messages of clients, parsed before the gateway looks at its tables: each part can be passed
//! on, each name is where its position says, and a response keeps everything but the id.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::hub::conclusion::{Tasks, links, response};
use mcpport::hub::incoming::{Incoming, Part, parts};
use mcpport::hub::request::{Named, Notification, Reference, Request, What};
use mcpport::hub::session::Scope;
use mcpport::jsonrpc::{Kind, Message, unquote};
use mcpport::limits::{BATCH_PARTS, ID_BYTES};

const METHODS: [&str; 7] =
    ["tools/call", "prompts/get", "resources/read", "tasks/get", "tasks/result", "tasks/list", "x"];

fuzz_target!(|data: &[u8]| {
    let Ok(frame) = std::str::from_utf8(data) else { return };
    for (isolated, ours) in [(false, false), (false, true), (true, false), (true, true)] {
        match Incoming::read(frame, isolated, ours) {
            Ok(Incoming::Shared(text)) => {
                assert_eq!(text, frame);
                odd(text, ours);
            }
            Ok(Incoming::Instance(channel, text) | Incoming::Closed(channel, text)) => {
                assert!(isolated && channel > 0 && frame.ends_with(text));
            }
            Err(_) => assert!(ours),
        }
    }
    if let Ok(message) = Message::read_strict(frame) {
        client(&message);
    }
});

/// Each part is clean; a clean message is its own only part.
fn odd(text: &str, status: bool) {
    let mut all = Vec::new();
    let each = |part: Part<'_>| {
        match part {
            Part::Message(message) => {
                assert!(message.is_clean());
                answer(message);
                all.push(Some(message.text().to_owned()));
            }
            Part::Twin => {}
            Part::Restarted => {
                assert!(status);
                all.push(None);
            }
            Part::Unusable(_) | Part::Noise(_) => all.push(None),
        }
        Ok::<(), ()>(())
    };
    assert_eq!(parts(text, status, each), Ok(()));
    assert!(all.len() <= BATCH_PARTS);
    if Message::read(text).is_ok_and(|message| message.is_clean()) {
        assert_eq!(all, [Some(text.to_owned())]);
    }
    let mut calls = 0;
    let ended = parts(text, status, |_| {
        calls += 1;
        Err(())
    });
    assert!(ended.is_ok() == (calls == 0) && calls <= 1);
}

/// Whatever is looked for in a response, the client gets it under its own id.
fn answer(message: &Message<'_>) {
    if message.kind() != Kind::Response {
        return;
    }
    for method in METHODS {
        let edits = match Tasks::read(method, true, message) {
            Tasks::Listed(list) => list.only(message.text(), |id| id == Some("a")),
            _ => Vec::new(),
        };
        for (span, uri) in links(method, message) {
            assert_eq!(unquote(&message.text()[span]).as_deref(), Some(&*uri));
        }
        let plain = edits.is_empty();
        for versions in [None, Some(("2024-11-05", "2025-11-25"))] {
            let text = response(message, "\"mine\"", method, edits.clone(), versions);
            let read = Message::read(&text).expect("still a message");
            assert_eq!(read.id(), message.id().map(|_| "\"mine\""));
            if plain && versions.is_none() {
                assert_eq!(text, message.with_id("\"mine\""));
            }
        }
    }
}

/// Each position that was found holds what was read there.
fn client(message: &Message<'_>) {
    let text = message.text();
    for scope in [Scope::All, Scope::Server("s".into())] {
        if message.kind() == Kind::Notification
            && let Ok(Notification::Cancel(Some(span))) = Notification::read(&scope, message)
        {
            assert!(text.get(span).is_some());
        }
        if message.kind() != Kind::Request {
            continue;
        }
        let request = Request::read(&scope, message);
        assert!(request.refused.is_none() || request.what == What::Other);
        if let Ok(Some(token)) = &request.token {
            assert!(text[token.clone()].len() <= ID_BYTES);
        }
        match &request.what {
            What::Tool(Ok(name)) | What::Prompt(Ok(name)) | What::Resource(_, Ok(name)) => named(text, name),
            What::Complete(Ok(Reference::Prompt(name) | Reference::Template(name))) => named(text, name),
            What::Ping => assert_eq!(message.method(), "ping"),
            What::List(kind, _) => assert_eq!(kind.method(), message.method()),
            _ => {}
        }
    }
}

fn named(text: &str, (span, name): &Named) {
    assert_eq!(unquote(&text[span.clone()]).as_deref(), Some(&**name));
}
