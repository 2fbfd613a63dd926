//! Tool `disks`: space on the file systems on local storage.
//!
//! A mount is measured if it is storage ([`DiskKind`]) and if its path does not lead through a file
//! system that may never answer. A later mount at the same path or above can cover a mount, and
//! `statvfs` on the path then queries the covering file system. So this module reads the mount
//! tree, not only the paths.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::machine::{Machine, Space};
use super::report::Report;
use super::{
    format::bytes,
    schema::{field, list, object},
};
use crate::util::escape::show;

/// Description of the tool.
pub const DESCRIPTION: &str = "Mounted file systems on local storage, with size, used and available bytes and inodes. Each \
     storage is listed once. Memory and pseudo file systems are omitted. Network file systems (NFS, \
     SMB, …) and FUSE are only named under not_measured, because a dead server would block the call.";

/// Returns the output schema.
pub fn schema() -> Value {
    let disk = object([
        ("mount", field("string", "Mount point")),
        ("device", field("string", "Mounted device")),
        ("type", field("string", "File system type")),
        ("read_only", field("boolean", "Mounted read-only")),
        ("size_bytes", field("integer", "Total size in bytes")),
        ("used_bytes", field("integer", "Used bytes")),
        ("available_bytes", field("integer", "Bytes available to unprivileged users")),
        ("inodes", field("integer", "Total inodes; 0 if the file system has no fixed number")),
        ("inodes_free", field("integer", "Free inodes")),
    ]);
    let other = object([
        ("mount", field("string", "Mount point")),
        ("type", field("string", "File system type")),
        ("reason", field("string", "Why it was not measured")),
    ]);
    object([
        ("disks", list(disk, "File systems on storage")),
        ("not_measured", list(other, "File systems that were not queried, or did not respond")),
    ])
}

/// Reads the mount table and queries each storage once.
pub fn report(machine: &Machine) -> Report {
    let table = parse_mounts(&machine.bytes("proc/self/mountinfo").unwrap_or_default());
    let max = machine.limits().entries;
    let mut lines = Vec::new();
    let (mut disks, mut others) = (Vec::new(), Vec::new());
    for (mount, reason) in choose(&table) {
        if disks.len() + others.len() == max {
            lines.push(format!("more than {max} file systems; the rest is omitted"));
            break;
        }
        let space = match reason {
            Some(reason) => Err(reason.to_owned()),
            None => machine.kernel().space(&mount.path).map_err(|error| error.to_string()),
        };
        let path = mount.path.to_string_lossy();
        match space {
            Ok(space) => {
                lines.push(disk_line(mount, &path, &space));
                disks.push(disk_data(mount, &path, &space));
            }
            Err(reason) => {
                lines.push(format!("{} ({}): not measured: {reason}", show(&path), show(&mount.kind)));
                others.push(json!({ "mount": path, "type": mount.kind, "reason": reason }));
            }
        }
    }
    if lines.is_empty() {
        lines.push("no file system on storage was found".to_owned());
    }
    Report { lines, data: json!({ "disks": disks, "not_measured": others }) }
}

fn disk_line(mount: &Mount, path: &str, space: &Space) -> String {
    let percent = if space.size == 0 { 0.0 } else { space.used as f64 * 100.0 / space.size as f64 };
    let mut line = format!(
        "{} ({} on {}{}): {} used of {} ({percent:.0} %), {} available",
        show(path),
        show(&mount.kind),
        show(&mount.device),
        if mount.read_only { ", read-only" } else { "" },
        bytes(space.used),
        bytes(space.size),
        bytes(space.available),
    );
    if space.inodes > 0 {
        line.push_str(&format!("; {} of {} inodes free", space.inodes_free, space.inodes));
    }
    line
}

fn disk_data(mount: &Mount, path: &str, space: &Space) -> Value {
    json!({
        "mount": path, "device": mount.device, "type": mount.kind, "read_only": mount.read_only,
        "size_bytes": space.size, "used_bytes": space.used, "available_bytes": space.available,
        "inodes": space.inodes, "inodes_free": space.inodes_free,
    })
}

/// Returns the mounts to show, sorted by path. A mount that must not be queried has a reason.
fn choose(table: &[Mount]) -> Vec<(&Mount, Option<&'static str>)> {
    let mut chosen: Vec<(&Mount, Option<&'static str>)> = Vec::new();
    for mount in table {
        let kind = DiskKind::of(mount);
        if kind == DiskKind::Pseudo || hidden(table, mount) {
            continue;
        }
        let reason = match kind {
            DiskKind::Remote => Some("network or FUSE file system"),
            _ if behind_remote(table, mount) => Some("below a network or FUSE file system"),
            _ => None,
        };
        chosen.push((mount, reason));
    }
    // Of several mounts of one storage, prefer one that can be queried, then the shortest path,
    // then a mount of the whole storage.
    chosen.sort_by_key(|(mount, reason)| {
        (mount.storage, reason.is_some(), mount.path.as_os_str().len(), mount.part, mount.id)
    });
    chosen.dedup_by_key(|(mount, _)| mount.storage);
    chosen.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
    chosen
}

/// Where a file system keeps its data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum DiskKind {
    /// Memory, the kernel, or another mount's storage.
    Pseudo,
    /// Another machine or a user-space program: a query may block forever.
    Remote,
    /// Local storage.
    Storage,
}

impl DiskKind {
    fn of(mount: &Mount) -> Self {
        const STORAGE: &[&str] = &[
            "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus",
            "iso9660", "jffs2", "jfs", "minix", "msdos", "nilfs2", "ntfs", "ntfs3", "reiserfs", "squashfs",
            "ubifs", "udf", "ufs", "vfat", "xfs", "yaffs", "yaffs2", "zfs",
        ];
        const REMOTE: &[&str] = &[
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "gfs2",
            "glusterfs",
            "lustre",
            "ncpfs",
            "nfs",
            "nfs4",
            "ocfs2",
            "orangefs",
            "smb3",
            "smbfs",
            "vboxsf",
            "virtiofs",
        ];
        let kind = mount.kind.as_str();
        if kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.") || REMOTE.contains(&kind) {
            Self::Remote
        } else if STORAGE.contains(&kind) || (kind == "overlay" && mount.path == Path::new("/")) {
            Self::Storage
        } else {
            Self::Pseudo
        }
    }
}

/// Whether another mount covers the path of `mount` or of one of its ancestors.
fn hidden(table: &[Mount], mount: &Mount) -> bool {
    chain(table, mount).enumerate().any(|(step, link)| {
        table.iter().any(|other| {
            let on_top = step == 0 && other.parent == link.id && other.path == link.path;
            let above = other.parent == link.parent
                && other.id != link.id
                && other.path != link.path
                && link.path.starts_with(&other.path);
            (on_top || above) && other.id != other.parent
        })
    })
}

/// Whether the path of `mount` leads through a file system that may not answer.
fn behind_remote(table: &[Mount], mount: &Mount) -> bool {
    chain(table, mount).skip(1).any(|link| DiskKind::of(link) == DiskKind::Remote)
}

/// Iterates over `mount`, its parent and so on up to the root. Ends even if the table contains a
/// cycle.
fn chain<'a>(table: &'a [Mount], mount: &'a Mount) -> impl Iterator<Item = &'a Mount> {
    let up = |link: &&'a Mount| {
        let parent = link.parent;
        table.iter().find(|other| other.id == parent && other.id != link.id)
    };
    std::iter::successors(Some(mount), up).take(table.len())
}

/// One line of the mount table.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mount {
    id: u64,
    parent: u64,
    /// Major and minor number: the same for all mounts of one storage.
    storage: (u32, u32),
    /// Only a directory of the storage is mounted here.
    part: bool,
    path: PathBuf,
    read_only: bool,
    kind: String,
    device: String,
}

/// Parses `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Skips malformed lines.
fn parse_mounts(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|&byte| byte == b'\n').filter_map(parse_mount).collect()
}

/// Parses `id parent major:minor root path options [tags…] - type device superoptions`.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|&byte| byte == b' ');
    let id = number(words.next()?)?;
    let parent = number(words.next()?)?;
    let (major, minor) = std::str::from_utf8(words.next()?).ok()?.split_once(':')?;
    let part = words.next()? != b"/";
    let path = PathBuf::from(OsString::from_vec(unescape(words.next()?)));
    let read_only = words.next()?.split(|&byte| byte == b',').any(|option| option == b"ro");
    words.find(|word| *word == b"-")?;
    Some(Mount {
        id,
        parent,
        storage: (major.parse().ok()?, minor.parse().ok()?),
        part,
        read_only,
        kind: lossy(words.next()?),
        device: lossy(words.next()?),
        path: path.as_os_str().as_bytes().starts_with(b"/").then_some(path)?,
    })
}

fn number(word: &[u8]) -> Option<u64> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn lossy(word: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(word)).into_owned()
}

/// Undoes the kernel's escapes: white space and backslashes as `\` and three octal digits.
fn unescape(mut word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    while let Some((&first, rest)) = word.split_first() {
        let (byte, rest) = match rest {
            &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ref after @ ..] if first == b'\\' => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), after)
            }
            _ => (first, rest),
        };
        plain.push(byte);
        word = rest;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"/mnt/usb\\040stick", b"/mnt/usb stick"),
            (b"\\011\\012\\134", b"\t\n\\"),
            (b"\\377", b"\xff"),
            (b"\\477", b"\\477"),
            (b"\\04", b"\\04"),
            (b"", b""),
        ];
        for (word, plain) in cases {
            assert_eq!(unescape(word), plain, "{:?}", String::from_utf8_lossy(word));
        }
    }

    #[test]
    fn lines() {
        let line =
            b"36 35 98:0 /sub /mnt\\040x ro,noatime master:1 shared:7 - ext4 /dev/root rw,errors=continue";
        let expected = Mount {
            id: 36,
            parent: 35,
            storage: (98, 0),
            part: true,
            path: PathBuf::from("/mnt x"),
            read_only: true,
            kind: "ext4".into(),
            device: "/dev/root".into(),
        };
        assert_eq!(parse_mount(line), Some(expected));
        let bad: [&[u8]; 7] = [
            b"",
            b"36 35 98:0 / /mnt rw",
            b"36 35 98:0 / /mnt rw shared:1 ext4 /dev/root rw",
            b"36 35 98 / /mnt rw - ext4 /dev/root rw",
            b"x 35 98:0 / /mnt rw - ext4 /dev/root rw",
            b"36 35 98:99999999999 / /mnt rw - ext4 /dev/root rw",
            b"36 35 98:0 / mnt rw - ext4 /dev/root rw",
        ];
        for line in bad {
            assert_eq!(parse_mount(line), None, "{:?}", String::from_utf8_lossy(line));
        }
    }

    /// Returns the mounts chosen from a table as `path`, or `path!` if not to be queried.
    fn chosen(table: &str) -> Vec<String> {
        let table = parse_mounts(table.as_bytes());
        let show = |(mount, reason): &(&Mount, Option<&str>)| {
            format!("{}{}", mount.path.display(), if reason.is_some() { "!" } else { "" })
        };
        choose(&table).iter().map(show).collect()
    }

    #[test]
    fn only_storage_file_systems_are_listed() {
        let table = "22 27 0:21 / /proc rw - proc proc rw
25 27 0:23 / /tmp rw - tmpfs tmpfs rw
27 1 8:1 / / rw - ext4 /dev/sda1 rw
28 27 0:40 / /nas rw - nfs4 nas:/x rw
29 27 0:41 / /cloud rw - fuse.sshfs a@b: rw
30 27 8:2 / /boot ro - vfat /dev/sda2 rw
31 27 0:42 / /var/lib/c/merged rw - overlay overlay rw
32 27 0:43 / /auto rw - autofs systemd-1 rw";
        assert_eq!(chosen(table), ["/", "/boot", "/cloud!", "/nas!"]);
        assert_eq!(chosen("9 1 0:9 / / rw - overlay overlay rw"), ["/"]);
        assert_eq!(chosen(""), [""; 0]);
    }

    #[test]
    fn one_storage_is_listed_once() {
        let table = "27 1 8:1 /os / rw - ext4 /dev/sda1 rw
28 27 8:1 /os/etc /etc rw - ext4 /dev/sda1 rw
29 27 8:1 / /sysroot rw - ext4 /dev/sda1 rw
30 27 8:2 / /nas/b rw - ext4 /dev/sda2 rw
31 27 8:2 /x /b rw - ext4 /dev/sda2 rw
32 27 8:2 / /a rw - ext4 /dev/sda2 rw";
        assert_eq!(chosen(table), ["/", "/a"]);
    }

    #[test]
    fn covered_mounts_are_not_queried() {
        let root = "27 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let cases: [(&str, &[&str]); 5] = [
            // NFS mounted over the disk.
            ("28 27 8:2 / /data rw - ext4 d rw\n29 28 0:40 / /data rw - nfs n rw", &["/", "/data!"]),
            // NFS mounted over the directory that contains the disk's mount point.
            ("28 27 8:2 / /mnt/data rw - ext4 d rw\n29 27 0:40 / /mnt rw - nfs n rw", &["/", "/mnt!"]),
            // The same, one mount deeper.
            (
                "28 27 8:2 / /mnt/data rw - ext4 d rw\n30 28 8:3 / /mnt/data/in rw - xfs x rw\n29 27 0:40 / /mnt rw - tmpfs t rw",
                &["/"],
            ),
            // A disk mounted inside NFS: its path leads through the server.
            (
                "29 27 0:40 / /nas rw - nfs n rw\n30 29 8:3 / /nas/usb rw - ext4 u rw",
                &["/", "/nas!", "/nas/usb!"],
            ),
            // Not below NFS: only the path's prefix is the same.
            ("29 27 0:40 / /nas rw - nfs n rw\n30 27 8:3 / /nas2 rw - ext4 u rw", &["/", "/nas!", "/nas2"]),
        ];
        for (rest, expected) in cases {
            assert_eq!(chosen(&format!("{root}{rest}")), expected, "{rest}");
        }
    }

    #[test]
    fn cyclic_mount_tables_terminate() {
        assert_eq!(chosen("5 6 8:1 / /a rw - ext4 x rw\n6 5 8:2 / /b rw - ext4 y rw"), ["/a", "/b"]);
        assert_eq!(chosen("5 5 8:1 / / rw - ext4 x rw"), ["/"]);
    }
}
