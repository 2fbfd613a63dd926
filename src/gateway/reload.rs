//! Reloads tokens and certificates on SIGHUP: the token file, the certificate, its key and the
//! client CA. If one of them cannot be used, none is replaced. Tokens from flags and the
//! environment stay.
//!
//! When the table changes, sessions and links that their principal is no longer permitted to have
//! are closed, links with code 1008. If a terminal is attached, SIGHUP still stops the gateway,
//! since it means that the terminal was closed (`runtime::signals`).

use std::{sync::Arc, time::Instant};

use super::{authn, state::Gateway};
use crate::{auth::Tokens, hub::entry::Enter, net::tls::Acceptor};

/// Reloads the tokens and the certificates, all or nothing: if a file cannot be used, everything
/// stays as it was and one error is logged. Sessions and links stay open as long as their principal
/// is still permitted to have them.
pub async fn reload(gateway: Arc<Gateway>, acceptor: Option<Acceptor>) {
    let reading = gateway.clone();
    // Reading may block: the file may be a pipe or on a network file system.
    let read = smol::unblock(move || {
        let config = &reading.config;
        let tls = config.tls.as_ref().map(Acceptor::new).transpose()?;
        authn::read(config).map(|tokens| (tokens, tls))
    });
    match read.await {
        Err(fault) => log::error!("not reloaded, keeping the current tokens and certificates: {fault}"),
        Ok((tokens, tls)) => {
            let certificates = acceptor.zip(tls).map(|(old, new)| old.replace(new)).is_some();
            let (sessions, links) = replace(&gateway, Instant::now(), tokens);
            let what = if certificates { "tokens and certificates" } else { "tokens" };
            log::info!(
                "reloaded {what}: closed {sessions} sessions and {links} links whose tokens were revoked"
            );
        }
    }
}

/// Replaces the token table. Returns the number of sessions and links that are closed by it.
fn replace(gateway: &Gateway, now: Instant, tokens: Tokens) -> (usize, usize) {
    let tokens = Arc::new(tokens);
    gateway.authn.replace(tokens.clone());
    gateway.budget.share(tokens.have_several());
    gateway.enter(|hub, fx| hub.set_tokens(now, tokens, fx))
}
