//! Where the replicas' data is kept during a run: files on a disk, or loop devices over RAM.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use tempfile::TempDir;

use crate::process::Interrupt;

const MIB: usize = 1024 * 1024;
/// Where Linux mounts a tmpfs for everyone.
const TMPFS: &str = "/dev/shm";
/// `f_type` of a tmpfs (`linux/magic.h`).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What a replica's data is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backing {
    /// A file on the disk of the work directory.
    File,
    /// A loop device with direct IO over a file on a tmpfs; needs root. A plain file on a tmpfs
    /// will not do: io_uring hands each of its writes to a worker thread.
    Ram,
}

/// Where a run keeps its data, as the command line says.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// What the replicas keep their data on
    #[arg(long, value_enum, default_value_t = Backing::File)]
    pub backing: Backing,
    /// Directory, on the disk to measure, for the temporary files
    #[arg(long, default_value = ".")]
    directory: PathBuf,
}

impl Place {
    /// The directories of a run there.
    ///
    /// # Errors
    /// There is no such directory, or see [`Scratch::new`].
    pub fn scratch(&self, interrupt: &Interrupt) -> Result<Scratch> {
        Scratch::new(self.backing, &self.directory.canonicalize()?, interrupt)
    }
}

/// One run's directory with what the replicas keep their data on. Removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    backing: Backing,
    interrupt: Interrupt,
    // Fields are dropped in this order: a device is detached before its file goes.
    devices: Vec<LoopDevice>,
    data: TempDir,
    run: TempDir,
}

impl Scratch {
    /// Makes the directories: for logs and sockets, and with [`Backing::File`] for data, below
    /// `directory`.
    ///
    /// # Errors
    /// A directory cannot be made; for [`Backing::Ram`], `/dev/shm` is not a tmpfs.
    pub fn new(backing: Backing, directory: &Path, interrupt: &Interrupt) -> Result<Self> {
        let data_in = match backing {
            Backing::File => directory,
            Backing::Ram => Path::new(TMPFS),
        };
        if backing == Backing::Ram {
            let is_tmpfs = rustix::fs::statfs(TMPFS)?.f_type as i64 == TMPFS_MAGIC;
            ensure!(is_tmpfs, "{TMPFS} is not a tmpfs");
        }
        let make = |parent: &Path| {
            tempfile::Builder::new()
                .prefix("zea-bench-")
                .tempdir_in(parent)
                .with_context(|| format!("make a directory in {}", parent.display()))
        };
        Ok(Self {
            backing,
            interrupt: interrupt.clone(),
            devices: Vec::new(),
            data: make(data_in)?,
            run: make(directory)?,
        })
    }

    /// The directory for sockets, logs and state.
    pub fn directory(&self) -> &Path {
        self.run.path()
    }

    /// Makes the backing `name` of `bytes` (a multiple of 1 MiB) and writes all of it once, so
    /// that no extent is allocated or converted while something is measured.
    ///
    /// # Errors
    /// Failing IO; no loop device to be had.
    pub fn backing(&mut self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.data.path().join(name);
        let mut file = File::create_new(&path)?;
        let chunk = vec![0xa5; MIB];
        for _ in 0..bytes / MIB as u64 {
            self.interrupt.check()?;
            file.write_all(&chunk).with_context(|| format!("fill {}", path.display()))?;
        }
        file.sync_all()?;
        match self.backing {
            Backing::File => Ok(path),
            Backing::Ram => {
                let device = LoopDevice::attach(&path, &self.interrupt)?;
                let path = device.path.clone();
                self.devices.push(device);
                Ok(path)
            }
        }
    }

    /// Makes the sparse file `name` of `bytes`.
    ///
    /// # Errors
    /// The file system has no files of that size.
    pub fn sparse_file(&self, name: &str, bytes: u64) -> Result<PathBuf> {
        let path = self.data.path().join(name);
        let file = File::create_new(&path)?;
        file.set_len(bytes).with_context(|| format!("{} bytes in {}", bytes, path.display()))?;
        Ok(path)
    }
}

/// A loop device, detached when dropped.
#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn attach(file: &Path, interrupt: &Interrupt) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]).arg(file);
        let printed = interrupt.run(&mut losetup)?;
        let device = Self { path: PathBuf::from(printed.trim()) };
        let name = device.path.file_name().context("losetup printed no name")?;
        let setting = Path::new("/sys/block").join(name).join("loop/dio");
        let direct = std::fs::read_to_string(&setting)?.trim() == "1";
        ensure!(direct, "{} has no direct IO", device.path.display());
        Ok(device)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("-d").arg(&self.path).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("warning: {} is still attached", self.path.display());
        }
    }
}

/// Whether `path` is a block device rather than a file.
///
/// # Errors
/// There is nothing at `path`.
pub fn is_block_device(path: &Path) -> Result<bool> {
    Ok(std::fs::metadata(path)?.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn bench_backing_is_written_once_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::default();
        let mut scratch = Scratch::new(Backing::File, parent.path(), &interrupt).unwrap();
        let path = scratch.backing("a", 3 * MIB as u64).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.len(), 3 * MIB as u64);
        assert!(found.blocks() * 512 >= found.len(), "holes are left");
        let sparse = scratch.sparse_file("big", 1 << 40).unwrap();
        assert_eq!(std::fs::metadata(&sparse).unwrap().len(), 1 << 40);
        drop(scratch);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
