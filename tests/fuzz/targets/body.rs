//! Chunked bodies: the result does not depend on how the bytes are cut, and never exceeds the
//! limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::http::Refusal;
use mcpport::http::body::Chunked;
use mcpport::limits::HttpLimits;

fuzz_target!(|data: &[u8]| {
    let limits =
        HttpLimits { body_bytes: 256, chunk_extension_bytes: 16, trailer_bytes: 32, ..HttpLimits::default() };
    let whole = decode(data, &limits, data.len().max(1));
    assert_eq!(whole, decode(data, &limits, 1));
    assert_eq!(whole, decode(data, &limits, 5));
    if let Ok((body, _)) = whole {
        assert!(body.len() <= limits.body_bytes);
    }
});

/// Returns the data, and the length of its encoding when it is complete.
fn decode(data: &[u8], limits: &HttpLimits, step: usize) -> Result<(Vec<u8>, Option<usize>), Refusal> {
    let mut decoder = Chunked::new(limits);
    let (mut body, mut taken) = (Vec::new(), 0);
    for piece in data.chunks(step) {
        let mut window = piece.to_vec();
        let decoded = decoder.decode(&mut window)?;
        assert!(decoded.data <= decoded.taken && decoded.taken <= window.len());
        body.extend_from_slice(&window[..decoded.data]);
        taken += decoded.taken;
        if decoded.done {
            return Ok((body, Some(taken)));
        }
        assert_eq!(decoded.taken, window.len());
    }
    Ok((body, None))
}
