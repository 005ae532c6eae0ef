//! A file system on a block device.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::nbdfuse::{attach_loop, unmount_lazily};
use crate::process::{self, Privilege, last_lines};
use crate::run::Run;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(30);

/// What is made on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    /// As `mount -t` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// The command that makes it, and its options.
    fn maker(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Kind::Ext4 => ("mkfs.ext4", &["-q", "-F"]),
            Kind::Xfs => ("mkfs.xfs", &["-q", "-f"]),
        }
    }

    /// The command that checks it without repairing anything, and its options.
    pub(crate) fn checker(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Kind::Ext4 => ("e2fsck", &["-f", "-n"]),
            Kind::Xfs => ("xfs_repair", &["-n"]),
        }
    }

    /// Commands for it, and the packages that have them.
    pub(crate) fn tools(self) -> [(&'static str, &'static [&'static str]); 2] {
        let package: &[&str] = match self {
            Kind::Ext4 => &["e2fsprogs"],
            Kind::Xfs => &["xfsprogs"],
        };
        [self.maker(), self.checker()].map(|(program, _)| (program, package))
    }

    /// The least size that it can be made on, in MiB, with room to spare for the load.
    pub(crate) fn least_mib(self) -> u32 {
        match self {
            Kind::Ext4 => 16,
            Kind::Xfs => 304,
        }
    }

    fn mount_options(self) -> &'static str {
        match self {
            Kind::Ext4 => "nosuid,nodev,errors=remount-ro",
            // The mount on the dead Primary's device may still be there, with the same UUID.
            Kind::Xfs => "nosuid,nodev,nouuid",
        }
    }

    /// Makes a file system.
    pub(super) fn make(self, run: &Run, privilege: Privilege, device: &Path) -> Result<()> {
        let (program, options) = self.maker();
        let mut mkfs = privilege.command(program);
        process::succeed(run, mkfs.args(options).arg(device), STEP).map(drop)
    }

    /// Makes, mounts and unmounts one in an image file: what is not allowed here fails here.
    pub(super) fn try_out(self, run: &Run, privilege: Privilege, directory: &Path) -> Result<()> {
        let image = directory.join("trial.img");
        File::create(&image)?.set_len(u64::from(self.least_mib()) << 20)?;
        let device = attach_loop(run, privilege, &image)?;
        let tried = self
            .make(run, privilege, &device)
            .and_then(|()| Mounted::mount(run, privilege, self, &device, &directory.join("trial")))
            .and_then(Mounted::unmount);
        let mut losetup = privilege.command("losetup");
        let detached = process::succeed_in_cleanup(losetup.arg("-d").arg(&device), STEP);
        std::fs::remove_file(&image)?;
        tried.and(detached.map(drop))
    }
}

/// A mounted file system. Dropped, it is unmounted by force.
#[derive(Debug)]
pub(crate) struct Mounted {
    privilege: Privilege,
    kind: Kind,
    device: PathBuf,
    mount_point: PathBuf,
    mounted: bool,
}

impl Mounted {
    /// Mounts a device at a directory, which is made if it is not there, for the user who runs the demo.
    pub(super) fn mount(
        run: &Run,
        privilege: Privilege,
        kind: Kind,
        device: &Path,
        mount_point: &Path,
    ) -> Result<Mounted> {
        std::fs::create_dir_all(mount_point)?;
        let (device, mount_point) = (device.to_owned(), mount_point.to_owned());
        let mut file_system = Mounted { privilege, kind, device, mount_point, mounted: false };
        file_system.mount_again(run)?;
        let owner = format!("{}:{}", rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let mut chown = privilege.command("chown");
        process::succeed(run, chown.arg(owner).arg(&file_system.mount_point), STEP)?;
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
        mount.args(["-t", self.kind.name(), "-o", self.kind.mount_options()]).args([&self.device, &self.mount_point]);
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
        let (program, options) = self.kind.checker();
        let mut fsck = self.privilege.command(program);
        let output = process::output(run, fsck.args(options).arg(&self.device), STEP).context(program)?;
        ensure!(
            output.status.success(),
            "{program} finds errors ({}): {}",
            output.status,
            last_lines(&output.stdout, 5)
        );
        self.mount_again(run)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        if let Err(error) = unmount_lazily(self.privilege, &self.mount_point) {
            eprintln!("zea-demo: unmounting: {error:#}");
        }
    }
}
