//! The sources of facts: files below a root directory, and the few system calls without a file.
//!
//! Both can be replaced, so that a test can describe a whole machine in a directory. The topic
//! modules (`system`, `disks`, …) parse the data.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::netlink::{self, Address};
use crate::limits::DeviceLimits;

/// A machine: this one, or one described by a test.
pub struct Machine {
    root: PathBuf,
    kernel: Box<dyn Kernel>,
    logs: Vec<PathBuf>,
    limits: DeviceLimits,
}

/// Facts that are only available through system calls.
pub trait Kernel {
    /// Returns the machine's architecture from `uname`, for example `aarch64`.
    fn architecture(&self) -> String;

    /// Returns the space on the file system at `mount` (`statvfs`).
    ///
    /// # Errors
    /// The error of the system call.
    fn space(&self, mount: &Path) -> io::Result<Space>;

    /// Returns the addresses of all interfaces, at most `limits.entries`.
    ///
    /// # Errors
    /// If the kernel does not provide them here.
    fn addresses(&self, limits: &DeviceLimits) -> io::Result<Vec<Address>>;

    /// Sleeps for about `time` and returns the actual duration.
    fn pause(&self, time: Duration) -> Duration;
}

/// Space on a file system. Sizes in bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Space {
    /// Total size.
    pub size: u64,
    /// Space that holds data.
    pub used: u64,
    /// Space available to an ordinary user; less than `size - used` if some is reserved.
    pub available: u64,
    /// Maximum number of files; 0 if the file system has no such limit.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
}

impl Machine {
    /// Returns this machine. `logs` may be read in addition to the common log files.
    pub fn here(logs: Vec<PathBuf>, limits: DeviceLimits) -> Self {
        Self::new(PathBuf::from("/"), Box::new(Linux), logs, limits)
    }

    /// Returns a machine whose files are below `root`. `logs` are absolute paths, not relative to
    /// `root`.
    pub fn new(root: PathBuf, kernel: Box<dyn Kernel>, logs: Vec<PathBuf>, limits: DeviceLimits) -> Self {
        Self { root, kernel, logs, limits }
    }

    /// Returns the system calls.
    pub fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    /// Returns the limits.
    pub fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    /// Returns the log files given by flag.
    pub fn logs(&self) -> &[PathBuf] {
        &self.logs
    }

    /// Returns the full path of `path`, which has no leading `/`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the content of a file, limited to `limits.text_bytes` and then cut after the last
    /// whole line. `None` if it cannot be read.
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let max = self.limits.text_bytes;
        let mut bytes = Vec::new();
        let file = File::open(self.path(path)).ok()?;
        file.take(max as u64).read_to_end(&mut bytes).ok()?;
        if bytes.len() == max {
            let end = bytes.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
            bytes.truncate(end);
        }
        Some(bytes)
    }

    /// Same as [`Machine::bytes`], as text; invalid UTF-8 is replaced.
    pub fn text(&self, path: &str) -> Option<String> {
        self.bytes(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the trimmed text of a file. `None` if it cannot be read or is empty.
    pub fn line(&self, path: &str) -> Option<String> {
        let text = self.text(path)?;
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Returns the sorted names in a directory, at most `limits.entries`. Empty if it cannot be
    /// read.
    pub fn names(&self, path: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<String> = names.take(self.limits.entries).collect();
        names.sort_unstable();
        names
    }

    /// Returns the process ids, at most `limits.processes`.
    pub fn processes(&self) -> Vec<u32> {
        let Ok(entries) = fs::read_dir(self.path("proc")) else { return Vec::new() };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.take(self.limits.processes).collect()
    }
}

/// The running Linux kernel.
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
