//! Scans WebSocket frame headers (RFC 6455, section 5.2) for large payload lengths before the
//! WebSocket library reads them, because the library allocates the announced length at once.

use crate::limits;

/// A frame header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Header {
    /// Length of the header in bytes.
    length: usize,
    /// Length of the payload in bytes.
    payload: u64,
    /// The frame is part of a fragmented message.
    fragment: bool,
    /// The frame is the last of its message.
    last: bool,
    control: bool,
}

impl Header {
    /// Parses a header at the start of `bytes`. Returns `None` if it is incomplete.
    fn read(bytes: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = bytes else { return None };
        let (size, payload) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
            small => (0, u64::from(small)),
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let length = 2 + size + mask;
        let (last, control) = (first & 0x80 != 0, first & 0x08 != 0);
        let fragment = !control && (!last || first & 0x0f == 0);
        (bytes.len() >= length).then_some(Self { length, payload, fragment, last, control })
    }

    /// Returns how many bytes the library will allocate for the payload. 0 for payloads too small
    /// to count.
    fn memory(&self) -> usize {
        let payload = usize::try_from(self.payload).unwrap_or(usize::MAX);
        match self.fragment {
            // Fragments are appended to a buffer that grows by doubling.
            true => payload.saturating_mul(2),
            false if payload <= limits::BUDGET_SMALL => 0,
            false => payload,
        }
    }
}

/// How much of the scanned bytes may be passed on to the library.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// All of them.
    All,
    /// This many bytes; an incomplete header follows.
    Incomplete(usize),
    /// The first value is the number of bytes. The header of a frame follows that needs as many
    /// bytes of memory as the second value; see [`FrameHeaderScanner::admit`].
    Announced(usize, usize),
}

/// Tracks the frames of a connection.
#[derive(Debug, Default)]
pub struct FrameHeaderScanner {
    /// Payload bytes of the current frame that have not arrived.
    left: u64,
    /// A fragmented message is incomplete.
    open: bool,
    /// Memory for the next frame is reserved.
    admitted: bool,
}

impl FrameHeaderScanner {
    /// Whether no message is partly received.
    pub fn is_between_messages(&self) -> bool {
        self.left == 0 && !self.open
    }

    /// Lets the announced frame pass; the caller has reserved the memory for it.
    pub fn admit(&mut self) {
        self.admitted = true;
    }

    /// Scans the bytes that follow those passed on before. The bytes that the result lets pass
    /// count as passed on.
    pub fn scan(&mut self, bytes: &[u8]) -> Found {
        let mut passed = 0;
        loop {
            let rest = bytes.get(passed..).unwrap_or_default();
            let payload = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
            passed += payload;
            self.left -= payload as u64;
            let rest = rest.get(payload..).unwrap_or_default();
            if rest.is_empty() {
                return Found::All;
            }
            let Some(header) = Header::read(rest) else { return Found::Incomplete(passed) };
            let memory = header.memory();
            if memory > 0 && !self.admitted {
                return Found::Announced(passed, memory);
            }
            self.admitted = false;
            self.left = header.payload;
            if !header.control {
                self.open = !header.last;
            }
            passed += header.length;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        let masked = |first, payload, fragment, last, control, length| {
            Some(Header { length, payload, fragment, last, control }).inspect(|_| assert!(first > 0))
        };
        let cases: &[(&[u8], Option<Header>)] = &[
            (b"", None),
            (b"\x81", None),
            (b"\x81\x05", masked(1, 5, false, true, false, 2)),
            (b"\x81\x85\0\0\0", None),
            (b"\x81\x85\0\0\0\0", masked(1, 5, false, true, false, 6)),
            (b"\x01\x85\0\0\0\0", masked(1, 5, true, false, false, 6)),
            (b"\x80\x85\0\0\0\0", masked(1, 5, true, true, false, 6)),
            (b"\x89\x80\0\0\0\0", masked(1, 0, false, true, true, 6)),
            (b"\x81\xfe\xff", None),
            (b"\x81\xfe\xff\xff\0\0\0\0", masked(1, 65_535, false, true, false, 8)),
            (b"\x81\xff\0\0\0\0\0\x40\0", None),
            (b"\x81\xff\0\0\0\0\0\x40\0\0\0\0\0\0", masked(1, 4 << 20, false, true, false, 14)),
        ];
        for (bytes, header) in cases {
            assert_eq!(Header::read(bytes), *header, "{bytes:?}");
        }
    }

    #[test]
    fn large_frames_are_announced_before_their_header() {
        let mut scanner = FrameHeaderScanner::default();
        let large = b"\x81\xff\0\0\0\0\0\x40\0\0\0\0\0\0abc";
        let bytes = [b"\x81\x82\0\0\0\0{}".as_slice(), large].concat();
        assert_eq!(scanner.scan(&bytes[..3]), Found::Incomplete(0));
        assert_eq!(scanner.scan(&bytes[..7]), Found::All);
        assert_eq!(scanner.scan(&bytes[7..]), Found::Announced(1, 4 << 20));
        assert!(scanner.is_between_messages());
        assert_eq!(scanner.scan(large), Found::Announced(0, 4 << 20));
        scanner.admit();
        assert_eq!(scanner.scan(large), Found::All);
        assert!(!scanner.is_between_messages());
        assert_eq!(scanner.scan(&vec![0; (4 << 20) - 4]), Found::All);
        assert_eq!(scanner.scan(b"\0\x81"), Found::Incomplete(1));
        assert!(scanner.is_between_messages());
        assert_eq!(scanner.scan(large), Found::Announced(0, 4 << 20), "it was for one frame only");
    }

    #[test]
    fn fragments_of_any_size_are_announced() {
        let mut scanner = FrameHeaderScanner::default();
        assert_eq!(scanner.scan(b"\x01\x81\0\0\0\0{"), Found::Announced(0, 2));
        scanner.admit();
        assert_eq!(scanner.scan(b"\x01\x81\0\0\0\0{"), Found::All);
        assert_eq!(scanner.scan(b"\x89\x80\0\0\0\0"), Found::All, "a ping in between");
        assert!(!scanner.is_between_messages());
        assert_eq!(scanner.scan(b"\x00\x80\0\0\0\0"), Found::All, "an empty one");
        scanner.admit();
        assert_eq!(scanner.scan(b"\x80\x81\0\0\0\0}"), Found::All);
        assert!(scanner.is_between_messages());
    }

    #[test]
    fn huge_frame_lengths_saturate() {
        let mut scanner = FrameHeaderScanner::default();
        let Found::Announced(0, memory) = scanner.scan(b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0")
        else {
            panic!("not found")
        };
        assert_eq!(memory, usize::MAX);
    }
}
