//! Tokens stay secret: at DEBUG, no output of either program contains one, whatever is provoked.

use std::fs;

use crate::{
    directory,
    harness::{Edge, Gateway},
    wire::{Client, Wire, host, request, text},
};

const SECRETS: &[&str] =
    &["canary-flag", "canary-file", "canary-list", "canary-wrong", "canary-query", "canary-argument"];

#[test]
fn no_secret_is_in_any_output() {
    let file = directory("canary").join("tokens");
    fs::write(&file, "canary-file\n").unwrap();
    let file = file.to_str().unwrap();
    let mut gateway = Gateway::start_in(
        &["--debug", "--auth-token", "canary-flag", "--auth-token-file", file],
        &[("MCP_GATEWAY_AUTH_TOKENS", "canary-list")],
    );
    let debug = |token: &'static str| ["--log-level", "DEBUG", "--header", token];
    let url = format!("{}?token=canary-query", gateway.url());
    let mut good = Edge::start(
        &url,
        "good",
        &["--tool", "canary-argument"],
        &debug("Authorization: Bearer canary-flag"),
    );
    gateway.program.wait_for("server 'good' offers");
    let mut bad = Edge::start(&url, "bad", &[], &debug("Authorization: Bearer canary-wrong"));
    let refused = bad.program.ended();
    let mut client = Client::ready(gateway.address, &["Authorization: Bearer canary-list"]);
    let session = client.endpoint.split('=').nth(1).unwrap().to_owned();
    for arguments in [r#"{"text":"canary-argument"}"#, "{}"] {
        client.call("good_echo", arguments);
        client.call("good_fail", r#"{"code":1,"message":"canary-argument"}"#);
    }
    client.ask("no/such", r#"{"x":"canary-argument"}"#);
    client.call("good_noise", "{}");
    // Everything that is refused, with a token in some place.
    for lines in [
        &["Authorization: Bearer canary-wrong"][..],
        &["Authorization: Basic canary-wrong"],
        &["Authorization: Bearer canary-flag", "Authorization: Bearer canary-wrong"],
        &["Authorization : Bearer canary-flag"],
        &["Authorization: Bearer canary-flag", "Origin: http://evil.example"],
        &["Authorization: Bearer canary-flag\u{1}"],
    ] {
        let mut wire = Wire::connect(gateway.address);
        wire.send(text(
            "GET",
            "/health?token=canary-query",
            &[&[host(gateway.address).as_str()], lines].concat(),
            "",
        ));
        wire.head().unwrap();
    }
    let bad_body = client.try_post("{\"canary-argument");
    assert_eq!(bad_body.status, 400);
    request(gateway.address, "GET", "/nowhere", &["Authorization: Bearer canary-flag"], "");
    drop(client);
    good.program.stop();
    gateway.program.stop();
    for (who, said) in [
        ("gateway", gateway.program.log() + &gateway.program.output()),
        ("edge", good.program.log() + &good.program.output()),
        ("refused edge", refused.stderr.join("\n")),
    ] {
        assert!(said.contains("[DEBUG]"), "{who} says much");
        for secret in SECRETS.iter().copied().chain([session.as_str()]) {
            assert!(!said.contains(secret), "{secret} in the output of the {who}:\n{said}");
        }
    }
}
