//! JSON as a careless server reads it: it ignores the case of member names, and uses the last
//! duplicate.

use serde_json::{Deserializer, value::RawValue};

/// Returns the next value of a text, and the rest after it.
fn value(text: &str) -> Option<(&str, &str)> {
    let mut values = Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next()?.ok()?;
    Some((value.get(), text[values.byte_offset()..].trim_start()))
}

/// Returns the members of an object, in their order: names, and raw values.
fn members(object: &str) -> Option<Vec<(String, &str)>> {
    // A string with half of a surrogate pair is not text at all.
    serde_json::from_str::<serde_json::Value>(object).ok()?;
    let mut rest = object.trim().strip_prefix('{')?.trim_start();
    let mut members = Vec::new();
    while !rest.starts_with('}') {
        let (name, behind) = value(rest)?;
        let (found, behind) = value(behind.strip_prefix(':')?)?;
        members.push((serde_json::from_str(name).ok()?, found));
        rest = behind.strip_prefix(',').unwrap_or(behind).trim_start();
    }
    Some(members)
}

fn fold(name: &str) -> String {
    name.split('\0').next().unwrap_or_default().to_lowercase().replace('ſ', "s")
}

/// Returns a value inside an object, raw.
pub fn find(text: &str, path: &[&str]) -> Option<String> {
    let Some((name, rest)) = path.split_first() else { return Some(text.to_owned()) };
    let members = members(text)?;
    let (_, value) = members.into_iter().rfind(|(key, _)| fold(key) == fold(name))?;
    find(value, rest)
}

/// Returns a text inside an object, up to the character U+0000.
pub fn text(object: &str, path: &[&str]) -> Option<String> {
    let text: String = serde_json::from_str(&find(object, path)?).ok()?;
    text.split('\0').next().map(str::to_owned)
}

#[test]
fn the_lenient_parser_takes_the_last_name_in_any_case() {
    let text = r#" {"id": 1 , "params":{"a":[1,{}]},"PARAM\u017f" : {"TaskId":"x\u0000y","ta\u017fkid\u0000z":"w"},"I\u0064":2} "#;
    assert_eq!(find(text, &["id"]).as_deref(), Some("2"));
    assert_eq!(self::text(text, &["params", "taskId"]).as_deref(), Some("w"));
    assert_eq!(find(r#"{"id":1,"x":"\ud800"}"#, &["id"]), None);
}
