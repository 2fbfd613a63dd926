//! Checks whether the kernel can execute a file, to explain why a server ended at once.
//!
//! glibc passes a file that the kernel cannot execute to `sh`, which fails on its bytes; only musl
//! reports the system's own error.

use std::{
    env,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

/// Bytes read from the start of a file to detect its format: an ELF header up to the machine field.
const HEAD: u64 = 20;

/// Returns whether a program (a path, or a name in `PATH`) is certainly neither for this machine
/// nor a script with a `#!` line. Returns false when in doubt.
pub fn is_unfit(program: &str) -> bool {
    let heads = find(program).and_then(|path| Some((head(&path)?, head(Path::new("/proc/self/exe"))?)));
    heads.is_some_and(|(theirs, ours)| !fits(&theirs, &ours))
}

fn find(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(program.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// Returns whether a file that starts with `head` can run here. `ours` is the start of a program
/// for this machine.
fn fits(head: &[u8], ours: &[u8]) -> bool {
    // Magic number, class and byte order; then the machine.
    let same = |range: std::ops::Range<usize>| head.get(range.clone()) == ours.get(range);
    head.starts_with(b"#!") || (same(0..6) && same(18..20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let ours = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0";
        let arm = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0";
        for (head, expected) in
            [(&ours[..], true), (b"#!/bin/sh\n", true), (arm, false), (b"echo x\n", false), (b"", false)]
        {
            assert_eq!(fits(head, ours), expected, "{head:?}");
        }
        assert!(!is_unfit("sh") && !is_unfit("/bin/sh") && !is_unfit("no-such-program"));
    }
}
