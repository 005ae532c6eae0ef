//! How the volume is used: the one place where that is chosen.
//!
//! A front end takes the NBD export of a Primary and gives a place for the workload. One that gives a block device
//! (the kernel's NBD driver, ublk) only has to take the part of [`nbdfuse`]; [`file_system`] is above it.

mod file_system;
mod nbdfuse;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::install;
use crate::nbd_client::{Export, NbdClient};
use crate::process::Privilege;
use crate::run::Run;
use crate::workload::Store;

pub(crate) use file_system::Kind as FileSystem;
use file_system::Mounted;
use nbdfuse::LoopDevice;

/// A way to use the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frontend {
    /// nbdfuse makes a file of the export, a loop device makes a block device of the file, a file system is on it.
    NbdfuseLoop(Privilege, FileSystem),
    /// The export itself.
    NbdRaw,
}

/// Whether a volume is used for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// It is empty: make a file system.
    New,
    /// It was used elsewhere before.
    Existing,
}

impl Frontend {
    /// The best front end that works here. Installs what it needs if it may, tries it out on a small image in
    /// `directory`, and says why if it does not work.
    pub(crate) fn choose(run: &Run, directory: &Path, file_system: FileSystem) -> Result<Frontend> {
        let privilege = Privilege::find(run);
        run.check()?;
        match try_mount(run, privilege, directory, file_system) {
            Ok(()) => Ok(Frontend::NbdfuseLoop(privilege, file_system)),
            Err(error) => {
                run.check()?;
                run.say(format!("no mount here: {error:#}"));
                run.say("falling back to the raw export, with a checksummed sequence log on it");
                Ok(Frontend::NbdRaw)
            }
        }
    }

    /// For the summary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Frontend::NbdfuseLoop(..) => "nbdfuse+loop",
            Frontend::NbdRaw => "nbd",
        }
    }

    /// What is made on the volume.
    pub(crate) fn file_system(self) -> Option<FileSystem> {
        match self {
            Frontend::NbdfuseLoop(_, file_system) => Some(file_system),
            Frontend::NbdRaw => None,
        }
    }

    /// Opens an export for use; what that needs goes to a new directory.
    pub(crate) fn open(self, run: &Run, export: &Export, directory: &Path, contents: Contents) -> Result<Volume> {
        match self {
            Frontend::NbdfuseLoop(privilege, kind) => {
                std::fs::create_dir(directory)?;
                let device = LoopDevice::attach(run, privilege, export, directory)?;
                let mount_point = directory.join("mnt");
                if contents == Contents::New {
                    kind.make(run, privilege, device.path())?;
                }
                let file_system = Mounted::mount(run, privilege, kind, device.path(), &mount_point)?;
                Ok(Volume::Mounted { file_system, device })
            }
            Frontend::NbdRaw => {
                // Each worker opens it for itself; this is to know that it can.
                NbdClient::open(export)?;
                Ok(Volume::Raw(export.clone()))
            }
        }
    }
}

/// Everything that the mounted front end needs, on something harmless.
fn try_mount(run: &Run, privilege: Privilege, directory: &Path, file_system: FileSystem) -> Result<()> {
    if privilege == Privilege::None {
        anyhow::bail!("this user is not root, and sudo wants a password");
    }
    install::install_tools(run, privilege, file_system)?;
    let missing = install::missing_tools(file_system);
    anyhow::ensure!(missing.is_empty(), "{} missing", missing.join(", "));
    nbdfuse::check_fuse()?;
    file_system.try_out(run, privilege, directory)
}

/// A volume in use. Dropped, it is taken down by force.
#[derive(Debug)]
pub(crate) enum Volume {
    /// A file system on a block device. Dropped in this order.
    Mounted {
        /// The file system.
        file_system: Mounted,
        /// What it is on.
        device: LoopDevice,
    },
    /// The export.
    Raw(Export),
}

impl Volume {
    /// Where commits go.
    pub(crate) fn store(&self) -> Store {
        match self {
            Volume::Mounted { file_system, .. } => Store::Sqlite(file_system.mount_point().join("commits.sqlite")),
            Volume::Raw(export) => Store::Seqlog(export.clone()),
        }
    }

    /// Directory of the file system, if there is one.
    pub(crate) fn mount_point(&self) -> Option<PathBuf> {
        match self {
            Volume::Mounted { file_system, .. } => Some(file_system.mount_point().to_owned()),
            Volume::Raw(_) => None,
        }
    }

    /// Checks the file system; it is unmounted meanwhile. Without one there is nothing to check.
    pub(crate) fn fsck(&mut self, run: &Run) -> Result<()> {
        match self {
            Volume::Mounted { file_system, .. } => file_system.check(run),
            Volume::Raw(_) => Ok(()),
        }
    }

    /// Lets go of a volume that works.
    pub(crate) fn close(self) -> Result<()> {
        match self {
            Volume::Mounted { file_system, device } => {
                file_system.unmount()?;
                device.detach()
            }
            Volume::Raw(_) => Ok(()),
        }
    }

    /// Cuts off a volume whose server is dead, so that everything that waits for it fails at once. To be dropped when
    /// nothing uses it any more.
    pub(crate) fn cut_off(&mut self) -> Result<()> {
        match self {
            Volume::Mounted { device, .. } => device.cut_off(),
            Volume::Raw(_) => Ok(()),
        }
    }
}
