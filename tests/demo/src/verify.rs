//! Compares the replicas' backing devices.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::run::Run;

const CHUNK_SIZE: usize = 1 << 20;

/// Where two images differ first, if they do, within `size_bytes` from their beginning.
///
/// # Errors
/// An image cannot be read or is shorter; there is nothing to compare; the run is interrupted.
pub(crate) fn first_difference(run: &Run, images: &[PathBuf], size_bytes: u64) -> Result<Option<String>> {
    ensure!(images.len() > 1 && size_bytes > 0, "there is nothing to compare");
    let mut files = images
        .iter()
        .map(|path| File::open(path).with_context(|| format!("cannot open {}", path.display())))
        .collect::<Result<Vec<_>>>()?;
    let mut chunks = vec![vec![0_u8; CHUNK_SIZE]; files.len()];
    let mut at = 0;
    while at < size_bytes {
        run.check()?;
        let length = usize::try_from((size_bytes - at).min(CHUNK_SIZE as u64))?;
        for ((file, chunk), path) in files.iter_mut().zip(&mut chunks).zip(images) {
            file.read_exact(&mut chunk[..length]).with_context(|| format!("cannot read {} at {at}", path.display()))?;
        }
        for (chunk, path) in chunks.iter().zip(images).skip(1) {
            if let Some(offset) = mismatch(&chunks[0][..length], &chunk[..length]) {
                return Ok(Some(describe(&images[0], path, at + offset as u64)));
            }
        }
        at += length as u64;
    }
    Ok(None)
}

fn mismatch(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}

fn describe(a: &Path, b: &Path, at: u64) -> String {
    format!("{} and {} differ at byte {at}", a.display(), b.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_compare_finds_a_single_byte() {
        let run = Run::begin(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let size = 2 * CHUNK_SIZE + 100;
        let images: Vec<PathBuf> = (0..3).map(|id| dir.path().join(id.to_string())).collect();
        let put = |index: usize, at: Option<usize>| {
            let mut data = vec![7_u8; size + 10];
            // What is behind the usable size is not compared.
            data[size + index] = 1;
            at.into_iter().for_each(|at| data[at] = 0);
            std::fs::write(&images[index], data).unwrap();
        };
        (0..3).for_each(|index| put(index, None));
        let compare = || first_difference(&run, &images, size as u64).unwrap();
        assert_eq!(compare(), None);
        for at in [0, CHUNK_SIZE - 1, CHUNK_SIZE, size - 1] {
            put(2, Some(at));
            assert!(compare().unwrap().ends_with(&format!("differ at byte {at}")));
        }
    }

    #[test]
    fn demo_compare_needs_something_to_compare() {
        let run = Run::begin(true).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let images: Vec<PathBuf> = (0..2).map(|id| dir.path().join(id.to_string())).collect();
        assert!(first_difference(&run, &images, 1).is_err());
        images.iter().for_each(|path| std::fs::write(path, b"ab").unwrap());
        assert!(first_difference(&run, &images, 0).is_err());
        assert!(first_difference(&run, &images[..1], 1).is_err());
        assert!(first_difference(&run, &images, 3).is_err());
        assert_eq!(first_difference(&run, &images, 2).unwrap(), None);
    }
}
