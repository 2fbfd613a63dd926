//! Gives each child a session of its own (`setsid`), so that it has no controlling terminal.
//!
//! In our session, a program that prompts on the terminal (`ssh` for a passphrase, `sudo`) opens
//! `/dev/tty`, and the kernel stops its whole process group with SIGTTIN, because it is in the
//! background: the server hangs, and nobody sees why. Without a terminal, opening `/dev/tty` fails
//! (ENXIO), and the program reports that or goes on without it.
//!
//! The only file with unsafe code: the standard library's safe method (`CommandExt::setsid`) is not
//! stable yet.

#![allow(unsafe_code, reason = "CommandExt::pre_exec, until CommandExt::setsid is stable")]

use std::{os::unix::process::CommandExt, process::Command};

use rustix::process::setsid;

/// Makes the child the leader of a new session, and of a new process group. Not for a command with
/// `CommandExt::process_group`: a group leader cannot start a session.
pub(super) fn own_session(command: &mut Command) {
    let begin = || {
        setsid()?;
        Ok(())
    };
    // SAFETY: the closure runs in the child between `fork` and `exec`, where only async-signal-safe
    // operations are allowed. It makes one system call, without allocation, lock or captured value;
    // its error holds only a number.
    unsafe {
        command.pre_exec(begin);
    }
}
