//! TLS on both sides: settings from files, the handshake, and its errors in plain words.
//!
//! The cryptography is `ring`, the versions are 1.2 and 1.3, no application protocol is negotiated: all of it is HTTP/1.1.
//! Files are read at the start, so that a wrong one is told before anything listens; the gateway's can be read again
//! while it runs ([`Acceptor::replace`]). A handshake waits for the
//! peer for ever: whoever starts one sets the deadline (`timeout::within`).

mod explain;
mod files;
mod verify;

use std::{
    io,
    net::Shutdown,
    sync::{Arc, Mutex, PoisonError},
};

use futures_lite::AsyncReadExt;
use futures_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    pki_types::ServerName,
    rustls::{
        self, ClientConfig, ConfigBuilder, ConfigSide, RootCertStore, ServerConfig, WantsVerifier,
        WantsVersions, crypto::ring, server::WebPkiClientVerifier,
    },
};

use super::{
    stream::{Stream, TcpSocket},
    timeout,
};
use crate::{
    config::{ClientTls, ServerTls},
    error::FatalError,
    limits,
};

/// Flag of a private key's file.
const KEY: &str = "--ssl-keyfile";
/// Flag of a certificate's file.
const CERTIFICATE: &str = "--ssl-certfile";
/// Flag of the authorities' file.
const AUTHORITY: &str = "--ssl-ca-cert";

/// The server side: turns an accepted connection into a TLS one. Clones are one and the same.
#[derive(Clone)]
pub struct Acceptor(Arc<Mutex<TlsAcceptor>>);

impl Acceptor {
    /// Reads the files and checks that they belong together.
    ///
    /// # Errors
    /// One line that names the flag and the file.
    pub fn new(settings: &ServerTls) -> Result<Self, FatalError> {
        let chain = files::certificates(CERTIFICATE, &settings.certificate)?;
        let key = files::private_key(KEY, &settings.key)?;
        let provider = Arc::new(ring::default_provider());
        let builder = versions(ServerConfig::builder_with_provider(provider.clone()))?;
        let builder = match &settings.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(files::roots(AUTHORITY, path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| files::unusable(AUTHORITY, path, &error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|error| files::mismatch(&error, &settings.certificate, &settings.key))?;
        Ok(Self(Arc::new(Mutex::new(TlsAcceptor::from(Arc::new(config))))))
    }

    /// Takes over the settings of another: handshakes from now on use them. Connections that are up stay, and none
    /// of their sessions can be resumed under the new settings without a handshake of its own.
    pub fn replace(&self, other: Self) {
        let new = other.current();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    fn current(&self) -> TlsAcceptor {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shakes hands with a client that has just connected.
    ///
    /// # Errors
    /// `InvalidData` around a TLS error when the client offers what we refuse, or the system's. The client has been told.
    pub async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let current = self.current();
        stream
            .secure(async |socket| match current.accept(socket).into_fallible().await {
                Ok(session) => Ok(TlsStream::Server(session)),
                Err((error, socket)) => {
                    linger(socket).await;
                    Err(error)
                }
            })
            .await
    }
}

/// Lets a refused client read the alert: a socket that is closed over unread bytes is reset, and the alert is lost.
async fn linger(mut socket: TcpSocket) {
    if socket.get_ref().shutdown(Shutdown::Write).is_err() {
        return;
    }
    let unread = async {
        let mut scratch = vec![0; limits::LINGER];
        let mut left = limits::LINGER;
        while let Ok(some @ 1..) = socket.read(&mut scratch).await {
            left = left.saturating_sub(some);
            if left == 0 {
                return;
            }
        }
    };
    // A client that goes on after that has lost its claim to an explanation.
    let _ = timeout::within(limits::CLOSE, unread).await;
}

/// The client side: turns a connection to a gateway into a TLS one.
#[derive(Clone)]
pub struct Connector {
    inner: TlsConnector,
    no_verify: bool,
    own_authority: bool,
    identity: bool,
}

impl Connector {
    /// Reads the files and the system's trust roots (the built-in ones where the system has none).
    ///
    /// # Errors
    /// One line that names the flag and the file.
    pub fn new(settings: &ClientTls) -> Result<Self, FatalError> {
        let provider = Arc::new(ring::default_provider());
        let builder = versions(ClientConfig::builder_with_provider(provider.clone()))?;
        let builder = if settings.no_verify {
            builder.dangerous().with_custom_certificate_verifier(verify::anything(&provider))
        } else if let Some(path) = &settings.ca {
            let verifier = verify::given(files::certificates(AUTHORITY, path)?, provider)
                .map_err(|error| files::unusable(AUTHORITY, path, &error))?;
            builder.dangerous().with_custom_certificate_verifier(verifier)
        } else {
            builder.with_root_certificates(system_roots())
        };
        let config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    files::certificates(CERTIFICATE, certificate)?,
                    files::private_key(KEY, key)?,
                )
                .map_err(|error| files::mismatch(&error, certificate, key))?,
        };
        Ok(Self {
            inner: TlsConnector::from(Arc::new(config)),
            no_verify: settings.no_verify,
            own_authority: settings.ca.is_some(),
            identity: settings.identity.is_some(),
        })
    }

    /// Whether any certificate is taken: worth a loud warning at each connect.
    pub fn takes_anything(&self) -> bool {
        self.no_verify
    }

    /// Shakes hands with the gateway `host` (a name or an address, without brackets) over a fresh connection.
    ///
    /// # Errors
    /// For [`Connector::explain`].
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let name = ServerName::try_from(host)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a host name or address"))?
            .to_owned();
        stream.secure(async |socket| self.inner.connect(name, socket).await.map(TlsStream::Client)).await
    }

    /// One plain sentence about an error of [`Connector::connect`], or of the first read or write after it: with
    /// TLS 1.3 a gateway refuses our client certificate only when we take the handshake to be done.
    ///
    /// `gateway` is how the sentence calls the peer, `host:port`.
    pub fn explain(&self, error: &io::Error, gateway: &str) -> String {
        explain::sentence(error, gateway, self.own_authority, self.identity)
    }
}

/// TLS 1.2 and 1.3.
fn versions<S: ConfigSide>(
    builder: ConfigBuilder<S, WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, FatalError> {
    builder
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| FatalError::run(format!("TLS cannot be set up: {error}")))
}

/// The roots that this machine trusts; those of the browsers, built in, where it has none (routers, small containers).
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::debug!("reading the system's trust roots: {error}");
    }
    let (usable, broken) = roots.add_parsable_certificates(found.certs);
    log::debug!("{usable} trust roots from the system, {broken} unusable");
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}
