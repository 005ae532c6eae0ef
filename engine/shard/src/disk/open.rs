//! Opening backing devices: files and block devices, past the page cache, held exclusively.
//!
//! Runs on the caller's thread, never on a shard: opening can block.
//!
//! Exclusive means: a block device is opened O_EXCL, a file is locked with flock(2), whose lock lives as long as the open
//! file, through `fork` and until the last operation on it ended (design.md 3: never POSIX locks). A meta-data device
//! that serves several volumes (indexed external meta data) is opened once in the process and shared.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, SeekFrom, StatxFlags, fallocate, flock, fstat,
    ioctl_blksszget, major, minor, open, seek, statx,
};
use rustix::io::Errno;
use thiserror::Error;

/// Why a backing device could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process (or another volume of this one) holds it.
    #[error("{} is in use by another process: stop what uses it (mounted? another zead?), then attach again", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// It is there but cannot be a backing device.
    #[error("{} cannot be a backing device: {why}", path.display())]
    NotUsable {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The system refused.
    #[error("cannot open {}: {source}", path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A device by its numbers, and who has it open.
type Shared = ((u64, u64), Weak<DiskFile>);

/// An open data or meta-data device.
#[derive(Debug)]
pub struct DiskFile {
    fd: OwnedFd,
    path: PathBuf,
    size_bytes: u64,
    logical_block_bytes: u32,
    block_device: bool,
    discard: bool,
    direct: bool,
    hints: Hints,
}

/// What a device says of itself beside what has to be kept to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hints {
    /// Unit that it writes without reading first.
    pub physical_block_bytes: u32,
    /// It turns.
    pub rotational: bool,
}

impl DiskFile {
    /// Opens and locks `path`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path) -> Result<DiskFile, OpenError> {
        let system = |e: Errno| OpenError::System { path: path.to_owned(), source: e.into() };
        let not_usable = |why: String| OpenError::NotUsable { path: path.to_owned(), why };
        let kind = FileType::from_raw_mode(rustix::fs::stat(path).map_err(system)?.st_mode);
        let block_device = match kind {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            other => {
                return Err(not_usable(format!("it is a {other:?}, not a block device or a file")));
            }
        };
        let (fd, direct) = open_direct(path, block_device).map_err(|e| match e {
            Errno::BUSY => OpenError::InUse { path: path.to_owned() },
            e => system(e),
        })?;
        if !block_device {
            flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
                Errno::WOULDBLOCK => OpenError::InUse { path: path.to_owned() },
                e => system(e),
            })?;
        }
        let size_bytes = seek(&fd, SeekFrom::End(0)).map_err(system)?;
        let logical_block_bytes =
            if block_device { ioctl_blksszget(&fd).map_err(system)? } else { file_block_bytes(&fd, direct) };
        if !matches!(logical_block_bytes, 512 | 4096) {
            return Err(not_usable(format!(
                "its blocks have {logical_block_bytes} bytes, only 512 and 4096 are supported"
            )));
        }
        let size_bytes = size_bytes - size_bytes % u64::from(logical_block_bytes);
        if size_bytes == 0 {
            return Err(not_usable("it is empty".into()));
        }
        let discard = if block_device { device_discards(&fd) } else { file_punches(&fd, size_bytes) };
        let physical = block_device.then(|| queue_value(&fd, "physical_block_size")).flatten();
        let hints = Hints {
            physical_block_bytes: physical.map_or(4096, |bytes| bytes as u32).max(logical_block_bytes),
            rotational: block_device && queue_value(&fd, "rotational").is_some_and(|turns| turns > 0),
        };
        let path = path.to_owned();
        Ok(DiskFile { fd, path, size_bytes, logical_block_bytes, block_device, discard, direct, hints })
    }

    /// Opens `path`, or shares it with who opened it before: for meta data of several volumes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_shared(path: &Path) -> Result<Arc<DiskFile>, OpenError> {
        static SHARED: Mutex<Vec<Shared>> = Mutex::new(Vec::new());
        let stat = rustix::fs::stat(path).map_err(|e| OpenError::System { path: path.to_owned(), source: e.into() })?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let key = if device { (u64::MAX, stat.st_rdev) } else { (stat.st_dev, stat.st_ino) };
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|(_, file)| file.strong_count() > 0);
        if let Some(file) = shared.iter().find(|(k, _)| *k == key).and_then(|(_, file)| file.upgrade()) {
            return Ok(file);
        }
        let file = Arc::new(DiskFile::open(path)?);
        shared.push((key, Arc::downgrade(&file)));
        Ok(file)
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, whole logical blocks.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Smallest unit of I/O in bytes: 512 or 4096.
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// A block device, not a file.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Discards reach it.
    pub fn discards(&self) -> bool {
        self.discard
    }

    /// What else it says of itself.
    pub fn hints(&self) -> Hints {
        self.hints
    }

    /// I/O goes past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Opens with O_DIRECT; where the file system refuses that, through the page cache with O_DSYNC.
fn open_direct(path: &Path, block_device: bool) -> Result<(OwnedFd, bool), Errno> {
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::EXCL, block_device);
    match open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Err(Errno::INVAL) => {
            tracing::warn!(path = %path.display(), "this file system has no O_DIRECT: buffered and synchronous instead, which is slower");
            Ok((open(path, flags | OFlags::DSYNC, Mode::empty())?, false))
        }
        other => other.map(|fd| (fd, true)),
    }
}

/// Alignment that direct I/O to a file takes: statx knows since Linux 6.1, before that 512 is what most file systems take.
fn file_block_bytes(fd: &OwnedFd, direct: bool) -> u32 {
    if !direct {
        return 512;
    }
    match statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => stat.stx_dio_offset_align.max(512),
        _ => 512,
    }
}

/// A hole behind the end changes nothing and tells whether holes can be punched.
fn file_punches(fd: &OwnedFd, size_bytes: u64) -> bool {
    let behind = size_bytes.next_multiple_of(1 << 20);
    fallocate(fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, behind, 4096).is_ok()
}

fn device_discards(fd: &OwnedFd) -> bool {
    queue_value(fd, "discard_max_bytes").is_some_and(|max| max > 0)
}

/// A number of a block device's queue, as the kernel shows it.
fn queue_value(fd: &OwnedFd, name: &str) -> Option<u64> {
    let stat = fstat(fd).ok()?;
    let base = format!("/sys/dev/block/{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
    // A partition has its queue in the directory of the whole device.
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = std::fs::read_to_string(format!("{base}/{queue}/{name}")).ok()?;
        text.trim().parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn file(dir: &tempfile::TempDir, name: &str, bytes: u64) -> PathBuf {
        let path = dir.path().join(name);
        File::create(&path).and_then(|f| f.set_len(bytes)).expect("a file");
        path
    }

    #[test]
    fn disk_open_reads_the_geometry_of_a_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let disk = DiskFile::open(&file(&dir, "d", (1 << 20) + 100)).expect("opens");
        assert_eq!(disk.size_bytes(), 1 << 20, "rounded down to whole blocks");
        assert!(!disk.is_block_device());
        assert!(matches!(disk.logical_block_bytes(), 512 | 4096));
    }

    #[test]
    fn disk_open_refuses_what_is_no_device() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(matches!(DiskFile::open(dir.path()), Err(OpenError::NotUsable { .. })));
        assert!(matches!(DiskFile::open(&dir.path().join("none")), Err(OpenError::System { .. })));
        let empty = DiskFile::open(&file(&dir, "empty", 0)).expect_err("empty");
        assert!(empty.to_string().ends_with("it is empty"), "{empty}");
    }

    #[test]
    fn disk_open_twice_is_in_use_until_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = file(&dir, "d", 1 << 20);
        let first = DiskFile::open(&path).expect("opens");
        let second = DiskFile::open(&path).expect_err("locked");
        assert!(matches!(second, OpenError::InUse { .. }));
        assert!(second.to_string().contains("in use by another process"));
        drop(first);
        DiskFile::open(&path).expect("opens again");
    }

    #[test]
    fn disk_open_shared_meta_data_is_opened_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = file(&dir, "m", 1 << 20);
        let a = DiskFile::open_shared(&path).expect("opens");
        let b = DiskFile::open_shared(&path).expect("shares");
        assert!(Arc::ptr_eq(&a, &b));
        assert!(matches!(DiskFile::open(&path), Err(OpenError::InUse { .. })), "not as data, too");
        drop((a, b));
        DiskFile::open_shared(&path).expect("opens again");
    }
}
