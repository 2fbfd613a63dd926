//! Opens a link to the gateway: name lookup, TCP, TLS and the upgrade request. Each failure is
//! reported in one line. `edge::redial` decides what follows it.

use std::io;

use async_tungstenite::tungstenite::{
    self,
    handshake::client::generate_key,
    http::{HeaderName, HeaderValue, Request, Response},
};

use super::redial::Outcome;
use crate::{
    config::{GatewayUrl, RegisterConfig},
    error::FatalError,
    limits::LinkLimits,
    net::{
        stream::Stream,
        text_file, timeout,
        tls::Connector,
        ws_link::{self, WebSocket},
    },
    tunnel::REFUSAL,
    util,
};

/// Connects to one gateway.
pub struct Dialer {
    url: GatewayUrl,
    fields: Vec<(HeaderName, HeaderValue)>,
    tls: Option<Connector>,
    limits: LinkLimits,
}

impl Dialer {
    /// Loads the certificates and checks the header fields.
    ///
    /// # Errors
    /// One line that names the flag.
    pub fn new(config: &RegisterConfig) -> Result<Self, FatalError> {
        let tls = config.gateway.tls.then(|| Connector::new(&config.tls)).transpose()?;
        let fields = config.headers.iter().map(|(name, value)| {
            // The flag or header file parser has checked this already.
            let bad = |_| {
                FatalError::usage(format!("header field {}: not allowed in HTTP", util::escape::show(name)))
            };
            let own: HeaderName = name.parse().map_err(|_| bad(()))?;
            let mut value = HeaderValue::from_str(value.expose()).map_err(|_| bad(()))?;
            value.set_sensitive(true);
            Ok((own, value))
        });
        let fields: Vec<_> = fields.collect::<Result<_, FatalError>>()?;
        if let Some(path) = &config.header_file {
            text_file::warn_if_exposed(&format!("--header-file {}", path.display()), path);
        }
        if !config.gateway.tls && !fields.is_empty() && !is_loopback(&config.gateway.host) {
            log::warn!("header fields are sent unencrypted to {}; use wss://", config.gateway.authority());
        }
        if !config.gateway.tls && config.tls.says_anything() {
            log::warn!("ws:// does not use TLS, so --no-ssl-verify and --ssl-… have no effect; use wss://");
        }
        Ok(Self { url: config.gateway.clone(), fields, tls, limits: config.limits.link.clone() })
    }

    /// Connects once.
    ///
    /// # Errors
    /// The message for the user, and whether a retry soon makes sense.
    pub async fn dial(&self) -> Result<WebSocket, Outcome> {
        let limit = self.limits.connect_time;
        let connected = timeout::within(limit, self.connect()).await;
        connected
            .unwrap_or_else(|_| Err(self.lost(&format!("connection timed out after {} s", limit.as_secs()))))
    }

    async fn connect(&self) -> Result<WebSocket, Outcome> {
        log::debug!("connecting to {}", self.url);
        let stream = self.reach().await?;
        let stream = match &self.tls {
            None => stream,
            Some(tls) => {
                if tls.takes_anything() {
                    log::warn!(
                        "--no-ssl-verify: the certificate of {} is not verified",
                        self.url.authority()
                    );
                }
                let secured = tls.connect(stream, &self.url.host).await;
                secured.map_err(|error| self.untrusted(tls, &error))?
            }
        };
        let request = self.request().map_err(|error| self.lost(&error.to_string()))?;
        let upgraded = ws_link::upgrade(stream, request, &self.limits).await;
        upgraded.map_err(|error| self.not_upgraded(error))
    }

    async fn reach(&self) -> Result<Stream, Outcome> {
        let dialed = Stream::dial(&self.url.host, self.url.port).await;
        dialed.map_err(|error| {
            self.lost(&match error.kind() {
                io::ErrorKind::ConnectionRefused => "connection refused".into(),
                _ => error.to_string(),
            })
        })
    }

    fn request(&self) -> Result<Request<()>, tungstenite::http::Error> {
        let scheme = if self.url.tls { "wss" } else { "ws" };
        let mut request = Request::builder()
            .method("GET")
            .uri(format!("{scheme}://{}{}", self.url.authority(), self.url.target))
            .header("Host", self.url.authority())
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", generate_key())
            .header("User-Agent", concat!("mcpport/", env!("CARGO_PKG_VERSION")));
        for (name, value) in &self.fields {
            request = request.header(name, value);
        }
        request.body(())
    }

    fn lost(&self, why: &str) -> Outcome {
        Outcome::Lost(format!("cannot reach the gateway at {}: {why}", self.url.authority()))
    }

    /// Maps a TLS error to an outcome. A certificate that is not trusted is transient: the clock
    /// may not be set yet, or another host (a captive portal) may answer for a while.
    fn untrusted(&self, tls: &Connector, error: &io::Error) -> Outcome {
        let sentence = tls.explain(error, &self.url.authority());
        match error.kind() {
            io::ErrorKind::InvalidData => Outcome::Transient(sentence),
            _ => Outcome::Lost(sentence),
        }
    }

    fn not_upgraded(&self, error: tungstenite::Error) -> Outcome {
        match (error, &self.tls) {
            (tungstenite::Error::Http(response), _) => self.answered(&response),
            (tungstenite::Error::Io(error), Some(tls)) => self.untrusted(tls, &error),
            (tungstenite::Error::Protocol(_) | tungstenite::Error::HttpFormat(_), None) => {
                self.lost("the response is not HTTP; if the gateway uses TLS, use wss://")
            }
            (error, _) => self.lost(&error.to_string()),
        }
    }

    /// Maps a response other than 101 to an outcome. A refusal without the [`REFUSAL`] header field
    /// may come from a proxy and is transient.
    fn answered(&self, response: &Response<Option<Vec<u8>>>) -> Outcome {
        let (status, gateway) = (response.status(), self.url.authority());
        let marked = response.headers().contains_key(REFUSAL);
        let refused = if marked { Outcome::Refused } else { Outcome::Transient };
        match status.as_u16() {
            401 if self.fields.is_empty() => refused(format!(
                "the gateway at {gateway} requires a token (401): use --header \"Authorization: Bearer TOKEN\" or --header-file"
            )),
            401 => refused(format!(
                "the gateway at {gateway} rejected the token (401): check --header \"Authorization: Bearer TOKEN\" or --header-file"
            )),
            403 => refused(format!(
                "the gateway at {gateway} rejected the registration (403): the token may not have the register role (--auth-token there), or this host name is not allowed (--public-host there)"
            )),
            404 => refused(format!(
                "no registration endpoint at {} (404): check the path of --gateway-url",
                self.url
            )),
            429 => self.lost(
                "rate-limited (429): too many wrong tokens or too many connections (--max-connections-per-address there) from this address",
            ),
            503 => self.lost("the gateway is at a limit (503): --max-links or --max-connections there"),
            code => self.lost(&format!(
                "HTTP status {code} instead of an upgrade to WebSocket; check the path of --gateway-url"
            )),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}
