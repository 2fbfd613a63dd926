//! Tool `log_tail`: the end of one log file from a fixed set.
//!
//! The `file` argument must equal a path in the set, so a client can never make the server open
//! another path. The common files must not be symbolic links; files given by flag are the owner's
//! choice and may be. Only regular files are read, and opening one never blocks (opening a named
//! pipe could).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::machine::Machine;
use super::report::{Arguments, Report, ToolError};
use super::{
    format::bytes,
    schema::{field, list, object},
};
use crate::limits::DeviceLimits;
use crate::util::escape::show;

/// Common system logs. Login logs (`auth.log`, `secure`) are omitted on purpose.
const COMMON: &[&str] = &[
    "/var/log/syslog",
    "/var/log/messages",
    "/var/log/kern.log",
    "/var/log/daemon.log",
    "/var/log/dmesg",
    "/var/log/boot.log",
];

/// Description of the tool.
pub const DESCRIPTION: &str = "The last lines of one log file. Only the files that the argument `file` lists can be read, and at \
     most their last 64 KiB. The owner of the host can add files with `--log FILE`.";

/// Returns the input schema, with the files that exist now.
pub fn arguments(machine: &Machine) -> Value {
    let limits = machine.limits();
    let mut file = json!({ "type": "string", "description": "Path of the file" });
    let there = there(machine);
    // JSON Schema discourages an empty `enum`.
    if !there.is_empty() {
        file["enum"] = json!(there);
    }
    json!({
        "type": "object",
        "properties": {
            "file": file,
            "lines": {
                "type": "integer", "minimum": 1, "maximum": limits.log_lines, "default": limits.log_lines_default,
                "description": "Number of lines",
            },
        },
        "required": ["file"],
        "additionalProperties": false,
    })
}

/// Returns the output schema.
pub fn schema() -> Value {
    object([
        ("file", field("string", "Path of the file")),
        ("size_bytes", field("integer", "Size of the whole file")),
        ("lines", list(field("string", "One line; bytes that are not UTF-8 are replaced"), "Oldest first")),
        ("truncated", field("boolean", "Output was truncated: there were more lines, or a longer one")),
    ])
}

/// Reads the end of a file.
///
/// # Errors
/// If the arguments are invalid or the file cannot be read.
pub fn report(machine: &Machine, arguments: &Arguments<'_>) -> Result<Report, ToolError> {
    let limits = machine.limits();
    arguments.only(&["file", "lines"])?;
    let wanted = arguments.whole("lines", 1..=limits.log_lines)?.unwrap_or(limits.log_lines_default);
    let there = there(machine);
    let known = || if there.is_empty() { "none".to_owned() } else { there.join(", ") };
    let Some(name) = arguments.text("file")? else {
        return Err(ToolError(format!("argument `file` is missing; files that can be read: {}", known())));
    };
    let Some(log_file) = find(machine, name) else {
        return Err(ToolError(format!(
            "argument `file`: {} is not allowed; files that can be read: {}",
            show(name),
            known()
        )));
    };
    let end = read_end(&log_file, limits)
        .map_err(|error| ToolError(format!("{} cannot be read: {}", show(name), error_words(&error))))?;
    let Tail { lines, truncated } =
        tail(&end.bytes, end.whole, usize::try_from(wanted).unwrap_or(usize::MAX));
    let data = json!({ "file": name, "size_bytes": end.size, "truncated": truncated, "lines": &lines });
    let mut text = vec![format!(
        "{}, {}, last {} lines{}",
        show(name),
        bytes(end.size),
        lines.len(),
        if truncated { " (cut off)" } else { "" }
    )];
    text.extend(lines);
    Ok(Report { lines: text, data })
}

/// A file in the set.
struct LogFile {
    path: PathBuf,
    /// Given by the owner: symbolic links are followed.
    given: bool,
}

/// Returns the file in the set with exactly this name.
fn find(machine: &Machine, name: &str) -> Option<LogFile> {
    let given = machine.logs().iter().find(|path| path.to_string_lossy() == name);
    if let Some(path) = given {
        return Some(LogFile { path: path.clone(), given: true });
    }
    let common = COMMON.iter().find(|path| **path == name)?;
    Some(LogFile { path: common_path(machine, common), given: false })
}

/// Returns the names in the set whose files exist now. Does not check whether they are readable.
fn there(machine: &Machine) -> Vec<String> {
    let is_file = |path: &Path| path.metadata().is_ok_and(|found| found.is_file());
    let is_plain = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
    let given =
        machine.logs().iter().filter(|path| is_file(path)).map(|path| path.to_string_lossy().into_owned());
    let mut names: Vec<String> = given.collect();
    for path in COMMON {
        if is_plain(&common_path(machine, path)) && !names.iter().any(|name| name == path) {
            names.push((*path).to_owned());
        }
    }
    names
}

fn common_path(machine: &Machine, path: &str) -> PathBuf {
    machine.path(path.trim_start_matches('/'))
}

/// The last part of a file.
struct FileEnd {
    size: u64,
    bytes: Vec<u8>,
    /// Whether `bytes` is the whole file.
    whole: bool,
}

fn read_end(log_file: &LogFile, limits: &DeviceLimits) -> io::Result<FileEnd> {
    let mut flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    if !log_file.given {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::from(open(&log_file.path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let size = found.len();
    let start = size.saturating_sub(limits.log_bytes as u64);
    let mut bytes = vec![0; limits.log_bytes];
    let mut length = 0;
    while let Some(room @ [_, ..]) = bytes.get_mut(length..) {
        match file.read_at(room, start.saturating_add(length as u64)) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(FileEnd { size, bytes, whole: start == 0 })
}

fn error_words(error: &io::Error) -> String {
    if Errno::from_io_error(error) == Some(Errno::LOOP) {
        return "a symbolic link; start the program with `--log` and its target".to_owned();
    }
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::InvalidInput => "not a regular file".to_owned(),
        _ => error.to_string(),
    }
}

/// The last lines of a file.
#[derive(Debug, Eq, PartialEq)]
struct Tail {
    lines: Vec<String>,
    truncated: bool,
}

/// Returns at most `wanted` lines from the end of `bytes`. Unless `bytes` is the `whole` file, its
/// first line may be incomplete: it is dropped, unless it is the only one.
fn tail(bytes: &[u8], whole: bool, wanted: usize) -> Tail {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Tail { lines: Vec::new(), truncated: !whole };
    }
    let mut lines: Vec<&[u8]> = text.rsplit(|&byte| byte == b'\n').take(wanted).collect();
    let used: usize = lines.iter().map(|line| line.len() + 1).sum();
    let reaches_start = used > text.len();
    let truncated = reaches_start && !whole;
    if truncated && lines.len() > 1 {
        lines.pop();
    }
    lines.reverse();
    let show = |line: &[u8]| String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
    Tail { lines: lines.into_iter().map(show).collect(), truncated }
}

#[cfg(test)]
mod tests {
    use super::{Tail, tail};

    #[track_caller]
    fn check(bytes: &[u8], whole: bool, wanted: usize, lines: &[&str], truncated: bool) {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(tail(bytes, whole, wanted), Tail { lines, truncated }, "{}", bytes.escape_ascii());
    }

    #[test]
    fn last_lines_of_a_whole_file() {
        check(b"", true, 5, &[], false);
        check(b"\n", true, 5, &[""], false);
        check(b"a", true, 5, &["a"], false);
        check(b"a\nb\nc\n", true, 5, &["a", "b", "c"], false);
        check(b"a\nb\nc\n", true, 3, &["a", "b", "c"], false);
        check(b"a\nb\nc\n", true, 2, &["b", "c"], false);
        check(b"a\nb\nunfinished", true, 2, &["b", "unfinished"], false);
        check(b"a\r\n\r\nb\r\n", true, 5, &["a", "", "b"], false);
        check(b"\xff\xfe\x00\x1b[31m\n", true, 5, &["\u{fffd}\u{fffd}\0\u{1b}[31m"], false);
    }

    #[test]
    fn last_lines_of_the_end_of_a_file() {
        check(b"rt\nb\nc\n", false, 5, &["b", "c"], true);
        check(b"rt\nb\nc\n", false, 3, &["b", "c"], true);
        check(b"rt\nb\nc\n", false, 2, &["b", "c"], false);
        check(b"part of one long line", false, 5, &["part of one long line"], true);
        check(b"", false, 5, &[], true);
    }
}
