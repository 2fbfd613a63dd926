//! Lines of a child: the same however the bytes are cut, and equal to those of a simple reader. The
//! first byte is the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mcpport::ndjson::{Lines, TooLong};

fuzz_target!(|data: &[u8]| {
    let [cap, sizes, data @ ..] = data else { return };
    let cap = usize::from(*cap);
    let whole = run(cap, data, |_| usize::MAX);
    assert_eq!(whole, run(cap, data, |_| 1));
    assert_eq!(whole, run(cap, data, |turn| 1 + usize::from(sizes.rotate_left(turn % 8)) % 19));
    assert_eq!(whole, simple(cap, data));
});

/// The lines, the first bytes of those that are too long, and the rest.
type Outcome = (Vec<Vec<u8>>, Vec<u8>);

fn run(cap: usize, data: &[u8], size: impl Fn(u32) -> usize) -> Outcome {
    let (mut lines, mut out, mut rest, mut turn) = (Lines::new(cap), Vec::new(), data, 0);
    loop {
        loop {
            match lines.next_line() {
                Ok(Some(line)) => out.push(line.to_vec()),
                Ok(None) => break,
                Err(TooLong::Begins) => out.push(lines.part().to_vec()),
                Err(TooLong::Ended) => {}
            }
        }
        if rest.is_empty() {
            return (out, lines.unfinished().to_vec());
        }
        let space = lines.space();
        assert!(!space.is_empty());
        let count = space.len().min(rest.len()).min(size(turn));
        space[..count].copy_from_slice(&rest[..count]);
        lines.filled(count);
        rest = &rest[count..];
        turn += 1;
    }
}

/// A simple implementation of the same rules.
fn simple(cap: usize, data: &[u8]) -> Outcome {
    let mut pieces: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let last = pieces.pop().unwrap_or_default();
    let long = |piece: &[u8]| piece.strip_suffix(b"\r").unwrap_or(piece).len() > cap;
    let mut out = Vec::new();
    for piece in pieces {
        if long(piece) {
            out.push(piece[..cap].to_vec());
        } else if !piece.trim_ascii().is_empty() {
            out.push(piece.strip_suffix(b"\r").unwrap_or(piece).to_vec());
        }
    }
    if long(last) {
        out.push(last[..cap].to_vec());
        return (out, Vec::new());
    }
    (out, last.to_vec())
}
