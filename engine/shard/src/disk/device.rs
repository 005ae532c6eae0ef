//! One backing device: its data side, its meta-data side, and what is known about their stability.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zea_core::io::{Backing, DiskCmd};
use zea_meta::placement::Placement;

use super::fault::Fault;
use super::open::{DiskFile, Hints, OpenError};

/// Where the meta data is, seen from the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// On the same device.
    Same,
    /// On a device of its own.
    Separate,
}

/// What to open as the backing device of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingPaths {
    /// The data device.
    pub data: PathBuf,
    /// The meta-data device with external meta data.
    pub meta: Option<PathBuf>,
    /// Where the meta data lies: `Internal` exactly if `meta` is `None`.
    pub placement: Placement,
}

/// An open backing device.
#[derive(Debug)]
pub struct Disk {
    data: DiskFile,
    meta: Option<Arc<DiskFile>>,
    placement: Placement,
    /// Commands in flight.
    pub(super) in_flight: usize,
    /// Meta-data writes that completed without being stable, counted.
    pub(super) meta_written: u64,
    /// How many of them are known to be stable.
    pub(super) meta_stable: u64,
    pub(super) fault: Option<Fault>,
}

impl Disk {
    /// Opens and locks the devices. Blocks: not for a shard's thread.
    ///
    /// # Errors
    /// See [`OpenError`]; also where placement and paths contradict each other.
    pub fn open(paths: &BackingPaths) -> Result<Disk, OpenError> {
        let internal = paths.placement == Placement::Internal;
        if internal != paths.meta.is_none() {
            let why = if internal {
                "its meta data is internal, but a meta-data device is given"
            } else {
                "its meta data is external, but no meta-data device is given"
            };
            return Err(OpenError::NotUsable { path: paths.data.clone(), why: why.into() });
        }
        let data = DiskFile::open(&paths.data)?;
        let meta = paths.meta.as_deref().map(DiskFile::open_shared).transpose()?;
        Ok(Disk {
            data,
            meta,
            placement: paths.placement,
            in_flight: 0,
            // What an earlier process wrote may not be stable: the first synchronous write flushes.
            meta_written: 1,
            meta_stable: 0,
            fault: None,
        })
    }

    /// What the core has to know of it.
    pub fn backing(&self) -> Backing {
        Backing {
            size_bytes: self.data.size_bytes(),
            meta_size_bytes: self.meta().size_bytes(),
            placement: self.placement,
            discard: self.data.discards(),
            logical_block_bytes: self.data.logical_block_bytes(),
        }
    }

    /// What the data device says of itself.
    pub fn hints(&self) -> Hints {
        self.data.hints()
    }

    /// The data device's path.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    pub(super) fn data(&self) -> &DiskFile {
        &self.data
    }

    /// The device that holds the meta data.
    pub(super) fn meta(&self) -> &DiskFile {
        self.meta.as_deref().unwrap_or(&self.data)
    }

    pub(super) fn side_of_meta(&self) -> Side {
        if self.meta.is_some() { Side::Separate } else { Side::Same }
    }

    /// Whether a command stays within its device and is aligned to sectors.
    pub(super) fn contains(&self, cmd: &DiskCmd) -> bool {
        let fits = |start: Option<u64>, len: u32, size: u64| {
            let end = start.and_then(|start| start.checked_add(u64::from(len)));
            len > 0 && len.is_multiple_of(512) && end.is_some_and(|end| end <= size)
        };
        match cmd {
            DiskCmd::Read { sector, payload } | DiskCmd::Write { sector, payload, .. } => {
                fits(sector.checked_mul(512), payload.len, self.data.size_bytes())
            }
            DiskCmd::ReadNew { sector, len }
            | DiskCmd::Discard { sector, len }
            | DiskCmd::WriteZeroes { sector, len, .. } => fits(sector.checked_mul(512), *len, self.data.size_bytes()),
            DiskCmd::Flush => true,
            DiskCmd::MetaRead { offset_bytes, len } => fits(Some(*offset_bytes), *len, self.meta().size_bytes()),
            DiskCmd::MetaWrite { offset_bytes, .. } => fits(Some(*offset_bytes), 4096, self.meta().size_bytes()),
        }
    }
}
