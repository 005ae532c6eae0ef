//! Kernels out of Debian packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::debian::cache_folder;
use crate::tool;

/// Debian's kernel in user mode: an ordinary program, with modules. It has DRBD 8.4, dm, nbd, ext4 and xfs.
const PACKAGE: &str = "user-mode-linux";

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// A name that no other machine of the lab has.
    pub(crate) name: &'a str,
    /// Files of its own: sockets of the kernel, memory.
    pub(crate) folder: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) initramfs: &'a Path,
    /// Images of its disks, in order.
    pub(crate) disks: &'a [PathBuf],
    /// The tap device of its network card.
    pub(crate) tap: &'a str,
    /// The card's address with the length of the network's prefix.
    pub(crate) address: &'a str,
}

/// A kernel that can be booted. Machines have their console on the standard input and output of the program.
#[derive(Debug)]
pub(crate) struct Kernel {
    program: PathBuf,
    /// The folder that has `modules.dep`.
    modules: PathBuf,
}

impl Kernel {
    /// The kernel of the installed package; else of one that was downloaded before, or is downloaded now.
    ///
    /// # Errors
    /// It is not there and cannot be had: what to do.
    pub(crate) fn find() -> Result<Kernel> {
        if let Some(installed) = Kernel::in_folder(Path::new("/usr")) {
            return Ok(installed);
        }
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        // Others may be at it.
        let lock = File::create(cache.join("lock"))?;
        lock.lock()?;
        let unpacked = download(&cache).with_context(|| format!("apt-get install {PACKAGE} helps"))?;
        Kernel::in_folder(&unpacked.join("usr")).with_context(|| format!("no kernel in {}", unpacked.display()))
    }

    fn in_folder(usr: &Path) -> Option<Kernel> {
        let program = usr.join("bin/linux.uml");
        let mut versions = fs::read_dir(usr.join("lib/uml/modules")).ok()?.filter_map(Result::ok);
        let modules = versions.find(|version| version.path().join("modules.dep").is_file())?.path();
        program.is_file().then_some(Kernel { program, modules })
    }

    /// The folder with its modules, named by its version.
    pub(crate) fn modules(&self) -> &Path {
        &self.modules
    }

    /// Adds the program and its arguments to a command.
    pub(crate) fn boot(&self, command: &mut Command, machine: &Machine<'_>) {
        let Machine { name, folder, memory_mib, initramfs, disks, tap, address } = *machine;
        command.arg(&self.program);
        command.arg(format!("mem={memory_mib}M")).arg(format!("initrd={}", initramfs.display()));
        command.args(["con0=fd:0,fd:1", "con=null", "ssl=null", "quiet", "loglevel=1", "panic=-1"]);
        command.arg(format!("uml_dir={}", folder.display())).arg(format!("umid={name}"));
        for (number, disk) in disks.iter().enumerate() {
            command.arg(format!("ubd{number}={}", disk.display()));
        }
        // Without gro, segments that the host leaves uncut are dropped.
        command.arg(format!("vec0:transport=tap,ifname={tap},depth=64,gro=1"));
        command.arg(format!("lab.name={name}")).arg(format!("lab.address={address}"));
        command.env("TMPDIR", folder);
    }
}

/// Downloads and unpacks the package, unless this version of it is there. Returns the folder.
fn download(cache: &Path) -> Result<PathBuf> {
    let listed = tool::succeed(tool::command("apt-get").args(["download", "--print-uris", PACKAGE]));
    let Ok(listed) = listed else {
        // Without package lists: any version that is there.
        let mut folders = fs::read_dir(cache)?.filter_map(Result::ok).map(|entry| entry.path());
        return folders.find(|path| path.join("usr").is_dir()).context("not in the cache, and unknown to apt-get");
    };
    // 'URI' FILE SIZE HASH, where FILE is NAME_VERSION_ARCHITECTURE.deb.
    let file = listed.split_whitespace().nth(1).context("apt-get names no file")?;
    let unpacked = cache.join(file.trim_end_matches(".deb"));
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    let work = tempfile::tempdir_in(cache)?;
    tool::succeed(tool::command("apt-get").args(["download", PACKAGE]).current_dir(work.path()))?;
    let mut files = fs::read_dir(work.path())?.filter_map(Result::ok).map(|entry| entry.path());
    let package = files.find(|path| path.extension().is_some_and(|e| e == "deb")).context("no package came")?;
    let fresh = work.path().join("unpacked");
    tool::succeed(tool::command("dpkg-deb").arg("-x").arg(&package).arg(&fresh))?;
    ensure!(fresh.join("usr").is_dir(), "{} has no usr", package.display());
    fs::rename(&fresh, &unpacked)?;
    Ok(unpacked)
}
