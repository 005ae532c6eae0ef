//! Who uses a block device: mounts, swap, devices on top of it, processes that have it open.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, makedev};
use rustix::io::Errno;

/// Users that are named; more are counted.
const NAMED: usize = 8;

/// A block device, as the kernel numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// Who uses it, in words; `None`: nobody.
pub(super) fn describe(path: &Path, numbers: Numbers) -> Option<String> {
    let mut users: BTreeSet<String> = holders(numbers).chain(swaps(path)).collect();
    let mut namespaces = BTreeSet::new();
    for process in numbered(Path::new("/proc")) {
        // Mounts of each namespace once.
        if fs::read_link(process.join("ns/mnt")).is_ok_and(|namespace| namespaces.insert(namespace)) {
            users.extend(mounts(&process.join("mountinfo"), path, numbers));
        }
        if has_open(&process, numbers) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            let pid = process.file_name().unwrap_or_default().to_string_lossy();
            users.insert(format!("{} (process {pid})", name.trim()));
        }
    }
    if users.is_empty() && is_claimed(path) {
        users.insert("something in the kernel".into());
    }
    let more = users.len().saturating_sub(NAMED);
    let named = users.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
    match (named.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(named),
        (false, more) => Some(format!("{named} and {more} more")),
    }
}

/// Devices that are made of it.
fn holders(Numbers { major, minor }: Numbers) -> impl Iterator<Item = String> {
    let folder = format!("/sys/dev/block/{major}:{minor}/holders");
    let holders = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    holders.map(|holder| format!("device {}", holder.file_name().to_string_lossy()))
}

fn swaps(path: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let used = text.lines().any(|line| line.split_whitespace().next().is_some_and(|name| Path::new(name) == path));
    used.then(|| "swap".to_owned()).into_iter()
}

/// Where it is mounted, by a file in the form of `/proc/PID/mountinfo`.
fn mounts(info: &Path, path: &Path, numbers: Numbers) -> Vec<String> {
    let text = fs::read_to_string(info).unwrap_or_default();
    text.lines().filter_map(|line| mount_of(line, path, numbers)).collect()
}

/// The mount point of a line, if it is of this device. File systems with numbers of their own, such as btrfs, name it as the source.
fn mount_of(line: &str, path: &Path, Numbers { major, minor }: Numbers) -> Option<String> {
    let (mount, source) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let (device, point) = (mount.next()?, mount.nth(1)?);
    let source = source.split(' ').nth(1)?;
    (device == format!("{major}:{minor}") || Path::new(source) == path).then(|| format!("mounted on {point}"))
}

fn has_open(process: &Path, numbers: Numbers) -> bool {
    numbered(&process.join("fd")).any(|fd| {
        fs::metadata(fd).is_ok_and(|file| {
            file.file_type().is_block_device() && file.rdev() == makedev(numbers.major, numbers.minor)
        })
    })
}

/// Entries of a folder whose names are numbers.
fn numbered(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .map(|entry| entry.path())
}

/// Somebody has claimed it, as mounts and devices on top do.
fn is_claimed(path: &Path) -> bool {
    let opened = rustix::fs::open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty());
    opened.is_err_and(|error| error == Errno::BUSY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ublk_users_are_found_in_lists_of_mounts() {
        let numbers = Numbers { major: 259, minor: 3 };
        let path = Path::new("/dev/ublkb3");
        let ext4 = "36 35 259:3 / /mnt rw,noatime shared:1 - ext4 /dev/zea/r0/0 rw";
        assert_eq!(mount_of(ext4, path, numbers).as_deref(), Some("mounted on /mnt"));
        let btrfs = "37 35 0:44 / /data rw - btrfs /dev/ublkb3 rw,space_cache";
        assert_eq!(mount_of(btrfs, path, numbers).as_deref(), Some("mounted on /data"));
        let other = "38 35 259:30 / /mnt rw - ext4 /dev/ublkb30 rw";
        assert_eq!(mount_of(other, path, numbers), None);
        assert_eq!(mount_of("nonsense", path, numbers), None);
    }

    #[test]
    fn ublk_a_device_that_is_not_there_has_no_users() {
        let path = Path::new("/dev/zea-is-not-there");
        assert_eq!(describe(path, Numbers { major: 4095, minor: 1 }), None);
    }
}
