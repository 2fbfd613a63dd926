//! Listeners, streams and TLS over the loopback, with certificates from `scripts/generate-certs.sh`.

use std::{
    fs,
    io::{self, IoSlice},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use mcpport::{
    config::{ClientTls, ServerTls},
    error::FatalError,
    limits,
    net::{
        listener::{Listener, bind},
        stream::Stream,
        tls::{Acceptor, Connector},
    },
    runtime::signals::StopSignals,
};
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

use crate::{
    alone,
    certs::{available, generate, openssl, shared},
    directory, run,
};

/// A connected pair over one listener.
async fn pair(listener: &mut Listener) -> (Stream, Stream) {
    let mut address = listener.local();
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() });
    }
    let (client, server) = future::zip(Stream::connect(address), listener.accept()).await;
    (client.unwrap(), server)
}

/// Whether this machine has an IPv6 loopback.
fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("skipped: no IPv6 here");
    }
    has
}

fn text(result: Result<Vec<Listener>, FatalError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn loopback_is_the_default_in_both_families() {
    run(async {
        for host in [None, Some("localhost")] {
            let mut listeners = bind(host, 0, false).unwrap();
            assert_eq!(listeners.len(), if has_ipv6() { 2 } else { 1 });
            let port = listeners[0].local().port();
            for listener in &mut listeners {
                assert!(listener.local().ip().is_loopback());
                assert_eq!(listener.local().port(), port, "one port for both");
                let (client, server) = pair(listener).await;
                assert_eq!((client.peer(), client.local()), (server.local(), server.peer()));
                assert!(!server.is_tls() && !server.client_certified());
            }
        }
    });
}

#[test]
fn many_pairs_of_system_chosen_ports() {
    let all: Vec<_> = (0..200).map(|_| bind(None, 0, false).unwrap()).collect();
    assert!(all.iter().all(|pair| pair.iter().all(|one| one.local().port() == pair[0].local().port())));
}

#[test]
fn connect_uses_the_first_address_that_answers() {
    run(async {
        // `localhost` has both addresses on most machines, and one of them refuses.
        let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
        let port = listener.local().port();
        for host in ["localhost", "127.0.0.1"] {
            let (client, server) = future::zip(Stream::dial(host, port), listener.accept()).await;
            assert_eq!(client.unwrap().local(), server.peer());
        }
        drop(listener);
        let error = Stream::dial("localhost", port).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn wildcards() {
    if !has_ipv6() {
        return;
    }
    run(async {
        let mut dual = bind(Some("::"), 0, true).unwrap();
        assert_eq!(dual.len(), 1);
        let port = dual[0].local().port();
        for host in ["127.0.0.1", "[::1]"] {
            let address: SocketAddr = format!("{host}:{port}").parse().unwrap();
            let (client, server) = future::zip(Stream::connect(address), dual[0].accept()).await;
            assert_eq!(server.local(), address, "IPv4 is shown as IPv4");
            assert_eq!(server.peer(), client.unwrap().local());
        }
        let six = bind(Some("::"), 0, false).unwrap();
        let port = six[0].local().port();
        assert!(Stream::connect(([127, 0, 0, 1], port).into()).await.is_err(), "IPv6 alone");
        let mut four = bind(Some("0.0.0.0"), 0, true).unwrap();
        pair(&mut four[0]).await;
    });
}

#[test]
fn bind_errors_name_the_address() {
    let taken = bind(Some("127.0.0.1"), 0, false).unwrap();
    let port = taken[0].local().port();
    for host in [Some("127.0.0.1"), None, Some("0.0.0.0")] {
        let line = text(bind(host, port, false));
        assert!(
            line.contains("in use") && line.contains("--port") && line.contains(&port.to_string()),
            "{line}"
        );
    }
    let line = text(bind(Some("192.0.2.1"), 0, false));
    assert!(line.contains("192.0.2.1") && line.contains("--host"), "{line}");
    let fault = bind(Some("no\0name"), 0, false).unwrap_err();
    assert!(fault.to_string().contains("--host no\\u{0}name"), "{fault}");
    assert_eq!(fault.exit_code(), 2);
}

#[test]
fn a_port_in_use_in_one_family_is_refused() {
    if !has_ipv6() {
        return;
    }
    let six = bind(Some("::1"), 0, false).unwrap();
    let line = text(bind(None, six[0].local().port(), false));
    assert!(line.contains("[::1]") && line.contains("in use"), "{line}");
}

#[test]
fn a_full_descriptor_table_is_survived() {
    alone("net::no_descriptors", &[]);
}

static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() <= log::Level::Warn {
            WARNINGS.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
#[ignore = "uses up descriptors: run by a_full_descriptor_table_is_survived"]
fn no_descriptors() {
    log::set_logger(&Collect).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    run(async {
        let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
        let (first, _) = pair(&mut listener).await;
        let waiting = Stream::connect(listener.local()).await.unwrap();
        let old = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..old }).unwrap();
        let before = cpu_time();
        let mut hoard = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            hoard.push(file);
        }
        let start = Instant::now();
        let accepted = async {
            listener.accept().await;
            start.elapsed()
        };
        let free = async {
            // Long enough for the delays to have grown; the time spent meanwhile is measured.
            smol::Timer::after(Duration::from_millis(1500)).await;
            hoard.clear();
            future::pending().await
        };
        let took = future::or(accepted, free).await;
        assert!(took >= Duration::from_millis(1500) && took < Duration::from_secs(10), "{took:?}");
        assert!(cpu_time() - before < Duration::from_millis(300), "the accept loop spins");
        let warnings = WARNINGS.lock().unwrap();
        assert!(matches!(warnings.len(), 1..=3), "{warnings:?}");
        assert!(warnings[0].contains("cannot accept"), "{warnings:?}");
        drop((first, waiting));
    });
}

/// Returns the processor time of this process.
fn cpu_time() -> Duration {
    let usage = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> =
        usage.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // The state is not a number; user and system time are fields 14 and 15, in hundredths of a
    // second.
    Duration::from_millis((fields[10] + fields[11]) * 10)
}

#[test]
fn requests_to_stop() {
    alone("net::signals", &[]);
}

#[test]
#[ignore = "signals the whole process: run by requests_to_stop"]
fn signals() {
    run(async {
        // Under nohup SIGHUP stays ignored.
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let nohup = u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1;
        let mut stop = StopSignals::new().unwrap();
        for (signal, name) in [
            (Signal::TERM, "SIGTERM"),
            (Signal::INT, "SIGINT"),
            (Signal::HUP, "SIGHUP"),
            (Signal::TERM, "SIGTERM"),
        ] {
            if signal == Signal::HUP && nohup {
                continue;
            }
            kill_process(getpid(), signal).unwrap();
            assert_eq!(stop.requested().await, name);
        }
        // SIGPIPE is an error, and does not end the process.
        let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
        let (mut client, server) = pair(&mut listener).await;
        drop(server);
        while client.write_all(&[0; 1000]).await.is_ok() {}
    });
}

/// Files of the server side.
fn server_files(set: &Path, client_ca: bool) -> ServerTls {
    ServerTls {
        key: set.join("server.key"),
        certificate: set.join("server.crt"),
        client_ca: client_ca.then(|| set.join("ca.crt")),
    }
}

fn trusting(ca: PathBuf) -> ClientTls {
    ClientTls { ca: Some(ca), ..ClientTls::default() }
}

/// Does the handshake, and lets the client read one byte: with TLS 1.3 only that shows whether it
/// was accepted.
async fn shake(
    server: &ServerTls,
    client: &ClientTls,
    host: &str,
) -> (io::Result<Stream>, Result<Stream, String>) {
    let acceptor = Acceptor::new(server).unwrap();
    let connector = Connector::new(client).unwrap();
    let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
    let (ours, theirs) = pair(&mut listener).await;
    let serve = async {
        let mut stream = acceptor.accept(theirs).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(stream)
    };
    let connect = async {
        let mut stream = connector.connect(ours, host).await?;
        stream.write_all(b"?").await?;
        stream.flush().await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        Ok(stream)
    };
    let (server, client) = future::zip(serve, connect).await;
    (server, client.map_err(|error| connector.explain(&error, "gw:8765")))
}

#[test]
fn tls_carries_bytes_and_says_goodbye() {
    if !available() {
        return;
    }
    run(async {
        for host in ["localhost", "127.0.0.1", "::1"] {
            let (server, client) =
                shake(&server_files(shared(), false), &trusting(shared().join("ca.crt")), host).await;
            let (mut server, mut client) = (server.unwrap(), client.unwrap());
            assert!(server.is_tls() && client.is_tls() && !server.client_certified());
            let mut byte = [0];
            server.read_exact(&mut byte).await.unwrap();
            let payload: Vec<u8> = (0..1 << 20).map(|number: u32| number.to_le_bytes()[1]).collect();
            let send = async {
                let mut sent = client
                    .write_vectored(&[IoSlice::new(&payload[..5]), IoSlice::new(&payload[5..9])])
                    .await
                    .unwrap();
                while sent < payload.len() {
                    sent += client.write(&payload[sent..]).await.unwrap();
                }
                client.finish(limits::CLOSE).await.unwrap();
            };
            let mut received = Vec::new();
            // An end without close alert would be an error here.
            let receive = async { server.read_to_end(&mut received).await.unwrap() };
            future::zip(send, receive).await;
            assert!(received == payload);
            server.finish(limits::CLOSE).await.unwrap();
            assert_eq!(client.read(&mut byte).await.unwrap(), 0);
        }
    });
}

#[test]
fn closing_has_a_limit() {
    if !available() {
        return;
    }
    run(async {
        let (server, client) =
            shake(&server_files(shared(), false), &trusting(shared().join("ca.crt")), "localhost").await;
        let (mut server, _client) = (server.unwrap(), client.unwrap());
        // The client reads nothing: fill the pipe first, so that the close alert cannot be sent.
        let fill = async { while server.write_all(&[0; 1 << 16]).await.is_ok() {} };
        let stuck = mcpport::net::timeout::within(Duration::from_millis(300), fill).await;
        assert!(stuck.is_err());
        let error = server.finish(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    });
}

/// Asserts that the handshake fails, and that the client's message contains these words.
#[track_caller]
fn refused(server: &ServerTls, client: &ClientTls, host: &str, words: &[&str]) {
    let (_, client) = run(shake(server, client, host));
    let sentence = client.expect_err("this handshake must fail");
    assert!(sentence.contains("gw:8765"), "{sentence}");
    for word in words {
        assert!(sentence.contains(word), "{word:?} in: {sentence}");
    }
}

#[test]
fn certificates_that_are_not_trusted() {
    if !available() {
        return;
    }
    let other = generate(&["--domain", "gw.example"]);
    let server = server_files(shared(), false);
    refused(&server, &ClientTls::default(), "localhost", &["not trusted", "pass", "--ssl-ca-cert"]);
    refused(&server, &trusting(other.join("ca.crt")), "localhost", &["not trusted", "--ssl-ca-cert"]);
    refused(
        &server,
        &trusting(shared().join("ca.crt")),
        "gw.example",
        &["other names", "localhost", "--gateway-url"],
    );
    refused(&server, &trusting(shared().join("ca.crt")), "192.0.2.1", &["other names"]);
    // And the remedy.
    let any = ClientTls { no_verify: true, ..ClientTls::default() };
    for (server, host) in [(server, "gw.example"), (server_files(&other, false), "192.0.2.1")] {
        let (server, client) = run(shake(&server, &any, host));
        assert!(server.is_ok() && client.is_ok());
    }
    assert!(Connector::new(&any).unwrap().takes_anything());
    assert!(!Connector::new(&ClientTls::default()).unwrap().takes_anything());
}

#[test]
fn client_certificates() {
    if !available() {
        return;
    }
    let other = generate(&["--client", "edge"]);
    let server = server_files(shared(), true);
    let identity = |set: &Path| Some((set.join("edge.crt"), set.join("edge.key")));
    let with = |identity| ClientTls { identity, ..trusting(shared().join("ca.crt")) };

    let (accepted, client) = run(shake(&server, &with(identity(shared())), "localhost"));
    assert!(client.is_ok());
    assert!(accepted.unwrap().client_certified());
    refused(&server, &with(None), "localhost", &["client certificate", "--ssl-certfile", "--ssl-keyfile"]);
    refused(&server, &with(identity(&other)), "localhost", &["rejected the client certificate"]);
    // A server's certificate is not valid for a client.
    let server_as_client = Some((shared().join("server.crt"), shared().join("server.key")));
    refused(&server, &with(server_as_client), "localhost", &["rejected the client certificate"]);
    // A client without a certificate is not told about it.
    let (accepted, client) =
        run(shake(&server_files(shared(), false), &with(identity(shared())), "localhost"));
    assert!(client.is_ok() && !accepted.unwrap().client_certified());
}

#[test]
fn a_self_signed_certificate_is_trusted_when_given() {
    if !available() {
        return;
    }
    // The usual way to create one, which marks the certificate as a CA; here with the older form of
    // elliptic curve keys.
    let set = directory("self-signed");
    openssl(&set, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "server.key"]);
    openssl(
        &set,
        &[
            "req",
            "-x509",
            "-new",
            "-key",
            "server.key",
            "-out",
            "server.crt",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        ],
    );
    assert!(fs::read_to_string(set.join("server.key")).unwrap().contains("BEGIN EC PRIVATE KEY"));
    let server = server_files(&set, false);
    let (_, client) = run(shake(&server, &trusting(set.join("server.crt")), "localhost"));
    assert!(client.is_ok(), "{client:?}");
    refused(&server, &trusting(set.join("server.crt")), "gw.example", &["name"]);
    refused(&server, &trusting(shared().join("ca.crt")), "localhost", &["--ssl-ca-cert"]);
}

#[test]
fn peers_without_tls() {
    run(async {
        let connector = Connector::new(&ClientTls::default()).unwrap();
        for answer in [&b""[..], &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]] {
            let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
            let (client, mut server) = pair(&mut listener).await;
            let serve = async {
                let mut hello = [0; 16];
                server.read_exact(&mut hello).await.unwrap();
                server.write_all(answer).await.unwrap();
                server.finish(limits::CLOSE).await.unwrap();
            };
            let (_, connected) = future::zip(serve, connector.connect(client, "localhost")).await;
            let sentence = connector.explain(&connected.unwrap_err(), "gw:8765");
            assert!(sentence.contains("gw:8765") && sentence.contains("ws://"), "{sentence}");
        }
    });
}

#[test]
fn another_implementation_shakes_hands() {
    if !available() {
        return;
    }
    for version in ["-tls1_2", "-tls1_3"] {
        run(async {
            let acceptor = Acceptor::new(&server_files(shared(), true)).unwrap();
            let mut listener = bind(Some("127.0.0.1"), 0, false).unwrap().remove(0);
            let address = listener.local().to_string();
            let client = smol::process::Command::new("openssl")
                .args([
                    "s_client",
                    version,
                    "-verify_return_error",
                    "-verify_hostname",
                    "localhost",
                    "-quiet",
                ])
                .args(["-CAfile", "ca.crt", "-cert", "edge.crt", "-key", "edge.key", "-connect", &address])
                .current_dir(shared())
                .kill_on_drop(true)
                .output();
            let serve = async {
                let stream = listener.accept().await;
                let mut stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.client_certified());
                stream.write_all(b"hello").await.unwrap();
                stream.finish(limits::CLOSE).await.unwrap();
            };
            let (output, ()) = future::zip(client, serve).await;
            let output = output.unwrap();
            assert_eq!(output.stdout, b"hello", "{version}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }
}

#[test]
fn tasks_can_move_between_threads() {
    fn is_send<T: Send>(_: impl FnOnce() -> T) {}
    let (mut listener, mut stream): (Option<Listener>, Option<Stream>) = (None, None);
    let (acceptor, connector): (Option<Acceptor>, Option<Connector>) = (None, None);
    is_send(|| listener.as_mut().map(Listener::accept));
    is_send(|| Stream::dial("localhost", 0));
    is_send(|| stream.as_mut().map(|stream| stream.finish(limits::CLOSE)));
    is_send(|| acceptor.as_ref().zip(stream.take()).map(|(acceptor, stream)| acceptor.accept(stream)));
    is_send(|| {
        connector.as_ref().zip(None).map(|(connector, stream)| connector.connect(stream, "localhost"))
    });
}

#[test]
fn mismatched_key_and_certificate_are_reported() {
    if !available() {
        return;
    }
    let (good, other) = (server_files(shared(), true), generate(&[]));
    assert!(Acceptor::new(&good).is_ok());
    let empty = directory("files").join("empty.pem");
    fs::write(&empty, "nothing\n").unwrap();
    let torn = directory("files").join("torn.pem");
    fs::write(&torn, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    let locked = directory("files").join("locked.key");
    openssl(
        shared(),
        &["pkey", "-in", "server.key", "-aes256", "-passout", "pass:x", "-out", locked.to_str().unwrap()],
    );

    type Change = Box<dyn Fn(&mut ServerTls)>;
    let missing = PathBuf::from("/no/such/file.pem");
    let cases: Vec<(Change, &[&str])> = vec![
        (Box::new(move |tls| tls.key = missing.clone()), &["--ssl-keyfile /no/such/file.pem", "cannot read"]),
        (Box::new(|tls| tls.certificate = "/".into()), &["--ssl-certfile /", "cannot read"]),
        (Box::new(|tls| tls.client_ca = Some("/".into())), &["--ssl-ca-cert /", "cannot read"]),
        (Box::new(move |tls| tls.key = other.join("server.key")), &["--ssl-keyfile", "not the key of"]),
        (
            Box::new(|tls| std::mem::swap(&mut tls.key, &mut tls.certificate)),
            &["--ssl-certfile", "server.key", "swapped"],
        ),
        (Box::new(|tls| tls.key = tls.certificate.clone()), &["--ssl-keyfile", "server.crt", "swapped"]),
        (Box::new(move |tls| tls.client_ca = Some(empty.clone())), &["--ssl-ca-cert", "no certificate"]),
        (Box::new(move |tls| tls.key = torn.clone()), &["--ssl-keyfile", "malformed"]),
        (Box::new(move |tls| tls.key = locked.clone()), &["--ssl-keyfile", "passphrase"]),
    ];
    for (change, words) in cases {
        let mut tls = good.clone();
        change(&mut tls);
        let fault = Acceptor::new(&tls).err().expect("these files must be refused");
        assert_eq!(fault.exit_code(), 2);
        for word in words {
            assert!(fault.to_string().contains(word), "{word:?} in: {fault}");
        }
    }
    let fault = Connector::new(&trusting(good.key)).err().expect("a key is not a CA certificate");
    assert!(fault.to_string().contains("--ssl-ca-cert"), "{fault}");
}
