//! Resumption of link sessions: which links may resume a session, and what happens to calls that
//! wait. `link_cuts` shows that nothing is lost or repeated over many cuts.

use std::{net::TcpListener, time::Duration};

use crate::{
    frames::{End, introduction},
    harness::{Gateway, eventually, fake_server},
    in_process,
    isolation::peer::{Peer, Place},
    relay::{Relay, Way},
    session::value,
    wire::{Client, member},
};
use mcpport::limits::Limits;

const RESUME: &str = r#"{"mcpport":{"resume":{}}}"#;

/// The register frame of an edge that resumes.
fn back(token: &str, received: u64) -> String {
    format!(r#"{{"mcpport":{{"resume":{{"token":"{token}","received":{received}}}}}}}"#)
}

/// Returns the token in the response to a registration, and the number of frames that the gateway
/// has received if it resumes.
#[track_caller]
fn granted(answer: &str) -> (String, Option<u64>) {
    let resume = &value(answer)["capabilities"]["mcpport"]["resume"];
    let token = resume["token"].as_str().unwrap_or_else(|| panic!("{answer}"));
    (token.to_owned(), resume["received"].as_u64())
}

/// A gateway with an edge that can resume, is listed, and has received a call of its tool: the
/// edge's received frames are `initialize`, `notifications/initialized`, `tools/list`, `registered`
/// and the call.
struct World {
    gateway: Gateway,
    client: Client,
    end: End,
    token: String,
    waiting: String,
    upstream: String,
}

const HEARD: u64 = 5;
/// It sent the responses to `initialize` and `tools/list`.
const SENT: u64 = 2;

#[track_caller]
fn world(flags: &[&str], token: Option<&str>) -> World {
    let gateway = Gateway::start(flags);
    let mut end = End::connect(gateway.address, token);
    let (granted, received) = granted(&end.introduce(RESUME));
    assert_eq!(received, None);
    end.list();
    let bearer = token.map(|token| format!("Authorization: Bearer {token}"));
    let lines: Vec<&str> = bearer.iter().map(String::as_str).collect();
    let mut client = Client::ready(gateway.address, &lines);
    client.tools_until(|tools| tools.len() == 2);
    let waiting = client.begin_call("s_t", "{}");
    let upstream = end.request("", "tools/call");
    World { gateway, client, end, token: granted, waiting, upstream }
}

fn result(id: &str, word: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[],"word":"{word}"}}}}"#)
}

#[test]
fn unacknowledged_frames_are_sent_again() {
    let World { gateway, mut client, end, token, waiting, upstream } = world(&[], None);
    drop(end);
    gateway.program.wait_for("server 's' is reconnecting");
    let state = |client: &mut Client| client.call_text("list_servers", "{}");
    assert!(state(&mut client).contains("reconnecting"));
    let later = client.begin_call("s_t", r#"{"later":1}"#);
    let mut end = End::connect(gateway.address, None);
    // It reports that the call was lost, and the frames before it were not.
    let answer = end.introduce(&back(&token, HEARD - 1));
    assert_eq!(granted(&answer), (token, Some(SENT)));
    let again = end.next();
    assert_eq!(member(&again, "id"), Some(upstream.clone()), "{again}");
    let next = end.next();
    assert!(next.contains("\"later\":1"), "{next}");
    end.say(&result(&upstream, "first"));
    end.say(&result(&upstream, "twice"));
    end.say(&result(&member(&next, "id").unwrap(), "later"));
    assert!(client.answer(&waiting).contains("first"));
    assert!(client.answer(&later).contains("later"));
    assert!(state(&mut client).contains("connected"));
    // Everything sent to the edge is acknowledged by now, or never requested: nothing is repeated.
    assert_eq!(client.rest(), [""; 0]);
}

#[test]
fn a_resuming_edge_without_answer_sends_no_close() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/mcp/register", listener.local_addr().unwrap());
    let server = format!("'{}'", fake_server().display());
    let _edge = in_process::Edge::start(&url, "s", &server, &[], |limits| {
        limits.link.register_time = Duration::from_millis(300);
        limits.link.backoff_base = Duration::from_millis(10);
    });
    let mut gateway = End::accept(&listener);
    gateway.next();
    gateway.say(r#"{"status":"received","id":"x","message":"m","capabilities":{"mcpport":{"resume":{"token":"t","window":30}}}}"#);
    drop(gateway);
    // The gateway may have resumed the session although its response is lost. A close frame from
    // the edge would end that session, so the edge sends none.
    let mut gateway = End::accept(&listener);
    assert!(gateway.next().contains("\"token\":\"t\""));
    let end = gateway.0.read();
    assert!(end.is_err(), "{end:?}");
    let mut gateway = End::accept(&listener);
    assert!(gateway.next().contains("\"token\":\"t\""), "the edge reconnects");
}

#[test]
fn a_resume_replaces_a_live_link() {
    let World { gateway, mut client, mut end, token, waiting, upstream } = world(&[], None);
    let mut second = End::connect(gateway.address, None);
    assert_eq!(granted(&second.introduce(&back(&token, HEARD))).1, Some(SENT));
    assert!(end.0.read().is_err(), "the old link is closed");
    second.say(&result(&upstream, "by the second"));
    assert!(client.answer(&waiting).contains("by the second"));
}

#[test]
fn a_late_resume_claim_loses_no_call() {
    let World { gateway, mut client, end, token, waiting, upstream } = world(&[], None);
    drop(end);
    gateway.program.wait_for("server 's' is reconnecting");
    let mut second = End::connect(gateway.address, None);
    assert_eq!(granted(&second.introduce(&back(&token, HEARD))).1, Some(SENT));
    // Sent on a link that the edge gave up before this one, and whose bytes arrived late.
    let mut late = End::connect(gateway.address, None);
    late.say(&introduction(&back(&token, HEARD - 1)));
    // The old end still exists and can prove it; an end that cannot is not replaced.
    assert!(late.0.read().unwrap().is_ping());
    assert!(late.0.read().is_err() && second.0.read().is_err());
    let mut third = End::connect(gateway.address, None);
    assert_eq!(granted(&third.introduce(&back(&token, HEARD))).1, Some(SENT));
    third.say(&result(&upstream, "by the third"));
    assert!(client.answer(&waiting).contains("by the third"));
}

#[test]
fn only_the_same_principal_may_resume() {
    let World { gateway, mut client, end, token, waiting, .. } =
        world(&["--auth-token", "one", "--auth-token", "two"], Some("one"));
    drop(end);
    gateway.program.wait_for("server 's' is reconnecting");
    // Another principal that knows the secret.
    let mut thief = End::connect(gateway.address, Some("two"));
    let answer = thief.introduce(&back(&token, HEARD));
    assert!(answer.contains("\"error\"") && answer.contains("belongs to another principal"), "{answer}");
    assert!(!answer.contains(&token));
    // The right principal with another secret starts anew, and waiting calls get an error.
    let mut end = End::connect(gateway.address, Some("one"));
    let (fresh, received) = granted(&end.introduce(&back("AAAAAAAAAAAAAAAAAAAAAA", HEARD)));
    assert!(received.is_none() && fresh != token);
    assert!(client.answer(&waiting).contains("server 's' disconnected: it registered again"));
    assert!(!gateway.program.log().contains(&token), "the token is a secret");
}

#[test]
fn impossible_resume_starts_a_new_session() {
    for impossible in [HEARD + 1, 0, u64::MAX] {
        let World { gateway, mut client, mut end, token, waiting, .. } = world(&[], None);
        // All its received frames are acknowledged, so frame 0 cannot be sent again.
        end.say(&format!("*{HEARD}"));
        client.call("list_servers", "{}");
        let expected = if impossible == 0 { "starts a new session" } else { "claims more than was sent" };
        end.say(&result("77", expected));
        drop(end);
        gateway.program.wait_for("server 's' is reconnecting");
        let mut end = End::connect(gateway.address, None);
        assert_eq!(granted(&end.introduce(&back(&token, impossible))).1, None, "{expected}");
        assert!(client.answer(&waiting).contains("it reconnected but could not resume"), "{expected}");
        end.list();
    }
}

#[test]
fn acknowledgements_that_cannot_be_end_the_link() {
    for wrong in [HEARD + 1, u64::MAX] {
        let World { gateway: _gateway, client: _client, mut end, .. } = world(&[], None);
        end.say(&format!("*{wrong}"));
        assert_eq!(end.close_reason(), (1008, "invalid acknowledgement".into()));
    }
}

#[test]
fn a_second_registration_ends_the_link() {
    let World { gateway: _gateway, mut client, mut end, waiting, .. } = world(&[], None);
    end.say(r#"{"jsonrpc":"2.0","id":"x","method":"register","params":{"name":"other"}}"#);
    assert_eq!(end.close_reason(), (1008, "a second registration on one link".into()));
    assert!(client.answer(&waiting).contains("a second registration"));
}

#[test]
fn the_gateway_acknowledges_in_time() {
    let World { gateway: _gateway, client: _client, mut end, .. } = world(&[], None);
    assert_eq!(end.next(), format!("*{SENT}"), "after a while");
    (0..64).for_each(|_| end.say(r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#));
    assert_eq!(end.next(), format!("*{}", SENT + 64), "after many");
}

#[test]
fn an_end_of_the_window_is_named() {
    let gateway = in_process::Gateway::start(&["--resume-window", "500ms"], |limits| {
        limits.link.resume_grace = Duration::ZERO;
    });
    let mut end = End::connect(gateway.address, None);
    end.introduce(RESUME);
    end.list();
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.len() == 2);
    let waiting = client.begin_call("s_t", "{}");
    end.request("", "tools/call");
    drop(end);
    let why = client.answer(&waiting);
    assert!(why.contains("not resumed within") && why.contains("--resume-window"), "{why}");
    client.tools_until(|tools| tools == ["list_servers"]);
}

#[test]
fn calls_time_out_while_the_link_is_lost() {
    let World { gateway, mut client, end, waiting, .. } = world(&["--timeout-run-tool", "1s"], None);
    drop(end);
    gateway.program.wait_for("server 's' is reconnecting");
    let why = client.answer(&waiting);
    assert!(why.contains("did not respond within 1 s"), "{why}");
    assert_eq!(client.tools().len(), 2, "calls still wait for the server");
}

#[test]
fn edges_without_resume_are_not_waited_for() {
    for (flags, capabilities, reason) in [
        (&[][..], "{}", "; its edge does not support resuming"),
        (&[], r#"{"mcpport":{}}"#, "; its edge does not support resuming"),
        (&["--resume-window", "0"], RESUME, "the link was lost"),
    ] {
        let gateway = Gateway::start(flags);
        let mut end = End::connect(gateway.address, None);
        let answer = end.introduce(capabilities);
        assert!(!answer.contains("resume"), "{answer}");
        end.list();
        let mut client = gateway.client();
        client.tools_until(|tools| tools.len() == 2);
        let waiting = client.begin_call("s_t", "{}");
        end.request("", "tools/call");
        // Without negotiation it is an unknown frame, and harmless.
        end.say("*1");
        drop(end);
        let why = client.answer(&waiting);
        assert!(why.contains("server 's' disconnected") && why.contains(reason), "{why}");
    }
}

#[test]
fn a_clean_close_fails_pending_calls_at_once() {
    let World { gateway: _gateway, mut client, mut end, waiting, .. } = world(&[], None);
    end.0.close(None).unwrap();
    assert!(client.answer(&waiting).contains("server 's' disconnected: the peer closed the link"));
}

#[test]
fn a_gateway_that_stops_fails_what_waits_for_a_link() {
    let World { mut gateway, mut client, end, waiting, .. } = world(&[], None);
    drop(end);
    gateway.program.wait_for("server 's' is reconnecting");
    gateway.program.signal(rustix::process::Signal::TERM);
    assert!(client.answer(&waiting).contains("disconnected: the gateway is stopping"));
    assert_eq!(gateway.program.ended().code, Some(0));
}

#[test]
fn calls_beyond_the_queue_fail_at_once() {
    let gateway = in_process::Gateway::start(&[], |limits| limits.link.queue_messages = 4);
    let mut end = End::connect(gateway.address, None);
    end.introduce(RESUME);
    end.list();
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.len() == 2);
    drop(end);
    eventually("it is away", || client.call_text("list_servers", "{}").contains("reconnecting"));
    (0..4).for_each(|_| drop(client.begin_call("s_t", "{}")));
    let refused = client.call("s_t", "{}");
    assert!(refused.contains("-32000") && refused.contains("the link to server 's'"), "{refused}");
    assert_eq!(client.rest(), [""; 0], "the other calls still wait");
}

/// The edge starts anew if its gateway has no session to resume, and cancels at its server the
/// calls that nobody waits for.
#[test]
fn a_killed_gateway_resumes_no_link() {
    let mut gateway = Gateway::start(&[]);
    let edge = gateway.edge("s");
    let mut client = gateway.client();
    client.begin_call("s_hold", r#"{"key":"k"}"#);
    edge.wait_for("\"hold\"");
    gateway.program.kill();
    let gateway = gateway.again(&[]);
    edge.program.wait_for("the gateway did not resume the link");
    eventually("the call is cancelled", || edge.count("notifications/cancelled") == 1);
    let mut client = gateway.client();
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_echo"));
    assert_eq!(client.call_text("s_echo", r#"{"text":"anew"}"#), "anew");
}

fn soon(limits: &mut Limits) {
    limits.link.backoff_base = Duration::from_millis(5);
    limits.link.backoff_cap = Duration::from_millis(50);
}

/// Isolated sessions keep their processes.
#[test]
fn isolated_sessions_outlive_a_cut() {
    let gateway = Gateway::start(&[]);
    let relay = Relay::to(gateway.address);
    let server = format!("'{}' --session", fake_server().display());
    let _edge = in_process::Edge::start(&relay.url(), "s", &server, &["--sessions", "isolated"], soon);
    gateway.client().tools_until(|tools| tools.iter().any(|tool| tool == "s_pid"));
    let mut peers: Vec<Peer> = Place::ALL.into_iter().map(|place| Peer::ready(&gateway, place)).collect();
    let before: Vec<u32> = peers.iter_mut().map(Peer::pid).collect();
    for round in 1..=3 {
        let calls: Vec<String> =
            peers.iter_mut().map(|peer| peer.begin_call("hold", r#"{"key":"k"}"#)).collect();
        relay.cut();
        eventually("the edge is back", || relay.taken() > round);
        for (peer, call) in peers.iter_mut().zip(&calls) {
            peer.call("release", r#"{"key":"k"}"#);
            assert!(peer.answer(call).contains("\"k\""));
        }
    }
    let after: Vec<u32> = peers.iter_mut().map(Peer::pid).collect();
    assert_eq!(before, after);
}

/// Large messages resume in the middle, and both directions are bounded.
#[test]
fn large_messages_continue_after_a_resume() {
    let gateway = in_process::Gateway::start(&[], |_| {});
    let relay = Relay::narrow(gateway.address, 4096);
    let server = format!("'{}'", fake_server().display());
    let _edge = in_process::Edge::start(&relay.url(), "s", &server, &[], soon);
    let mut client = Client::ready(gateway.address, &[]);
    client.tools_until(|tools| tools.iter().any(|tool| tool == "s_big"));
    for round in 1..=4_u64 {
        let call = client.begin_call("s_big", r#"{"bytes":3000000}"#);
        let before = relay.passed(Way::Up);
        eventually("it is on its way", || relay.passed(Way::Up) > before + 500_000 * (round % 3));
        relay.cut();
        let answer = client.answer(&call);
        let text = value(&answer)["result"]["content"][0]["text"].as_str().unwrap().len();
        assert_eq!(text, 3_000_000);
    }
}
