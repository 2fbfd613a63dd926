//! Reads keys and certificates from PEM files, with errors that name the flag and the file.

use std::{fs, path::Path};

use futures_rustls::{
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{Error, PemObject},
    },
    rustls::{self, InconsistentKeys, RootCertStore},
};

use crate::error::FatalError;

/// Flag for the file of the private key.
pub const KEY: &str = "--ssl-keyfile";
/// Flag for the file of the certificate.
pub const CERTIFICATE: &str = "--ssl-certfile";

/// Returns all certificates of a file, at least one.
pub fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, FatalError> {
    let pem = read(flag, path)?;
    let found: Result<Vec<_>, Error> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|_| unusable(flag, path, "malformed PEM"))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let key_instead = PrivateKeyDer::from_pem_slice(&pem).is_ok() || is_encrypted(&pem);
    Err(unusable(
        flag,
        path,
        if key_instead {
            "contains a private key and no certificate; are --ssl-keyfile and --ssl-certfile swapped?"
        } else {
            "no certificate in PEM form in this file"
        },
    ))
}

/// Returns the first private key of a file, in PKCS#8, PKCS#1 or SEC1 form.
pub fn private_key(flag: &str, path: &Path) -> Result<PrivateKeyDer<'static>, FatalError> {
    let pem = read(flag, path)?;
    let error = match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    let certificate_instead = CertificateDer::from_pem_slice(&pem).is_ok();
    Err(unusable(
        flag,
        path,
        match error {
            _ if is_encrypted(&pem) => {
                "the key is protected by a passphrase, which is not supported; remove it (openssl pkey -in OLD -out NEW)"
            }
            Error::NoItemsFound if certificate_instead => {
                "contains a certificate and no private key; are --ssl-keyfile and --ssl-certfile swapped?"
            }
            Error::NoItemsFound => "no private key in PEM form in this file",
            // The parser's error may quote the file, which is secret.
            _ => "malformed PEM",
        },
    ))
}

/// Returns all certificates of a file as trusted authorities.
pub fn roots(flag: &str, path: &Path) -> Result<RootCertStore, FatalError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(flag, path)? {
        roots.add(certificate).map_err(|error| unusable(flag, path, &error.to_string()))?;
    }
    Ok(roots)
}

/// Returns the error for a file that cannot be used.
pub fn unusable(flag: &str, path: &Path, why: &str) -> FatalError {
    FatalError::usage(format!("{flag} {}: {why}", path.display()))
}

/// Explains why a certificate and a key cannot be used together.
pub fn mismatch(error: &rustls::Error, certificate: &Path, key: &Path) -> FatalError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => unusable(
            KEY,
            key,
            &format!("not the key of the first certificate in {CERTIFICATE} {}", certificate.display()),
        ),
        rustls::Error::InvalidCertificate(why) => {
            unusable(CERTIFICATE, certificate, &format!("not a valid certificate ({why})"))
        }
        _ => unusable(
            KEY,
            key,
            &format!("unsupported key ({error}); use RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519"),
        ),
    }
}

/// Reads a file.
fn read(flag: &str, path: &Path) -> Result<Vec<u8>, FatalError> {
    fs::read(path).map_err(|error| unusable(flag, path, &format!("cannot read it: {error}")))
}

/// Whether the PEM file contains an encrypted key. Both PEM notations for that have this word in a
/// line that is not base64.
fn is_encrypted(pem: &[u8]) -> bool {
    let word = b"ENCRYPTED";
    pem.split(|byte| *byte == b'\n')
        .any(|line| line.contains(&b' ') && line.windows(word.len()).any(|part| part == word))
}
