//! The file system of a guest: busybox, the tools of DRBD, modules of the kernel, and what a scenario adds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Cpio;
use crate::kernel::Kernel;
use crate::tool;

/// The first program of a guest.
const INIT: &str = include_str!("guest/init.sh");

/// Parts of the kernel's modules that guests get, of which they load what they need.
const MODULES: [&str; 4] = ["kernel/crypto", "kernel/drivers/block", "kernel/drivers/md", "kernel/lib"];

/// Programs that every guest has.
const PROGRAMS: [&str; 5] = ["drbdadm", "drbdsetup", "drbdmeta", "drbdadm-84", "drbdsetup-84"];

/// Folders that programs expect.
const FOLDERS: [&str; 12] =
    ["proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc/drbd.d", "var/lib/drbd", "var/lock", "var/run", "sbin"];

/// Builds it.
///
/// # Errors
/// A program is missing on this machine.
pub(crate) fn build(kernel: &Kernel, programs: &[&str]) -> Result<Cpio> {
    let mut archive = base(&PROGRAMS)?;
    add_programs(&mut archive, programs)?;
    add_modules(&mut archive, kernel.modules())?;
    Ok(archive)
}

/// A file system with busybox and programs of this machine, without modules.
pub(crate) fn base(programs: &[&str]) -> Result<Cpio> {
    let mut archive = Cpio::default();
    FOLDERS.iter().for_each(|folder| archive.directory(folder));
    archive.character_device("dev/console", 5, 1);
    archive.character_device("dev/null", 1, 3);
    archive.file("init", 0o755, INIT.as_bytes().to_vec());
    add_busybox(&mut archive)?;
    add_programs(&mut archive, programs)?;
    Ok(archive)
}

fn add_programs(archive: &mut Cpio, programs: &[&str]) -> Result<()> {
    for name in programs {
        let path = tool::find(name).with_context(|| format!("no {name} on this machine"))?;
        add_program(archive, &path)?;
    }
    Ok(())
}

/// Adds a program under another path than it has here, without what a debugger wants.
pub(crate) fn add_stripped(archive: &mut Cpio, path: &Path, name: &str) -> Result<()> {
    let stripped = tempfile::NamedTempFile::new()?;
    tool::succeed(tool::command("strip").arg("-o").arg(stripped.path()).arg(path))?;
    archive.file(name, 0o755, fs::read(stripped.path())?);
    add_libraries(archive, path)
}

fn add_busybox(archive: &mut Cpio) -> Result<()> {
    let busybox = tool::find("busybox").context("no busybox on this machine")?;
    let data = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", 0o755, data);
    add_libraries(archive, &busybox)?;
    let names = tool::succeed(tool::command(&busybox).arg("--list"))?;
    for name in names.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    // The kernel calls it by this path.
    archive.link("sbin/modprobe", "/bin/busybox");
    Ok(())
}

/// A program at its own path, with the libraries that it is linked with.
fn add_program(archive: &mut Cpio, path: &Path) -> Result<()> {
    add_file(archive, path)?;
    add_libraries(archive, path)
}

fn add_libraries(archive: &mut Cpio, path: &Path) -> Result<()> {
    // ldd fails for programs that are linked statically.
    let linked = tool::command("ldd").arg(path).output()?;
    for word in String::from_utf8_lossy(&linked.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        add_file(archive, Path::new(word))?;
    }
    Ok(())
}

fn add_file(archive: &mut Cpio, path: &Path) -> Result<()> {
    let name = path.to_string_lossy();
    if !archive.has(&name) {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        archive.file(&name, 0o755, data);
    }
    Ok(())
}

fn add_modules(archive: &mut Cpio, modules: &Path) -> Result<()> {
    let version = modules.file_name().context("modules without a version")?.to_string_lossy();
    let mut open: Vec<PathBuf> = MODULES.iter().map(PathBuf::from).collect();
    open.extend(["modules.dep", "modules.alias", "modules.symbols"].map(PathBuf::from));
    while let Some(path) = open.pop() {
        let source = modules.join(&path);
        if source.is_dir() {
            for entry in fs::read_dir(&source)? {
                open.push(path.join(entry?.file_name()));
            }
        } else {
            let data = fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
            archive.file(&format!("lib/modules/{version}/{}", path.display()), 0o644, data);
        }
    }
    Ok(())
}
