//! The edge in the test process, with limits that turn hours into seconds.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use mcpport::{
    command::CommandLine,
    config::{ClientTls, EraPin, GatewayUrl, RegisterConfig, Restart},
    edge,
    error::FatalError,
    limits::{ChildLimits, Limits},
    runtime::executor,
};

use super::{error, until_served};
use crate::{
    alone, directory,
    harness::{Gateway, command, eventually},
    wire::Client,
};

/// The command to run, with this gateway.
fn config(gateway: &Gateway, stdio: &str, child: ChildLimits) -> RegisterConfig {
    RegisterConfig {
        command: CommandLine::parse(stdio).unwrap(),
        gateway: GatewayUrl {
            tls: false,
            host: "127.0.0.1".into(),
            port: gateway.address.port(),
            target: "/mcp/register".into(),
        },
        name: "s".into(),
        id: "inside".into(),
        headers: Vec::new(),
        header_file: None,
        tls: ClientTls::default(),
        sessions: None,
        era: EraPin::Auto,
        restart: Restart::Always,
        require_gateway: false,
        port: 0,
        cors: false,
        health_paths: Vec::new(),
        threads: 1,
        busy_poll: true,
        limits: Limits { child, ..Limits::default() },
    }
}

/// Runs the edge until `work` is done.
fn while_running(config: RegisterConfig, work: impl FnOnce()) {
    let (trigger, stopped) = mcpport::runtime::shutdown::shutdown();
    let edge: thread::JoinHandle<Result<(), FatalError>> = thread::spawn(move || {
        executor::run(1, edge::run(config, async move { stopped.wait().await })).unwrap()
    });
    work();
    assert!(!edge.is_finished(), "it still runs");
    drop(trigger);
    edge.join().unwrap().unwrap();
}

/// Restarts follow at once.
fn hasty() -> ChildLimits {
    let at_once = Duration::from_millis(1);
    ChildLimits { restart_base: at_once, restart_cap: at_once, ..ChildLimits::default() }
}

#[test]
fn a_server_that_does_not_read_is_ended_and_started_again() {
    let gateway = Gateway::start(&["--timeout-run-tool", "10m"]);
    let log = directory("fake").join("log");
    let limits = ChildLimits {
        write_stall: Duration::from_millis(300),
        restart_base: Duration::from_millis(500),
        term_after: Duration::from_millis(10),
        ..ChildLimits::default()
    };
    while_running(config(&gateway, &command(&log, &[]), limits), || {
        gateway.program.wait_for("server 's' offers");
        let mut client = gateway.client();
        let deaf = client.begin_call("s_deaf", "{}");
        // More than the pipe holds.
        let big = client.begin_call("s_echo", &format!("{{\"text\":\"{}\"}}", "x".repeat(1 << 20)));
        for id in [&deaf, &big] {
            let (code, message) = error(&client.answer(id));
            let words = "stopped server 's': it did not read its input for 0.3 s";
            assert_eq!((code, message.as_str()), (-32603, words));
        }
        assert_eq!(error(&client.call("s_echo", "{}")).0, -31002);
        until_served(&mut client, "s_echo");
    });
}

#[test]
fn a_server_that_refuses_initialize_is_restarted() {
    let gateway = Gateway::start(&[]);
    let (log, starts) = (directory("fake").join("log"), directory("starts").join("starts"));
    let number = format!("\"$(wc -l < '{0}' 2>/dev/null || echo 0)\"", starts.display());
    // The second does not respond, the third responds with an error.
    let stdio = format!(
        "case {number} in 1) extra='--mute initialize';; 2) extra='--refuse initialize';; esac; exec {} $extra",
        command(&log, &["--starts", starts.to_str().unwrap()])
    );
    let limits = ChildLimits { initialize_time: Duration::from_millis(500), ..hasty() };
    while_running(config(&gateway, &stdio, limits), || {
        gateway.program.wait_for("server 's' offers");
        let mut client = gateway.client();
        client.call("s_crash", "{}");
        until_served(&mut client, "s_echo");
        assert!(fs::read_to_string(&starts).unwrap().lines().count() >= 4);
        client.tools_until(|tools| tools.contains(&"s_start4".to_owned()));
    });
}

#[test]
fn a_server_that_closes_its_stdout_and_lives_on_is_started_again() {
    let gateway = Gateway::start(&[]);
    let starts = directory("starts").join("starts");
    let stdio = format!("echo x >> '{}'; exec >/dev/null; exec cat", starts.display());
    let limits = ChildLimits { pipe_grace: Duration::from_millis(10), term_after: Duration::ZERO, ..hasty() };
    while_running(config(&gateway, &stdio, limits), || {
        eventually("it was started three times", || {
            fs::read_to_string(&starts).is_ok_and(|starts| starts.lines().count() >= 3)
        });
    });
}

#[test]
fn two_hundred_restarts_leave_nothing() {
    alone("supervision::inside::two_hundred_restarts", &[]);
}

/// Returns the zombies among the children of this process.
fn zombies() -> usize {
    let me = std::process::id().to_string();
    let stats = fs::read_dir("/proc").unwrap().flatten();
    let stats = stats.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
            fields.next() == Some("Z") && fields.next() == Some(&me)
        })
        .count()
}

#[test]
#[ignore = "counts what the whole process has: run by two_hundred_restarts_leave_nothing"]
fn two_hundred_restarts() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    assert!(!STARTED.swap(true, Ordering::SeqCst));
    let gateway = Gateway::start(&[]);
    let (log, starts) = (directory("fake").join("log"), directory("starts").join("starts"));
    // All but the first, and those from the 201st on, exit as soon as they are initialized.
    let server = ["--starts", starts.to_str().unwrap(), "--quit", "notifications/initialized"];
    let server = [&server[..], &["--quit-from", "2", "--quit-to", "201"]].concat();
    let count = || fs::read_to_string(&starts).map_or(0, |starts| starts.lines().count());
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    while_running(config(&gateway, &command(&log, &server), hasty()), || {
        gateway.program.wait_for("registered from");
        gateway.program.wait_for("server 's' offers");
        let mut client: Client = gateway.client();
        let before = descriptors();
        client.call("s_crash", "{}");
        until_served(&mut client, "s_echo");
        assert_eq!((count(), zombies()), (202, 0));
        let after = descriptors();
        println!("{} restarts, {before} descriptors before, {after} after", count() - 1);
        assert!(after.abs_diff(before) <= 2, "{before} descriptors before, {after} after");
    });
    assert_eq!(zombies(), 0);
}
