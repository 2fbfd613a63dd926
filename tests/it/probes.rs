//! The gateway finds the era of each server, whatever the server does with its first request.

use std::fs;

use serde_json::json;

use crate::{
    directory,
    harness::{Edge, Gateway, eventually, kill},
    session::Session,
};

/// A server that is registered without `--era`, and what it is to get.
struct Probed {
    /// What the fake server is told.
    server: &'static str,
    /// What `register` is told.
    register: &'static [&'static str],
    modern: bool,
    discovers: usize,
    initializes: usize,
    /// Processes that are started.
    starts: usize,
}

const fn probed(server: &'static str, modern: bool, discovers: usize, initializes: usize) -> Probed {
    Probed { server, register: &[], modern, discovers, initializes, starts: 1 }
}

const LEGACY: bool = false;
const MODERN: bool = true;

#[rustfmt::skip]
const TABLE: &[Probed] = &[
    probed("", LEGACY, 1, 1),
    probed("--era modern", MODERN, 1, 0),
    probed("--era both", MODERN, 1, 0),
    probed("--era first", MODERN, 1, 0),
    probed("--probe untyped", LEGACY, 1, 1),
    probed("--probe older", LEGACY, 1, 1),
    probed("--probe -32600", LEGACY, 1, 1),
    probed("--probe -32603", LEGACY, 1, 1),
    probed("--probe -32022", LEGACY, 1, 1),
    probed("--probe garbage", LEGACY, 1, 1),
    Probed { starts: 2, ..probed("--probe die", LEGACY, 1, 1) },
    Probed { starts: 2, register: &["--restart", "never"], ..probed("--probe die", LEGACY, 1, 1) },
    // After 10 s of silence.
    probed("--probe silent", LEGACY, 1, 1),
    probed("--probe silent --era both", LEGACY, 1, 1),
    probed("--probe slow --probe-ms 12000 --era modern", MODERN, 1, 1),
    // Such a server commits to `initialize` when it gets that, too.
    probed("--probe slow --probe-ms 12000 --era both", LEGACY, 1, 1),
    probed("--probe slow --probe-ms 12000", LEGACY, 1, 1),
    Probed { register: &["--era", "legacy"], ..probed("--era both", LEGACY, 0, 1) },
    Probed { register: &["--era", "modern"], ..probed("--era both", MODERN, 1, 0) },
];

#[test]
fn every_server_is_listed_in_its_era_and_nothing_runs_twice() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts");
    let edges: Vec<(Edge, String, &Probed)> = TABLE
        .iter()
        .enumerate()
        .map(|(number, probed)| {
            let (name, starts) = (format!("s{number}"), starts.join(number.to_string()));
            let starts = starts.to_str().unwrap();
            let server: Vec<&str> = probed.server.split_whitespace().chain(["--starts", starts]).collect();
            (Edge::start(&gateway.url(), &name, &server, probed.register), name, probed)
        })
        .collect();
    for (number, (edge, name, probed)) in edges.iter().enumerate() {
        edge.program.wait_for("registered: ");
        let session = Session::open(gateway.address, &format!("/servers/{name}/mcp"));
        for count in 1..=3 {
            let text = session.call_text("count", json!({"text": "x"}));
            assert_eq!(text, format!("x {count}"), "{}", probed.server);
        }
        let got = |method: &str| edge.count(&format!("\"method\":\"{method}\""));
        let requests = ["server/discover", "initialize", "tools/list", "tools/call"].map(got);
        assert_eq!(requests, [probed.discovers, probed.initializes, 1, 3], "{}", probed.server);
        let enveloped = edge.wait_for("tools/call").contains("io.modelcontextprotocol/protocolVersion");
        assert_eq!(enveloped, probed.modern, "{}", probed.server);
        assert_eq!(got("notifications/initialized"), usize::from(!probed.modern), "{}", probed.server);
        let starts = fs::read_to_string(starts.join(number.to_string())).unwrap();
        assert_eq!(starts.lines().count(), probed.starts, "{}", probed.server);
    }
}

/// Only a modern server is asked for its era again: the edge initializes a legacy one itself.
#[test]
fn a_restarted_server_is_found_again() {
    let gateway = Gateway::start(&[]);
    for (name, server, discovers) in [("l", &[][..], 1), ("m", &["--era", "both"], 2)] {
        let edge = gateway.edge_with(name, server, &["--restart", "always"]);
        edge.program.wait_for("registered: ");
        let session = Session::open(gateway.address, &format!("/servers/{name}/mcp"));
        let lists = edge.count("tools/list");
        kill(edge.server_pid());
        edge.nth_server_pid(2);
        // A modern server once more, since something may have changed before it was listened to.
        eventually("the server is listed again", || edge.count("tools/list") > lists);
        assert_eq!(edge.count("server/discover"), discovers, "{name}");
        assert_eq!(session.call_text("echo", json!({"text": "x"})), "x");
    }
}

/// A session outlives the registration of its server. Its messages must not be the first ones of the
/// next process.
#[test]
fn calls_are_refused_until_the_era_is_known() {
    let gateway = Gateway::start(&[]);
    let mut edge = gateway.edge("s");
    edge.program.wait_for("registered: ");
    let session = Session::open(gateway.address, "/servers/s/mcp");
    assert_eq!(session.call_text("echo", json!({"text": "x"})), "x");
    edge.program.stop();
    let server = ["--era", "first", "--probe", "slow", "--probe-ms", "1000"];
    let edge = Edge::start(&gateway.url(), "s", &server, &[]);
    eventually("a call passes", || {
        let notification = r#"{"jsonrpc":"2.0","method":"notifications/odd"}"#;
        assert_eq!(session.post(notification).status, 202);
        let answer = session.ask("tools/call", json!({"name": "echo", "arguments": {"text": "x"}}));
        let error = &answer["error"]["code"];
        assert!(error.is_null() || *error == -32603, "{answer}");
        error.is_null()
    });
    let got = edge.got();
    assert!(got[0].contains("server/discover") && got[1].contains("tools/list"), "{got:?}");
    assert_eq!((edge.count("tools/call"), edge.count("initialize")), (1, 0));
}
