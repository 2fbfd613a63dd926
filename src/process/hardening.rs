//! What other processes of the same user may see of this one.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Keeps the environment and the memory of this process, with the tokens in them, from other processes of the same user: a child
/// could read `/proc/<ppid>/environ` and `mem`. There is no core dump then, either. Programs that are started do not inherit it.
pub fn hide() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("cannot keep this process from being read by others of its user: {error}");
    }
}
