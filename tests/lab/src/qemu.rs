//! Machines of QEMU, with Debian's ordinary kernels: those have the ublk driver, which the kernel in user mode lacks.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cpio::Cpio;
use crate::debian::{self, Suites};
use crate::tool;

/// Older ones break the guest at random.
const OLDEST_QEMU: u32 = 8;
/// Modules that guests load, in this order, with what they depend on. Some are built in, or not there, depending on the kernel.
const MODULES: [&str; 7] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "xfs", "brd", "ublk_drv"];
/// Skips what a guest on an emulated processor need not do.
const COMMAND_LINE: &str = "console=ttyS0 reboot=t quiet loglevel=1 panic=-1 mitigations=off nokaslr audit=0 lsm=capability \
     no_timer_check tsc=reliable random.trust_cpu=on cryptomgr.notests i8042.noaux i8042.nokbd";

/// A kernel of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linux {
    /// Of bookworm-backports: ublk without growth and without zero copy.
    V6_12,
    /// Of trixie-backports: everything that ublk has.
    V7_3,
}

impl Linux {
    /// Its folder in the cache: `vmlinux`, `modules/`, and `modules/order`.
    fn prepare(self) -> Result<PathBuf> {
        let name = match self {
            Linux::V6_12 => "linux-6.12",
            Linux::V7_3 => "linux-7.3",
        };
        debian::cached(name, |fresh| {
            let unpacked = tempfile::tempdir()?;
            self.download(unpacked.path()).with_context(|| format!("cannot get Debian's {name}"))?;
            let image = find(unpacked.path(), &|name| name.starts_with("vmlinuz"))?.context("no kernel image")?;
            fs::write(fresh.join("vmlinux"), uncompressed(&fs::read(image)?)?)?;
            let modules = find(unpacked.path(), &|name| name == "modules.builtin")?.context("no modules")?;
            let modules = modules.parent().context("a folder")?;
            Loader { tree: modules, out: fresh.join("modules"), order: Vec::new() }.collect()
        })
    }

    fn download(self, into: &Path) -> Result<()> {
        match self {
            Linux::V6_12 => {
                let suites = Suites::fetch(&["bookworm-backports"], "bookworm-backports")?;
                let image = debian::newest(suites.names("linux-image-6.12")?, "-cloud-amd64")?;
                suites.download(&[&image], into)
            }
            Linux::V7_3 => {
                let suites = Suites::fetch(&["trixie-backports"], "trixie-backports")?;
                let binary = debian::newest(
                    suites.names("linux-binary-7.3")?.into_iter().filter(|n| !n.contains("unsigned")).collect(),
                    "-cloud-amd64",
                )?;
                let other = |part: &str| binary.replacen("binary", part, 1);
                suites.download(&[&binary, &other("modules"), &other("base")], into)
            }
        }
    }
}

/// Picks modules and what they depend on.
struct Loader<'a> {
    tree: &'a Path,
    out: PathBuf,
    order: Vec<String>,
}

impl Loader<'_> {
    fn collect(mut self) -> Result<()> {
        fs::create_dir(&self.out)?;
        for name in MODULES {
            self.add(name)?;
        }
        ensure!(self.order.iter().any(|name| name == "ublk_drv.ko"), "this kernel has no ublk driver");
        fs::write(self.out.join("order"), self.order.join("\n") + "\n")?;
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let file = format!("{name}.ko");
        if self.order.contains(&file) {
            return Ok(());
        }
        let is_it = |found: &str| found.replace('-', "_").strip_prefix(&file).is_some_and(|rest| !rest.contains('_'));
        let Some(path) = find(&self.tree.join("kernel"), &is_it)? else {
            return Ok(());
        };
        let mut module = fs::read(&path)?;
        if path.extension().is_some_and(|extension| extension == "xz") {
            module = unpack("xz", &module)?;
        }
        for needed in depends(&module) {
            self.add(&needed.replace('-', "_"))?;
        }
        fs::write(self.out.join(&file), module)?;
        self.order.push(file);
        Ok(())
    }
}

/// What a module says that it needs.
fn depends(module: &[u8]) -> Vec<String> {
    const MARK: &[u8] = b"\0depends=";
    let Some(at) = module.windows(MARK.len()).position(|window| window == MARK) else {
        return Vec::new();
    };
    let rest = &module[at + MARK.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    let text = String::from_utf8_lossy(&rest[..end]).into_owned();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The first file below a folder with such a name.
fn find(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Option<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(None);
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() && wanted(&entry.file_name().to_string_lossy()) {
            return Ok(Some(entry.path()));
        }
    }
    for folder in folders {
        if let Some(found) = find(&folder, wanted)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The kernel in an image that unpacks itself: booting it is quicker without.
fn uncompressed(image: &[u8]) -> Result<Vec<u8>> {
    let packed: [(&[u8], &str); 3] = [(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x1f\x8b\x08", "gzip")];
    for (magic, tool) in packed {
        let places = image.windows(magic.len()).enumerate().filter(|(_, window)| *window == magic);
        for (at, _) in places {
            // What follows it in the image makes the tool fail at the end.
            if let Ok(kernel) = unpack(tool, &image[at..])
                && kernel.starts_with(b"\x7fELF")
            {
                return Ok(kernel);
            }
        }
    }
    anyhow::bail!("no packed kernel in the image")
}

/// What a tool makes of packed bytes, whether it likes their end or not.
fn unpack(program: &str, packed: &[u8]) -> Result<Vec<u8>> {
    let mut command = tool::command(program);
    command.args(["-d", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    let mut input = child.stdin.take().context("an input")?;
    let packed = packed.to_vec();
    // On a thread: neither side waits for the other.
    let feed = std::thread::spawn(move || input.write_all(&packed));
    let output = child.wait_with_output()?;
    // It may have stopped reading where its data ends.
    let _ = feed.join();
    Ok(output.stdout)
}

/// What a machine is made of.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    pub(crate) memory_mib: u32,
    pub(crate) initramfs: &'a Path,
    /// Images of its disks, in order: /dev/vda and so on.
    pub(crate) disks: &'a [PathBuf],
}

/// QEMU and a kernel.
#[derive(Debug)]
pub(crate) struct Emulator {
    /// `None`: the one of this machine.
    unpacked: Option<PathBuf>,
    kernel: PathBuf,
}

impl Emulator {
    /// Downloads what is missing.
    ///
    /// # Errors
    /// It cannot be had: what to do.
    pub(crate) fn find(linux: Linux) -> Result<Emulator> {
        let kernel = linux.prepare()?;
        if tool::find("qemu-system-x86_64").is_some() && version()? >= OLDEST_QEMU {
            return Ok(Emulator { unpacked: None, kernel });
        }
        let unpacked = debian::cached("qemu", |fresh| {
            // No other suites: their C library would come along.
            let suites = Suites::fetch(&["bookworm", "bookworm-backports"], "bookworm-backports")?;
            suites.unpack(&["qemu-system-x86"], fresh)
        });
        let hint = format!("qemu-system-x86_64 of version {OLDEST_QEMU} or newer is needed");
        Ok(Emulator { unpacked: Some(unpacked.context(hint)?), kernel })
    }

    /// Adds the modules of the kernel to the file system of a guest.
    pub(crate) fn add_modules(&self, archive: &mut Cpio) -> Result<()> {
        archive.directory("modules");
        for entry in fs::read_dir(self.kernel.join("modules"))? {
            let path = entry?.path();
            let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
            archive.file(&format!("modules/{name}"), 0o644, fs::read(&path)?);
        }
        Ok(())
    }

    /// Adds the program and its arguments to a command. The console is on its standard input and output.
    pub(crate) fn boot(&self, command: &mut Command, machine: &Machine<'_>) {
        let Machine { memory_mib, initramfs, disks } = *machine;
        match &self.unpacked {
            None => {
                command.arg("qemu-system-x86_64");
            }
            Some(folder) => {
                let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|lib| folder.join(lib));
                let libraries = libraries.map(|lib| lib.display().to_string()).join(":");
                command.arg(folder.join("usr/bin/qemu-system-x86_64")).env("LD_LIBRARY_PATH", libraries);
                for data in ["usr/share/qemu", "usr/share/seabios"] {
                    command.arg("-L").arg(folder.join(data));
                }
            }
        }
        command.args(["-accel", "tcg", "-cpu", "Nehalem", "-M", "q35", "-smp", "1", "-m", &memory_mib.to_string()]);
        command.arg("-kernel").arg(self.kernel.join("vmlinux")).arg("-initrd").arg(initramfs);
        command.args(["-append", COMMAND_LINE, "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
        for (number, disk) in disks.iter().enumerate() {
            let drive = format!("if=none,id=d{number},format=raw,cache=unsafe,discard=unmap,file={}", disk.display());
            command.args(["-drive", &drive, "-device", &format!("virtio-blk-pci,drive=d{number}")]);
        }
    }
}

/// The major version of this machine's QEMU.
fn version() -> Result<u32> {
    let text = tool::succeed(tool::command("qemu-system-x86_64").arg("--version"))?;
    let word = text.split_whitespace().nth(3).context("QEMU says no version")?;
    Ok(word.split('.').next().unwrap_or_default().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_modules_say_what_they_need() {
        assert_eq!(depends(b"license=GPL\0depends=jbd2,crc16,mbcache\0name=ext4\0"), ["jbd2", "crc16", "mbcache"]);
        assert!(depends(b"license=GPL\0depends=\0name=brd\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }
}
