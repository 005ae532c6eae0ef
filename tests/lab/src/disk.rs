//! Disk images: sparse files that a guest has as block devices, or Zea as backing devices.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Makes an image of this many bytes, all zero.
pub(crate) fn create(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(file.set_len(bytes)?)
}

/// Compares the first `bytes` of two images.
///
/// # Errors
/// One cannot be read or is shorter, or they differ: with the first place where they do, and how many blocks of 4 KiB.
pub(crate) fn compare(one: &Path, other: &Path, bytes: u64) -> Result<()> {
    let open = |path: &Path| -> Result<BufReader<File>> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        ensure!(file.metadata()?.len() >= bytes, "{} is shorter than {bytes} bytes", path.display());
        Ok(BufReader::with_capacity(1 << 20, file))
    };
    let (mut a, mut b) = (open(one)?, open(other)?);
    let (mut block_a, mut block_b) = ([0; 4096], [0; 4096]);
    let (mut first, mut different) = (None, 0_u64);
    for at in (0..bytes).step_by(4096) {
        let len = (bytes - at).min(4096) as usize;
        a.read_exact(&mut block_a[..len])?;
        b.read_exact(&mut block_b[..len])?;
        if block_a[..len] != block_b[..len] {
            first.get_or_insert(at);
            different += 1;
        }
    }
    if let Some(first) = first {
        bail!("{} and {} differ in {different} blocks, first at byte {first}", one.display(), other.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn lab_disks_are_compared_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        for path in [&one, &other] {
            create(path, 10_000).unwrap();
        }
        compare(&one, &other, 10_000).unwrap();
        File::options().write(true).open(&other).unwrap().write_all_at(&[1], 9_999).unwrap();
        compare(&one, &other, 9_999).unwrap();
        let error = compare(&one, &other, 10_000).unwrap_err().to_string();
        assert!(error.ends_with("differ in 1 blocks, first at byte 8192"), "{error}");
        assert!(compare(&one, &other, 10_001).is_err());
    }
}
