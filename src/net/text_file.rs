//! Small hand-written files that hold secrets: tokens, header fields.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::process::geteuid;

use crate::limits;

/// Reads such a file, of at most [`limits::TEXT_FILE`] bytes.
///
/// # Errors
/// A description of the problem, which never quotes the file because it holds secrets.
pub fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(limits::TEXT_FILE + 1).read_to_string(&mut text));
    match read.map_err(|error| error.kind()) {
        Ok(_) if text.len() as u64 > limits::TEXT_FILE => {
            Err(format!("file too large: more than {} bytes", limits::TEXT_FILE))
        }
        Ok(_) => Ok(text),
        Err(io::ErrorKind::NotFound) => Err("no such file".into()),
        Err(io::ErrorKind::PermissionDenied) => Err("permission denied".into()),
        Err(io::ErrorKind::InvalidData) => Err("not a text file".into()),
        Err(kind) => Err(kind.to_string()),
    }
}

/// Logs a warning if other users have access to the file. `place` names the flag and the file.
///
/// This is not an error, because existing setups must keep working.
pub fn warn_if_exposed(place: &str, path: &Path) {
    // Only regular files are checked: other users cannot open a pipe or a terminal of ours.
    let Some(file) = fs::metadata(path).ok().filter(fs::Metadata::is_file) else { return };
    if let Some(change) = change_of_mode(file.mode(), file.uid() == geteuid().as_raw()) {
        let mode = file.mode() & 0o777;
        log::warn!("{place}: other users have access to this file (mode {mode:03o}); run {change} on it");
    }
}

/// Returns the command that removes other users' access, if any is needed. The group bits of a file
/// with another owner (such as root) are ignored, because we can often read such a file through its
/// group alone.
fn change_of_mode(mode: u32, is_own: bool) -> Option<&'static str> {
    match is_own {
        true if mode & 0o077 != 0 => Some("chmod 600"),
        false if mode & 0o007 != 0 => Some("chmod o="),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_modes() {
        for (mode, is_own, expected) in [
            (0o100_600, true, None),
            (0o100_400, true, None),
            (0o100_700, true, None),
            (0o100_640, true, Some("chmod 600")),
            (0o100_620, true, Some("chmod 600")),
            (0o100_604, true, Some("chmod 600")),
            (0o100_644, true, Some("chmod 600")),
            (0o100_640, false, None),
            (0o100_644, false, Some("chmod o=")),
            (0o100_602, false, Some("chmod o=")),
        ] {
            assert_eq!(change_of_mode(mode, is_own), expected, "{mode:o} {is_own}");
        }
    }
}
