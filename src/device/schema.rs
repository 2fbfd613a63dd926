//! Builders for the JSON schemas of the reports.

use serde_json::{Map, Value, json};

/// Returns the schema of a value of type `kind` with a description.
pub fn field(kind: &str, description: &str) -> Value {
    json!({ "type": kind, "description": description })
}

/// Same as [`field`], but the value may be `null` if the machine does not provide it.
pub fn maybe(kind: &str, description: &str) -> Value {
    json!({ "type": [kind, "null"], "description": description })
}

/// Returns the schema of a list.
pub fn list(items: Value, description: &str) -> Value {
    json!({ "type": "array", "items": items, "description": description })
}

/// Returns the schema of an object whose fields are all required.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let required = json!(required);
    let properties: Map<String, Value> =
        fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}
