//! Who is asking: bearer tokens to principals.
//!
//! Everything else in the program is bound to a [`Principal`], never to the bytes of a token.

use crate::secret::Secret;

/// Whoever stands behind a request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Principal(u32);

impl Principal {
    /// Everybody, where no token is configured.
    pub const ANONYMOUS: Self = Self(0);

    /// Who has the token at this place of the list.
    pub fn token(place: usize) -> Self {
        Self(u32::try_from(place).unwrap_or(u32::MAX - 1) + 1)
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// It has no `Authorization`.
    Missing,
    /// It has several.
    Several,
    /// Its scheme is not `Bearer`, or its token is unknown.
    Wrong,
}

/// The tokens that are let in.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Vec<Secret>);

impl Tokens {
    /// A table of tokens; equal ones are one principal. Empty: everybody is let in.
    pub fn new(tokens: Vec<Secret>) -> Self {
        Self(tokens)
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Finds who asks, from the values of the `Authorization` fields. All tokens are compared, in constant time.
    ///
    /// # Errors
    /// [`Denied`], with what was wrong (RFC 6750, section 3).
    pub fn check<'a>(&self, mut fields: impl Iterator<Item = &'a str>) -> Result<Principal, Denied> {
        if self.0.is_empty() {
            return Ok(Principal::ANONYMOUS);
        }
        let field = fields.next().ok_or(Denied::Missing)?;
        if fields.next().is_some() {
            return Err(Denied::Several);
        }
        let (scheme, token) = field.split_once(' ').ok_or(Denied::Wrong)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(Denied::Wrong);
        }
        let token = token.trim_matches(' ').as_bytes();
        let mut found = None;
        for (place, known) in self.0.iter().enumerate() {
            if known.matches(token) && found.is_none() {
                found = Some(Principal::token(place));
            }
        }
        found.ok_or(Denied::Wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Tokens {
        Tokens::new(vec![Secret::new("one"), Secret::new("two")])
    }

    #[test]
    fn right_tokens_are_different_principals() {
        let check = |field: &'static str| tokens().check([field].into_iter());
        assert_eq!(check("Bearer one"), Ok(Principal::token(0)));
        assert_eq!(check("bearer  two "), Ok(Principal::token(1)));
    }

    #[test]
    fn everything_else_is_denied() {
        assert_eq!(tokens().check([].into_iter()), Err(Denied::Missing));
        assert_eq!(tokens().check(["Bearer one", "Bearer one"].into_iter()), Err(Denied::Several));
        for field in
            ["", "Bearer", "Bearer ", "Basic one", "one", "Bearer on", "Bearer onee", "Bearer one two"]
        {
            assert_eq!(tokens().check([field].into_iter()), Err(Denied::Wrong), "{field:?}");
        }
    }

    #[test]
    fn without_tokens_everybody_is_let_in() {
        assert_eq!(Tokens::default().check(["Basic x", "y"].into_iter()), Ok(Principal::ANONYMOUS));
    }
}
