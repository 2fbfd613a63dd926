//! Authentication: the token table, throttling of wrong tokens, and reload on SIGHUP.
//!
//! Permissions are looked up at each use and never cached: for each request, when a session opens,
//! and when a server registers. When the table changes, whatever its principal is no longer
//! permitted to have is closed; see [`Gateway::reload`].
//!
//! SIGHUP reloads the token file, the certificate, its key and the client CA: all of them, or none
//! if one cannot be used. Tokens from flags and the environment stay. Sessions without a valid token
//! are closed, and so are links, with code 1008. If a terminal is attached, SIGHUP still stops the
//! gateway, since it means that the terminal was closed (`runtime::signals`).

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Gateway, session::Session};
use crate::{
    auth::{
        self, Denied, Permissions, Principal, Tokens,
        rule::Rule,
        throttle::{GuessThrottle, GuessVerdict},
    },
    config::GatewayConfig,
    error::FatalError,
    hub::session::Scope,
    limits::GuessLimits,
    net::{text_file, tls::Acceptor},
    session::Full,
    tunnel::close::CloseReason,
    util::address::ClientAddress,
};

/// The token table and the throttle of wrong tokens.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Mutex<Arc<Tokens>>,
    guesses: Mutex<GuessThrottle>,
}

/// Why a request is not authenticated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuthError {
    /// The token is missing or wrong, or there is more than one `Authorization` field.
    Denied(Denied),
    /// Too many wrong tokens came from this address. Holds the remaining lockout time.
    Throttled(Duration),
}

/// A request to authenticate.
pub struct AuthRequest<'a, F> {
    /// The client's address.
    pub from: IpAddr,
    /// The values of its `Authorization` fields.
    pub fields: F,
    /// The principal authenticated earlier over the same connection.
    pub authenticated: Option<Principal>,
    /// Looks up the owner of the session that the request names.
    pub owner: &'a dyn Fn() -> Option<Principal>,
}

impl Authenticator {
    /// Creates an authenticator with no wrong tokens counted.
    pub fn new(tokens: Tokens, limits: &GuessLimits) -> Self {
        Self { tokens: Mutex::new(Arc::new(tokens)), guesses: Mutex::new(GuessThrottle::new(limits)) }
    }

    /// Returns the current token table.
    pub fn tokens(&self) -> Arc<Tokens> {
        // The table is only replaced as a whole, so a panic elsewhere cannot leave it half changed.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, tokens: Arc<Tokens>) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn guesses(&self) -> MutexGuard<'_, GuessThrottle> {
        // Ignoring the poison is safe: a panic between two statements leaves at most a wrong count,
        // and entries last a minute.
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Authenticates a request and returns its permissions. Without configured tokens every request
    /// gets [`Permissions::OPEN`].
    ///
    /// # Errors
    /// [`AuthError`], with the reason.
    pub fn check<'f>(
        &self,
        now: Instant,
        asking: AuthRequest<'_, impl Iterator<Item = &'f str>>,
    ) -> Result<Permissions, AuthError> {
        let tokens = self.tokens();
        if tokens.is_empty() {
            return Ok(Permissions::OPEN);
        }
        let from = ClientAddress::of(asking.from);
        let digest = match auth::presented(asking.fields) {
            Ok(digest) => digest,
            Err(Denied::Wrong) => return Err(self.wrong(now, from, None)),
            Err(why) => return Err(AuthError::Denied(why)),
        };
        let found = tokens.find(&digest);
        if let Err(wait) = self.guesses().look(now, from) {
            // A correct token and a wrong one get the same error, so that guessing gains nothing.
            // Principals that are already authenticated are exempt, see `auth::throttle`.
            let known = |grant: &Permissions| {
                asking.authenticated == Some(grant.principal) || (asking.owner)() == Some(grant.principal)
            };
            return found.filter(known).ok_or(AuthError::Throttled(wait));
        }
        found.ok_or_else(|| self.wrong(now, from, Some(digest.number())))
    }

    fn wrong(&self, now: Instant, from: ClientAddress, token: Option<u128>) -> AuthError {
        match self.guesses().wrong(now, from, token) {
            GuessVerdict::Wrong => AuthError::Denied(Denied::Wrong),
            GuessVerdict::Wait(wait) => AuthError::Throttled(wait),
        }
    }
}

/// Reads all tokens: from flags, from the environment, from the file.
///
/// # Errors
/// One line that names the flag and the line of the file, but never a token.
pub fn read(config: &GatewayConfig) -> Result<Tokens, FatalError> {
    let rule = |given: &str, place: &dyn Fn() -> String| {
        Rule::read(given).map_err(|why| FatalError::usage(format!("{}: {why}", place())))
    };
    let given = config.tokens.iter().map(|secret| rule(secret.expose(), &|| "--auth-token".into()));
    let mut rules: Vec<Rule> = given.collect::<Result<_, _>>()?;
    if let Some(path) = &config.token_file {
        let flag = format!("--auth-token-file {}", path.display());
        let content = text_file::read(path).map_err(|why| FatalError::usage(format!("{flag}: {why}")))?;
        text_file::warn_if_exposed(&flag, path);
        let lines = content.lines().map(str::trim).enumerate();
        let before = rules.len();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            rules.push(rule(line, &|| format!("{flag}, line {}", number + 1))?);
        }
        // An empty table would let every request in.
        if rules.len() == before {
            return Err(FatalError::usage(format!("{flag}: the file contains no token")));
        }
    }
    Tokens::new(rules).map_err(|why| FatalError::usage(format!("--auth-token: {why}")))
}

impl Gateway {
    /// Opens a session. At the session limit, first closes an idle session of the same principal.
    ///
    /// # Errors
    /// [`Full`] at a session limit, or if the token was revoked concurrently.
    pub(super) fn open_session(
        &self,
        now: Instant,
        client: &Arc<Session>,
        principal: Principal,
    ) -> Result<(), Full> {
        let opened = self.try_session(now, client, principal);
        if opened.is_ok() {
            return opened;
        }
        let unused = self.sessions().make_room(now, principal, |client| client.is_busy());
        let Some(unused) = unused else { return opened };
        self.close(now, &unused, "evicted by a newer session");
        self.try_session(now, client, principal)
    }

    fn try_session(&self, now: Instant, client: &Arc<Session>, principal: Principal) -> Result<(), Full> {
        // Checked while the session table is locked: a reload replaces the tokens before it looks
        // at that table, so it finds every session opened under the old tokens.
        let mut sessions = self.sessions();
        if !self.authn.tokens().may_call(principal) {
            return Err(Full::All);
        }
        let server = match client.scope() {
            Scope::All => None,
            Scope::Server(name) => Some(name.as_str()),
        };
        sessions.open_at(now, client.id().to_owned(), principal, server, client.clone())
    }

    /// Reloads the tokens and the certificates, all or nothing: if a file cannot be used,
    /// everything stays as it was and one error is logged. Sessions and links stay open as long as
    /// their principal is still permitted to have them.
    pub(super) async fn reload(self: Arc<Self>, acceptor: Option<Acceptor>) {
        let gateway = self.clone();
        // Reading may block: the file may be a pipe or on a network file system.
        let read = smol::unblock(move || {
            let config = &gateway.config;
            let tls = config.tls.as_ref().map(Acceptor::new).transpose()?;
            read(config).map(|tokens| (tokens, tls))
        });
        match read.await {
            Err(fault) => log::error!("not reloaded, keeping the current tokens and certificates: {fault}"),
            Ok((tokens, tls)) => {
                let certificates = acceptor.zip(tls).map(|(old, new)| old.replace(new)).is_some();
                let (sessions, links) = self.apply(Instant::now(), tokens);
                let what = if certificates { "tokens and certificates" } else { "tokens" };
                log::info!(
                    "reloaded {what}: closed {sessions} sessions and {links} links whose tokens were revoked"
                );
            }
        }
    }

    /// Replaces the token table. Returns the number of sessions and links that are closed by it.
    fn apply(&self, now: Instant, tokens: Tokens) -> (usize, usize) {
        let tokens = Arc::new(tokens);
        self.authn.replace(tokens.clone());
        self.budget.share(tokens.have_several());
        let clients = {
            let mut sessions = self.sessions();
            sessions.share(tokens.have_several_clients());
            sessions.expel(|principal| tokens.may_call(principal))
        };
        self.tasks().expel(|principal| tokens.may_call(principal));
        for client in &clients {
            self.close(now, client, "token revoked");
        }
        let servers = self.catalog().unauthorized(|principal, name| tokens.may_claim(principal, name));
        for server in &servers {
            server.link().close(CloseReason::new(1008, "the token of this registration was revoked"));
        }
        (clients.len(), servers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Authenticator {
        let rules = ["@a:right", "@b:other"].map(|given| Rule::read(given).unwrap());
        Authenticator::new(Tokens::new(rules.into()).unwrap(), &GuessLimits::default())
    }

    /// Checks `token`, over a connection authenticated as `proven`, for a session of `owner`.
    fn ask(
        keys: &Authenticator,
        now: Instant,
        token: &str,
        proven: Option<Principal>,
        owner: Option<Principal>,
    ) -> Result<Principal, AuthError> {
        let field = format!("Bearer {token}");
        let fields = [field.as_str()].into_iter();
        let asking =
            AuthRequest { from: [192, 0, 2, 1].into(), fields, authenticated: proven, owner: &|| owner };
        keys.check(now, asking).map(|grant| grant.principal)
    }

    #[test]
    fn authenticated_peers_pass_while_throttled() {
        let (keys, now) = (keys(), Instant::now());
        let (a, b) =
            (ask(&keys, now, "right", None, None).unwrap(), ask(&keys, now, "other", None, None).unwrap());
        for guess in 0..10 {
            let denied = ask(&keys, now, &format!("guess-{guess}"), None, None);
            assert_eq!(denied, Err(AuthError::Denied(Denied::Wrong)), "{guess}");
        }
        let shut = Err(AuthError::Throttled(Duration::from_secs(60)));
        for token in ["guess-10", "right", "other"] {
            assert_eq!(ask(&keys, now, token, None, None), shut, "{token}: a newcomer learns nothing");
        }
        for (proven, owner) in [(Some(a), None), (None, Some(a))] {
            assert_eq!(ask(&keys, now, "right", proven, owner), Ok(a));
            assert_eq!(ask(&keys, now, "other", proven, owner), shut, "and whoever is in learns of no other");
            assert_eq!(ask(&keys, now, "guess-11", proven, owner), shut);
        }
        assert_eq!(ask(&keys, now + Duration::from_secs(60), "other", None, None), Ok(b));
    }
}
