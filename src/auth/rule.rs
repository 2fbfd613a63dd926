//! Token rules as users write them: the token, its role, and the label of its principal.
//!
//! ```text
//! given  = [role] ["@" who] ":" token / token
//! role   = "client" / "register" ["[" name *("," name) "]"]
//! who    = 1*64 characters of a name
//! name   = 1*64 characters of a name or "*"
//! token  = "sha256:" 64HEXDIG / 1*VCHAR
//! ```
//!
//! A token without a role has both roles. Text that has none of these forms is a token as a whole,
//! colons included. Text that is nearly one of the forms is refused: taken as a token, it would
//! lock its owner out without a message. A token that itself looks like one of the forms can be
//! given by its digest.

use std::fmt;

use crate::{secret::Digest, util};

/// Maximum length of a label, and of a name with its `*`: that of a server's name.
const LONGEST: usize = crate::limits::RULE_NAME;

/// The server names that a token may claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// All names.
    Any,
    /// The names that match one of these patterns. `*` stands for any run of characters, including
    /// none.
    Like(Vec<String>),
}

impl Names {
    /// Whether a server may have this name. The whole name is compared, and case matters.
    pub fn allow(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Like(patterns) => patterns.iter().any(|pattern| is_like(name, pattern)),
        }
    }

    /// Returns the union of both sets of names.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Like(mut ours), Self::Like(theirs)) => {
                ours.extend(theirs);
                Self::Like(ours)
            }
            _ => Self::Any,
        }
    }
}

/// Whether a name matches a pattern. The first part must be at the start, the last at the end, and
/// the others between them, each matched as early as possible.
fn is_like(name: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(position) = left.find(part) else { return false };
        left = left.get(position + part.len()..).unwrap_or_default();
    }
    left.ends_with(last)
}

/// A parsed token rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Whether the token grants access to the clients' routes.
    pub client: bool,
    /// The server names that the token may register; `None` if it may not register servers.
    pub register: Option<Names>,
    /// The label. Tokens with the same label belong to one principal.
    pub who: Option<String>,
    /// The digest of the token.
    pub digest: Digest,
}

/// An error in a token rule. Its message never repeats any part of the rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mistyped {
    /// The rule is empty, or has other characters than visible ASCII, which an HTTP field could not
    /// carry as a token.
    Characters,
    /// The text before the colon is nearly a role, or there are two roles.
    Role,
    /// The names in brackets are malformed.
    Names,
    /// The label after `@` is malformed.
    Who,
    /// The digest is malformed, or is not a SHA-256 digest.
    Digest,
    /// The text after the colon is empty, or there is no colon.
    NoToken,
}

impl fmt::Display for Mistyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Characters => "a token must consist of visible characters without spaces",
            Self::Role => {
                "unknown role; use client:TOKEN, register:TOKEN or register[NAME,…]:TOKEN"
            }
            Self::Names => {
                "names in register[NAME,…]:TOKEN may contain A-Z a-z 0-9 _ . - and *, at most 64 characters each, no spaces"
            }
            Self::Who => "the label after @ must be 1 to 64 characters of A-Z a-z 0-9 _ . -",
            Self::Digest => "a digest must be sha256: followed by 64 hexadecimal digits",
            Self::NoToken => "missing token: a role or label must be followed by a colon and the token",
        })
    }
}

impl Rule {
    /// Parses a token rule from the command line, the environment or a line of a file.
    ///
    /// # Errors
    /// [`Mistyped`], with the reason.
    pub fn read(given: &str) -> Result<Self, Mistyped> {
        if given.is_empty() || !given.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Mistyped::Characters);
        }
        let head = given.split([':', '[', '@']).next().unwrap_or_default();
        let rest = given.get(head.len()..).unwrap_or_default();
        let (client, register, rest) = match head {
            "client" if rest.starts_with([':', '@']) => (true, None, rest),
            "register" if rest.starts_with([':', '@']) => (false, Some(Names::Any), rest),
            "register" if rest.starts_with('[') => {
                let (names, rest) = names(rest)?;
                (false, Some(names), rest)
            }
            "" if rest.starts_with('@') && rest.contains(':') => (true, Some(Names::Any), rest),
            _ => return Self::plain(given, head, rest),
        };
        let (who, rest) = who(rest)?;
        let digest = token(rest.strip_prefix(':').ok_or(Mistyped::NoToken)?)?;
        Ok(Self { client, register, who, digest })
    }

    /// Parses a token without a role or label.
    fn plain(given: &str, head: &str, rest: &str) -> Result<Self, Mistyped> {
        let is_slip = is_nearly(head, "client") || is_nearly(head, "register");
        if is_slip && (rest.contains(':') || rest.starts_with('[')) {
            return Err(Mistyped::Role);
        }
        Ok(Self { client: true, register: Some(Names::Any), who: None, digest: token(given)? })
    }
}

/// Parses `[a,b*]` at the start of `rest`. Returns the names and the remaining text.
fn names(rest: &str) -> Result<(Names, &str), Mistyped> {
    let inner = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (inner, rest) = inner.ok_or(Mistyped::Names)?;
    let is_good = |name: &&str| {
        (1..=LONGEST).contains(&name.len())
            && name.bytes().all(|byte| byte == b'*' || util::name::is_name_byte(byte))
    };
    let all: Vec<&str> = inner.split(',').collect();
    if !all.iter().all(is_good) {
        return Err(Mistyped::Names);
    }
    Ok((Names::Like(all.into_iter().map(str::to_owned).collect()), rest))
}

/// Parses `@who` at the start of `rest`, if it is there. Returns the label and the remaining text.
fn who(rest: &str) -> Result<(Option<String>, &str), Mistyped> {
    let Some(labelled) = rest.strip_prefix('@') else { return Ok((None, rest)) };
    let end = labelled.find(':').ok_or(Mistyped::NoToken)?;
    let (label, rest) = labelled.split_at(end);
    if !util::name::is_name(label, LONGEST) {
        return Err(Mistyped::Who);
    }
    Ok((Some(label.to_owned()), rest))
}

/// Returns the digest of a token, which is given as it is or as `sha256:HEX`.
fn token(given: &str) -> Result<Digest, Mistyped> {
    if given.is_empty() {
        return Err(Mistyped::NoToken);
    }
    let Some((head, rest)) = given.split_once([':', '=']) else { return Ok(Digest::of(given.as_bytes())) };
    match head {
        "sha256" if given.as_bytes().get(head.len()) == Some(&b':') => {
            Digest::from_hex(rest).ok_or(Mistyped::Digest)
        }
        _ if is_nearly(head, "sha256") || is_nearly(head, "sha-256") => Err(Mistyped::Digest),
        "sha1" | "sha224" | "sha384" | "sha512" | "md5" => Err(Mistyped::Digest),
        // A second role would silently become part of the token.
        "client" | "register" => Err(Mistyped::Role),
        _ => Ok(Digest::of(given.as_bytes())),
    }
}

/// Whether `typed` is `word` except for case and at most one error: one letter too many, missing or
/// wrong, or two letters swapped.
fn is_nearly(typed: &str, word: &str) -> bool {
    let (typed, word) = (typed.to_ascii_lowercase(), word.as_bytes());
    let typed = typed.as_bytes();
    let same = typed.iter().zip(word).take_while(|(one, two)| one == two).count();
    let (typed, word) = (typed.get(same..).unwrap_or_default(), word.get(same..).unwrap_or_default());
    match (typed, word) {
        ([_, typed @ ..], word) if typed == word => true,
        (typed, [_, word @ ..]) if typed == word => true,
        ([_, typed @ ..], [_, word @ ..]) if typed == word => true,
        ([a, b, typed @ ..], [c, d, word @ ..]) => (a, b) == (d, c) && typed == word,
        (typed, word) => typed.is_empty() && word.is_empty(),
    }
}

/// Splits a comma-separated list of token rules. Commas inside the brackets of `register[a,b]` do
/// not separate.
pub fn split(list: &str) -> Vec<&str> {
    let (mut out, mut start, mut inside) = (Vec::new(), 0, false);
    for (position, byte) in list.bytes().enumerate() {
        let so_far = list.get(start..position).unwrap_or_default().trim_start();
        match byte {
            b'[' if so_far == "register" => inside = true,
            b']' => inside = false,
            b',' if !inside => {
                out.push(so_far);
                start = position + 1;
            }
            _ => {}
        }
    }
    out.push(list.get(start..).unwrap_or_default());
    out.into_iter().map(str::trim).filter(|given| !given.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    /// Formats a parsed rule as roles, names and label. Asserts that its digest is that of `token`.
    fn read(given: &str, token: &str) -> String {
        let rule = Rule::read(given).unwrap_or_else(|why| panic!("{given}: {why:?}"));
        assert!(rule.digest.matches(&Digest::of(token.as_bytes())), "{given}: not the token {token}");
        let register = match rule.register {
            None => "-".into(),
            Some(Names::Any) => "any".into(),
            Some(Names::Like(names)) => names.join(" "),
        };
        format!("{} {register} {}", if rule.client { "client" } else { "-" }, rule.who.unwrap_or_default())
    }

    #[test]
    fn rules() {
        for (given, token, expected) in [
            ("abc", "abc", "client any "),
            ("client:abc", "abc", "client - "),
            ("client:a:b@c[d]", "a:b@c[d]", "client - "),
            ("register:abc", "abc", "- any "),
            ("register[file]:abc", "abc", "- file "),
            ("register[file,cam-*,*]:abc", "abc", "- file cam-* * "),
            ("client@alice:abc", "abc", "client - alice"),
            ("register@box7:abc", "abc", "- any box7"),
            ("register[file]@box7:abc", "abc", "- file box7"),
            ("@ops:abc", "abc", "client any ops"),
            ("@ops:a@b:c", "a@b:c", "client any ops"),
            (&format!("sha256:{ABC}"), "abc", "client any "),
            (&format!("client:sha256:{ABC}"), "abc", "client - "),
            (&format!("register[a]@b:sha256:{}", ABC.to_uppercase()), "abc", "- a b"),
        ] {
            assert_eq!(read(given, token), expected, "{given}");
        }
    }

    #[test]
    fn entries_without_rule_syntax_are_plain_tokens() {
        for given in [
            "client",
            "register",
            "sha256",
            "@",
            "@ops",
            "a:b",
            ":",
            ":a",
            "user:password",
            "a@b:c",
            "[x]:y",
            "admin:x",
            "a=b",
            "--port=3",
            "AB+/c==",
            "clientele:x",
            "cl:x",
            "eyJh.bGci.Oi",
            "register.a:b",
        ] {
            assert_eq!(read(given, given), "client any ", "{given}");
        }
    }

    #[test]
    fn mistyped_rules_are_rejected() {
        for (expected, all) in [
            (
                Mistyped::Role,
                &[
                    "clients:x",
                    "Client:x",
                    "CLIENT:x",
                    "clinet:x",
                    "cient:x",
                    "clint:x",
                    "client[a]:x",
                    "registr:x",
                    "Register[a]:x",
                    "registers@a:x",
                    "rgeister[a]",
                    "client:client:x",
                    "client:register:x",
                    "register:client:x",
                    "clients@a:x",
                ][..],
            ),
            (
                Mistyped::Names,
                &["register[]:x", "register[a,]:x", "register[a/b]:x", "register[a:x", "register[a[b]]:x"],
            ),
            (Mistyped::Who, &["client@:x", "@:x", "@a/b:x", "register[a]@b@c:x"]),
            (
                Mistyped::Digest,
                &[
                    "sha256:zz",
                    "sha256:",
                    "SHA256:zz",
                    "sha-256:zz",
                    "sha265:zz",
                    "sha256=zz",
                    "sha512:zz",
                    "client:sha256:zz",
                    "@a:sha256:zz",
                ],
            ),
            (
                Mistyped::NoToken,
                &[
                    "client:",
                    "register:",
                    "register[a]:",
                    "register[a]",
                    "client@a:",
                    "client@a",
                    "register[a]x:y",
                ],
            ),
            (Mistyped::Characters, &["", "a b", "register[bad name]:x", "ü", "a\u{7f}", "client:a b"]),
        ] {
            for given in all {
                let why = Rule::read(given).map(|rule| format!("{rule:?}")).unwrap_err();
                assert_eq!(why, expected, "{given}");
            }
        }
        let long = "n".repeat(65);
        assert_eq!(Rule::read(&format!("@{long}:x")).unwrap_err(), Mistyped::Who);
        assert_eq!(Rule::read(&format!("register[{long}]:x")).unwrap_err(), Mistyped::Names);
    }

    #[test]
    fn patterns() {
        for (pattern, good, bad) in [
            ("file", &["file"][..], &["", "fil", "files", "afile", "File"][..]),
            ("cam-*", &["cam-", "cam-1", "cam-a-b"], &["cam", "xcam-1"]),
            ("*-cam", &["-cam", "a-cam", "a-cam-cam"], &["cam", "a-cam-b"]),
            ("a*b*c", &["abc", "axbxc", "abbcc", "abcbc"], &["ab", "acb", "abcd", "xabc"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("*", &["", "x"], &[]),
            ("**", &["", "x"], &[]),
            ("*b*", &["b", "abc"], &["", "ac"]),
        ] {
            let names = Names::Like(vec![pattern.into()]);
            for name in good {
                assert!(names.allow(name), "{pattern} {name}");
            }
            for name in bad {
                assert!(!names.allow(name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn lists() {
        for (list, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("a, b,c ", &["a", "b", "c"]),
            ("a,register[x,y]@z:t, b", &["a", "register[x,y]@z:t", "b"]),
            ("a[b,c]", &["a[b", "c]"]),
            (" register[x,y:t", &["register[x,y:t"]),
            ("ü,é", &["ü", "é"]),
        ] {
            assert_eq!(split(list), expected, "{list:?}");
        }
    }

    #[test]
    fn rule_errors_do_not_echo_the_token() {
        for given in [
            "clients:canary",
            "register[canary!]:x",
            "sha256:canary",
            "@can/ary:canary",
            "client:client:canary",
        ] {
            let why = Rule::read(given).unwrap_err().to_string();
            assert!(!why.contains("canary") && !why.contains('!'), "{why}");
        }
    }
}
