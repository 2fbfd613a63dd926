//! `mcpport device`: a small read-only stdio MCP server about the machine it runs on, for edge
//! boxes that have neither Node nor Python. Linux only.
//!
//! It is registered like any other server: `mcpport register --stdio "mcpport device"`. It caches
//! nothing and starts no threads: it reads a request, reads files under `/proc` and `/sys`, and
//! writes the response. It never touches anything that may block: network file systems, FUSE,
//! devices, pipes.
//!
//! | file | content |
//! |---|---|
//! | `mod` | reads standard input, writes standard output |
//! | [`server`] | the protocol: one line in, at most one line out |
//! | `stateless` | what differs in MCP 2026-07-28 |
//! | `tools` | the table of tools |
//! | `report` | arguments, reports and errors of tools |
//! | [`machine`] | sources of facts: a root directory and a few system calls; replaceable |
//! | `system`, `disks`, `network`, `processes`, `logs` | one topic each: parser, report, schema |
//! | [`netlink`] | the kernel's list of addresses, in binary form |
//! | `format`, `schema` | human-readable sizes and times; parts of JSON schemas |

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use crate::error::FatalError;
use crate::limits::DeviceLimits;

mod disks;
mod format;
mod logs;
pub mod machine;
pub mod netlink;
mod network;
mod processes;
mod report;
mod schema;
pub mod server;
mod stateless;
mod system;
mod tools;

use machine::Machine;
use server::DeviceServer;

/// Options of `mcpport device`.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Log files that may be read in addition to the common ones (`--log FILE`). Clients name them
    /// by exactly these texts.
    pub logs: Vec<PathBuf>,
}

/// Serves standard input and output until the input ends or the reader of the output closes it.
///
/// # Errors
/// If reading standard input or writing standard output fails, except for a closed pipe.
pub fn run(options: DeviceOptions) -> Result<(), FatalError> {
    let limits = DeviceLimits::default();
    if io::stdin().is_terminal() {
        eprintln!("mcpport device speaks MCP on standard input and output; press Ctrl-D to exit.");
    }
    let server = DeviceServer::new(Machine::here(options.logs, limits.clone()));
    serve(server, io::stdin().lock(), io::stdout().lock(), limits.line_bytes)
}

/// Answers every line of `input` on `output`. Lines longer than `longest` bytes are skipped and
/// answered with an error.
///
/// # Errors
/// Same as [`run`].
pub fn serve(
    mut server: DeviceServer,
    mut input: impl BufRead,
    mut output: impl Write,
    longest: usize,
) -> Result<(), FatalError> {
    loop {
        let answer = match read_line(&mut input, longest) {
            Ok(InputLine::End) => return Ok(()),
            Ok(InputLine::TooLong) => Some(server.too_long(longest)),
            Ok(InputLine::Whole(line)) => server.handle(&line),
            Err(error) => return Err(FatalError::run(format!("cannot read standard input: {error}"))),
        };
        let Some(mut answer) = answer else { continue };
        answer.push('\n');
        match output.write_all(answer.as_bytes()).and_then(|()| output.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(FatalError::run(format!("cannot write to standard output: {error}"))),
        }
    }
}

/// The result of reading one line of input.
#[derive(Debug, Eq, PartialEq)]
enum InputLine {
    End,
    TooLong,
    Whole(Vec<u8>),
}

/// Reads one line without its line feed. A last line without a line feed counts. Allocates a new
/// buffer for each line, so that a long line does not keep its memory.
fn read_line(input: &mut impl BufRead, longest: usize) -> io::Result<InputLine> {
    let mut line = Vec::new();
    let mut too_long = false;
    let mut any = false;
    loop {
        let chunk = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let ended = chunk.is_empty();
        any |= !ended;
        let feed = chunk.iter().position(|&byte| byte == b'\n');
        let text = chunk.get(..feed.unwrap_or(chunk.len())).unwrap_or_default();
        if too_long || line.len().saturating_add(text.len()) > longest {
            too_long = true;
            line = Vec::new();
        } else {
            line.extend_from_slice(text);
        }
        let used = text.len() + usize::from(feed.is_some());
        input.consume(used);
        if feed.is_some() || ended {
            return Ok(match (any, too_long) {
                (false, _) => InputLine::End,
                (true, true) => InputLine::TooLong,
                (true, false) => InputLine::Whole(line),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{InputLine, read_line};
    use std::io::{BufReader, Read};

    fn lines(input: impl Read, longest: usize) -> Vec<InputLine> {
        let mut input = BufReader::with_capacity(3, input);
        let mut found = Vec::new();
        loop {
            match read_line(&mut input, longest).expect("memory can be read") {
                InputLine::End => return found,
                line => found.push(line),
            }
        }
    }

    fn whole(text: &str) -> InputLine {
        InputLine::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_are_cut_at_line_feeds() {
        let cases: [(&str, &[&str]); 5] = [
            ("", &[]),
            ("a", &["a"]),
            ("one\ntwo\n", &["one", "two"]),
            ("\n\nx\r\n", &["", "", "x\r"]),
            ("12345678", &["12345678"]),
        ];
        for (input, expected) in cases {
            let expected: Vec<InputLine> = expected.iter().map(|text| whole(text)).collect();
            assert_eq!(lines(input.as_bytes(), 8), expected, "{input:?}");
        }
    }

    #[test]
    fn a_long_line_is_skipped_and_the_next_one_is_read() {
        assert_eq!(lines(&b"123456789\nnext\n"[..], 8), [InputLine::TooLong, whole("next")]);
        assert_eq!(lines(&b"ok\n1234567890123456"[..], 8), [whole("ok"), InputLine::TooLong]);
    }
}
