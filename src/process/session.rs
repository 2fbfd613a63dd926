//! A session of its own for each child (`setsid`), so that it has no controlling terminal.
//!
//! In our session a program that asks on the terminal (`ssh` for a passphrase, `sudo`) opens `/dev/tty`, and the kernel stops
//! its whole process group with SIGTTIN, because it is in the background: the server stands still, and nobody sees why.
//! Without a terminal opening `/dev/tty` fails (ENXIO), and the program says so or goes on without.
//!
//! The only file with unsafe code: the standard library's safe way (`CommandExt::setsid`) is not stable yet.

#![allow(unsafe_code, reason = "CommandExt::pre_exec, until CommandExt::setsid is stable")]

use std::{os::unix::process::CommandExt, process::Command};

use rustix::process::setsid;

/// Lets the child lead a new session, and with it a new process group. Not for a command with a process group of its own
/// (`CommandExt::process_group`): whoever leads a group cannot begin a session.
pub(super) fn own_session(command: &mut Command) {
    let begin = || {
        setsid()?;
        Ok(())
    };
    // SAFETY: the closure runs in the child between `fork` and `exec`, where only what is async-signal-safe is allowed. It
    // is one system call, without allocation, lock or captured value; its error holds nothing but a number.
    unsafe {
        command.pre_exec(begin);
    }
}
