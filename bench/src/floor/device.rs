//! What both replicas do before they serve: open their device, and say where they listen.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::wire::BLOCK_BYTES;

/// Opens a file or a block device for direct IO and finds its size in bytes, without what is less than a block.
pub(super) fn open_device(path: &Path) -> Result<(File, u64)> {
    let mut disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("open {} for direct IO", path.display()))?;
    let blocks = disk.seek(SeekFrom::End(0))? / BLOCK_BYTES as u64;
    ensure!(blocks > 0, "{} is smaller than one block", path.display());
    Ok((disk, blocks * BLOCK_BYTES as u64))
}

/// Tells whoever started this process that it listens, and where.
pub(super) fn announce(address: &str) -> Result<()> {
    println!("{address}");
    std::io::stdout().flush()?;
    Ok(())
}
