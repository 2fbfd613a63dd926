//! `scripts/generate-certs.sh`: its files, their modes, and whether strict verifiers accept the
//! certificates. Without `bash` or `openssl` these tests, and those of TLS, are skipped with a
//! message.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use crate::directory;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/generate-certs.sh");

/// Whether certificates can be created here.
pub fn available() -> bool {
    let there = |program: &str, flag: &str| Command::new(program).arg(flag).output().is_ok();
    let all = there("bash", "--version") && there("openssl", "version");
    if !all {
        eprintln!("skipped: bash and openssl are needed");
    }
    all
}

/// Runs the script.
fn script(output: &Path, options: &[&str]) -> Output {
    Command::new("bash").arg(SCRIPT).arg("--output").arg(output).args(options).output().unwrap()
}

/// Creates a new set of files.
#[track_caller]
pub fn generate(options: &[&str]) -> PathBuf {
    let output = directory("certs");
    let made = script(&output, options);
    assert!(made.status.success(), "{}", text(&made));
    output
}

/// The default set with one client certificate, created once.
pub fn shared() -> &'static Path {
    static SHARED: OnceLock<PathBuf> = OnceLock::new();
    SHARED.get_or_init(|| generate(&["--client", "edge"]))
}

/// Runs openssl in a directory.
#[track_caller]
pub fn openssl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "openssl {arguments:?}: {}", text(&output));
    text(&output)
}

/// Replaces the server's certificate by one that is not valid before 2040, from the same CA.
pub fn make_server_valid_later(set: &Path) {
    let config = "[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = .\ndatabase = index\nserial = serial\n\
        default_md = sha256\npolicy = any\nunique_subject = no\n[any]\ncommonName = optional\n";
    let extensions =
        "basicConstraints = CA:FALSE\nextendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n";
    for (name, text) in [("ca.cnf", config), ("server.ext", extensions), ("index", ""), ("serial", "77\n")] {
        fs::write(set.join(name), text).unwrap();
    }
    let request = ["req", "-new", "-key", "server.key", "-subj", "/CN=localhost", "-out", "server.csr"];
    openssl(set, &request);
    let times = ["-startdate", "20400101000000Z", "-enddate", "20410101000000Z"];
    let files = ["-cert", "ca.crt", "-keyfile", "ca.key", "-in", "server.csr", "-out", "server.crt"];
    let how = ["ca", "-batch", "-notext", "-config", "ca.cnf", "-extfile", "server.ext"];
    openssl(set, &[&how[..], &files, &times].concat());
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn exactly_the_files_and_modes() {
    if !available() {
        return;
    }
    let output = generate(&[]);
    let expected = [
        "ca.crt",
        "ca.key",
        "ca.srl",
        "index.txt",
        "openssl.cnf",
        "serial",
        "server.crt",
        "server.csr",
        "server.key",
    ];
    assert_eq!(names(&output), expected);
    for name in expected {
        let mode = fs::metadata(output.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
    }
}

#[test]
fn strict_verifiers_accept_the_certificates() {
    if !available() {
        return;
    }
    let set = shared();
    for (purpose, file) in [("sslserver", "server.crt"), ("sslclient", "edge.crt")] {
        openssl(set, &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.crt", file]);
    }
    for host in [["-verify_hostname", "localhost"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]] {
        openssl(set, &["verify", "-x509_strict", host[0], host[1], "-CAfile", "ca.crt", "server.crt"]);
    }
    let authority = openssl(set, &["x509", "-in", "ca.crt", "-noout", "-text"]);
    for expected in
        ["Basic Constraints: critical", "CA:TRUE", "Key Usage: critical", "Certificate Sign, CRL Sign"]
    {
        assert!(authority.contains(expected), "{expected}: {authority}");
    }
    let server = openssl(set, &["x509", "-in", "server.crt", "-noout", "-text"]);
    for expected in [
        "CA:FALSE",
        "TLS Web Server Authentication",
        "Authority Key Identifier",
        "Subject Key Identifier",
        "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1",
    ] {
        assert!(server.contains(expected), "{expected}: {server}");
    }
}

#[test]
fn certificate_options_are_applied() {
    if !available() {
        return;
    }
    let output = generate(&[
        "--domain",
        "gw.example",
        "--domain=*.gw.example",
        "--ip",
        "192.0.2.7",
        "--ip",
        "2001:db8::7",
        "--days",
        "30",
        "--key-size",
        "3072",
        "--ca-name",
        "Test/CA + 1",
        "--country",
        "DE",
        "--state",
        "Süd",
        "--locality",
        "Town",
        "--org",
        "A \"quoted\" $ORG",
        "--ou",
        "U#1",
    ]);
    let shown = openssl(
        &output,
        &["x509", "-in", "server.crt", "-noout", "-text", "-nameopt", "utf8,sep_comma_plus"],
    );
    for expected in [
        "DNS:gw.example, DNS:*.gw.example, IP Address:192.0.2.7, IP Address:2001:DB8:0:0:0:0:0:7",
        "3072 bit",
        "CN=gw.example",
        "CN=Test/CA + 1",
        "C=DE",
        "ST=Süd",
        "L=Town",
        "O=A \"quoted\" $ORG",
        "OU=U#1",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(!shown.contains("localhost"), "{shown}");
    openssl(&output, &["x509", "-in", "server.crt", "-noout", "-checkend", "2505600"]);
    let late = Command::new("openssl")
        .args(["x509", "-in", "server.crt", "-noout", "-checkend", "2678400"])
        .current_dir(&output)
        .output()
        .unwrap();
    assert!(!late.status.success(), "--days 30 is over after 31");
}

#[test]
fn an_existing_ca_is_reused() {
    if !available() {
        return;
    }
    let output = generate(&[]);
    let read = |name: &str| fs::read(output.join(name)).unwrap();
    let before = ["ca.crt", "ca.key", "server.crt"].map(read);
    let again = script(&output, &["--domain", "other.example"]);
    assert!(again.status.success() && text(&again).contains("keeping the CA"), "{}", text(&again));
    let after = ["ca.crt", "ca.key", "server.crt"].map(read);
    assert_eq!(before[..2], after[..2]);
    assert_ne!(before[2], after[2]);
    openssl(&output, &["verify", "-x509_strict", "-CAfile", "ca.crt", "server.crt"]);

    fs::remove_file(output.join("ca.key")).unwrap();
    let half = script(&output, &[]);
    assert_eq!(half.status.code(), Some(1));
    assert!(text(&half).contains("only one of ca.key and ca.crt"), "{}", text(&half));
    assert_eq!(after[2], read("server.crt"), "a failed run changes nothing");
    assert!(names(&output).iter().all(|name| !name.starts_with('.')), "nothing is left behind");
}

#[test]
fn wrong_options_end_with_2() {
    if !available() {
        return;
    }
    let output = directory("certs");
    for (options, word) in [
        (&["--bogus"][..], "--bogus"),
        (&["--days"], "--days"),
        (&["--days", "0"], "--days"),
        (&["--key-size", "1024"], "--key-size"),
        (&["--ip", "300.1.1.1"], "--ip"),
        (&["--domain", "a,DNS:b"], "--domain"),
        (&["--domain", "a\nb"], "--domain"),
        (&["--country", "DEU"], "--country"),
        (&["--client", "../x"], "--client"),
        (&["--client", "server"], "--client"),
    ] {
        let made = script(&output, options);
        assert_eq!(made.status.code(), Some(2), "{options:?}");
        assert!(text(&made).contains(word), "{}", text(&made));
    }
    assert!(names(&output).is_empty(), "nothing was created");
    let help = script(&output, &["--help"]);
    assert!(help.status.success() && text(&help).contains("--key-size"));
}

#[test]
fn a_missing_openssl_is_reported() {
    if !available() {
        return;
    }
    let bash = Command::new("bash").args(["-c", "command -v bash"]).output().unwrap();
    let bash = String::from_utf8(bash.stdout).unwrap();
    let empty = directory("empty");
    let made =
        Command::new(bash.trim()).arg(SCRIPT).env("PATH", &empty).current_dir(&empty).output().unwrap();
    assert_eq!(made.status.code(), Some(1));
    assert!(text(&made).contains("openssl is not installed"), "{}", text(&made));
}
