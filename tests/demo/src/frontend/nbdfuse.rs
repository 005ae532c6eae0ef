//! A block device out of an NBD export, without a kernel driver for NBD: nbdfuse and a loop device.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::nbd_client::Export;
use crate::process::{self, Privilege, Process, last_lines};
use crate::run::{Look, Run};

/// How long each step may take.
const STEP: Duration = Duration::from_secs(15);
/// How long nbdfuse may take to end by itself.
const END: Duration = Duration::from_secs(5);
/// How often a loop device is asked for: somebody else may be quicker to take the free one.
const LOOP_ATTEMPTS: u32 = 5;

/// Fails where file systems in userspace cannot be.
pub(crate) fn check_fuse() -> Result<()> {
    ensure!(Path::new("/dev/fuse").exists(), "there is no /dev/fuse");
    Ok(())
}

/// A loop device over nbdfuse's file. Dropped, both are taken down by force.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    privilege: Privilege,
    fuse: PathBuf,
    pid_file: PathBuf,
    log: PathBuf,
    device: Option<PathBuf>,
    nbdfuse: Option<Process>,
}

impl LoopDevice {
    /// Makes a block device of an export.
    pub(crate) fn attach(run: &Run, privilege: Privilege, export: &Export, directory: &Path) -> Result<LoopDevice> {
        let fuse = directory.join("fuse");
        std::fs::create_dir(&fuse)?;
        let mut device = LoopDevice {
            privilege,
            fuse,
            pid_file: directory.join("nbdfuse.pid"),
            log: directory.join("nbdfuse.log"),
            device: None,
            nbdfuse: None,
        };
        device.start_nbdfuse(run, export)?;
        let file = device.fuse.join("nbd");
        device.device = Some(attach_loop(run, privilege, &file)?);
        Ok(device)
    }

    /// The block device.
    pub(crate) fn path(&self) -> &Path {
        self.device.as_deref().unwrap_or(Path::new(""))
    }

    fn start_nbdfuse(&mut self, run: &Run, export: &Export) -> Result<()> {
        let log = std::fs::File::create(&self.log)?;
        let mut command = self.privilege.command("nbdfuse");
        command
            .arg("-P")
            .arg(&self.pid_file)
            .arg(self.fuse.join("nbd"))
            .arg(export.uri())
            .stdout(log.try_clone()?)
            .stderr(log);
        let nbdfuse = self.nbdfuse.insert(Process::spawn(&mut command)?);
        run.wait_for("nbdfuse", STEP, || {
            if let Some(status) = nbdfuse.ended()? {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                anyhow::bail!("it ended ({status}): {}", last_lines(&log, 3));
            }
            // It writes the file when it is ready.
            Ok(match read_pid(&self.pid_file) {
                Some(_) => Look::Done(()),
                None => Look::NotYet("it is not ready".into()),
            })
        })
    }

    /// Kills nbdfuse: requests that wait for a dead server fail at once.
    pub(crate) fn cut_off(&mut self) -> Result<()> {
        let Some(nbdfuse) = &mut self.nbdfuse else {
            return Ok(());
        };
        if nbdfuse.ended()?.is_some() {
            // It noticed by itself.
            return Ok(());
        }
        match (self.privilege, read_pid(&self.pid_file)) {
            (Privilege::Sudo, Some(pid)) => {
                // The child is sudo, which a SIGKILL would only part from nbdfuse.
                let mut kill = self.privilege.command("kill");
                process::output_of_cleanup(kill.args(["-9", &pid.to_string()]), STEP)?;
            }
            _ => nbdfuse.kill()?,
        }
        nbdfuse.wait(END, || Ok(()))?.context("nbdfuse is killed but not gone")?;
        Ok(())
    }

    /// Takes down a device that works and is not in use.
    pub(crate) fn detach(mut self) -> Result<()> {
        if let Some(device) = self.device.take() {
            let mut losetup = self.privilege.command("losetup");
            process::succeed_in_cleanup(losetup.arg("-d").arg(device), STEP)?;
        }
        let mut umount = self.privilege.command("umount");
        process::succeed_in_cleanup(umount.arg(&self.fuse), STEP)?;
        if let Some(mut nbdfuse) = self.nbdfuse.take() {
            let status = nbdfuse.wait(END, || Ok(()))?;
            let status = status.context("nbdfuse does not end")?;
            ensure!(status.success(), "nbdfuse ended with {status}");
        }
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let Some(_) = self.nbdfuse else {
            return;
        };
        let cut_off = self.cut_off();
        let detached = self.device.take().map_or(Ok(String::new()), |device| {
            let mut losetup = self.privilege.command("losetup");
            process::succeed_in_cleanup(losetup.arg("-d").arg(device), STEP)
        });
        // Lazily: the loop device may have the file open a moment longer.
        let unmounted = unmount_lazily(self.privilege, &self.fuse);
        for error in [cut_off.err(), detached.err(), unmounted.err()].into_iter().flatten() {
            eprintln!("zea-demo: taking down nbdfuse: {error:#}");
        }
    }
}

fn read_pid(path: &Path) -> Option<u32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Attaches a file to a free loop device.
pub(super) fn attach_loop(run: &Run, privilege: Privilege, file: &Path) -> Result<PathBuf> {
    let mut attempt = 1;
    loop {
        let mut losetup = privilege.command("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]).arg(file);
        match process::succeed(run, &mut losetup, STEP) {
            Ok(device) => return Ok(PathBuf::from(device.trim())),
            Err(error) if attempt >= LOOP_ATTEMPTS => return Err(error),
            Err(_) => {
                attempt += 1;
                run.pause(Duration::from_millis(100))?;
            }
        }
    }
}

/// Takes a mount out of sight at once, and away when nothing uses it any more. What is not mounted is left alone.
pub(super) fn unmount_lazily(privilege: Privilege, mount_point: &Path) -> Result<()> {
    if !is_mounted(mount_point)? {
        return Ok(());
    }
    let mut umount = privilege.command("umount");
    process::succeed_in_cleanup(umount.arg("--lazy").arg(mount_point), STEP).map(drop)
}

/// From the kernel's list: asking the path itself could hang.
fn is_mounted(mount_point: &Path) -> Result<bool> {
    Ok(crate::workdir::mounts_below(mount_point)?.iter().any(|it| it == mount_point))
}
