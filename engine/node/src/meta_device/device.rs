//! One block device or file, opened for its owner alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use zea_meta::MD_BLOCK_SIZE;

use crate::api::Failure;

/// Bytes of zeros written at once.
const ZEROS_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Device {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

impl Device {
    /// Opens a device that nobody else has open.
    pub(super) fn open(path: &Path) -> Result<Device, Failure> {
        let fail = |error: io::Error| failure(path, "cannot be opened", &error);
        let kind = path.metadata().map_err(fail)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Failure::failed(format!("{} is neither a block device nor a file", path.display())));
        }
        let exclusive = if kind.is_block_device() { OFlags::EXCL } else { OFlags::empty() };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((exclusive | OFlags::CLOEXEC).bits().cast_signed())
            .open(path)
            .map_err(|error| {
                if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) { in_use(path) } else { fail(error) }
            })?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use(path)),
            Err(error) => return Err(fail(error.into())),
        }
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(fail)?;
        Ok(Device { path: path.to_owned(), file, size_bytes })
    }

    /// Makes a file with all of its space allocated: a full file system shows now and not under a running volume.
    pub(super) fn create_file(path: &Path, size_bytes: u64) -> Result<(), Failure> {
        let fail = |error: io::Error| failure(path, &format!("cannot be made with {size_bytes} bytes"), &error);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        let result = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size_bytes) {
            // Some file systems cannot preallocate; there the file is sparse.
            Err(Errno::OPNOTSUPP) => file.set_len(size_bytes),
            other => other.map_err(io::Error::from),
        };
        let result = result.and_then(|()| file.sync_all());
        result.and_then(|()| sync_parent(path)).map_err(|error| {
            drop(std::fs::remove_file(path));
            fail(error)
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How many bytes the medium writes at once or not at all: its physical sectors; the smallest there are if the system does not tell.
    pub(super) fn atomic_bytes(&self) -> Result<u32, Failure> {
        const SMALLEST: u32 = 512;
        let fail = |error: Errno| failure(&self.path, "cannot be looked at", &error.into());
        let stat = rustix::fs::fstat(&self.file).map_err(fail)?;
        let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::BlockDevice;
        let number = if is_device { stat.st_rdev } else { stat.st_dev };
        let device = format!("/sys/dev/block/{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        // A partition has no queue of its own.
        let told = ["queue", "../queue"].map(|queue| format!("{device}/{queue}/physical_block_size"));
        let told = told.iter().find_map(|path| std::fs::read_to_string(path).ok());
        Ok(told.and_then(|text| text.trim().parse().ok()).unwrap_or(SMALLEST))
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        self.file.read_exact_at(buffer, offset).map_err(|error| failure(&self.path, "cannot be read", &error))
    }

    /// The 4 KiB at an offset.
    pub(super) fn block(&self, offset: u64) -> Result<[u8; MD_BLOCK_SIZE], Failure> {
        let mut block = [0; MD_BLOCK_SIZE];
        self.read(offset, &mut block)?;
        Ok(block)
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all_at(bytes, offset).map_err(|error| failure(&self.path, "cannot be written", &error))
    }

    pub(super) fn write_zeros(&self, mut offset: u64, len: u64) -> Result<(), Failure> {
        let zeros = vec![0; ZEROS_BYTES];
        let end = offset + len;
        while offset < end {
            let part = usize::try_from(end - offset).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
            self.write(offset, &zeros[..part])?;
            offset += part as u64;
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), Failure> {
        self.file.sync_all().map_err(|error| failure(&self.path, "cannot be flushed", &error))
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn failure(path: &Path, what: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("{} {what}: {error}", path.display()))
}

fn in_use(path: &Path) -> Failure {
    Failure::refused(
        0,
        format!("{} is in use: unmount it, or stop what has it open (lsof {0} shows who)", path.display()),
    )
}
