//! Who may do what as things stand: the table of tokens, those who guess at it, and how it is read anew.
//!
//! Rights are looked up at use, never remembered: at each request, when a session opens, when a server registers. When
//! the table changes, what nobody may have any more is ended; see [`Gateway::reload`].

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Gateway,
    session::{Scope, Session},
};
use crate::{
    auth::{
        self, Denied, Permissions, Principal, Tokens,
        rule::Rule,
        throttle::{ClientAddress, GuessThrottle, GuessVerdict},
    },
    config::GatewayConfig,
    error::FatalError,
    limits::GuessLimits,
    net::{text_file, tls::Acceptor, ws_link::CloseReason},
    session::Full,
};

/// See the module's documentation.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Mutex<Arc<Tokens>>,
    guesses: Mutex<GuessThrottle>,
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AuthError {
    /// It has no token, or a wrong one.
    Denied(Denied),
    /// Too many wrong tokens came from there: wait so long.
    Throttled(Duration),
}

/// A request that wants to be let in.
pub struct AuthRequest<'a, F> {
    /// Where it comes from.
    pub from: IpAddr,
    /// Its `Authorization` fields.
    pub fields: F,
    /// Who was let in before over the same connection.
    pub authenticated: Option<Principal>,
    /// The owner of the session that it names.
    pub owner: &'a dyn Fn() -> Option<Principal>,
}

impl Authenticator {
    /// A table, and nobody who guesses yet.
    pub fn new(tokens: Tokens, limits: &GuessLimits) -> Self {
        Self { tokens: Mutex::new(Arc::new(tokens)), guesses: Mutex::new(GuessThrottle::new(limits)) }
    }

    /// The table as it is now.
    pub fn tokens(&self) -> Arc<Tokens> {
        // It is replaced whole, so a panic elsewhere does not spoil it.
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, tokens: Arc<Tokens>) {
        *self.tokens.lock().unwrap_or_else(PoisonError::into_inner) = tokens;
    }

    fn guesses(&self) -> MutexGuard<'_, GuessThrottle> {
        // What is in it is a matter of a minute; it is sound between any two statements that matter.
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who asks, and for what the token is good.
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
            // Right or wrong, the answer is the same; but for those who are in already, see `auth::throttle`.
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

/// All tokens: from flags, from the environment, from the file.
///
/// # Errors
/// One line that names the flag, and the line of the file, and no token.
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
        // Without any token everybody would be let in.
        if rules.len() == before {
            return Err(FatalError::usage(format!("{flag}: there is no token in it")));
        }
    }
    Tokens::new(rules).map_err(|why| FatalError::usage(format!("--auth-token: {why}")))
}

impl Gateway {
    /// Opens a session; where there is no place, instead of one that was not used lately.
    ///
    /// # Errors
    /// The table is full; as such counts, too, that the right to it was taken away this moment.
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
        self.close(&unused, "another session needs its place");
        self.try_session(now, client, principal)
    }

    fn try_session(&self, now: Instant, client: &Arc<Session>, principal: Principal) -> Result<(), Full> {
        // Looked up while the table of sessions is held: whoever takes a right away looks at that table afterwards.
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

    /// Reads the tokens and the certificates again. All of it is taken, or nothing: a file that cannot be used leaves
    /// everything as it was, and one line in the log. What is open stays open as long as its principal may have it.
    pub(super) async fn reload(self: Arc<Self>, acceptor: Option<Acceptor>) {
        let gateway = self.clone();
        // A file may be slow: it may be a pipe, or far away.
        let read = smol::unblock(move || {
            let config = &gateway.config;
            let tls = config.tls.as_ref().map(Acceptor::new).transpose()?;
            read(config).map(|tokens| (tokens, tls))
        });
        match read.await {
            Err(fault) => log::error!("not read again, everything stays as it was: {fault}"),
            Ok((tokens, tls)) => {
                let certificates = acceptor.zip(tls).map(|(old, new)| old.replace(new)).is_some();
                let (sessions, links) = self.apply(tokens);
                let what = if certificates { "tokens and certificates" } else { "tokens" };
                log::info!(
                    "{what} are read again; {sessions} sessions and {links} links lost their right and end"
                );
            }
        }
    }

    /// Lets another table of tokens rule. Returns how many sessions and links end by that.
    fn apply(&self, tokens: Tokens) -> (usize, usize) {
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
            self.close(client, "its token is no longer valid");
        }
        let servers = self.catalog().unauthorized(|principal, name| tokens.may_claim(principal, name));
        for server in &servers {
            server.link().end(CloseReason::new(1008, "the token of this registration is no longer valid"));
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

    /// Asks with a token, over a connection that was let in as `authenticated`, for a session of `owner`.
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
