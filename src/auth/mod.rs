//! Authentication: maps bearer tokens to principals and their permissions.
//!
//! The rest of the program identifies a caller by its [`Principal`], never by the bytes of a token.
//! [`rule`] parses token rules; [`throttle`] counts wrong tokens by client address.
//!
//! All tokens with one label are one principal; a token without a label is a principal of its own.
//! Sessions, tasks of a shared server, server ids and server names belong to the principal that
//! created them, so they survive the replacement of one of its tokens by another. Registering a
//! server id again takes over the link of the same principal, at most
//! [`TAKEOVERS`](crate::limits::TAKEOVERS) times a minute while that link is alive; a name that
//! another server holds is refused. If several principals share a resource, each gets at most half
//! of it: sessions, links, running calls of a server, isolated processes and memory.

pub mod rule;
pub mod throttle;

use std::{
    collections::{HashMap, hash_map as map},
    fmt,
    hash::{Hash, Hasher},
};

use self::rule::{Names, Rule};
use crate::secret::{DIGEST_BYTES, Digest};

/// The identity behind a request. It is derived from the label of the token, or from the token
/// itself if it has no label, so all tokens with one label are the same principal.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Principal(u128);

impl Principal {
    /// The principal of every request when no tokens are configured.
    pub const ANONYMOUS: Self = Self(0);

    /// Makes a principal from a number, where there is no token to derive it from.
    pub fn token(index: usize) -> Self {
        Self(index as u128 + 1)
    }

    /// Returns the principal as a number, from which [`Principal::from_number`] makes it again.
    pub fn number(self) -> u128 {
        self.0
    }

    /// Makes the principal of a number that [`Principal::number`] returned.
    pub fn from_number(number: u128) -> Self {
        Self(number)
    }

    /// Derives the principal from the label `who`, or else from the token. The token's digest is
    /// hashed again, so the principal reveals nothing about it.
    fn of(who: Option<&str>, digest: &Digest) -> Self {
        let text = match who {
            Some(who) => format!("who:{who}"),
            None => format!("token:{}", digest.number()),
        };
        Self(Digest::of(text.as_bytes()).number())
    }
}

/// The principal of a token, and the roles that the token grants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Permissions {
    /// The principal that the token belongs to.
    pub principal: Principal,
    /// Whether the token grants access to the clients' routes.
    pub client: bool,
    /// Whether the token may register servers, under the names that [`Tokens::may_claim`] allows.
    pub register: bool,
}

impl Permissions {
    /// All permissions for everybody, used when no tokens are configured.
    pub const OPEN: Self = Self { principal: Principal::ANONYMOUS, client: true, register: true };
}

/// The reason why a request has no valid token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// There is no `Authorization` field.
    Missing,
    /// There are several `Authorization` fields.
    Several,
    /// The scheme is not `Bearer`, or the token is empty or unknown.
    Wrong,
}

/// Returns the digest of the bearer token in the `Authorization` fields of a request (RFC 6750,
/// section 2.1). Does not check whether the token is known.
///
/// # Errors
/// [`Denied`], with the reason.
pub fn presented<'a>(mut fields: impl Iterator<Item = &'a str>) -> Result<Digest, Denied> {
    let field = fields.next().ok_or(Denied::Missing)?;
    if fields.next().is_some() {
        return Err(Denied::Several);
    }
    let (scheme, token) = field.split_once(' ').ok_or(Denied::Wrong)?;
    let token = token.trim_matches(' ');
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() {
        return Err(Denied::Wrong);
    }
    Ok(Digest::of(token.as_bytes()))
}

/// A token digest as the key of a map.
///
/// The time of a look-up depends on digests only. An attacker who measures it learns about a
/// digest, not about the token behind it, so a token cannot be guessed bit by bit.
#[derive(Clone, Copy, Eq)]
struct TokenKey([u8; DIGEST_BYTES]);

impl PartialEq for TokenKey {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(test)]
        tests::COMPARED.set(tests::COMPARED.get() + 1);
        self.0 == other.0
    }
}

impl Hash for TokenKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One configured token, with everything that its rules grant.
struct TokenEntry {
    who: Option<String>,
    client: bool,
    register: Option<Names>,
}

/// Roles that the tokens of one principal grant together.
#[derive(Clone, Debug, Default)]
struct Rights {
    client: bool,
    register: Option<Names>,
}

/// Error: one token was given with two labels, so its principal is ambiguous.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TwoOwners;

impl fmt::Display for TwoOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the same token is given with two labels (@…); each principal needs its own token")
    }
}

/// The table of accepted tokens. Finding a token or a principal takes one look-up, however many
/// there are.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    grants: HashMap<TokenKey, Permissions>,
    principals: HashMap<Principal, Rights>,
    clients: usize,
    registrars: usize,
}

impl Tokens {
    /// Builds the table. A token that is given several times gets the roles of all its rules. With
    /// an empty table everybody may do everything.
    ///
    /// # Errors
    /// [`TwoOwners`] if one token has two labels.
    pub fn new(rules: Vec<Rule>) -> Result<Self, TwoOwners> {
        let mut entries: HashMap<TokenKey, TokenEntry> = HashMap::with_capacity(rules.len());
        for Rule { client, register, who, digest } in rules {
            match entries.entry(TokenKey(*digest.bytes())) {
                map::Entry::Vacant(slot) => {
                    slot.insert(TokenEntry { who, client, register });
                }
                map::Entry::Occupied(mut slot) => {
                    let entry = slot.get_mut();
                    if entry.who.is_some() && who.is_some() && entry.who != who {
                        return Err(TwoOwners);
                    }
                    entry.who = entry.who.take().or(who);
                    entry.client |= client;
                    entry.register = both(entry.register.take(), register);
                }
            }
        }
        let mut tokens = Self { grants: HashMap::with_capacity(entries.len()), ..Self::default() };
        for (key, TokenEntry { who, client, register }) in entries {
            let principal = Principal::of(who.as_deref(), &Digest::from(key.0));
            tokens.grants.insert(key, Permissions { principal, client, register: register.is_some() });
            let rights = tokens.principals.entry(principal).or_default();
            rights.client |= client;
            rights.register = both(rights.register.take(), register);
        }
        tokens.clients = tokens.principals.values().filter(|rights| rights.client).count();
        tokens.registrars = tokens.principals.values().filter(|rights| rights.register.is_some()).count();
        Ok(tokens)
    }

    /// Whether no tokens are configured, so that everybody may do everything.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Returns the permissions of a token, or `None` if it is unknown.
    pub fn find(&self, digest: &Digest) -> Option<Permissions> {
        self.grants.get(&TokenKey(*digest.bytes())).copied()
    }

    /// Whether any token of the principal grants access to the clients' routes. Always true if no
    /// tokens are configured.
    pub fn may_call(&self, principal: Principal) -> bool {
        self.is_empty() || self.principals.get(&principal).is_some_and(|rights| rights.client)
    }

    /// Whether any token of the principal allows it to register a server of this name. Always
    /// true if no tokens are configured.
    pub fn may_claim(&self, principal: Principal, name: &str) -> bool {
        let names = || self.principals.get(&principal)?.register.as_ref();
        self.is_empty() || names().is_some_and(|names| names.allow(name))
    }

    /// Whether several principals may open sessions, so that no one of them may use up the limit.
    pub fn have_several_clients(&self) -> bool {
        self.clients > 1
    }

    /// Whether there are several principals, whatever their roles.
    pub fn have_several(&self) -> bool {
        self.principals.len() > 1
    }

    /// Whether several principals may register servers, so that no one of them may use up the
    /// limit.
    pub fn have_several_registrars(&self) -> bool {
        self.registrars > 1
    }
}

/// Returns the union of both sets of names.
fn both(ours: Option<Names>, theirs: Option<Names>) -> Option<Names> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => Some(ours.and(theirs)),
        (ours, theirs) => ours.or(theirs),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Instant};

    use super::*;

    thread_local! {
        /// Number of key comparisons on the thread of this test.
        pub static COMPARED: Cell<usize> = const { Cell::new(0) };
    }

    fn tokens(given: &[&str]) -> Tokens {
        Tokens::new(given.iter().map(|given| Rule::read(given).unwrap()).collect()).unwrap()
    }

    fn grant(tokens: &Tokens, token: &str) -> Option<Permissions> {
        tokens.find(&Digest::of(token.as_bytes()))
    }

    #[test]
    fn the_field() {
        let right = Digest::of(b"one");
        for field in ["Bearer one", "bearer  one ", "BEARER one"] {
            assert!(presented([field].into_iter()).unwrap().matches(&right), "{field}");
        }
        for field in ["Bearer on", "Bearer onee", "Bearer one two", "Bearer ONE"] {
            assert!(!presented([field].into_iter()).unwrap().matches(&right), "{field}");
        }
        for field in ["", "Bearer", "Bearer ", "Bearer  ", "Basic one", "one", "Bearer\tone"] {
            assert_eq!(presented([field].into_iter()).unwrap_err(), Denied::Wrong, "{field:?}");
        }
        assert_eq!(presented([].into_iter()).unwrap_err(), Denied::Missing);
        assert_eq!(presented(["Bearer one", "Bearer one"].into_iter()).unwrap_err(), Denied::Several);
    }

    #[test]
    fn roles() {
        let tokens = tokens(&["client:c", "register:r", "both", "client:twice", "register[x]:twice"]);
        for (token, client, register) in
            [("c", true, false), ("r", false, true), ("both", true, true), ("twice", true, true)]
        {
            let grant = grant(&tokens, token).unwrap();
            assert_eq!((grant.client, grant.register), (client, register), "{token}");
        }
        assert_eq!(grant(&tokens, "client:c"), None);
        let who = |token| grant(&tokens, token).unwrap().principal;
        assert!(who("c") != who("r") && who("r") != who("both"));
        assert!(tokens.may_call(who("c")) && !tokens.may_call(who("r")));
        assert!(!tokens.may_claim(who("c"), "x") && tokens.may_claim(who("r"), "x"));
        assert!(tokens.may_claim(who("twice"), "x") && !tokens.may_claim(who("twice"), "y"));
    }

    #[test]
    fn a_label_is_a_principal() {
        let tokens = tokens(&["client@a:1", "register[x]@a:2", "register[y-*]@a:3", "@b:4", "5", "client:6"]);
        let who = |token| grant(&tokens, token).unwrap().principal;
        assert!(who("1") == who("2") && who("2") == who("3") && who("3") != who("4"));
        assert!(!grant(&tokens, "1").unwrap().register, "the role is the token's");
        for (name, allowed) in [("x", true), ("y-1", true), ("y", false), ("z", false)] {
            assert_eq!(tokens.may_claim(who("2"), name), allowed, "the names are the principal's: {name}");
        }
        let later = self::tokens(&["register[x]@a:new", "5"]);
        assert_eq!(grant(&later, "new").unwrap().principal, who("1"), "it stays the same over a change");
        assert_eq!(grant(&later, "5").unwrap().principal, who("5"));
        assert!(
            !later.may_call(who("1")) && !later.may_claim(who("4"), "x") && later.may_claim(who("1"), "x")
        );
    }

    #[test]
    fn a_token_has_one_owner() {
        let rules = |given: &[&str]| given.iter().map(|given| Rule::read(given).unwrap()).collect();
        assert_eq!(Tokens::new(rules(&["client@a:1", "register@b:1"])).unwrap_err(), TwoOwners);
        let labelled = Tokens::new(rules(&["client:1", "register@b:1", "@b:2"])).unwrap();
        let (one, two) = (grant(&labelled, "1").unwrap(), grant(&labelled, "2").unwrap());
        assert_eq!(one, two);
    }

    #[test]
    fn several_client_principals_are_recognised() {
        for (given, expected) in [
            (&[][..], false),
            (&["a"], false),
            (&["a", "register:b"], false),
            (&["@x:a", "client@x:b"], false),
            (&["a", "b"], true),
            (&["client@x:a", "client@y:b"], true),
        ] {
            assert_eq!(tokens(given).have_several_clients(), expected, "{given:?}");
            let mirrored = given.iter().map(|given| {
                if given.starts_with("client") {
                    given.replacen("client", "register", 1)
                } else {
                    given.replacen("register", "client", 1)
                }
            });
            let mirrored: Vec<String> = mirrored.collect();
            let mirrored: Vec<&str> = mirrored.iter().map(String::as_str).collect();
            assert_eq!(tokens(&mirrored).have_several_registrars(), expected, "{mirrored:?}");
        }
    }

    #[test]
    fn without_tokens_every_role_is_granted() {
        let open = Tokens::default();
        assert!(open.is_empty() && open.may_call(Principal::ANONYMOUS));
        assert!(open.may_claim(Principal::ANONYMOUS, "x"));
    }

    fn many() -> Tokens {
        let given: Vec<String> = (0..64).map(|number| format!("token-{number}")).collect();
        tokens(&given.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Counted, not timed: a look-up, and adding a rule to a table, cost the same however many
    /// tokens there are.
    #[test]
    fn all_tokens_are_compared() {
        let given: Vec<String> = (0..10_000)
            .map(|number| match number % 4 {
                0 => format!("register[box-{number}]@box-{number}:token-{number}"),
                1 => format!("client@team-{}:token-{number}", number % 7),
                _ => format!("token-{number}"),
            })
            .collect();
        let rules = || given.iter().map(|given| Rule::read(given).unwrap()).collect::<Vec<_>>();
        // Each rule is given twice, so that the second one finds an existing entry.
        let rules = [rules(), rules()].concat();
        COMPARED.set(0);
        let tokens = Tokens::new(rules).unwrap();
        let built = COMPARED.get();
        assert!((10_000..15_000).contains(&built), "{built} comparisons");
        COMPARED.set(0);
        for number in 0..10_000 {
            assert!(grant(&tokens, &format!("token-{number}")).is_some(), "{number}");
            assert!(grant(&tokens, &format!("wrong-{number}")).is_none(), "{number}");
        }
        let looked = COMPARED.get();
        assert!((10_000..15_000).contains(&looked), "{looked} comparisons");
        assert!(tokens.have_several_clients() && tokens.have_several_registrars());
        let who = grant(&tokens, "token-4000").unwrap().principal;
        assert!(tokens.may_claim(who, "box-4000") && !tokens.may_claim(who, "box-4004"));
        assert!(!tokens.may_call(who) && tokens.may_call(grant(&tokens, "token-1").unwrap().principal));
    }

    /// Prints the times and does not check them, since other programs run on the same machine. Run
    /// with `cargo test --release … -- --nocapture`.
    #[test]
    fn the_time_of_a_comparison() {
        let tokens = many();
        let mut medians = Vec::new();
        for (what, token) in
            [("the first", "token-0"), ("the last", "token-63"), ("none", "token-x"), ("none, far off", "x")]
        {
            let digest = Digest::of(token.as_bytes());
            let mut times: Vec<u128> = (0..1001)
                .map(|_| {
                    let begun = Instant::now();
                    for _ in 0..10 {
                        std::hint::black_box(tokens.find(std::hint::black_box(&digest)));
                    }
                    begun.elapsed().as_nanos() / 10
                })
                .collect();
            times.sort_unstable();
            medians.push((what, times[times.len() / 2]));
        }
        println!("64 tokens, median nanoseconds of a comparison by which one is right: {medians:?}");
        assert!(medians.iter().all(|(_, time)| *time > 0));
    }
}
