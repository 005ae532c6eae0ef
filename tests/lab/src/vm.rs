//! A machine of QEMU in which two nodes run: block devices of the kernel, served by zead.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::guest::Guest;
use crate::lab::own_folder;
use crate::qemu::{Emulator, Linux, Machine};
use crate::slot::Slot;
use crate::{disk, initramfs, tool, zead};

const MEMORY_MIB: u32 = 1024;
/// Disks of the machine: the backing devices of both nodes.
const DISKS: usize = 2;
/// Programs of this machine that the guest gets.
const PROGRAMS: [&str; 7] = ["fio", "mkfs.ext4", "e2fsck", "mkfs.xfs", "xfs_repair", "fstrim", "blockdev"];
/// Likewise, in /opt: those of busybox, which its shell prefers, can less.
const BETTER: [&str; 2] = ["dd", "blkdiscard"];

/// What every script begins with: the nodes `a` and `b` by name, and waiting.
const PRELUDE: &str = "set -e
a() { zea --socket /run/a/control.sock \"$@\"; }
b() { zea --socket /run/b/control.sock \"$@\"; }
until_true() { n=0; until \"$@\"; do n=$((n + 1)); [ $n -lt 600 ] || { echo \"never: $*\"; tail -n 30 /run/*.log; exit 1; }; sleep 0.05; done; }
start() { zead --node-id $2 --state-dir /run/$1 --frontend ublk --flight-recorder off </dev/null >>/run/$1.log 2>&1 & echo $! >/run/$1.pid; until_true quiet $1 version; }
quiet() { \"$@\" >/dev/null 2>&1; }
fails() { if \"$@\" >/tmp/said 2>&1; then echo \"did not fail: $*\"; exit 1; fi; }
gone() { [ ! -e \"$1\" ]; }
has_size() { [ $(blockdev --getsize64 $D) = $1 ]; }
D=/dev/zea/r0/0
";

/// A booted machine. Everything of it ends when it is dropped.
#[derive(Debug)]
pub struct Vm {
    guest: Guest,
    linux: Linux,
    disks: Vec<PathBuf>,
    _lock: File,
    _folder: TempDir,
    _slot: Slot,
    begin: Instant,
    steps: Vec<(String, Duration)>,
}

impl Vm {
    /// Boots a machine with two disks of this size.
    ///
    /// # Errors
    /// Something is missing, or it does not come up.
    pub fn boot(linux: Linux, disk_bytes: u64) -> Result<Vm> {
        let emulator = Emulator::find(linux)?;
        let programs = zead::programs()?;
        let (folder, lock) = own_folder()?;
        let mut archive = initramfs::base(&PROGRAMS)?;
        for name in ["zead", "zea"] {
            initramfs::add_stripped(&mut archive, &programs.join(name), &format!("bin/{name}"))?;
        }
        for name in BETTER {
            let path = tool::find(name).with_context(|| format!("no {name} on this machine"))?;
            initramfs::add_stripped(&mut archive, &path, &format!("opt/{name}"))?;
        }
        emulator.add_modules(&mut archive)?;
        let initramfs = folder.path().join("initramfs");
        fs::write(&initramfs, archive.bytes())?;
        let disks: Vec<PathBuf> = (0..DISKS).map(|nr| folder.path().join(format!("disk{nr}"))).collect();
        for disk in &disks {
            File::create(disk)?.set_len(disk_bytes)?;
        }
        let slot = Slot::take()?;
        let begin = Instant::now();
        let mut command = tool::command("setpriv");
        command.args(["--pdeathsig", "KILL", "taskset", "-c", &slot.cpu().to_string()]);
        emulator.boot(&mut command, &Machine { memory_mib: MEMORY_MIB, initramfs: &initramfs, disks: &disks });
        let guest = Guest::boot("vm", &mut command)?;
        let steps = Vec::new();
        let mut vm = Vm { guest, linux, disks, _lock: lock, _folder: folder, _slot: slot, begin, steps };
        vm.step("booted");
        Ok(vm)
    }

    /// The kernel that it runs.
    #[must_use]
    pub fn linux(&self) -> Linux {
        self.linux
    }

    /// Notes that a step is done.
    pub fn step(&mut self, name: &str) {
        self.steps.push((name.to_owned(), self.begin.elapsed()));
    }

    /// The steps that were noted, each with the time from the beginning.
    #[must_use]
    pub fn times(&self) -> String {
        let steps = self.steps.iter().map(|(name, at)| format!("{name} {:.1} s", at.as_secs_f64()));
        steps.collect::<Vec<_>>().join(", ")
    }

    /// Runs a script; `a` and `b` are the nodes' `zea`, `$D` the device of their volume.
    ///
    /// # Errors
    /// It fails, with what it said.
    pub fn run(&mut self, script: &str) -> Result<String> {
        self.guest.run(&format!("{PRELUDE}{script}"))
    }

    /// Starts two nodes with resource r0, whose volume 0 has `size`, connected and in sync; the first one is Primary.
    ///
    /// # Errors
    /// They do not come up.
    pub fn start_pair(&mut self, size: &str) -> Result<()> {
        let script = format!(
            "start a 0; start b 1
            for node in a b; do
                disk=vda; [ $node = a ] || disk=vdb
                $node resource create r0 --node 0=alpha@127.0.0.1:7789 --node 1=bravo@127.0.0.2:7789 \
                    --volume 0=/dev/$disk,size={size}
            done
            a promote r0 --force
            a wait r0 --for synced"
        );
        self.run(&script).context("two nodes")?;
        self.step("two nodes in sync");
        Ok(())
    }

    /// Compares the beginnings of both disks.
    ///
    /// # Errors
    /// They differ: where.
    pub fn compare(&mut self, bytes: u64) -> Result<()> {
        disk::compare(&self.disks[0], &self.disks[1], bytes)?;
        self.step("replicas equal");
        Ok(())
    }

    /// What a failed scenario has left: the logs, and what waits in the kernel.
    pub fn remains(&mut self) -> String {
        let script = "tail -n 40 /run/*.log; echo w >/proc/sysrq-trigger; dmesg | tail -n 40; ps | grep ' D '";
        self.guest.try_run(Duration::from_secs(30), script).map_or_else(|error| format!("{error:#}"), |(said, _)| said)
    }

    /// Gives the console to a person.
    ///
    /// # Errors
    /// It is gone.
    pub fn talk(&mut self) -> Result<()> {
        self.guest.talk()
    }
}
