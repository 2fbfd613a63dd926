//! Newline-delimited JSON, the framing of MCP over stdio: takes bytes in pieces of any size and
//! returns whole lines.
//!
//! This module does no I/O. `edge` reads a child's stdout into [`Lines::space`] and takes the lines
//! as slices of that buffer, so a line that arrives in one read is not copied. `jsonrpc` parses the
//! lines.

use std::{fmt, ops::Range};

use crate::limits;

/// Error for a line longer than the cap. The line is skipped up to its end and not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TooLong {
    /// The line has exceeded the cap; [`Lines::part`] is its start.
    Begins,
    /// The line has ended; [`Lines::part`] is its end.
    Ended,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("line too long")
    }
}

impl std::error::Error for TooLong {}

/// Splits a byte stream into lines.
#[derive(Debug)]
pub struct Lines {
    /// Fully initialised; the valid bytes are `start..end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// There is no line end before this offset. Each byte is searched once, however small the reads
    /// are.
    searched: usize,
    cap: usize,
    /// The current line is too long.
    skipping: bool,
    /// The last bytes of the line that is being skipped, or that was skipped last.
    tail: Vec<u8>,
}

impl Lines {
    /// Creates a splitter for lines of up to `cap` bytes, not counting the line end. Allocates
    /// nothing before the first [`Lines::space`].
    pub fn new(cap: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, end: 0, searched: 0, cap, skipping: false, tail: Vec::new() }
    }

    /// Returns the buffer for the next read, never empty. Call it when [`Lines::next_line`] has no
    /// more lines, and report the number of bytes read to [`Lines::filled`].
    pub fn space(&mut self) -> &mut [u8] {
        self.compact();
        if self.buffer.len() - self.end < limits::LINE_READ / 2 {
            // Doubling keeps the cost of a long line linear. One read beyond the cap is enough to
            // detect a line that is too long.
            let max = self.cap.saturating_add(limits::LINE_READ);
            let wanted = self.buffer.len().saturating_mul(2).min(max);
            self.buffer.resize(wanted.max(self.end + limits::LINE_READ), 0);
        }
        self.buffer.get_mut(self.end..).unwrap_or_default()
    }

    /// Marks the first `count` bytes of [`Lines::space`] as new input.
    pub fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// Returns the next whole line without its line end (LF or CR LF). Skips blank lines. `None` if
    /// more input is needed.
    ///
    /// # Errors
    /// [`TooLong`], twice for each such line: when it exceeds the cap and when it ends. The lines
    /// after it follow as usual.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, TooLong> {
        while let Some(line) = self.take_line()? {
            if !self.bytes(line.clone()).trim_ascii().is_empty() {
                return Ok(Some(self.bytes(line)));
            }
        }
        Ok(None)
    }

    /// After [`TooLong::Begins`], returns the start of the line, up to the cap; after
    /// [`TooLong::Ended`], its last [`limits::ANSWER_END`] bytes.
    pub fn part(&self) -> &[u8] {
        if self.skipping { self.bytes(self.start..self.searched) } else { &self.tail }
    }

    /// Returns the bytes after the last line end. At the end of the input, this is a truncated
    /// line.
    pub fn unfinished(&self) -> &[u8] {
        self.bytes(self.start..self.end)
    }

    /// Removes the next line from the front.
    fn take_line(&mut self) -> Result<Option<Range<usize>>, TooLong> {
        if self.skipping {
            self.skip()?;
        }
        if self.skipping {
            return Ok(None);
        }
        let start = self.start;
        let (line, found) = match find_newline(self.bytes(self.searched..self.end)) {
            Some(distance) => (start..self.searched + distance, true),
            None => (start..self.end, false),
        };
        let bytes = self.bytes(line.clone());
        let length = bytes.strip_suffix(b"\r").unwrap_or(bytes).len();
        if length > self.cap {
            (self.skipping, self.searched) = (true, start + self.cap);
            self.tail.clear();
            self.keep_tail(start..self.searched);
            return Err(TooLong::Begins);
        }
        self.searched = if found { line.end + 1 } else { line.end };
        if !found {
            return Ok(None);
        }
        self.start = self.searched;
        Ok(Some(start..start + length))
    }

    /// Skips the buffered bytes of a line that is too long.
    fn skip(&mut self) -> Result<(), TooLong> {
        let from = self.searched;
        let found = find_newline(self.bytes(from..self.end));
        let end = found.map_or(self.end, |distance| from + distance);
        self.keep_tail(from..end);
        self.searched = if found.is_some() { end + 1 } else { end };
        self.start = self.searched;
        match found {
            Some(_) => {
                self.skipping = false;
                Err(TooLong::Ended)
            }
            None => Ok(()),
        }
    }

    fn keep_tail(&mut self, range: Range<usize>) {
        let from = range.start.max(range.end.saturating_sub(limits::ANSWER_END));
        let bytes = self.buffer.get(from..range.end).unwrap_or_default();
        self.tail.extend_from_slice(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(limits::ANSWER_END));
    }

    /// Moves the unread bytes to the front, and frees memory after a long line.
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

/// Returns the offset of the first LF. Finds its block first, since `contains` uses `memchr` on
/// bytes and is faster than `position`.
fn find_newline(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 256;
    let (number, block) = bytes.chunks(BLOCK).enumerate().find(|(_, block)| block.contains(&b'\n'))?;
    let position = block.iter().position(|byte| *byte == b'\n')?;
    Some(number * BLOCK + position)
}

#[cfg(test)]
mod tests {
    use super::{Lines, TooLong, find_newline};
    use crate::limits;

    /// Feeds the pieces and returns the lines as text; for a line that is too long, its start and
    /// its end.
    fn run(cap: usize, pieces: &[&[u8]]) -> Vec<String> {
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
                        Err(TooLong::Begins) => {
                            out.push(format!("<{}", String::from_utf8_lossy(lines.part())))
                        }
                        Err(TooLong::Ended) => {
                            out.push(format!("{}>", String::from_utf8_lossy(lines.part())))
                        }
                    }
                }
            }
        }
        out
    }

    /// Checks that the result is the same for the whole input, for single bytes, and for every
    /// split in two.
    #[track_caller]
    fn check(cap: usize, input: &str, expected: &[&str]) {
        let input = input.as_bytes();
        assert_eq!(run(cap, &[input]), expected, "whole");
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert_eq!(run(cap, &bytes), expected, "byte by byte");
        for position in 0..input.len() {
            let (left, right) = input.split_at(position);
            assert_eq!(run(cap, &[left, right]), expected, "split at {position}");
        }
    }

    #[test]
    fn lines() {
        check(9, "{\"a\":1}\n{}\r\n[]\n", &["{\"a\":1}", "{}", "[]"]);
        check(9, "\n\r\n \t\n\r\r\nx\n\n", &["x"]);
        check(9, "a\rb\n\r\r\rc\r\n", &["a\rb", "\r\r\rc"]);
        check(9, "begun", &[]);
        check(9, "", &[]);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped() {
        check(4, "1234\n123\n", &["1234", "123"]);
        check(4, "1234\r\n1\n", &["1234", "1"]);
        check(4, "1\n12345\n2\n", &["1", "<1234", "12345>", "2"]);
        check(4, "1\n12345", &["1", "<1234"]);
        check(4, "1234\rx", &["<1234"]);
        check(4, "123456789\n\n123456\r\n12\n", &["<1234", "123456789>", "<1234", "123456\r>", "12"]);
        check(0, "\n\r\n", &[]);
        check(0, "x\n", &["<", "x>"]);
        let long = format!("{}END\nnext\n", "x".repeat(4 * limits::ANSWER_END));
        let end = format!("{}END>", "x".repeat(limits::ANSWER_END - 3));
        let fed: Vec<&[u8]> = long.as_bytes().chunks(100).collect();
        assert_eq!(run(4, &fed), ["<xxxx", &end, "next"]);
        let mut lines = Lines::new(8);
        for _ in 0..1000 {
            lines.space().fill(b'x');
            lines.filled(limits::LINE_READ / 2);
            while lines.next_line() != Ok(None) {}
        }
        assert!(lines.buffer.capacity() <= limits::LINE_KEPT, "nothing is kept of it");
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
        assert_eq!(run(4 << 20, &[input.as_bytes()]), [&long, "short"]);

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
        assert_eq!(lines.next_line(), Err(TooLong::Begins));
        assert!(!lines.space().is_empty());
    }

    #[test]
    fn newline_in_any_block() {
        for position in [0, 1, 255, 256, 257, 511, 512, 1000] {
            let mut bytes = vec![b'x'; position];
            assert_eq!(find_newline(&bytes), None);
            bytes.extend(b"\nyy\n");
            assert_eq!(find_newline(&bytes), Some(position));
        }
    }
}
