//! TLS errors explained in one sentence, for the user of the edge.

use std::io;

use futures_rustls::rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::util;

/// Explains a TLS error. `own_authority` is set if `--ssl-ca-cert` was given, `identity` if we have
/// a client certificate.
pub fn sentence(error: &io::Error, gateway: &str, own_authority: bool, identity: bool) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match inner {
        Some(Error::InvalidCertificate(why)) => certificate(why, gateway, own_authority),
        Some(Error::AlertReceived(alert)) => refused(*alert, gateway, identity),
        Some(Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        )) => {
            format!(
                "{gateway} does not speak TLS on this port; use ws:// instead of wss:// if it serves plain HTTP"
            )
        }
        Some(Error::PeerIncompatible(why)) => {
            format!(
                "no TLS version or cipher suite in common with {gateway} ({why:?}); TLS 1.2 or 1.3 is required"
            )
        }
        Some(other) => format!("TLS with {gateway} failed: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => format!(
            "{gateway} closed the connection during the TLS handshake; use ws:// instead of wss:// if it serves plain HTTP"
        ),
        None => format!("TLS with {gateway} failed: {error}"),
    }
}

/// Explains why we rejected the gateway's certificate.
fn certificate(why: &CertificateError, gateway: &str, own_authority: bool) -> String {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature if own_authority => format!(
            "the certificate of {gateway} is not trusted: not issued by a CA in the file of --ssl-ca-cert"
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate of {gateway} is not trusted: pass the certificate of its CA (ca.crt) with --ssl-ca-cert"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            format!(
                "the certificate of {gateway} is for other names ({}); use one of them in --gateway-url",
                util::escape::show(&names.join(", "))
            )
        }
        CertificateError::NotValidForName => {
            format!("the certificate of {gateway} is for another name; see --gateway-url")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the certificate of {gateway} has expired, or the clock of this machine is wrong")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!(
                "the certificate of {gateway} is not valid yet: the clock of this machine is probably behind"
            )
        }
        CertificateError::Other(_) => format!(
            "the certificate of {gateway} is not valid as a server certificate ({why}); create one with scripts/generate-certs.sh, or pass it with --ssl-ca-cert"
        ),
        _ => format!("the certificate of {gateway} is invalid: {why}"),
    }
}

/// Returns the name without its wrapping: the library writes `DnsName("gw.example")` and
/// `IpAddress(192.0.2.7)`, but users type only the inner part.
fn bare(name: &str) -> &str {
    let within = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    within.unwrap_or(name).trim_matches('"')
}

/// Explains why the gateway rejected the handshake.
fn refused(alert: AlertDescription, gateway: &str, identity: bool) -> String {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired | A::HandshakeFailure | A::BadCertificate | A::AccessDenied if !identity => {
            format!(
                "{gateway} requires a client certificate (alert {alert:?}); pass one with --ssl-certfile and --ssl-keyfile"
            )
        }
        A::UnknownCA
        | A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::CertificateRequired
        | A::DecryptError
        | A::AccessDenied => {
            format!("{gateway} rejected the client certificate (alert {alert:?}); see --ssl-certfile")
        }
        A::ProtocolVersion => format!("{gateway} supports neither TLS 1.2 nor 1.3"),
        A::UnrecognisedName => format!("{gateway} does not recognize this server name; see --gateway-url"),
        _ => format!("{gateway} ended the TLS handshake: {alert:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use futures_rustls::{
        pki_types::{ServerName, UnixTime},
        rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible},
    };

    use super::sentence;

    #[track_caller]
    fn check(error: Error, own_authority: bool, identity: bool, words: &[&str]) {
        let error = io::Error::new(io::ErrorKind::InvalidData, error);
        let said = sentence(&error, "gw:1", own_authority, identity);
        assert!(!said.contains('\n') && said.contains("gw:1"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} in: {said}");
        }
    }

    #[test]
    fn certificates() {
        let (time, earlier) =
            (UnixTime::since_unix_epoch(Duration::from_secs(9)), UnixTime::since_unix_epoch(Duration::ZERO));
        for (why, own, words) in [
            (CertificateError::UnknownIssuer, false, &["not trusted", "pass", "--ssl-ca-cert"][..]),
            (CertificateError::UnknownIssuer, true, &["not trusted", "file of --ssl-ca-cert"]),
            (CertificateError::BadSignature, false, &["--ssl-ca-cert"]),
            (CertificateError::Expired, false, &["expired", "clock"]),
            (CertificateError::ExpiredContext { time, not_after: earlier }, false, &["expired", "clock"]),
            (
                CertificateError::NotValidYetContext { time: earlier, not_before: time },
                false,
                &["not valid yet", "clock"],
            ),
            (CertificateError::NotValidForName, false, &["another name", "--gateway-url"]),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("other").unwrap(),
                    presented: vec!["DnsName(\"gw.example\")".into(), "IpAddress(192.0.2.7)".into()],
                },
                false,
                &["for other names (gw.example, 192.0.2.7);", "--gateway-url"],
            ),
            (CertificateError::Revoked, false, &["is invalid"]),
        ] {
            check(Error::InvalidCertificate(why), own, false, words);
        }
    }

    #[test]
    fn answers_of_the_gateway() {
        use AlertDescription as A;
        for (alert, identity, words) in [
            (
                A::CertificateRequired,
                false,
                &["requires a client certificate", "--ssl-certfile", "--ssl-keyfile"][..],
            ),
            (A::HandshakeFailure, false, &["requires a client certificate"]),
            (A::CertificateRequired, true, &["rejected the client certificate"]),
            (A::UnknownCA, true, &["rejected the client certificate"]),
            (A::ProtocolVersion, false, &["neither TLS 1.2 nor 1.3"]),
            (A::UnrecognisedName, false, &["--gateway-url"]),
            (A::InternalError, false, &["InternalError"]),
        ] {
            check(Error::AlertReceived(alert), false, identity, words);
        }
    }

    #[test]
    fn other_ends() {
        check(
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
            false,
            false,
            &["does not speak TLS", "ws://"],
        );
        check(
            Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
            false,
            false,
            &["in common"],
        );
        let eof = sentence(&io::ErrorKind::UnexpectedEof.into(), "gw:1", false, false);
        assert!(eof.contains("ws://"), "{eof}");
        let reset = sentence(&io::ErrorKind::ConnectionReset.into(), "gw:1", false, false);
        assert!(reset.contains("gw:1") && reset.contains("reset"), "{reset}");
    }
}
