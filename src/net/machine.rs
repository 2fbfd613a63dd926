//! The memory that this process may use: the smallest of the physical memory, the limits of its
//! control groups, and its own limits (`setrlimit`).

use std::{fs, path::Path};

use rustix::process::{Resource, getrlimit};

/// Returns the smallest of these limits in bytes, or `None` if none is known.
pub fn memory() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    let physical = total(&read(Path::new("/proc/meminfo")));
    let own = [Resource::As, Resource::Data].into_iter().filter_map(|limit| getrlimit(limit).current);
    let groups = groups(&read(Path::new("/proc/self/cgroup")));
    let grouped = groups.iter().filter_map(|file| read(Path::new(file)).trim().parse().ok());
    physical.into_iter().chain(own).chain(grouped).min()
}

/// Parses the physical memory in bytes from `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Returns the files that may limit this process's control group or one of its ancestors, from
/// `/proc/self/cgroup` (cgroups(7)). In a container the path may be the one outside it; then only
/// the last files exist.
fn groups(own: &str) -> Vec<String> {
    let mut files = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let above =
            Path::new(path).ancestors().filter_map(Path::to_str).map(|path| path.trim_end_matches('/'));
        files.extend(above.map(|path| format!("{root}{path}/{name}")));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(total("MemTotal:         474692 kB\nMemFree:  1 kB\n"), Some(474_692 * 1024));
        for odd in ["", "MemTotal:", "MemTotal: x kB", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!(total(odd), None, "{odd}");
        }
        let v2 =
            ["/sys/fs/cgroup/system.slice/m.service/memory.max", "/sys/fs/cgroup/system.slice/memory.max"];
        assert_eq!(groups("0::/system.slice/m.service\n")[..2], v2);
        assert_eq!(groups("0::/\n"), ["/sys/fs/cgroup/memory.max"]);
        let v1 =
            ["/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        assert_eq!(groups("9:cpu,cpuacct:/a\n8:memory:/a\nodd\n"), v1);
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
