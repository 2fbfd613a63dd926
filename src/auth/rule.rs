//! How a token is given: the token, what it is for, and whose it is.
//!
//! ```text
//! given  = [role] ["@" who] ":" token / token
//! role   = "client" / "register" ["[" name *("," name) "]"]
//! who    = 1*64 characters of a name
//! name   = 1*64 characters of a name or "*"
//! token  = "sha256:" 64HEXDIG / 1*VCHAR
//! ```
//!
//! Without a role a token is for both. A text that is none of this is a token as a whole, colons and all; only what
//! looks like a slip in one of the forms is refused, since as a token it would lock its owner out without a word.
//! A token that looks so itself can be given by its digest.

use std::fmt;

use crate::{secret::Digest, util};

/// Characters of a label, and of a name with its `*`: those of a server's name.
const LONGEST: usize = crate::limits::RULE_NAME;

/// The server names that a token may claim.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// All.
    Any,
    /// Those that match one of these: `*` stands for any run of characters, also none.
    Like(Vec<String>),
}

impl Names {
    /// Whether a server may have this name. Names are compared whole, and letters as they are written.
    pub fn allow(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Like(patterns) => patterns.iter().any(|pattern| is_like(name, pattern)),
        }
    }

    /// Both together.
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

/// The first part stands at the start, the last at the end, the others between them, each as early as it can.
fn is_like(name: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(place) = left.find(part) else { return false };
        left = left.get(place + part.len()..).unwrap_or_default();
    }
    left.ends_with(last)
}

/// One token, as it was given.
#[derive(Clone, Debug)]
pub struct Rule {
    /// It is let in at the clients' routes.
    pub client: bool,
    /// It may register servers of these names.
    pub register: Option<Names>,
    /// Tokens with the same label are one principal.
    pub who: Option<String>,
    /// What is known of the token itself.
    pub digest: Digest,
}

/// What is wrong with a token. It never repeats any of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mistyped {
    /// It is empty, or has other characters than a field of HTTP can carry as a token.
    Characters,
    /// What stands in front of the colon is nearly a role.
    Role,
    /// The names in brackets.
    Names,
    /// The label behind `@`.
    Who,
    /// The digest.
    Digest,
    /// Nothing follows the colon, or there is none.
    NoToken,
}

impl fmt::Display for Mistyped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Characters => "a token is a text of visible characters without spaces",
            Self::Role => {
                "this looks like a role and is none; the forms are client:TOKEN, register:TOKEN and register[NAME,…]:TOKEN"
            }
            Self::Names => {
                "register[NAME,…]:TOKEN takes names of A-Z a-z 0-9 _ . - and *, at most 64 characters each, without spaces"
            }
            Self::Who => "the label behind @ has 1 to 64 characters of A-Z a-z 0-9 _ . -",
            Self::Digest => "a digest is sha256: with 64 hexadecimal digits",
            Self::NoToken => "the token is missing: a role or a label is followed by a colon and the token",
        })
    }
}

impl Rule {
    /// Reads a token as it is given on the command line, in the environment or in a line of a file.
    ///
    /// # Errors
    /// [`Mistyped`], with what is wrong.
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

    /// A token without anything in front of it.
    fn plain(given: &str, head: &str, rest: &str) -> Result<Self, Mistyped> {
        let is_slip = is_nearly(head, "client") || is_nearly(head, "register");
        if is_slip && (rest.contains(':') || rest.starts_with('[')) {
            return Err(Mistyped::Role);
        }
        Ok(Self { client: true, register: Some(Names::Any), who: None, digest: token(given)? })
    }
}

/// `[a,b*]` at the start of `rest`, and what follows.
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

/// `@who` at the start of `rest`, if it is there, and what follows.
fn who(rest: &str) -> Result<(Option<String>, &str), Mistyped> {
    let Some(labelled) = rest.strip_prefix('@') else { return Ok((None, rest)) };
    let end = labelled.find(':').ok_or(Mistyped::NoToken)?;
    let (label, rest) = labelled.split_at(end);
    if !util::name::is_name(label, LONGEST) {
        return Err(Mistyped::Who);
    }
    Ok((Some(label.to_owned()), rest))
}

/// A token by itself, or by its digest.
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
        // The second of two roles would silently become a part of the token.
        "client" | "register" => Err(Mistyped::Role),
        _ => Ok(Digest::of(given.as_bytes())),
    }
}

/// Whether `typed` is `word` but for the case, or but for one letter too many, too few or wrong, or two swapped.
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

/// The tokens of a list with commas between them; those inside the brackets of `register[a,b]` do not count.
pub fn split(list: &str) -> Vec<&str> {
    let (mut out, mut start, mut inside) = (Vec::new(), 0, false);
    for (place, byte) in list.bytes().enumerate() {
        let so_far = list.get(start..place).unwrap_or_default().trim_start();
        match byte {
            b'[' if so_far == "register" => inside = true,
            b']' => inside = false,
            b',' if !inside => {
                out.push(so_far);
                start = place + 1;
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

    /// The rule in short: roles, names, label; checked to be about `token`.
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
    fn what_is_no_rule_is_a_token() {
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
    fn slips() {
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
    fn slips_do_not_repeat_what_was_given() {
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
