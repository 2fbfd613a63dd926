//! Writes seeds for the fuzz targets into a directory, from the test vectors and a few messages.
//! Needs no crate: `rustc seeds.rs`.

use std::fs;
use std::path::Path;

#[path = "../vectors/http/reader.rs"]
mod reader;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(vectors), Some(corpus)) = (arguments.next(), arguments.next()) else {
        panic!("usage: seeds VECTORS CORPUS");
    };
    let corpus = Path::new(&corpus);
    for (number, vector) in reader::read(&Path::new(&vectors).join("http")).iter().enumerate() {
        let bytes = &vector.bytes;
        save(corpus, "head", number, bytes);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            save(corpus, "body", number, &bytes[end + 4..]);
        }
        let caller = match vector.caller.as_str() {
            "refuses" => 2,
            "upgrades" => 3,
            _ => number as u8 % 2,
        };
        save(corpus, "conn", number, &[&[caller, number as u8], bytes.as_slice()].concat());
    }
    messages(corpus);
}

/// Messages between clients, gateways, edges and children.
const MESSAGES: [&str; 27] = [
    r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
    r#"{"jsonrpc":"2.0","id":0,"method":"tools/call","params":{"name":"a","arguments":{"x":[1,-2.5e+3,{"y":null}]},"_meta":{"progressToken":0}}}"#,
    "{\r\n \"jsonrpc\" : \"2.0\",\n\t\"id\" : \"\\u0061\\\"\", \"method\":\"ping\" }\n",
    r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"\u00e9 \ud83d\ude00 \\ \""}],"isError":false}}"#,
    r#"{"jsonrpc":"2.0","id":9007199254740993,"error":{"code":-32601,"message":"no","data":[true,false]}}"#,
    r#"{"jsonrpc":"2.0","error":{"code":-32700,"message":"no"},"id":null}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":0.5}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"reason":"why"}}"#,
    r#"{"jsonrpc":"2.0","id":1,"id":1,"method":"a"}"#,
    r#"[{"jsonrpc":"2.0","id":1,"method":"a"}]"#,
    r#"{"jsonrpc":"2.0","id":"u","method":"register","params":{"name":"f","version":"1","capabilities":{"mcpport":{}}}}"#,
    r#"{"jsonrpc":"2.0","id":7,"method":"register","params":{"name":"cam-1","capabilities":{"mcpport":{"sessions":{"max":9}}}}}"#,
    r#"{"method":"register","params":{"name":"a","n\u0061me":"b"},"id":null}"#,
    r#"{"name":"f","id":"u"}"#,
    r#"{"status":"received","id":"u","message":"m","capabilities":{"mcpport":{"sessions":{}}}}"#,
    r#"{"status":"received","id":"u","message":"hello","capabilities":{"mcpport":{}}}"#,
    r#"{"jsonrpc":"2.0","id":"u","method":"register","params":{"name":"f","capabilities":{"mcpport":{"resume":{"token":"t","received":7}}}}}"#,
    r#"{"status":"received","id":"u","message":"m","capabilities":{"mcpport":{"resume":{"token":"t","window":30,"received":0}}}}"#,
    r#"{"status":"error","message":"no"}"#,
    r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"t","arguments":{"x":1},"requestState":"s","inputResponses":{"k":{"action":"accept"}},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}},"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"c","version":"1"},"io.modelcontextprotocol/logLevel":"info","progressToken":0}}}"#,
    r#"{"jsonrpc":"2.0","id":2,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a:b"],"taskIds":["k"]},"_meta":{}}}"#,
    r#"{"jsonrpc":"2.0","id":7,"result":{"resultType":"input_required","inputRequests":{"k":{"method":"elicitation/create","params":{"mode":"url","message":"m"}}},"requestState":"r"}}"#,
    r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"t","inputSchema":{"properties":{"a":{"type":"string","x-mcp-header":"A"}}},"outputSchema":{},"execution":{"taskSupport":"optional"}}],"ttlMs":9,"cacheScope":"public","_meta":{"io.modelcontextprotocol/serverInfo":{}}}}"#,
    r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32021,"message":"no","data":{"requiredCapabilities":{"roots":{}}}}}"#,
    r#"{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"a:b","_meta":{"io.modelcontextprotocol/subscriptionId":7}}}"#,
    "npm WARN this is not JSON",
];

fn messages(corpus: &Path) {
    for (number, message) in MESSAGES.iter().enumerate() {
        save(corpus, "envelope", number, message.as_bytes());
        save(corpus, "stateless", number, message.as_bytes());
        save(corpus, "register", number, message.as_bytes());
        save(corpus, "incoming", number, message.as_bytes());
    }
    for (number, frame) in ["#1 {}", "+7", "-7 gone", "-1", "#4294967296 x", "#01 "].iter().enumerate() {
        save(corpus, "control", number, frame.as_bytes());
    }
    let start = "d{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"resultType\":\"complete\",\"supportedVersions\":[\"2026-07-28\"]}}\n";
    let refused = "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32022,\"message\":\"\",\"data\":{\"supported\":[\"2026-07-28\"],\"exited\":true}}}\n";
    let legacy = "i{\"jsonrpc\":\"2.0\",\"id\":2,\"result\":{\"protocolVersion\":\"2025-11-25\"}}\n";
    for (number, first) in ['\0', '\u{1}', '\u{2}', '\u{4}'].into_iter().enumerate() {
        let events = format!("{first}s\n{start}i{refused}r\nd{refused}{legacy}r\ni{refused}d{refused}e\n");
        save(corpus, "era", number, events.as_bytes());
    }
    let deep =
        format!("{{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"params\":{}{}}}", "[".repeat(127), "]".repeat(127));
    save(corpus, "envelope", MESSAGES.len(), deep.as_bytes());
    let lines = MESSAGES.join("\n");
    save(corpus, "ndjson", 0, format!("\u{7f}a{lines}\n").as_bytes());
    save(corpus, "ndjson", 1, format!("\u{5}ab\r\n\n \nabcde\r\nabcdef\n{lines}").as_bytes());
    let both = MESSAGES.map(|message| format!("d{message}\u{1e}u{message}")).join("\u{1e}");
    save(corpus, "control", 100, format!("{both}\u{1e}x\u{1e}{both}").as_bytes());
    // Requests and responses over three links; late, repeated and cancelled ones.
    let links = "q1 q2 q3 a0 p1 c3 x q1 q2 a1 a2 a3 a3 e4 x q1 p5 a4 a5 x".replace(' ', "\u{1e}");
    save(corpus, "control", 101, links.as_bytes());
    // The same with children that exit and restart.
    let starts = "i h q1 q2 k q3 b q4 c4 q5 h a0 a3 a4 q6 k x i b q1 h a6 k b x i q1 h h a7 a7 x";
    save(corpus, "control", 102, starts.replace(' ', "\u{1e}").as_bytes());
    operations(corpus);
}

/// Operations on the table of a link, as the target reads them.
fn operations(corpus: &Path) {
    let fill: Vec<u8> = (0..16).flat_map(|number| [0, number * 8]).collect();
    let answers: Vec<u8> = (0..12).flat_map(|number| [3, number]).collect();
    let times: Vec<u8> = (0..8).flat_map(|number| [6, number * 30]).collect();
    let looks: Vec<u8> = (0..12).flat_map(|number| [4, number, 7, number, 5, number]).collect();
    save(corpus, "mux", 0, &[fill.as_slice(), &answers, &fill, &times].concat());
    // Both send much and receive some of it; then cuts, and the same again.
    let talk: Vec<u8> = (0..24).flat_map(|number| [number % 8, number * 9]).collect();
    let cuts: Vec<u8> = (0..4).flat_map(|number| [10, number * 5, 0, 40, 3, 60, 4, 0, 5, 0]).collect();
    for kind in [0, 2, 4, 1, 3, 5] {
        save(corpus, "resume", usize::from(kind), &[&[kind], talk.as_slice(), &cuts, &talk].concat());
    }
    save(corpus, "resume", 100, b"*17");
    save(corpus, "mux", 1, &[&[2, 90], fill.as_slice(), &looks, &[2, 50], &times, &[8, 255], &fill].concat());
}

fn save(corpus: &Path, target: &str, number: usize, bytes: &[u8]) {
    let folder = corpus.join(target);
    fs::create_dir_all(&folder).expect("the folder of the seeds");
    fs::write(folder.join(format!("vector-{number}")), bytes).expect("a seed");
}
