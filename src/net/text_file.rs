//! Small files that people write: tokens, header fields.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use crate::limits;

/// The content of such a file.
///
/// # Errors
/// What is wrong with it, without any of it.
pub fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(limits::TOKEN_FILE + 1).read_to_string(&mut text));
    match read.map_err(|error| error.kind()) {
        Ok(_) if text.len() as u64 > limits::TOKEN_FILE => Err("it is too large for a list of tokens".into()),
        Ok(_) => Ok(text),
        Err(io::ErrorKind::NotFound) => Err("no such file".into()),
        Err(io::ErrorKind::PermissionDenied) => Err("it may not be read".into()),
        Err(io::ErrorKind::InvalidData) => Err("it is not a text".into()),
        Err(kind) => Err(kind.to_string()),
    }
}
