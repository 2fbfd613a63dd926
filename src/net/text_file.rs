//! Small files that people write and that hold secrets: tokens, header fields.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use rustix::process::geteuid;

use crate::limits;

/// The content of such a file.
///
/// # Errors
/// What is wrong with it, without any of it.
pub fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(limits::TEXT_FILE + 1).read_to_string(&mut text));
    match read.map_err(|error| error.kind()) {
        Ok(_) if text.len() as u64 > limits::TEXT_FILE => {
            Err(format!("it is too large: more than {} bytes", limits::TEXT_FILE))
        }
        Ok(_) => Ok(text),
        Err(io::ErrorKind::NotFound) => Err("no such file".into()),
        Err(io::ErrorKind::PermissionDenied) => Err("it may not be read".into()),
        Err(io::ErrorKind::InvalidData) => Err("it is not a text".into()),
        Err(kind) => Err(kind.to_string()),
    }
}

/// Logs a warning when other users have access to such a file. `place` names the flag and the file.
///
/// A warning and no error, because existing setups must go on working.
pub fn warn_if_exposed(place: &str, path: &Path) {
    // A pipe or a terminal is nobody else's.
    let Some(file) = fs::metadata(path).ok().filter(fs::Metadata::is_file) else { return };
    if let Some(change) = change_of_mode(file.mode(), file.uid() == geteuid().as_raw()) {
        let mode = file.mode() & 0o777;
        log::warn!("{place}: other users have access to this file (mode {mode:03o}); run {change} on it");
    }
}

/// The command that takes access from others. A file that belongs to somebody else (root, say) is often readable to us by its group
/// alone, so its group is left out.
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
