//! Request heads: the verdict does not depend on how the bytes are cut, and an accepted head has
//! the properties that `Request` documents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::http::Refusal;
use mcpport::http::body::framing;
use mcpport::http::head::{FoundHead, Request, Scan, Version, parse};
use mcpport::limits::HttpLimits;

fuzz_target!(|data: &[u8]| {
    let limits = HttpLimits { head_bytes: 512, target_bytes: 128, fields: 8, ..HttpLimits::default() };
    let whole = search(data, &limits, data.len().max(1));
    assert_eq!(whole, search(data, &limits, 1));
    assert_eq!(whole, search(data, &limits, 7));
    let Ok(Some(FoundHead { start, end })) = whole else { return };
    assert!(end - start <= limits.head_bytes);
    if let Ok(request) = parse(&data[start..end], &limits) {
        inspect(&request);
    }
});

/// Feeds prefixes of increasing length.
fn search(data: &[u8], limits: &HttpLimits, step: usize) -> Result<Option<FoundHead>, Refusal> {
    let mut scan = Scan::default();
    let mut shown = 0;
    while shown < data.len() {
        shown = data.len().min(shown + step);
        let found = scan.search(&data[..shown], limits)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn inspect(request: &Request) {
    let target = request.target();
    assert!(target.is_ascii() && !target.is_empty() && target.len() <= 128);
    assert!(request.path().starts_with('/') || request.path() == "*");
    assert!(!request.path().contains(['?', '#', ' ']));
    assert!(request.version() == Version::Http10 || request.host().is_some());
    assert!(request.host().is_none_or(|host| !host.is_empty() && !host.contains(['@', ' ', '/', ','])));
    let _ = (request.query("a"), request.query(""), format!("{request:?}"));
    for name in ["host", "content-length", "x"] {
        for value in request.fields(name) {
            assert!(!value.contains(['\r', '\n', '\0']));
            assert_eq!(value.trim_matches([' ', '\t']), value);
        }
    }
    if framing(request).is_ok() {
        let framed = request.fields("content-length").count() + request.fields("transfer-encoding").count();
        assert!(framed <= 1);
    }
}
