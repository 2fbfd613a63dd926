//! The envelope of a stateless request: the protocol version, the client's capabilities, and the
//! log level, all in `params._meta` (MCP 2026-07-28, basic/index).

use std::borrow::Cow;

use super::{
    edits::{filtered, one_line},
    meta,
    params::Params,
    status::Rejection,
};
use crate::{
    jsonrpc::{Message, Span, find, object, unquote},
    mcp::log_level::Level,
};

/// The envelope of a request. The version may still be one that is not supported.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Envelope<'m> {
    /// The protocol version.
    pub version: Cow<'m, str>,
    /// The client's capabilities.
    pub capabilities: Capabilities<'m>,
    /// The client's name and version, raw JSON of any type; for display only.
    pub info: Option<&'m str>,
    /// The minimum level of the log messages that the request wants; `None`: it wants none.
    pub level: Option<Level>,
}

impl<'m> Envelope<'m> {
    /// Reads the envelope of a request.
    ///
    /// # Errors
    /// The first defect.
    pub fn read(message: &Message<'m>, params: &Params) -> Result<Self, Rejection> {
        let text = message.text();
        let keys = &params.keys;
        let needed = |span: &Option<Span>, key| match span {
            Some(span) => Ok(&text[span.clone()]),
            None => Err(Rejection::MetaMissing(key)),
        };
        if params.meta.as_ref().is_some_and(|meta| !text[meta.clone()].starts_with('{')) {
            return Err(Rejection::Meta);
        }
        let version = needed(&keys.version, meta::VERSION)?;
        let capabilities = needed(&keys.capabilities, meta::CAPABILITIES)?;
        let level = match keys.level.clone() {
            None => None,
            Some(span) => {
                let level = unquote(&text[span]).and_then(|name| Level::named(&name));
                Some(level.ok_or(Rejection::Level)?)
            }
        };
        Ok(Self {
            version: unquote(version).ok_or(Rejection::MetaType(meta::VERSION))?,
            capabilities: Capabilities::read(capabilities).ok_or(Rejection::MetaType(meta::CAPABILITIES))?,
            info: keys.info.clone().map(|span| &text[span]),
            level,
        })
    }
}

/// The capabilities of a client, raw, and what they allow a server to ask for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Capabilities<'m> {
    /// The object as the client wrote it.
    pub raw: &'m str,
    /// What a server may ask for.
    pub allowed: Allowed,
}

/// What a server may ask a client for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Allowed {
    /// Elicitation with a form.
    pub form: bool,
    /// Elicitation at a URL.
    pub url: bool,
    /// Sampling.
    pub sampling: bool,
    /// Sampling with tools.
    pub sampling_tools: bool,
    /// Sampling with the context of other servers.
    pub sampling_context: bool,
    /// Roots.
    pub roots: bool,
}

impl Allowed {
    /// Whether a server may ask for anything.
    pub fn any(self) -> bool {
        self.form || self.url || self.sampling || self.roots
    }

    /// Returns a number that only equal ones have.
    pub fn number(self) -> u128 {
        let Self { form, url, sampling, sampling_tools, sampling_context, roots } = self;
        let flags = [form, url, sampling, sampling_tools, sampling_context, roots];
        flags.into_iter().fold(0, |number, flag| 2 * number + u128::from(flag))
    }

    /// Returns them as the capabilities of a client (raw JSON).
    pub fn capabilities(self) -> String {
        let object = |name: &str, members: &[(&str, bool)]| {
            let members: Vec<String> =
                members.iter().filter(|(_, is)| *is).map(|(name, _)| format!("\"{name}\":{{}}")).collect();
            format!("\"{name}\":{{{}}}", members.join(","))
        };
        let mut all = Vec::new();
        if self.form || self.url {
            all.push(object("elicitation", &[("form", self.form), ("url", self.url)]));
        }
        if self.sampling {
            let members = [("tools", self.sampling_tools), ("context", self.sampling_context)];
            all.push(object("sampling", &members));
        }
        if self.roots {
            all.push(object("roots", &[]));
        }
        format!("{{{}}}", all.join(","))
    }
}

impl<'m> Capabilities<'m> {
    /// Reads the capabilities. `None` if they are no object, or if readers could differ about them
    /// because a member occurs twice.
    pub fn read(raw: &'m str) -> Option<Self> {
        let whole = object(raw)?;
        // An object declares the capability; anything else does not.
        let declares = |path: &[&str]| {
            let span = find(raw, whole.clone(), path).ok()?;
            Some(span.is_some_and(|span| raw[span].starts_with('{')))
        };
        let elicitation = declares(&["elicitation"])?;
        let url = declares(&["elicitation", "url"])?;
        let allowed = Allowed {
            // Without members it means forms, as before there were URLs.
            form: declares(&["elicitation", "form"])? || (elicitation && !url),
            url,
            sampling: declares(&["sampling"])?,
            sampling_tools: declares(&["sampling", "tools"])?,
            sampling_context: declares(&["sampling", "context"])?,
            roots: declares(&["roots"])?,
        };
        Some(Self { raw, allowed })
    }

    /// Returns the capabilities with only the extensions for which `keeps` is true. `None` if that
    /// changes nothing.
    pub fn with_extensions(&self, keeps: impl Fn(&str) -> bool) -> Option<String> {
        // Most clients declare none. An escape may hide the word.
        if !self.raw.contains("extensions") && !self.raw.contains("\\u") {
            return None;
        }
        let mut is_cut = false;
        let whole = filtered(self.raw, object(self.raw)?, |name, value| {
            let raw = one_line(&self.raw[value.clone()]).into_owned();
            if name != "extensions" {
                return Some(raw);
            }
            let kept = filtered(self.raw, value, |id, value| {
                is_cut |= !keeps(id);
                keeps(id).then(|| one_line(&self.raw[value]).into_owned())
            });
            (kept != "{}").then_some(kept)
        });
        is_cut.then_some(whole)
    }

    /// Whether an extension is declared.
    pub fn has_extension(&self, id: &str) -> bool {
        matches!(find(self.raw, 0..self.raw.len(), &["extensions", id]), Ok(Some(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(meta: &str) -> Result<(String, Allowed, Option<String>, Option<Level>), Rejection> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m","params":{{"_meta":{meta}}}}}"#);
        let message = Message::read(&text).unwrap();
        let envelope = Envelope::read(&message, &Params::read(&message).unwrap())?;
        let info = envelope.info.map(str::to_owned);
        Ok((envelope.version.into_owned(), envelope.capabilities.allowed, info, envelope.level))
    }

    #[test]
    fn envelopes_are_checked() {
        use Rejection::{Meta, MetaMissing, MetaType};
        let key = |key: &str, value: &str| format!("\"{key}\":{value}");
        let version = || key(meta::VERSION, "\"2026-07-28\"");
        let capabilities = || key(meta::CAPABILITIES, "{}");
        let none = Allowed::default();
        let good = |info: Option<&str>, level| {
            Ok(("2026-07-28".to_owned(), none, info.map(str::to_owned), Level::named(level)))
        };
        let with = |more: String| format!("{{{},{more},{}}}", version(), capabilities());
        for (meta, expected) in [
            (format!("{{{},{}}}", version(), capabilities()), good(None, "")),
            (format!("{{{},{}}}", capabilities(), version()), good(None, "")),
            (with(key(meta::CLIENT, r#"{"name":"c"}"#)), good(Some(r#"{"name":"c"}"#), "")),
            (with(key(meta::CLIENT, "7")), good(Some("7"), "")),
            (with(key(meta::LEVEL, "\"notice\"")), good(None, "notice")),
            (with(key("progressToken", "1")), good(None, "")),
            (with(key(meta::LEVEL, "\"loud\"")), Err(Rejection::Level)),
            (with(key(meta::LEVEL, "null")), Err(Rejection::Level)),
            (with(key(meta::LEVEL, "1")), Err(Rejection::Level)),
            ("{}".into(), Err(MetaMissing(meta::VERSION))),
            ("null".into(), Err(Meta)),
            ("[]".into(), Err(Meta)),
            (format!("{{{}}}", capabilities()), Err(MetaMissing(meta::VERSION))),
            (format!("{{{}}}", version()), Err(MetaMissing(meta::CAPABILITIES))),
            (format!("{{{},{}}}", key(meta::VERSION, "1"), capabilities()), Err(MetaType(meta::VERSION))),
            (format!("{{{},{}}}", key(meta::VERSION, "null"), capabilities()), Err(MetaType(meta::VERSION))),
            (
                format!("{{{},{}}}", version(), key(meta::CAPABILITIES, "[]")),
                Err(MetaType(meta::CAPABILITIES)),
            ),
            (
                format!("{{{},{}}}", version(), key(meta::CAPABILITIES, "\"x\"")),
                Err(MetaType(meta::CAPABILITIES)),
            ),
            (
                format!("{{{},{}}}", key(meta::VERSION, "\"v999.0.0\""), capabilities()),
                Ok(("v999.0.0".into(), none, None, None)),
            ),
        ] {
            assert_eq!(read(&meta), expected, "{meta}");
        }
    }

    #[test]
    fn a_request_without_params_has_no_envelope() {
        for params in ["", ",\"params\":null", ",\"params\":{}", ",\"params\":[1]"] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"m"{params}}}"#);
            let message = Message::read(&text).unwrap();
            let read = Envelope::read(&message, &Params::read(&message).unwrap());
            assert_eq!(read, Err(Rejection::MetaMissing(meta::VERSION)), "{params}");
        }
    }

    #[test]
    fn capabilities_are_read() {
        let allowed = |raw: &str| Capabilities::read(raw).map(|capabilities| capabilities.allowed);
        let none = Allowed::default();
        let form = Allowed { form: true, ..none };
        for (raw, expected) in [
            ("{}", Some(none)),
            (r#"{"elicitation":{}}"#, Some(form)),
            (r#"{"elicitation":{"form":{}}}"#, Some(form)),
            (r#"{"elicitation":{"url":{}}}"#, Some(Allowed { url: true, ..none })),
            (r#"{"elicitation":{"url":{},"form":{}}}"#, Some(Allowed { url: true, ..form })),
            (r#"{"elicitation":{"other":{}}}"#, Some(form)),
            (r#"{"elicitation":null,"sampling":true,"roots":[]}"#, Some(none)),
            (r#"{"sampling":{}}"#, Some(Allowed { sampling: true, ..none })),
            (
                r#"{"sampling":{"tools":{},"context":{}}}"#,
                Some(Allowed { sampling: true, sampling_tools: true, sampling_context: true, ..none }),
            ),
            (r#"{"roots":{"listChanged":true}}"#, Some(Allowed { roots: true, ..none })),
            (r#"{"elicitation":{},"elicitation":{}}"#, None),
            (r#"{"sampling":{"tools":{},"tools":{}}}"#, None),
            ("[]", None),
            ("null", None),
            ("\"x\"", None),
        ] {
            assert_eq!(allowed(raw), expected, "{raw}");
        }
        assert!(!none.any() && form.any());
        let raw = r#"{"extensions":{"a/b":{},"a/c":true}}"#;
        let capabilities = Capabilities::read(raw).unwrap();
        assert_eq!(["a/b", "a/c", "a/d"].map(|id| capabilities.has_extension(id)), [true, true, false]);
    }

    #[test]
    fn extensions_are_cut() {
        let cut = |raw: &str| Capabilities::read(raw).unwrap().with_extensions(|id| id == "a/b");
        for (raw, expected) in [
            ("{}", None),
            (r#"{"roots":{}}"#, None),
            (r#"{"extensions":{}}"#, None),
            (r#"{"extensions":{"a/b":{}}}"#, None),
            (r#"{"x":"extensions"}"#, None),
            (r#"{"roots":{},"extensions":{"c/d":{}}}"#, Some(r#"{"roots":{}}"#)),
            (
                r#"{"extensions":{"c/d":{},"a/b":{ "x":1}},"roots":{}}"#,
                Some(r#"{"extensions":{"a/b":{ "x":1}},"roots":{}}"#),
            ),
            (r#"{"\u0065xtensions":{"c/d":{}}}"#, Some("{}")),
        ] {
            assert_eq!(cut(raw).as_deref(), expected, "{raw}");
        }
    }

    #[test]
    fn what_may_be_asked_is_read_as_it_was_written() {
        let mut numbers = std::collections::BTreeSet::new();
        for bits in 0..64u32 {
            let flag = |bit: u32| bits >> bit & 1 == 1;
            let allowed = Allowed {
                form: flag(0),
                url: flag(1),
                sampling: flag(2),
                sampling_tools: flag(2) && flag(3),
                sampling_context: flag(2) && flag(4),
                roots: flag(5),
            };
            let written = allowed.capabilities();
            assert_eq!(Capabilities::read(&written).map(|read| read.allowed), Some(allowed), "{written}");
            numbers.insert(allowed.number());
        }
        assert_eq!((numbers.len(), Allowed::default().capabilities()), (40, "{}".to_owned()));
    }
}
