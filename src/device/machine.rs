//! Where facts come from: files below a root folder, and the few system calls that have no file.
//!
//! Both can be replaced, so that a test describes a whole box in a folder. Below: the file system. Above: the
//! subjects (`system`, `disks`, …), which parse.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::netlink::{self, Address};
use crate::limits::DeviceLimits;

/// A box: this one, or one that a test made up.
pub struct Machine {
    root: PathBuf,
    kernel: Box<dyn Kernel>,
    logs: Vec<PathBuf>,
    limits: DeviceLimits,
}

/// What the kernel tells only through a system call.
pub trait Kernel {
    /// The processor's name as the kernel gives it (`uname`), for example `aarch64`.
    fn architecture(&self) -> String;

    /// Room on the file system at `mount` (`statvfs`).
    ///
    /// # Errors
    /// As the system call.
    fn space(&self, mount: &Path) -> io::Result<Space>;

    /// The addresses of all interfaces, at most `limits.entries`.
    ///
    /// # Errors
    /// When the kernel does not hand them out here.
    fn addresses(&self, limits: &DeviceLimits) -> io::Result<Vec<Address>>;

    /// Waits for about `time` and tells how long it was.
    fn pause(&self, time: Duration) -> Duration;
}

/// Room on a file system. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Space {
    /// All of it.
    pub size: u64,
    /// What holds data.
    pub used: u64,
    /// What an ordinary user may still fill; less than `size - used` where some is reserved.
    pub available: u64,
    /// Files that it can hold; 0 where there is no such number.
    pub inodes: u64,
    /// Of those, free.
    pub inodes_free: u64,
}

impl Machine {
    /// This box. `logs` may be read beside the common log files.
    pub fn here(logs: Vec<PathBuf>, limits: DeviceLimits) -> Self {
        Self::new(PathBuf::from("/"), Box::new(Linux), logs, limits)
    }

    /// A box whose files lie below `root`. `logs` are not looked for there, but where they say.
    pub fn new(root: PathBuf, kernel: Box<dyn Kernel>, logs: Vec<PathBuf>, limits: DeviceLimits) -> Self {
        Self { root, kernel, logs, limits }
    }

    /// The system calls.
    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// The bounds.
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// The log files that were given by flag.
    pub fn logs(&self) -> &[PathBuf] {
        &self.logs
    }

    /// Where `path`, which is written without a leading `/`, lies.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The bytes of a file, at most `limits.text_bytes` and then only whole lines. `None` when it cannot be
    /// read.
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let most = self.limits.text_bytes;
        let mut bytes = Vec::new();
        let file = File::open(self.path(path)).ok()?;
        file.take(most as u64).read_to_end(&mut bytes).ok()?;
        if bytes.len() == most {
            let end = bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
            bytes.truncate(end);
        }
        Some(bytes)
    }

    /// As [`Machine::bytes`], as text; what is not UTF-8 is replaced.
    pub fn text(&self, path: &str) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The text of a file without white space around it. `None` when it cannot be read or is empty.
    pub fn line(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The names in a folder, sorted, at most `limits.entries`. Nothing when it cannot be read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.take(self.limits.entries).collect();
        names.sort_unstable();
        names
    }

    /// The processes, at most `limits.processes`.
    pub fn processes(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.path("proc")) else { return Vec::new() };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.take(self.limits.processes).collect()
    }
}

/// The kernel that runs us.
struct Linux;

impl Kernel for Linux {
    fn architecture(&self) -> String {
        rustix::system::uname().machine().to_string_lossy().into_owned()
    }

    fn space(&self, mount: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(mount)?;
        let unit = if found.f_frsize == 0 { found.f_bsize } else { found.f_frsize };
        Ok(Space {
            size: found.f_blocks.saturating_mul(unit),
            used: found.f_blocks.saturating_sub(found.f_bfree).saturating_mul(unit),
            available: found.f_bavail.saturating_mul(unit),
            inodes: found.f_files,
            inodes_free: found.f_ffree,
        })
    }

    fn addresses(&self, limits: &DeviceLimits) -> io::Result<Vec<Address>> {
        netlink::addresses(limits)
    }

    fn pause(&self, time: Duration) -> Duration {
        let before = Instant::now();
        std::thread::sleep(time);
        before.elapsed()
    }
}
