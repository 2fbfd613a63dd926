//! SIGHUP at the gateway reloads tokens and certificates, and closes nothing that is still
//! permitted.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::process::Signal;

use crate::{
    certs::{available, generate},
    directory,
    harness::{Edge, Gateway, Program, listening, terminal},
    secure::dial,
    wire::{Client, Wire, ask, host, request, text},
};

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

/// A gateway with a token file.
pub struct Reloaded {
    pub gateway: Gateway,
    file: PathBuf,
    done: usize,
}

impl Reloaded {
    #[track_caller]
    pub fn start(tokens: &str, arguments: &[&str]) -> Self {
        let file = directory("reload").join("tokens");
        fs::write(&file, tokens).unwrap();
        let flags = ["--auth-token-file", file.to_str().unwrap()];
        Self { gateway: Gateway::start(&[&flags, arguments].concat()), file, done: 0 }
    }

    /// Writes other tokens, and makes the gateway reload them. Returns its log line.
    #[track_caller]
    pub fn tokens(&mut self, tokens: &str) -> String {
        fs::write(&self.file, tokens).unwrap();
        self.reload()
    }

    #[track_caller]
    fn reload(&mut self) -> String {
        self.done += 1;
        self.gateway.program.signal(Signal::HUP);
        self.gateway.program.wait_for_nth("reloaded", self.done)
    }

    #[track_caller]
    fn status(&self, token: &str) -> u16 {
        request(self.gateway.address, "GET", "/status", &[&bearer(token)], "").status
    }
}

/// At startup and at each reload; only a warning.
#[test]
fn token_file_open_to_others_is_warned_of() {
    let file = directory("open-tokens").join("tokens");
    let path = file.to_str().unwrap();
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&file, "canary\n").unwrap();
    mode(0o644);
    let gateway = Gateway::start(&["--auth-token-file", path]);
    let warning = |mode: &str| {
        format!(
            "[WARN] --auth-token-file {path}: other users have access to this file (mode {mode}); run chmod 600 on it"
        )
    };
    gateway.program.wait_for(&warning("644"));
    for (number, (bits, name)) in [(0o600, None), (0o640, Some("640"))].into_iter().enumerate() {
        mode(bits);
        gateway.program.signal(Signal::HUP);
        gateway.program.wait_for_nth("reloaded", number + 1);
        let log = gateway.program.log();
        assert_eq!(log.matches("other users have access").count(), 1 + number, "{log}");
        assert!(name.is_none_or(|name| log.contains(&warning(name))), "{log}");
        assert!(!log.contains("canary"), "{log}");
    }
}

#[test]
fn tokens_come_and_go() {
    let mut reloaded = Reloaded::start("one\ntwo\n", &["--auth-token", "fixed"]);
    let address = reloaded.gateway.address;
    let mut one = Client::ready(address, &[&bearer("one")]);
    let mut two = Client::ready(address, &[&bearer("two")]);
    let mut known = Wire::connect(address);
    let lines = [host(address), bearer("one")];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    assert_eq!(ask(&mut known, "GET", "/status", &lines, "").status, 200);
    let said = reloaded.tokens("two\nthree\n");
    assert!(said.contains("closed 1 sessions and 0 links"), "{said}");
    for (token, status) in [("one", 401), ("two", 200), ("three", 200), ("fixed", 200)] {
        assert_eq!(reloaded.status(token), status, "{token}");
    }
    assert_eq!(
        ask(&mut known, "GET", "/status", &lines, "").status,
        401,
        "what was let in once is asked again"
    );
    assert_eq!(one.try_post(PING).status, 401);
    one.ended();
    two.ask("ping", "{}");
    // The permission is back, the session is not.
    reloaded.tokens("one\ntwo\n");
    assert_eq!(one.try_post(PING).status, 404);
    two.ask("ping", "{}");
}

#[test]
fn a_token_can_be_changed_for_another_of_the_same_principal() {
    let mut reloaded = Reloaded::start("client@alice:old\nregister[s]@box:before\n", &[]);
    let address = reloaded.gateway.address;
    let header = bearer("before");
    let edge = reloaded.gateway.edge_with("s", &[], &["--server-id", "b", "--header", &header]);
    edge.program.wait_for("registered: ");
    let mut client = Client::ready(address, &[&bearer("old")]);
    let post = |client: &Client, token: &str| {
        request(address, "POST", &client.endpoint, &[&bearer(token)], PING).status
    };
    // First both tokens, then only the new one: a token is replaced without interruption this way.
    reloaded.tokens("client@alice:old\nclient@alice:new\nregister[s]@box:before\nregister[s]@box:after\n");
    assert_eq!((post(&client, "old"), post(&client, "new")), (202, 202));
    assert_eq!(client.call_text("s_echo", r#"{"text":"both"}"#), "both");
    let said = reloaded.tokens("client@alice:new\nregister[s]@box:after\n");
    assert!(said.contains("closed 0 sessions and 0 links"), "{said}");
    assert_eq!((post(&client, "old"), post(&client, "new")), (401, 202));
    assert_eq!(edge.program.log().matches("registered: ").count(), 1, "its link stays");
    // The same edge with the new token gets its name back.
    let second =
        Edge::start(&reloaded.gateway.url(), "s", &[], &["--server-id", "b", "--header", &bearer("after")]);
    second.program.wait_for("registered: ");
}

#[test]
fn a_link_ends_with_its_token() {
    let mut reloaded =
        Reloaded::start("register[s]:gone\nregister[t]@box:stays\nregister[u]@box2:less\nclient:c\n", &[]);
    let gateway = &reloaded.gateway;
    let edge = |name, token| gateway.edge_with(name, &[], &["--header", &bearer(token)]);
    let (gone, stays, less) = (edge("s", "gone"), edge("t", "stays"), edge("u", "less"));
    for edge in [&gone, &stays, &less] {
        edge.program.wait_for("registered: ");
    }
    let mut client = Client::ready(gateway.address, &[&bearer("c")]);
    client.tools_until(|tools| {
        ["s_echo", "t_echo", "u_echo"].iter().all(|name| tools.iter().any(|t| t == name))
    });
    let waiting = client.begin_call("s_hold", r#"{"key":"k"}"#);
    gone.wait_for("\"hold\"");
    let said = reloaded.tokens("register[t]@box:stays\nregister[v]@box2:less\nclient:c\n");
    assert!(said.contains("closed 0 sessions and 2 links"), "{said}");
    let answer = client.answer(&waiting);
    assert!(answer.contains("the token of this registration was revoked"), "{answer}");
    gone.program.wait_for("code 1008: the token of this registration was revoked");
    gone.program.wait_for("rejected the token (401)");
    less.program.wait_for("code 1008");
    less.program.wait_for("the token does not allow the name 'u'");
    client.tools_until(|tools| tools.iter().all(|name| name == "list_servers" || name.starts_with("t_")));
    assert_eq!(client.call_text("t_echo", r#"{"text":"still"}"#), "still");
    assert_eq!(stays.program.log().matches("registered: ").count(), 1);
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing() {
    let mut reloaded = Reloaded::start("one\n", &[]);
    let mut client = Client::ready(reloaded.gateway.address, &[&bearer("one")]);
    for (tokens, words) in [
        (Some(""), "the file contains no token"),
        (Some("# nobody\n\n"), "the file contains no token"),
        (Some("two\nclients:canary\n"), ", line 2: unknown role"),
        (Some("two\nca nary\n"), "visible characters"),
        (Some("@a:canary\n@b:canary\n"), "two labels"),
        (None, "no such file"),
    ] {
        let said = match tokens {
            Some(tokens) => reloaded.tokens(tokens),
            None => {
                fs::remove_file(&reloaded.file).unwrap();
                reloaded.reload()
            }
        };
        assert!(said.contains("[ERROR]") && said.contains("--auth-token") && said.contains(words), "{said}");
        assert_eq!((reloaded.status("one"), reloaded.status("two")), (200, 401), "{words}");
    }
    client.ask("ping", "{}");
    let log = reloaded.gateway.program.log();
    assert!(!log.contains("canary") && !log.contains("nary"), "{log}");
    reloaded.tokens("two\n");
    assert_eq!((reloaded.status("one"), reloaded.status("two")), (401, 200));
}

/// Copies a server's certificate and key to the files of a gateway.
fn install(from: &Path, to: &Path) {
    for name in ["server.key", "server.crt"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[test]
fn certificates_are_changed_without_dropping_a_connection() {
    if !available() {
        return;
    }
    let (first, second) = (generate(&["--key-size", "2048"]), generate(&["--key-size", "2048"]));
    let own = directory("installed");
    install(&first, &own);
    let path = |name: &str| own.join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("server.key"), path("server.crt"));
    let tls = ["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate];
    let mut reloaded = Reloaded::start("t\n", &tls);
    let address = reloaded.gateway.address;
    let lines = [host(address), bearer("t")];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let try_health = |wire: &mut Wire| {
        wire.try_send(text("GET", "/status", &lines, ""))
            .and_then(|()| wire.try_answer())
            .map(|answer| answer.status)
    };
    let mut old = dial(address, &first, None);
    assert_eq!(try_health(&mut old).unwrap(), 200);
    let url = format!("wss://localhost:{}/mcp/register", address.port());
    let authority = first.join("ca.crt");
    let register = ["--ssl-ca-cert", authority.to_str().unwrap(), "--header", &bearer("t")];
    let edge = Edge::start(&url, "s", &[], &register);
    edge.program.wait_for("registered: ");

    // Half of the file is not enough.
    fs::copy(second.join("server.key"), &key).unwrap();
    let said = reloaded.reload();
    assert!(said.contains("[ERROR]") && said.contains("--ssl-keyfile"), "{said}");
    assert_eq!(try_health(&mut dial(address, &first, None)).unwrap(), 200);

    install(&second, &own);
    let said = reloaded.reload();
    assert!(said.contains("reloaded tokens and certificates"), "{said}");
    assert_eq!(try_health(&mut dial(address, &second, None)).unwrap(), 200);
    assert!(try_health(&mut dial(address, &first, None)).is_err(), "the old one is not presented any more");
    assert_eq!(try_health(&mut old).unwrap(), 200, "existing connections stay");
    assert_eq!(edge.program.log().matches("registered: ").count(), 1);
}

#[test]
fn reload_without_files_changes_nothing() {
    let gateway = Gateway::start(&[]);
    let mut client = gateway.client();
    for round in 1..=3 {
        gateway.program.signal(Signal::HUP);
        gateway.program.wait_for_nth("reloaded tokens: closed 0 sessions and 0 links", round);
    }
    client.ask("ping", "{}");
}

/// Under `nohup` the programs ignore the signals that we ignore, as they should.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1;
    if ignored {
        println!("SIGHUP is ignored here: run it without nohup");
    }
    ignored
}

#[test]
fn a_gateway_stops_when_its_terminal_closes() {
    if hangups_are_ignored() {
        return;
    }
    let (controller, terminal) = terminal();
    let mut program = Program::start_on(&["gateway", "--port", "0"], terminal.into());
    listening(&program);
    program.signal(Signal::HUP);
    let end = program.ended();
    assert_eq!(end.code, Some(0), "{:?}", end.stderr);
    assert!(end.stderr.iter().any(|line| line.contains("SIGHUP: stopping")), "{:?}", end.stderr);
    drop(controller);
}

#[test]
fn register_stops_at_sighup() {
    if hangups_are_ignored() {
        return;
    }
    let gateway = Gateway::start(&[]);
    let mut edge = gateway.edge("s");
    edge.program.signal(Signal::HUP);
    assert_eq!(edge.program.ended().code, Some(0));
}

/// A machine may start before its clock is set, and before the certificate of its gateway is
/// renewed: without a terminal, `register` keeps trying.
#[test]
fn a_certificate_that_is_not_trusted_at_the_first_start_is_tried_again() {
    if !available() {
        return;
    }
    let (early, later) = (generate(&["--key-size", "2048"]), generate(&["--key-size", "2048"]));
    let own = directory("early");
    install(&early, &own);
    let path = |name: &str| own.join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (path("server.key"), path("server.crt"));
    let tls = ["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate];
    let mut reloaded = Reloaded::start("t\n", &tls);
    let url = format!("wss://localhost:{}/mcp/register", reloaded.gateway.address.port());
    let authority = later.join("ca.crt");
    let register = ["--ssl-ca-cert", authority.to_str().unwrap(), "--header", &bearer("t")];
    let edge = Edge::start(&url, "s", &[], &register);
    edge.program.wait_for("is not trusted");
    edge.program.wait_for("reconnecting in");
    install(&later, &own);
    reloaded.reload();
    edge.program.wait_for("registered: ");
}
