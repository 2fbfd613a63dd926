//! Orphans that the kernel reparents to this process: helpers of a server that left its process
//! group, and, in a container where we are process 1, every other process whose parent has ended.
//!
//! Every child of this process was either started by [`spawn`] or adopted. The pid of a child
//! cannot be reused before we reap it, so a signal to a child cannot reach another process. Adopted
//! children are reaped whenever they end. They are killed when the last server has ended, except by
//! process 1: there an orphan may belong to a program that somebody else started in the container.

use std::{
    collections::BTreeSet,
    fs, io,
    process::{self, Command},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use async_signal::{Signal, Signals};
use futures_lite::StreamExt;
use rustix::process::{
    Pid, Signal as Kill, WaitId, WaitIdOptions, getpid, kill_process, set_child_subreaper, waitid,
};
use smol::Timer;

use super::within;
use crate::{limits, runtime::lock::Lock};

/// Pids of the children that [`spawn`] started and that are not yet reaped.
static STARTED: Lock<BTreeSet<i32>> = Lock::new(BTreeSet::new());
/// Set by [`adopt`]: from then on every child is either in [`STARTED`] or adopted.
static ADOPTING: AtomicBool = AtomicBool::new(false);

/// Keeps a started child's pid in [`STARTED`] until dropped, which happens when the child is
/// reaped.
#[derive(Debug)]
pub(super) struct Started(i32);

impl Drop for Started {
    fn drop(&mut self) {
        STARTED.lock().remove(&self.0);
    }
}

/// Starts a command. Holds the lock, so that [`reap`] cannot take the new child for an orphan.
pub(super) fn spawn(command: &mut Command) -> io::Result<(process::Child, Started)> {
    let mut started = STARTED.lock();
    let child = command.spawn()?;
    let number = Pid::from_child(&child).as_raw_pid();
    started.insert(number);
    Ok((child, Started(number)))
}

/// Makes this process the parent of orphaned descendants, and reaps them for as long as the future
/// runs. Only for a program whose children are all started by [`super::Child`]. Call it before the
/// first child starts: process 1 adopts earlier orphans.
pub fn adopt() -> impl Future<Output = ()> {
    let signals = Signals::new([Signal::Child]);
    // Process 1 adopts orphans without this call.
    if let Err(error) = set_child_subreaper(Some(getpid())) {
        log::debug!("cannot track processes that leave a server's process group: {error}");
    }
    ADOPTING.store(true, Ordering::Release);
    async {
        match signals {
            Ok(mut signals) => {
                reap();
                while signals.next().await.is_some() {
                    reap();
                }
            }
            Err(error) => log::warn!("cannot reap orphans, they remain zombies: {error}"),
        }
        std::future::pending().await
    }
}

/// Reaps adopted children that have ended. Returns those that still run.
fn reap() -> Vec<Pid> {
    // Held so that a child that is being started is not taken for an orphan.
    let started = STARTED.lock();
    let adopted = children().into_iter().filter(|child| !started.contains(&child.as_raw_pid()));
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    adopted.filter(|child| matches!(waitid(WaitId::Pid(*child), options), Ok(None))).collect()
}

/// Kills helpers that outlived the last server, and their own children, which are then reparented
/// to us.
pub(super) async fn end_helpers() {
    if !ADOPTING.load(Ordering::Acquire) || process::id() == 1 {
        return;
    }
    let ending = async {
        // The server that an orphan came from is unknown, so orphans live until no server is left.
        while STARTED.lock().is_empty() {
            let helpers = reap();
            if helpers.is_empty() {
                return;
            }
            for helper in helpers {
                log::info!("killing process {}: it outlived its server", helper.as_raw_pid());
                let _ = kill_process(helper, Kill::KILL);
            }
            Timer::after(limits::DRAIN_POLL).await;
        }
    };
    let _ = within(limits::CLOSE, ending).await;
}

/// Ends the remaining processes when the program stops at once: kills helpers that outlived their
/// server, and waits for servers that were killed, whose children are then reparented to us. Blocks
/// for at most [`limits::CLOSE`].
pub fn end_all() {
    // The kernel ends the children of process 1 with it; before that, an orphan may belong to
    // another program.
    if !ADOPTING.load(Ordering::Acquire) || process::id() == 1 {
        return;
    }
    let begun = Instant::now();
    while begun.elapsed() < limits::CLOSE {
        let helpers = reap();
        if helpers.is_empty() && STARTED.lock().is_empty() {
            return;
        }
        for helper in helpers {
            let _ = kill_process(helper, Kill::KILL);
        }
        thread::sleep(limits::DRAIN_POLL);
    }
    log::warn!("some processes of the servers did not exit within {} s", limits::CLOSE.as_secs());
}

/// Returns the children of this process.
fn children() -> Vec<Pid> {
    let own = process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = numbers.filter(|number| {
        let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
        parent(&stat) == Some(own)
    });
    ours.filter_map(Pid::from_raw).collect()
}

/// Returns the parent's pid from a `/proc/PID/stat` text. The name before it may contain any
/// character, `)` included.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parent;

    #[test]
    fn the_parent_pid_is_read_after_any_process_name() {
        for (stat, expected) in [
            ("7 (cat) S 5 7 7 0 -1", Some(5)),
            ("7 (a) R 9 (b) Z 6 7 7", Some(6)),
            ("7 (cat", None),
            ("", None),
        ] {
            assert_eq!(parent(stat), expected, "{stat}");
        }
    }
}
