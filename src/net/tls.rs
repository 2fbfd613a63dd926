//! TLS on both sides: settings from files, the handshake, and readable errors.
//!
//! The cryptography is `ring` and the versions are 1.2 and 1.3. No application protocol is
//! negotiated, because all traffic is HTTP/1.1. Files are read at startup, so that an error is
//! reported before anything listens; the gateway can reload its own while it runs
//! ([`Acceptor::replace`]). A handshake waits for the peer without a limit: the caller must set one
//! (`timeout::within`).

mod explain;
mod files;
mod verify;

use std::{io, net::Shutdown, sync::Arc};

use futures_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    pki_types::ServerName,
    rustls::{
        self, ClientConfig, ConfigBuilder, ConfigSide, RootCertStore, ServerConfig, WantsVerifier,
        WantsVersions, crypto::ring, server::WebPkiClientVerifier,
    },
};

use self::files::{CERTIFICATE, KEY};
use super::{
    drain::drain,
    stream::{Stream, TcpSocket},
    timeout,
};
use crate::{
    config::{ClientTls, ServerTls},
    error::FatalError,
    limits,
    runtime::lock::Lock,
};

/// Flag for the file of the trusted authorities.
const AUTHORITY: &str = "--ssl-ca-cert";

/// The server side: turns an accepted connection into a TLS connection. Clones share their
/// settings.
#[derive(Clone)]
pub struct Acceptor(Arc<Lock<TlsAcceptor>>);

impl Acceptor {
    /// Reads the files and checks that certificate and key belong together.
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
        Ok(Self(Arc::new(Lock::new(TlsAcceptor::from(Arc::new(config))))))
    }

    /// Takes over the settings of `other` for new handshakes. Existing connections stay, but their
    /// TLS sessions cannot be resumed under the new settings without a full handshake.
    pub fn replace(&self, other: Self) {
        let new = other.current();
        *self.0.lock() = new;
    }

    fn current(&self) -> TlsAcceptor {
        self.0.lock().clone()
    }

    /// Performs the handshake with a client that has just connected.
    ///
    /// # Errors
    /// `InvalidData` with a TLS error if the client offers something that we refuse, or the
    /// system's error. The client has been sent the alert.
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

/// Lets a rejected client read the alert, see [`drain`].
async fn linger(mut socket: TcpSocket) {
    if socket.get_ref().shutdown(Shutdown::Write).is_err() {
        return;
    }
    // The alert may be lost for a client that still sends after that.
    let _ = timeout::within(limits::CLOSE, drain(&mut socket, limits::LINGER)).await;
}

/// The client side: turns a connection to a gateway into a TLS connection.
#[derive(Clone)]
pub struct Connector {
    inner: TlsConnector,
    no_verify: bool,
    own_authority: bool,
    identity: bool,
}

impl Connector {
    /// Reads the files, or the system's trusted roots (the built-in ones if the system has none).
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

    /// Whether any certificate is accepted, which deserves a warning at each connect.
    pub fn takes_anything(&self) -> bool {
        self.no_verify
    }

    /// Performs the handshake with the gateway `host` (a name or an address, without brackets) over
    /// a new connection.
    ///
    /// # Errors
    /// An error for [`Connector::explain`].
    pub async fn connect(&self, stream: Stream, host: &str) -> io::Result<Stream> {
        let name = ServerName::try_from(host)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a host name or address"))?
            .to_owned();
        stream.secure(async |socket| self.inner.connect(name, socket).await.map(TlsStream::Client)).await
    }

    /// Explains in one sentence an error of [`Connector::connect`], or of the first read or write
    /// after it: with TLS 1.3 a gateway rejects our client certificate only after the handshake is
    /// complete for us.
    ///
    /// `gateway` is the peer's `host:port` for the sentence.
    pub fn explain(&self, error: &io::Error, gateway: &str) -> String {
        explain::sentence(error, gateway, self.own_authority, self.identity)
    }
}

/// Enables TLS 1.2 and 1.3.
fn versions<S: ConfigSide>(
    builder: ConfigBuilder<S, WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, FatalError> {
    builder
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| FatalError::run(format!("cannot set up TLS: {error}")))
}

/// Returns the roots that this machine trusts, or the built-in browser roots if it has none
/// (routers, small containers).
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
