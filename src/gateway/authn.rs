//! Authentication: the token table, and the throttling of wrong tokens.
//!
//! Permissions are looked up at each use and never cached: for each request, when a session opens,
//! and when a server registers. `reload` replaces the table at run time.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    auth::{
        self, Denied, Permissions, Principal, Tokens,
        rule::Rule,
        throttle::{GuessThrottle, GuessVerdict},
    },
    config::GatewayConfig,
    error::FatalError,
    limits::GuessLimits,
    net::text_file,
    runtime::lock::Lock,
    util::address::ClientAddress,
};

/// The token table and the throttle of wrong tokens.
#[derive(Debug)]
pub struct Authenticator {
    tokens: Lock<Arc<Tokens>>,
    guesses: Lock<GuessThrottle>,
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
        Self { tokens: Lock::new(Arc::new(tokens)), guesses: Lock::new(GuessThrottle::new(limits)) }
    }

    /// Returns the current token table.
    pub fn tokens(&self) -> Arc<Tokens> {
        self.tokens.lock().clone()
    }

    /// Replaces the token table.
    pub fn replace(&self, tokens: Arc<Tokens>) {
        *self.tokens.lock() = tokens;
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
        let looked = self.guesses.lock().look(now, from);
        if let Err(wait) = looked {
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
        match self.guesses.lock().wrong(now, from, token) {
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
