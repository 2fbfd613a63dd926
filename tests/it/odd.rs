//! Servers that do not keep to the letter of JSON-RPC: each oddity costs one answer at most, and no time.

use serde_json::{Value, json};

use crate::{session::Session, world::Gateway};

#[test]
fn ids_and_progress_tokens_in_another_form_are_recognised() {
    let gateway = Gateway::start(&[]);
    for (place, form) in ["\"ID\"", "ID.0", "IDe0"].into_iter().enumerate() {
        for sessions in ["shared", "isolated"] {
            let name = format!("{sessions}{place}");
            let form = format!("'{form}'");
            let server = ["--id-form", &form, "--session"];
            let _edge = gateway.edge_with(&name, &server, &["--sessions", sessions]);
            for path in ["/mcp", &format!("/servers/{name}/mcp")] {
                let session = Session::open(gateway.address, path);
                let tool = if path == "/mcp" { format!("{name}_progress") } else { "progress".into() };
                let params = json!({"name": tool, "arguments": {"steps": 2}, "_meta": {"progressToken": 77}});
                let asked = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params});
                let messages = session.stream(&asked.to_string()).all();
                let tokens: Vec<&Value> =
                    messages.iter().map(|one| &one["params"]["progressToken"]).collect();
                assert_eq!(tokens, [&json!(77), &json!(77), &Value::Null], "{form} {name} {path}");
                let answer = &messages[2];
                assert_eq!(
                    (&answer["id"], &answer["result"]["content"][0]["text"]),
                    (&json!(5), &json!("done"))
                );
            }
        }
    }
}
