//! The built-in device server: literal request lines and responses, on simulated hosts that are a
//! directory of files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mcpport::device::machine::{Kernel, Machine, Space};
use mcpport::device::netlink::Address;
use mcpport::device::serve;
use mcpport::device::server::DeviceServer;
use mcpport::limits::DeviceLimits;
use serde_json::{Value, json};

/// A simulated host made of files, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mcpport-device-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("the folder for temporary files can be written");
        Self(path)
    }

    fn with(self, path: &str, text: impl AsRef<[u8]>) -> Self {
        let file = self.0.join(path);
        fs::create_dir_all(file.parent().expect("it lies in the folder")).expect("a folder can be made");
        fs::write(file, text).expect("a file can be written");
        self
    }

    /// A host with usual files.
    fn usual() -> Self {
        let stat = |pid: u32, name: &str, ticks: u32| {
            format!("{pid} ({name}) S 1 7 7 0 -1 4194560 1 2 3 4 {ticks} 0 9 9 20 0 1 0 4711 1000 200 1\n")
        };
        let status =
            |uid: u32, kib: u64| format!("Name:\tx\nUid:\t0\t{uid}\t0\t0\nVmRSS:\t{kib} kB\nThreads:\t1\n");
        Self::new()
            .with("proc/sys/kernel/hostname", "hall-camera\n")
            .with("proc/sys/kernel/osrelease", "6.6.31+rpt-rpi-v8\n")
            .with("proc/uptime", "350735.47 234388.90\n")
            .with("proc/loadavg", "0.20 0.18 0.12 1/80 11206\n")
            .with(
                "proc/meminfo",
                "MemTotal: 3884256 kB\nMemFree: 1 kB\nMemAvailable: 2000 kB\nSwapTotal: 100 kB\nSwapFree: 90 kB\n",
            )
            .with("sys/devices/system/cpu/online", "0-3\n")
            .with("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
            .with("sys/class/thermal/thermal_zone0/temp", "48312\n")
            .with("sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
            .with("sys/class/hwmon/hwmon0/temp1_input", "48312\n")
            .with("sys/class/hwmon/hwmon1/name", "nvme\n")
            .with("sys/class/hwmon/hwmon1/temp1_input", "35850\n")
            .with("sys/class/hwmon/hwmon1/temp1_label", "Composite\n")
            .with("sys/class/hwmon/hwmon1/temp2_input", "-274000\n")
            .with(
                "proc/self/mountinfo",
                "22 27 0:21 / /proc rw - proc proc rw\n\
                 27 1 179:2 / / rw,noatime shared:1 - ext4 /dev/root rw\n\
                 30 27 179:1 / /boot\\040firmware ro - vfat /dev/mmcblk0p1 rw\n\
                 31 27 0:40 / /nas rw - nfs4 nas:/x rw\n\
                 32 27 8:1 / /gone rw - ext4 /dev/sda1 rw\n",
            )
            .with(
                "proc/net/dev",
                "Inter-|   Receive |  Transmit\n face |bytes\n    lo: 10 1 0 0 0 0 0 0 10 1 0 0 0 0 0 0\n  \
                 eth0:2048 2 3 4 0 0 0 0 18446744073709551615 6 7 8 0 0 0 0\n",
            )
            .with("sys/class/net/eth0/ifindex", "2\n")
            .with("sys/class/net/eth0/operstate", "up\n")
            .with("sys/class/net/eth0/address", "dc:a6:32:00:00:01\n")
            .with("sys/class/net/eth0/mtu", "1500\n")
            .with("proc/1/stat", stat(1, "init", 100))
            .with("proc/1/status", status(0, 1024))
            .with("proc/1/cmdline", "init\0--password=hunter2\0")
            .with("proc/20/stat", stat(20, "big one) S (", 50))
            .with("proc/20/status", status(1000, 4096))
            .with("proc/3/stat", stat(3, "kthreadd", 0))
            .with("proc/3/status", "Name:\tkthreadd\nUid:\t0\t0\t0\t0\n")
            .with("var/log/syslog", "one\ntwo\nthree\n")
            .with("var/log/auth.log", "a secret\n")
    }

    fn server(&self) -> DeviceServer {
        self.server_with(Box::new(Pretended { after: None }), Vec::new())
    }

    fn server_with(&self, kernel: Box<dyn Kernel>, logs: Vec<PathBuf>) -> DeviceServer {
        let limits = DeviceLimits { log_bytes: 64, params_bytes: 1000, ..DeviceLimits::default() };
        DeviceServer::new(Machine::new(self.0.clone(), kernel, logs, limits))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// System calls with fixed results.
struct Pretended {
    /// A file and its content while processor use is measured.
    after: Option<(PathBuf, String)>,
}

impl Kernel for Pretended {
    fn architecture(&self) -> String {
        "aarch64".into()
    }

    fn space(&self, mount: &Path) -> io::Result<Space> {
        match mount.to_str() {
            Some("/") => Ok(Space { size: 1000, used: 400, available: 500, inodes: 10, inodes_free: 3 }),
            Some("/boot firmware") => Ok(Space { size: u64::MAX, used: u64::MAX, ..Space::default() }),
            Some("/nas") => panic!("a network file system was asked"),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    fn addresses(&self, _: &DeviceLimits) -> io::Result<Vec<Address>> {
        let address = |interface, ip: &str, prefix| Address {
            interface,
            ip: ip.parse().expect("tests write good addresses"),
            prefix,
        };
        Ok(vec![address(1, "127.0.0.1", 8), address(2, "192.0.2.7", 24), address(2, "fe80::1", 64)])
    }

    fn pause(&self, time: Duration) -> Duration {
        if let Some((path, text)) = &self.after {
            fs::write(path, text).expect("a file can be written");
        }
        time
    }
}

/// Returns the response to one line, parsed.
#[track_caller]
fn ask(server: &mut DeviceServer, line: &str) -> Value {
    let answer = server.handle(line.as_bytes()).expect("a request is answered");
    assert!(!answer.contains('\n'), "an answer is one line: {answer}");
    serde_json::from_str(&answer).expect("an answer is JSON")
}

/// Returns the result of a method.
#[track_caller]
fn result(server: &mut DeviceServer, method: &str, params: Value) -> Value {
    let line = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut answer = ask(server, &line);
    assert_eq!(answer["error"], Value::Null, "{line}");
    answer["result"].take()
}

/// Returns the structured content of a tool, checked against its own schema, and its text.
#[track_caller]
fn call(server: &mut DeviceServer, tool: &str, arguments: Value) -> (Value, String) {
    let listed = result(server, "tools/list", json!({}));
    let tools = listed["tools"].as_array().expect("tools are a list");
    let entry = tools.iter().find(|entry| entry["name"] == tool).expect("the tool is listed");
    let answer = result(server, "tools/call", json!({ "name": tool, "arguments": arguments }));
    assert_eq!(answer["isError"], false, "{answer}");
    fits(&entry["outputSchema"], &answer["structuredContent"], tool);
    assert_eq!(answer["content"][0]["type"], "text");
    let text = answer["content"][0]["text"].as_str().expect("there is a text").to_owned();
    (answer["structuredContent"].clone(), text)
}

/// Returns the error of a tool.
#[track_caller]
fn refusal(server: &mut DeviceServer, tool: &str, arguments: Value) -> String {
    let answer = result(server, "tools/call", json!({ "name": tool, "arguments": arguments }));
    assert_eq!(answer["isError"], true, "{answer}");
    assert_eq!(answer.get("structuredContent"), None);
    answer["content"][0]["text"].as_str().expect("there is a text").to_owned()
}

/// Checks `value` against the part of JSON schema that the tools use.
#[track_caller]
fn fits(schema: &Value, value: &Value, place: &str) {
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let fits_kind = |kind: &Value| match kind.as_str().expect("a type is a string") {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("{place}: unknown type {other}"),
    };
    assert!(kinds.iter().any(fits_kind), "{place}: {value} is not {kinds:?}");
    for item in value.as_array().into_iter().flatten() {
        fits(&schema["items"], item, &format!("{place}[]"));
    }
    let Some(fields) = value.as_object() else { return };
    assert_eq!(schema["additionalProperties"], false, "{place}");
    for name in schema["required"].as_array().expect("an object has a list of required fields") {
        assert!(fields.contains_key(name.as_str().expect("a name")), "{place}: {name} is missing");
    }
    for (name, field) in fields {
        let schema =
            schema["properties"].get(name).unwrap_or_else(|| panic!("{place}: {name} is not described"));
        fits(schema, field, &format!("{place}.{name}"));
    }
}

#[test]
fn initialize_takes_each_version_and_offers_the_newest_for_others() {
    let folder = Folder::new();
    let mut server = folder.server();
    let cases = [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("0.1.0", "2025-11-25"),
        ("", "2025-11-25"),
    ];
    for (asked, expected) in cases {
        let params = json!({
            "protocolVersion": asked, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" },
        });
        let answer = result(&mut server, "initialize", params);
        assert_eq!(answer["protocolVersion"], expected, "{asked:?}");
        assert_eq!(answer["capabilities"], json!({ "tools": {}, "resources": {}, "prompts": {} }));
        assert_eq!(answer["serverInfo"]["name"], "mcpport-device");
    }
}

/// The exact bytes of small answers and of every refusal.
#[test]
fn lines_and_their_answers() {
    let folder = Folder::new();
    let mut server = folder.server();
    let id_null = |code: i32, text: &str| {
        Some(format!(r#"{{"jsonrpc":"2.0","id":null,"error":{{"code":{code},"message":"{text}"}}}}"#))
    };
    let id_7 = |code: i32, text: &str| {
        Some(format!(r#"{{"jsonrpc":"2.0","id":7,"error":{{"code":{code},"message":"{text}"}}}}"#))
    };
    let pong = |id: &str| Some(format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#));
    let cases: Vec<(&str, Option<String>)> = vec![
        // Ids are returned as they were written.
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, pong("1")),
        (
            r#" { "params" : null , "method":"ping","id": "a\u00e9\"" ,"jsonrpc":"2.0"} "#,
            pong(r#""a\u00e9\"""#),
        ),
        (
            r#"{"jsonrpc":"2.0","id":123456789012345678901234567890,"method":"ping","x":[]}"#,
            pong("123456789012345678901234567890"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":-0.50,"method":"p\u0069ng","params":{"_meta":{"progressToken":1}}}"#,
            pong("-0.50"),
        ),
        // Never answered.
        ("", None),
        (" \t\r", None),
        (r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, None),
        (r#"{"jsonrpc":"2.0","method":"tools/call","params":[]}"#, None),
        (r#"{"method":7}"#, None),
        (r#"{"jsonrpc":"2.0","id":7,"result":{}}"#, None),
        (r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}"#, None),
        // Not a request.
        ("[]", id_null(-32600, "batches are not supported")),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, id_null(-32600, "batches are not supported")),
        ("7", id_null(-32600, "a message must be an object")),
        ("\"ping\"", id_null(-32600, "a message must be an object")),
        ("{}", id_null(-32600, "method is missing")),
        (
            r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#,
            id_null(-32600, "id must be a string or a number"),
        ),
        (r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#, id_null(-32600, "id must be a string or a number")),
        (r#"{"jsonrpc":"2.0","id":7}"#, id_7(-32600, "method must be a string")),
        (r#"{"jsonrpc":"2.0","id":7,"method":null}"#, id_7(-32600, "method must be a string")),
        (r#"{"jsonrpc":"1.0","id":7,"method":"ping"}"#, id_7(-32600, r#"jsonrpc must be \"2.0\""#)),
        (r#"{"id":7,"method":"ping"}"#, id_7(-32600, r#"jsonrpc must be \"2.0\""#)),
        // Only MCP 2026-07-28 has this method, so it needs the envelope.
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"server/discover","params":{}}"#,
            id_7(
                -32602,
                "missing io.modelcontextprotocol/protocolVersion in params._meta, which MCP 2026-07-28 requires",
            ),
        ),
        // Unknown methods.
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"logging/setLevel"}"#,
            id_7(-32601, "unknown method logging/setLevel"),
        ),
        (r#"{"jsonrpc":"2.0","id":7,"method":"x\n"}"#, id_7(-32601, r"unknown method x\\n")),
        // Wrong parameters.
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}"#,
            id_7(-32602, "params must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"initialize"}"#,
            id_7(-32602, "params.protocolVersion must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"initialize","params":{"protocolVersion":1}}"#,
            id_7(-32602, "params.protocolVersion must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":"2"}}"#,
            id_7(-32602, "unknown cursor"),
        ),
        (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#, id_7(-32602, "params.name must be a string")),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"rm"}}"#,
            id_7(-32602, "unknown tool rm"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"disks","arguments":[]}}"#,
            id_7(-32602, "params.arguments must be an object"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{}}"#,
            id_7(-32602, "params.uri must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"resources/read","params":{"uri":"device://x"}}"#,
            id_7(-32002, "unknown resource device://x"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"prompts/get","params":{"name":"x"}}"#,
            id_7(-32602, "unknown prompt x"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"prompts/get","params":{"name":"diagnose","arguments":{"symptom":1}}}"#,
            id_7(-32602, "argument `symptom` must be a string"),
        ),
        (
            r#"{"jsonrpc":"2.0","id":7,"method":"prompts/get","params":{"name":"diagnose","arguments":{"a":""}}}"#,
            id_7(-32602, "unknown argument `a`; `diagnose` takes symptom"),
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(server.handle(line.as_bytes()), expected, "{line}");
    }
}

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

/// Sends a request of MCP 2026-07-28, and returns what is sent back.
#[track_caller]
fn ask_stateless(server: &mut DeviceServer, method: &str, mut params: Value) -> Value {
    params["_meta"] = json!({ VERSION: "2026-07-28", CAPABILITIES: {} });
    ask(server, &json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params }).to_string())
}

#[test]
fn stateless_requests_get_what_earlier_ones_get_and_a_stamp() {
    let folder = Folder::usual();
    let mut server = folder.server();
    for (method, params, is_cacheable) in [
        ("prompts/get", json!({ "name": "diagnose" }), false),
        ("prompts/list", json!({}), true),
        ("resources/list", json!({}), true),
        ("resources/read", json!({ "uri": "device://summary" }), true),
        ("resources/templates/list", json!({}), true),
        ("tools/call", json!({ "name": "disks", "arguments": {} }), false),
        ("tools/call", json!({ "name": "disks", "arguments": { "x": 1 } }), false),
        ("tools/list", json!({}), true),
    ] {
        let earlier = result(&mut server, method, params.clone());
        let mut answer = ask_stateless(&mut server, method, params)["result"].take();
        let stamp = answer.as_object_mut().expect("an object");
        assert_eq!(stamp.remove("resultType"), Some(json!("complete")), "{method}");
        let meta = stamp.remove("_meta").expect("the stamp");
        assert_eq!(meta["io.modelcontextprotocol/serverInfo"]["name"], "mcpport-device", "{method}");
        let cache = (stamp.remove("ttlMs"), stamp.remove("cacheScope"));
        let expected = if is_cacheable { (Some(json!(0)), Some(json!("private"))) } else { (None, None) };
        assert_eq!(cache, expected, "{method}");
        assert_eq!(answer, earlier, "{method}");
    }
}

#[test]
fn discover_reports_what_initialize_does() {
    let folder = Folder::new();
    let mut server = folder.server();
    let answer = ask_stateless(&mut server, "server/discover", json!({}))["result"].take();
    let initialized = result(&mut server, "initialize", json!({ "protocolVersion": "2025-11-25" }));
    assert_eq!(answer["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(answer["resultType"], "complete");
    for member in ["capabilities", "instructions"] {
        assert_eq!(answer[member], initialized[member], "{member}");
    }
    assert_eq!(answer["_meta"]["io.modelcontextprotocol/serverInfo"], initialized["serverInfo"]);
    // `initialize` did not change what follows.
    assert_eq!(ask_stateless(&mut server, "tools/list", json!({}))["result"]["resultType"], "complete");
}

#[test]
fn stateless_requests_are_checked() {
    let folder = Folder::new();
    let mut server = folder.server();
    let request = |meta: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{{"_meta":{meta}}}}}"#)
    };
    let level = "io.modelcontextprotocol/logLevel";
    for (meta, code) in [
        (format!(r#"{{"{VERSION}":"2026-07-28"}}"#), -32602),
        (format!(r#"{{"{VERSION}":"2026-07-28","{CAPABILITIES}":[]}}"#), -32602),
        (format!(r#"{{"{VERSION}":null,"{CAPABILITIES}":{{}}}}"#), -32602),
        (format!(r#"{{"{VERSION}":"2026-07-28","{CAPABILITIES}":{{}},"{level}":"loud"}}"#), -32602),
        (format!(r#"{{"{VERSION}":"2026-07-28","{VERSION}":"2026-07-28","{CAPABILITIES}":{{}}}}"#), -32600),
        (format!(r#"{{"{VERSION}":"2025-11-25","{CAPABILITIES}":{{}}}}"#), -32022),
    ] {
        let answer = ask(&mut server, &request(&meta));
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(code)), "{meta}");
    }
    let unsupported = ask(&mut server, &request(&format!(r#"{{"{VERSION}":"v9","{CAPABILITIES}":{{}}}}"#)));
    assert_eq!(unsupported["error"]["data"], json!({ "supported": ["2026-07-28"], "requested": "v9" }));
    for method in ["initialize", "ping", "logging/setLevel", "resources/subscribe", "x"] {
        let params = json!({ "protocolVersion": "2025-11-25" });
        assert_eq!(ask_stateless(&mut server, method, params)["error"]["code"], -32601, "{method}");
    }
    let missing = &ask_stateless(&mut server, "resources/read", json!({ "uri": "device://x" }))["error"];
    assert_eq!((&missing["code"], &missing["data"]), (&json!(-32602), &json!({ "uri": "device://x" })));
    assert_eq!(ask_stateless(&mut server, "tools/list", json!({ "cursor": "x" }))["error"]["code"], -32602);
}

#[test]
fn a_listen_is_accepted_for_nothing() {
    let folder = Folder::new();
    let mut server = folder.server();
    let filter = json!({ "notifications": { "toolsListChanged": true, "resourceSubscriptions": ["a:b"] } });
    assert_eq!(ask_stateless(&mut server, "subscriptions/listen", json!({}))["error"]["code"], -32602);
    let accepted = ask_stateless(&mut server, "subscriptions/listen", filter);
    assert_eq!(accepted["method"], "notifications/subscriptions/acknowledged");
    let params = json!({ "notifications": {}, "_meta": { "io.modelcontextprotocol/subscriptionId": 7 } });
    assert_eq!((&accepted["params"], accepted.get("id")), (&params, None));
    let cancelled = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    assert_eq!(server.handle(cancelled.as_bytes()), None);
}

#[test]
fn lines_that_are_not_json() {
    let folder = Folder::new();
    let mut server = folder.server();
    let deep = "[".repeat(100_000);
    let cases: [&[u8]; 9] = [
        b"x",
        b"{",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}}",
        b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"pi\xffng\"}",
        b"{'id':1}",
        b"\xef\xbb\xbf{}",
        b"\0",
        deep.as_bytes(),
    ];
    for line in cases {
        let answer = server.handle(line).expect("it is answered");
        let start = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"not JSON: "#;
        assert!(answer.starts_with(start), "{answer}");
    }
}

#[test]
fn params_are_bounded_in_size_and_depth() {
    let folder = Folder::new();
    let mut server = folder.server();
    let request = |params: &str| format!(r#"{{"jsonrpc":"2.0","id":7,"method":"ping","params":{params}}}"#);
    let answer = ask(&mut server, &request(&format!("{{\"a\":\"{}\"}}", "x".repeat(1000))));
    assert_eq!(answer["error"], json!({ "code": -32602, "message": "params are larger than 1000 bytes" }));
    let answer = ask(&mut server, &request(&format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200))));
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(-32602)));
}

#[test]
fn lists() {
    let folder = Folder::usual();
    let mut server = folder.server();
    let tools = result(&mut server, "tools/list", json!({}));
    let tools = tools["tools"].as_array().expect("tools are a list");
    let names: Vec<&str> = tools.iter().filter_map(|tool| tool["name"].as_str()).collect();
    assert_eq!(names, ["system", "disks", "network", "processes", "log_tail"]);
    for tool in tools {
        assert!(tool["description"].as_str().is_some_and(|text| text.len() > 40), "{tool}");
        assert_eq!(tool["inputSchema"]["type"], "object");
        assert_eq!(tool["inputSchema"]["additionalProperties"], false);
        assert_eq!(tool["outputSchema"]["type"], "object");
        assert_eq!(tool["annotations"]["readOnlyHint"], true);
    }
    let resources = result(&mut server, "resources/list", json!({}));
    assert_eq!(resources["resources"][0]["uri"], "device://summary");
    assert_eq!(
        result(&mut server, "resources/templates/list", json!({})),
        json!({ "resourceTemplates": [] })
    );
    let prompts = result(&mut server, "prompts/list", json!({ "cursor": null }));
    assert_eq!(prompts["prompts"][0]["name"], "diagnose");
}

#[test]
fn system_of_a_usual_box() {
    let folder = Folder::usual();
    let (data, text) = call(&mut folder.server(), "system", json!({}));
    let expected = json!({
        "host": "hall-camera", "kernel": "6.6.31+rpt-rpi-v8", "architecture": "aarch64",
        "uptime_seconds": 350_735.47, "load_1": 0.20, "load_5": 0.18, "load_15": 0.12, "cpus": 4,
        "memory": {
            "total_bytes": 3_977_478_144_u64, "available_bytes": 2_048_000,
            "swap_total_bytes": 102_400, "swap_free_bytes": 92_160,
        },
        "temperatures": [
            { "sensor": "cpu-thermal", "celsius": 48.312 },
            { "sensor": "nvme Composite", "celsius": 35.85 },
        ],
    });
    assert_eq!(data, expected);
    let expected = "host: hall-camera, Linux 6.6.31+rpt-rpi-v8, aarch64\n\
        uptime: 4 d 1 h 25 min\n\
        load: 0.20 over 1 minute, 0.18 over 5, 0.12 over 15\n\
        processors: 4\n\
        memory: 3.7 GiB, available 2.0 MiB\n\
        swap: 100.0 KiB, free 90.0 KiB\n\
        temperature of cpu-thermal: 48.3 °C\n\
        temperature of nvme Composite: 35.9 °C";
    assert_eq!(text, expected);
}

#[test]
fn a_box_without_proc_files() {
    let folder = Folder::new();
    let mut server = folder.server();
    let (system, _) = call(&mut server, "system", json!({}));
    assert_eq!((&system["host"], &system["temperatures"]), (&Value::Null, &json!([])));
    let (disks, _) = call(&mut server, "disks", json!({}));
    assert_eq!(disks, json!({ "disks": [], "not_measured": [] }));
    let (network, _) = call(&mut server, "network", json!({}));
    assert_eq!(network, json!({ "interfaces": [], "addresses_known": true }));
    let (processes, _) = call(&mut server, "processes", json!({}));
    assert_eq!(processes, json!({ "by": "memory", "total": 0, "processes": [] }));
    let reason = refusal(&mut server, "log_tail", json!({}));
    assert_eq!(reason, "argument `file` is missing; files that can be read: none");
    let listed = result(&mut server, "tools/list", json!({}));
    assert_eq!(listed["tools"][4]["inputSchema"]["properties"]["file"].get("enum"), None);
}

#[test]
fn disks_of_a_usual_box() {
    let folder = Folder::usual();
    let (data, text) = call(&mut folder.server(), "disks", json!({}));
    let expected = json!({
        "disks": [
            {
                "mount": "/", "device": "/dev/root", "type": "ext4", "read_only": false,
                "size_bytes": 1000, "used_bytes": 400, "available_bytes": 500, "inodes": 10, "inodes_free": 3,
            },
            {
                "mount": "/boot firmware", "device": "/dev/mmcblk0p1", "type": "vfat", "read_only": true,
                "size_bytes": u64::MAX, "used_bytes": u64::MAX, "available_bytes": 0, "inodes": 0, "inodes_free": 0,
            },
        ],
        "not_measured": [
            { "mount": "/gone", "type": "ext4", "reason": "permission denied" },
            { "mount": "/nas", "type": "nfs4", "reason": "network or FUSE file system" },
        ],
    });
    assert_eq!(data, expected);
    let expected = "/ (ext4 on /dev/root): 400 bytes used of 1000 bytes (40 %), 500 bytes available; 3 of 10 inodes free\n\
        /boot firmware (vfat on /dev/mmcblk0p1, read-only): 16.0 EiB used of 16.0 EiB (100 %), 0 bytes available\n\
        /gone (ext4): not measured: permission denied\n\
        /nas (nfs4): not measured: network or FUSE file system";
    assert_eq!(text, expected);
}

#[test]
fn network_of_a_usual_box() {
    let folder = Folder::usual();
    let (data, text) = call(&mut folder.server(), "network", json!({}));
    let interfaces = data["interfaces"].as_array().expect("interfaces are a list");
    assert_eq!(interfaces.len(), 2);
    // There are no files about it, so its state, number and addresses are unknown.
    assert_eq!(interfaces[0]["name"], "lo");
    assert_eq!((&interfaces[0]["state"], &interfaces[0]["addresses"]), (&Value::Null, &json!([])));
    let expected = json!({
        "name": "eth0", "state": "up", "mac": "dc:a6:32:00:00:01", "mtu": 1500,
        "addresses": ["192.0.2.7/24", "fe80::1/64"],
        "rx_bytes": 2048, "rx_packets": 2, "rx_errors": 3, "rx_dropped": 4,
        "tx_bytes": u64::MAX, "tx_packets": 6, "tx_errors": 7, "tx_dropped": 8,
    });
    assert_eq!(interfaces[1], expected);
    let expected = "eth0: up, 192.0.2.7/24, fe80::1/64, MAC dc:a6:32:00:00:01, MTU 1500; \
        received 2.0 KiB in 2 packets (3 errors, 4 dropped); sent 16.0 EiB in 6 packets (7 errors, 8 dropped)";
    assert_eq!(text.lines().last(), Some(expected));
}

#[test]
fn processes_by_memory_and_by_processor_use() {
    let folder = Folder::usual();
    let names = |data: &Value| -> Vec<String> {
        let list = data["processes"].as_array().expect("processes are a list");
        list.iter().map(|process| process["name"].as_str().expect("a name").to_owned()).collect()
    };
    let (data, text) = call(&mut folder.server(), "processes", json!({}));
    assert_eq!(names(&data), ["big one) S (", "init", "kthreadd"]);
    let expected = json!({
        "pid": 20, "name": "big one) S (", "state": "S", "uid": 1000, "rss_bytes": 4_194_304,
        "cpu_percent": 0.0, "cpu_seconds": 0.5,
    });
    assert_eq!(data["processes"][0], expected);
    assert!(!text.contains("hunter2") && !data.to_string().contains("hunter2"), "arguments are never shown");

    // During the measurement, the simulated process runs for 250 of 500 ms.
    let after = "3 (kthreadd) R 1 7 7 0 -1 4194560 1 2 3 4 0 25 9 9 20 0 1 0 4711 1000 200 1\n".to_owned();
    let kernel = Pretended { after: Some((folder.0.join("proc/3/stat"), after)) };
    let mut server = folder.server_with(Box::new(kernel), Vec::new());
    let (data, _) = call(&mut server, "processes", json!({ "by": "cpu", "count": 1 }));
    assert_eq!((names(&data), &data["total"]), (vec!["kthreadd".to_owned()], &json!(3)));
    assert_eq!(data["processes"][0]["cpu_percent"], 50.0);
    assert_eq!(data["processes"][0]["state"], "R");
}

#[test]
fn a_process_that_ends_while_it_is_looked_at_is_left_out() {
    let folder = Folder::usual();
    let kernel = Pretended { after: Some((folder.0.join("proc/20/stat"), String::new())) };
    let mut server = folder.server_with(Box::new(kernel), Vec::new());
    let (data, _) = call(&mut server, "processes", json!({}));
    assert_eq!(data["total"], 2);
}

#[test]
fn arguments_are_refused_by_name() {
    let folder = Folder::usual();
    let mut server = folder.server();
    let whole = |name: &str, max: u32| format!("argument `{name}` must be an integer from 1 to {max}");
    let cases = [
        (
            "system",
            json!({ "verbose": true }),
            "unknown argument `verbose`; `system` takes no arguments".to_owned(),
        ),
        ("disks", json!({ "path": "/" }), "unknown argument `path`; `disks` takes no arguments".to_owned()),
        ("network", json!({ "": 1 }), "unknown argument ``; `network` takes no arguments".to_owned()),
        ("processes", json!({ "top": 5 }), "unknown argument `top`; `processes` takes by, count".to_owned()),
        ("processes", json!({ "by": "io" }), "argument `by` must be one of: memory, cpu".to_owned()),
        ("processes", json!({ "by": 5 }), "argument `by` must be a string".to_owned()),
        ("processes", json!({ "count": 0 }), whole("count", 100)),
        ("processes", json!({ "count": 101 }), whole("count", 100)),
        ("processes", json!({ "count": "10" }), whole("count", 100)),
        ("log_tail", json!({ "file": "/var/log/syslog", "lines": 501 }), whole("lines", 500)),
        ("log_tail", json!({ "file": ["/var/log/syslog"] }), "argument `file` must be a string".to_owned()),
        (
            "log_tail",
            json!({ "path": "x" }),
            "unknown argument `path`; `log_tail` takes file, lines".to_owned(),
        ),
    ];
    for (tool, arguments, expected) in cases {
        assert_eq!(refusal(&mut server, tool, arguments.clone()), expected, "{tool} {arguments}");
    }
}

#[test]
fn the_end_of_a_log() {
    let folder = Folder::usual();
    let mut server = folder.server();
    let (data, text) = call(&mut server, "log_tail", json!({ "file": "/var/log/syslog", "lines": 2 }));
    let expected =
        json!({ "file": "/var/log/syslog", "size_bytes": 14, "lines": ["two", "three"], "truncated": false });
    assert_eq!(data, expected);
    assert_eq!(text, "/var/log/syslog, 14 bytes, last 2 lines\ntwo\nthree");

    // Not UTF-8, control characters, and more than is read (64 bytes here).
    let folder = folder.with("var/log/messages", [&b"x".repeat(100)[..], b"\n\xff\x1b[0m\n"].concat());
    let (data, _) = call(&mut folder.server(), "log_tail", json!({ "file": "/var/log/messages" }));
    assert_eq!((&data["lines"], &data["truncated"]), (&json!(["\u{fffd}\u{1b}[0m"]), &json!(true)));
    let listed = result(&mut server, "tools/list", json!({}));
    let files = &listed["tools"][4]["inputSchema"]["properties"]["file"]["enum"];
    assert_eq!(files, &json!(["/var/log/syslog", "/var/log/messages"]));
}

#[test]
fn only_files_of_the_set_are_read() {
    let folder = Folder::usual().with("own/app.log", "mine\n").with("own/other.log", "not mine\n");
    let own = folder.0.join("own/app.log");
    let link = folder.0.join("own/link.log");
    std::os::unix::fs::symlink(&own, &link).expect("a link can be made");
    std::os::unix::fs::symlink(&own, folder.0.join("var/log/kern.log")).expect("a link can be made");
    fs::create_dir(folder.0.join("var/log/dmesg")).expect("a folder can be made");
    let logs = vec![own.clone(), link.clone(), folder.0.join("own"), folder.0.join("own/missing.log")];
    let mut server = folder.server_with(Box::new(Pretended { after: None }), logs);

    for path in [&own, &link] {
        let (data, _) = call(&mut server, "log_tail", json!({ "file": path }));
        assert_eq!((&data["file"], &data["lines"]), (&json!(path), &json!(["mine"])));
    }
    let known = format!("{}, {}, /var/log/syslog", own.display(), link.display());
    for name in [
        "/var/log/auth.log",
        "/var/log/../log/syslog",
        "var/log/syslog",
        "/var/log/syslog\0",
        "syslog",
        "",
        "/etc/shadow",
    ] {
        let reason = refusal(&mut server, "log_tail", json!({ "file": name }));
        let end = format!("is not allowed; files that can be read: {known}");
        assert!(reason.ends_with(&end), "{name:?}: {reason}");
    }
    let other = folder.0.join("own/../own/app.log");
    assert!(
        refusal(&mut server, "log_tail", json!({ "file": other }))
            .contains(" is not allowed; files that can be read")
    );
    let cases = [
        ("/var/log/kern.log".to_owned(), "a symbolic link; start the program with `--log` and its target"),
        ("/var/log/dmesg".to_owned(), "not a regular file"),
        ("/var/log/boot.log".to_owned(), "no such file"),
        (folder.0.join("own").display().to_string(), "not a regular file"),
        (folder.0.join("own/missing.log").display().to_string(), "no such file"),
    ];
    for (name, why) in cases {
        let reason = refusal(&mut server, "log_tail", json!({ "file": name }));
        assert_eq!(reason, format!("{name} cannot be read: {why}"));
    }
}

#[test]
fn the_summary_is_one_page() {
    let folder = Folder::usual();
    let answer = result(&mut folder.server(), "resources/read", json!({ "uri": "device://summary" }));
    let contents = &answer["contents"][0];
    assert_eq!(
        (&contents["uri"], &contents["mimeType"]),
        (&json!("device://summary"), &json!("text/markdown"))
    );
    let text = contents["text"].as_str().expect("there is a text");
    for part in
        ["# This host\n\n## System\n\n- host: hall-camera", "## Disks\n\n- / (ext4", "## Network\n\n- lo: "]
    {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_prompt_carries_the_symptom() {
    let folder = Folder::new();
    let mut server = folder.server();
    let mut text = |params: Value| {
        let answer = result(&mut server, "prompts/get", params);
        assert_eq!(answer["messages"][0]["role"], "user");
        answer["messages"][0]["content"]["text"].as_str().expect("there is a text").to_owned()
    };
    let with = text(json!({ "name": "diagnose", "arguments": { "symptom": " it is \"slow\"\n" } }));
    assert!(with.contains("Reported problem:\n\nit is \"slow\"\n\n"), "{with}");
    for params in
        [json!({ "name": "diagnose" }), json!({ "name": "diagnose", "arguments": { "symptom": "" } })]
    {
        assert!(text(params).contains("No particular problem was reported"));
    }
}

#[test]
fn the_loop_answers_each_line_and_ends_with_its_input() {
    let folder = Folder::new();
    let long = "x".repeat(200);
    let input = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}}\r\n\n{long}\n\
         {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}}\n{{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}}"
    );
    let mut output = Vec::new();
    serve(folder.server(), input.as_bytes(), &mut output, 100).expect("memory can be read and written");
    let expected = "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\
        {\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32600,\"message\":\"the line is longer than 100 bytes\"}}\n\
        {\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{}}\n";
    assert_eq!(String::from_utf8_lossy(&output), expected);
}

#[test]
fn the_loop_ends_quietly_when_nobody_reads_its_output() {
    /// A pipe without a reader, or a full disk.
    struct Broken(io::ErrorKind);
    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = Folder::new();
    let ping = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n".as_slice();
    assert_eq!(serve(folder.server(), ping, Broken(io::ErrorKind::BrokenPipe), 100), Ok(()));
    let fault =
        serve(folder.server(), ping, Broken(io::ErrorKind::StorageFull), 100).expect_err("it is a fault");
    assert_eq!(fault.exit_code(), 1);
}

/// The host that runs the tests: whatever it is, the results match their schemas.
#[test]
fn this_box() {
    let limits = DeviceLimits { cpu_window: Duration::ZERO, ..DeviceLimits::default() };
    let mut server = DeviceServer::new(Machine::here(Vec::new(), limits));
    let (system, _) = call(&mut server, "system", json!({}));
    assert!(system["uptime_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    call(&mut server, "disks", json!({}));
    call(&mut server, "network", json!({}));
    let (processes, _) = call(&mut server, "processes", json!({ "count": 100 }));
    assert!(processes["total"].as_u64().is_some_and(|total| total > 0));
}
