//! Limits what other processes of the same user can read of this one.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Hides the environment and the memory of this process, and the tokens in them, from other
/// processes of the same user: a child could read `/proc/<ppid>/environ` and `mem`. This disables
/// core dumps too. Child programs do not inherit the setting.
pub fn hide() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::warn!("cannot protect this process from inspection by others of its user: {error}");
    }
}
