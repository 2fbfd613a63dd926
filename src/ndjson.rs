//! Newline-delimited JSON, the framing of MCP over stdio: bytes in any pieces go in, whole lines come out.
//!
//! Pure: the register program reads a child's stdout into [`Lines::space`] and takes the lines as slices of that buffer, so
//! that a line which came in one read is not copied. What a line means is a matter for `jsonrpc`.

use std::{fmt, ops::Range};

use crate::limits;

/// A line is longer than the cap: the peer is broken, and what follows cannot be told from the rest of that line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooLong;

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("line too long")
    }
}

impl std::error::Error for TooLong {}

/// Splits a byte stream into lines.
#[derive(Debug)]
pub struct Lines {
    /// All of it initialised; the bytes that count are `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// No line end before this place: bytes are looked at once, however small the pieces.
    searched: usize,
    cap: usize,
    failed: bool,
}

impl Lines {
    /// Lines of up to `cap` bytes, not counting the line end. Takes no memory before the first [`Lines::space`].
    pub fn new(cap: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, searched: 0, cap, failed: false }
    }

    /// Room for the next read, never empty. Call when [`Lines::next_line`] has nothing more, and tell by
    /// [`Lines::filled`] how much was read.
    pub fn space(&mut self) -> &mut [u8] {
        self.compact();
        if self.buffer.len() - self.end < limits::LINE_READ / 2 {
            // Doubling keeps a long line linear; one read beyond the cap is enough to know that it is too long.
            let most = self.cap.saturating_add(limits::LINE_READ);
            let wanted = self.buffer.len().saturating_mul(2).min(most);
            self.buffer.resize(wanted.max(self.end + limits::LINE_READ), 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// The first `count` bytes of [`Lines::space`] are new input.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// The next whole line without its end (LF or CR LF); blank lines are skipped. `None`: more input is needed.
    ///
    /// # Errors
    /// [`TooLong`], from then on for ever.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        while let Some(line) = self.take_line()? {
            if !self.bytes(line.clone()).trim_ascii().is_empty() {
                return Ok(Some(self.bytes(line)));
            }
        }
        Ok(None)
    }

    /// What came after the last line end. At the end of the input: a line that was broken off.
    pub fn unfinished(&self) -> &[u8] {
        self.bytes(self.start..self.end)
    }

    /// Cuts the next line off the front.
    fn take_line(&mut self) -> Result<Option<Range<usize>>, TooLong> {
        if self.failed {
            return Err(TooLong);
        }
        let start = self.start;
        let (line, found) = match find_newline(self.bytes(self.searched..self.end)) {
            Some(distance) => (start..self.searched + distance, true),
            None => (start..self.end, false),
        };
        self.searched = if found { line.end + 1 } else { line.end };
        let bytes = self.bytes(line.clone());
        let length = bytes.strip_suffix(b"\r").unwrap_or(bytes).len();
        if length > self.cap {
            self.failed = true;
            (self.buffer, self.start, self.end, self.searched) = (Vec::new(), 0, 0, 0);
            return Err(TooLong);
        }
        if !found {
            return Ok(None);
        }
        self.start = self.searched;
        Ok(Some(start..start + length))
    }

    /// Moves what is left to the front, and gives memory back after a long line.
    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.searched -= self.start;
            self.start = 0;
        }
        if self.buffer.len() > limits::LINE_KEPT && self.end < limits::LINE_KEPT / 2 {
            self.buffer.truncate(limits::LINE_KEPT);
            self.buffer.shrink_to_fit();
        }
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }
}

/// Where the first LF is. `contains` is fast on bytes and `position` is not, so whole blocks are passed over by the former.
fn find_newline(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 256;
    let (number, block) = bytes.chunks(BLOCK).enumerate().find(|(_, block)| block.contains(&b'\n'))?;
    let place = block.iter().position(|byte| *byte == b'\n')?;
    Some(number * BLOCK + place)
}

#[cfg(test)]
mod tests {
    use super::{Lines, TooLong, find_newline};
    use crate::limits;

    /// Feeds pieces; the lines as text, and whether it ended with `TooLong`.
    fn run(cap: usize, pieces: &[&[u8]]) -> (Vec<String>, bool) {
        let mut lines = Lines::new(cap);
        let mut out = Vec::new();
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let space = lines.space();
                let count = space.len().min(piece.len());
                space[..count].copy_from_slice(&piece[..count]);
                lines.filled(count);
                piece = &piece[count..];
                loop {
                    match lines.next_line() {
                        Ok(Some(line)) => out.push(String::from_utf8_lossy(line).into_owned()),
                        Ok(None) => break,
                        Err(TooLong) => {
                            assert_eq!(lines.next_line(), Err(TooLong), "an error stays");
                            return (out, true);
                        }
                    }
                }
            }
        }
        (out, false)
    }

    /// The same verdict for the whole input, each byte alone, and each split in two.
    #[track_caller]
    fn check(cap: usize, input: &str, lines: &[&str], too_long: bool) {
        let input = input.as_bytes();
        let expected = (lines.iter().map(ToString::to_string).collect::<Vec<_>>(), too_long);
        assert_eq!(run(cap, &[input]), expected, "whole");
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(run(cap, &bytes), expected, "byte by byte");
        for place in 0..input.len() {
            let (left, right) = input.split_at(place);
            assert_eq!(run(cap, &[left, right]), expected, "split at {place}");
        }
    }

    #[test]
    fn lines() {
        check(9, "{\"a\":1}\n{}\r\n[]\n", &["{\"a\":1}", "{}", "[]"], false);
        check(9, "\n\r\n \t\n\r\r\nx\n\n", &["x"], false);
        check(9, "a\rb\n\r\r\rc\r\n", &["a\rb", "\r\r\rc"], false);
        check(9, "begun", &[], false);
        check(9, "", &[], false);
    }

    #[test]
    fn caps() {
        check(4, "1234\n123\n", &["1234", "123"], false);
        check(4, "1234\r\n1\n", &["1234", "1"], false);
        check(4, "1\n12345\n2\n", &["1"], true);
        check(4, "1\n12345", &["1"], true);
        check(4, "1234\rx", &[], true);
        check(0, "\n\r\n", &[], false);
        check(0, "x", &[], true);
    }

    #[test]
    fn unfinished_line_is_kept() {
        let mut lines = Lines::new(64);
        lines.space()[..6].copy_from_slice(b"one\ntw");
        lines.filled(6);
        assert_eq!(lines.next_line(), Ok(Some(&b"one"[..])));
        assert_eq!(lines.next_line(), Ok(None));
        assert_eq!(lines.unfinished(), b"tw");
    }

    #[test]
    fn long_lines_pass_and_memory_comes_back() {
        let long = "x".repeat(4 << 20);
        let input = format!("{long}\nshort\n");
        assert_eq!(run(4 << 20, &[input.as_bytes()]).0, [&long, "short"]);

        let mut lines = Lines::new(4 << 20);
        for piece in input.as_bytes().chunks(1000) {
            lines.space()[..piece.len()].copy_from_slice(piece);
            lines.filled(piece.len());
            while lines.next_line().unwrap().is_some() {}
        }
        assert!(lines.space().len() <= limits::LINE_KEPT);
        assert!(lines.buffer.capacity() <= limits::LINE_KEPT * 2);
    }

    #[test]
    fn space_is_never_empty() {
        let mut lines = Lines::new(10);
        for _ in 0..100 {
            assert!(!lines.space().is_empty());
            lines.filled(usize::MAX);
        }
        assert_eq!(lines.next_line(), Err(TooLong));
        assert!(!lines.space().is_empty());
    }

    #[test]
    fn newline_in_any_block() {
        for place in [0, 1, 255, 256, 257, 511, 512, 1000] {
            let mut bytes = vec![b'x'; place];
            assert_eq!(find_newline(&bytes), None);
            bytes.extend(b"\nyy\n");
            assert_eq!(find_newline(&bytes), Some(place));
        }
    }
}
