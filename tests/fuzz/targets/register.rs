//! First frames of a link and status frames, with serde_json as the oracle: every parsed value is
//! in the text, once, and is allowed; and our own output parses to the same value.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mcpport::config::EraPin;
use mcpport::jsonrpc::Message;
use mcpport::limits::SERVER_ID;
use mcpport::secret::Secret;
use mcpport::tunnel::handshake::{Claim, Registration, ResumeGrant, Status};
use mcpport::util;
use serde_json::Value;

/// Characters of a name.
const NAME: usize = 64;

fuzz_target!(|data: &[u8]| {
    let Ok(frame) = std::str::from_utf8(data) else { return };
    let tree: Option<Value> = serde_json::from_str(frame).ok();
    match Registration::read(frame, NAME) {
        Ok(registration) => {
            sound(&registration);
            if let Some(tree) = &tree {
                stands(&registration, tree);
            }
            again(&registration);
        }
        Err(why) => assert!(!why.reason().is_empty() && why.reason().len() < 200),
    }
    if let Some(status) = Status::read(frame) {
        assert!(Message::read(frame).is_err(), "a frame is one or the other");
        if let Some(tree) = &tree {
            assert_eq!(tree["status"], *status.status);
            assert!(tree["message"] == *status.message || status.message.is_empty());
            assert_eq!(status.accepts_mcpport, tree["capabilities"].get("mcpport").is_some());
        }
        let error = Status::read(&Status::error(&status.message)).expect("a status frame");
        assert_eq!((error.status.as_str(), &error.message), ("error", &status.message));
    }
});

fn sound(registration: &Registration) {
    let Registration { id, name, reads_status_frames, sessions, resumes, claim, message_bytes, era } =
        registration;
    assert!(id.as_ref().is_none_or(|id| id.len() <= SERVER_ID && !id.chars().any(char::is_control)));
    assert!(name.as_ref().is_none_or(|name| util::name::is_name(name, NAME)));
    assert!(sessions.is_none_or(|max| *reads_status_frames && max > 0));
    assert!(message_bytes.is_none_or(|max| *reads_status_frames && max > 0));
    assert!(era.is_none() || *reads_status_frames);
    assert!((*reads_status_frames || !resumes) && (*resumes || claim.is_none()));
}

/// The library's tree keeps the last of duplicate members; we refuse those that matter, so that
/// both agree.
fn stands(registration: &Registration, tree: &Value) {
    let old = tree.get("method").is_none();
    let name = if old { &tree["name"] } else { &tree["params"]["name"] };
    assert_eq!(registration.name.as_deref(), name.as_str());
    match (&registration.id, &tree["id"]) {
        (None, id) => assert!(id.is_null() || id == ""),
        (Some(id), Value::String(text)) => assert_eq!(id, text),
        // Digits beyond the range of a number become a fraction in the tree.
        (Some(id), Value::Number(_)) => assert!(id.bytes().all(|byte| byte.is_ascii_digit())),
        (_, other) => panic!("{other} is an id"),
    }
    let capability = &tree["params"]["capabilities"]["mcpport"];
    assert_eq!(registration.reads_status_frames, !old && capability.is_object());
    if let Some(max) = registration.sessions {
        assert_eq!(capability["sessions"]["max"], max);
    }
    if let Some(max) = registration.message_bytes {
        assert_eq!(capability["message_bytes"], max);
    }
    if let Some(era) = registration.era {
        assert_eq!(capability["era"], era.word());
    }
    assert_eq!(registration.resumes, registration.reads_status_frames && capability["resume"].is_object());
    if let Some(claim) = &registration.claim {
        assert_eq!(capability["resume"]["token"], claim.token.expose());
        assert_eq!(capability["resume"]["received"], claim.received);
    }
}

/// Our output for a value parses to the same value.
fn again(registration: &Registration) {
    let (Some(id), Some(name)) = (&registration.id, &registration.name) else { return };
    let claim = registration.claim.as_ref();
    for (sessions, claim) in [(None, None), (registration.sessions, claim), (None, claim)] {
        let max = registration.message_bytes.unwrap_or(1);
        let era = registration.era.unwrap_or(EraPin::Auto);
        let frame = Registration::frame(id, name, max, sessions, era, claim);
        let read = Registration::read(&frame, NAME).expect("what we write we read");
        assert_eq!((&read.id, &read.name), (&registration.id, &registration.name));
        assert_eq!((read.reads_status_frames, read.resumes, read.sessions), (true, true, sessions));
        assert_eq!((read.message_bytes, read.era), (Some(max), Some(era)));
        assert_eq!(read.claim.as_ref().map(shown), claim.map(shown));
    }
    let (token, window) = (Secret::new(name.as_str()), Duration::from_secs(30));
    let received = claim.map(|claim| claim.received);
    let grant = ResumeGrant { token, window, received };
    for (accepts_mcpport, sessions, grant) in
        [(true, true, Some(&grant)), (true, false, Some(&grant)), (true, true, None), (false, false, None)]
    {
        let status = Status::read(&Status::received(id, accepts_mcpport, 9000, sessions, !sessions, grant))
            .expect("a status frame");
        assert_eq!(status.message_bytes, accepts_mcpport.then_some(9000));
        assert_eq!(status.era, accepts_mcpport && !sessions);
        assert_eq!((status.accepts_mcpport, status.sessions), (accepts_mcpport, accepts_mcpport && sessions));
        assert_eq!(status.resume.is_some(), grant.is_some());
        if let Some(read) = status.resume {
            assert_eq!((read.token.expose(), read.window, read.received), (&**name, window, received));
        }
    }
    let status = Status::read(&Status::registered(id, 3)).expect("a status frame");
    assert_eq!(status.status, "registered");
}

fn shown(claim: &Claim) -> (&str, u64) {
    (claim.token.expose(), claim.received)
}
