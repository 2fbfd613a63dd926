//! TLS end to end: certificates on both sides, which are trusted, and the errors for those that are
//! not.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use futures_rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring},
};
use rustix::process::Signal;

use crate::{
    certs::{available, generate, make_server_valid_later, shared},
    harness::{Edge, Gateway, Program},
    wire::{Client, UPGRADE, Wire, host, tcp, text},
};

/// The path of a file as an argument.
pub fn file(set: &Path, name: &str) -> String {
    set.join(name).to_str().unwrap().to_owned()
}

/// A gateway with the shared certificate.
#[track_caller]
fn gateway(arguments: &[&str]) -> Gateway {
    let (key, certificate) = (file(shared(), "server.key"), file(shared(), "server.crt"));
    let tls = ["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate];
    Gateway::start(&[&tls, arguments].concat())
}

/// The URL at which `register` reaches it, by a name in the certificate.
fn url(gateway: &Gateway) -> String {
    format!("wss://localhost:{}/mcp/register", gateway.address.port())
}

/// A connection that trusts the CA of `set`, with this client certificate.
pub fn dial(address: SocketAddr, set: &Path, identity: Option<(&Path, &str)>) -> Wire {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(set.join("ca.crt")).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((set, name)) => {
            let certificate = CertificateDer::from_pem_file(set.join(format!("{name}.crt"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(set.join(format!("{name}.key"))).unwrap();
            builder.with_client_auth_cert(vec![certificate], key).unwrap()
        }
    };
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    Wire::new(StreamOwned::new(connection, tcp(address)))
}

/// Registers, waits, and makes a call.
#[track_caller]
fn works(gateway: &Gateway, name: &str, url: &str, arguments: &[&str], identity: bool) {
    let _edge = Edge::start(url, name, &[], arguments);
    gateway.program.wait_for(&format!("server '{name}' offers"));
    let address = gateway.address;
    let dial = move || dial(address, shared(), identity.then(|| (shared(), "edge")));
    let mut client = Client::open_by(address, "/sse", &[], dial);
    client.initialize();
    assert_eq!(client.call_text(&format!("{name}_echo"), r#"{"text":"through"}"#), "through");
    let big = client.call_text(&format!("{name}_big"), r#"{"bytes":3000000}"#);
    assert_eq!(big.len(), 3_000_000);
}

/// With `--require-gateway`, `register` exits with one line.
#[track_caller]
fn gives_up(url: &str, arguments: &[&str], words: &[&str]) {
    let mut edge = Edge::start(url, "s", &[], &[arguments, &["--require-gateway"]].concat());
    let end = edge.program.ended();
    assert_eq!((end.code, end.complaint().len()), (Some(1), 1), "{arguments:?}: {:?}", end.stderr);
    for word in words {
        assert!(end.complaint()[0].contains(word), "{arguments:?}: {word} is not in {:?}", end.complaint());
    }
    assert!(edge.program.offspring().is_empty());
}

#[test]
fn the_demo_over_tls() {
    if !available() {
        return;
    }
    let [key, certificate, ca] = ["server.key", "server.crt", "ca.crt"].map(|name| file(shared(), name));
    let given = ["--ssl-keyfile", &key, "--ssl-certfile", &certificate, "--ssl-ca-cert", &ca];
    let mut program = Program::start(&[&["demo", "--once"][..], &given].concat());
    let end = program.ended();
    assert_eq!(end.code, Some(0), "{:?}", end.stderr);
    for line in
        ["gateway   https://127.0.0.1:", "behind wss://", "device_system through the tunnel", "host: "]
    {
        program.wait_for_output(line);
    }
    assert!(program.offspring().is_empty());
}

#[test]
fn all_transports_work_over_tls() {
    if !available() {
        return;
    }
    let gateway = gateway(&[]);
    works(&gateway, "s", &url(&gateway), &["--ssl-ca-cert", &file(shared(), "ca.crt")], false);
    for (target, extra, status) in
        [("/health", &[][..], 200), ("/sse", &[], 200), ("/mcp/register", UPGRADE, 101)]
    {
        let mut wire = dial(gateway.address, shared(), None);
        let host = host(gateway.address);
        wire.send(text("GET", target, &[&[host.as_str()], extra].concat(), ""));
        assert_eq!(wire.head().unwrap().status, status, "{target}");
        let mut plain = Wire::connect(gateway.address);
        plain.send(text("GET", target, &[&[host.as_str()], extra].concat(), ""));
        assert!(plain.head().is_err(), "nothing is served without TLS");
    }
    let log = gateway.program.log();
    assert!(log.contains("https://") && log.contains("wss://") && !log.contains("http://"), "{log}");
}

#[test]
fn silent_connections_delay_nobody() {
    if !available() {
        return;
    }
    let gateway = gateway(&[]);
    let _silent: Vec<_> = (0..10).map(|_| tcp(gateway.address)).collect();
    let mut wire = dial(gateway.address, shared(), None);
    wire.send(text("GET", "/health", &[&host(gateway.address)], ""));
    assert_eq!(wire.answer().status, 200);
    assert!(!gateway.program.log().contains("handshake"), "none of them has timed out yet");
}

#[test]
fn clients_need_a_certificate_when_an_authority_is_given() {
    if !available() {
        return;
    }
    let strangers = generate(&["--client", "edge", "--key-size", "2048"]);
    for flag in ["--ssl-ca-cert", "--ssl-ca-certs"] {
        let gateway = gateway(&[flag, &file(shared(), "ca.crt")]);
        let request = text("GET", "/health", &["Host: any.example"], "");
        for (identity, served) in
            [(None, false), (Some((&*strangers, "edge")), false), (Some((shared(), "edge")), true)]
        {
            let mut wire = dial(gateway.address, shared(), identity);
            wire.send(&request);
            let answer = wire.head();
            assert_eq!(answer.is_ok_and(|answer| answer.status == 200), served, "{identity:?}");
        }
        let trust = ["--ssl-ca-cert", &file(shared(), "ca.crt")];
        gives_up(&url(&gateway), &trust, &["--ssl-certfile", "--ssl-keyfile"]);
        let of = |set: &Path| [file(set, "edge.crt"), file(set, "edge.key")];
        let [certificate, key] = of(&strangers);
        let wrong = [&trust[..], &["--ssl-certfile", &certificate, "--ssl-keyfile", &key]].concat();
        gives_up(&url(&gateway), &wrong, &["rejected the client certificate", "--ssl-certfile"]);
        let [certificate, key] = of(shared());
        let right = [&trust[..], &["--ssl-certfile", &certificate, "--ssl-keyfile", &key]].concat();
        works(&gateway, "s", &url(&gateway), &right, true);
    }
}

#[test]
fn register_trusts_the_given_ca() {
    if !available() {
        return;
    }
    let other = generate(&["--key-size", "2048"]);
    let gateway = gateway(&[]);
    let url = url(&gateway);
    gives_up(&url, &[], &["is not trusted", "--ssl-ca-cert"]);
    gives_up(&url, &["--ssl-ca-cert", &file(&other, "ca.crt")], &["is not trusted", "--ssl-ca-cert"]);
    works(&gateway, "authority", &url, &["--ssl-ca-certs", &file(shared(), "ca.crt")], false);
    works(&gateway, "anybody", &url, &["--no-ssl-verify"], false);
    // The system's CA certificates, in another directory.
    let roots = file(shared(), "ca.crt");
    let _edge = Edge::start_in(&url, "system", &[], &[], &[("SSL_CERT_FILE", &roots)]);
    gateway.program.wait_for("server 'system' offers");
}

/// On a machine whose clock is not set yet, no certificate is valid yet.
#[test]
fn an_edge_retries_while_the_certificate_is_not_yet_valid() {
    if !available() {
        return;
    }
    let set = generate(&["--key-size", "2048"]);
    let [key, certificate, ca] = ["server.key", "server.crt", "ca.crt"].map(|name| file(&set, name));
    let valid = fs::read(&certificate).unwrap();
    make_server_valid_later(&set);
    let tls = ["--ssl-enabled", "--ssl-keyfile", &key, "--ssl-certfile", &certificate];
    let gateway = Gateway::start(&tls);
    let words = "is not valid yet: the clock of this machine is probably behind";
    gives_up(&url(&gateway), &["--ssl-ca-cert", &ca], &[words]);

    let edge = Edge::start(&url(&gateway), "s", &[], &["--ssl-ca-cert", &ca]);
    let line = edge.program.wait_for_nth(words, 2);
    assert!(line.contains("[ERROR]"), "{line}");
    fs::write(&certificate, valid).unwrap();
    gateway.program.signal(Signal::HUP);
    edge.program.wait_for("registered: ");
}

#[test]
fn no_ssl_verify_is_warned_of() {
    if !available() {
        return;
    }
    let gateway = gateway(&[]);
    let edge = Edge::start(&url(&gateway), "s", &[], &["--no-ssl-verify"]);
    let line = edge.program.wait_for("--no-ssl-verify");
    assert!(line.contains("[WARN]"), "{line}");
}

#[test]
fn a_certificate_for_other_names_is_refused() {
    if !available() {
        return;
    }
    let gateway = gateway(&["--host", "127.0.0.2"]);
    let url = format!("wss://{}/mcp/register", gateway.address);
    gives_up(&url, &["--ssl-ca-cert", &file(shared(), "ca.crt")], &["for other names", "localhost"]);
    let _edge = Edge::start(&url, "s", &[], &["--no-ssl-verify"]);
    gateway.program.wait_for("server 's' offers");
}

#[test]
fn certificates_cover_ip_addresses() {
    if !available() {
        return;
    }
    let gateway = gateway(&["--host", "::"]);
    let ca = file(shared(), "ca.crt");
    for (name, host) in [("four", "127.0.0.1"), ("six", "[::1]"), ("name", "localhost")] {
        if name == "six" && std::net::TcpListener::bind("[::1]:0").is_err() {
            continue;
        }
        let url = format!("wss://{host}:{}/", gateway.address.port());
        let _edge = Edge::start(&url, name, &[], &["--ssl-ca-cert", &ca]);
        gateway.program.wait_for(&format!("server '{name}' offers"));
    }
}

#[test]
fn a_wrong_scheme_is_reported() {
    if !available() {
        return;
    }
    let secure = gateway(&[]);
    gives_up(&secure.url(), &["--require-gateway"], &["wss://"]);
    let plain = Gateway::start(&[]);
    let trust = file(shared(), "ca.crt");
    gives_up(&url(&plain), &["--require-gateway", "--ssl-ca-cert", &trust], &["ws://"]);
}
