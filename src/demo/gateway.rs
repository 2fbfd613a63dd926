//! How the client of the demo reaches the gateway.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    jsonrpc::{elements, find, unquote},
    net::{stream::Stream, tls::Connector},
};

/// Address of the gateway, and how to connect to it.
pub struct DemoGateway {
    /// Address of the gateway.
    pub address: SocketAddr,
    /// TLS settings and certificate verification, if the gateway uses TLS.
    pub tls: Option<Connector>,
    /// PEM file with the CA of the gateway's certificate.
    pub authority: Option<PathBuf>,
}

impl DemoGateway {
    /// Appends `s` to `plain` if the gateway uses TLS: `http` or `https`, `ws` or `wss`.
    pub fn scheme(&self, plain: &str) -> String {
        let secure = if self.tls.is_some() { "s" } else { "" };
        format!("{plain}{secure}")
    }

    /// Opens a connection.
    pub async fn connect(&self) -> io::Result<Stream> {
        let stream = Stream::connect(self.address).await?;
        let Some(tls) = &self.tls else { return Ok(stream) };
        let secured = tls.connect(stream, &self.address.ip().to_string()).await;
        secured.map_err(|error| broken(&tls.explain(&error, &self.address.to_string())))
    }
}

/// Returns the names in a response to `tools/list`.
pub fn tool_names(answer: &str) -> Vec<String> {
    let Ok(Some(list)) = find(answer, 0..answer.len(), &["result", "tools"]) else { return Vec::new() };
    let name = |tool| {
        let span = find(answer, tool, &["name"]).ok()??;
        unquote(&answer[span]).map(|name| name.into_owned())
    };
    elements(answer, list).filter_map(name).collect()
}

/// Returns an error for an unexpected reply.
pub fn broken(why: &str) -> io::Error {
    io::Error::other(why)
}
