//! The pieces of JSON schema that the reports are described with.

use serde_json::{Map, Value, json};

/// The schema of a value of type `kind`, with what it means.
pub fn field(kind: &str, description: &str) -> Value {
    json!({ "type": kind, "description": description })
}

/// As [`field`]; `null` when the box does not tell.
pub fn maybe(kind: &str, description: &str) -> Value {
    json!({ "type": [kind, "null"], "description": description })
}

/// The schema of a list.
pub fn list(items: Value, description: &str) -> Value {
    json!({ "type": "array", "items": items, "description": description })
}

/// The schema of an object whose fields are all present.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let required = json!(required);
    let properties: Map<String, Value> =
        fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
