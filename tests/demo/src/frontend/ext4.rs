//! ext4 on a block device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::nbdfuse::{attach_loop, unmount_lazily};
use crate::process::{self, Privilege, last_lines};
use crate::run::Run;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(30);
/// Size of the image on which mounting is tried out.
const TRIAL_BYTES: u64 = 4 << 20;

/// Makes a file system that belongs to the user who runs the demo.
pub(super) fn make(run: &Run, privilege: Privilege, device: &Path) -> Result<()> {
    let user = rustix::process::getuid().as_raw();
    let group = rustix::process::getgid().as_raw();
    let mut mkfs = privilege.command("mkfs.ext4");
    mkfs.args(["-q", "-F", "-E", &format!("root_owner={user}:{group}")]).arg(device);
    process::succeed(run, &mut mkfs, STEP).map(drop)
}

/// Makes, mounts and unmounts a file system in an image file: what is not allowed here fails here.
pub(super) fn try_out(run: &Run, privilege: Privilege, directory: &Path) -> Result<()> {
    let image = directory.join("trial.img");
    File::create(&image)?.set_len(TRIAL_BYTES)?;
    let device = attach_loop(run, privilege, &image)?;
    let tried = make(run, privilege, &device)
        .and_then(|()| Ext4::mount(run, privilege, &device, &directory.join("trial")))
        .and_then(Ext4::unmount);
    let mut losetup = privilege.command("losetup");
    let detached = process::succeed_in_cleanup(losetup.arg("-d").arg(&device), STEP);
    std::fs::remove_file(&image)?;
    tried.and(detached.map(drop))
}

/// A mounted file system. Dropped, it is unmounted by force.
#[derive(Debug)]
pub(crate) struct Ext4 {
    privilege: Privilege,
    device: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

impl Ext4 {
    /// Mounts a device at a directory, which is made if it is not there.
    pub(super) fn mount(run: &Run, privilege: Privilege, device: &Path, mount_point: &Path) -> Result<Ext4> {
        std::fs::create_dir_all(mount_point)?;
        let mut file_system =
            Ext4 { privilege, device: device.to_owned(), mount_point: mount_point.to_owned(), mounted: false };
        file_system.mount_again(run)?;
        Ok(file_system)
    }

    /// Where it is mounted.
    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    fn mount_again(&mut self, run: &Run) -> Result<()> {
        // Set before the fact: a mount that was interrupted may still happen.
        self.mounted = true;
        let mut mount = self.privilege.command("mount");
        mount.args(["-t", "ext4", "-o", "nosuid,nodev,errors=remount-ro"]).args([&self.device, &self.mount_point]);
        process::succeed(run, &mut mount, STEP).map(drop)
    }

    fn unmount_once(&mut self) -> Result<()> {
        let mut umount = self.privilege.command("umount");
        process::succeed_in_cleanup(umount.arg(&self.mount_point), STEP)?;
        self.mounted = false;
        Ok(())
    }

    /// Unmounts a file system that nothing uses.
    pub(super) fn unmount(mut self) -> Result<()> {
        self.unmount_once()
    }

    /// Unmounts, checks everything without repairing anything, and mounts again.
    ///
    /// The journal was replayed by the mount before: nothing is left that could excuse an error.
    pub(super) fn check(&mut self, run: &Run) -> Result<()> {
        self.unmount_once()?;
        let mut fsck = self.privilege.command("e2fsck");
        fsck.args(["-f", "-n"]).arg(&self.device);
        let output = process::output(run, &mut fsck, STEP).context("e2fsck")?;
        ensure!(output.status.success(), "e2fsck finds errors ({}): {}", output.status, last_lines(&output.stdout, 5));
        self.mount_again(run)
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if let Err(error) = unmount_lazily(self.privilege, &self.mount_point) {
            eprintln!("zea-demo: unmounting: {error:#}");
        }
    }
}
