//! The directory that everything of a run is in, and that nothing of it outlives.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Space beside the volumes: logs, metadata.
const SPARE_MIB: u64 = 64;

/// The directory of a run. It is only removed by [`WorkDir::remove`].
#[derive(Debug)]
pub(crate) struct WorkDir(PathBuf);

impl WorkDir {
    /// Makes one below `parent`, or where large temporary files go (TMPDIR, else /var/tmp), with room for this many
    /// volumes.
    pub(crate) fn create(parent: Option<&Path>, volumes: u64, size_mib: u32) -> Result<WorkDir> {
        let parent = parent.map_or_else(default_parent, Path::to_owned);
        let parent = std::path::absolute(parent)?;
        let directory: TempDir = tempfile::Builder::new()
            .prefix("zea-demo-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let space = rustix::fs::statvfs(directory.path())?;
        let free_mib = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
        let wanted_mib = volumes * u64::from(size_mib) + SPARE_MIB;
        ensure!(
            free_mib >= wanted_mib,
            "{} has {free_mib} MiB left, {wanted_mib} MiB are needed; --dir names another directory",
            parent.display()
        );
        Ok(WorkDir(directory.keep()))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Fails if something is still mounted in it, or attached to a loop device.
    pub(crate) fn assert_left_alone(&self) -> Result<()> {
        let mounts = mounts_below(&self.0)?;
        ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
        let loops = loop_files_below(&self.0)?;
        ensure!(loops.is_empty(), "still attached to loop devices: {loops:?}");
        Ok(())
    }

    /// Removes it, unless something is mounted in it: that would be emptied, too.
    pub(crate) fn remove(self) -> Result<()> {
        let mounts = mounts_below(&self.0)?;
        ensure!(mounts.is_empty(), "still mounted: {mounts:?}");
        std::fs::remove_dir_all(&self.0).with_context(|| format!("cannot remove {}", self.0.display()))
    }
}

fn default_parent() -> PathBuf {
    let large = Path::new("/var/tmp");
    match std::env::var_os("TMPDIR") {
        Some(directory) => directory.into(),
        None if large.is_dir() => large.to_owned(),
        None => std::env::temp_dir(),
    }
}

/// Mount points at or below a directory.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    let mut mounts = mount_points(&text);
    mounts.retain(|mount| mount.starts_with(directory));
    Ok(mounts)
}

/// Field 5 of each line is the mount point, with blanks and the like as octal escapes.
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    let fields = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    fields.map(|field| PathBuf::from(unescape(field))).collect()
}

fn unescape(field: &str) -> String {
    let mut text = field.to_owned();
    // The backslash last, or it would make new escapes.
    for (escape, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(escape, plain);
    }
    text
}

fn loop_files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(devices) = std::fs::read_dir("/sys/block") else {
        return Ok(files);
    };
    for device in devices {
        let file = std::fs::read_to_string(device?.path().join("loop/backing_file"));
        // Devices that are no loop devices, and loop devices without a file, do not have it.
        let file = PathBuf::from(file.unwrap_or_default().trim_end());
        if file.starts_with(directory) {
            files.push(file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_directory_is_made_and_removed() {
        let parent = tempfile::tempdir().unwrap();
        let workdir = WorkDir::create(Some(parent.path()), 3, 1).unwrap();
        let path = workdir.path().to_owned();
        assert!(path.starts_with(parent.path()) && path.is_dir());
        workdir.assert_left_alone().unwrap();
        workdir.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn demo_directory_needs_room() {
        let parent = tempfile::tempdir().unwrap();
        let error = WorkDir::create(Some(parent.path()), 1 << 20, u32::MAX).unwrap_err();
        assert!(error.to_string().contains("--dir"), "{error}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
        assert!(WorkDir::create(Some(Path::new("/nowhere")), 1, 1).is_err());
    }

    #[test]
    fn demo_mounts_are_read_from_the_kernel() {
        let text = "29 1 8:1 / / rw - ext4 /dev/a rw\n30 29 0:5 / /with\\040blank\\134x rw - tmpfs t rw\nbroken\n";
        assert_eq!(mount_points(text), [Path::new("/"), Path::new("/with blank\\x")]);
        assert!(mounts_below(Path::new("/")).unwrap().contains(&PathBuf::from("/")));
        assert!(mounts_below(Path::new("/nowhere")).unwrap().is_empty());
    }
}
