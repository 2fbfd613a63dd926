//! Who is asking, and what they may do: bearer tokens to principals and roles.
//!
//! Everything else in the program is bound to a [`Principal`], never to the bytes of a token. [`rule`] reads how a token
//! is given; [`throttle`] counts those that are wrong.

pub mod rule;
pub mod throttle;

use std::{
    collections::{HashMap, hash_map as map},
    fmt,
    hash::{Hash, Hasher},
};

use self::rule::{Names, Rule};
use crate::secret::{DIGEST_BYTES, Digest};

/// Whoever stands behind a request. It is the same as long as the label of its tokens is, or without a label the token.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Principal(u128);

impl Principal {
    /// Everybody, where no token is configured.
    pub const ANONYMOUS: Self = Self(0);

    /// A principal by a number of its own, where there are no tokens to make it from.
    pub fn token(place: usize) -> Self {
        Self(place as u128 + 1)
    }

    /// The principal behind a token. Made by another digest, so that it says nothing about that of the token.
    fn of(who: Option<&str>, digest: &Digest) -> Self {
        let text = match who {
            Some(who) => format!("who:{who}"),
            None => format!("token:{}", digest.number()),
        };
        Self(Digest::of(text.as_bytes()).number())
    }
}

/// Who asks, and what the token is good for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Permissions {
    /// Who asks.
    pub principal: Principal,
    /// The clients' routes.
    pub client: bool,
    /// Registration, under the names of [`Tokens::may_claim`].
    pub register: bool,
}

impl Permissions {
    /// Everything, to everybody: no token is configured.
    pub const OPEN: Self = Self { principal: Principal::ANONYMOUS, client: true, register: true };
}

/// Why a request has no token that can be looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// It has no `Authorization`.
    Missing,
    /// It has several.
    Several,
    /// Its scheme is not `Bearer`.
    Wrong,
}

/// The digest of the token in the `Authorization` fields of a request.
///
/// # Errors
/// [`Denied`], with what was wrong (RFC 6750, section 2.1).
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

/// A digest as the key of a map.
///
/// Looking it up takes a time that depends on digests alone. Whoever measures that learns of a digest, not of the token
/// behind it: a token that gets nearer to it bit by bit cannot be found.
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

/// One token as it was given, with all that was given for it.
struct TokenEntry {
    who: Option<String>,
    client: bool,
    register: Option<Names>,
}

/// What the tokens of one principal are good for together.
#[derive(Clone, Debug, Default)]
struct Rights {
    client: bool,
    register: Option<Names>,
}

/// The same token was given with two labels: nobody could say whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TwoOwners;

impl fmt::Display for TwoOwners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one token is given with two labels (@…); each principal needs a token of its own")
    }
}

/// The tokens that are let in, and for what. A token and a principal are each found by one look-up, however many there are.
#[derive(Clone, Debug, Default)]
pub struct Tokens {
    grants: HashMap<TokenKey, Permissions>,
    principals: HashMap<Principal, Rights>,
    clients: usize,
    registrars: usize,
}

impl Tokens {
    /// A table of tokens. One that is given more than once is good for all of it. Empty: everybody may do everything.
    ///
    /// # Errors
    /// [`TwoOwners`].
    pub fn new(rules: Vec<Rule>) -> Result<Self, TwoOwners> {
        let mut entries: HashMap<TokenKey, TokenEntry> = HashMap::with_capacity(rules.len());
        for Rule { client, register, who, digest } in rules {
            match entries.entry(TokenKey(*digest.bytes())) {
                map::Entry::Vacant(place) => {
                    place.insert(TokenEntry { who, client, register });
                }
                map::Entry::Occupied(mut place) => {
                    let entry = place.get_mut();
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

    /// Whether everybody may do everything.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Finds who has a token.
    pub fn find(&self, digest: &Digest) -> Option<Permissions> {
        self.grants.get(&TokenKey(*digest.bytes())).copied()
    }

    /// Whether a principal has any token for the clients' routes.
    pub fn may_call(&self, principal: Principal) -> bool {
        self.is_empty() || self.principals.get(&principal).is_some_and(|rights| rights.client)
    }

    /// Whether a principal has any token by which it may register a server of this name.
    pub fn may_claim(&self, principal: Principal, name: &str) -> bool {
        let names = || self.principals.get(&principal)?.register.as_ref();
        self.is_empty() || names().is_some_and(|names| names.allow(name))
    }

    /// Whether more than one principal may open sessions, so that they have to share.
    pub fn have_several_clients(&self) -> bool {
        self.clients > 1
    }

    /// Whether there is more than one principal at all.
    pub fn have_several(&self) -> bool {
        self.principals.len() > 1
    }

    /// Whether more than one principal may register servers, so that they have to share.
    pub fn have_several_registrars(&self) -> bool {
        self.registrars > 1
    }
}

/// What either of them allows.
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
        /// Comparisons of keys by this test's thread.
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
    fn half_of_a_shared_limit_is_for_others() {
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

    /// Counted, not timed: a look-up, and each rule of a new table, cost the same however many tokens there are.
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
        // Each rule twice: the second time it is found.
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

    /// Printed and not asserted: other programs run on the same machine. `cargo test --release … -- --nocapture`.
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
